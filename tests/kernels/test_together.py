"""Few tokens of several caches in one pass: each gets the bits of a call of its own."""

import functools

import numpy as np
import pytest

from ivlite import _C
from ivlite.errors import Stopped
from ivlite.evaluate.synthetic import fill, random_model
from ivlite.ops import CACHE_KINDS
from ivlite.stop import Stop, using

DEPTHS = (0, 1, 700, 1020, 1600, 33)  # beside one another: short caches, one that becomes long, one in several parts


@pytest.fixture(scope="module")
def network_of():
    """network_of(type) makes a network on two threads once."""
    return functools.cache(lambda type: random_model("tiny", type, threads=2, context=4096).network)


class Text:
    """A made-up text that goes on token by token over a cache of its own."""

    def __init__(self, network, kind, depth, seed):
        self.network, self.at = network, depth
        self.rng = np.random.default_rng(seed)
        self.cache = network.cache(depth + 64, kind)
        fill(self.cache, network.config, depth, self.rng)

    def part(self, count):
        ids = self.rng.integers(0, self.network.config.text.vocab_size, count).tolist()
        positions = np.tile(np.arange(self.at, self.at + count), (3, 1))
        self.at += count
        return ids, positions, self.cache

    def rows(self):
        last = self.network.config.text.num_layers - 1
        return self.cache.read(last, self.cache.length - 1, self.cache.length)


def texts(network, kind, depths=DEPTHS):
    return [Text(network, kind, depth, seed) for seed, depth in enumerate(depths)]


def counts(network, rng, number):
    """For each of some texts, the tokens that it adds: one or a few, `same_rows` in all at most."""
    most = min(network.same_rows, 3 * number)
    out = np.ones(number, int)
    for i in rng.integers(0, number, rng.integers(0, max(1, most - number + 1))):
        out[i] += 1
    return out


def check(network, kind, steps, depths=DEPTHS):
    rng = np.random.default_rng(len(kind) + steps)
    many, alone = texts(network, kind, depths), texts(network, kind, depths)
    for step in range(steps):
        there = [i for i in range(len(many)) if i != 1 or step < 2]  # one stops in the middle
        order = rng.permutation(there)[: network.same_rows]
        number = counts(network, rng, len(order))
        got = network.steps([many[i].part(n) for i, n in zip(order, number, strict=True)])
        for i, n, logits in zip(order, number, got, strict=True):
            expected = network.step(*alone[i].part(n))
            assert np.isfinite(expected).all() and np.array_equal(logits, expected), (step, i, n)
            assert many[i].cache.length == alone[i].cache.length
            for a, b in zip(many[i].rows(), alone[i].rows(), strict=True):
                assert np.array_equal(a, b)


@pytest.mark.parametrize("type", ["f32", "bf16", "f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"])
def test_every_format(isa, network_of, type):
    check(network_of(type), "q8", 3, (5, 90, 0, 31) if isa == "ref" else DEPTHS)


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_every_cache(isa, network_of, kind):
    check(network_of("q4_k_m"), kind, 2 if isa == "ref" else 5, (5, 90, 0, 31) if isa == "ref" else DEPTHS)


def test_layers_whose_operations_are_apart(network_of):
    """As where gate and up differ in format, or a hook looks on."""
    network = network_of("q4_k_m")
    fused = [layer.fused for layer in network.layers]
    try:
        for layer in network.layers[1::2]:
            layer.fused = None
        check(network, "q8", 3)
    finally:
        for layer, one in zip(network.layers, fused, strict=True):
            layer.fused = one


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_every_number_of_threads(threads):
    check(random_model("tiny", "q8_0", threads=threads, context=4096).network, "q8", 3)


def test_backends_without_it_take_turns():
    network = random_model("tiny", "q8_0", threads=1, context=512).network
    network.ops.together = False
    check(network, "q8", 2, (5, 90, 0))


def test_a_stop_leaves_what_there_was(network_of):
    network = network_of("q4_k_m")
    many = texts(network, "q8", (5, 300))
    stop = Stop()
    stop.set()
    with using(stop), pytest.raises(Stopped):
        network.steps([text.part(2) for text in many])
    for text, depth in zip(many, (5, 300), strict=True):
        text.cache.truncate(depth)
    again = texts(network, "q8", (5, 300))
    for text in again:
        text.part(2)
    got = network.steps([text.part(1) for text in many])
    for text, logits in zip(again, got, strict=True):
        assert np.array_equal(logits, network.step(*text.part(1)))


def test_parts_are_checked(network_of):
    network = network_of("q4_k_m")
    layer, hidden = network.layers[0].fused.layer, network.config.text.hidden_size
    cos = np.ones((3, network.config.text.qk_rope_head_dim // 2), np.float32)
    one, two = (network.cache(8, "q8").rows for _ in range(2))
    x = np.ones((3, hidden), np.float32)
    for caches, rows, words in (
        ([one, two], [1, 1], "rows of all parts"), ([one, two], [3], "number of caches"), ([one, one], [1, 2], "comes twice"),
        ([one, two], [3, 0], "one row at least"), ([one, two], [4, -1], "one row at least"), ([], [], "rows of all parts"),
        ([one, None], [1, 2], "one row at least"), ([one, two], [2**62, 2**62], "too many|rows of all parts"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            layer.run(x.copy(), cos, cos, caches, rows, 0)
    small = _C.LatentCache([32], 8, 8, "q8")
    with pytest.raises(ValueError):
        layer.run(x.copy(), cos, cos, [one, small], [1, 2], 0)
    assert one.length == two.length == 0
