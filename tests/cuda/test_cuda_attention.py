"""Attention of many queries on the device, in half and in float32, against the formula in float64."""

import numpy as np
import pytest

PRECISIONS = ["f32", "f16"]


def normal(rng, *shape, scale=1):
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def near(got, expected, precision):
    """Operands in half are 2^-12 away, of which a sum keeps less: 0.1 % of the root mean square in the mean."""
    if precision == "f32":
        return np.allclose(got, expected, rtol=1e-4, atol=3e-5)
    size, off = np.sqrt((expected**2).mean()), got - expected
    return np.sqrt((off**2).mean()) < 0.001 * size and np.abs(off).max() < 0.01 * size


def operand(x, precision):
    return x.astype(np.float16) if precision == "f16" else np.ascontiguousarray(x)


class Heads:
    """Queries, keys and values of heads, and what `attention` of them gives."""

    def __init__(self, rng, heads, d, d2, dv, queries, keys, segments=1, scale=1):
        self.sizes = d, d2, dv, queries, keys, heads, segments
        rows, wide = segments * queries, segments * keys
        self.q, self.q2 = normal(rng, rows, heads, d, scale=scale), normal(rng, rows, heads, d2, scale=scale)
        self.k, self.k2 = normal(rng, heads, wide, d, scale=scale), normal(rng, wide, d2, scale=scale)
        self.v = normal(rng, heads, wide, dv)
        self.scale = 1 / (d + d2) ** 0.5

    def formula(self, visible=None):
        """visible (queries,): the keys that each query sees."""
        *_, queries, keys, heads, segments = self.sizes
        out = []
        for i in range(segments):
            rows, seen = slice(i * queries, (i + 1) * queries), slice(i * keys, (i + 1) * keys)
            s = np.einsum("thd,hsd->hts", self.q[rows].astype(np.float64), self.k[:, seen])
            s += np.einsum("thd,sd->hts", self.q2[rows].astype(np.float64), self.k2[seen])
            if visible is not None:
                s = np.where(np.arange(keys) < visible[:, None], s, -np.inf)
            out.append(np.einsum("hts,hsd->thd", softmax(s * self.scale), self.v[:, seen]))
        return np.concatenate(out)

    def run(self, device, precision, causal=False, slabs=None):
        """slabs: where the keys of each call end."""
        d, d2, dv, queries, keys, heads, segments = self.sizes
        rows = segments * queries
        out, top, total = (
            device.empty((rows, heads, dv)),
            device.empty((queries, heads)),
            device.empty((queries, heads)),
        )
        # queries of a token are one row, as the projection leaves them
        q = device.array(np.concatenate([self.q, self.q2], 2)).pointer
        wide = heads * (d + d2)
        first = 0
        for end in slabs or (keys,):
            n = end - first
            part = slice(first, end) if slabs else slice(None)
            k, k2, v = (
                device.array(operand(x, precision)).pointer for x in (self.k[:, part], self.k2[part], self.v[:, part])
            )
            device.cuda.attention(
                precision, (out.pointer, heads * dv, dv), (q, wide, d + d2), (q + 4 * d if d2 else 0, wide, d + d2),
                (k, d, n * segments * d), (k2 if d2 else 0, d2), (v, dv, n * segments * dv), (top.pointer, total.pointer),
                (d, d2, dv, queries, n, heads, segments), causal, keys - queries - first, first > 0, end < keys, self.scale, 0,
            )  # fmt: skip
            first = end
        return out.numpy()


