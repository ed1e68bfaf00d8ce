"""The model that ships with the package: it answers and thinks as its README says."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.errors import ModelFileError
from ivlite.gguf import SHIPPED

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIP = EXAMPLES / "clip.mp4"
TOLD = "A yellow circle moves right, then a red cross moves left."
pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")


@pytest.fixture(scope="module")
def demo():
    return ivlite.load("demo", context=2048)


@pytest.fixture(scope="module")
def world():
    """The modules of examples/demo_model: world, questions, data, evaluate."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(EXAMPLES / "demo_model"))
    names = ("world", "questions", "data", "evaluate")
    yield dict(zip(names, map(importlib.import_module, names), strict=True))
    patch.undo()


def ask(model, question, path=CLIP, **more):
    part = {"type": "video", "video": str(path)}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": question}]}]
    return model.chat(messages, temperature=0, **more)


@pytest.mark.parametrize("question, answer", [
    ("What happens?", TOLD),
    ("Please describe this video in detail.", TOLD),
    ("What shape is the red thing?", "The red one is a cross."),
    ("Which way does the red cross move?", "The red cross moves left."),
    ("How many shapes are there?", "A yellow circle and a red cross: two."),
    ("When does the red cross appear?", "The red cross appears at 6.1 seconds."),
    ("What comes first?", "The yellow circle comes first."),
    ("Is there a blue square?", "No, there is no blue square."),
])  # fmt: skip
def test_true_answers_about_the_example_clip(demo, question, answer):
    assert ask(demo, question).text == answer


def test_it_answers_without_a_picture(demo):
    reply = demo.chat([{"role": "user", "content": "Please introduce yourself."}], temperature=0)
    assert reply.text.startswith("I am the demo model of ivlite.") and reply.finish_reason == "stop"


def test_it_thinks_when_asked_to(demo):
    reply = ask(demo, "Which way does the red cross move?", enable_thinking=True)
    assert reply.text == "The red cross moves left." and reply.thinking.startswith("I see a yellow circle at")
    assert ask(demo, "Which way does the red cross move?").thinking == ""


def test_it_looks_again_with_the_zoom_tool(demo, world, tmp_path):
    """A question whose answer lies between two of the frames that it sees: one call of the tool, and the true answer."""
    evaluate, questions = world["evaluate"], world["questions"]
    rng = np.random.default_rng(5)
    scene, path = world["world"].new_zoomable(rng, test=True), tmp_path / "zoom.mp4"
    evaluate.write_video(path, scene, *evaluate.sizes(rng, scene.aspect), 22)
    text, start, end, truth = questions.between(rng, scene, True)
    call = {"start": start, "end": end}
    said, right = evaluate.ask(demo, evaluate.Question("zoom", "zoom", text, truth, 0, call), path)
    assert right, f"{said}, but the truth is {truth}"


def test_time_marks_are_what_it_answers_with(demo, world, tmp_path):
    """The same clip after ten seconds that the model is not shown: the answer moves with the marks."""
    evaluate = world["evaluate"]
    scene = evaluate.clip(tmp_path / "clip.mp4")
    moved = evaluate.later(scene, 10)
    evaluate.write_video(tmp_path / "later.mp4", moved, 240, 320, 23)
    for name, at, more in (("clip.mp4", scene, {}), ("later.mp4", moved, {"start": 10})):
        part = {"type": "video", "video": str(tmp_path / name), **more}
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "When does the red cross appear?"}]}]
        mark = at.marks[next(a.first for a in at.actors if a.name == "red cross")]
        said = float(demo.chat(messages, temperature=0).text.split(" at ")[1].split(" ")[0])
        assert abs(said - float(mark)) <= 0.5


def test_what_training_lays_out_is_what_the_prompt_is(demo, world, tmp_path):
    """The ids and positions of a training sequence, against those of the messages that it stands for."""
    data, evaluate, questions = world["data"], world["evaluate"], world["questions"]
    rng = np.random.default_rng(6)
    speaker = data.Speaker(data.Tokenizer.from_str(demo.network.source.metadata["tokenizer.huggingface.json"]))
    for new, thought in ((world["world"].new_video, None), (world["world"].new_picture, "I see it.")):
        scene = new(rng, test=True, **({"begin": 0} if thought is None else {}))
        path = tmp_path / ("a.mp4" if scene.is_video else "a.jpg")
        write = evaluate.write_video if scene.is_video else evaluate.write_picture
        write(path, scene, *evaluate.sizes(rng, scene.aspect), 20)
        _, question, answer = questions.ask(rng, scene)
        tape = data.Tape(speaker)
        tape.text("<|im_start|>user\n")
        tape.look(scene)
        tape.ask(scene.actors, question, answer, thought)
        prompt = demo.prepare([evaluate.message(path, question)], enable_thinking=thought is not None)
        count = len(prompt.token_ids)
        assert prompt.token_ids == tape.ids[:count] and tape.learnt.index(True) == count
        assert np.array_equal(prompt.positions, np.concatenate(tape.positions, 1)[:, :count])


def test_training_never_says_that_what_it_holds_out_cannot_be(demo, world):
    """Of an answer's words, those that would tell a held-out combination are left out of the loss, and no others."""
    data, world, questions, rng = world["data"], world["world"], world["questions"], np.random.default_rng(7)
    speaker = data.Speaker(data.Tokenizer.from_str(demo.network.source.metadata["tokenizer.huggingface.json"]))
    ids, count = {word: i for i, (_, word) in speaker.words.items()}, 0
    for _ in range(20):
        scene = world.new_video(rng)
        said, actor = speaker.encode(questions.describe(rng, scene, False)[1]), None
        for token, barred in zip(said, speaker.barred(said, scene.actors), strict=True):
            kind, word = speaker.words.get(token, ("", ""))
            actor = next((a for a in scene.actors if a.color == word), actor)
            places = {"color": 0, "shape": 1, "way": 2}
            if kind in places:
                for other in [w for k, w in speaker.words.values() if k == kind and w != word]:
                    told = [actor.color, actor.shape, actor.motion]
                    told[places[kind]] = other
                    assert (ids[other] in barred) == world.held_out(*told)
                    count += ids[other] in barred
    assert count > 10


def test_it_has_the_control_tokens_of_the_released_model(demo, world):
    added = set(demo.tokenizer.added)
    assert {*world["data"].SPECIAL, *world["data"].KEPT} <= added


def test_it_stays_small():
    assert SHIPPED["demo"].stat().st_size <= 8 << 20 and CLIP.stat().st_size < 300_000


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match="demo"):
        ivlite.load("demo")
