"""The end of requests and of engines: whoever leaves, whenever, frees a place; and nothing waits for what is gone."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from test_batch import SETTINGS, Broken, alone, question, what
from test_engine_answers import TIMEOUT, about

import ivlite
from ivlite.errors import MediaError, OutOfMemoryError, UsageError
from ivlite.gguf import SHIPPED

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
LONG = {"max_new_tokens": 2000, **SETTINGS[6]}


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo", threads=2, context=2048) as model:
        yield model


class Held:
    """A progress function that holds a stage until it is let go; then the Stop of the answer ends it."""

    def __init__(self, stage):
        self.stage, self.there, self.go = stage, threading.Event(), threading.Event()

    def __call__(self, stage, done, total):
        if stage == self.stage:
            self.there.set()
            assert self.go.wait(TIMEOUT)


@pytest.mark.parametrize("stage", ["decode", "vision", "prefill", "generate"])
def test_a_client_who_leaves_frees_the_place(demo, stage):
    held = Held(stage)
    demo.caches.clear()
    with ivlite.Engine(demo, most=1) as engine:
        stream = engine.stream(about(1), temperature=0, progress=held)
        assert held.there.wait(TIMEOUT)
        late = engine.stream(question(0), temperature=0, max_new_tokens=3)
        closing = threading.Thread(target=stream.close)
        closing.start()
        while not stream.stop:
            pass
        held.go.set()
        closing.join(TIMEOUT)
        assert not closing.is_alive() and stream.over
        for _ in late:
            pass
        assert stream.reply.finish_reason == "closed" and late.reply.token_ids
        for _ in (again := engine.stream(about(1), temperature=0)):
            pass
        assert again.reply.finish_reason == "stop"


def test_leaving_while_another_has_the_turn(demo):
    """One who waits for its turn to compute sees its Stop without it."""
    held = Held("prefill")
    demo.caches.clear()
    with ivlite.Engine(demo) as engine:
        first = engine.stream(question(0), temperature=0, progress=held)  # keeps its turn as long as it is held
        assert held.there.wait(TIMEOUT)
        stop = ivlite.Stop()
        waits = engine.stream(question(1), temperature=0, stop=stop)
        while engine.waiting:
            pass
        stop.set("enough")
        assert list(waits) == [] and waits.reply.finish_reason == "enough"
        held.go.set()
        for _ in first:
            pass
        assert first.reply.finish_reason in ("stop", "length")


def test_errors_reach_their_own_consumer(demo, monkeypatch):
    expected = alone(demo, 3)
    demo.caches.clear()
    with ivlite.Engine(demo) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(demo.grammars, "sampler", lambda *_: Broken(ivlite.SamplingParams()))
            broken = engine.stream(question(0), max_new_tokens=24)
        prompted = demo.stream(about(2), temperature=0)
        prompted.prompt.media[0].path = os.devnull  # the file has changed since
        lost = engine.add(prompted)
        fine = engine.stream(question(3), max_new_tokens=24, **SETTINGS[3])
        with pytest.raises(ZeroDivisionError):
            list(broken)
        with pytest.raises(MediaError):
            list(lost)
        with pytest.raises(StopIteration):  # once
            next(lost)
        list(fine)
        assert what(fine.reply) == expected and engine.running == 0
        with pytest.raises(UsageError):
            engine.stream([{"role": "nobody", "content": "?"}])
        with pytest.raises(TypeError):
            engine.stream(question(0), temprature=1)


def test_a_fault_of_the_engine_reaches_everyone(demo, monkeypatch):
    with ivlite.Engine(demo) as engine:
        start, admit = engine._start, engine._admit

        def broken():
            ended = admit()
            return 1 / 0 if len(engine._running) > 1 else ended

        # neither is answered before both are there
        monkeypatch.setattr(engine, "_start", lambda run, *args: start(run, *args) if run == engine._work else None)
        monkeypatch.setattr(engine, "_admit", broken)
        for stream in [engine.stream(question(n), **LONG) for n in range(2)]:
            with pytest.raises(ZeroDivisionError):
                list(stream)
        monkeypatch.undo()
        with pytest.raises(UsageError, match="closed"):
            engine.stream(question(1))


@pytest.mark.parametrize("queued", [False, True])
def test_closing_the_engine_ends_all(demo, queued):
    engine = ivlite.Engine(demo, most=1 if queued else 4)
    streams = [engine.stream(question(n), client=str(n), **LONG) for n in range(3)]
    next(streams[0])
    threads = tuple(engine._threads)
    engine.close()
    assert not any(thread.is_alive() for thread in threads) and not engine._threads
    for stream in streams:
        list(stream)
        assert stream.reply.finish_reason == "closed" and stream.over
    assert engine.running == engine.waiting == 0
    for call in (lambda: engine.stream(question(0)), lambda: list(engine.together([demo.stream(question(0))]))):
        with pytest.raises(UsageError, match="closed"):
            call()
    engine.close()
    assert demo.chat(question(0), temperature=0, max_new_tokens=2).token_ids


def test_closing_the_model_ends_the_engine():
    model = ivlite.load("demo", threads=1, context=2048)
    engine = ivlite.Engine(model, most=2)
    streams = [engine.stream(question(n), **LONG) for n in range(4)]
    session = model.session()
    streams.append(engine.add(session.ask("And now?", **LONG)))
    next(streams[0])
    model.close()
    for stream in streams:
        list(stream)
        assert stream.reply.finish_reason == "closed"
    assert not engine._threads
    with pytest.raises(UsageError, match="closed"):
        engine.stream(question(0))


@pytest.mark.parametrize("who", ["stream", "engine", "session"])
def test_an_answer_may_close_what_it_runs_in(demo, who):
    with ivlite.Engine(demo) as engine, demo.session() as session:
        things = {"engine": engine, "session": session}

        def progress(stage, done, total):
            if stage == "generate" and done == 3:
                things[who].close()

        stream = things["stream"] = demo_stream = session.ask("Say a number.", progress=progress, **LONG)
        engine.add(demo_stream)
        list(stream)
        assert stream.reply.finish_reason == "closed" and len(stream.reply.token_ids) <= 3


def test_a_system_that_allows_no_threads(demo, monkeypatch):
    def refused(thread):
        raise RuntimeError("can't start new thread")

    with ivlite.Engine(demo) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            with pytest.raises(OutOfMemoryError, match="thread"):
                engine.stream(question(0))
        first = engine.stream(question(0), **LONG)
        next(first)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            second = engine.stream(question(1), **LONG)
            with pytest.raises(OutOfMemoryError, match="thread"):
                list(second)
        assert first.reply.finish_reason in ("", "stop", "length")  # it goes on, or has come to its own end meanwhile
        first.close()
        list(engine.stream(question(0), temperature=0))


def run(code):
    code = "import os, sys, threading, ivlite\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)


BEGIN = """
model = ivlite.load("demo", threads=2, context=2048)
engine = ivlite.Engine(model)
ask = lambda n: engine.stream([{"role": "user", "content": f"{n}: what do you see?"}], max_new_tokens=2000, temperature=1.0,
                              response_format={"type": "json_object"})
