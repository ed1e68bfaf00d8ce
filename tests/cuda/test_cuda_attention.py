"""Attention of many queries on the device, in bf16 and in float32, against the formula in float64."""

import numpy as np
import pytest

PRECISIONS = ["f32", "bf16"]


def normal(rng, *shape, scale=1):
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rounded(x):
    """float32 to bf16: the bits, and their value."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    short = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return short, (short.astype(np.uint32) << 16).view(np.float32)


def near(got, expected, precision):
    """Operands in bf16 are 2^-9 away, of which a sum keeps less: 1 % of the root mean square in the mean."""
    if precision == "f32":
        return np.allclose(got, expected, rtol=1e-4, atol=3e-5)
    size, off = np.sqrt((expected**2).mean()), got - expected
    return np.sqrt((off**2).mean()) < 0.01 * size and np.abs(off).max() < 0.1 * size


def operand(x, precision):
    return rounded(x)[0] if precision == "bf16" else np.ascontiguousarray(x)


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
    x.q, x.k = (rounded(a * np.float32(30))[1] for a in (x.q, x.k))
    assert np.allclose(x.run(device, precision), x.formula(), rtol=1e-2, atol=1e-2)


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


def test_packed_heads(device, rng):
    """What lies interleaved in one product becomes a matrix of bf16 per head."""
    x = normal(rng, 13, 3, 4, 22)
    buffer, out = device.array(x), device.empty((4, 13, 22), np.uint16)
    device.cuda.pack_heads(out.pointer, (buffer.pointer + 4 * 4 * 22, 3 * 4 * 22, 22), 13, 4, 22, 0)
    assert np.array_equal(out.numpy(), rounded(x[:, 1].transpose(1, 0, 2))[0])
