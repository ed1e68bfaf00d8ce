"""The long films of the demo model's world, the questions about them, and the conversations that training is made of."""

import importlib
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite import media
from ivlite.agent.film import Film
from ivlite.agent.search import TIMES, spans_of
from ivlite.agent.tools import signatures
from ivlite.engine.grammar import Rules, Vocabulary
from ivlite.gguf import SHIPPED
from ivlite.media import subtitles
from ivlite.prompt import plain_tools

EXAMPLES = Path(__file__).parents[1] / "examples" / "demo_model"
MODULES = (
    "world",
    "films",
    "film_questions",
    "conversations",
    "play",
    "expert",
    "oracle",
    "asides",
    "traces",
    "data",
    "vocabulary",
)
ROWS = ("needle", "order", "count", "detail", "absent", "said")
pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")


@pytest.fixture(scope="module")
def demo():
    return ivlite.load("demo", context=8192)


@pytest.fixture(scope="module")
def m():
    """The modules of examples/demo_model, by name."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(EXAMPLES))
    yield type("Modules", (), dict(zip(MODULES, map(importlib.import_module, MODULES), strict=True)))
    patch.undo()


@pytest.fixture(scope="module")
def speaker(m, demo):
    return m.data.Speaker(m.data.Tokenizer.from_str(demo.network.source.metadata["tokenizer.huggingface.json"]))


def film_of(m, seed, seconds=None, test=True):
    return m.films.new_film(np.random.default_rng(seed), seconds, test=test)


# ------------------------------------------------------------------------------------------------ films and questions


def test_films_follow_from_their_seed():
    """In every process: sets and dicts of texts have no fixed order."""
    code = (
        "import hashlib, numpy as np, films, film_questions as fq\n"
        "rng = np.random.default_rng(3); film = films.new_film(rng)\n"
        "said = [fq.ask(rng, film, row).text for row in fq.ROWS * 5]\n"
        "drawn = film.draw(np.arange(0, film.seconds, 9.7), 32, 32)\n"
        "print(hashlib.sha256(repr((film.actors, film.cues, film.cuts, said)).encode() + drawn.tobytes()).hexdigest())"
    )

    def digest(seed):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{EXAMPLES}:{':'.join(sys.path)}"}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert digest("1") == digest("2") != ""


def test_events_and_lines_are_apart(m):
    for seed in range(20):
        film = film_of(m, seed)
        assert 300 <= film.seconds + 1 <= 3601
        gaps = [b.shown[0] - a.shown[1] for a, b in zip(film.actors, film.actors[1:], strict=False)]
        assert min(gaps) >= m.films.GAP - 1e-6 and film.actors[-1].shown[1] < film.seconds
        assert all(b.start >= a.end for a, b in zip(film.cues, film.cues[1:], strict=False))
        assert all(not (a.shown[0] - 1 < cut < a.shown[1] + 1) for a in film.actors for cut in film.cuts[1:])
        assert any(2 <= a.shown[1] - a.shown[0] <= 2.5 for a in film.once)


def test_what_is_said_tells_nothing(m):
    """The speaker is wrong as often as right, and never names how something moves or what sign it has."""
    true = []
    for seed in range(60):
        film = film_of(m, seed)
        for cue in film.cues:
            words = set(re.findall(r"\w+", cue.text.lower()))
            assert not words & {"left", "right", "up", "down", "still", "sign"}
            named = [n for n in {f"{c} {s}" for c in m.world.COLORS for s in m.world.SHAPES} if n in cue.text]
            assert named == [cue.name] * bool(cue.name)
            if cue.name:
                (actor,) = film.shown(cue.start, cue.end)
                true.append(cue.name == actor.name)
    assert 0.35 < np.mean(true) < 0.65


@pytest.fixture(scope="module")
def file(m, tmp_path_factory):
    """(film, the path of its file)."""
    film, path = film_of(m, 5, 300.0), tmp_path_factory.mktemp("films") / "film.mp4"
    m.films.write_film(path, film)
    return film, path


def test_the_file_shows_the_film(m, file):
    film, path = file
    found = media.probe(str(path), fps=1)
    found.settle()
    assert found.times.duration == pytest.approx(film.seconds, abs=0.01)
    chosen = np.array(sorted({int(np.mean(a.shown) * film.rate) for a in film.actors} | {0, film.total - 1}))
    height, width = m.films.size(film.aspect)
    pictures = list(found.open(chosen, (height, width), patch_size=16, temporal=2).pictures())
    for index, picture in zip(chosen, pictures, strict=False):
        drawn = film.draw(np.array([index / film.rate]), height, width)[0]
        assert np.abs(np.asarray(picture, float) - drawn).mean() < 6
    (lines,) = subtitles.of_video(str(path)).tracks
    assert [(c.start, c.end, c.text) for c in lines.cues] == [(c.start, c.end, c.text) for c in film.cues]


def test_wordings_of_the_evaluation_are_never_trained_on(m):
    def asked(test):
        rng = np.random.default_rng(1)
        return {m.film_questions.worded(rng, kind, test, n="N", a="A", b="B", o="O", w="W")
                for kind in m.film_questions.WORDINGS for _ in range(1500)}  # fmt: skip

    trained, tested = asked(False), asked(True)
    assert not trained & tested and len(trained) > 6000
    assert not [text for text in trained | tested if set(text) & set("[]|{}")]
    patterns = m.film_questions.WORDINGS.values()
    assert not [pattern for seen, _ in patterns for pattern in seen if pattern.count("[") != pattern.count("]")]


def test_no_answer_teaches_that_what_is_held_out_cannot_be(m, demo):
    """Of all that is asked about frames in training, none is answered no of what one of them would be if it were held out."""
    denied = 0
    for seed in range(20):
        rng, film = np.random.default_rng(seed), film_of(m, seed, test=False)
        known = m.play.Known(film, demo.config)
        views = m.asides.seen(rng, known)
        visible = [actor for view in views for actor in m.asides.seen_moving(view, 1)]
        for text in itertools.islice(m.asides.asked(rng, film, views, known.duration), 30):
            if not (name := re.search(r': "(\w+ \w+)"', text)) or m.play.aside(views, text) not in ("No", "none"):
                continue
            color, shape = name[1].split(" ")
            alike = [a for a in visible if a.color == color or a.shape == shape]
            assert not [a for a in alike if m.world.held_out(color, shape, a.motion)], (name[1], alike)
            denied += bool(alike)
    assert denied > 20


# ------------------------------------------------------------------------------------------------ conversations


@pytest.fixture(scope="module")
def games(m, demo):
    """(film, Known, question, turns, answer, messages) of two questions of each kind."""
    out = []
    for seed in range(2):
        film = film_of(m, seed)
        known = m.play.Known(film, demo.config)
        for row in ROWS:
            rng = np.random.default_rng([seed, ROWS.index(row)])
            question = m.film_questions.ask(rng, film, row, test=True)
            turns, answers, messages = m.traces.played(rng, known, [question], demo.tokenizer)
            out.append((film, known, question, turns, answers[-1], messages))
    return out


def test_the_expert_is_right_by_what_its_tools_return(m, games):
    for _, _, question, _, answer, _ in games:
        assert m.film_questions.right(question, answer.text), (question, answer.text)
        assert all(claim.confirmed is not False for claim in answer.claims)
        assert m.film_questions.in_time(question, [(e.start, e.end) for e in answer.cited()]) is not False


def test_evidence_is_of_frames_that_were_shown(games):
    for film, known, _, _, answer, _ in games:
        times = set(np.round(known.times, 3))
        for e in answer.evidence:
            assert 0 <= e.start <= e.end <= film.seconds
            assert set(e.frames) <= times and (not e.frames or (e.start, e.end) == (e.frames[0], e.frames[-1]))


def test_what_a_box_showed_is_verified_by_that_box(m, games):
    """In whole frames a sign is too small, so a claim about it is only true of the box."""
    _, known, question, _, answer, _ = next(g for g in games if g[2].row == "detail")
    claim = next(c for c in answer.claims if c.text == question.truth)
    assert claim.confirmed
    views = [m.play.view(known, known.part(e.start, e.end + 1, 2)) for e in answer.evidence if e.id in claim.evidence]
    assert not m.play.holds(views, claim.text)


def test_calls_follow_the_grammar_of_their_step(m, demo, games):
    vocabulary = Vocabulary(demo.tokenizer, demo.config.text.vocab_size, demo.config.tokens.eos)
    tools = plain_tools(signatures(m.traces.tools().values()))
    for _, _, _, turns, _, _ in games:
        for turn in turns:
            matcher = vocabulary.following(Rules.of(tools, tool_choice=turn.choice, parallel_tool_calls=False))
            ids = demo.tokenizer.encode(turn.said, ("<tool_call>", "</tool_call>"))
            assert all(matcher.consume_token(i) for i in ids) and matcher.is_accepting(), turn.said


def test_training_lays_out_what_the_product_lays_out(m, demo, speaker, file):
    """Ids and positions of whole conversations about a file, against those of the same film in memory."""
    film, path = file
    real = Film("v1", str(path), demo.config)
    for row in ("detail", "said"):
        question = m.film_questions.ask(np.random.default_rng(1), film, row)
        turns, _, messages = m.traces.played(
            np.random.default_rng(2), m.play.Known(film, demo.config), [question], demo.tokenizer
        )
        for message in messages:
            if isinstance(message["content"], list):
                message["content"] = [p if p["type"] == "text" else real.resolved(p) for p in message["content"]]
        prompt = demo.prepare(messages[:-1], tools=signatures(m.traces.tools().values()))
        roll, count = m.oracle.rolled(speaker, turns), len(prompt.token_ids)
        assert prompt.token_ids == roll.ids[:count] and roll.learnt.index(True, count) == count
        assert np.array_equal(prompt.positions, np.concatenate(roll.positions, 1)[:, :count])


def test_a_question_that_follows_is_answered_from_what_is_known(m, demo):
    film = film_of(m, 4)
    known, rng = m.play.Known(film, demo.config), np.random.default_rng(0)
    first = m.film_questions.ask(rng, film, "detail")
    following = m.film_questions.about(rng, "needle", "when", first.events[0], False)
    turns, answers, _ = m.traces.played(rng, known, [first, following], demo.tokenizer)
    assert all(map(m.film_questions.right, (first, following), [a.text for a in answers]))
    assert [t.said.split('"')[3] for t in turns if t.question is following] == ["finish"]
    assert answers[1].usage["frames"] <= 16  # those of its verification


# ------------------------------------------------------------------------------------------------ sequences


def test_questions_apart_have_answers_of_the_right_form(m, demo, speaker):
    rng, kinds = np.random.default_rng(2), set()
    for _ in range(12):
        film = m.films.new_film(rng)
        known = m.play.Known(film, demo.config)
        views = m.asides.seen(rng, known)
        for _, text in zip(range(12), m.asides.asked(rng, film, views, known.duration), strict=False):
            kind, said = m.play.kind_of(text), m.play.aside(views, text)
            kinds.add((kind, said in ("No", "none")))
            if kind in ("shown", "verify"):
                assert said in ("Yes", "No")
                continue
            assert re.fullmatch(TIMES, said)
            marks = [float(mark) for view in views for mark in view.marks]
            assert all({*span} <= {*marks} for span in spans_of(said, min(marks), max(marks)))
    assert len(kinds) == 8


def test_batches_hold_whole_conversations(m, demo, speaker):
    rng = np.random.default_rng(5)
    for make, length in (
        (m.traces.batch, m.traces.LENGTH),
        (m.asides.batch, m.asides.LENGTH),
    ):
        b = make(rng, speaker, demo.config, 2)
        assert (
            b["ids"].shape == (2, length)
            and b["kinds"]
            and b["positions"][0][b["segment"] > 0].min() >= len(b.get("prefix", ()))
        )
        assert (
            len(b["at"])
            == sum(len(f) // 2 * f.shape[1] * f.shape[2] // 1024 for f in b["frames"])
            == (b["ids"] == speaker.video_pad).sum()
        )
        end = speaker.encode("<|im_end|>")[0]
        for row, number, _ in b["kinds"]:
            own = b["targets"][row][b["segment"][row] == number]
            assert own[own >= 0][-1] == end and own[-1] == m.data.IGNORE


def test_more_words_leave_the_others_as_they_are(m, demo):
    before = m.data.Tokenizer.from_str(demo.network.source.metadata["tokenizer.huggingface.json"])
    after = m.traces.wider(before, demo.config, count=6)
    known, size = before.get_vocab(), before.get_vocab_size()
    found = after.get_vocab()
    assert {name: found[name] for name in known} == known and sorted(found.values()) == [*range(after.get_vocab_size())]
    for number, new in enumerate((m.world.new_video, m.world.new_picture, m.world.new_zoomable) * 5):  # whole sequences
        was, now = (m.data.sequence(np.random.default_rng(number), m.data.Speaker(t), new(np.random.default_rng(number)), 512)
                    for t in (before, after))  # fmt: skip
        assert was["ids"] == now["ids"]
    call = m.oracle.call_text("ground", json.dumps({"query": "red circle"}))
    assert len(after.encode(call).ids) < 24 < len(before.encode(call).ids) and max(after.encode(call).ids) >= size
    again = ivlite.gguf.tokenizer.Tokenizer(after.to_str())
    assert again.encode(call, ("<tool_call>", "</tool_call>")) == after.encode(call).ids
