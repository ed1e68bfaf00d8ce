"""Packed weights on a Device, for tests of launchers."""

import numpy as np

from ivlite import _C, ops

INFO = {f["name"]: f for f in _C.formats()}
FORMATS = list(INFO)
QUANTIZED = [name for name, f in INFO.items() if f["quantized"]]
ACTIVATIONS = ["none", "gelu_tanh", "gelu_erf", "silu_mul"]


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def blocks_of(fmt, matrix):
    """Blocks as a file has them: uint8 (all rows, row bytes), columns padded to whole blocks."""
    flat = matrix.reshape(-1, matrix.shape[-1])
    return ops.get("cpu").encode(fmt, flat).reshape(len(flat), -1)


def decoded(fmt, blocks, cols):
    """The floats that blocks stand for, (rows, cols)."""
    info = INFO[fmt]
    padded = blocks.shape[1] // info["block_bytes"] * info["block"]
    return _C.decode(fmt, blocks.reshape(-1), len(blocks) * padded).reshape(len(blocks), padded)[:, :cols]


class Packed:
    """A weight of blocks on the device, and the same on the CPU; `args` as launchers take it."""

    def __init__(self, device, fmt, matrix, blocks=None, chunk=None):
        shape = matrix.shape if matrix.ndim == 3 else (1, *matrix.shape)
        self.fmt, (self.heads, self.rows, self.cols) = fmt, shape
        self.blocks = blocks_of(fmt, matrix) if blocks is None else blocks
        self.cpu = _C.Weight(fmt, self.blocks.reshape(-1), *shape)
        code = FORMATS.index(fmt)
        self.memory = device.empty(device.cuda.device_weight_bytes(code, *shape), np.uint8)
        self.memory.set(np.zeros(self.memory.shape, np.uint8))
        self.args = (code, *shape, self.memory.pointer)
        chunk = chunk or len(self.blocks)
        for first in range(0, len(self.blocks), chunk):
            part = device.array(self.blocks[first : first + chunk])
            device.cuda.pack_weight(*self.args, first, len(part.numpy()), part.pointer, self.blocks.shape[1], 0)

    @property
    def floats(self):
        return self.fmt not in QUANTIZED


def int8_rows(device, x, norm=None, eps=0.0, margin=0):
    """x (tokens, heads, cols) rounded on the device: the Buffer of codes and scales. Rows of x are `margin` further apart."""
    tokens, heads, cols = x.shape
    wide = np.full((tokens, heads, cols + margin), np.nan, np.float32)
    wide[..., :cols] = x
    at = device.array(wide)
    codes = device.empty(device.cuda.int8_bytes(heads, tokens, cols), np.uint8)
    scales = 0 if norm is None else device.array(norm).pointer
    device.cuda.quantize(
        codes.pointer, at.pointer, heads * (cols + margin), cols + margin, heads, tokens, cols, scales, eps, 0
    )
    return codes
