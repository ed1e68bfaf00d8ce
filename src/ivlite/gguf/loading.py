"""How a model's tensors become weights: all of them before it runs, or each part when its turn comes."""

import math

from ivlite.stop import checkpoint

PIECE_BYTES = 8 << 20  # of a tensor that are read at once: the allocator hands the same memory out again
HEAD_ROWS = 8192  # of the logits' matrix that are in memory at a time, where parts are loaded in turn; whole panels


class Loader:
    """Reads tensors of a source (`tensors`, `read`) into an operation set, reporting bytes as it goes."""

    def __init__(self, source, ops, progress=None):
        self.source, self.ops, self.progress = source, ops, progress
        self.done = 0
        # The embedding table stays in the file, unless it is the head as well.
        left = {"token_embd.weight"} if "output.weight" in source.tensors else set()
        self.total = sum(t.nbytes for name, t in source.tensors.items() if name not in left)

    def read(self, name, *rows):
        """Format name and raw bytes of a tensor, or of its `rows`, (first, count)."""
        checkpoint()
        data = self.source.read(name, *rows)
        self.done += len(data)
        if self.progress:
            self.progress("load", self.done, self.total)
        return self.source.tensors[name].format, data

    def has(self, name):
        return name in self.source.tensors

    def exact(self, name):
        """Whether a matrix is kept in floats: its results are wanted to float precision."""
        return self.source.tensors[name].format in ("f32", "f16", "bf16")

    def floats(self, name):
        """A tensor as numpy float32, in its own shape."""
        fmt, data = self.read(name)
        shape = self.source.tensors[name].shape
        return self.ops.decode(fmt, data, math.prod(shape)).reshape(shape)

    def vector(self, name):
        return self.ops.array(self.floats(name)) if self.has(name) else None

    def pieces(self, *names):
        """The rows of matrices of one format, one below the other, as uint8 (n, row bytes), a few megabytes each."""
        for name in names:
            info = self.source.tensors[name]
            rows = math.prod(info.shape[:-1])
            step = max(1, PIECE_BYTES * rows // max(1, info.nbytes) // 64 * 64)  # whole panels of every set
            for first in range(0, rows, step):
                count = min(step, rows - first)
                yield self.read(name, first, count)[1].reshape(count, -1)

    def matrix(self, rows, cols, *names):
        """A packed weight (rows, cols) of matrices of one format, one below the other."""
        return self.ops.weight(self.source.tensors[names[0]].format, self.pieces(*names), (rows, cols), *names)

    def linear(self, name, rows, cols):
        return Linear(self.ops, self.matrix(rows, cols, f"{name}.weight"), self.vector(f"{name}.bias"))

    def norm(self, name):
        return self.vector(f"{name}.weight"), self.vector(f"{name}.bias")

    def parts(self, count, make):
        """The parts make(0) to make(count - 1), to be run in this order; a loader may make each when its turn comes."""
        return [make(i) for i in range(count)]

    def head(self, name, rows, cols):
        """The matrix of the logits; a loader may take it in slices."""
        return Linear(self.ops, self.matrix(rows, cols, name))


class Streaming(Loader):
    """Makes each part when its turn comes and drops it afterwards, and the head in slices: memory for one, at its cost."""

    def parts(self, count, make):
        return _Parts(count, make)

    def head(self, name, rows, cols):
        return _Head(self, name, rows, cols)


class Linear:
    """y = W x + b over an operation set."""

    def __init__(self, ops, weight, bias=None):
        self.ops, self.weight, self.bias = ops, weight, bias

    def __call__(self, x, into=None):
        return self.ops.linear(x, self.weight, self.bias, into)


class Mlp:
    """down(activation(up x)), of two Linear."""

    def __init__(self, up, activation, down):
        self.up, self.activation, self.down = up, activation, down

    def __call__(self, x, into=None):
        up, down = ((half.weight, half.bias) for half in (self.up, self.down))
        return self.up.ops.mlp(x, up, self.activation, down, into)


class SplitMlp:
    """A SwiGLU MLP whose gate and up are of two formats."""

    def __init__(self, gate, up, down):
        self.gate, self.up, self.down = gate, up, down

    def __call__(self, x, into=None):
        ops = self.down.ops
        return self.down(ops.silu_mul(ops.concat([self.gate(x), self.up(x)])), into)


class _Parts:
    def __init__(self, count, make):
        self.count, self.make = count, make

    def __iter__(self):
        return (self.make(i) for i in range(self.count))


class _Head:
    """x (T, cols) -> (T, rows), reading HEAD_ROWS rows at a time."""

    def __init__(self, load, name, rows, cols):
        self.load, self.name, self.rows, self.cols = load, name, rows, cols

    def __call__(self, x):
        ops, slices = self.load.ops, []
        for first in range(0, self.rows, HEAD_ROWS):
            count = min(HEAD_ROWS, self.rows - first)
            fmt, data = self.load.read(self.name, first, count)
            slices.append(ops.linear(x, ops.weight(fmt, data, (count, self.cols))))
        return ops.concat(slices)
