"""The latent cache on the device: the bytes of the CPU's cache, and rows read back."""

import numpy as np
import pytest
from latent_layer import Layer

from ivlite import _C, ops

KINDS = ops.CACHE_KINDS
SHAPES = [(1, 2), (7, 4), (16, 8), (33, 18), (96, 32), (130, 34), (200, 64), (896, 128), (1000, 130)]


def normal(rng, *shape, scale=1):
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def on_cpu(kind, latent, keys):
    cache = _C.LatentCache([latent.shape[1]], keys.shape[1], len(latent), kind)
    cache.append(0, latent, keys)
    cache.advance(len(latent))
    return cache


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank, rope", SHAPES)
def test_bytes_are_those_of_the_cpu(plainly, device, rng, kind, rank, rope):
    latent, keys = normal(rng, 9, rank), normal(rng, 9, rope)
    latent[2] = 0
    latent[3] *= np.float32(1e-35)
    latent[4, ::3] *= 300
    keys[5] = 0
    cache = Layer(device, kind, rank, rope, 9)
    for rows in (slice(0, 4), slice(4, 5), slice(5, 9)):
        given = cache.append(latent[rows], keys[rows])
        for buffer, x in zip(given, (latent[rows], keys[rows]), strict=True):
            assert np.array_equal(buffer.numpy(), x)
        cache.advance()
    cpu = plainly(on_cpu, kind, latent, keys)
    assert np.array_equal(cache.stored(9), cpu.dump(0, 9))
    got = cache.read(2, 7)
    expected = plainly(cpu.read, 0, 2, 9)
    assert np.array_equal(got[0], expected[0]) and np.array_equal(got[1], expected[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["latent", "key"])
def test_what_is_not_finite(plainly, device, rng, kind, bad, where):
    latent, keys = normal(rng, 3, 130), normal(rng, 3, 40)
    (latent if where == "latent" else keys)[1, 37] = bad
    cache = Layer(device, kind, 130, 40, 3)
    cache.append(latent, keys)
    cache.advance()
    cpu = plainly(on_cpu, kind, latent, keys)
    for got, expected in zip(cache.read(0, 3), plainly(cpu.read, 0, 0, 3), strict=True):
        assert np.array_equal(got, expected, equal_nan=True)
    if kind in ("f32", "f16"):
        assert np.array_equal(cache.stored(3), cpu.dump(0, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rank, rope", [(33, 18), (896, 128)])
def test_norm_rotation_and_append_in_one(plainly, device, rng, kind, rank, rope, interleaved, normed):
    latent, keys, weight = normal(rng, 3, rank, scale=2), normal(rng, 3, rope), normal(rng, rank)
    angles = rng.uniform(-3, 3, (3, rope // 2)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    cache = Layer(device, kind, rank, rope, 4)
    norm, *rotation = (device.array(x).pointer for x in (weight, cos, sin))
    given = cache.append(latent, keys, norm if normed else 0, 1e-5, tuple(rotation), interleaved)
    cache.advance()
    got = [buffer.numpy() for buffer in given]
    first, second = (keys[:, ::2], keys[:, 1::2]) if interleaved else (keys[:, : rope // 2], keys[:, rope // 2 :])
    rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)
    scale = weight / np.sqrt((latent.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) if normed else 1
    assert np.allclose(got[0], latent * scale, rtol=2e-5, atol=1e-6) and np.allclose(
        got[1], rotated, rtol=1e-5, atol=1e-6
    )
    assert np.array_equal(cache.stored(3), plainly(on_cpu, kind, *got).dump(0, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_beyond_the_capacity_are_left_out(device, rng, kind):
    cache = Layer(device, kind, 40, 8, 3)
    cache.append(normal(rng, 2, 40), normal(rng, 2, 8))
    cache.advance()
    before = cache.stored(2)
    cache.append(normal(rng, 2, 40), normal(rng, 2, 8))
    assert np.array_equal(cache.stored(2), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operand", ["f32", "bf16", "f16"])
def test_rows_that_were_just_given_are_read_as_given(device, rng, kind, operand):
    latent, keys = normal(rng, 6, 50), normal(rng, 6, 10)
    cache = Layer(device, kind, 50, 10, 6)
    cache.append(latent[:4], keys[:4])
    cache.advance()
    cache.append(latent[4:], keys[4:])
    stored = cache.read(0, 6)
    for x, seen, new in zip(cache.read(1, 5, operand, cache.given, 4), stored, (latent, keys), strict=True):
        expected = np.concatenate([seen[1:4], new[4:]])
        if operand == "f16":
            expected = expected.astype(np.float16).view(np.uint16)
        if operand == "bf16":
            bits = expected.view(np.uint32)
            expected = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        assert np.array_equal(x, expected)
