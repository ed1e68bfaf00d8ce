import subprocess
import sys

import numpy as np
import pytest

from ivlite import _C, ops
from ivlite.ops import q4

KINDS = ops.CACHE_KINDS
RANKS, ROPE = (33, 7, 130), 18


def half(x):
    return x.astype(np.float16).astype(np.float32)


def stored(kind, latent, rope):
    """What each kind of cache gives back."""
    if kind == "f32":
        return latent, rope
    if kind == "f16":
        return half(latent), half(rope)
    if kind == "q4":
        return q4.load(*q4.store(latent), latent.shape[1]), q4.load_keys(*q4.store_keys(rope))
    top = np.abs(latent).max(1, keepdims=True)
    inverse = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    return np.rint(latent * inverse) * (top / np.float32(127)), half(rope)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank, rope", [(1, 2), (7, 4), (16, 8), (33, 18), (96, 32), (896, 128)])
def test_rows_come_back_as_stored(isa, rng, kind, rank, rope):
    latent = rng.standard_normal((9, rank + 4), dtype=np.float32)[:, :rank]
    keys = rng.standard_normal((9, rope + 4), dtype=np.float32)[:, :rope]
    latent[4] = 0
    cache = _C.LatentCache([rank, rank], rope, 20, kind)
    for rows in (slice(0, 6), slice(6, 9)):
        for layer in (0, 1):
            cache.append(layer, latent[rows] * (layer + 1), keys[rows])
        cache.advance(rows.stop - rows.start)
    assert cache.length == 9
    for layer in (0, 1):
        got = cache.read(layer, 0, 9)
        expected = stored(kind, latent * (layer + 1), keys)
        assert np.allclose(got[0], expected[0], rtol=1e-6, atol=0) and np.array_equal(got[1], expected[1])
        assert np.array_equal(cache.read(layer, 5, 7)[0], got[0][5:7])


def test_layers_may_have_ranks_of_their_own(isa):
    cache = _C.LatentCache([3, 40], 2, 4, "q8")
    for layer, rank in enumerate((3, 40)):
        cache.append(layer, np.ones((2, rank), np.float32), np.ones((2, 2), np.float32))
    cache.advance(2)
    assert cache.read(1, 0, 2)[0].shape == (2, 40)
    assert cache.nbytes == 4 * (3 + 4 + 4 + 40 + 4 + 4)


def test_truncate_forgets_the_newest(isa):
    cache = _C.LatentCache([4], 2, 8, "f32")

    def add(value, n):
        cache.append(0, np.full((n, 4), value, np.float32), np.full((n, 2), value, np.float32))
        cache.advance(n)

    add(1, 5)
    cache.truncate(3)
    add(2, 2)
    assert cache.length == 5 and cache.read(0, 0, 5)[0][:, 0].tolist() == [1, 1, 1, 2, 2]


