"""The reference operations where torch is not installed: the tests of test_ops.py and test_golden.py over numpy's arithmetic."""

import numpy as np
import pytest
import test_golden
import torch_on_numpy
from test_golden import converted  # noqa: F401
from test_ops import (  # noqa: F401
    test_activations_of_a_product,
    test_latent_attention_in_two_turns,
    test_linear,
    test_linear_heads,
    test_mlp,
    test_norms_rope_activations,
    test_patchify_and_attention,
)

from ivlite import ops

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning"
)  # 0 / 0 of a row of zeros, which is not used


@pytest.fixture(scope="module", autouse=True)
def torch():
    with torch_on_numpy.installed():
        yield


@pytest.fixture(scope="module")
def backends(torch):
    return ops.get("cpu"), ops.get("reference")


@pytest.mark.parametrize("kv", ["f32", "bf16"])
@pytest.mark.parametrize("name", test_golden.NAMES)
@pytest.mark.parametrize("case", ["odd", "mixed"])
def test_logits(converted, name, case, kv):  # noqa: F811
    test_golden.test_logits(converted, name, case, "f32", kv, "reference")


@pytest.mark.parametrize("name", test_golden.NAMES)
def test_vision(converted, name):  # noqa: F811
    test_golden.test_vision(converted, name, "mixed", "reference")


@pytest.mark.parametrize("expand", [True, False])
def test_forms_agree(converted, monkeypatch, expand):  # noqa: F811
    test_golden.test_chunks_and_forms_agree(converted, monkeypatch, "plain", expand, 7, "reference")


def test_an_answer(converted):  # noqa: F811
    test_golden.test_greedy(converted, "plain", "text", "reference")


def test_logprobs_of_a_text(converted):  # noqa: F811
    test_golden.test_logprobs_of_a_text(converted, "reference")


@pytest.mark.parametrize(
    "kind, values, keys", [("f32", 0, 0), ("bf16", 1e-3, 1e-3), ("q8", 5e-3, 1e-3), ("q4", 0.2, 5e-3)]
)
def test_a_cache_stores_what_its_kind_says(backends, rng, kind, values, keys):
    latent, rope = rng.standard_normal((5, 16), np.float32), rng.standard_normal((5, 4), np.float32)
    latent[2] = 0
    for o in backends:
        cache = o.cache([16, 16], 4, 8, kind)
        assert (cache.length, cache.capacity) == (0, 8) and cache.nbytes > 0
        cache.append(1, o.array(latent[:3]), o.array(rope[:3]))
        cache.advance(3)
        cache.append(1, o.array(latent[3:]), o.array(rope[3:]))
        cache.advance(2)
        got = cache.read(1, 0, 5)
        for found, expected, limit in ((got[0], latent, values), (got[1], rope, keys)):
            assert np.abs(found - expected).max() <= limit * np.abs(expected).max()
            assert (np.abs(found - expected).max() > 0) == (limit > 0)
        assert (got[0][2] == 0).all() and [len(x) for x in cache.read(1, 1, 4)] == [3, 3]
        cache.truncate(2)
        assert cache.length == 2
    assert len({o.cache([16, 16], 4, 8, kind).nbytes for o in backends}) == 1


@pytest.mark.parametrize("kind", ops.CACHE_KINDS)
def test_both_backends_store_the_same_bytes(backends, rng, kind):
    """What one wrote the other restores, and reads alike."""
    latent, rope = rng.standard_normal((2, 6, 33), np.float32), rng.standard_normal((6, 18), np.float32)
    latent[0, 2] = 0
    caches = [o.cache([33, 33], 18, 6, kind) for o in backends]
    for o, cache in zip(backends, caches, strict=True):
        for layer in (0, 1):
            cache.append(layer, o.array(latent[layer]), o.array(rope))
        cache.advance(6)
    for got, other in (caches, caches[::-1]):
        data = got.dump(1, 6)
        assert data.dtype == np.uint8 and data.size == 5 * got.token_bytes and got.kind == kind
        assert np.array_equal(data, other.dump(1, 6))
        other.truncate(0)
        other.restore(0, data)
        other.reserve(40)
        assert (other.length, other.capacity, other.nbytes) == (5, 40, 40 * other.token_bytes)
        for layer in (0, 1):
            assert all(
                np.array_equal(a, b) for a, b in zip(other.read(layer, 0, 5), got.read(layer, 1, 6), strict=True)
            )
        for first, wrong, word in ((4, data, "begin"), (5, data[1:], "whole"), (5, np.tile(data, 8), "full")):
            with pytest.raises(ValueError, match=word):
                other.restore(first, wrong)
        with pytest.raises(ValueError, match="rows"):
            other.dump(3, 6)
        other.restore(5, got.dump(0, 0))
        other.truncate(0)
        other.restore(0, got.dump(0, 1))
        other.restore(1, data)


def test_threads_are_those_asked_for():
    assert ops.get("reference", 3).threads == 3
