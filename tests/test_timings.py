"""Seconds of the stages of an answer: each counts what it says, and they stand still once the answer has ended."""

import time

import numpy as np
import pytest
from session_fakes import written

import ivlite
from ivlite.engine.batch import Engine
from ivlite.engine.grammar import Grammars
from ivlite.gguf import SHIPPED
from ivlite.media import video
from ivlite.plan.planner import Planner
from ivlite.prompt import dedupe

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
TEXT = [{"role": "user", "content": "Which shapes move?"}]
VIDEO = [{"role": "user", "content": [{"type": "video", "video": [np.full((64, 64, 3), 90, np.uint8)] * 6}, "What?"]}]
GREEDY = {"temperature": 0, "max_new_tokens": 6}
SLOW = 0.3  # seconds


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo", context=2048) as model:
        yield model


def slow(monkeypatch, owner, name):
    before = getattr(owner, name)

    def waiting(*args, **more):
        time.sleep(SLOW)
        return before(*args, **more)

    monkeypatch.setattr(owner, name, waiting)


@pytest.mark.parametrize("owner, name, settings", [
    (Planner, "plan", {}),  # measures this machine the first time
    (Grammars, "sampler", {"response_format": {"type": "choice", "choices": ["red", "blue"]}}),  # imports a library the first time
])  # fmt: skip
@pytest.mark.parametrize("messages", [TEXT, VIDEO], ids=["text", "video"])
@pytest.mark.parametrize("in_session", [False, True])
def test_reading_frames_is_neither_planning_nor_grammars(
    demo, monkeypatch, owner, name, settings, messages, in_session
):
    slow(monkeypatch, owner, name)
    with (demo.session() if in_session else demo).stream(messages, **GREEDY, **settings) as stream:
        list(stream)
    timings, took = stream.reply.timings, stream.reply.plan.took["seconds"]
    assert timings["total"] - timings["decode"] >= SLOW and took["scan"] < timings["decode"] + 0.001
    assert (timings["decode"] > 0) == (took["scan"] > 0) == (messages is VIDEO)


@pytest.mark.parametrize("owner, name, settings", [
    (video.VideoProbe, "__init__", {}), (video.VideoProbe, "settle", {}), (dedupe, "remarks", {"dedupe": True}),
])  # fmt: skip
def test_reading_frames_is_opening_files_and_looking_for_repeats(demo, monkeypatch, tmp_path, owner, name, settings):
    path = str(written(tmp_path / "clip.avi"))
    if name == "settle":
        monkeypatch.setattr(video.VideoProbe, "estimated", True)
    slow(monkeypatch, owner, name)
    messages = [{"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "What?"}]}]
    reply = demo.chat(messages, **GREEDY, **settings)
    assert reply.timings["decode"] > SLOW and reply.plan.took["seconds"]["scan"] >= SLOW


def ended(stream, how):
    if how == "read":
        list(stream)
    elif how == "stopped":
        next(stream)
        stream.stop.set("enough")
        list(stream)
    elif how == "closed":
        next(stream)
        stream.close()
    elif how == "never begun":
        stream.close()
    else:
        with pytest.raises(RuntimeError, match="broken"):
            list(stream)
    return stream


@pytest.mark.parametrize("how", ["read", "stopped", "closed", "never begun", "broken"])
@pytest.mark.parametrize("engine", [False, True], ids=["alone", "engine"])
def test_the_times_of_an_answer_stand_still_at_its_end(demo, monkeypatch, how, engine):
    if how == "broken":

        def broken(*_):
            raise RuntimeError("broken")

        monkeypatch.setattr(ivlite.engine.runner.Runner, "prefill", broken)
        monkeypatch.setattr(ivlite.engine.runner.Runner, "_through", broken)
    began = time.perf_counter()
    if engine:
        with Engine(demo) as running:
            stream = ended(running.stream(TEXT, **GREEDY), how)
    else:
        stream = ended(demo.stream(TEXT, **GREEDY), how)
    spent = time.perf_counter() - began
    kept = dict(stream.reply.timings)
    time.sleep(0.05)
    stream.close()
    assert stream.reply.timings == kept and 0 < kept["total"] <= spent


def test_the_times_of_an_answer_grow_until_its_end(demo):
    with demo.stream(TEXT, **GREEDY) as stream:
        next(stream)
        first = stream.reply.timings["total"]
        time.sleep(0.01)
        assert stream.reply.timings["total"] >= first + 0.01
