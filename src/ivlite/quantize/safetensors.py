"""Reads the header of a safetensors file: its tensors and their offsets.

A file is a u64 length, a JSON header of that length (name -> dtype, shape, data_offsets) and the data, without gaps. As
with model files, everything is checked before use.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from ivlite.errors import ModelFileError
from ivlite.gguf.jsontext import AGAIN, parse

HEADER_LIMIT = 1 << 25  # bytes; a file with 100,000 tensors has a header of about 15 MB
# Bytes per element of each type; ivlite converts weights in FLOATS.
DTYPES = {
    "BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2,
    "I32": 4, "U32": 4, "I64": 8, "U64": 8,
}  # fmt: skip
FLOATS = ("bf16", "f16", "f32")


@dataclass(frozen=True)
class Source:
    """One tensor of the source: its location and format.

    The format is a name of ivlite.gguf.FORMATS, or of DTYPES in lower case, which only unused buffers have.
    """

    name: str
    file: Path
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def tensors(reader):
    """The tensors of an open file, name -> Source. Raises ModelFileError."""
    path, size = reader.path, reader.size
    if size < 8:
        raise ModelFileError(f"{path} is {'empty' if not size else 'too short for safetensors'}; {AGAIN}")
    start = reader.read(0, 8).tobytes()
    length = int.from_bytes(start, "little")
    if not 2 <= length <= size - 8:
        hint = " (it is a Git LFS pointer: run `git lfs pull`)" if start == b"version " else ""
        raise ModelFileError(f"{path} is not a whole safetensors file{hint}; {AGAIN}")
    if length > HEADER_LIMIT:
        raise ModelFileError(f"{path} has a header of {length} bytes, and {HEADER_LIMIT >> 20} MiB are read; {AGAIN}")
    try:
        entries = parse(reader.read(8, length).tobytes().decode(), path)
    except UnicodeDecodeError:
        raise ModelFileError(f"{path} has a header that is not UTF-8; {AGAIN}") from None
    entries.pop("__metadata__", None)
    sources = [_source(name, entry, path, 8 + length) for name, entry in entries.items()]
    _check_cover(sources, path, 8 + length, size)
    return {source.name: source for source in sources}


def _source(name, entry, path, base):
    what = f"{path}: tensor {name!r:.80}"
    if not isinstance(entry, dict):
        raise ModelFileError(f"{what} is not described; {AGAIN}")
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not _whole_numbers(shape) or len(shape) > 8 or not _whole_numbers(span) or len(span) != 2:
        raise ModelFileError(f"{what} has a damaged description; {AGAIN}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelFileError(f"{what} has type {dtype!r:.20}, which is none of safetensors; {AGAIN}")
    nbytes = math.prod(shape) * DTYPES[dtype]
    if span[1] - span[0] != nbytes:
        raise ModelFileError(f"{what} has {span[1] - span[0]} bytes where its shape in {dtype} needs {nbytes}; {AGAIN}")
    return Source(name, path, dtype.lower(), tuple(shape), base + span[0], nbytes)


def _whole_numbers(value):
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 60 for v in value)


def _check_cover(sources, path, base, size):
    """Raises ModelFileError unless the tensors fill the file without gaps."""
    end = base
    for source in sorted(sources, key=lambda s: (s.offset, s.nbytes)):
        if source.offset != end:
            raise ModelFileError(f"{path}: tensor {source.name!r:.80} overlaps another or leaves a gap; {AGAIN}")
        end += source.nbytes
    if end != size:
        state = "is incomplete" if end > size else "is damaged"
        raise ModelFileError(f"{path} {state}: {size} bytes where its header describes {end}; {AGAIN}")
