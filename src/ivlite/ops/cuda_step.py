"""Steps of decoding on a card: recorded once and replayed for every token, and the tokens that are chosen there."""

import numpy as np

PARTS, BINS = 64, 2048  # csrc/kernels/cuda/elementwise.h
TOKEN = np.dtype([("key", "<u4"), ("id", "<i4"), ("bad", "<i4")])


class Step:
    """The step of so many tokens over one cache. The first call computes it, the second records it, and later ones replay it.

    compute(ids, cos, sin) -> logits (T, vocab), over arrays of the card, changes nothing but memory of the card.
    """

    def __init__(self, ops, compute, tokens, half, cache):
        self.ops, self.compute, self.cache, self.tokens = ops, compute, cache, tokens
        memory, self.half = ops.memory, half
        self.words = tokens * (1 + 2 * half)
        self.inputs, self.host = memory.empty(self.words), memory.pinned(self.words, "float32")
        self.replay, self.results, self.began = None, None, False

    def __call__(self, token_ids, cos, sin):
        """Logits of the tokens; cos, sin numpy (T, half)."""
        tokens, half, memory = self.tokens, self.half, self.ops.memory
        self.host[:tokens] = np.asarray(token_ids, np.int32).view(np.float32)
        self.host[tokens : tokens * (1 + half)] = cos.reshape(-1)
        self.host[tokens * (1 + half) :] = sin.reshape(-1)
        memory.send(self.inputs, self.host)
        if self.replay is None and self.began:
            self.replay, self.results, self.cache.pool = memory.capture(self._launch, self.cache.pool)
        self.began = True
        if self.replay is None:
            logits, found = self._launch()
        else:
            self.replay()
            logits, found = self.results
        return Logits(self.ops, logits, memory.get(found))

    def compute_once(self):
        """Launches the step, without a recording."""
        self._launch()

    def _launch(self):
        tokens, half = self.tokens, self.half
        ids, cos = self.inputs[:tokens], self.inputs[tokens : tokens * (1 + half)].reshape(tokens, half)
        logits = self.compute(ids, cos, self.inputs[tokens * (1 + half) :].reshape(tokens, half))
        found = self.ops.likeliest(logits)
        self.ops.launch("advance", self.ops.memory.pointer(self.cache.at), tokens)
        return logits, found


class Logits:
    """Logits (T, vocab) on a card, until the next step over the same cache, and the likeliest token of each row."""

    def __init__(self, ops, rows, found):
        self.ops, self.rows, self.found = ops, rows, found.view(TOKEN).reshape(-1)

    def __len__(self):
        return len(self.found)

    def __getitem__(self, i):
        return CardRow(self.ops, self.rows[i : i + 1], int(self.found["id"][i]))

    @property
    def finite(self):
        return not self.found["bad"].any()

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.ops.numpy(self.rows), dtype)


class CardRow:
    """Logits (1, vocab) on a card, from which it draws a token."""

    def __init__(self, ops, logits, likeliest):
        self.ops, self.logits, self.likeliest = ops, logits, likeliest

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.ops.numpy(self.logits)[0], dtype)

    def marked(self, ids):
        """A bit on the card for each of the vocabulary's tokens in ids, for `draw`."""
        vocab = self.logits.shape[1]
        bits = np.zeros(-(-vocab // 32), np.uint32)
        ids = np.fromiter((i for i in ids if i < vocab), np.int64)
        np.bitwise_or.at(bits, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
        return self.ops.memory.put(bits.view(np.int32))

    def draw(self, params, marked, uniform):
        """A token id by SamplingParams, at `uniform` in [0, 1). marked: the tokens to penalise, to which it is added; or None."""
        if params.temperature == 0 and marked is None:
            return self.likeliest
        found = self.ops.drawn(self.logits, params, marked, uniform)
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
