"""Absorbed attention on the device against the formula in float64, over what the cache stores."""

import numpy as np
import pytest
from latent_layer import Layer

from ivlite import ops

KINDS = ops.CACHE_KINDS
# How far tensor cores may lead, relative to the root mean square: in the mean, and at most. Queries have 15 bits or those of a half,
# weights those of a half.
MEAN, MOST = 5e-4, 5e-3
BAD = [np.nan, np.inf, -np.inf]


def normal(rng, *shape, scale=1):
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def near(got, expected, kind):
    if kind == "f32":
        return np.allclose(got, expected, rtol=1e-4, atol=3e-5)
    size, off = np.sqrt((expected**2).mean()), got - expected
    return np.sqrt((off**2).mean()) < MEAN * size and np.abs(off).max() < MOST * size


def filled(device, rng, kind, rank, rope, length, newest, scale=1):
    """A layer of `length` tokens, of which the newest are appended and not advanced over, and its rows as they were given."""
    cache = Layer(device, kind, rank, rope, length + 3)
    latent, keys = normal(rng, length, rank, scale=scale), normal(rng, length, rope)
    latent *= rng.uniform(0.2, 2, (length, 1)).astype(np.float32)
    if length > newest:
        cache.append(latent[: length - newest], keys[: length - newest])
        cache.advance()
    cache.append(latent[length - newest :], keys[length - newest :])
    return cache, latent, keys


def absorbed(cache, ql, qr, scale, splits, room=1 << 30, codes=None):
    """codes: a Buffer that is written in place of what is returned."""
    device, (tokens, heads, rank) = cache.device, ql.shape
    floats = min(device.cuda.absorbed_query_floats(heads, rank, splits) * tokens, room)
    out, workspace, *queries = device.empty(ql.shape), device.empty(floats), device.array(ql), device.array(qr)
    device.cuda.absorbed_attention(
        out.pointer, 0 if codes is None else codes.pointer, *(q.pointer for q in queries), cache.rows, cache.given, cache.length, cache.pending,
        tokens, heads, splits, scale, workspace.pointer, floats, 0,
    )  # fmt: skip
    return out.numpy()


def formula(cache, ql, qr, latent, keys, scale):
    """Query by query: rows before its own as stored, its own as it was given."""
    length, tokens = len(latent), len(ql)
    stored = [x.astype(np.float64) for x in cache.read(0, length)]
    out = np.empty(ql.shape)
    for t in range(tokens):
        own = length - tokens + t
        mine = (latent, keys) if cache.pending else stored
        c, k = (np.concatenate([x[:own], y[own : own + 1]]) for x, y in zip(stored, mine, strict=True))
        scores = ql[t].astype(np.float64) @ c.T + qr[t].astype(np.float64) @ k.T
        out[t] = softmax(scores * scale) @ c
    return out


