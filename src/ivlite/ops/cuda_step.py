"""Steps of decoding on a card: recorded once for all caches of a shape, replayed for every token, and tokens chosen there."""

import weakref
from contextlib import suppress

import numpy as np

from ivlite.errors import OutOfMemoryError
from ivlite.ops.cuda_cache import PLACE
from ivlite.ops.cuda_layer import Ready

PARTS, BINS = 64, 2048  # csrc/kernels/cuda/elementwise.h
TOKEN = np.dtype([("key", "<u4"), ("id", "<i4"), ("bad", "<i4")])


class Step:
    """The step of so many tokens over caches of one shape. The first call computes it, the second records it, and later ones
    replay it.

    Everything that differs from call to call lies in one array of the card: where the cache's layers are, its length, token ids
    and rotations. compute(ids, cos, sin, cache) -> logits (T, vocab), a method, changes nothing but memory of the card.
    places, at: the addresses that kernels read of the cache; ready: what one layer has made for the next.
    """

    def __init__(self, ops, compute, tokens, half, layers):
        self.ops, self.compute, self.tokens, self.half = ops, weakref.WeakMethod(compute), tokens, half
        memory, words = ops.memory, (2 * PLACE * layers, 1, tokens, tokens * half, tokens * half)
        self.ends = np.cumsum(words).tolist()
        self.inputs, self.host = memory.empty(self.ends[-1]), memory.pinned(self.ends[-1], "float32")
        self.places, self.at = memory.pointer(self.inputs), memory.pointer(self.inputs[self.ends[0] :])
        self.ready, self.replay, self.results, self.began = Ready(), None, None, False

    def __call__(self, token_ids, cos, sin, cache):
        """Logits of the tokens; cos, sin numpy (T, half)."""
        memory = self.ops.memory
        words = [cache.places, [cache.length], np.asarray(token_ids), cos.reshape(-1), sin.reshape(-1)]
        for end, part in zip(self.ends, words, strict=True):
            part = np.asarray(part)
            self.host[end - len(part) : end] = (
                part if part.dtype.kind == "f" else part.astype(np.int32).view(np.float32)
            )
        self.ops.hand_over(cache)
        memory.send(self.inputs, self.host)
        if self.replay is None and self.began:
            self._record(cache)
        self.began = True
        if self.replay is None:
            logits, found = self._launch(cache)
        else:
            self.replay()
            logits, found = self.results
        return Logits(self.ops, logits, memory.get(found), cache)

    def _record(self, cache):
        """Where the card has no memory for it, the step is computed without, and a later call tries again."""
        with suppress(OutOfMemoryError):
            self.replay, self.results, self.ops.recordings = self.ops.memory.capture(
                lambda: self._launch(cache), self.ops.recordings
            )

    def compute_once(self, cache):
        """Launches the step as it was last asked for, without a recording."""
        self._launch(cache)

    def _launch(self, cache):
        tokens, (_, at, ids, cos, sin) = self.tokens, self.ends
        cache.inside = self
        try:
            angles = (self.inputs[a:b].reshape(tokens, self.half) for a, b in ((ids, cos), (cos, sin)))
            logits = self.compute()(self.inputs[at:ids], *angles, cache)
        finally:
            cache.inside, cache.pending, cache.given = None, 0, (None, None, None)
            self.ready.few = None
        return logits, self.ops.likeliest(logits)


class Logits:
    """Logits (T, vocab) on a card, until the next step over the same cache, and the likeliest token of each row."""

    def __init__(self, ops, rows, found, cache=None):
        self.ops, self.rows, self.found = ops, rows, found.view(TOKEN).reshape(-1)
        self.cache = None if cache is None else weakref.ref(cache)
        ops.given = weakref.ref(self)

    def __len__(self):
        return len(self.found)

    def __getitem__(self, i):
        return CardRow(self, i)

    @property
    def finite(self):
        return not self.found["bad"].any()

    def keep(self):
        """Takes the rows out of memory that steps over other caches overwrite."""
        self.rows, self.cache = self.ops.copied(self.rows), None

    def __array__(self, dtype=None, copy=None):
        with self.ops.turn:
            return np.asarray(self.ops.numpy(self.rows), dtype)


class CardRow:
    """A row of logits on a card, from which it draws a token."""

    def __init__(self, logits, i):
        self.ops, self.logits, self.i, self.likeliest = logits.ops, logits, i, int(logits.found["id"][i])

    @property
    def row(self):
        """(1, vocab)."""
        return self.logits.rows[self.i : self.i + 1]

    def __array__(self, dtype=None, copy=None):
        with self.ops.turn:
            return np.asarray(self.ops.numpy(self.row)[0], dtype)

    def marked(self, ids):
        """A bit on the card for each of the vocabulary's tokens in ids, for `draw`."""
        vocab = self.logits.rows.shape[1]
        bits = np.zeros(-(-vocab // 32), np.uint32)
        ids = np.fromiter((i for i in ids if i < vocab), np.int64)
        np.bitwise_or.at(bits, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
        return self.ops.memory.put(bits.view(np.int32))

    def draw(self, params, marked, uniform):
        """A token id by SamplingParams, at `uniform` in [0, 1). marked: the tokens to penalise, to which it is added; or None."""
        if params.temperature == 0 and marked is None:
            return self.likeliest
        with self.ops.turn:
            found = self.ops.drawn(self.row, params, marked, uniform)
            return int(self.ops.memory.get(found).view(TOKEN)["id"].item())


def sample_arguments(ops, logits, found, params=None, marked=None, uniform=0.0):
    """The arguments of sample_greedy and sample_draw, and the arrays that they work in."""
    memory, vocab = ops.memory, logits.shape[1]
    kept = [memory.empty(len(logits) * PARTS * 3, "int32")]
    if params is not None and params.temperature:
        kept += [memory.empty(n, "int32") for n in (vocab, BINS, 2 * BINS)]
    parts, *work = (memory.pointer(x) for x in kept)
    row = [memory.pointer(found), parts, (memory.pointer(logits), memory.strides(logits)[0]), vocab]
    row += [0, 1.0] if marked is None else [memory.pointer(marked), params.repetition_penalty]
    if work:
        row += [work, params.temperature, params.top_k, params.top_p, params.min_p, uniform]
    return row, kept
