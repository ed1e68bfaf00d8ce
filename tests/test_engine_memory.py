"""The memory of an engine's caches: a budget that holds, requests that wait for it, and rows that several share."""

import threading
import time

import pytest
from test_batch import SETTINGS, alone, question, what
from test_engine_answers import TIMEOUT, about, run_all

import ivlite
from ivlite.errors import OutOfMemoryError
from ivlite.gguf import SHIPPED
from ivlite.session import pool as pooling

LONG = {"type": "regex", "pattern": "([a-z ]{100}){60}"}  # an answer that does not end by itself
pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")


@pytest.fixture
def demo():
    with ivlite.load("demo", threads=2, context=4096) as model:
        yield model


class Waits:
    """A progress function that stops an answer at its first token until it is let go, without its turn."""

    def __init__(self, stage="generate"):
        self.stage, self.there, self.go = stage, threading.Event(), threading.Event()

    def __call__(self, stage, done, total):
        if stage == self.stage and not self.there.is_set():
            with ivlite.stop.waiting():
                self.there.set()
                assert self.go.wait(TIMEOUT)


def test_what_never_fits_is_refused_with_the_arithmetic(demo):
    row = demo.token_nbytes
    with ivlite.Engine(demo, memory=200 * row) as engine:
        with pytest.raises(OutOfMemoryError, match=r"1,0\d\d tokens .* q8 cache.*max_new_tokens"):
            engine.stream(question(0), max_new_tokens=1000)
        stream = engine.stream(question(0), max_new_tokens=20)
        list(stream)
        assert stream.reply.token_ids and engine.waiting == engine.running == 0


def test_what_does_not_fit_now_waits(demo):
    row = demo.token_nbytes
    tokens = len(demo.prepare(question(0)).token_ids) + 24
    expected = [alone(demo, n) for n in (0, 3)]
    demo.caches.clear()
    with ivlite.Engine(demo, memory=(2 * tokens - 1) * row) as engine:
        waits = Waits()
        first = engine.stream(question(0), max_new_tokens=24, progress=waits, **SETTINGS[0])
        assert waits.there.wait(TIMEOUT)
        second = engine.stream(question(3), max_new_tokens=24, **SETTINGS[3])
        small = engine.stream([{"role": "user", "content": "?"}], max_new_tokens=1, client="other")
        list(small)  # goes before the one that waits for memory
        assert (engine.running, engine.waiting) == (1, 1) and engine.nbytes <= engine.memory
        waits.go.set()
        list(first), list(second)
        assert [what(first.reply), what(second.reply)] == expected


def test_the_budget_holds_at_every_moment(demo):
    row = demo.token_nbytes
    most, seen = 400 * row, []
    with ivlite.Engine(demo, memory=most) as engine:

        def watch(*_):
            busy = sum(map(pooling.size, tuple(demo.caches._busy)))
            seen.append((busy + demo.caches.nbytes, engine._taken()))

        def client(n):
            list(
                engine.stream(
                    question(n), client=str(n % 3), progress=watch, **({"max_new_tokens": 24} | SETTINGS[n % 8])
                )
            )

        run_all([lambda n=n: client(n) for n in range(30)])
    assert max(taken for _, taken in seen) <= most and max(held for held, _ in seen) <= most
    assert max(taken for _, taken in seen) > most / 3


def test_one_who_waits_for_memory_is_not_passed_for_ever(demo, monkeypatch):
    monkeypatch.setattr("ivlite.engine.batch.PASSED", 3)
    row, order = demo.token_nbytes, []
    with ivlite.Engine(demo, memory=300 * row, most=3) as engine:
        waits = Waits()
        first = engine.stream(question(6), max_new_tokens=100, progress=waits, **{**SETTINGS[6]})
        assert waits.there.wait(TIMEOUT)

        def note(name):
            return lambda stage, done, total: order.append(name) if stage == "generate" and done == 1 else None

        large = engine.stream(question(0), max_new_tokens=220, temperature=0, progress=note("large"))
        end = time.monotonic() + TIMEOUT
        while not any(request.large for request in tuple(engine._queue)):  # the engine knows that there is no room
            assert time.monotonic() < end
            threading.Event().wait(0.01)
        small = []
        for n in range(3):
            small.append(engine.stream(question(n), max_new_tokens=2, progress=note("small"), client=str(n)))
            list(small[-1])
        late = engine.stream(question(7), max_new_tokens=2, progress=note("late"), client="late")
        threading.Event().wait(0.3)  # the worker looks at who waits several times
        assert engine.waiting == 2 and order == ["small"] * 3
        waits.go.set()
        list(first), list(large), list(late)
        assert sorted(order[3:]) == ["large", "late"]


