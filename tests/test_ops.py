"""Compares the CPU backend with the torch reference backend."""

import importlib.util
from functools import partial

import numpy as np
import pytest

from ivlite import _C, ops

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the reference operations need torch")


@pytest.fixture(scope="module")
def backends():
    return ops.get("cpu"), ops.get("reference")


def both(backends, call):
    """call(o) with both backends, as numpy arrays."""
    return [o.numpy(call(o)) for o in backends]


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("fmt, limit", [("f32", 1e-5), ("f16", 1e-5), ("bf16", 1e-5), ("q8_0", 0.02), ("q4_0", 0.02)])
def test_linear(backends, rng, fmt, limit):
    x, m, b, y = normal(rng, 7, 70), normal(rng, 33, 70), normal(rng, 33), normal(rng, 7, 33)
    for bias, into in ((None, None), (b, None), (b, y)):

        def call(o, bias=bias, into=into):
            w = o.weight(fmt, o.encode(fmt, m), (33, 70))
            given = (None if a is None else o.array(a.copy()) for a in (bias, into))
            return o.linear(o.array(x), w, *given)

        got, expected = both(backends, call)
        assert np.abs(got - expected).max() < limit * expected.std()


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf", "silu_mul"])
def test_activations_of_a_product(backends, rng, activation):
    x, m, b = normal(rng, 7, 70), normal(rng, 34, 70), normal(rng, 34)

    def call(o):
        return o.linear(o.array(x), o.weight("f32", o.encode("f32", m), m.shape), o.array(b), activation=activation)

    got, expected = both(backends, call)
    assert np.allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_mlp(backends, rng):
    x, m, n, b, y = (
        normal(rng, 7, 70),
        normal(rng, 2100, 70),
        normal(rng, 33, 1050),
        normal(rng, 33),
        normal(rng, 7, 33),
    )
    for fmt, limit in (("f32", 1e-5), ("q8_0", 0.02)):

        def call(o, fmt=fmt):
            up, down = (o.weight(fmt, o.encode(fmt, w), w.shape) for w in (m, n))
            return o.mlp(o.array(x), (up, None), "silu_mul", (down, o.array(b)), o.array(y.copy()))

        got, expected = both(backends, call)  # the plain kernels, too, are 1.1 % away with 8-bit activations
        assert np.sqrt(((got - expected) ** 2).mean()) < limit * expected.std()


def test_linear_heads(backends, rng):
    x, m = normal(rng, 4, 3, 40), normal(rng, 3, 24, 40)
    got, expected = both(
        backends, lambda o: o.linear_heads(o.array(x), o.weight("f32", o.encode("f32", m.reshape(-1, 40)), m.shape))
    )
    assert np.allclose(got, expected, atol=1e-4)


def test_norms_rope_activations(backends, rng):
    x, w, b = normal(rng, 5, 24), normal(rng, 24), normal(rng, 24)
    angles = normal(rng, 5, 4)
    for call in (
        lambda o: o.rms_norm(o.array(x), o.array(w), 1e-6),
        lambda o: o.layer_norm(o.array(x), o.array(w), o.array(b), 1e-6),
        lambda o: o.rope(o.array(x).reshape(5, 3, 8), o.array(np.cos(angles)), o.array(np.sin(angles)), True),
        lambda o: o.rope(o.array(x).reshape(5, 3, 8), o.array(np.cos(angles)), o.array(np.sin(angles)), False),
        lambda o: o.silu_mul(o.array(x)),
        lambda o: o.concat([o.array(x), o.array(x)]),
    ):
        got, expected = both(backends, call)
        assert np.allclose(got, expected, atol=1e-5)


def test_patchify_and_attention(backends, rng):
    frames = rng.integers(0, 256, (2, 64, 96, 3), np.uint8)
    got, expected = both(backends, lambda o: o.patchify(frames, 16, 2, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1)))
    assert np.allclose(got, expected, atol=1e-5)
    q, k, v = normal(rng, 3, 30, 2, 12)
    got, expected = both(backends, lambda o: o.attention(o.array(q), o.array(k), o.array(v), 0.3, 15, True))
    assert np.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8", "q4"])
def test_latent_attention_in_two_turns(backends, rng, kind):
    heads, rank, rope, nope, v = 3, 40, 8, 12, 10
    kv_b = normal(rng, heads, nope + v, rank) / np.float32(rank**0.5)
    turns = [
        (
            normal(rng, n, rank),
            normal(rng, n, rope),
            normal(rng, n, heads, rank),
            normal(rng, n, heads, rope),
            normal(rng, n, heads, nope),
        )
        for n in (20, 3)
    ]

    def call(o):
        cache, out = o.cache([rank, rank], rope, 32, kind), []
        w = o.weight("f32", o.encode("f32", kv_b.reshape(-1, rank)), kv_b.shape)
        for latent, keys, ql, qr, qn in turns:
            for layer in (0, 1):
                cache.append(layer, o.array(latent * (layer + 1)), o.array(keys))
                out.append(o.absorbed_attention(o.array(ql), o.array(qr), cache, layer, 0.2).reshape(-1, rank))
                queries = partial(lambda q, a, b: [o.array(x[a:b]) for x in q], (qn, qr))
                out.append(o.expanded_attention(queries, len(qn), cache, layer, w, 0.2).reshape(-1, v))
            cache.advance(len(latent))
        assert cache.length == 23
        return out

    for got, expected in zip(*([o.numpy(x) for x in call(o)] for o in backends), strict=True):
        if kind in ("q8", "q4") and _C.isa() in ("avx512vnni", "amx"):  # integers on both sides: docs/numerics.md
            error, size = np.abs(got - expected), np.sqrt((expected**2).mean())
            assert error.mean() < 0.015 * size and error.max() < 0.1 * size
        else:
            assert np.allclose(got, expected, atol=0.05 if kind in ("q8", "q4") else 2e-4)


def test_unknown_sets_are_refused():
    with pytest.raises(ValueError, match="cuda9"):
        ops.get("cuda9")


def test_threads_are_those_asked_for():
    assert ops.get("cpu", 3).threads == 3
