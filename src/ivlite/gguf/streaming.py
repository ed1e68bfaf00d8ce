"""Layer streaming: reads and packs each layer before it runs and frees it afterwards, so that one layer is in memory."""

from ivlite.gguf.loading import Loader

HEAD_ROWS = 8192  # rows of the output matrix in memory at a time; a multiple of the panel height of every kernel


class StreamingLoader(Loader):
    """A Loader whose layers are loaded on every pass over the network, and whose output matrix is loaded in chunks."""

    def layers(self, count, make):
        return _StreamedLayers(count, make)

    def table(self, name, rows, cols, head, head_name):
        return None

    def head(self, name, rows, cols):
        return _ChunkedHead(self, name, rows, cols)


class _StreamedLayers:
    """Makes each layer during iteration, of all or of a slice."""

    def __init__(self, count, make):
        self.count, self.make = count, make

    def __iter__(self):
        return self[:]

    def __getitem__(self, part):
        return (self.make(i) for i in range(self.count)[part])


class _ChunkedHead:
    """x (T, cols) -> (T, rows), with HEAD_ROWS rows in memory at a time."""

    def __init__(self, load, name, rows, cols):
        self.load, self.name, self.rows, self.cols = load, name, rows, cols

    def __call__(self, x):
        ops, chunks = self.load.ops, []
        for first in range(0, self.rows, HEAD_ROWS):
            count = min(HEAD_ROWS, self.rows - first)
            fmt, data = self.load.read(self.name, first, count)
            chunks.append(ops.linear(x, ops.weight(fmt, data, (count, self.cols))))
        return ops.concat(chunks)
