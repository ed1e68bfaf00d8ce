"""Limits of what is kept between calls: tokens of a cache, caches that wait, and work worth a file."""

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from session_fakes import PlainCache, layout

from ivlite.engine.held import ENDS, Held, Span
from ivlite.errors import MediaError
from ivlite.machine import MARGIN
from ivlite.session import pool, store
from ivlite.session.store import Store


def positions(first, count):
    return np.tile(np.arange(first, first + count), (3, 1))


def prompt(ids, spans=(), media=(), start=0):
    """A Prompt of text and frame pairs; every medium has as many pairs as spans."""
    pairs, seen = [], {}
    for medium, _, _ in spans:
        pairs.append((medium, seen.get(medium, 0)))
        seen[medium] = seen.get(medium, 0) + 1
    return SimpleNamespace(
        token_ids=list(ids), positions=positions(start, len(ids)), next_position=start + len(ids), spans=list(spans),
        media=list(media), pairs=lambda: iter(pairs),
    )  # fmt: skip


class Medium:
    def __init__(self, *keys, known=True):
        self.keys, self.known, self.read = keys, known, 0

    def has_keys(self):
        return self.known

    def pair_keys(self):
        self.read += 1
        if not self.keys:
            raise MediaError("gone")
        self.known = True
        return self.keys


def held(count, spans=()):
    made = Held()
    made.append(range(count), positions(0, count))
    made.spans = list(spans)
    return made


# ------------------------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize("sizes", [(1,), (255, 1, 1), (256,), (257,), (1, 600, 1), (3,) * 300])
def test_tokens_are_appended_in_pieces_of_any_size(sizes):
    made, total = Held(), 0
    for n, size in enumerate(sizes):
        made.append(range(total, total + size), positions(total, size))
        total += size
        if n % 7 == 0:
            assert made.token_ids == list(range(total)) and made.positions.shape == (3, total)
    assert made.length == made.next == total and made.token_ids == list(range(total))
    assert (made.positions == positions(0, total)).all()
    assert len(made._ids) < max(257, 2 * total + 1)


def test_the_next_position_follows_the_longest_side():
    made = held(5)
    made.append([7, 7], np.array([[5, 5], [5, 6], [5, 9]]))
    assert made.next == 10
    made.append([8], np.array([[9], [9], [9]]), following=20)
    assert made.next == 20
    made.append([], np.zeros((3, 0), np.int64))
    assert made.next == 20 and made.length == 8
    copies = [made.copy(n) for n in (8, 7, 5, 1, 0)]
    assert [(c.length, c.next) for c in copies] == [(8, 20), (7, 10), (5, 5), (1, 1), (0, 0)]
    made.truncate(8)
    assert made.next == 20
    made.truncate(7)
    assert made.next == 10
    made.truncate(0)
    assert made.next == 0 and made.token_ids == [] and made.copy(0).next == 0


def test_what_is_cut_off_and_what_stays():
    made = held(20, [Span(4, 4, b"a"), Span(10, 4, b"b"), Span(16, 4, b"c")])
    made.chunks, made.given, made.lows = {0: 8, 8: 16, 16: 20}, 12, {"x": 18, "y": 3}
    for n in (8, 15, 16, 20):
        made.keep_logits(np.array([n]), n)
    for length in (20, 17, 16, 15, 11, 10, 4):
        expected = (
            [s.first for s in made.spans if s.first < length], {a: b for a, b in made.chunks.items() if b <= length},
            min(12, length), [n for n, _ in made.ends if n <= length],
        )  # fmt: skip
        copy = made.copy(length)
        assert ([s.first for s in copy.spans], copy.chunks, copy.given, [n for n, _ in copy.ends]) == expected
        assert copy.lows == {} and copy.token_ids == list(range(length))
        made.truncate(length)
        assert ([s.first for s in made.spans], made.chunks, made.given, [n for n, _ in made.ends]) == expected
        assert made.lows == {"x": min(18, length), "y": 3} and made.length == made.next == length
    assert copy.next == 4 and made.keys == []


def test_the_logits_used_last_are_kept():
    made = held(20)
    for n in range(1, ENDS + 1):
        made.keep_logits(np.array([n]), n)
    assert made.logits(1)[0] == 1 and [n for n, _ in made.ends] == [2, 3, 4, 1] and made.logits(9) is None
    made.keep_logits(np.array([20]))
    assert [n for n, _ in made.ends] == [3, 4, 1, 20] and ENDS == 4
    made.keep_logits(np.array([33]), 3)
    assert [(n, int(x[0])) for n, x in made.ends] == [(4, 4), (1, 1), (20, 20), (3, 33)]


