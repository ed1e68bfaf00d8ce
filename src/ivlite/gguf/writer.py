"""Writes a GGUF file, version 3, atomically: a file under its final name is always complete."""

import math
import struct
import zlib

import numpy as np

from ivlite.errors import Stopped
from ivlite.gguf.formats import FORMATS
from ivlite.gguf.header import ARRAY, BOOL, SCALARS, STRING, VERSION
from ivlite.output import Partial

ALIGNMENT = 32
U32, I64, F64, U64 = 4, 11, 12, 10
TYPED = {np.dtype(name): kind for kind, name in SCALARS.items()}  # numpy values keep their type
# CRC-32 checksums: of each tensor's bytes in file order, and of all bytes before the data with these two values zeroed.
# They are metadata of fixed size, filled in as the tensors are written.
TENSOR_SUMS, HEADER_SUM = "ivlite.checksum.tensors", "ivlite.checksum.header"
CHUNK = 1 << 22  # bytes read back at a time


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _kind(value):
    """The GGUF type of a Python value: u32 for an int that fits, else u64 or i64; f64 for a float."""
    if isinstance(value, list) or getattr(value, "ndim", 0):
        return ARRAY
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return U32 if 0 <= value < 1 << 32 else U64 if value > 0 else I64
    return F64 if isinstance(value, float) else STRING


def _scalar(value, kind):
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        return _value(value)[4:]  # without its own type, which stands once before all
    return struct.pack({BOOL: "<?", U32: "<I", U64: "<Q", I64: "<q", F64: "<d"}[kind], value)


def _value(value):
    """Type and bytes of a metadata value; a list has the widest type of its values."""
    if hasattr(value, "dtype"):
        kind = TYPED[value.dtype]
        start = struct.pack("<IIQ", ARRAY, kind, value.size) if value.ndim else struct.pack("<I", kind)
        return start + value.tobytes()
    if not isinstance(value, (list, tuple)):
        kind = _kind(value)
        return struct.pack("<I", kind) + _scalar(value, kind)
    kind = max((_kind(v) for v in value), default=U32)
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_scalar(v, kind) for v in value)


def nbytes(shape, fmt):
    """Bytes of a tensor whose rows are whole blocks."""
    return math.prod(shape) // FORMATS[fmt].block * FORMATS[fmt].block_bytes


def header(metadata, tensors):
    """(all bytes before the data, size of the data in bytes, {key: offset} of the two checksums).

    tensors: (name, shape, format) in the order of the data.
    """
    out, places = bytearray(b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))), {}
    for key, value in metadata.items():
        out += _string(key)
        places[key] = len(out) + (16 if key == TENSOR_SUMS else 4)  # after the type, for a list also its type and count
        out += _value(value)
    offset = 0
    for name, shape, fmt in tensors:
        dims = tuple(reversed(shape))  # the row comes first in the file
        out += _string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        out += struct.pack("<IQ", FORMATS[fmt].ggml_type, offset)
        offset += _aligned(nbytes(shape, fmt))
    out += bytes(-len(out) % ALIGNMENT)
    return bytes(out), offset, {key: places[key] for key in (TENSOR_SUMS, HEADER_SUM) if key in places}


def with_checksums(metadata, tensors):
    """The metadata, preceded by the checksums of that many tensors, still zero."""
    return {TENSOR_SUMS: np.zeros(tensors, np.uint32), HEADER_SUM: 0, **metadata}


def _aligned(count):
    return -(-count // ALIGNMENT) * ALIGNMENT


class GGUFWriter:
    """Writes tensors one after another to a hidden file beside `path`, and renames it to `path` at the end of the block.

    with GGUFWriter(path, metadata, tensors) as out: out.write(bytes) ... for each tensor in order, in chunks of any
    size. Raises DiskError. After any exception an older file at `path` is unchanged.

    With a mark (32 bytes that identify the work, see Partial) the metadata gets checksums, and an interruption keeps the
    hidden file. `resume` continues it: `written` are the indexes of its complete tensors, which must not be written
    again. `notes` are sentences about what the filesystem does not support.
    """

    def __init__(self, path, metadata, tensors, mark=None, resume=False):
        metadata = with_checksums(metadata, len(tensors)) if mark else metadata
        self.start, data, self.places = header(metadata, tensors)
        self.sizes = [nbytes(shape, fmt) for _, shape, fmt in tensors]
        self.offsets, at = [], len(self.start)
        for size in self.sizes:
            self.offsets.append(at)
            at += _aligned(size)
        self.size = len(self.start) + data
        self.file = Partial(path, self.size, mark, resume)
        try:
            self.written = self._found() if self.file.resumed else set()
            if not self.file.resumed:
                self._begin()
        except BaseException:
            self.file.close(keep=False)
            raise
        self.tensor, self.done, self.sum = -1, 0, 0  # current tensor, bytes written of it, their checksum
        self._following()

    @property
    def notes(self):
        return tuple(self.file.notes)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        keep = isinstance(error, KeyboardInterrupt | Stopped)
        try:
            if error is None:
                self._finish()
        except KeyboardInterrupt:
            keep = True
            raise
        finally:
            self.file.close(keep=keep and self.file.mark is not None and len(self.written) > 0)

    def write(self, data):
        """Writes the next bytes of the current tensor."""
        view = memoryview(data).cast("B")
        size = self.sizes[self.tensor]
        if self.done + len(view) > size:
            raise ValueError(f"tensor {self.tensor} has {size} bytes, got {self.done + len(view)}")
        self.file.put(view, self.offsets[self.tensor] + self.done)
        self.sum = zlib.crc32(view, self.sum)
        self.done += len(view)
        if self.done == size:
            if self.file.mark:
                self.file.put(struct.pack("<I", self.sum), self.places[TENSOR_SUMS] + 4 * self.tensor)
            self.written.add(self.tensor)
            self._following()

    def _following(self):
        self.tensor, self.done, self.sum = self.tensor + 1, 0, 0
        while self.tensor in self.written:
            self.tensor += 1

    def _begin(self):
        start = bytearray(self.start)
        if self.file.mark:
            at = self.places[HEADER_SUM]
            start[at : at + 4] = struct.pack("<I", zlib.crc32(self.start))
        self.file.put(start, 0)

    def _found(self):
        """Indexes of the tensors of an unfinished file whose checksums are stored and right."""
        start = bytearray(self.file.get(len(self.start), 0))
        at, sums = self.places[TENSOR_SUMS], 4 * len(self.sizes)
        stored = struct.unpack(f"<{len(self.sizes)}I", start[at : at + sums])
        start[at : at + sums] = bytes(sums)
        head = self.places[HEADER_SUM]
        start[head : head + 4] = bytes(4)
        if start != self.start:  # the mark was written, the header not yet
            self._begin()
            return set()
        return {i for i, found in enumerate(stored) if found and found == self._sum(i)}

    def _sum(self, i):
        total, end = 0, self.offsets[i] + self.sizes[i]
        for at in range(self.offsets[i], end, CHUNK):
            total = zlib.crc32(self.file.get(min(CHUNK, end - at), at), total)
        return total

    def _finish(self):
        if len(self.written) != len(self.sizes):
            raise ValueError(f"only {len(self.written)} of {len(self.sizes)} tensors were written")
        self.file.finish()
