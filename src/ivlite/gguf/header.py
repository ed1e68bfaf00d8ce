"""Parses the header of a GGUF file, metadata and tensor infos; checks every count before it allocates memory for it.

Layout: "GGUF", u32 version, u64 tensors, u64 pairs; the pairs (string key, u32 type, value); the tensor infos
(string name, u32 dims, u64 per dim with the row length first, u32 type, u64 offset); data at the next multiple of
general.alignment. A string is a u64 length and UTF-8; an array is a u32 type, a u64 count and the values.
"""

import math
import struct

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.gguf.formats import BY_TYPE, FORMATS, RETIRED, TensorInfo

VERSION = 3
# Limits of a header, so that reading one takes at most a few times its size in memory. The largest known models and
# tokenizers (262,144 tokens and 580,000 merges, 1,100 tensors, 200 keys, 35 MB) are far below them.
HEADER_LIMIT = 1 << 27  # bytes of metadata and tensor infos
KEYS_LIMIT = 1 << 14
TENSORS_LIMIT = 1 << 16
TEXTS_LIMIT = 1 << 21  # strings in all metadata arrays together
ARRAYS_LIMIT, DEPTH_LIMIT = 1 << 16, 4  # arrays in all metadata arrays together, and how deep they nest
NAME_LIMIT = 1 << 16  # bytes of a key or a tensor's name
DIMS_LIMIT = 4

# metadata value types: id -> numpy type, but for strings and arrays
SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9