SHARED = [  # ids, spans of the prompt and their keys -> leading tokens that are shared with 0..19 and pairs "a" at 4 and "b" at 10
    (range(20), [(0, 4, 4), (0, 10, 4)], (b"a", b"b"), 20), (range(30), [(0, 4, 4), (0, 10, 4)], (b"a", b"b"), 20),
    (range(9), [(0, 4, 4)], (b"a",), 9), (range(20), [(0, 4, 4), (0, 10, 4)], (b"a", b"c"), 10),
    (range(20), [(0, 4, 4), (0, 10, 4)], (b"x", b"b"), 4), (range(20), [(0, 4, 4)], (b"a",), 10),
    (range(20), [], (), 4), (range(4), [], (), 4), (range(3), [], (), 3),
    (range(20), [(0, 4, 5), (0, 10, 4)], (b"a", b"b"), 4), (range(20), [(0, 5, 4), (0, 10, 4)], (b"a", b"b"), 5),
    ([*range(7), 99, *range(8, 20)], [(0, 4, 4), (0, 10, 4)], (b"a", b"b"), 7), ([99], [], (), 0), ([], [], (), 0),
    (range(20), [(0, 4, 4), (0, 10, 4), (0, 15, 2)], (b"a", b"b", b"c"), 15),
]  # fmt: skip


@pytest.mark.parametrize("ids, spans, keys, shared", SHARED)
def test_leading_tokens_that_are_shared(ids, spans, keys, shared):
    made = held(20, [Span(4, 4, b"a"), Span(10, 4, b"b")])
    assert made.shared(prompt(ids, spans, [Medium(*keys)])) == shared
    moved = prompt(ids, spans, [Medium(*keys)], start=1)
    assert made.shared(moved) == 0


def test_pixels_are_looked_at_only_where_that_is_allowed():
    own = Medium(b"a", b"b", known=False)
    made = held(20, [Span(4, 4, medium=own, pair=0), Span(10, 4, medium=own, pair=1)])
    spans = [(0, 4, 4), (0, 10, 4)]
    assert made.shared(prompt(range(20), spans, [own]), reading=False) == 20 and own.read == 0
    assert made.shared(prompt(range(20), spans, [SimpleNamespace(medium=own)]), reading=False) == 20
    other = Medium(b"a", b"b", known=False)
    assert made.shared(prompt(range(20), spans, [other]), reading=False) == 4 and other.read == own.read == 0
    other.known = True
    assert made.shared(prompt(range(20), spans, [other]), reading=False) == 4 and own.read == 0
    assert made.shared(prompt(range(20), spans, [other])) == 20 and own.read > 0
    known = Medium(b"a", b"b")
    settled = Span(0, 1, medium=known, pair=1)
    settled.settle()
    assert settled.key == b"b" and known.read == 1 and settled._medium is None
    waiting = Span(0, 1, medium=Medium(b"a", known=False))
    waiting.settle()
    assert waiting._medium.read == 0 and waiting.key == b"a"
    gone = Span(0, 1, medium=Medium())
    assert len(gone.key) == 16 and gone.key == gone.key != Span(0, 1, medium=Medium()).key


# ------------------------------------------------------------------------------------------------ caches that wait


class Cache:
    token_bytes = 1000

    def __init__(self, capacity):
        self.capacity, self.reserved = capacity, []

    def reserve(self, capacity):
        self.reserved.append(capacity)


class Runner:
    def __init__(self, *args, ids=()):
        self.cache, self.held, self.meter, self.copies = Cache(args[1] if args else 1 << 20), held(0), None, []
        self.held.append(ids, positions(0, len(ids)))

    def copy(self, shared, capacity):
        self.copies.append((shared, capacity))
        return SimpleNamespace(cache=Cache(capacity), held=self.held.copy(shared))

    def foreseen(self, prompt, reading=False):
        return self.held.shared(prompt)


@pytest.fixture
def waiting(monkeypatch):
    made = pool.Pool(SimpleNamespace(ops=None), "q8")
    monkeypatch.setattr(pool, "Runner", Runner)
    monkeypatch.setattr(pool, "available_memory", lambda: None)
    return made


def test_four_caches_wait_and_a_gigabyte(waiting, monkeypatch):
    runners = [Runner(ids=range(n, n + 10)) for n in range(6)]
    for runner in runners:
        waiting.give(runner)
    assert waiting._idle == runners[2:] and waiting.nbytes == 4 * 10 * 1000
    monkeypatch.setattr(pool, "MOST", 40 * 1000)
    waiting.give(Runner(ids=range(10)))
    assert len(waiting._idle) == 4
    monkeypatch.setattr(pool, "MOST", 40 * 1000 - 1)
    waiting.give(last := Runner(ids=range(10)))
    assert len(waiting._idle) == 3 and waiting._idle[-1] is last
    waiting.give(large := Runner(ids=range(500)))
    assert waiting._idle == [large]
    waiting.give(Runner())
    assert waiting._idle == [large]
    waiting.clear()
    assert waiting._idle == [] and waiting.nbytes == 0
    waiting.close()
    waiting.give(large)
    assert waiting._idle == []


