"""Reads GGUF files, version 3, little-endian: metadata and tensor records at once, tensor data when asked for.

A file is not trusted: every count, length, dimension and offset is checked against what the file can hold before
anything is allocated for it. Whatever is wrong becomes one ModelFileError that names the file and what to do.

Layout: "GGUF", u32 version, u64 tensors, u64 pairs; the pairs (string key, u32 type, value); the tensor records
(string name, u32 dims, u64 per dim with the row length first, u32 type, u64 offset); data at the next multiple of
general.alignment. A string is a u64 length and UTF-8; an array is a u32 type, a u64 count and the values.
"""

import io
import math
import mmap
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivlite.errors import ModelFileError

AGAIN = "download it again, or convert the checkpoint again with `ivlite quantize`"
HEADER_LIMIT = 1 << 29  # bytes of metadata and records; the largest tokenizers take some 20 MB
ARRAY_LIMIT = 1 << 24  # values in one metadata array
NAME_LIMIT = 1 << 16  # bytes of a key or a tensor's name
DIMS_LIMIT = 4
VERSION = 3
SHIPPED = {"demo": Path(__file__).parents[1] / "data" / "demo.gguf"}  # models that come with the package


@dataclass(frozen=True)
class Format:
    """How ggml stores weights: its type id, weights per block, bytes per block, and whether ivlite computes with it."""

    ggml_type: int
    block: int
    block_bytes: int
    runs: bool = False


# Every type a file may hold, so that any file can be inspected. The sizes are those of the GGUF specification.
FORMATS = {
    "f32": Format(0, 1, 4, runs=True),
    "f16": Format(1, 1, 2, runs=True),
    "q4_0": Format(2, 32, 18, runs=True),
    "q4_1": Format(3, 32, 20),
    "q5_0": Format(6, 32, 22),
    "q5_1": Format(7, 32, 24),
    "q8_0": Format(8, 32, 34, runs=True),
    "q2_k": Format(10, 256, 84),
    "q3_k": Format(11, 256, 110),
    "q4_k": Format(12, 256, 144, runs=True),
    "q5_k": Format(13, 256, 176, runs=True),
    "q6_k": Format(14, 256, 210, runs=True),
    "iq2_xxs": Format(16, 256, 66),
    "iq2_xs": Format(17, 256, 74),
    "iq3_xxs": Format(18, 256, 98),
    "iq1_s": Format(19, 256, 50),
    "iq4_nl": Format(20, 32, 18),
    "iq3_s": Format(21, 256, 110),
    "iq2_s": Format(22, 256, 82),
    "iq4_xs": Format(23, 256, 136),
    "i8": Format(24, 1, 1),
    "i16": Format(25, 1, 2),
    "i32": Format(26, 1, 4),
    "i64": Format(27, 1, 8),
    "f64": Format(28, 1, 8),
    "iq1_m": Format(29, 256, 56),
    "bf16": Format(30, 1, 2, runs=True),
    "tq1_0": Format(34, 256, 54),
    "tq2_0": Format(35, 256, 66),
    "mxfp4": Format(39, 32, 17),
}
BY_TYPE = {f.ggml_type: name for name, f in FORMATS.items()}

# metadata value types: id -> numpy type; strings and arrays have rules of their own
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9

