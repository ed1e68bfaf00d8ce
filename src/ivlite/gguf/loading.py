"""Loads the weights of a network: reads tensors and packs them for a backend."""

import math

from ivlite.ops.modules import Linear
from ivlite.stop import checkpoint

CHUNK_BYTES = 8 << 20  # of a tensor read at a time: small enough that the allocator reuses the memory


class Loader:
    """Reads tensors of a source (`tensors`, `read`), packs them for a backend, and reports progress in bytes."""

    def __init__(self, source, ops, progress=None):
        self.source, self.ops, self.progress = source, ops, progress
        self.done = 0
        # The embedding table stays in the file, unless it is also the output matrix or the backend keeps it.
        stays = "output.weight" in source.tensors and getattr(ops, "embedding", None) is None
        left = {"token_embd.weight"} if stays else set()
        self.total = sum(t.nbytes for name, t in source.tensors.items() if name not in left)

    def read(self, name, *rows):
        """Format name and raw bytes of a tensor, or of its `rows` (first, count)."""
        checkpoint()
        data = self.source.read(name, *rows)
        self.done += len(data)
        if self.progress:
            self.progress("load", self.done, self.total)
        return self.source.tensors[name].format, data

    def has(self, name):
        return name in self.source.tensors

    def exact(self, name):
        """Whether a matrix has a float format; its layer then computes in float precision."""
        return self.source.tensors[name].format in ("f32", "f16", "bf16")

    def floats(self, name):
        """A tensor as numpy float32."""
        fmt, data = self.read(name)
        shape = self.source.tensors[name].shape
        return self.ops.decode(fmt, data, math.prod(shape)).reshape(shape)

    def vector(self, name):
        return self.ops.array(self.floats(name)) if self.has(name) else None

    def chunks(self, *names):
        """Yields the rows of matrices of one format, stacked, in chunks of a few megabytes: uint8 (n, row bytes)."""
        for name in names:
            info = self.source.tensors[name]
            rows = math.prod(info.shape[:-1])
            step = max(1, CHUNK_BYTES * rows // max(1, info.nbytes) // 64 * 64)  # whole panels of every kernel
            for first in range(0, rows, step):
                count = min(step, rows - first)
                yield self.read(name, first, count)[1].reshape(count, -1)

    def matrix(self, rows, cols, *names):
        """A packed weight (rows, cols) of matrices of one format, stacked."""
        return self.ops.weight(self.source.tensors[names[0]].format, self.chunks(*names), (rows, cols), *names)

    def linear(self, name, rows, cols):
        return Linear(self.ops, self.matrix(rows, cols, f"{name}.weight"), self.vector(f"{name}.bias"))

    def norm(self, name):
        return self.vector(f"{name}.weight"), self.vector(f"{name}.bias")

    def layers(self, count, make):
        """An iterable of the layers make(0) to make(count - 1), in the order in which they run."""
        return [make(i) for i in range(count)]

    def table(self, name, rows, cols, head, head_name):
        """The matrix of embeddings for a backend that looks rows up in its own memory; None for others, which read the file.

        head: the output layer of that name, whose matrix may be the same one.
        """
        if getattr(self.ops, "embedding", None) is None:
            return None
        return head.weight if head_name == name else self.matrix(rows, cols, name)

    def head(self, name, rows, cols):
        """The output layer, which computes the logits."""
        return Linear(self.ops, self.matrix(rows, cols, name))