streams = [ask(n) for n in range(3)]
next(streams[0])
"""


@pytest.mark.parametrize(
    "end", ["sys.exit(3)", "threading.Thread(target=list, args=(streams[1],), daemon=True).start(); sys.exit(3)"]
)
def test_the_interpreter_exits_while_answers_run(end):
    done = run(BEGIN + end)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_says_so_and_has_its_own():
    done = run(
        BEGIN
        + """
child = os.fork()
if child == 0:
    for call in (lambda: next(streams[0]), lambda: ask(9)):
        try:
            call()
        except ivlite.IvliteError as error:
            assert "process" in str(error)
        else:
            os._exit(1)
    engine.close()
    with ivlite.load("demo", threads=2, context=2048) as own, ivlite.Engine(own) as other:
        for _ in (stream := other.stream([{"role": "user", "content": "Hello?"}], max_new_tokens=3)):
            pass
        os._exit(0 if stream.reply.token_ids else 2)
assert os.waitpid(child, 0)[1] == 0
engine.close()
print(len(streams[0].reply.token_ids) > 0)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_an_interrupt_ends_a_consumer():
    """Ctrl-C while the main thread waits for deltas of an engine."""
    done = run(
        BEGIN
        + f"""
threading.Timer(0.3, lambda: os.kill(os.getpid(), {int(signal.SIGINT)})).start()
try:
    for stream in streams:
        for _ in stream:
            pass
    while True:
        for _ in ask(5):
            pass
except KeyboardInterrupt:
    engine.close()
    print("interrupted")
"""
    )
    assert done.stdout == "interrupted\n" and done.returncode == 0
