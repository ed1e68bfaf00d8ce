"""Converts tensors from the source's format to their target format, a slice of rows at a time."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from ivlite import _C
from ivlite.errors import ModelFileError
from ivlite.gguf import FORMATS
from ivlite.quantize.safetensors import Source
from ivlite.stop import bound, checkpoint
from ivlite.workers import Workers

SLICE = 1 << 20  # weights at a time: 4 MiB of float32, which stay in a core's cache
# Magnitudes from which a format may overflow to infinity or underflow: of the weights themselves, or of the float16 scale
# of their block. Quantizers that search for the best scale try up to twice the plain one.
OVERFLOW = {
    "bf16": 3.396e38, "f16": 65520.0, "q8_0": 65520.0 * 127, "q4_0": 65520.0 * 4,
    "q6_k": 65520.0 * 127 * 8, "q5_k": 65520.0 * 31, "q4_k": 65520.0 * 31,
}  # fmt: skip
# Float formats viewed as integers: signed type, unsigned type, the bits of infinity. Integers order like magnitudes.
BITS = {"bf16": ("<i2", "<u2", 0x7F80), "f16": ("<i2", "<u2", 0x7C00), "f32": ("<i4", "<u4", 0x7F800000)}


@dataclass(frozen=True)
class Plan:
    """The conversion of one tensor: its source, GGUF name, logical shape, target format and stored shape."""

    source: Source
    name: str
    rows: int
    columns: int
    format: str
    shape: tuple[int, ...]
    note: str = ""

    @property
    def source_columns(self):
        """Columns in the source: padded in a model file."""
        return math.prod(self.source.shape) // self.rows


def slices(p):
    """Yields (first row, number of rows) of slices of about SLICE weights."""
    step = max(1, SLICE // p.columns)
    return [(first, min(step, p.rows - first)) for first in range(0, p.rows, step)]


class Encoder:
    """Encodes slices of tensors: encode(plan, first, count) -> uint8 of those rows. Any thread may call it.

    weights: the source, with `raw`. calibration: a Calibration or None. allow_nan: weights that are not finite become
    zero and are counted in `replaced`, instead of a ModelFileError.
    """

    def __init__(self, weights, calibration=None, allow_nan=False):
        self.weights, self.calibration, self.allow_nan = weights, calibration, allow_nan
        self.replaced = []

    def encode(self, p, first, count):
        row = p.source.nbytes // p.rows
        raw = self.weights.raw(p.source.name, first * row, count * row)
        as_it_is = p.source.format == p.format and p.source_columns == p.shape[-1]
        if p.source.format in BITS:
            largest, values = self._largest(p, raw), None
        else:  # block formats: check the dequantized values
            values = _C.decode(p.source.format, raw, count * p.source_columns)
            largest = float(max(values.max(), -values.min()))
        if not math.isfinite(largest):
            values, largest = self._repaired(p, raw, count)
            as_it_is = False
        if largest >= OVERFLOW.get(p.format, math.inf):
            raise ModelFileError(
                f"{p.source.file}: tensor {p.source.name} holds {largest:g}, beyond {p.format}; convert with --type bf16"
            )
        if as_it_is:
            return raw
        if values is None:
            values = _C.decode(p.source.format, raw, count * p.source_columns)
        return self._blocks(p, values.reshape(count, -1)[:, : p.columns])

    def _blocks(self, p, values):
        """Quantizes float32 (rows, columns) to the plan's format; pads rows with zeros."""
        padding = p.shape[-1] - p.columns
        values = np.pad(values, ((0, 0), (0, padding))) if padding else np.ascontiguousarray(values)
        importance = self.calibration.get(p.name, p.shape[-1]) if self.calibration else None
        return _C.encode(p.format, values.reshape(-1), importance)

    @staticmethod
    def _largest(p, raw):
        """The largest magnitude of raw floats, infinity if one is NaN; computed on integers, without conversion."""
        signed, unsigned, infinity = BITS[p.source.format]
        numbers = raw.view(unsigned)
        sign = 1 << (8 * numbers.itemsize - 1)
        most = int(numbers.max())  # with a sign bit: the negative number of the largest magnitude
        bits = max(int(raw.view(signed).max()), most - sign if most >= sign else 0, 0)
        if bits >= infinity:
            return math.inf
        return float(_C.decode(p.source.format, np.array([bits], unsigned).view(np.uint8), 1)[0])

    def _repaired(self, p, raw, count):
        """The floats of the slice, with zeros in place of values that are not finite, and their largest magnitude."""
        if not self.allow_nan:
            raise _not_finite(p.source)
        values = _C.decode(p.source.format, raw, count * p.source_columns)
        bad = ~np.isfinite(values)
        values[bad] = 0
        self.replaced.append(int(bad.sum()))  # append is thread-safe
        return values, float(max(values.max(), -values.min()))


def _not_finite(source):
    return ModelFileError(
        f"{source.file}: tensor {source.name} holds values that are no numbers (NaN or infinite); "
        "download it again, or give --allow-nan to make them zeros"
    )


def finite(source, raw, allow_nan):
    """Raw weights of a Source without those that are not finite: zeros with allow_nan, else a ModelFileError.

    Of block formats whole blocks become zero: only a scale can be not finite, and then no weight of the block is.
    """
    form = FORMATS[source.format]
    values = _C.decode(source.format, raw, raw.size // form.block_bytes * form.block)
    bad = ~np.isfinite(values).reshape(-1, form.block).all(1)
    if not bad.any():
        return raw
    if not allow_nan:
        raise _not_finite(source)
    blocks = raw.reshape(-1, form.block_bytes).copy()
    blocks[bad] = 0
    return blocks.reshape(-1)


def stream(encoder, plans, writer, progress=None):
    """Writes all tensors that the writer does not have yet. Several threads read, check and encode slices."""
    left = [p for i, p in enumerate(plans) if i not in writer.written]
    jobs = ((p, *rows) for p in left for rows in slices(p))
    total, done = sum(p.source.nbytes for p in left), 0
    threads = _C.num_threads() + 1  # one thread writes, the others read and encode
    waiting, encode = deque(), bound(encoder.encode)
    with Workers(threads) as pool:
        try:
            for job in jobs:
                checkpoint()
                waiting.append((job, pool.submit(encode, *job)))
                if len(waiting) > 2 * threads:
                    done += _written(waiting.popleft(), writer, progress, done, total)
            while waiting:
                done += _written(waiting.popleft(), writer, progress, done, total)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _written(item, writer, progress, done, total):
    """Waits for one slice and writes it; returns its size in the source in bytes."""
    (p, _, count), future = item
    writer.write(future.result())
    size = p.source.nbytes // p.rows * count
    if progress:
        progress("convert", done + size, total)
    return size