def causal_view(queries, keys):
    return np.arange(keys - queries, keys) + 1


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("segment", [1, 2, 8, 15, 16, 17, 33, 64, 65, 127, 129])
@pytest.mark.parametrize("d", [72, 8, 20])
def test_segments(device, rng, precision, segment, d):
    """The vision tower: each run of rows attends to itself."""
    x = Heads(rng, 2, d, 0, d, segment, segment, segments=2)
    assert near(x.run(device, precision), x.formula(), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "d, d2, dv",
    [
        (1, 0, 1),
        (3, 0, 7),
        (7, 2, 3),
        (16, 8, 24),
        (20, 12, 33),
        (48, 16, 64),
        (72, 8, 80),
        (64, 64, 128),
        (100, 28, 97),
        (128, 128, 128),
    ],
)
def test_dimensions(device, rng, precision, d, d2, dv):
    x = Heads(rng, 3, d, d2, dv, 21, 30)
    assert near(x.run(device, precision, causal=True), x.formula(causal_view(21, 30)), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "queries, keys", [(1, 1), (1, 100), (47, 48), (49, 49), (64, 130), (128, 128), (130, 131), (200, 290)]
)
@pytest.mark.parametrize("sizes", [(16, 8, 16), (128, 128, 128)])
def test_causal(device, rng, precision, queries, keys, sizes):
    x = Heads(rng, 2, *sizes, queries, keys)
    assert near(x.run(device, precision, causal=True), x.formula(causal_view(queries, keys)), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("slabs", [(300,), (1, 300), (64, 128, 300), (100, 101, 299, 300), (200, 230, 260, 300)])
def test_slabs(device, rng, precision, slabs):
    """Keys in several calls; some queries see nothing of the last ones."""
    x = Heads(rng, 2, 40, 16, 24, 140, 300)
    assert near(x.run(device, precision, True, slabs), x.formula(causal_view(140, 300)), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_scores(device, rng, precision):
    """Scores far beyond the range of exp: the largest one takes all."""
    x = Heads(rng, 1, 16, 0, 16, 40, 40)
    x.q, x.k = (a.astype(np.float16).astype(np.float32) * np.float32(32) for a in (x.q, x.k))
    assert np.allclose(x.run(device, precision), x.formula(), rtol=1e-2, atol=1e-2)


def test_a_long_tail_keeps_its_mass(device, rng):
    """A key that outweighs each of thousands of others a hundred thousand times, and not all of them together by far."""
    x = Heads(rng, 1, 16, 0, 16, 2, 6000)
    x.q[:], x.k[:], x.v[0, 1:] = 1, 0, np.abs(x.v[0, 1:]) + np.float32(1)
    x.k[0, 0], x.v[0, 0] = np.log(1e5) / 16 / x.scale, -1
    assert near(x.run(device, "f16"), x.formula(), "f16")


def test_what_a_half_cannot_hold_stays_finite(device, rng):
    x = np.float32([[[1e30, -1e6, 65519, np.inf, -np.inf, np.nan, 3e-5, 0]]])
    buffer, out = device.array(x), device.empty((1, 1, 8), np.float16)
    device.cuda.pack_heads(out.pointer, (buffer.pointer, 8, 8), 1, 1, 8, 0)
    want = np.float16([65504, -65504, 65504, np.inf, -np.inf, np.nan, 3e-5, 0])
    assert np.array_equal(out.numpy()[0, 0], want, equal_nan=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 30, 150])
def test_what_is_not_finite(device, rng, precision, bad, n):
    """A query that is not finite concerns itself; a key or value, all queries. -inf may be a score that no softmax sees."""
    at, x = n * 2 // 3, Heads(rng, 2, 40, 0, 40, n, n)
    clean = x.run(device, precision)
    for name in "qkv":
        array = getattr(x, name)
        where = (at, 1, 5) if name == "q" else (1, at, 5)
        before, array[where] = array[where], bad
        got = x.run(device, precision)
        array[where] = before
        assert np.array_equal(got[:, 0], clean[:, 0])
        if name == "q":
            assert np.array_equal(np.delete(got, at, 0), np.delete(clean, at, 0))
        if np.isnan(bad):
            hit = got[at, 1] if name == "q" else got[:, 1]
            assert np.isnan(hit[..., 5] if name == "v" else hit).all()
        elif name == "v":
            assert not np.isfinite(got[:, 1, 5]).any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["k", "k2", "v"])
def test_a_key_does_not_reach_earlier_queries(device, rng, precision, bad, name):
    """Neither it nor its value, whatever they hold, in the same tile or in a later one."""
    n = 71
    x = Heads(rng, 2, 40, 16, 40, n, n)
    clean, array = x.run(device, precision, causal=True), getattr(x, name)
    for at in (0, 1, 25, 47, 48, 70):
        where = (at, 5) if name == "k2" else (1, at, 5)
        before, array[where] = array[where], bad
        got = x.run(device, precision, causal=True)
        array[where] = before
        assert np.array_equal(got[:at], clean[:at])
        assert name == "k2" or np.array_equal(got[:, 0], clean[:, 0])
        if name == "v":
            assert not np.isfinite(got[at:, 1, 5]).any()
            assert np.array_equal(np.delete(got, 5, 2), np.delete(clean, 5, 2))
        elif np.isnan(bad):
            assert np.isnan(got[at:, 1]).all()


def test_packed_heads(device, rng):
    """What lies interleaved in one product becomes a matrix of halves per head."""
    x = normal(rng, 13, 3, 4, 22)
    buffer, out = device.array(x), device.empty((4, 13, 22), np.float16)
    device.cuda.pack_heads(out.pointer, (buffer.pointer + 4 * 4 * 22, 3 * 4 * 22, 22), 13, 4, 22, 0)
    assert np.array_equal(out.numpy(), x[:, 1].transpose(1, 0, 2).astype(np.float16))
