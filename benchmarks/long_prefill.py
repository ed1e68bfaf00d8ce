"""How prefill slows down with the tokens before it: one decoder layer of the 8B shape, random weights and a random cache.

    python benchmarks/long_prefill.py                            # 2,048 tokens after none, 6,144 and 30,720
    python benchmarks/long_prefill.py --depths 0 102400 --stop   # and how long the layer takes to end when it is stopped

A layer takes seconds where a model takes minutes, and its share of attention is the model's. Where a prefill takes longer chunks,
one that ends with the same token is measured as well. Speeds are of CPU seconds: those of other processes do not count, though what
they take of caches and clocks does.
"""

import argparse
import random
import threading
import time

import numpy as np

from ivlite import _C, ops
from ivlite.engine.runner import chunk_at
from ivlite.errors import Stopped
from ivlite.evaluate.synthetic import RandomSource, config
from ivlite.gguf.loading import Loader
from ivlite.models.internvideo3 import Layer
from ivlite.prompt.positions import rotary
from ivlite.stop import Stop, using


class Deep:
    """A layer and a cache that grows."""

    def __init__(self, type, threads, most):
        self.config, self.random = config("8b"), np.random.default_rng(0)
        text, o = self.config.text, ops.get("cpu", threads)
        self.layer = Layer(Loader(RandomSource(self.config, type), o), text, 0)
        self.cache = o.cache([text.kv_lora_rank[0]], text.qk_rope_head_dim, most, "q8")
        self.rows = self.random.standard_normal((2048, text.kv_lora_rank[0]), np.float32)

    def fill(self, depth):
        rope = self.config.text.qk_rope_head_dim
        self.cache.truncate(min(depth, self.cache.length))
        while self.cache.length < depth:
            n = min(2048, depth - self.cache.length)
            self.cache.append(0, self.rows[:n], self.rows[:n, :rope])
            self.cache.advance(n)

    def run(self, tokens):
        """CPU and wall seconds of a chunk of so many tokens."""
        text = self.config.text
        x = self.random.standard_normal((tokens, text.hidden_size), np.float32)
        at = np.arange(self.cache.length, self.cache.length + tokens)
        cos, sin = rotary(at, text.qk_rope_head_dim, text.rope_theta)
        cpu, wall = time.process_time(), time.perf_counter()
        self.layer(x, cos, sin, self.cache)
        return time.process_time() - cpu, time.perf_counter() - wall


def stopped(deep, tokens, seconds):
    """Seconds from setting a Stop, at some moment of a chunk that takes so long, to the end of the chunk."""
    stop, moment = Stop(), []

    def set_stop():
        time.sleep(random.uniform(0.05, 0.9) * seconds)
        moment.append(time.perf_counter())
        stop.set()

    threading.Thread(target=set_stop).start()
    try:
        with using(stop):
            deep.run(tokens)
    except Stopped:
        pass
    return time.perf_counter() - moment[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="q4_k_s")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 6144, 30720])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stop", action="store_true")
    args = parser.parse_args()
    deep = Deep(args.type, args.threads, max(args.depths) + args.tokens)
    deep.run(256)  # pages touched
    first = None
    for depth in sorted(args.depths):
        end = depth + args.tokens
        for tokens in sorted({args.tokens, min(end, max(args.tokens, chunk_at(end - chunk_at(end))))}):
            deep.fill(end - tokens)
            cpu, wall = map(min, zip(*(deep.run(tokens) for _ in range(args.rounds)), strict=True))
            first = first or cpu / tokens
            line = f"{_C.isa()}: {tokens:,} tokens after {end - tokens:,}: {cpu:.2f} CPU seconds, {wall:.2f} s, "
            line += f"{first / cpu * tokens:.3f} of the first's speed"
            if args.stop:
                slowest = max(stopped(deep, tokens, wall) for _ in range(5))
                line += f", stopped within {slowest:.3f} s"
            print(line, flush=True)


if __name__ == "__main__":
    main()
