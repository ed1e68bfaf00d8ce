"""Prefill and decode with one network and one cache. Works on token ids and frame pairs, not on text or files."""

import numpy as np

from ivlite.engine.meter import Meter
from ivlite.engine.vision import Features
from ivlite.errors import ContextError, ModelFileError, UsageError
from ivlite.stop import checkpoint

CHUNK = 2048  # tokens per prefill chunk; every chunk expands all cached latents again


class Runner:
    """The state of one conversation: its cache, and the offset of its rotary positions.

    meter: a Meter for times and progress. Every method raises Stopped when the Stop of its thread is set.
    """

    def __init__(self, network, capacity, kv, meter=None):
        self.network, self.ops = network, network.ops
        self.cache = network.cache(capacity, kv)
        self.meter = meter or Meter()
        self.shift = 0  # position minus index of a token after the prompt: images take fewer positions than tokens

    def prefill(self, prompt, every_logit=False):
        """Runs the whole prompt. Returns float32 logits of its last token (vocab,), or of every token (T, vocab)."""
        if every_logit:
            return np.concatenate([logits for _, logits in self.each_logits(prompt, 256)])
        for _, x in self._hidden(prompt):
            last = x[-1:]
        checkpoint()
        with self.meter.timed("prefill"):
            return finite(self.ops.numpy(self.network.logits(last))[0])

    def each_logits(self, prompt, rows):
        """Runs the whole prompt; yields (index of the first token, logits (at most `rows`, vocab)) chunk by chunk."""
        for first, x in self._hidden(prompt):
            for at in range(0, len(x), rows):
                checkpoint()
                with self.meter.timed("prefill"):
                    logits = self.ops.numpy(self.network.logits(x[at : at + rows]))
                yield first + at, finite(logits)

    def _hidden(self, prompt):
        """Runs the whole prompt; yields (index of the first token, hidden states (n, hidden)) of each chunk."""
        tokens, vocabulary = len(prompt.token_ids), self.network.config.text.vocab_size
        if self.cache.length + tokens > self.cache.capacity:
            raise ContextError(too_long(tokens, self.cache.capacity - self.cache.length))
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < vocabulary:
            raise UsageError(f"the prompt has token ids beyond the vocabulary of {vocabulary}")
        features = Features(self.network, prompt.media, self.meter)
        for first in range(0, tokens, CHUNK):
            checkpoint()
            last = min(first + CHUNK, tokens)
            x, deepstack = self._embedded(prompt, first, last, features)
            with self.meter.timed("prefill"):
                x = self.network.forward(x, prompt.positions[:, first:last], self.cache, deepstack)
            self.meter.progress("prefill", last, tokens)
            yield first, x
        self.shift = prompt.next_position - self.cache.length

    def _embedded(self, prompt, first, last, vision):
        """Inputs of tokens [first, last): x (T, hidden), and their DeepStack features as (row, features) pairs."""
        with self.meter.timed("prefill"):
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
        """Runs one token; returns float32 logits (vocab,) of the next."""
        checkpoint()
        with self.meter.timed("generate"):
            x = self.network.embed([token])
            positions = np.full((3, 1), self.cache.length + self.shift, np.int64)
            x = self.network.forward(x, positions, self.cache)
            logits = self.ops.numpy(self.network.logits(x))[0]
        return finite(logits)

    def answer(self, prompt, sampler, eos, limit):
        """Yields the token ids of an answer, up to one of `eos` (not yielded) or `limit` of them.

        The generator returns "stop" or "length".
        """
        logits = self.prefill(prompt)
        for made in range(1, limit + 1):
            with self.meter.timed("generate"):
                token = sampler(logits)
            if token in eos:
                return "stop"
            self.meter.progress("generate", made, limit)
            yield token
            if made == limit or self.cache.length == self.cache.capacity:
                break
            logits = self.step(token)
        return "length"


def too_long(tokens, capacity):
    return (
        f"the prompt has {tokens} tokens and the context holds {capacity}: "
        "raise the context, or use fewer or smaller frames (fps, max_frames, max_pixels)"
    )


def finite(logits):
    """Returns the logits. Raises ModelFileError if any is not finite: the answer would be noise."""
    if not np.isfinite(logits.max()) or np.isnan(logits.min()):
        raise ModelFileError("the model computed values that are not finite: its weights are damaged; convert it again")
    return logits
