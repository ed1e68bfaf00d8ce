"""A cache of plain bytes, a short clip and a driver of steps, for tests of sessions and answers."""

import hashlib

import av
import numpy as np

from ivlite.session.table import Layout


class PlainCache:
    """Has the methods of a latent cache that session files use; a row is `token_bytes` bytes."""

    def __init__(self, token_bytes=40):
        self.token_bytes, self.data = token_bytes, np.zeros((0, token_bytes), np.uint8)

    @property
    def length(self):
        return len(self.data)

    def grow(self, count, seed=0):
        """Appends rows that depend on their index and the seed."""
        rows = [hashlib.shake_128(f"{seed} {self.length + i}".encode()).digest(self.token_bytes) for i in range(count)]
        self.restore(self.length, np.frombuffer(b"".join(rows), np.uint8))
        return self

    def reserve(self, capacity):
        """Any number of rows fits."""

    def truncate(self, length):
        assert 0 <= length <= self.length
        self.data = self.data[:length]

    def dump(self, first, last):
        assert 0 <= first < last <= self.length
        return self.data[first:last].reshape(-1).copy()

    def restore(self, first, data):
        assert first == self.length and data.dtype == np.uint8
        self.data = np.concatenate([self.data, data.reshape(-1, self.token_bytes)])


def layout(cache, **changes):
    facts = {
        "model": "a" * 64,
        "kind": "q8",
        "ranks": (8, 8),
        "rope_dim": 4,
        "token_bytes": cache.token_bytes,
        "name": "tiny",
    }
    return Layout(**facts | changes)


def rest(cache, note=""):
    """What a session saves beside its rows."""
    return {"messages": [{"role": "user", "content": note}]}, {"tokens": np.arange(cache.length, dtype=np.int32)}


def contents(file):
    """The whole state in an open session file, to be compared."""
    cache = PlainCache(file.table.layout.token_bytes)
    file.restore(cache)
    table = file.table
    return table.layout, table.meta, {k: a.tolist() for k, a in table.arrays.items()}, cache.data.tobytes()


def clip(shade=0, frames=12):
    """A list of frames: a square that moves; `shade` changes its brightness."""
    pictures = [np.full((64, 96, 3), 20 * i, np.uint8) for i in range(frames)]
    for i, picture in enumerate(pictures):
        picture[:16, 8 * i : 8 * i + 8] = 255 - shade
    return pictures


def written(path, shade=0):
    """Writes clip(shade) as a lossless file, whose size does not depend on the shade; returns the path."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("rawvideo", rate=2)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "rgb24"
        for picture in clip(shade):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def alone(items):
    """What a generator returns that yields the steps of one answer, each of which it runs itself."""
    while True:
        try:
            next(items)
        except StopIteration as end:
            return end.value
