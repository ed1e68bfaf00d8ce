"""Writes a GGUF file, version 3: all or nothing, so that a name never stands for half a model."""

import math
import os
import secrets
import struct
from pathlib import Path

from ivlite.errors import DiskError, UsageError
from ivlite.gguf import ARRAY, BOOL, FORMATS, STRING, VERSION
from ivlite.machine import gigabytes

ALIGNMENT = 32
U32, I64, F64, U64 = 4, 11, 12, 10
ADVICE = "free some space or write elsewhere"


def _string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _kind(value):
    """The GGUF type of a Python value: whole numbers take 32 bits where they fit, others 64, as do fractions."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return U32 if 0 <= value < 1 << 32 else U64 if value > 0 else I64
    return F64 if isinstance(value, float) else STRING


def _scalar(value, kind):
    if kind == STRING:
        return _string(value)
    return struct.pack({BOOL: "<?", U32: "<I", U64: "<Q", I64: "<q", F64: "<d"}[kind], value)


def _value(value):
    """Type and bytes of a metadata value; the values of a list share the widest of their types."""
    if not isinstance(value, (list, tuple)):
        kind = _kind(value)
        return struct.pack("<I", kind) + _scalar(value, kind)
    kind = max((_kind(v) for v in value), default=U32)
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + b"".join(_scalar(v, kind) for v in value)


def nbytes(shape, fmt):
    """Bytes of a tensor whose rows are whole blocks."""
    return math.prod(shape) // FORMATS[fmt].block * FORMATS[fmt].block_bytes


def header(metadata, tensors):
    """All bytes before the data, and the bytes of the data. tensors: (name, shape, format) in the order of the data."""
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, shape, fmt in tensors:
        dims = tuple(reversed(shape))  # the row comes first in the file
        parts += [_string(name), struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
        parts.append(struct.pack("<IQ", FORMATS[fmt].ggml_type, offset))
        offset += _aligned(nbytes(shape, fmt))
    data = b"".join(parts)
    return data + bytes(-len(data) % ALIGNMENT), offset


def _aligned(count):
    return -(-count // ALIGNMENT) * ALIGNMENT


class GGUFWriter:
    """Writes tensors one after another to a hidden file beside `path`, which becomes `path` when the block ends well.

    with GGUFWriter(path, metadata, tensors) as out: out.write(bytes) ... for each tensor in order, in pieces of any
    size. Raises DiskError for what the disk refuses; whatever is raised, an older file at `path` stays as it was.
    """

    def __init__(self, path, metadata, tensors):
        self.name = Path(path)
        self.path = Path(os.path.realpath(path))  # through a link: replace what it points to, not the link
        start, data = header(metadata, tensors)
        self.sizes = [nbytes(shape, fmt) for _, shape, fmt in tensors]
        self.size = len(start) + data
        self.tensor, self.done = 0, 0  # which tensor is being written, and how much of it
        self._check_place()
        self.partial = self.path.with_name(f".{self.path.name[:100]}.{secrets.token_hex(4)}.partial")
        with _disk(self.name):
            self._fd = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self._put(start)
        except BaseException:
            self._discard()
            raise

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        try:
            if error is None:
                self._finish()
        finally:
            self._discard()

    def write(self, data):
        """The next bytes of the current tensor; whole tensors are padded to the alignment."""
        size = self.sizes[self.tensor]
        self._put(data)
        self.done += len(data)
        if self.done > size:
            raise ValueError(f"tensor {self.tensor} has {size} bytes, got {self.done}")
        if self.done == size:
            self._put(bytes(-size % ALIGNMENT))
            self.tensor, self.done = self.tensor + 1, 0

    def _check_place(self):
        """Refuses what cannot become a file, and a disk without room for it, before any work."""
        folder = self.path.parent
        if self.path.is_dir():
            raise UsageError(f"{self.name} is a folder: name the file to write")
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"{self.name} is not a regular file: name a file on a disk")
        if not folder.is_dir():
            raise DiskError(f"{self.name} cannot be written: there is no folder {self.name.parent}; make it first")
        with _disk(self.name):
            disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        if free < self.size:
            raise DiskError(
                f"{self.name} needs {gigabytes(self.size)} and {gigabytes(free)} are free on its disk; {ADVICE}"
            )

    def _put(self, data):
        view = memoryview(data).cast("B")
        with _disk(self.name):
            while len(view):
                view = view[os.write(self._fd, view[: 1 << 30]) :]

    def _finish(self):
        if self.tensor != len(self.sizes):
            raise ValueError(f"only {self.tensor} of {len(self.sizes)} tensors were written")
        with _disk(self.name):
            os.fsync(self._fd)
            os.replace(self.partial, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # so that the new name, too, survives a power cut
            finally:
                os.close(folder)

    def _discard(self):
        """Closes the hidden file, and removes it where it has not become the output."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self.partial.unlink(missing_ok=True)


class _disk:
    """Turns an OSError of the block into a DiskError that names the output."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, OSError) and not isinstance(error, DiskError):
            raise DiskError(f"{self.path} cannot be written: {error.strerror or error}; {ADVICE}") from None
