"""The vision features of a prompt: frame pairs are decoded one ahead, encoded a few at a time, in token order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.stop import checkpoint, using, within

PATCHES = 2048  # patches that go through the vision tower together, where one frame pair has fewer


class Features:
    """The features of media, as many at a time as are asked for."""

    def __init__(self, network, media, meter):
        self.batches = encoded(network, media, meter)
        self.merged, self.deep = (), []

    def take(self, most):
        """The next at most `most` rows: merged (n, hidden) and the list of DeepStack (n, hidden)."""
        if not len(self.merged):
            self.merged, self.deep = next(self.batches)
        n = min(most, len(self.merged))
        out = self.merged[:n], [d[:n] for d in self.deep]
        self.merged, self.deep = self.merged[n:], [d[n:] for d in self.deep]
        return out


def encoded(network, media, meter):
    """Yields merged (n, hidden) and the list of DeepStack (n, hidden) of a few frame pairs at a time."""
    total, done = sum(m.grid[0] for m in media), 0
    for medium, pairs in _batches(media, meter):
        checkpoint()
        settings = network.config.video if medium.kind == "video" else network.config.image
        with meter.timed("vision"):
            merged, deep = network.vision(pairs, settings.mean, settings.std)
        if not np.isfinite(network.ops.numpy(merged)).all():
            raise ModelFileError("the vision tower computed values that are not finite: its weights are damaged")
        done += len(pairs)
        meter.progress("vision", done, total)
        yield merged, deep


def together(network, media, meter):
    """Yields one thing, every feature: merged (N, hidden) and deepstack (K, N, hidden) as numpy float32."""
    numpy, vision = network.ops.numpy, network.config.vision
    count = len(vision.deepstack_indexes)
    merged = [np.zeros((0, vision.out_hidden_size), np.float32)]
    deep = [np.zeros((count, 0, vision.out_hidden_size), np.float32)]
    for features, taps in encoded(network, media, meter):
        merged.append(numpy(features))
        deep.append(np.stack([numpy(d) for d in taps]) if count else np.zeros((0, *features.shape), np.float32))
    yield np.concatenate(merged), np.concatenate(deep, 1)


def _batches(media, meter):
    """Yields (medium, list of frame pairs) of as many pairs as go through the tower together."""
    total, done = sum(2 * m.grid[0] if m.kind == "video" else 1 for m in media), 0
    for medium in media:
        size = max(1, PATCHES // (medium.grid[1] * medium.grid[2]))
        batch, stream = [], ahead(medium.pairs())
        while True:
            with meter.timed("decode"):
                pair = next(stream, None)
            if pair is not None:
                batch.append(pair)
                done += 2 if medium.kind == "video" else 1
                meter.progress("decode", done, total)
            if batch and (pair is None or len(batch) == size):
                yield medium, batch
                batch = []
            if pair is None:
                break


def ahead(items):
    """The items of a generator, each made in another thread while the one before is used. None ends them.

    The thread works under the Stop of the thread that began. However this ends, the item under way is given up and the
    generator closed before it returns: no thread, decoder or open file is left to the garbage collector.
    """
    stop = within()

    def following():
        with using(stop):
            return next(items, None)

    try:
        with ThreadPoolExecutor(1, "ivlite-decode") as thread:
            coming = thread.submit(following)
            try:
                while (item := coming.result()) is not None:
                    coming = thread.submit(following)
                    yield item
            finally:
                coming = item = None  # an exception would keep itself alive: future, traceback, this frame, future
                stop.set("closed")
    finally:
        items.close()
