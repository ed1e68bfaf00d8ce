"""The CUDA backend: arrays in the memory of one card, the kernels of csrc/kernels/cuda.

Arrays are those of a memory class (`cuda_memory.TorchMemory`); this module hands their addresses to the kernels. Products of up
to FEW rows multiply int8 activations, or floats where weights are floats; those of more rows go to tensor cores in bf16 or half.
"""

import threading

import numpy as np

from ivlite import _C
from ivlite.errors import DeviceError, OutOfMemoryError
from ivlite.machine import gigabytes
from ivlite.ops.cuda_attention import Attention
from ivlite.ops.cuda_cache import Cache
from ivlite.ops.cuda_layer import DecoderLayer
from ivlite.ops.cuda_linear import COUNTERS, FEW, Products
from ivlite.ops.cuda_step import Step, sample_arguments
from ivlite.ops.cuda_weight import packed

AHEAD = 8  # layers of many tokens that are launched before the first of them has run: work ends so soon after a Stop
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def opened(card, threads=None):
    """The Ops of a card of this machine. Raises UsageError where torch cannot use it."""
    from ivlite.ops import cuda_memory

    return Ops(cuda_memory.opened(card), threads)


class Ops(Products, Attention):
    """The interface of `ivlite.ops` on a card. Encoding and decoding of formats is done by the CPU, with `threads` threads.

    memory: the arrays, with the kernels that work on them (`cuda_memory.TorchMemory`).
    """

    name, same_rows = "cuda", FEW

    def __init__(self, memory, threads=None):
        self.memory, self.pool = memory, _C.ThreadPool(threads)
        self.blocks = {f["name"]: f["block"] for f in _C.formats()}
        self.codes = {f["name"]: i for i, f in enumerate(_C.formats())}
        self.device = f"cuda:{memory.index} ({memory.name})"
        self.marks, self.turn = [], threading.RLock()
        self.arrived = memory.zeros(COUNTERS, "int32")
        self.newest = self.given = lambda: None  # the DecoderLayer that was made last, the Logits that were given last
        self.recordings = None  # the pool of memory of recorded steps

    @property
    def threads(self):
        return self.pool.threads

    def launch(self, kernel, *args):
        """Calls a launcher on the thread's stream. Raises OutOfMemoryError, DeviceError."""
        try:
            self.memory.launch(kernel, *args, self.memory.stream())
        except self.memory.kernels.Error as error:
            code, _, text = error.args
            if code == OUT_OF_MEMORY:
                free, total = self.memory.free()
                raise OutOfMemoryError(
                    f"{self.memory.name} has {gigabytes(free)} of {gigabytes(total)} free: a kernel found no memory"
                ) from None
            raise DeviceError(f"{self.memory.name}: {kernel}: {text}") from None

    def free_memory(self):
        """Bytes that may still be allocated on the card."""
        return self.memory.free()[0]

    def settle(self):
        """Waits until everything that was asked for is computed."""
        self.memory.wait()

    def pace(self):
        """Waits for what was launched AHEAD calls ago: the card is never so far behind that stopping takes long."""
        self.marks.append(self.memory.mark())
        if len(self.marks) > AHEAD:
            self.marks.pop(0)()

    def rows(self, x):
        """(address, elements from row to row, x) of an array of rows; x is kept so that a copy lives until it is used."""
        x = x if x.shape[-1] <= 1 or self.memory.strides(x)[-1] == 1 else self.memory.contiguous(x)
        return self.memory.pointer(x), self.memory.strides(x)[0], x

    # -------------------------------------------------------------------------------------------- arrays and weights

    def array(self, x):
        return self.memory.put(np.ascontiguousarray(x, np.float32))

    def numpy(self, x):
        return self.memory.get(x)

    def concat(self, arrays, axis=1):
        if len(arrays) == 1:
            return arrays[0]
        shape = list(arrays[0].shape)
        shape[axis] = sum(a.shape[axis] for a in arrays)
        out, at = self.memory.empty(tuple(shape)), 0
        for a in arrays:
            part = out[:, at : at + a.shape[1]] if axis else out[at : at + len(a)]
            self._rowwise("copy_rows", part, a, a.shape[1])
            at += a.shape[axis]
        return out

    def copied(self, x):
        return self._rowwise("copy_rows", self.memory.empty(tuple(x.shape)), x, x.shape[1])

    def decode(self, fmt, data, count):
        return _C.decode(fmt, data, count, self.pool)

    def encode(self, fmt, matrix):
        padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % self.blocks[fmt])))
        return _C.encode(fmt, np.ascontiguousarray(padded, np.float32).reshape(-1), pool=self.pool)

    def transposed(self, fmt, data, shape, count, into):
        return _C.transposed(fmt, data, *shape, count, into, self.pool)

    def weight(self, fmt, data, shape, *names):
        return packed(self, fmt, data, shape)

    def embedding(self, w, ids):
        """Rows of a weight (vocab, cols) -> (T, cols). ids: ints, or their 32 bits in a float32 array of the card."""
        if not str(getattr(ids, "dtype", "")).endswith("float32"):
            ids = self.memory.put(np.ascontiguousarray(ids, np.int32))
        y = self.memory.empty((len(ids), w.cols))
        self.launch("embedding_rows", self.memory.pointer(y), w.cols, *w.args, self.memory.pointer(ids), len(ids))
        return y

    # -------------------------------------------------------------------------------------------- row by row

    def _rowwise(self, kernel, y, x, cols):
        at, ld, x = self.rows(x)
        if len(y) and cols:
            self.launch(kernel, (self.memory.pointer(y), self.memory.strides(y)[0]), (at, ld), cols, len(y))
        return y

    def silu_mul(self, x):
        return self._rowwise("silu_mul", self.memory.empty((len(x), x.shape[1] // 2)), x, x.shape[1] // 2)

    def activate(self, activation, x):
        """gelu_tanh or gelu_erf of x (T, N), in place."""
        return self._rowwise(activation, x, x, x.shape[1])

    def rms_norm(self, x, w, eps):
        return self._norm("rms_norm", x, (w,), eps)

    def layer_norm(self, x, w, b, eps):
        return self._norm("layer_norm", x, (w, b), eps)

    def _norm(self, kernel, x, vectors, eps):
        y, pointer = self.memory.empty(tuple(x.shape)), self.memory.pointer
        at, ld, x = self.rows(x)
        if len(x):
            self.launch(kernel, (pointer(y), x.shape[1]), (at, ld), *map(pointer, vectors), x.shape[1], len(x), eps)
        return y

    def rope(self, x, cos, sin, interleaved):
        tokens, heads, d = x.shape
        y, cos, sin = self.memory.empty((tokens, heads, d)), self.memory.contiguous(cos), self.memory.contiguous(sin)
        x = x if self.memory.strides(x)[2] == 1 else self.memory.contiguous(x)
        ldx, ldh, _ = self.memory.strides(x)
        if tokens:
            y_at, x_at, cos_at, sin_at = map(self.memory.pointer, (y, x, cos, sin))
            self.launch("rope", y_at, (x_at, ldx, ldh), cos_at, sin_at, heads, d, interleaved, tokens)
        return y

    def patchify(self, frames, patch, merge, mean, std):
        temporal, h, w, channels = frames.shape
        on_card = self.memory.put(np.ascontiguousarray(frames))
        y = self.memory.empty((h // patch * (w // patch), channels * temporal * patch * patch))
        y_at, at = self.memory.pointer(y), self.memory.pointer(on_card)
        self.launch("patchify", y_at, at, temporal, h, w, patch, merge, list(mean), list(std))
        return y

    # -------------------------------------------------------------------------------------------- decoding

    def cache(self, ranks, rope_dim, capacity, kind):
        return Cache(self, ranks, rope_dim, capacity, kind)

    def decoder_layer(self, **operands):
        return DecoderLayer(self, operands)

    def step(self, compute, token_ids, cos, sin, cache, recorded):
        """Logits of a few tokens of text, on the card (`cuda_step.Logits`), and their rows in the cache.

        compute(ids, cos, sin, cache) -> (T, vocab): the network over arrays of the card, which appends to the cache and does not
        advance. cos, sin: numpy (T, half). recorded: a dict that belongs to compute, for its steps over caches of each shape.
        """
        tokens = len(token_ids)
        cache.room(tokens)
        with self.turn:  # what is recorded has one place for its inputs
            key = tokens, cache.shape
            if key not in recorded:
                recorded[key] = Step(self, compute, tokens, cos.shape[1], len(cache.ranks))
            cache.recorded[tokens] = recorded[key]
            logits = recorded[key](token_ids, cos, sin, cache)
            cache.length += tokens
        return logits

    def hand_over(self, cache):
        """Before a step over a cache: the logits that were given last stay what they are, if they are another cache's."""
        last = self.given()
        if last is not None and last.cache is not None and last.cache() is not cache:
            last.keep()

    def likeliest(self, logits):
        """The likeliest token of each row of logits (T, vocab): int32 (T, 3), see `cuda_step.TOKEN`."""
        found = self.memory.empty((len(logits), 3), "int32")
        arguments, _kept = sample_arguments(self, logits, found)
        self.launch("sample_greedy", *arguments, len(logits))
        return found

    def drawn(self, logits, params, marked, uniform):
        """A token drawn from logits (1, vocab), int32 (1, 3); see `cuda_step.CardRow.draw`."""
        found = self.memory.empty((1, 3), "int32")
        arguments, _kept = sample_arguments(self, logits, found, params, marked, uniform)
        if params.temperature:
            self.launch("sample_draw", *arguments)
        else:
            self.launch("sample_greedy", *arguments, 1)
        return found
