"""What each kind of cache costs in accuracy, by depth: KL of the next tokens' distributions from those over a float32 cache.

    python benchmarks/cache_depth.py                          random layers of InternVideo3-8B's widths, 4K, 32K and 128K tokens
    python benchmarks/cache_depth.py --demo --depths 4096     the demo model, on turns about a clip

The rows that every kind stores are the same ones, of float32 arithmetic, so that what is measured is what is stored and how it is read.
--own: each kind prefills for itself, so that what it lost in earlier layers and chunks is in its rows, too.
Random layers: rows are normal values, as random weights make them; --spread is the deviation of the scores, which decides how many tokens
share the attention.
"""

import argparse
from dataclasses import replace

import numpy as np

import ivlite
from ivlite import models, ops
from ivlite.engine.divergence import kl_of_likeliest
from ivlite.evaluate import synthetic
from ivlite.evaluate.compare import log_probabilities

CHUNK = 2048


class Spread(synthetic.RandomSource):
    """Random weights, none of them repeated, whose queries and keys are larger, for scores of that deviation."""

    def __init__(self, cfg, spread):
        super().__init__(cfg, "bf16")
        self.spread = spread

    def read(self, name, first=0, count=None):
        data = super().read(name, first, count)
        if not name.endswith("attn_norm.weight"):
            return data
        return (data.view(np.float32) * np.float32(self.spread**0.5)).view(np.uint8)

    def _blocks(self, fmt, count, cols):
        pieces = range(0, count, synthetic.CHUNK)
        return np.concatenate(
            [super(Spread, self)._blocks(fmt, min(synthetic.CHUNK, count - at), cols) for at in pieces]
        )


class Random:
    """Layers of full size; a sequence of hidden states."""

    def __init__(self, layers, spread, threads, seed=0):
        full, small = synthetic.config("8b"), synthetic.config("tiny").vision
        text = replace(full.text, num_layers=layers, kv_lora_rank=full.text.kv_lora_rank[:layers], vocab_size=4096)
        cfg = replace(full, text=text, vision=replace(small, out_hidden_size=text.hidden_size))
        self.network = models.module("internvideo3").Network(cfg, Spread(cfg, spread), ops.get("cpu", threads), None)
        self.text, self.spread, self.random, self.following = text, spread, np.random.default_rng(seed), 16

    def forward(self, first, last, cache):
        x = self.random.standard_normal((last - first, self.text.hidden_size), np.float32)
        positions = np.tile(np.arange(first, last), (3, 1))
        return self.network.logits(self.network.forward(x, positions, cache))

    def fill(self, cache, depth):
        """Appends rows as random weights make them of random hidden states: normal, as large as the weights of the norm."""
        text = self.text
        for first in range(cache.length, depth, CHUNK):
            n = min(CHUNK, depth - first)
            for layer, rank in enumerate(text.kv_lora_rank):
                rows = self.random.standard_normal((n, rank + text.qk_rope_head_dim), np.float32) * np.float32(
                    self.spread**0.5
                )
                cache.append(layer, rows[:, :rank], rows[:, rank:])
            cache.advance(n)

    def after(self, depth, cache):
        """log-probabilities after each of the tokens that follow, given one by one."""
        self.random = np.random.default_rng(1)
        n = self.following
        return log_probabilities(np.concatenate([self.forward(depth + i, depth + i + 1, cache) for i in range(n)]))


class Demo:
    """The demo model; one turn about a clip again and again."""

    def __init__(self, threads, clip="examples/clip.mp4"):
        model = ivlite.load("demo", threads=threads)
        content = [{"type": "video", "video": clip}, {"type": "text", "text": "What colours are there?"}]
        prompt = model.prepare([{"role": "user", "content": content}])
        answer = model.chat([{"role": "user", "content": content}], temperature=0, max_new_tokens=24)
        ids = [*prompt.token_ids, *answer.token_ids]
        self.network, self.turn, seen = (
            model.network,
            len(ids),
            np.concatenate([np.arange(a, a + n) for _, a, n in prompt.spans]),
        )
        merged, deep = model.encode_vision(prompt)
        self.x = self.network.embed(ids)
        self.x[seen] = merged
        self.deep = np.zeros((len(deep), *self.x.shape), np.float32)
        self.deep[:, seen] = deep
        more = prompt.next_position + np.arange(len(answer.token_ids))
        self.positions = np.concatenate((prompt.positions, np.tile(more, (3, 1))), 1)
        self.text = np.setdiff1d(np.arange(self.turn), np.append(seen, seen - 1))  # whose next token is text

    def forward(self, first, last, cache):
        at = np.arange(first, last)
        turns, i = np.divmod(at, self.turn)
        positions = self.positions[:, i] + turns * (self.positions.max() + 1)
        deep = [np.ascontiguousarray(x) for x in self.deep[:, i]]
        return self.network.forward(self.x[i].copy(), positions, cache, [(0, deep)])

    def fill(self, cache, depth):
        for first in range(cache.length, depth, CHUNK):
            self.forward(first, min(first + CHUNK, depth), cache)

    def after(self, depth, cache):
        x = np.concatenate([self.forward(depth + i, depth + i + 1, cache) for i in range(self.turn)])
        return log_probabilities(self.network.logits(x[self.text]))


def stored(rows, kind, network, depth):
    """A cache of that kind with the first rows of an f32 cache, and room for what follows."""
    cache = network.cache(depth + 1024, kind)
    for first in range(0, depth, CHUNK):
        last = min(first + CHUNK, depth)
        for layer in range(len(network.layers)):
            cache.append(layer, *rows.read(layer, first, last))
        cache.advance(last - first)
    return cache


def run(sequence, depths, own):
    network = sequence.network
    rows = network.cache(max(depths) + 1024, "f32")
    for depth in sorted(depths):
        depth -= depth % getattr(sequence, "turn", 1)
        rows.truncate(min(rows.length, depth))
        sequence.fill(rows, depth)
        reference = sequence.after(depth, rows)
        rows.truncate(depth)
        for kind in ops.CACHE_KINDS[1:]:
            if own:
                cache = network.cache(depth + 1024, kind)
                sequence.fill(cache, depth)
            else:
                cache = stored(rows, kind, network, depth)
            other = sequence.after(depth, cache)
            kl = kl_of_likeliest(reference, other, rest=False)
            same = (reference.argmax(1) == other.argmax(1)).mean()
            print(
                f"{depth:>8,} {kind:>4}  mean KL {kl.mean():.2e}  largest {kl.max():.2e}  same {same:.3f}", flush=True
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--demo", action="store_true", help="the demo model instead of random layers")
    add("--own", action="store_true", help="each kind prefills for itself (with --demo)")
    add("--depths", default="4096,32768,131072")
    add("--layers", type=int, default=2)
    add("--spread", type=float, default=1)
    add("--threads", type=int)
    args = parser.parse_args()
    sequence = Demo(args.threads) if args.demo else Random(args.layers, args.spread, args.threads)
    run(sequence, [int(depth) for depth in args.depths.split(",")], args.own and args.demo)


if __name__ == "__main__":
    main()