@pytest.mark.parametrize("capacity, wanted, reserved", [
    (100, 100, []), (100, 101, [101 + 1024]), (100, 4096, [4096 + 1024]), (100, 8000, [8000 + 2000]), (8000, 8000, []),
])  # fmt: skip
def test_a_cache_grows_by_more_than_a_few_tokens(waiting, capacity, wanted, reserved):
    runner = Runner(None, capacity, ids=range(50))
    waiting.give(runner)
    assert waiting.take(prompt(range(60)), wanted) is runner and runner.cache.reserved == reserved


@pytest.mark.parametrize("length, shared, how", [
    (20, 15, "new"), (20, 16, "own"), (80, 16, "own"), (81, 16, "copy"), (164, 100, "own"), (200, 100, "own"), (201, 100, "copy"),
    (15, 15, "new"), (16, 16, "own"),
])  # fmt: skip
def test_a_cache_is_taken_over_copied_or_left(waiting, length, shared, how):
    runner = Runner(ids=range(length))
    waiting.give(runner)
    asked = prompt([*range(shared), *[9999] * 300])
    assert waiting.foreseen(asked) == (shared if shared >= 16 else 0)
    got = waiting.take(asked, 500)
    assert (got is runner, runner.copies, waiting._idle) == {
        "new": (False, [], [runner]), "own": (True, [], []), "copy": (False, [(shared, 500)], [runner]),
    }[how]  # fmt: skip


def test_the_longest_shared_prefix_is_taken(waiting):
    runners = [Runner(ids=[*range(n), 7777]) for n in (20, 40, 30)]
    for runner in runners:
        waiting.give(runner)
    assert waiting.take(prompt(range(100)), 10) is runners[1] and waiting._idle == [runners[0], runners[2]]


@pytest.mark.parametrize("free, left, how", [
    (None, 3, "copy"), (400_000 + MARGIN, 3, "copy"), (400_000 + MARGIN - 1, 1, "own"),
])  # fmt: skip
def test_memory_that_is_short_costs_what_was_used_least_recently(waiting, monkeypatch, free, left, how):
    best, others = Runner(ids=range(300)), [Runner(ids=range(500 + n, 560)) for n in range(2)]
    for runner in (best, *others):
        waiting.give(runner)
    monkeypatch.setattr(pool, "available_memory", lambda: free)
    got = waiting.take(prompt([*range(100), *[9999] * 300]), 500)
    assert ("own" if got is best else "copy") == how and len(waiting._idle) == (left if how == "copy" else 0)
    monkeypatch.setattr(pool, "available_memory", lambda: 1000 + MARGIN)
    before = list(waiting._idle)
    assert waiting.spare(1000) and waiting._idle == before
    assert not waiting.spare(1001) and waiting._idle == []


# ------------------------------------------------------------------------------------------------ the store


def keeper(tmp_path, **limits):
    made = Store(tmp_path / "sessions", **limits).keeper
    assert made
    plain = PlainCache(1000)
    return store.Keeper(Store(tmp_path / "sessions", **limits), layout(plain), "cpu", 7)


def test_work_that_is_worth_a_file(tmp_path, monkeypatch):
    """More than `worth` seconds when it ends, every `interval` while it goes on, and not for fewer than LEAST tokens."""
    kept, now = [], [1000.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(store.Keeper, "_save", lambda self, runner, prompt, report: kept.append(now[0]))
    made = keeper(tmp_path, worth=20.0, interval=180.0)
    runner = SimpleNamespace(held=held(64), meter=SimpleNamespace(progress=print))
    asked = prompt(range(64))
    for seconds, count in ((180.0, 0), (180.5, 1), (360.5, 1), (361.0, 2)):
        now[0] = 1000.0 + seconds
        made.computed(runner, asked)
        assert len(kept) == count, seconds
    for worth, count in ((20.0, 0), (20.5, 1)):
        made, now[0] = keeper(tmp_path, worth=20.0), 5000.0
        made.began = 5000.0 - worth
        kept.clear()
        made.ended(runner, asked)
        assert len(kept) == count
    kept.clear()
    made.ended(SimpleNamespace(held=held(63), meter=runner.meter), asked)
    assert not kept
    made.off = True
    made.ended(runner, asked)
    assert not kept


def test_what_the_store_does_by_itself(tmp_path):
    made = Store(tmp_path)
    assert (made.worth, made.interval) == (20.0, 180.0)
    unfinished = tmp_path / ".a.ivs.partial1"
    for age, stays in ((595, True), (605, False)):
        unfinished.write_bytes(b"")
        os.utime(unfinished, (time.time() - age,) * 2)
        assert made.make_room(0, None) and unfinished.exists() == stays
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o600
    below = Store(tmp_path / "new" / "folder", limit=5)
    name = below.new_path(layout(PlainCache())).name
    assert below.folder.stat().st_mode & 0o777 == 0o700 and name.endswith(".ivs") and len(name.rsplit("-", 1)[1]) == 12
    assert below.limit() == 5
