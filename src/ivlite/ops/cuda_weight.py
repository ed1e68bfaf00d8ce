"""Packed weights in the memory of a card."""

import numpy as np

CHUNK = 16 << 20  # bytes of blocks on the card at a time while they are packed


class Weight:
    """A matrix (rows, cols), or one per head, in the planes of csrc/kernels/cuda/weight.h.

    format: as it lies on the card, where bf16 is kept as f16. args: how launchers take it: format, heads, rows, columns, address.
    """

    def __init__(self, ops, fmt, heads, rows, cols):
        self.format, self.heads, self.rows, self.cols = "f16" if fmt == "bf16" else fmt, heads, rows, cols
        code = ops.codes[self.format]
        nbytes = ops.memory.kernels.device_weight_bytes(code, heads, rows, cols)
        self.memory = ops.memory.zeros(nbytes, "uint8")
        self.args = code, heads, rows, cols, ops.memory.pointer(self.memory)

    @property
    def nbytes(self):
        return len(self.memory)

    @property
    def floats(self):
        """Whether its format is a float format: then activations are not rounded to int8."""
        return self.format in ("f32", "f16")


def packed(ops, fmt, data, shape):
    """A Weight of blocks as a file has them: uint8 (nbytes,), or an iterable of row chunks (n, row bytes)."""
    heads, rows, cols = shape if len(shape) == 3 else (1, *shape)
    weight, first = Weight(ops, fmt, heads, rows, cols), 0
    chunks = [data.reshape(heads * rows, -1)] if isinstance(data, np.ndarray) else data
    for chunk in chunks:
        if first + len(chunk) > heads * rows:
            raise ValueError(f"a weight of {heads * rows} rows is given more")
        each = max(1, CHUNK // max(1, chunk.shape[1]))
        for at in range(0, len(chunk), each):
            part = chunk[at : at + each]
            blocks = ops.memory.put(part)
            ops.launch(
                "pack_weight",
                ops.codes[fmt],
                *weight.args[1:],
                first,
                len(part),
                ops.memory.pointer(blocks),
                part.shape[1],
            )
            first += len(part)
    if first != heads * rows:
        raise ValueError(f"a weight of {heads * rows} rows is given {first}")
    return weight