LENGTHS = [
    (1, 1),
    (2, 1),
    (9, 3),
    (15, 1),
    (16, 1),
    (17, 1),
    (18, 18),
    (32, 1),
    (33, 1),
    (34, 2),
    (64, 1),
    (65, 5),
    (200, 1),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length, newest", LENGTHS)
def test_lengths(device, rng, kind, length, newest):
    heads, rank, rope = 5, 56, 24
    cache, latent, keys = filled(device, rng, kind, rank, rope, length, newest)
    ql, qr = normal(rng, newest, heads, rank), normal(rng, newest, heads, rope)
    expected = formula(cache, ql, qr, latent, keys, 0.2)
    for splits in (1, 2, 7):
        assert near(absorbed(cache, ql, qr, 0.2, splits), expected, kind)


SHAPES = [
    (1, 1, 2),
    (3, 17, 6),
    (4, 33, 14),
    (7, 64, 32),
    (16, 200, 40),
    (17, 128, 64),
    (32, 384, 128),
    (33, 130, 18),
    (2, 900, 16),
    (3, 48, 132),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads, rank, rope", SHAPES)
def test_shapes(device, rng, kind, heads, rank, rope):
    cache, latent, keys = filled(device, rng, kind, rank, rope, 41, 2)
    ql, qr = normal(rng, 2, heads, rank), normal(rng, 2, heads, rope)
    assert near(absorbed(cache, ql, qr, 0.1, 2), formula(cache, ql, qr, latent, keys, 0.1), kind)


@pytest.mark.parametrize("shared", [99, 227])
@pytest.mark.parametrize("kind", ["f16", "q8", "q4"])
def test_shape_of_the_8b_model(device, rng, kind, shared):
    """All 32 heads in a block where its shared memory holds them: with q8 on an A100 or H100 alone."""
    if hasattr(device.module, "emulator"):
        device.module.emulator.set_shared_limit(shared << 10)
    elif shared == 99:
        pytest.skip("a card has what it has")
    try:
        the_8b_model(device, rng, kind)
    finally:
        if hasattr(device.module, "emulator"):
            device.module.emulator.set_shared_limit(99 << 10)


def the_8b_model(device, rng, kind):
    cache, latent, keys = filled(device, rng, kind, 896, 128, 75, 1)
    ql, qr = normal(rng, 1, 32, 896), normal(rng, 1, 32, 128)
    assert near(absorbed(cache, ql, qr, 0.06, 2), formula(cache, ql, qr, latent, keys, 0.06), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_after_advance(device, rng, kind):
    """A query whose row is no longer pending sees it as it is stored."""
    cache, latent, keys = filled(device, rng, kind, 40, 16, 50, 3)
    cache.advance()
    ql, qr = normal(rng, 3, 4, 40), normal(rng, 3, 4, 16)
    assert near(absorbed(cache, ql, qr, 0.2, 3), formula(cache, ql, qr, latent, keys, 0.2), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_together_get_the_bits_of_each_alone(device, rng, kind):
    heads, rank, rope, length, newest = 5, 72, 16, 90, 4
    cache, latent, keys = filled(device, rng, kind, rank, rope, length, newest)
    ql, qr = normal(rng, newest, heads, rank), normal(rng, newest, heads, rope)
    together = absorbed(cache, ql, qr, 0.2, 3)
    one = device.cuda.absorbed_query_floats(heads, rank, 3)
    assert np.array_equal(absorbed(cache, ql, qr, 0.2, 3, one), together)  # in launches of one query each
    alone = Layer(device, kind, rank, rope, length)
    alone.append(latent[: length - newest], keys[: length - newest])
    alone.advance()
    for t in range(newest):
        row = slice(length - newest + t, length - newest + t + 1)
        alone.append(latent[row], keys[row])
        assert np.array_equal(absorbed(alone, ql[t : t + 1], qr[t : t + 1], 0.2, 3)[0], together[t])
        alone.advance()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_scales_of_any_size(device, rng, kind):
    """Latents whose sizes lie far apart, queries beyond what a half can hold, rows of zeros, one score that takes all."""
    cache = Layer(device, kind, 64, 16, 80)
    latent, keys = normal(rng, 79, 64), normal(rng, 79, 16)
    latent[::3] *= np.float32(1e-4)
    latent[5] = latent[40] = 0
    cache.append(latent[:78], keys[:78])
    cache.advance()
    cache.append(latent[78:], keys[78:])
    ql, qr = normal(rng, 1, 3, 64, scale=3e5), normal(rng, 1, 3, 16, scale=1e5)
    ql[:, 1], qr[:, 1] = 1e-30, 0
    ql[:, 2] *= np.float32(1e-38)
    expected = formula(cache, ql, qr, latent, keys, 1e-5)
    assert near(absorbed(cache, ql, qr, 1e-5, 2), expected, kind)
    ql, qr = normal(rng, 1, 3, 64, scale=30), normal(rng, 1, 3, 16, scale=30)
    assert near(absorbed(cache, ql, qr, 1.0, 2), formula(cache, ql, qr, latent, keys, 1.0), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharp", [0.02, 0.15])
def test_a_long_tail_keeps_its_mass(device, rng, kind, sharp):
    """One token that outweighs each of a thousand others, which together outweigh it."""
    heads, rank, length = 2, 64, 1000
    cache = Layer(device, kind, rank, 2, length)
    latent = normal(rng, length, rank) + np.float32(1)
    latent[77] *= 6
    cache.append(latent, np.zeros((length, 2), np.float32))
    cache.advance()
    q = np.full((1, heads, rank), sharp, np.float32)
    zeros = np.zeros((1, heads, 2), np.float32)
    got = absorbed(cache, q, zeros, 1 / rank**0.5, 4)
    assert near(got, formula(cache, q, zeros, latent, np.zeros((length, 2)), 1 / rank**0.5), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["latent", "rope", "q_latent", "q_rope"])
@pytest.mark.parametrize("cached, at", [(1, 0), (40, 11), (100, 99), (130, 60)])
def test_what_is_not_finite(device, rng, kind, bad, where, cached, at):
    rank, rope, heads = 200, 24, 5
    arrays = {
        "latent": normal(rng, cached, rank),
        "rope": normal(rng, cached, rope),
        "q_latent": normal(rng, 1, heads, rank),
        "q_rope": normal(rng, 1, heads, rope),
    }
    arrays[where].reshape(-1, arrays[where].shape[-1])[at if where in ("latent", "rope") else 2, 7] = bad
    cache = Layer(device, kind, rank, rope, cached + 1)
    if cached > 1:
        cache.append(arrays["latent"][:-1], arrays["rope"][:-1])
        cache.advance()
    cache.append(arrays["latent"][-1:], arrays["rope"][-1:])
    out = absorbed(cache, arrays["q_latent"], arrays["q_rope"], 0.1, 2)
    if where in ("latent", "rope") and np.isnan(bad):
        assert np.isnan(out[..., 7] if cached == 1 else out).all() or (cached == 1 and where == "rope")
    elif np.isnan(bad) and cached > 1:
        assert np.isnan(out[0, 2]).all() and np.isfinite(np.delete(out, 2, 1)).all()
    elif where == "latent":
        assert not np.isfinite(out[..., 7]).any()
    elif where in ("q_latent", "q_rope"):
        assert np.isfinite(np.delete(out, 2, 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_later_rows_hold_does_not_matter(device, rng, kind):
    """Rows behind a query's own, NaN among them, and rows behind the length."""
    cache, latent, keys = filled(device, rng, kind, 56, 16, 40, 4)
    ql, qr = normal(rng, 4, 3, 56), normal(rng, 4, 3, 16)
    clean = absorbed(cache, ql, qr, 0.2, 2)
    latent[38] = np.nan
    cache.append(latent[36:], keys[36:])
    got = absorbed(cache, ql, qr, 0.2, 2)
    assert np.array_equal(got[:2], clean[:2]) and np.isnan(got[2:]).all()
