"""Prefill and decode over one network and one cache. Knows token ids and frame pairs, nothing of text or files."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from ivlite.errors import ContextError, ModelFileError

CHUNK = 2048  # tokens that go through the layers together in prefill; each chunk expands all cached latents once more
PATCHES = 2048  # patches that go through the vision tower together, where one frame pair has fewer


class Runner:
    """A conversation's state: the cache, the next position, and the seconds each stage has taken.

    progress(stage, done, total) is called in stages "decode" (frames), "vision" (frame pairs), "prefill" (tokens).
    """

    def __init__(self, network, capacity, kv, progress=None):
        self.network, self.ops = network, network.ops
        self.cache = network.cache(capacity, kv)
        self.progress = progress or (lambda stage, done, total: None)
        self.timings = {"decode": 0.0, "vision": 0.0, "prefill": 0.0, "generate": 0.0}
        self.next_position = 0

    @contextmanager
    def timed(self, stage):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] += time.perf_counter() - start

    def prefill(self, prompt, every_logit=False):
        """Runs the whole prompt. Returns float32 logits of its last token (vocab,), or of every token (T, vocab)."""
        if every_logit:
            return np.concatenate([logits for _, logits in self.each_logits(prompt, 256)])
        for _, x in self._hidden(prompt):
            last = x[-1:]
        with self.timed("prefill"):
            return finite(self.ops.numpy(self.network.logits(last))[0])

    def each_logits(self, prompt, rows):
        """Runs the whole prompt; yields (first token, logits (at most `rows`, vocab)) as far as it has come."""
        for first, x in self._hidden(prompt):
            for at in range(0, len(x), rows):
                with self.timed("prefill"):
                    logits = self.ops.numpy(self.network.logits(x[at : at + rows]))
                yield first + at, finite(logits)

    def _hidden(self, prompt):
        """Runs the whole prompt; yields (first token, hidden states (n, hidden)) of each chunk."""
        tokens = len(prompt.token_ids)
        if tokens > self.cache.capacity:
            raise ContextError(too_long(tokens, self.cache.capacity))
        vision = VisionFeed(self, prompt)
        for first in range(0, tokens, CHUNK):
            last = min(first + CHUNK, tokens)
            x, deepstack = self._embedded(prompt, first, last, vision)
            with self.timed("prefill"):
                x = self.network.forward(x, prompt.positions[:, first:last], self.cache, deepstack)
            self.progress("prefill", last, tokens)
            yield first, x
        self.next_position = prompt.next_position

    def _embedded(self, prompt, first, last, vision):
        """Inputs of tokens [first, last): x (T, hidden), and the DeepStack runs among them."""
        with self.timed("prefill"):
            x = self.network.embed(prompt.token_ids[first:last])
        deepstack = []
        for _, start, count in prompt.spans:
            a, b = max(first, start), min(last, start + count)
            while a < b:
                features, deep = vision.take(b - a)
                at = a - first
                x[at : at + len(features)] = features
                deepstack.append((at, deep))
                a += len(features)
        return x, deepstack

    def step(self, token):
        """Runs one token; returns float32 logits (vocab,) of what follows."""
        with self.timed("generate"):
            x = self.network.embed([token])
            positions = np.full((3, 1), self.next_position, np.int64)
            x = self.network.forward(x, positions, self.cache)
            logits = self.ops.numpy(self.network.logits(x))[0]
        self.next_position += 1
        return finite(logits)

    def generate(self, logits, sampler, eos, limit):
        """Yields token ids, starting from the prompt's logits, until one of `eos` (not yielded) or `limit` tokens.

        Returns "stop" or "length".
        """
        for made in range(limit):
            with self.timed("generate"):
                token = sampler(logits)
            if token in eos:
                return "stop"
            yield token
            if made + 1 < limit and self.cache.length < self.cache.capacity:
                logits = self.step(token)
            else:
                break
        return "length"


class VisionFeed:
    """The vision features of a prompt in token order, encoded as they are asked for, a few frame pairs at a time."""

    def __init__(self, runner, prompt):
        self.runner, self.prompt = runner, prompt
        self.frames = sum(2 * m.grid[0] if m.kind == "video" else 1 for m in prompt.media)
        self.pairs = sum(m.grid[0] for m in prompt.media)
        self.done_frames = self.done_pairs = 0
        self.batches = self._encoded()
        self.features, self.deep = None, []

    def take(self, most):
        """The next at most `most` rows: features (n, hidden) and the list of DeepStack (n, hidden)."""
        if self.features is None or not len(self.features):
            self.features, self.deep = next(self.batches)
        n = min(most, len(self.features))
        out = self.features[:n], [d[:n] for d in self.deep]
        self.features, self.deep = self.features[n:], [d[n:] for d in self.deep]
        return out

    def _encoded(self):
        network = self.runner.network
        for medium in self.prompt.media:
            settings = network.config.video if medium.kind == "video" else network.config.image
            for pairs in self._batches(medium):
                with self.runner.timed("vision"):
                    encoded = network.vision(pairs, settings.mean, settings.std)
                self.done_pairs += len(pairs)
                self.runner.progress("vision", self.done_pairs, self.pairs)
                yield encoded

    def _batches(self, medium):
        size = max(1, PATCHES // (medium.grid[1] * medium.grid[2]))
        batch, stream = [], ahead(medium.pairs())
        while True:
            with self.runner.timed("decode"):
                pair = next(stream, None)
            if pair is not None:
                batch.append(pair)
                self.done_frames += 2 if medium.kind == "video" else 1
                self.runner.progress("decode", self.done_frames, self.frames)
            if batch and (pair is None or len(batch) == size):
                yield batch
                batch = []
            if pair is None:
                return

    def all(self):
        """Every feature at once: merged (N, hidden) and deepstack (K, N, hidden) as numpy float32."""
        numpy = self.runner.ops.numpy
        batches = [(numpy(merged), np.stack([numpy(d) for d in deep])) for merged, deep in self.batches]
        vision = self.runner.network.config.vision
        if not batches:
            width = vision.out_hidden_size
            return np.zeros((0, width), np.float32), np.zeros((len(vision.deepstack_indexes), 0, width), np.float32)
        return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches], 1)


def ahead(items):
    """The items of an iterable, each made in another thread while the one before is used. None ends them."""
    stream = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, stream, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, stream, None)
            yield item


def too_long(tokens, capacity):
    return (
        f"the prompt has {tokens} tokens and the context holds {capacity}: "
        "raise the context, or use fewer or smaller frames (fps, max_frames, max_pixels)"
    )


def finite(logits):
    """The logits, after refusing any that are not numbers: an answer made of those would be noise."""
    if not np.isfinite(logits.max()) or np.isnan(logits.min()):
        raise ModelFileError("the model computed values that are not finite: its weights are damaged; convert it again")
    return logits
