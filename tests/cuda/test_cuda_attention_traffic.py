"""Attention under the checked build: no race, nothing outside of memory, nothing read unwritten, no banks in the way of each other."""

import numpy as np
import pytest
from latent_layer import Layer
from test_cuda_attention import Heads, causal_view, near
from test_cuda_latent import absorbed, filled, formula, normal
from test_cuda_latent import near as near_latent

from ivlite import ops


def of_kernel(found, kernel, memory):
    """(what accesses cost, what they need at least) of a kernel's shared or global memory."""
    rows = [x for x in found if x["kernel"].startswith(kernel) and x["memory"] == memory]
    assert rows, f"{kernel} has no accesses to {memory} memory"
    return sum(x["parts"] for x in rows), sum(x["needed"] for x in rows)


@pytest.mark.parametrize("kind", ops.CACHE_KINDS)
def test_absorbed(checked, rng, kind):
    cache, latent, keys = filled(checked, rng, kind, 256, 128, 70, 2)
    ql, qr = normal(rng, 2, 16, 256), normal(rng, 2, 16, 128)
    with checked.traffic() as found:
        got = absorbed(cache, ql, qr, 0.05, 2)
    assert near_latent(got, formula(cache, ql, qr, latent, keys, 0.05), kind)
    assert checked.unwritten() == (0, "")
    cost, needed = of_kernel(found, "plain_kernel" if kind == "f32" else "absorbed_kernel", "shared")
    assert cost < 1.05 * needed
    cost, needed = of_kernel(found, "merge_kernel", "global")
    assert cost == needed


def test_absorbed_q8_of_32_heads(checked, rng):
    """The block of an A100 or H100."""
    cache, latent, keys = filled(checked, rng, "q8", 896, 128, 40, 1)
    ql, qr = normal(rng, 1, 32, 896), normal(rng, 1, 32, 128)
    checked.emulator.set_shared_limit(163 << 10)
    try:
        with checked.traffic() as found:
            got = absorbed(cache, ql, qr, 0.05, 2)
    finally:
        checked.emulator.set_shared_limit(99 << 10)
    assert near_latent(got, formula(cache, ql, qr, latent, keys, 0.05), "q8")
    assert checked.unwritten() == (0, "")
    assert {x["kernel"] for x in found} >= {"absorbed_kernel<kind, M>"}
    cost, needed = of_kernel(found, "absorbed_kernel", "shared")
    assert cost < 1.05 * needed


@pytest.mark.parametrize("kind", ops.CACHE_KINDS)
@pytest.mark.parametrize("rank, rope, heads", [(56, 24, 5), (33, 18, 3)])
def test_absorbed_odd_shapes(checked, rng, kind, rank, rope, heads):
    cache, latent, keys = filled(checked, rng, kind, rank, rope, 37, 1)
    ql, qr = normal(rng, 1, heads, rank), normal(rng, 1, heads, rope)
    got = absorbed(cache, ql, qr, 0.2, 3)
    assert near_latent(got, formula(cache, ql, qr, latent, keys, 0.2), kind)
    assert checked.unwritten() == (0, "")


@pytest.mark.parametrize("precision", ["f16", "f32"])
@pytest.mark.parametrize("sizes", [(128, 128, 128), (72, 0, 72), (20, 12, 33)])
def test_attention(checked, rng, precision, sizes):
    x = Heads(rng, 1, *sizes, 70, 100)
    with checked.traffic() as found:
        got = x.run(checked, precision, causal=True)
    assert near(got, x.formula(causal_view(70, 100)), precision)
    assert checked.unwritten() == (0, "")
    if precision == "f16":
        cost, needed = of_kernel(found, "attention_kernel", "shared")
        assert cost < 1.05 * needed


@pytest.mark.parametrize("kind", ops.CACHE_KINDS)
def test_cache(checked, rng, kind):
    cache = Layer(checked, kind, 200, 34, 6)
    angles = rng.uniform(-3, 3, (2, 3, 17)).astype(np.float32)
    turn = tuple(checked.array(f(a)).pointer for f, a in zip((np.cos, np.sin), angles, strict=True))
    norm = checked.array(normal(rng, 200)).pointer
    for _ in range(2):
        cache.append(normal(rng, 3, 200), normal(rng, 3, 34), norm, 1e-5, turn, True)
        cache.advance()
    assert all(np.isfinite(x).all() for x in cache.read(0, 6))
    assert checked.unwritten() == (0, "")
