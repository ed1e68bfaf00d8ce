"""What a question of a session may be given as, and conversations that go on within an answer."""

from pathlib import Path

import numpy as np
import pytest
from test_session import CLIP, GREEDY, TOOL, ask, said

import ivlite
from ivlite.agent import Agent
from ivlite.errors import UsageError
from ivlite.gguf import SHIPPED
from ivlite.session import said as saying

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
FRAMES = np.full((6, 64, 64, 3), 90, np.uint8)
PICTURE = FRAMES[0]


@pytest.fixture(scope="module")
def model():
    with ivlite.load("demo", context=2048) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session() as session:
        yield session


# ------------------------------------------------------------------------------------------------ sources


class Array:
    """An array of another library."""

    def __array__(self, dtype=None, copy=None):
        return FRAMES

    def __iter__(self):
        return iter(FRAMES)


class Data:
    """A part as an object of a client."""

    def model_dump(self):
        return {"path": CLIP, "nframes": 4}

    def __iter__(self):
        return iter(self.model_dump().items())


MANY = {
    "list": lambda: [CLIP, CLIP], "tuple": lambda: (CLIP, CLIP), "generator": lambda: (clip for clip in [CLIP, CLIP]),
    "iterator": lambda: iter([CLIP, CLIP]), "map": lambda: map(Path, [CLIP, CLIP]), "values": lambda: {1: CLIP, 2: CLIP}.values(),
}  # fmt: skip
ONE = {
    "str": (lambda: CLIP, 16), "Path": (lambda: Path(CLIP), 16), "bytes": (lambda: CLIP.encode(), 16),
    "content": (lambda: Path(CLIP).read_bytes(), 16), "bytearray": (lambda: bytearray(Path(CLIP).read_bytes()), 16),
    "file": (lambda: open(CLIP, "rb"), 16), "array": (lambda: FRAMES, 6), "other array": (Array, 6),
    "part": (lambda: {"type": "video", "video": CLIP, "nframes": 4}, 4), "object": (Data, 4),
    "frames": (lambda: [list(FRAMES)], 6), "iterator of frames": (lambda: [iter(FRAMES)], 6),
}  # fmt: skip


@pytest.mark.parametrize("form", MANY)
def test_videos_in_any_iterable(session, form):
    for call in (session.ask, session.plan):
        made = call("What?", MANY[form]())
        assert len(getattr(made, "videos", None) or made.prompt.media) == 2
        getattr(made, "close", lambda: None)()


@pytest.mark.parametrize("form", ONE)
def test_one_video_alone(session, form):
    make, frames = ONE[form]
    with session.ask("What?", make()) as stream:
        assert [len(chosen) for chosen in stream.prompt.frames] == [frames]


def test_images_in_any_iterable(session):
    for images, count in ((PICTURE, 1), ([PICTURE] * 2, 2), (iter([PICTURE] * 3), 3), ((), 0), (iter(()), 0)):
        with session.ask("What?", images=images) as stream:
            assert len(stream.prompt.media) == count


@pytest.mark.parametrize("wrong", [{CLIP}, frozenset([CLIP]), None, set()])
@pytest.mark.parametrize("name", ["videos", "images"])
def test_what_has_no_order_is_refused(session, name, wrong):
    with pytest.raises(UsageError, match=rf"^{name} is .*; it must be a list of sources, in order$"):
        session.ask("What?", **{name: wrong})
    assert session.messages == [] and ask(session, "Hi")


def test_an_endless_iterable_is_refused(monkeypatch):
    monkeypatch.setattr("ivlite.prompt.messages.MOST", 5)
    with pytest.raises(UsageError, match="videos is"):
        saying.question("What?", iter(int, 1))


def test_an_agent_takes_what_a_session_takes(model):
    for videos, count in ((CLIP, 1), (Path(CLIP), 1), (FRAMES, 1), (iter([CLIP, CLIP]), 2)):
        with Agent(model, videos) as agent:
            assert len(agent.case.films) == count
    with pytest.raises(UsageError, match="videos is"):
        Agent(model, {CLIP})


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("wrong", ["temperature", "fps", "after", "holder", "messages", "self_", "told"])
def test_a_plan_names_the_settings_that_it_does_not_take(session, wrong):
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"^plan\(\) got an unexpected keyword argument '{wrong}'$"):
            session.plan("What?", **{wrong: 0})
        ask(session, "Hi")


@pytest.mark.parametrize("wrong", ["fps", "holder", "messages", "max_wait"])
def test_a_question_names_the_settings_that_it_does_not_take(model, session, wrong):
    for call in (session.ask, session.again, model.chat):
        given = () if call == session.again else ([{"role": "user", "content": "Hi"}],)
        ask(session, "Hi")
        if call == model.chat and wrong == "messages":
            continue  # Python's own words
        with pytest.raises(TypeError, match=rf"stream\(\) got an unexpected keyword argument '{wrong}'$"):
            call(*given, **{wrong: 0})


def test_a_plan_of_a_session_takes_what_a_plan_takes(model, session):
    settings = {"budget": 200, "max_wait": 1e6, "memory": 1 << 40, "max_new_tokens": 7, "tools": [TOOL], "dedupe": True,
                "enable_thinking": True, "add_vision_id": True, "stop": ivlite.Stop()}  # fmt: skip
    messages = [{"role": "user", "content": [{"type": "video", "video": CLIP}, {"type": "text", "text": "What?"}]}]
    mine, its = session.plan("What?", CLIP, **settings), model.plan(messages, **settings)
    assert mine.videos == its.videos and mine.prompt_tokens == its.prompt_tokens and mine.max_new_tokens == 7


# ------------------------------------------------------------------------------------------------ within an answer


@pytest.mark.parametrize("turns", [1, 2])
def test_an_answer_of_before_may_go_on(model, session, tmp_path, turns):
    """The whole conversation ends with the session's own answer, and what follows is part of the same turn."""
    for n in range(turns):
        ask(session, f"Hello {n}", max_new_tokens=5)
    before = session.messages
    more = said(session.stream(before, continue_final_message=True, **GREEDY))
    last = {"role": "assistant", "content": before[-1]["content"] + more}
    assert more and session.messages == [*before[:-1], last] and len(session._turns) == turns
    session.save(tmp_path / "a.ivs")
    with model.session(tmp_path / "a.ivs") as other:
        assert other.messages == session.messages and ask(other, "And?") == ask(session.branch(), "And?")
    assert said(session.again(**GREEDY)) == more and session.messages[-1] == last
    session.undo()
    assert session.messages == before[:-2]


def test_an_answer_that_follows_another_has_no_question(session):
    ask(session, "Hello")
    mark, before = session.mark(), session.messages
    more = said(session.stream(before, **GREEDY))
    assert session.messages == [*before, {"role": "assistant", "content": more}]
    with pytest.raises(UsageError, match="follows another answer"):
        session.again(**GREEDY)
    session.rollback(mark)
    assert session.messages == before and said(session.again(**GREEDY)) == before[-1]["content"]
