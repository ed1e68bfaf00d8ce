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


@pytest.mark.parametrize("kind, values, keys", [("f32", 0, 0), ("bf16", 1e-3, 1e-3), ("q8", 5e-3, 1e-3)])
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
    reference = backends[1].cache([16, 16], 4, 8, kind)
    assert reference.nbytes == 4 * 8 * 2 * (16 + 4)


def test_threads_are_those_asked_for():
    assert ops.get("reference", 3).threads == 3
