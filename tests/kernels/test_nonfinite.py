"""NaN and infinity reach the outputs of every kernel: no quantization turns them into numbers, and rows without them are unchanged."""

import numpy as np
import pytest

from ivlite import _C, ops

FORMATS = {f["name"]: f for f in _C.formats()}
QUANTIZED = sorted(name for name, f in FORMATS.items() if f["quantized"])
BAD = [np.nan, np.inf, -np.inf]
TOKENS = [1, 4, 20, 64]  # one token, a tile, and the GEMM path of every set


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def linear(x, w, activation="none"):
    y = np.empty((len(x), w.rows), np.float32)
    _C.linear(y, x, w, None, False, activation)
    return y


def lost(y, bad):
    """Elements of y that are numbers, or for NaN anything but NaN."""
    return ~np.isnan(y) if np.isnan(bad) else np.isfinite(y)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("cols", [32, 100, 300])
def test_quantized_rows(isa, rng, cols, bad):
    x = normal(rng, 5, cols)
    clean = _C.testing.quantize_rows(x)
    for at in (0, cols // 2, cols - 1):
        y = x.copy()
        y[2, at] = bad
        q, scale, sums, halves, shift = _C.testing.quantize_rows(y)
        hit = np.zeros(scale.shape, bool)
        hit[2, at // 32] = True
        assert np.isnan(scale[hit]).all() and np.isnan(shift[hit]).all()
        assert (scale[~hit] == clean[1][~hit]).all() and (sums[~hit] == clean[2][~hit]).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("fmt", sorted(FORMATS))
def test_linear(isa, rng, fmt, tokens, bad):
    cols = 420
    w = ops.get("cpu").weight(fmt, ops.get("cpu").encode(fmt, normal(rng, 37, cols)), (37, cols))
    x = normal(rng, tokens, cols)
    clean = linear(x, w)
    for at in (0, 133, cols - 1):
        y = x.copy()
        y[tokens // 2, at] = bad
        got = linear(y, w)
        assert not lost(got[tokens // 2], bad).any()
        assert np.array_equal(np.delete(got, tokens // 2, 0), np.delete(clean, tokens // 2, 0))


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("fmt", QUANTIZED)
def test_weights_whose_scale_is_nan(isa, rng, fmt, tokens):
    cols, info = 512, FORMATS[fmt]
    data = _C.encode(fmt, normal(rng, 32 * cols)).reshape(32, cols // info["block"], info["block_bytes"])
    at = 208 if fmt == "q6_k" else 0
    x = normal(rng, tokens, cols)
    clean = linear(x, _C.Weight(fmt, data.reshape(-1), 1, 32, cols))
    for half in (0x7E00, 0xFE00, 0x7FFF, 0x7C00, 0xFC00):
        broken = data.copy()
        broken[19, -1, at : at + 2] = np.frombuffer(np.uint16(half).tobytes(), np.uint8)
        got = linear(x, _C.Weight(fmt, broken.reshape(-1), 1, 32, cols))
        assert not np.isfinite(got[:, 19]).any()
        assert np.array_equal(np.delete(got, 19, 1), np.delete(clean, 19, 1))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("up, down", [("q4_k", "q6_k"), ("q8_0", "q8_0"), ("bf16", "q4_0"), ("f32", "f32")])
def test_mlp(isa, rng, up, down, tokens, bad):
    def weight(fmt, *shape):
        return ops.get("cpu").weight(fmt, ops.get("cpu").encode(fmt, normal(rng, *shape)), shape)

    first, second, x = weight(up, 2 * 2304, 256), weight(down, 20, 2304), normal(rng, tokens, 256)
    x[tokens // 2, 77] = bad
    y = np.empty((tokens, 20), np.float32)
    _C.mlp(y, x, first, None, "silu_mul", second, None, False)
    assert not np.isfinite(y[tokens // 2]).any()
    assert np.isfinite(np.delete(y, tokens // 2, 0)).all()


@pytest.mark.parametrize("n", [1, 7, 33, 100])
def test_elementwise(isa, rng, n):
    x, one = normal(rng, 3, n), np.ones(n, np.float32)
    x[1, n // 2] = np.nan
    y = np.empty_like(x)
    for call in (
        lambda: _C.rms_norm(y, x, one, 1e-6),
        lambda: _C.layer_norm(y, x, one, one, 1e-6),
    ):
        call()
        assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
    for exact in (False, True):
        _C.testing.gelu(y, x, exact)
        assert np.array_equal(np.isnan(y), np.isnan(x))
    for swap in (False, True):
        pair = np.concatenate([normal(rng, 3, n), x][:: -1 if swap else 1], 1)
        _C.silu_mul(y, pair)
        assert np.array_equal(np.isnan(y), np.isnan(x))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("n", [1, 30, 150, 300])
def test_attention(isa, rng, n, bad, exact):
    """A query that is not finite concerns itself; a key or value, all queries. -inf may be a score that no softmax sees."""
    at, d = n * 2 // 3, 40

    def run(**broken):
        q, k, v = (normal(np.random.default_rng(i), n, 2, d) for i in range(3))
        for name, x in (("q", q), ("k", k), ("v", v)):
            if name in broken:
                x[at, 1, 5] = bad
        out = np.empty((n, 2, d), np.float32)
        _C.attention(out, q, k, v, d**-0.5, n, exact)
        return out

    clean = run()
    for name in "qkv":
        got = run(**{name: True})
        assert np.array_equal(got[:, 0], clean[:, 0])
        if name == "q":
            assert np.array_equal(np.delete(got, at, 0), np.delete(clean, at, 0))
        if np.isnan(bad):
            hit = got[at, 1] if name == "q" else got[:, 1]
            assert np.isnan(hit[..., 5] if name == "v" else hit).all()
        elif name == "v":
            assert not np.isfinite(got[:, 1, 5]).any()


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8", "q4"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["latent", "rope", "q_latent", "q_rope"])
@pytest.mark.parametrize("cached, at", [(1, 0), (40, 11), (300, 299), (1300, 600)])
def test_absorbed_attention(isa, rng, kind, bad, where, cached, at):
    rank, rope, heads = 200, 24, 5
    arrays = {
        "latent": normal(rng, cached, rank),
        "rope": normal(rng, cached, rope),
        "q_latent": normal(rng, 1, heads, rank),
        "q_rope": normal(rng, 1, heads, rope),
    }
    arrays[where].reshape(-1, arrays[where].shape[-1])[at if where in ("latent", "rope") else 2, 7] = bad
    cache = _C.LatentCache([rank], rope, cached + 1, kind)
    for rows in (slice(0, cached - 1), slice(cached - 1, cached)):  # the last as it was given, the others as stored
        if arrays["latent"][rows].size:
            cache.append(0, arrays["latent"][rows], arrays["rope"][rows])
        if rows.start == 0 and cached > 1:
            cache.advance(rows.stop)
    out = np.empty((1, heads, rank), np.float32)
    _C.absorbed_attention(out, arrays["q_latent"], arrays["q_rope"], cache, 0, 0.1)
    if where in ("latent", "rope") and np.isnan(bad):
        assert np.isnan(out[..., 7] if cached == 1 else out).all() or (cached == 1 and where == "rope")
    elif np.isnan(bad) and cached > 1:
        assert np.isnan(out[0, 2]).all() and np.isfinite(np.delete(out, 2, 1)).all()
    elif where == "latent":
        assert not np.isfinite(out[..., 7]).any()


@pytest.mark.parametrize("fmt", ["f32", "q8_0"])
@pytest.mark.parametrize("where", ["latent", "rope", "q_nope", "q_rope"])
@pytest.mark.parametrize("tokens", [1, 60])
def test_expanded_attention(isa, rng, fmt, where, tokens):
    """The last query sees all tokens: what is NaN in any of them, or in itself, is NaN in its output."""
    rank, rope, heads, nope, v, cached = 96, 16, 3, 24, 20, 90
    arrays = {
        "latent": normal(rng, cached, rank),
        "rope": normal(rng, cached, rope),
        "q_nope": normal(rng, tokens, heads, nope),
        "q_rope": normal(rng, tokens, heads, rope),
    }
    arrays[where][70 if where in ("latent", "rope") else -1, ..., 3] = np.nan
    cache = _C.LatentCache([rank], rope, cached, "q8")
    cache.append(0, arrays["latent"], arrays["rope"])
    cache.advance(cached)
    shape = (heads, nope + v, rank)
    kv_b = ops.get("cpu").weight(fmt, ops.get("cpu").encode(fmt, normal(rng, heads * (nope + v), rank)), shape)
    out = np.empty((tokens, heads, v), np.float32)
    _C.expanded_attention(out, arrays["q_nope"], arrays["q_rope"], cache, 0, kv_b, 0.1)
    assert np.isnan(out[-1]).all()
