"""Prefill and decode with one network and one cache. Works on token ids and frame pairs, not on text or files."""

import time

import numpy as np

from ivlite.engine.held import Held, Span
from ivlite.engine.meter import Meter
from ivlite.engine.speculate import Decoder
from ivlite.engine.step import Step, finite
from ivlite.engine.vision import Features, wanted_media
from ivlite.errors import ContextError, Stopped, UsageError
from ivlite.machine import give_back
from ivlite.stop import checkpoint, waiting

CHUNK = 2048  # tokens per prefill chunk; every chunk expands all cached latents again
DEEP = 4096  # cached tokens from which on a chunk is twice as long
AGAIN = 512  # tokens that are computed again so that an answer does not depend on what was asked before, at most
EVERY = 5.0  # seconds between two reports of progress within a chunk


def chunk_at(depth):
    """Tokens of the chunk that begins after `depth` cached ones."""
    return CHUNK if depth < DEEP else 2 * CHUNK


def chunk_end(prompt, first, depth):
    """The end of the chunk that begins with a prompt's token `first`, after `depth` cached ones.

    A chunk ends where the last vision block does, so that its rows do not depend on the question behind it.
    """
    end = min(first + chunk_at(depth), len(prompt.token_ids))
    return prompt.cut if first < prompt.cut < end else end


def kept(held, prompt, shared, base=0):
    """How many of the `shared` tokens of a prompt that are held may stay, if something is still to be computed.

    A conversation that goes on keeps all of them. Others keep those up to the end of a chunk that a prefill of their own has, too: what
    follows was computed in one chunk with tokens of an earlier prompt, another question or more of a video. More than AGAIN of these
    stay, and those of prompts without media. base: the rows before it stay in any case, and a prefill of its own begins there.
    """
    chunks = [(first, end) for first, end in held.chunks.items() if base <= first and end <= shared]
    start = max((end for first, end in chunks if end == chunk_end(prompt, first, first)), default=base)
    going_on = any(start < n <= shared for n, _ in held.ends)
    again = bool(prompt.spans or base) and shared <= start + AGAIN and not going_on
    return min(start if again else shared, len(prompt.token_ids) - 1)  # a prompt ends with text


def usable(held, prompt, shared, base=0):
    """How many of the `shared` tokens of a prompt need not be computed: all of them where the logits after them are held as well."""
    complete = shared == len(prompt.token_ids) and held.logits(shared) is not None
    return shared if complete else kept(held, prompt, shared, base)


