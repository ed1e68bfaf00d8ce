"""As much of torch's interface as the reference operations use, over numpy: they are tested where torch is not installed.

`installed()` is a context in which `import torch` gives this, or the real one where there is one.
"""

import importlib.util
import math
import sys
import types
from contextlib import contextmanager

import numpy as np


class Tensor(np.ndarray):
    """An array with torch's names for what numpy calls otherwise."""

    def abs(self):
        return np.abs(self)

    def amax(self, axis, keepdim=False):
        return tensor(self.max(axis, keepdims=keepdim))

    def clone(self):
        return self.copy()

    def float(self):
        return self.astype(np.float32)

    def half(self):
        return self.astype(np.float16)

    def masked_fill(self, mask, value):
        return tensor(np.where(mask, np.float32(value), self))

    def mean(self, axis, keepdim=False):
        return tensor(np.mean(np.asarray(self), axis, keepdims=keepdim))

    def numpy(self):
        return np.asarray(self)

    def permute(self, *axes):
        return np.ndarray.transpose(self, axes)

    def pow(self, exponent):
        return self**exponent

    def softmax(self, axis):
        e = np.exp(self - self.max(axis, keepdims=True))
        return e / e.sum(axis, keepdims=True)

    def to(self, dtype):
        return self.astype(dtype)

    def transpose(self, a, b):
        return self.swapaxes(a, b)

    def triu(self, diagonal=0):
        return tensor(np.triu(np.asarray(self), diagonal))


def tensor(x):
    return np.asarray(x, np.float32 if not hasattr(x, "dtype") else None).view(Tensor)


def gelu(x, approximate="none"):
    x64 = np.asarray(x, np.float64)
    if approximate == "tanh":
        return tensor((x64 / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x64 + 0.044715 * x64**3)))).astype(np.float32))
    return tensor((x64 / 2 * (1 + np.vectorize(math.erf)(x64 / math.sqrt(2)))).astype(np.float32))


def layer_norm(x, shape, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / np.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight + bias


class Threads:
    count = 1

    @classmethod
    def set(cls, count):
        cls.count = count


def modules():
    """{"torch": ..., "torch.nn": ..., "torch.nn.functional": ...}."""
    torch, nn, functional = (types.ModuleType(name) for name in ("torch", "torch.nn", "torch.nn.functional"))
    torch.nn, nn.functional = nn, functional
    torch.bool, torch.inf = np.bool_, math.inf
    torch.from_numpy = torch.tensor = tensor
    torch.int8, torch.float16, torch.float32 = np.int8, np.float16, np.float32
    torch.zeros = lambda *shape, dtype=np.float32: tensor(np.zeros(shape, dtype))
    torch.ones = lambda *shape, dtype: tensor(np.ones(shape, dtype))
    torch.cat = lambda arrays, axis=0: tensor(np.concatenate(arrays, axis))
    torch.einsum = lambda form, *arrays: tensor(np.einsum(form, *map(np.asarray, arrays), optimize=True))
    torch.arange = lambda n: tensor(np.arange(n))
    torch.where = lambda where, x, y: tensor(np.where(where, x, y))
    torch.round, torch.zeros_like = np.round, np.zeros_like
    torch.rsqrt = lambda x: 1 / np.sqrt(x)
    torch.set_num_threads, torch.get_num_threads = Threads.set, lambda: Threads.count
    functional.silu = lambda x: x / (1 + np.exp(-x))
    functional.linear = lambda x, w, bias=None: tensor(x @ w.swapaxes(-1, -2)) + (0 if bias is None else bias)
    functional.gelu, functional.layer_norm = gelu, layer_norm
    return {"torch": torch, "torch.nn": nn, "torch.nn.functional": functional}


@contextmanager
def installed():
    if importlib.util.find_spec("torch") is not None:
        yield
        return
    made = modules()
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in (*made, "ivlite.ops.reference"):
            sys.modules.pop(name, None)