def test_sessions_count_and_old_caches_make_room(demo):
    row = demo.token_nbytes
    with demo.session() as session:
        list(session.stream(about(1), temperature=0))
        tokens = session.nbytes // row
        assert tokens > 60
        list(demo.stream(question(0), temperature=0))  # a cache that may go
        with ivlite.Engine(demo, memory=(tokens + 100) * row) as engine:
            assert engine.nbytes > session.nbytes
            before = demo.caches.nbytes
            stream = engine.stream(question(3), max_new_tokens=60, **SETTINGS[3])
            list(stream)
            assert before and engine.nbytes <= engine.memory
            with pytest.raises(OutOfMemoryError, match="sessions hold"):
                list(engine.stream(question(3), max_new_tokens=85, **SETTINGS[3]))
            follow = engine.add(session.ask("And now?", temperature=0, max_new_tokens=40))  # its rows count once
            list(follow)
            assert follow.reply.token_ids
        session.close()
        with ivlite.Engine(demo, memory=(tokens + 100) * row) as engine:
            list(engine.stream(question(3), max_new_tokens=85, **SETTINGS[3]))


def test_the_default_is_what_is_free(demo):
    with ivlite.Engine(demo) as engine:
        assert engine.memory is None or 0 < engine.memory < 1 << 50


def text(n, words=400):
    return [{"role": "user", "content": "The same long text. " * (words // 4) + f"Question {n}?"}]


def test_rows_of_an_answer_in_progress_are_copied(demo):
    expected = what(demo.chat(text(1), temperature=0, max_new_tokens=6))
    demo.caches.clear()
    with ivlite.Engine(demo) as engine:
        waits = Waits()
        first = engine.stream(text(0), temperature=0, max_new_tokens=12, progress=waits)
        assert waits.there.wait(TIMEOUT)
        waits.go.set()
        others = [engine.stream(text(n), temperature=0, max_new_tokens=6, client=str(n)) for n in (1, 2, 3)]
        for stream in (first, *others):
            list(stream)
        assert first.reply.usage["cached_tokens"] == 0
        assert all(stream.reply.usage["cached_tokens"] > 300 for stream in others)
        assert what(others[0].reply)[2] == expected[2]
    assert not demo.caches._busy and not demo.caches._copies


def test_one_waits_for_the_prefill_of_the_same_rows(demo):
    """Four ask about one film at once: it is computed once."""
    demo.caches.clear()
    film = [about(n)[0]["content"][0] for n in range(4)]
    rows = [[{"role": "user", "content": [film[n], {"type": "text", "text": f"{n}: what?"}]}] for n in range(4)]
    with ivlite.Engine(demo) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setattr("ivlite.engine.batch.SAME", 32)
        waits = Waits("vision")
        streams = [engine.stream(rows[0], temperature=0, progress=waits)]
        assert waits.there.wait(TIMEOUT)
        streams += [engine.stream(row, temperature=0, client=str(n)) for n, row in enumerate(rows[1:])]
        list(engine.stream(question(0), temperature=0, max_new_tokens=2))
        assert engine.waiting == 3
        waits.go.set()
        for stream in streams:
            list(stream)
        vision = [stream.reply.usage["vision_tokens"] for stream in streams]
        assert len(set(vision)) == 1 and streams[0].reply.usage["cached_tokens"] == 0
        assert all(stream.reply.usage["cached_tokens"] >= vision[0] for stream in streams[1:])


def test_a_call_does_not_end_under_a_copy(demo, monkeypatch):
    """Its cache is another's as soon as it is given back, so it is not before the copy is made."""
    copying, ends = threading.Event(), threading.Event()
    copy = ivlite.engine.runner.Runner.copy

    def slow(self, *args, **more):
        copying.set()
        assert ends.wait(TIMEOUT)
        return copy(self, *args, **more)

    demo.caches.clear()
    expected = what(demo.chat(text(1), temperature=0, max_new_tokens=4))
    demo.caches.clear()
    monkeypatch.setattr(ivlite.engine.runner.Runner, "copy", slow)
    with ivlite.Engine(demo) as engine:
        first = engine.stream(text(0), temperature=1.0, seed=1, max_new_tokens=3000, response_format=LONG)
        next(first)
        second = engine.stream(text(1), temperature=0, max_new_tokens=4)
        assert copying.wait(TIMEOUT)
        closing = threading.Thread(target=first.close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        ends.set()
        closing.join(TIMEOUT)
        list(second)
        assert second.reply.usage["cached_tokens"] > 300 and what(second.reply)[2] == expected[2]


def test_few_films_at_a_time(demo, monkeypatch):
    monkeypatch.setattr("ivlite.engine.batch.LONG", 50)
    with ivlite.Engine(demo, most=8) as engine:
        waits = [Waits("vision") for _ in range(3)]
        films = [
            engine.stream(about(n, n, n + 1.5), temperature=0, progress=wait, client=str(n))
            for n, wait in enumerate(waits)
        ]
        assert waits[0].there.wait(TIMEOUT) and waits[1].there.wait(TIMEOUT)
        list(engine.stream([{"role": "user", "content": "?"}], max_new_tokens=1))
        assert engine.waiting == 1 and not waits[2].there.is_set()
        for wait in waits:
            wait.go.set()
        for film in films:
            list(film)
            assert film.reply.finish_reason == "stop"
