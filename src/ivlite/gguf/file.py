"""Reads GGUF files, version 3, little-endian: metadata and tensor infos at once, tensor data on demand.

A file is not trusted: every count, length, dimension and offset is checked against the file's size before anything is
allocated for it (`header.py`). Every fault raises a ModelFileError that names the file and what to do. Files are not
mapped: a mapped file that another program shortens would kill the process.
"""

import hashlib
import math
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from ivlite.files import expanded, path_text
from ivlite.gguf.header import HEADER_LIMIT, Header
from ivlite.gguf.reader import MODEL, Reader
from ivlite.output import PACKAGED

SHIPPED = {"demo": PACKAGED / "demo.gguf"}  # models in the package


SAMPLE = 4096  # bytes read at the beginning, middle and end of every tensor for the digest of a file


class GGUFFile:
    """An open GGUF file: `metadata` (key -> value), `tensors` (name -> TensorInfo), `path`, `size` in bytes.

    A value is a bool, int, float or str, a numpy array of numbers, or a list of str or of such arrays and lists. Use as a
    context manager, or close(). The constructor raises ModelFileError; so do reads of a file that was shortened or changed.
    """

    def __init__(self, path, kind=MODEL):
        self.path = located(path)
        self.reader = Reader(self.path, kind)
        self.size = self.reader.size
        try:
            header = Header(self.reader)
            self.metadata, self.tensors = header.read()
            self._types = header.types
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the file; reads fail afterwards."""
        self.reader.close()

    @property
    def architecture(self):
        """general.architecture; "" if it is missing or not a string."""
        return text_of(self.metadata, "general.architecture")

    def stored(self, key):
        """A metadata value with its type in the file: a number as a numpy scalar, others as in `metadata`."""
        value = self.metadata[key]
        return self._types[key].type(value) if key in self._types else value

    @cached_property
    def digest(self):
        """Hexadecimal text that identifies the file's contents: of its size, its header and three samples of each tensor.

        Takes milliseconds for a file of any size. The header of a file made by `ivlite quantize` holds the checksum of
        every tensor.
        """
        end = min(HEADER_LIMIT, *(info.offset for info in self.tensors.values()), self.size)
        total = hashlib.sha256(f"{self.size} ".encode())
        for first in range(0, end, 1 << 24):
            total.update(self.reader.read(first, min(1 << 24, end - first)))
        for info in self.tensors.values():
            size = min(SAMPLE, info.nbytes)
            for at in (0, (info.nbytes - size) // 2, info.nbytes - size):
                total.update(self.reader.read(info.offset + at, size))
        return total.hexdigest()

    def read(self, name, first=0, count=None):
        """The bytes of a tensor, uint8 (nbytes,), or of `count` rows of a matrix from row `first` on."""
        info = self.tensors[name]
        if count is None:
            return self.reader.read(info.offset, info.nbytes)
        row = info.nbytes // math.prod(info.shape[:-1])
        return self.reader.read(info.offset + first * row, count * row)

    def read_rows(self, name, ids):
        """Rows of a matrix by index, int64 (n,) -> uint8 (n, row bytes). Raises IndexError."""
        info = self.tensors[name]
        ids = np.asarray(ids, np.int64)
        count = math.prod(info.shape[:-1])
        if len(ids) and not 0 <= ids.min() <= ids.max() < count:
            raise IndexError(f"{name} has rows 0 to {count - 1}, asked for {ids.min()} to {ids.max()}")
        row = info.nbytes // count
        wanted, where = np.unique(ids, return_inverse=True)  # a video repeats one token thousands of times
        rows = np.empty((len(wanted), row), np.uint8)
        for out, i in zip(rows, wanted.tolist(), strict=True):
            self.reader.fill(out, info.offset + i * row)
        return rows[where.reshape(-1)]


def text_of(metadata, key):
    """A string of the metadata; "" if it is missing or not a string."""
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def located(path):
    """The Path of a model: expands ~; the name of one in the package gives its file, unless a file of that name exists.

    Raises UsageError for what is no path.
    """
    name = path_text(path)
    shipped = SHIPPED.get(name)
    return shipped if shipped and shipped.is_file() and not os.path.isfile(name) else Path(expanded(name))