# first bytes of other files that people may give as a model, and what to tell them
STRANGERS = (
    (b"<", "is a web page, not a model: download the file itself"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the model: fetch the file itself with `git lfs pull`"),
    (b"PK\x03\x04", "is a zip archive of PyTorch weights: convert the checkpoint with `ivlite quantize`"),
    (b"{", "is JSON text, not GGUF: give the file that `ivlite quantize` wrote"),
    (b"ggml", "is of a format older than GGUF: convert the checkpoint with `ivlite quantize`"),
)


class Header:
    """Parses metadata and tensor infos of an open file sequentially, with a read buffer."""

    WINDOW = 1 << 20

    def __init__(self, reader):
        self.path, self.size, self.reader, self.again = reader.path, reader.size, reader, reader.kind.again
        self.limit = min(self.size, HEADER_LIMIT)
        self.types = {}  # key -> numpy type of the metadata values that are single numbers
        self.texts = self.arrays = 0  # strings and arrays in arrays so far
        self.start, self.window, self.at = 0, b"", 0  # the file's position is start + at

    def damaged(self, what):
        """The error for a file that breaks the format."""
        return ModelFileError(f"{self.path} is damaged: {what}; {self.again}")

    def read(self):
        """(metadata, tensors) of the whole header, checked."""
        tensors, pairs = self._preamble()
        metadata = self._metadata(pairs)
        alignment = metadata.get("general.alignment", 32)
        power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
        if not power or isinstance(alignment, bool) or not 8 <= alignment <= 1 << 20:
            raise self.damaged(f"general.alignment is {alignment!r:.40}")
        infos = [self._info() for _ in range(tensors)]
        end = self.start + self.at
        return metadata, self._place(infos, -(-end // alignment) * alignment, alignment)

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
        self.start, self.at, self.window = here, 0, self.reader.read(here, wanted).tobytes()

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
            raise ModelFileError(f"{self.path} is empty; {self.again}")
        start = self.take(min(self.size, 64), "its first bytes")
        self.at = 0
        if start[:4] != b"GGUF":
            known = _stranger(start)
            raise ModelFileError(f"{self.path} {known or 'is not a GGUF file; ' + self.again}")
        self.take(4, "its first bytes")
        version = self.u32("its version")
        if version != VERSION:
            if version and version & 0xFFFF == 0:
                raise ModelFileError(
                    f"{self.path} is a big-endian GGUF file; ivlite reads little-endian ones: {self.again}"
                )
            raise ModelFileError(f"{self.path} is GGUF version {version}; ivlite reads version {VERSION}: {self.again}")
        tensors, pairs = self.u64("its counts"), self.u64("its counts")
        claims = f"it claims {tensors} tensors and {pairs} metadata keys"
        # The shortest tensor info is 32 bytes, the shortest pair 13.
        if tensors > self.limit // 32 or pairs > self.limit // 13:
            raise self.damaged(claims)
        if tensors > TENSORS_LIMIT or pairs > KEYS_LIMIT:
            raise self.damaged(f"{claims}, and at most {TENSORS_LIMIT:,} and {KEYS_LIMIT:,} are read")
        return tensors, pairs

    def _metadata(self, pairs):
        metadata = {}
        for i in range(pairs):
            key = self.text(f"metadata key {i}", NAME_LIMIT)
            if not key or key in metadata:
                raise self.damaged(f"metadata key {key!r:.80} appears twice" if key else f"metadata key {i} is empty")
            kind = self.u32("a value's type")
            metadata[key] = self._value(kind, f"metadata {key!r:.80}")
            if kind in SCALARS:
                self.types[key] = np.dtype(SCALARS[kind])
        return metadata

    def _value(self, kind, what):
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self._array(what)
        if kind not in SCALARS:
            raise self.damaged(f"{what} has value type {kind}")
        return self._numbers(kind, 1, what).tolist()[0]

    def _array(self, what, depth=1):
        kind, count = self.u32(what), self.u64(what)
        if kind not in (STRING, ARRAY) and kind not in SCALARS:
            raise self.damaged(f"{what} has value type {kind}")
        smallest = {STRING: 8, ARRAY: 12}.get(kind) or np.dtype(SCALARS[kind]).itemsize
        if count * smallest > self.limit - self.start - self.at:
            raise self.damaged(f"{what} claims {count} values")
        if kind == STRING:
            self.texts += count
            if self.texts > TEXTS_LIMIT:
                raise self.damaged(f"{what} claims {count} texts, and at most {TEXTS_LIMIT:,} are read")
            return [self.text(what) for _ in range(count)]
        if kind == ARRAY:
            self.arrays += count
            if depth == DEPTH_LIMIT or self.arrays > ARRAYS_LIMIT:
                limits = f"ivlite reads {DEPTH_LIMIT} levels and {ARRAYS_LIMIT:,} arrays"
                raise ModelFileError(f"{self.path}: {what} nests arrays further than {limits}; remove it from the file")
            return [self._array(what, depth + 1) for _ in range(count)]
        return self._numbers(kind, count, what)

    def _numbers(self, kind, count, what):
        """Numbers as a numpy array with their type in the file."""
        dtype = np.dtype(SCALARS[kind])
        size = count * dtype.itemsize
        if size > self.WINDOW:  # avoids a second copy of a large array
            data = self.reader.read(self.start + self.at, size)
            self.start, self.at, self.window = self.start + self.at + size, 0, b""
        else:
            data = np.frombuffer(self.take(size, what), np.uint8)
        if kind == BOOL and count and data.max() > 1:
            raise self.damaged(f"{what} is a truth value other than 0 and 1")
        return data.view(dtype)

    def _info(self):
        """One tensor info as (name, shape, format, offset within the data, nbytes)."""
        name = self.text("a tensor's name", NAME_LIMIT)
        what = f"tensor {name!r:.80}"
        dims = self.u32(what)
        if not name or not 1 <= dims <= DIMS_LIMIT:
            raise self.damaged(f"{what} has {dims} dimensions")
        shape = tuple(reversed(struct.unpack(f"<{dims}Q", self.take(8 * dims, what))))
        kind, offset = self.u32(what), self.u64(what)
        if kind not in BY_TYPE:
            raise self._unknown(what, kind)
        form = FORMATS[BY_TYPE[kind]]
        if 0 in shape or shape[-1] % form.block:
            raise self.damaged(f"{what} has shape {list(shape)}, its rows no whole blocks of {form.block}")
        nbytes = math.prod(shape) // form.block * form.block_bytes  # Python's integers do not overflow
        if nbytes > self.size or offset > self.size:
            raise self.damaged(f"{what} of {nbytes} bytes at {offset} lies beyond the end of the file")
        return name, shape, BY_TYPE[kind], offset, nbytes

    def _unknown(self, what, kind):
        """The error for a tensor type that is not in FORMATS."""
        if kind in RETIRED:
            return ModelFileError(f"{self.path}: {what} has type {kind}, which ggml has given up; make the file again")
        if kind < 256:  # ggml counts them up
            return ModelFileError(
                f"{self.path}: {what} has type {kind}, which is newer than this ivlite; update ivlite"
            )
        return self.damaged(f"{what} has type {kind}")

    def _place(self, infos, base, alignment):
        """The tensor infos as {name: TensorInfo}; checks that tensors lie within the file and do not overlap."""
        tensors, end, before = {}, base, "the header"
        for name, shape, form, offset, nbytes in sorted(infos, key=lambda info: info[3]):
            start = base + offset
            if offset % alignment:
                raise self.damaged(f"tensor {name!r:.80} is not aligned to {alignment} bytes")
            if start < end:
                raise self.damaged(f"tensor {name!r:.80} overlaps {before}")
            end, before = start + nbytes, f"{name!r:.80}"
            if end > self.size:
                raise ModelFileError(
                    f"{self.path} is incomplete: {self.size} bytes, and tensor {name!r:.80} ends at {end}; {self.again}"
                )
            tensors[name] = TensorInfo(name, shape, form, start, nbytes)
        if len(tensors) != len(infos):
            raise self.damaged("two tensors have the same name")
        return {info[0]: tensors[info[0]] for info in infos}  # in the file's order


def _stranger(start):
    """The kind of a file that is not GGUF, by its first bytes, and what to do; "" for one that nobody knows."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for begin, sentence in STRANGERS:
        if text.startswith(begin):
            return sentence
    if start[8:9] == b"{":
        return "is a safetensors file, not GGUF: convert its folder with `ivlite quantize`"
    return ""
