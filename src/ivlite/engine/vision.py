"""The vision features of a prompt, in token order: encodes frame pairs in batches while the next one is decoded."""

import concurrent.futures
import threading
from collections import OrderedDict, deque

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.media.medium import pixel_key
from ivlite.stop import checkpoint, using, waiting, within
from ivlite.workers import Workers

AHEAD = 4  # frame pairs that are decoded before they are needed
PATCHES = 2048  # patches per batch of the vision tower; a frame pair with more is a batch of its own
WIDE = 256  # patches from which on a batch computes in the same formats, however many there are
SEEN = 128 << 20  # bytes of the features that a model keeps


class Features:
    """The features of the media of a prompt, taken a given number of rows at a time.

    firsts: the first frame pair of each medium that is wanted; the pairs before it are not decoded.
    """

    def __init__(self, network, media, meter, firsts=None):
        self.batches = encoded(network, media, meter, firsts)
        self.merged, self.deep = (), []

    def take(self, most):
        """The next rows, at most `most`: merged (n, hidden) and the list of DeepStack features (n, hidden)."""
        if not len(self.merged):
            self.merged, self.deep = next(self.batches)
        n = min(most, len(self.merged))
        out = self.merged[:n], [d[:n] for d in self.deep]
        self.merged, self.deep = self.merged[n:], [d[n:] for d in self.deep]
        return out


def encoded(network, media, meter, firsts=None):
    """Yields merged (n, hidden) and the list of DeepStack features (n, hidden) of each batch of frame pairs."""
    wanted = wanted_media(media, firsts)
    total, done = sum(m.grid[0] - first for m, first in wanted), 0
    for medium, pairs, wide in _batches(wanted, meter):
        checkpoint()
        settings = network.config.video if medium.kind == "video" else network.config.image
        with meter.timed("vision"):
            merged, deep = _features(network, medium, pairs, wide, settings)
        done += len(pairs)
        meter.progress("vision", done, total)
        yield merged, deep


def _features(network, medium, pairs, wide, settings):
    """The features of a batch. Pairs that repeat, or are in the network's table, are not encoded again.

    The bits are those of a whole batch, of `wide` patches or more: the formats of the arithmetic depend on their number, up to WIDE.
    """
    table, patches = getattr(network, "seen", None), medium.grid[1] * medium.grid[2]
    keys = [(pixel_key(medium.kind, pair), wide) for pair in pairs] if table is not None else list(range(len(pairs)))
    known = {key: found for key in keys if table is not None and (found := table.get(key)) is not None}
    fresh = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
    if not fresh:
        return _joined(network.ops, [known[key] for key in keys])
    batch = list(fresh.values())
    batch += batch[:1] * (-(-wide // patches) - len(batch))
    merged, deep = network.vision(batch, settings.mean, settings.std)
    if not np.isfinite(network.ops.numpy(merged)).all():
        raise ModelFileError("the vision tower computed values that are not finite: its weights are damaged")
    rows = len(merged) // len(batch)
    for n, key in enumerate(fresh):
        known[key] = merged[n * rows : (n + 1) * rows], [d[n * rows : (n + 1) * rows] for d in deep]
        if table is not None:
            table.put(key, network.ops, *known[key])
    return (
        (merged, deep) if len(batch) == len(pairs) == len(fresh) else _joined(network.ops, [known[key] for key in keys])
    )


def _joined(ops, features):
    """(merged, deep) of one pair after another."""
    merged = ops.concat([m for m, _ in features], axis=0)
    return merged, [ops.concat(list(layers), axis=0) for layers in zip(*(deep for _, deep in features), strict=True)]


class Seen:
    """Features of frame pairs by their pixels: at most `most` bytes, the pairs wanted last. Any thread may use it."""

    def __init__(self, most=SEEN):
        self.most, self.nbytes = most, 0
        self._features = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key):
        """(merged (n, hidden), DeepStack features, each (n, hidden)), or None."""
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
            return self._features.get(key)

    def items(self):
        """(key, (merged, DeepStack features)) of all pairs, the one wanted last at the end."""
        with self._lock:
            return list(self._features.items())

    def put(self, key, ops, merged, deep):
        """Keeps a copy."""
        size = 4 * merged.shape[0] * merged.shape[1] * (1 + len(deep))
        if size > self.most:
            return
        kept = [ops.array(np.array(ops.numpy(part))) for part in (merged, *deep)]
        with self._lock:
            if key not in self._features:
                self._features[key] = kept[0], kept[1:]
                self.nbytes += size
            while self.nbytes > self.most:
                _, (merged, deep) = self._features.popitem(last=False)
                self.nbytes -= 4 * merged.shape[0] * merged.shape[1] * (1 + len(deep))


def together(network, media, meter):
    """Yields once: all features as numpy float32, merged (N, hidden) and deepstack (K, N, hidden)."""
    numpy, vision = network.ops.numpy, network.config.vision
    count = len(vision.deepstack_indexes)
    merged = [np.zeros((0, vision.out_hidden_size), np.float32)]
    deep = [np.zeros((count, 0, vision.out_hidden_size), np.float32)]
    for features, layers in encoded(network, media, meter):
        merged.append(numpy(features))
        deep.append(np.stack([numpy(d) for d in layers]) if count else np.zeros((0, *features.shape), np.float32))
    yield np.concatenate(merged), np.concatenate(deep, 1)


def wanted_media(media, firsts=None):
    """(medium, first wanted frame pair) of the media of which any is wanted."""
    pairs = zip(media, firsts or [0] * len(media), strict=True)
    return [(medium, first) for medium, first in pairs if first < medium.grid[0]]


def _batches(wanted, meter):
    """Yields (medium, list of frame pairs, patches that count), one batch of the vision tower at a time.

    Batches are those of the whole medium, whichever pair is the first that is wanted: a pair has the same bits in all of them.
    """
    total, done = sum(2 * (m.grid[0] - first) if m.kind == "video" else 1 for m, first in wanted), 0
    for medium, first in wanted:
        count, patches = medium.grid[0], medium.grid[1] * medium.grid[2]
        size = max(1, PATCHES // patches)
        batch, stream = [], ahead(medium.pairs(first))
        while True:
            with meter.timed("decode"):
                pair = next(stream, None)
            if pair is not None:
                batch.append(pair)
                done += 2 if medium.kind == "video" else 1
                meter.progress("decode", done, total)
            if batch and (pair is None or (first + len(batch)) % size == 0):
                start = first // size * size
                yield medium, batch, min(WIDE, (min(start + size, count) - start) * patches)
                first, batch = first + len(batch), []
            if pair is None:
                break


def ahead(items):
    """Prefetches the items of a generator: the next AHEAD are made in another thread while the caller uses one. None ends them.

    The other thread works under the Stop of the calling thread. However this ends, the item in progress is cancelled and
    the generator closed before it returns: no thread, decoder or open file is left to the garbage collector.
    """
    stop, coming = within(), deque()

    def following():
        with using(stop):
            return next(items, None)

    try:
        with Workers(1, "ivlite-decode") as thread:
            try:
                coming.extend(thread.submit(following) for _ in range(AHEAD))
                while True:
                    if not coming[0].done():
                        with waiting():  # others compute
                            concurrent.futures.wait([coming[0]])
                    if (item := coming.popleft().result()) is None:
                        break
                    coming.append(thread.submit(following))
                    stop.check()  # items made before it was set are given up as well
                    yield item
            finally:
                coming.clear()  # breaks the cycle of an exception: future, traceback, this frame, future
                item = None
                stop.set("closed")
    finally:
        items.close()
