"""A decoder layer as one operation, against its operations one by one."""

import numpy as np
import pytest

from ivlite import _C
from ivlite.evaluate.synthetic import fill, random_model


def model(type):
    """Four layers whose biases and norms are not trivial, as one operation each and apart."""
    network = random_model("tiny", type, context=4096).network
    rng = np.random.default_rng(3)
    for layer in network.layers:
        for vector in (layer.attn_norm, layer.ffn_norm, layer.q.bias, layer.kv_a.bias):
            vector += rng.standard_normal(len(vector), dtype=np.float32) / 4
    return network


@pytest.fixture(scope="module", params=["f32", "q8_0", "q4_k_m"])
def network(request):
    return model(request.param)


def run(network, kind, depth, tokens, absorbed):
    """The hidden states of new tokens after a synthetic cache of `depth` tokens, and the rows they appended."""
    rng = np.random.default_rng(depth + tokens)
    config = network.config
    cache = network.cache(depth + 2 * tokens, kind)
    fill(cache, config, depth, rng)
    kept = [layer.fused for layer in network.layers]
    try:
        for layer in network.layers:
            layer.fused = layer.fused if absorbed else None
        for step in range(2):  # the second sees rows of the first as they were stored
            x = rng.standard_normal((tokens, config.text.hidden_size), dtype=np.float32)
            at = depth + step * tokens
            x = network.forward(x, np.tile(np.arange(at, at + tokens), (3, 1)), cache)
    finally:
        for layer, one in zip(network.layers, kept, strict=True):
            layer.fused = one
    return x, *cache.read(3, depth, depth + 2 * tokens)


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8", "q4"])
@pytest.mark.parametrize("depth, tokens", [(0, 1), (0, 5), (30, 1), (1020, 1), (1500, 1), (40, 33)])
def test_one_operation_gives_the_same_bits(isa, network, kind, depth, tokens):
    assert all(layer.fused and tokens < layer.expand_from for layer in network.layers)
    for one, apart in zip(*(run(network, kind, depth, tokens, absorbed) for absorbed in (True, False)), strict=True):
        assert np.array_equal(one, apart)


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_threads_do_not_change_it(network, threads):
    expected = run(network, "q8", 50, 1, True)
    before = _C.num_threads()
    _C.set_num_threads(threads)
    try:
        got = run(network, "q8", 50, 1, True)
    finally:
        _C.set_num_threads(before)
    for a, b in zip(got, expected, strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5)  # splits of a cache follow the threads


def test_shapes_are_checked(network):
    layer, hidden = network.layers[0], network.config.text.hidden_size
    cache = network.cache(8, "f32")
    cos = np.ones((2, network.config.text.qk_rope_head_dim // 2), np.float32)
    x = np.ones((2, hidden), np.float32)
    for wrong in (x[:, :-1], x[:1], x.astype(np.float64)):
        with pytest.raises((ValueError, TypeError)):
            layer.fused(wrong, cos, cos, cache, 0)
    with pytest.raises(ValueError, match="no such layer"):
        layer.fused(x, cos, cos, cache, 4)
    with pytest.raises(ValueError, match="full"):
        layer.fused(np.ones((9, hidden), np.float32), *2 * [np.ones((9, cos.shape[1]), np.float32)], cache, 0)


def test_a_layer_of_another_shape_is_refused(network):
    layer = network.layers[0]
    pairs = {name: (part.weight, part.bias) for name, part in (("q", layer.q), ("kv_a", layer.kv_a), ("o", layer.o))}
    operands = dict(
        attn_norm=layer.attn_norm, latent_norm=None, ffn_norm=layer.ffn_norm, uk_t=layer.uk_t, uv=layer.uv, **pairs,
        up=(layer.mlp.up.weight, None), down=(layer.mlp.down.weight, None), interleaved=True, eps=1e-6, scale=0.1,
    )  # fmt: skip
    text = network.config.text
    cos = np.ones((1, text.qk_rope_head_dim // 2), np.float32)

    def run(**other):
        cache = network.cache(8, "f32")
        _C.DecoderLayer(**operands | other).run(
            np.ones((1, text.hidden_size), np.float32), cos, cos, [cache.rows], [1], 0
        )

    run()
    for other in (
        {"q": pairs["kv_a"]}, {"kv_a": pairs["q"]}, {"o": pairs["q"]}, {"uk_t": layer.uv}, {"uv": layer.mlp.up.weight},
        {"up": pairs["q"]}, {"attn_norm": np.ones(3, np.float32)}, {"attn_norm": None}, {"ffn_norm": None},
        {"latent_norm": np.ones(3, np.float32)}, {"q": (layer.q.weight, np.ones(3, np.float32))},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            run(**other)
