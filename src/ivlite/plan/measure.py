"""Measures a model's speed on this machine: about a second, with a few of its layers."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ivlite.engine.runner import CHUNK, Runner
from ivlite.engine.vision import PATCHES
from ivlite.gguf.loading import Loader
from ivlite.plan.speeds import Speeds, fitted
from ivlite.stop import checkpoint

MANY = 512  # tokens of the prefills that are timed: few enough to be quick, enough to be as fast as more
WARM = 64  # tokens of one that is not
DEPTH = 4096  # cached tokens before the second
LEAST = 0.03  # seconds that a short measurement is repeated for
HEAD_ROWS = 8192  # rows of the output matrix that are timed
REST = 5e-4  # seconds of a generated token outside the matrices


@dataclass(frozen=True)
class Sample:
    """A few layers of a model that stand for all.

    layers: (layer, how many it stands for). network: all of it, if it is loaded. block, merger, embed: parts of the vision
    tower. head(x): the output matrix, or the fraction `part` of it. byte: seconds of loading a byte, 0 if unknown. each:
    seconds of a pass over weights that are read for it.
    """

    config: Any
    ops: Any
    layers: list[tuple[Any, float]]
    block: Any
    merger: Any
    embed: Any
    head: Any = None
    part: float = 1.0
    byte: float = 0.0
    each: float = 0.0
    network: Any = None


def kinds(tensors, config):
    """[(index of a layer, number of layers with the same tensor types and rank)], the most frequent two."""
    ranks, found = config.text.kv_lora_rank, {}
    for i in range(config.text.num_layers):
        prefix = f"blk.{i}."
        types = tuple(sorted((n[len(prefix) :], t.format) for n, t in tensors.items() if n.startswith(prefix)))
        found.setdefault((types, ranks[i]), []).append(i)
    most = sorted(found.values(), key=len, reverse=True)[:2]
    total, kept = config.text.num_layers, sum(map(len, most))
    return [(layers[len(layers) // 2], len(layers) * total / kept) for layers in most]


def of_network(network):
    """The Sample of a loaded network whose layers stay in memory."""
    chosen = kinds(network.source.tensors, network.config)
    layers = [(network.layers[i], count) for i, count in chosen]
    vision = network.vision
    return Sample(
        network.config, network.ops, layers, vision.blocks[0], vision.mergers[-1], vision.patch_embed, network=network,
    )  # fmt: skip


def of_source(source, config, architecture, ops, streamed=False):
    """The Sample of a model file: loads two of its layers. streamed: all will be read for each pass."""
    load, began = Loader(source, ops), time.perf_counter()
    layers = [(architecture.Layer(load, config.text, i), count) for i, count in kinds(source.tensors, config)]
    byte = (time.perf_counter() - began) / max(1, load.done)
    vision, text = config.vision, config.text
    name = "token_embd.weight" if text.tie_word_embeddings else "output.weight"
    rows = min(HEAD_ROWS, text.vocab_size)
    fmt, data = load.read(name, 0, rows)
    head = ops.weight(fmt, data, (rows, text.hidden_size))
    merger = architecture.Merger(load, vision, "v.merger", norm_after_merge=False)
    block = architecture.VisionBlock(load, vision, 0)
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    embed = load.linear("v.patch_embd", vision.hidden_size, patch)
    passing = byte * sum(t.nbytes for n, t in source.tensors.items() if n.startswith("blk.")) if streamed else 0.0
    return Sample(
        config, ops, layers, block, merger, embed, lambda x: ops.linear(x, head), rows / text.vocab_size, byte, passing
    )


def speeds(sample, kv):
    """The Speeds of a Sample with a cache of the kind `kv`. Raises Stopped."""
    with np.errstate(all="ignore"):  # the values mean nothing
        text = prefill_seconds(sample, kv)
        step, step_seen = step_seconds(sample, kv)
        patch, patch_seen = vision_seconds(sample)
    few = min((layer.expand_from for layer, _ in sample.layers), default=np.inf)
    few = CHUNK if few == np.inf else int(few)
    return Speeds(*text, step, step_seen, patch, patch_seen, sample.each, sample.byte, few=few)


def settle(ops):
    """Waits for a backend that computes beside Python."""
    wait = getattr(ops, "settle", None)
    if wait is not None:
        wait()


def timed(work, *inputs, calls=2, ops=None):
    """Seconds of work(*copies of inputs): the mean of as many calls as take LEAST seconds, after one to warm up."""
    took = []
    while sum(took) < LEAST or len(took) < calls:
        checkpoint()
        given = [x.copy() for x in inputs]
        settle(ops)
        began = time.perf_counter()
        work(*given)
        settle(ops)
        took.append(time.perf_counter() - began)
    return float(np.mean(took[1:] or took))


class Text:
    """Calls of one decoder layer at any depth."""

    def __init__(self, sample, layer, kv):
        self.ops, self.text, self.layer = sample.ops, sample.config.text, layer
        self.depth = min(DEPTH, max(1, self.text.context_length // 2))
        self.cache = self.ops.cache(self.text.kv_lora_rank, self.text.qk_rope_head_dim, self.depth + MANY, kv)
        self.random = np.random.default_rng(0)

    def deepen(self):
        """Fills the cache with random rows."""
        rank, rope = self.text.kv_lora_rank[self.layer.index], self.text.qk_rope_head_dim
        rows = self.random.standard_normal((self.depth, max(rank, rope)), np.float32)
        self.cache.append(self.layer.index, self.ops.array(rows[:, :rank]), self.ops.array(rows[:, :rope]))
        self.cache.advance(self.depth)

    def inputs(self, tokens):
        """Random hidden states, numpy (T, hidden), and a rotation."""
        x = self.random.standard_normal((tokens, self.text.hidden_size), np.float32)
        return x, self.ops.array(np.ones((tokens, self.text.qk_rope_head_dim // 2), np.float32))

    def seconds(self, tokens, calls=2):
        x, turn = self.inputs(tokens)
        return timed(lambda x: self.layer(self.ops.array(x), turn, turn, self.cache), x, calls=calls, ops=self.ops)


def prefill_seconds(sample, kv):
    """(seconds of a token, of an older token that it sees, of a cached token that is expanded), of all layers.

    Expanding a latent is a product with a matrix of known size, at the speed of the others; what else depth costs is
    attention.
    """
    total, seen, share = np.zeros(3), 0.0, expansion(sample.config.text)
    for number, (layer, count) in enumerate(sample.layers):
        calls = Text(sample, layer, kv)
        few = WARM if layer.expand_from == np.inf else int(layer.expand_from) + 1
        calls.seconds(few, calls=1)
        flat, within = calls.seconds(MANY, calls=1), MANY * (MANY + 1) / 2
        if number == 0:
            depth = calls.depth
            calls.deepen()
            more = max(calls.seconds(MANY, calls=1) - flat, 0.0)
            expanding = share * flat / MANY * depth if layer.expand_from < MANY else 0.0
            seen = max(more - expanding, more / 2) / (MANY * depth)
        token = max(flat - seen * within, flat / 4) / MANY / (1 + share)
        total += count * np.array([token, seen, share * token])
    return total.tolist()


def expansion(text):
    """The multiplications of expanding a latent, as a fraction of those of a token in the linear layers."""
    heads, rank = text.num_heads, max(text.kv_lora_rank)
    expanded = heads * (text.qk_nope_head_dim + text.v_head_dim) * rank
    head = text.qk_nope_head_dim + text.qk_rope_head_dim
    inputs = text.hidden_size * (heads * (head + text.v_head_dim) + rank + text.qk_rope_head_dim)
    return expanded / (inputs + 3 * text.hidden_size * text.intermediate_size)


def step_seconds(sample, kv):
    """(seconds of a generated token after an empty cache, more for each cached token)."""
    calls = Text(sample, sample.layers[0][0], kv)
    if sample.network is not None:
        runner = Runner(sample.network, calls.text.context_length, kv)  # memory is taken as tokens come
        step = timed(lambda: runner.cache.truncate(0) or runner.step(0), calls=4, ops=sample.ops)
    else:
        step = REST + head_seconds(sample, calls) + sum(count * s for s, count in by_turns(sample, calls))
    flat = calls.seconds(1)
    calls.deepen()
    return step, max(0.0, calls.seconds(1) - flat) / calls.depth * calls.text.num_layers


def by_turns(sample, calls):
    """(seconds, count) of each layer of the sample for a token: one after the other, so that each comes from memory."""
    x, turn = calls.inputs(1)
    took = [[] for _ in sample.layers]
    while sum(map(sum, took)) < LEAST or len(took[0]) < 3:
        checkpoint()
        for (layer, _), seconds in zip(sample.layers, took, strict=True):
            began = time.perf_counter()
            layer(sample.ops.array(x.copy()), turn, turn, calls.cache)
            settle(sample.ops)
            seconds.append(time.perf_counter() - began)
    return [(float(np.median(s[1:])), count) for s, (_, count) in zip(took, sample.layers, strict=True)]


def head_seconds(sample, calls):
    """Seconds of the logits of one token."""
    x, _ = calls.inputs(1)
    return timed(lambda x: sample.head(sample.ops.array(x)), x, ops=sample.ops) / sample.part


def vision_seconds(sample):
    """(seconds of a patch, of each patch that it attends to), of the whole vision tower."""
    ops, vision = sample.ops, sample.config.vision
    usual = min(max(sample.config.video.max_pixels // vision.patch_size**2, 16), PATCHES // 2)  # patches of a pair
    rows, random = usual * (PATCHES // usual), np.random.default_rng(0)
    x = random.standard_normal((rows, vision.hidden_size), np.float32)
    turn = ops.array(np.ones((rows, vision.hidden_size // vision.num_heads // 2), np.float32))
    took = [timed(lambda x, n=n: sample.block(ops.array(x), turn, turn, n), x, ops=ops) for n in (usual, rows)]
    linear, seen = fitted([(rows, rows * usual), (rows, rows * rows)], took)
    merged = timed(lambda x: sample.merger(ops.array(x)), x, ops=ops) * (1 + len(vision.deepstack_indexes))
    patch = random.standard_normal(
        (rows, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2), np.float32
    )
    embedded = timed(lambda p: sample.embed(ops.array(p)), patch, ops=ops)
    return linear * vision.depth + (merged + embedded) / rows, seen * vision.depth
