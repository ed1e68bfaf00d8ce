"""Few tokens in one call: each gets the bits of a call of its own, however a text is cut."""

import functools

import numpy as np
import pytest

from ivlite import _C
from ivlite.evaluate.synthetic import fill, random_model
from ivlite.ops import CACHE_KINDS

TOKENS = 16


@pytest.fixture(scope="module")
def network_of():
    """network_of(type) makes a network once."""
    return functools.cache(varied)


def varied(type):
    """A network whose biases and norms are not trivial, on two threads."""
    network = random_model("tiny", type, threads=2, context=4096).network
    rng = np.random.default_rng(3)
    for layer in network.layers:
        for vector in (layer.attn_norm, layer.ffn_norm, layer.q.bias, layer.kv_a.bias):
            vector += rng.standard_normal(len(vector), dtype=np.float32) / 4
    return network


def run(network, kind, depth, cuts):
    """Logits of TOKENS tokens after `depth` rows, in calls of `cuts` tokens, and the rows of the last layer that they appended."""
    rng = np.random.default_rng(depth)
    cache = network.cache(depth + TOKENS, kind)
    fill(cache, network.config, depth, rng)
    x = rng.standard_normal((TOKENS, network.config.text.hidden_size), dtype=np.float32)
    logits, at = [], 0
    for n in cuts:
        positions = np.tile(np.arange(depth + at, depth + at + n), (3, 1))
        logits.append(network.logits(network.forward(x[at : at + n].copy(), positions, cache)))
        at += n
    assert at == TOKENS and all(layer.expand_from > TOKENS for layer in network.layers)
    return np.concatenate(logits), *cache.read(network.config.text.num_layers - 1, depth, depth + TOKENS)


def check(network, kind, depth, all_cuts):
    expected = run(network, kind, depth, [1] * TOKENS)
    assert np.isfinite(expected[0]).all() and len(np.unique(expected[0])) > 1000
    for cuts in all_cuts:
        for got, one in zip(run(network, kind, depth, cuts), expected, strict=True):
            assert np.array_equal(got, one), cuts


@pytest.mark.parametrize("type", ["f32", "bf16", "f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"])
def test_rows_of_every_format(isa, network_of, type):
    network = network_of(type)
    most = min(network.ops.same_rows, TOKENS)
    sizes = (2, most) if isa == "ref" else range(2, most + 1)
    check(network, "q8", 30, ([n] * (TOKENS // n) + [TOKENS % n] * (TOKENS % n > 0) for n in sizes))


@pytest.mark.parametrize("kind", CACHE_KINDS)
@pytest.mark.parametrize("depth", [0, 500, 1015, 2600])
def test_rows_of_every_cache(isa, network_of, kind, depth):
    """depth: from one part of absorbed attention to several, and across the border between them."""
    if isa == "ref" and depth > 1000:
        pytest.skip("takes long; the parts are those of every set")
    network = network_of("q4_k_m")
    most = min(network.ops.same_rows, 8)
    check(network, kind, depth, ([most] * (TOKENS // most) + [TOKENS % most] * (TOKENS % most > 0), [1, 2, 3, 4, 1, 5]))


def test_the_number_of_tokens_that_are_few(isa, network_of):
    assert 5 <= network_of("q4_k_m").ops.same_rows == _C.few_tokens()
    if isa == "amx":
        assert _C.few_tokens() == 15


@pytest.mark.parametrize("dim, theta", [(32, 1e3), (128, 5e6)])
def test_rotary_angles_do_not_depend_on_the_cut(dim, theta):
    from ivlite.prompt.positions import rotary

    positions = np.random.default_rng(0).integers(0, 262144, (2048, dim // 2))
    alone = [rotary(row[None], dim, theta) for row in positions]
    for n in (2, 3, 7, 16):
        for at in range(0, 2048 - n, n):
            for many, one in zip(
                rotary(positions[at : at + n], dim, theta), zip(*alone[at : at + n], strict=True), strict=True
            ):
                assert np.array_equal(many, np.concatenate(one))