class Runner:
    """One network and one cache.

    held: what the rows of the cache stand for (Held). store: what keeps the work of long prefills (session.store), or None.
    meter: a Meter for times and progress. Every method raises Stopped when the Stop of its thread is set; the rows that are
    complete by then stay.
    """

    def __init__(self, network, capacity, kv, meter=None, store=None):
        self.network, self.ops, self.kv = network, network.ops, kv
        self.store, self.keeper = store, store and store.keeper(network, kv)
        self.cache = network.cache(capacity, kv)
        self.meter = meter or Meter()
        self.held = Held()

    def extend(self, prompt, base=None):
        """Makes the cache hold a prompt: keeps the longest prefix that it shares and runs the rest.

        Returns float32 logits (vocab,) of the last token. `meter.cached`: the number of tokens that were kept. The same
        prompt again gives the same bits. base: of the rows from here on, only whole chunks are kept: the bits are those of
        a prefill that begins at the base. Without a base, another question about the same media has the bits of a
        prefill of its own; a conversation that goes on keeps all its rows. If the prompt does not fit, nothing changes.
        """
        self._check(prompt, self.cache.capacity)
        if self.keeper:
            with waiting():
                self.keeper.recall(self, prompt, base)
        tokens = len(prompt.token_ids)
        shared, kept = self._kept(prompt, base)
        self.truncate(shared)
        self.meter.cached = shared
        if kept is not None:
            self.meter.progress("prefill", tokens, tokens)
            return kept
        try:
            logits = self._run(prompt, shared)
        except Stopped:
            if self.keeper:
                with waiting():
                    self.keeper.ended(self, prompt, stopped=True)
            raise
        if self.keeper:
            with waiting():
                self.keeper.ended(self, prompt)
        return logits

    def foreseen(self, prompt, base=None, reading=False):
        """The number of tokens that extend would keep, without a store. reading: see Held.shared."""
        return self._kept(prompt, base, reading)[0]

    def _kept(self, prompt, base, reading=True):
        """(tokens of a prompt whose rows stay, the logits after the last one if they are kept and all stay)."""
        tokens, shared = len(prompt.token_ids), self.held.shared(prompt, reading)
        logits = self.held.logits(tokens) if shared == tokens else None
        if logits is not None:
            return shared, logits
        if base is None or shared < base:  # another conversation than that which left the rows
            return kept(self.held, prompt, shared), None
        floor = base  # what a store gave was computed by whatever prompt
        if self.held.given > base:
            floor = kept(self.held, prompt, min(shared, self.held.given), base)
        return min(self._grid(prompt, floor, shared) if shared > floor else shared, tokens - 1), None

    def _grid(self, prompt, base, shared):
        """The end of the last whole chunk up to `shared` of a prefill of a prompt that began at `base`."""
        while (end := self.held.chunks.get(base, shared + 1)) <= shared and end == chunk_end(prompt, base, base):
            base = end
        return base

    def prefill(self, prompt, every_logit=False):
        """Runs the whole prompt. Returns float32 logits of its last token (vocab,), or of every token (T, vocab)."""
        if every_logit:
            return np.concatenate([logits for _, logits in self.each_logits(prompt, 256)])
        return self._run(prompt, 0)

    def _run(self, prompt, start):
        """Runs the tokens of a prompt from `start` on; returns the logits (vocab,) of the last."""
        for _, x in self._hidden(prompt, start):
            last = x[-1:] + 0  # a copy: a chunk does not wait in memory for the next one to end
            del x
        checkpoint()
        with self.meter.timed("prefill"):
            logits = finite(self.ops.numpy(self.network.logits(last))[0])
        self.held.keep_logits(logits)
        return logits

    def each_logits(self, prompt, rows):
        """Runs the whole prompt; yields (index of the first token, logits (at most `rows`, vocab)) chunk by chunk."""
        for first, x in self._hidden(prompt):
            for at in range(0, len(x), rows):
                checkpoint()
                with self.meter.timed("prefill"):
                    logits = self.ops.numpy(self.network.logits(x[at : at + rows]))
                yield first + at, finite(logits)

    def _check(self, prompt, capacity):
        """Raises ContextError or UsageError for a prompt that cannot run."""
        tokens, vocabulary = len(prompt.token_ids), self.network.config.text.vocab_size
        if tokens > capacity:
            raise ContextError(too_long(tokens, capacity))
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < vocabulary:
            raise UsageError(f"the prompt has token ids beyond the vocabulary of {vocabulary}")

    def _hidden(self, prompt, start=0):
        """Runs the tokens from `start` on; yields (index of the first token, hidden states (n, hidden)) of each chunk."""
        tokens, offset = len(prompt.token_ids), self.cache.length - start
        self._check(prompt, self.cache.capacity - offset)
        features = self._features(prompt, start)
        last = start
        while last < tokens:
            checkpoint()
            first, last = last, chunk_end(prompt, last, last + offset)
            x = self._through(prompt, first, last, features)
            self._record(prompt, first, last, offset)
            self.meter.progress("prefill", last, tokens)
            if self.keeper:
                with waiting():
                    self.keeper.computed(self, prompt)
            yield first, x
            del x

    def _through(self, prompt, first, last, features):
        """Runs tokens [first, last) through all layers; returns their hidden states (n, hidden).

        A long chunk takes DeepStack features CHUNK tokens at a time: it goes through the layers that they are added after
        in parts, and then through the others.
        """
        network, cache, parts = self.network, self.cache, []
        each = self._each(first, len(prompt.token_ids))
        early = network.early if any(at < last and first < at + count for _, at, count in prompt.spans) else 0
        if early == 0 or last - first <= CHUNK:
            return self._forward(prompt, first, last, each, *self._embedded(prompt, first, last, features))
        length = cache.length
        try:
            for a in range(first, last, CHUNK):
                b = min(a + CHUNK, last)
                given = self._embedded(prompt, a, b, features)
                parts.append(self._forward(prompt, a, b, each, *given, layers=slice(early)))
                del given
        finally:
            cache.truncate(length)
        x = self.ops.concat(parts, axis=0)
        parts.clear()
        give_back()  # what the features took
        return self._forward(prompt, first, last, each, x, layers=slice(early, None))

    def _forward(self, prompt, first, last, each, x, deepstack=(), layers=slice(None)):
        with self.meter.timed("prefill"):
            return self.network.forward(x, prompt.positions[:, first:last], self.cache, deepstack, layers, each)

    def _each(self, first, total):
        """A function that is told how many tokens went through one more layer, of a chunk that begins at `first`."""
        layers, passed, told = self.network.config.text.num_layers, 0, time.monotonic()

        def each(tokens):
            nonlocal passed, told
            passed += tokens
            if time.monotonic() - told >= EVERY:
                told = time.monotonic()
                self.meter.progress("prefill", first + passed // layers, total)

        return each

    def _features(self, prompt, start):
        """The Features of a prompt's media behind token `start`, which may be within a frame pair."""
        firsts, done = prompt.firsts(start), 0
        for _, first, count in prompt.spans:
            done += max(0, start - first) if first < start < first + count else 0
        for medium, _ in wanted_media(prompt.media, firsts):
            medium.identify()
        features = Features(self.network, prompt.media, self.meter, firsts)
        while done:
            done -= len(features.take(done)[0])
        return features

    def _record(self, prompt, first, last, offset):
        """Notes that the cache holds tokens [first, last) of a prompt, `offset` rows after their indexes."""
        following = prompt.next_position if last == len(prompt.token_ids) else None
        self.held.append(prompt.token_ids[first:last], prompt.positions[:, first:last], following)
        if following is None:
            self.held.chunks[first + offset] = last + offset
        for (_, at, count), (medium, pair) in zip(prompt.spans, prompt.pairs(), strict=True):
            if first <= at < last:
                self.held.spans.append(Span(at + offset, count, medium=prompt.media[medium], pair=pair))

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

    def truncate(self, length):
        """Forgets all tokens from `length` on."""
        self.cache.truncate(length)
        self.held.truncate(length)

    def copy(self, length, capacity, meter=None, held=None):
        """Another Runner that holds the first `length` tokens. held: what these are, if this one may be at work."""
        out = Runner(self.network, max(length, capacity), self.kv, meter or self.meter, self.store)
        for first in range(0, length, CHUNK):
            checkpoint()
            out.cache.restore(first, self.cache.dump(first, min(first + CHUNK, length)))
        out.held = (held or self.held).copy(length)
        return out

    def step(self, token):
        """Runs one token; returns float32 logits (vocab,) of the next."""
        return self.steps([token])[0]

    def steps(self, tokens):
        """Runs some tokens of text; returns float32 logits (n, vocab), row i those after token i.

        They are numpy, or stay on a card until the next call (`ops.cuda_step.Logits`); numpy.asarray copies them.
        """
        checkpoint()
        with self.meter.timed("generate"):
            positions = self.following(len(tokens))
            try:
                logits = self.network.step(tokens, positions, self.cache)
            except Stopped:
                self.cache.truncate(self.held.length)  # the cache may have the rows already
                raise
            self.held.append(tokens, positions, int(positions[0, -1]) + 1)
        return finite(logits)

    def following(self, count):
        """int (3, count): the positions of the next tokens, if they are text."""
        return np.arange(self.held.next, self.held.next + count)[None].repeat(3, 0)

    def answer(self, prompt, sampler, eos, limit, base=None):
        """Yields the token ids of an answer, up to one of `eos` (not yielded) or `limit` of them. base: see extend.

        The generator returns "stop", "length" or, where a greedy answer repeats itself without end, "repetition". However
        it ends, the cache holds the prompt and all tokens yielded, except a last one whose successor was not wanted.
        """
        items = self.answering(prompt, sampler, eos, limit, base)
        try:
            while True:
                try:
                    item = next(items)
                except StopIteration as end:
                    return end.value
                if not isinstance(item, Step):
                    yield item
        finally:
            items.close()

    def answering(self, prompt, sampler, eos, limit, base=None):
        """The same, and before every step of it a Step, which others may run together with theirs."""
        logits = self.extend(prompt, base)
        decoder = Decoder(self, prompt, getattr(sampler, "greedy", False), getattr(sampler, "forced", None))
        try:
            for made in range(1, limit + 1):
                with self.meter.timed("generate"):
                    token = sampler(logits)
                if token in eos:
                    return "stop"
                self.meter.progress("generate", made, limit)
                yield token
                if made == limit or decoder.length == self.cache.capacity:
                    break
                logits = yield from decoder.next(token, limit - made)
                if logits is None:
                    return "repetition"
        finally:
            decoder.settle()
        return "length"


def too_long(tokens, capacity):
    return (
        f"the prompt has {tokens} tokens and the context holds {capacity}: "
        "raise the context, or use fewer or smaller frames (fps, max_frames, max_pixels)"
    )