def test_misuse_is_refused():
    cache = _C.LatentCache([4], 2, 3, "f32")
    two = np.zeros((2, 4), np.float32), np.zeros((2, 2), np.float32)
    cache.append(0, *two)
    with pytest.raises(ValueError, match="advance"):
        cache.advance(1)
    cache.advance(2)
    for call, word in (
        (lambda: cache.append(0, *two), "full"),
        (lambda: cache.append(1, *two), "layer"),
        (lambda: cache.append(0, two[1], two[1]), "latent"),
        (lambda: cache.truncate(3), "length"),
        (lambda: cache.read(0, 1, 4), "rows"),
        (lambda: _C.LatentCache([4], 2, 3, "q3"), "q3"),
        (lambda: _C.LatentCache([], 2, 3, "q8"), "layers"),
        (lambda: _C.LatentCache([4], 2, 2**40, "q8"), "large"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


def rows(rng, tokens):
    """(latent, keys) of every layer."""
    return [
        (rng.standard_normal((tokens, r), np.float32), rng.standard_normal((tokens, ROPE), np.float32)) for r in RANKS
    ]


def add(cache, given, first, last):
    for layer, (latent, keys) in enumerate(given):
        cache.append(layer, latent[first:last], keys[first:last])
    cache.advance(last - first)


def everything(cache):
    return [x for layer in range(len(RANKS)) for x in cache.read(layer, 0, cache.length)]


def same(cache, other):
    return all(map(np.array_equal, everything(cache), everything(other)))


def expected_bytes(kind, given):
    """A dump as the documentation describes it: per layer latents, scales, keys."""
    parts = []
    for latent, keys in given:
        if kind == "f32":
            parts += [latent, keys]
        elif kind == "f16":
            parts += [latent.astype("<f2"), keys.astype("<f2")]
        elif kind == "q4":
            (rows, scale), (codes, scales) = q4.store(latent), q4.store_keys(keys)
            parts += [rows, np.concatenate((scale, scales), 1), codes]
        else:
            top = np.abs(latent).max(1, keepdims=True)
            parts += [
                np.rint(latent * (np.float32(127) / top)).astype(np.int8),
                top / np.float32(127),
                keys.astype("<f2"),
            ]
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [11, 64, 100_000])
def test_a_dump_is_what_is_documented(isa, threads, rng, kind, capacity):
    given = rows(rng, 11)
    for n in (1, 3):
        threads(n)
        cache = _C.LatentCache(RANKS, ROPE, capacity, kind)
        add(cache, given, 0, 4)
        add(cache, given, 4, 11)
        assert cache.kind == kind and cache.token_bytes == _C.cache_token_bytes(RANKS, ROPE, kind)
        for first, last in ((0, 11), (3, 8), (10, 11), (5, 5), (0, 0)):
            data = cache.dump(first, last)
            assert np.array_equal(data, expected_bytes(kind, [(a[first:last], b[first:last]) for a, b in given]))
            assert data.size == (last - first) * cache.token_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_restored_in_pieces(isa, rng, kind):
    """In other pieces than they were written in, into a cache of another capacity that grows; then appended to."""
    given = rows(rng, 40)
    whole, other = _C.LatentCache(RANKS, ROPE, 40, kind), _C.LatentCache(RANKS, ROPE, 5, kind)
    add(whole, given, 0, 31)
    for first, last in ((0, 5), (5, 6), (6, 30)):
        other.reserve(last)
        other.restore(first, whole.dump(first, last))
        assert other.length == last
    other.reserve(64)
    other.restore(30, whole.dump(30, 31))
    assert same(whole, other)
    for cache in (whole, other):
        add(cache, given, 31, 40)
    assert same(whole, other) and np.array_equal(whole.dump(0, 40), other.dump(0, 40))
    other.truncate(12)
    other.restore(12, whole.dump(12, 40))
    assert same(whole, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_grows_with_what_it_holds(isa, rng, kind):
    """Rows that no advance has counted yet are kept, and attention still sees them as they were given."""
    given = rows(rng, 9)
    small, large = _C.LatentCache(RANKS, ROPE, 9, kind), _C.LatentCache(RANKS, ROPE, 4000, kind)
    outs = []
    for cache in (small, large):
        add(cache, given, 0, 6)
        for layer, (latent, keys) in enumerate(given):
            cache.append(layer, latent[6:], keys[6:])
            if layer == 1 and cache is small:
                cache.reserve(4000)
            q, r = np.ones((3, 2, RANKS[layer]), np.float32), np.ones((3, 2, ROPE), np.float32)
            outs.append(np.empty_like(q))
            _C.absorbed_attention(outs[-1], q, r, cache, layer, 0.1)
        cache.advance(3)
    assert all(map(np.array_equal, outs[:3], outs[3:]))
    assert small.capacity == 4000 and same(small, large)
    small.reserve(10)
    assert small.capacity == 4000


@pytest.mark.parametrize("kind", KINDS)
def test_restored_bytes_may_be_anything(isa, rng, kind):
    """Every pattern of bytes is rows, if not of numbers: nothing crashes, and what is finite elsewhere stays."""
    cache = _C.LatentCache(RANKS, ROPE, 300, kind)
    for fill in (0, 0x7F, 0x80, 0xFF, None):
        cache.truncate(0)
        data = rng.integers(0, 256, 300 * cache.token_bytes, np.uint8)
        if fill is not None:
            data[:] = fill
        cache.restore(0, data)
        assert np.array_equal(cache.dump(0, 300), data)
        for layer, rank in enumerate(RANKS):
            cache.read(layer, 0, 300)
            q, r = np.ones((1, 2, rank), np.float32), np.ones((1, 2, ROPE), np.float32)
            _C.absorbed_attention(np.empty_like(q), q, r, cache, layer, 0.1)
            for fmt in ("f32", "q8_0"):
                o = ops.get("cpu", 1)
                kv_b = o.weight(fmt, o.encode(fmt, np.ones((2 * 9, rank), np.float32)), (2, 9, rank))
                out = np.empty((1, 2, 4), np.float32)
                _C.expanded_attention(out, np.ones((1, 2, 5), np.float32), r, cache, layer, kv_b, 0.1)


def test_what_cannot_be_restored_is_refused(rng):
    given = rows(rng, 6)
    cache = _C.LatentCache(RANKS, ROPE, 6, "q8")
    add(cache, given, 0, 4)
    data = cache.dump(0, 2)
    for call, word in (
        (lambda: cache.dump(0, 5), "no such rows"),
        (lambda: cache.dump(3, 2), "no such rows"),
        (lambda: cache.dump(-1, 2), "no such rows"),
        (lambda: cache.restore(3, data), "begin"),
        (lambda: cache.restore(5, data), "begin"),
        (lambda: cache.restore(-1, data), "begin"),
        (lambda: cache.restore(4, data[:-1]), "whole rows"),
        (lambda: cache.restore(4, data[:1]), "whole rows"),
        (lambda: cache.restore(4, np.tile(data, 2)), "full"),
        (lambda: cache.restore(4, data[::2]), "contiguous"),
        (lambda: cache.reserve(2**40), "large"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
    with pytest.raises(TypeError):
        cache.restore(4, data.view(np.int8))
    with pytest.raises(MemoryError):
        _C.LatentCache([2**19], 2, 6, "f32").reserve(2**32 - 1)
    expected = _C.LatentCache(RANKS, ROPE, 6, "q8")
    add(expected, given, 0, 4)
    assert (cache.length, cache.capacity) == (4, 6) and same(cache, expected)


def test_appended_rows_are_dropped_by_a_restore(rng):
    given, other = rows(rng, 6), rows(rng, 6)
    cache, source = (_C.LatentCache(RANKS, ROPE, 6, "f16") for _ in range(2))
    add(source, other, 0, 3)
    cache.append(0, given[0][0][:2], given[0][1][:2])
    cache.restore(0, source.dump(0, 3))
    assert cache.length == 3 and same(cache, source)
    with pytest.raises(ValueError, match="advance"):
        cache.advance(2)


MEMORY = """
import os
import numpy as np
from ivlite import _C
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
layers, tokens = 8, 100
latent, keys = np.ones((tokens, 896), np.float32), np.ones((tokens, 128), np.float32)
for kind in _C_KINDS:
    before = resident()
    cache = _C.LatentCache([896] * layers, 128, 262144, kind)
    for layer in range(layers):
        cache.append(layer, latent, keys)
    cache.advance(tokens)
    cache.reserve(1 << 20)
    used = tokens * cache.token_bytes
    print(kind, (resident() - before - used) / layers)
    del cache
"""


GROWTH = """
import numpy as np
from ivlite import _C
from ivlite.machine import peak_memory  # what getrusage tells may be the peak of the parent process
layers, tokens = 8, 20_000
cache = _C.LatentCache([896] * layers, 128, tokens, "q8")
for layer in range(layers):
    cache.append(layer, np.ones((1000, 896), np.float32), np.ones((1000, 128), np.float32))
cache.advance(1000)
rows = cache.dump(0, 1000)
while cache.length < tokens:
    cache.restore(cache.length, rows)
before = peak_memory()
cache.reserve(5 * tokens)
peak = peak_memory() - before
print(peak / (tokens * cache.token_bytes / layers))
"""


def test_growing_needs_one_layer_more():
    out = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True, timeout=60).stdout
    assert 0.5 < float(out) < 1.5, "in layers"


def test_capacity_costs_nothing_until_it_is_used():
    """100 tokens of a cache for 262,144: at most 256 KB per layer beyond what they need."""
    program = MEMORY.replace("_C_KINDS", repr(KINDS))
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert [line.split()[0] for line in out.splitlines()] == list(KINDS)
    assert all(float(line.split()[1]) < 256 << 10 for line in out.splitlines()), out


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_rows_of_the_longest_context(isa, rng, kind):
    """262,144 tokens: what attention finds in the last ones, and what is taken out and put back there."""
    tokens, rank, rope, at = 262_144, 16, 4, 262_141
    latent, keys = rng.standard_normal((tokens, rank), np.float32), rng.standard_normal((tokens, rope), np.float32)
    latent[at] *= 4
    cache = _C.LatentCache([rank, rank], rope, 4096, kind)
    for first in range(0, tokens, 65536):
        rows = slice(first, first + 65536)
        cache.reserve(rows.stop)
        cache.append(0, latent[rows], keys[rows])
        cache.append(1, -latent[rows], keys[rows])
        cache.advance(65536)
    last = cache.dump(at - 1, tokens)
    cache.truncate(at - 1)
    cache.restore(at - 1, last)
    assert cache.length == tokens and np.array_equal(cache.dump(at - 1, tokens), last)
    o, q_rope = ops.get("cpu", 2), np.zeros((1, 1, rope), np.float32)
    kv_b = o.weight(
        "f32", o.encode("f32", np.eye(rank, dtype=np.float32)[[*range(rank), *range(rank)]]), (1, 2 * rank, rank)
    )
    for layer, sign in ((0, 1), (1, -1)):
        row, q, y = (
            cache.read(layer, at, at + 1)[0],
            np.empty((1, 1, rank), np.float32),
            np.empty((1, 1, rank), np.float32),
        )
        assert np.allclose(row, sign * latent[at], atol=0.2 * np.abs(latent[at]).max())
        q[:] = sign * latent[at]
        _C.absorbed_attention(y, q, q_rope, cache, layer, 1.0)
        assert np.allclose(y, row, atol=0.02 * np.abs(row).max())
        _C.expanded_attention(y, q, q_rope, cache, layer, kv_b, 1.0)
        assert np.allclose(y, row, atol=0.02 * np.abs(row).max())
