"""Stops: whoever sets one, whenever, ends the work in order; and what the work held is gone without the garbage collector."""

import gc
import os
import signal
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite import _C
from ivlite import stop as stopping
from ivlite.engine import runner, vision
from ivlite.errors import MediaError, Stopped, UsageError
from ivlite.gguf import SHIPPED
from ivlite.quantize import quantize, verify
from ivlite.stop import Stop

CLIP = Path(__file__).parents[1] / "examples" / "clip.mp4"
TEXT = [{"role": "user", "content": "Please introduce yourself."}]
VIDEO = [
    {"role": "user", "content": [{"type": "video", "video": str(CLIP)}, {"type": "text", "text": "What happens?"}]}
]
needs_demo = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo", context=2048) as model:
        yield model


@pytest.fixture
def uncollected():
    """What a test drops must go by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def after(stop, count, stage):
    """A progress function that sets the stop when a stage is called for the count-th time."""
    seen = []

    def progress(name, done, total):
        seen.append(name)
        if seen.count(stage) == count and name == stage:
            stop.set("enough")

    progress.seen = seen
    return progress


# ------------------------------------------------------------------------------------------------ Stop itself


def test_the_first_reason_counts():
    stop = Stop()
    assert stop.reason is None and not stop and not stop.is_set()
    stop.check()
    stop.set("hung up")
    stop.set("again")
    assert stop.reason == "hung up" and stop and stop.is_set()
    with pytest.raises(Stopped, match="hung up") as caught:
        stop.check()
    assert caught.value.reason == "hung up"


def test_a_deadline_is_a_reason_and_the_earliest_counts(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = Stop()
    child = Stop(stop)
    stop.after(np.float32(2))
    stop.after(50)
    assert not stop and not child
    now[0] = 102.0
    assert (stop.reason, child.reason, Stop(stop).reason) == ("deadline",) * 3


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "soon", None, True])
def test_what_is_no_time(seconds):
    with pytest.raises(UsageError, match="seconds"):
        Stop().after(seconds)


@pytest.mark.parametrize("reason", [None, "", 5])
def test_what_is_no_reason(reason):
    with pytest.raises(UsageError, match="reason"):
        Stop().set(reason)


def test_a_stop_stops_its_descendants_and_not_its_parents():
    first, second = Stop(), Stop()
    child = Stop(first, second)
    grandchild, sibling = Stop(child), Stop(second)
    child.set("one")
    assert grandchild.reason == "one" and not first and not sibling
    second.set("two")
    assert (sibling.reason, child.reason, Stop(second).reason) == ("two", "one", "two")


def test_a_parent_forgets_children_that_are_gone(uncollected):
    parent = Stop()
    for _ in range(100):
        Stop(parent)
    assert not parent._children


def test_children_made_while_a_stop_is_set_are_stopped():
    """Four threads make children while another sets: none is missed, whichever comes first."""
    for _ in range(50):
        parent, made, begin = Stop(), [], threading.Barrier(5)

        def make(parent=parent, made=made, begin=begin):
            begin.wait()
            made.extend([Stop(parent) for _ in range(20)])

        threads = [threading.Thread(target=make) for _ in range(4)]
        for t in threads:
            t.start()
        begin.wait()
        parent.set()
        for t in threads:
            t.join()
        assert len(made) == 80 and all(child.is_set() for child in made)


def test_work_finds_the_stop_of_its_thread():
    outer, inner = Stop(), Stop()
    outer.set("outer")
    stopping.checkpoint()
    with stopping.using(inner):
        assert stopping.current() is inner and stopping.within().reason is None
        with stopping.using(outer), pytest.raises(Stopped, match="outer"):
            stopping.checkpoint()
        stopping.checkpoint()
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(stopping.current()))
        carried = threading.Thread(target=stopping.bound(lambda: elsewhere.append(stopping.current())))
        for t in (thread, carried):
            t.start()
            t.join()
        assert elsewhere == [None, inner]
    assert stopping.current() is None


# ------------------------------------------------------------------------------------------------ answers


@needs_demo
@pytest.mark.parametrize("stage", ["decode", "vision", "prefill", "generate"])
def test_a_stopped_answer_keeps_what_there_is(demo, stage):
    stop = Stop()
    progress = after(stop, 1, stage)
    stream = demo.stream(VIDEO, temperature=0, stop=stop, progress=progress)
    text = "".join(delta.text for delta in stream)
    reply = stream.reply
    assert reply.finish_reason == "enough" and reply.text == text and next(stream, None) is None
    later = {"decode": ("prefill", "generate"), "vision": ("generate",), "prefill": ("generate",), "generate": ()}
    assert not set(progress.seen) & set(later[stage])
    assert len(reply.token_ids) == (1 if stage == "generate" else 0)
    assert reply.timings["total"] >= reply.timings["prefill"] >= 0


@needs_demo
def test_an_answer_is_its_own_beginning(demo):
    whole = demo.chat(VIDEO, temperature=0)
    for count in (1, 3, 7):
        stop = Stop()
        reply = demo.chat(VIDEO, temperature=0, stop=["nowhere", stop], progress=after(stop, count, "generate"))
        assert reply.finish_reason == "enough" and reply.token_ids == whole.token_ids[:count]
        assert whole.text.startswith(reply.text) and reply.text.strip()


@needs_demo
@pytest.mark.parametrize("chunk", [8, 2048])
def test_a_long_prompt_stops_between_its_chunks(demo, chunk, monkeypatch):
    monkeypatch.setattr(runner, "CHUNK", chunk)
    stop = Stop()
    progress = after(stop, 1, "prefill")
    assert (
        demo.chat([{"role": "user", "content": "a b " * 100}], stop=stop, progress=progress).finish_reason == "enough"
    )
    assert progress.seen == ["prefill"]


@needs_demo
def test_stops_that_are_set_before(demo):
    stop = Stop()
    stop.set("late")
    reply = demo.chat(VIDEO, stop=stop)
    assert (reply.finish_reason, reply.text, reply.usage["new_tokens"]) == ("late", "", 0)
    prompt = demo.prepare(VIDEO)
    for call in (demo.logits, demo.encode_vision, lambda p, stop: next(demo.each_logits(p, stop=stop))):
        with pytest.raises(Stopped, match="late"):
            call(prompt, stop=stop)
        with stopping.using(stop), pytest.raises(Stopped, match="late"):  # that of the thread counts as well
            call(prompt, stop=None)
    for load in ("repack", "mmap"):
        with pytest.raises(Stopped, match="late"), ivlite.load("demo", load=load, stop=stop) as model:
            model.logits(prompt, stop=stop)


@needs_demo
def test_loading_stops(demo):
    stop = Stop()
    progress = after(stop, 3, "load")
    with pytest.raises(Stopped, match="enough"):
        ivlite.load("demo", stop=stop, progress=progress)
    assert len(progress.seen) == 3


@needs_demo
def test_what_is_no_stop(demo):
    for value in (5, b"x", [""], ["a", None], object()):
        with pytest.raises(UsageError, match="stop"):
            demo.chat(TEXT, stop=value)
    for call in (lambda s: ivlite.load("demo", stop=s), lambda s: demo.prepare(TEXT, stop=s)):
        with pytest.raises(UsageError, match="stop"):
            call("soon")


@needs_demo
def test_no_limit_is_the_context(demo):
    reply = demo.chat(TEXT, max_new_tokens=None, temperature=0)
    assert reply.finish_reason == "stop" and reply.token_ids == demo.chat(TEXT, temperature=0).token_ids
    assert len(demo.chat(TEXT, max_new_tokens=np.int8(2), temperature=0).token_ids) == 2


# ------------------------------------------------------------------------------------------------ conversions


@pytest.mark.parametrize("stage", ["golden", "convert"])
def test_a_conversion_stops_and_goes_on(wide, tmp_path, stage):
    stop, out = Stop(), tmp_path / "a.gguf"
    settings = {"type": "q8_0", "golden": True}
    with pytest.raises(Stopped, match="enough"):
        quantize(wide, out, **settings, stop=stop, progress=after(stop, 5, stage))
    assert not out.exists() and [p.name for p in tmp_path.iterdir()] == [".a.gguf.partial"] * (stage == "convert")
    done = quantize(wide, out, **settings, resume=True)
    assert (done.resumed > 0) == (stage == "convert")
    quantize(wide, tmp_path / "b.gguf", **settings)
    assert out.read_bytes() == (tmp_path / "b.gguf").read_bytes()
    for stage in ("read", "golden"):
        stop = Stop()
        with pytest.raises(Stopped, match="enough"):
            verify(out, stop=stop, progress=after(stop, 2, stage))


# ------------------------------------------------------------------------------------------------ other threads


def elsewhere(function, until):
    """Runs a function in another thread and returns that once `until()` holds: it may be waiting by then."""
    thread = threading.Thread(target=function)
    thread.start()
    while not until():
        time.sleep(0.001)
    return thread


@needs_demo
@pytest.mark.parametrize("stage", ["decode", "vision", "prefill", "generate"])
def test_a_stream_is_closed_by_another_thread(demo, stage):
    begun = []

    def progress(name, done, total):
        if name == stage and not begun:
            begun.append(elsewhere(stream.close, stream.stop.is_set))

    stream = demo.stream(VIDEO, temperature=0, progress=progress)
    list(stream)
    begun[0].join()
    assert stream.reply.finish_reason == "closed"


@needs_demo
@pytest.mark.parametrize("iterated", [0, 1, 3])
def test_a_stream_is_closed_between_its_deltas(demo, iterated, uncollected):
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    stream = demo.stream(VIDEO, temperature=0)
    deltas = [next(stream) for _ in range(iterated)]
    thread = elsewhere(stream.close, stream.stop.is_set)
    thread.join()
    assert list(stream) == [] and stream.reply.finish_reason == "closed"
    assert stream.reply.text.startswith("".join(d.text for d in deltas)) and len(stream.reply.token_ids) >= iterated
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    stream.close()


@needs_demo
def test_a_stream_is_closed_by_its_own_progress_and_by_a_signal(demo):
    streams = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: streams[-1].close())
    for act in (lambda: streams[-1].close(), lambda: os.kill(os.getpid(), signal.SIGUSR1)):
        progress = lambda stage, *_, act=act: stage == "prefill" and act()  # noqa: E731
        streams.append(demo.stream(VIDEO, temperature=0, progress=progress))
        list(streams[-1])
        assert streams[-1].reply.finish_reason == "closed"
    signal.signal(signal.SIGUSR1, previous)


@needs_demo
@pytest.mark.parametrize("load", ["repack", "mmap"])
def test_a_closed_model_is_gone(load, uncollected):
    files = len(os.listdir("/proc/self/fd"))
    model = ivlite.load("demo", load=load)
    network = weakref.ref(model.network)
    begun, streams = [], []

    def progress(name, done, total):
        if name == "generate" and not begun:
            begun.append(elsewhere(model.close, lambda: model._closing.is_set()))

    streams = [model.stream(VIDEO, temperature=0) for _ in range(2)]  # one begun, one not
    next(streams[0])
    reply = model.chat(VIDEO, temperature=0, progress=progress)
    begun[0].join()
    assert [reply.finish_reason, *(s.reply.finish_reason for s in streams)] == ["closed"] * 3
    assert network() is None and len(os.listdir("/proc/self/fd")) == files
    for call in (model.chat, model.prepare, model.stream, lambda m: model.threads, lambda m: model.runner()):
        with pytest.raises(UsageError, match="closed"):
            call(TEXT)
    model.close()


@needs_demo
def test_a_model_is_a_context_manager(uncollected):
    with ivlite.load("demo") as model:
        network = weakref.ref(model.network)
    assert network() is None
    with pytest.raises(UsageError, match="closed"):
        model.chat(TEXT)


@needs_demo
def test_nothing_holds_a_model_that_is_dropped(uncollected):
    """Not its streams, finished, half way, stopped or failed; not its other calls; not an error that was handled."""
    model = ivlite.load("demo")
    gone = [weakref.ref(model), weakref.ref(model.network)]
    stop = Stop()
    model.chat(VIDEO, max_new_tokens=3)
    model.chat(VIDEO, stop=stop, progress=after(stop, 1, "vision"))
    model.encode_vision(model.prepare(VIDEO))
    next(model.each_logits(model.prepare(VIDEO)))
    half = model.stream(VIDEO)
    next(half)
    prompt = model.prepare(VIDEO)
    prompt.media[0].path = os.devnull  # the file has changed since
    with pytest.raises(MediaError):
        model.encode_vision(prompt)
    with pytest.raises(ZeroDivisionError):
        model.chat(VIDEO, progress=lambda *_: 1 / 0)
    del model, half, prompt
    assert [ref() for ref in gone] == [None, None]


# ------------------------------------------------------------------------------------------------ frames made ahead


def test_frames_made_ahead_leave_no_thread_and_no_open_generator():
    closed, threads = [], threading.active_count()

    def items(fail=None):
        try:
            for i in range(5):
                if i == fail:
                    raise ValueError("broken")
                stopping.checkpoint()
                yield i
        finally:
            closed.append(True)

    assert list(vision.ahead(items())) == [0, 1, 2, 3, 4]
    stream = vision.ahead(items())
    assert next(stream) == 0
    stream.close()
    with pytest.raises(ValueError, match="broken"):
        list(vision.ahead(items(2)))
    stop = Stop()
    with stopping.using(stop):
        stream = vision.ahead(items())
        next(stream)
        stop.set("enough")
        with pytest.raises(Stopped, match="enough"):
            list(stream)
    assert len(closed) == 4 and threading.active_count() == threads


def test_an_item_under_way_is_given_up():
    """Closing does not wait for an item that takes as long as nobody says stop."""
    entered = threading.Event()

    def items():
        yield 0
        entered.set()
        while True:
            stopping.checkpoint()
            time.sleep(0.001)

    stream = vision.ahead(items())
    assert next(stream) == 0
    entered.wait()
    stream.close()


def test_an_error_of_another_thread_keeps_nothing_alive(uncollected):
    class Frame:
        pass

    held = []

    def items():
        frame = Frame()
        held.append(weakref.ref(frame))
        yield frame
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        for _ in vision.ahead(items()):
            pass
    del _
    assert held[0]() is None


def test_a_weight_that_is_stopped_half_made():
    """Its memory is given back where it was made, without the interpreter's lock."""
    data = _C.encode("q8_0", np.ones(512 * 64, np.float32))
    stop = Stop()
    with stopping.using(stop):
        stop.set()
        for _ in range(20):
            with pytest.raises(Stopped):
                _C.Weight("q8_0", data, 1, 512, 64)