# how files begin that people take for a model
STRANGERS = (
    (b"<", "is a web page, not a model: download the file itself"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the model: fetch the file itself with `git lfs pull`"),
    (b"PK\x03\x04", "is a zip archive of PyTorch weights: convert the checkpoint with `ivlite quantize`"),
    (b"{", "is JSON text, not GGUF: give the file that `ivlite quantize` wrote"),
    (b"ggml", "is of a format older than GGUF: convert the checkpoint with `ivlite quantize`"),
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: row-major shape (the last dimension is the row), a name in FORMATS, its place in bytes."""

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int

    @property
    def block(self):
        """Weights per block of its format: a row is a multiple of it."""
        return FORMATS[self.format].block

    @property
    def runs(self):
        """Whether ivlite computes with its format."""
        return FORMATS[self.format].runs


class GGUFFile:
    """An open GGUF file: `metadata` (key -> value), `tensors` (name -> TensorInfo), `path`, `size` in bytes.

    Use as a context manager, or close(). Raises ModelFileError when opened, and from reads of a file that shrank.
    """

    def __init__(self, path):
        self.path = located(path)
        self._file, self.size = _open(self.path)
        try:
            header = _Header(self.path, self._file.fileno(), self.size)
            self.metadata, self.tensors = header.read()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the file; reads fail afterwards."""
        self._file.close()

    def read(self, name, first=0, count=None):
        """The bytes of a tensor, uint8 (nbytes,), or of `count` rows of a matrix from row `first` on."""
        info = self.tensors[name]
        if count is None:
            return self._bytes(info.offset, info.nbytes)
        row = info.nbytes // math.prod(info.shape[:-1])
        return self._bytes(info.offset + first * row, count * row)

    def read_rows(self, name, ids):
        """Rows of a matrix by number, int64 (n,) -> uint8 (n, row bytes). Raises IndexError for one it has not."""
        info = self.tensors[name]
        ids = np.asarray(ids, np.int64)
        count = math.prod(info.shape[:-1])
        if len(ids) and not 0 <= ids.min() <= ids.max() < count:
            raise IndexError(f"{name} has rows 0 to {count - 1}, asked for {ids.min()} to {ids.max()}")
        row = info.nbytes // count
        wanted, where = np.unique(ids, return_inverse=True)  # a video repeats one token thousands of times
        rows = np.empty((len(wanted), row), np.uint8)
        for out, i in zip(rows, wanted.tolist(), strict=True):
            self._fill(out, info.offset + i * row)
        return rows[where.reshape(-1)]

    def _bytes(self, offset, count):
        out = np.empty(count, np.uint8)
        self._fill(out, offset)
        return out

    def _fill(self, out, offset):
        view = memoryview(out)
        done = 0
        while done < len(view):
            try:  # one call moves 2 GiB at most
                got = os.preadv(self._file.fileno(), [view[done : done + (1 << 30)]], offset + done)
            except OSError as error:
                raise ModelFileError(f"{self.path} cannot be read: {error.strerror}; check the disk") from None
            if not got:
                raise ModelFileError(f"{self.path} became shorter while it was in use; {AGAIN}")
            done += got


class MappedFile(GGUFFile):
    """The same file whose tensors are read as views of it: memory that the system fills as it is looked at.

    Each view is a mapping of its own, so what has been looked at is given back with the view.
    """

    def _bytes(self, offset, count):
        if offset + count > os.fstat(self._file.fileno()).st_size:  # looking beyond the end would kill the process
            raise ModelFileError(f"{self.path} became shorter while it was in use; {AGAIN}")
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            view = mmap.mmap(self._file.fileno(), offset + count - start, access=mmap.ACCESS_READ, offset=start)
        except OSError as error:
            raise ModelFileError(f"{self.path} cannot be mapped: {error.strerror}; use --load repack") from None
        return np.frombuffer(view, np.uint8)[offset - start :]


def located(path):
    """The file of a path, or of a model that ships with the package under that name. A file of that name comes first."""
    shipped = SHIPPED.get(str(path))
    return shipped if shipped and shipped.is_file() and not os.path.exists(path) else Path(path)


def _open(path):
    """The file opened for reading, and its size; refuses what is no regular file."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise ModelFileError(
                f"{path} is a folder: give a GGUF file, or make one with `ivlite quantize {path} -o model.gguf`"
            )
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: a pipe would wait for its other end
            raise ModelFileError(f"{path} is not a regular file: give the path of a GGUF file on a disk")
        file = io.FileIO(path)
        return file, os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ModelFileError(f"there is no file {path}: check the path, or make it with `ivlite quantize`") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"{path} cannot be opened: {reason}; check the path and its permissions") from None


class _Header:
    """Walks over the metadata and tensor records of an open file, through a window of its bytes."""

    WINDOW = 1 << 20

    def __init__(self, path, fd, size):
        self.path, self.fd, self.size = path, fd, size
        self.limit = min(size, HEADER_LIMIT)
        self.start, self.window, self.at = 0, b"", 0  # the file's position is start + at

    def damaged(self, what):
        """The error for a file that breaks the format."""
        return ModelFileError(f"{self.path} is damaged: {what}; {AGAIN}")

    def read(self):
        """(metadata, tensors) of the whole header, checked."""
        tensors, pairs = self._preamble()
        metadata = self._metadata(pairs)
        alignment = metadata.get("general.alignment", 32)
        power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
        if not power or isinstance(alignment, bool) or not 8 <= alignment <= 1 << 20:
            raise self.damaged(f"general.alignment is {alignment!r:.40}")
        records = [self._record() for _ in range(tensors)]
        end = self.start + self.at
        return metadata, self._place(records, -(-end // alignment) * alignment, alignment)

    # -------------------------------------------------------------------------------------------- bytes

    def take(self, count, what):
        """The next `count` bytes."""
        if count > len(self.window) - self.at:
            self._refill(count, what)
        at = self.at
        self.at = at + count
        return self.window[at : self.at]

    def _refill(self, count, what):
        here = self.start + self.at
        if count > self.limit - here:
            if here + count > self.size:
                raise self.damaged(f"it has {self.size} bytes and ends within {what}")
            raise self.damaged(f"its header is larger than {HEADER_LIMIT >> 20} MiB at {what}")
        wanted = min(max(count, self.WINDOW), self.limit - here)
        parts, got = [], 0
        while got < count:
            try:
                part = os.pread(self.fd, wanted - got, here + got)
            except OSError as error:
                raise ModelFileError(f"{self.path} cannot be read: {error.strerror}; check the disk") from None
            if not part:
                raise self.damaged(f"it has {self.size} bytes and ends within {what}")
            parts.append(part)
            got += len(part)
        self.start, self.at, self.window = here, 0, b"".join(parts)

    def u32(self, what):
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what):
        return int.from_bytes(self.take(8, what), "little")

    def text(self, what, limit=HEADER_LIMIT):
        count = self.u64(what)
        if count > limit:
            raise self.damaged(f"{what} is {count} bytes long")
        try:
            return self.take(count, what).decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} is not UTF-8 text") from None

    # -------------------------------------------------------------------------------------------- parts

    def _preamble(self):
        if self.size == 0:
            raise ModelFileError(f"{self.path} is empty; {AGAIN}")
        start = self.take(min(self.size, 64), "its first bytes")
        self.at = 0
        if start[:4] != b"GGUF":
            raise ModelFileError(f"{self.path} {_stranger(start)}")
        self.take(4, "its first bytes")
        version = self.u32("its version")
        if version != VERSION:
            if version and version & 0xFFFF == 0:
                raise ModelFileError(f"{self.path} is a big-endian GGUF file; ivlite reads little-endian ones: {AGAIN}")
            raise ModelFileError(f"{self.path} is GGUF version {version}; ivlite reads version {VERSION}: {AGAIN}")
        tensors, pairs = self.u64("its counts"), self.u64("its counts")
        # The shortest record is 32 bytes, the shortest pair 13.
        if tensors > self.limit // 32 or pairs > self.limit // 13:
            raise self.damaged(f"it claims {tensors} tensors and {pairs} metadata keys")
        return tensors, pairs

    def _metadata(self, pairs):
        metadata = {}
        for i in range(pairs):
            key = self.text(f"metadata key {i}", NAME_LIMIT)
            if not key or key in metadata:
                raise self.damaged(f"metadata key {key!r:.80} appears twice" if key else f"metadata key {i} is empty")
            metadata[key] = self._value(self.u32("a value's type"), f"metadata {key!r:.80}")
        return metadata

    def _value(self, kind, what):
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self._array(what)
        if kind not in SCALARS:
            raise self.damaged(f"{what} has value type {kind}")
        return self._numbers(kind, 1, what)[0]

    def _array(self, what):
        kind, count = self.u32(what), self.u64(what)
        if kind == ARRAY:
            raise self.damaged(f"{what} nests arrays")
        if kind != STRING and kind not in SCALARS:
            raise self.damaged(f"{what} has value type {kind}")
        smallest = 8 if kind == STRING else np.dtype(SCALARS[kind]).itemsize
        if count > ARRAY_LIMIT or count * smallest > self.limit - self.start - self.at:
            raise self.damaged(f"{what} claims {count} values")
        if kind == STRING:
            return [self.text(what) for _ in range(count)]
        return self._numbers(kind, count, what)

    def _numbers(self, kind, count, what):
        dtype = np.dtype(SCALARS[kind])
        data = self.take(count * dtype.itemsize, what)
        if kind == BOOL and data.strip(b"\0\1"):
            raise self.damaged(f"{what} is a truth value other than 0 and 1")
        return np.frombuffer(data, dtype).tolist()

    def _record(self):
        """One tensor record as (name, shape, format, offset within the data, nbytes)."""
        name = self.text("a tensor's name", NAME_LIMIT)
        what = f"tensor {name!r:.80}"
        dims = self.u32(what)
        if not name or not 1 <= dims <= DIMS_LIMIT:
            raise self.damaged(f"{what} has {dims} dimensions")
        shape = tuple(reversed(struct.unpack(f"<{dims}Q", self.take(8 * dims, what))))
        kind, offset = self.u32(what), self.u64(what)
        if kind not in BY_TYPE:
            raise self.damaged(f"{what} has type {kind}, which is none that ivlite knows")
        form = FORMATS[BY_TYPE[kind]]
        if 0 in shape or shape[-1] % form.block:
            raise self.damaged(f"{what} has shape {list(shape)}, its rows no whole blocks of {form.block}")
        nbytes = math.prod(shape) // form.block * form.block_bytes  # Python's integers do not overflow
        if nbytes > self.size or offset > self.size:
            raise self.damaged(f"{what} of {nbytes} bytes at {offset} lies beyond the end of the file")
        return name, shape, BY_TYPE[kind], offset, nbytes

    def _place(self, records, base, alignment):
        """The records as {name: TensorInfo}, none outside the file, none over another."""
        tensors, end, before = {}, base, "the header"
        for name, shape, form, offset, nbytes in sorted(records, key=lambda record: record[3]):
            start = base + offset
            if offset % alignment:
                raise self.damaged(f"tensor {name!r:.80} is not aligned to {alignment} bytes")
            if start < end:
                raise self.damaged(f"tensor {name!r:.80} overlaps {before}")
            end, before = start + nbytes, f"{name!r:.80}"
            if end > self.size:
                raise ModelFileError(
                    f"{self.path} is incomplete: {self.size} bytes, and tensor {name!r:.80} ends at {end}; {AGAIN}"
                )
            tensors[name] = TensorInfo(name, shape, form, start, nbytes)
        if len(tensors) != len(records):
            raise self.damaged("two tensors have the same name")
        return {record[0]: tensors[record[0]] for record in records}  # in the file's order


def _stranger(start):
    """What a file is that begins with these bytes and is no GGUF, and what to do."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for begin, sentence in STRANGERS:
        if text.startswith(begin):
            return sentence
    if start[8:9] == b"{":
        return "is a safetensors file, not GGUF: convert its folder with `ivlite quantize`"
    return f"is not a GGUF file; {AGAIN}"
