"""Reads a Hugging Face checkpoint folder: its JSON files and its safetensors, single or in shards, in slices.

A safetensors file is a u64 length, a JSON header of that length (name -> dtype, shape, data_offsets) and the data that
the header describes without gaps. As with model files, nothing is believed before it is checked.
"""

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.gguf.config import listed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "download it again"
HEADER_LIMIT = 100_000_000  # bytes, the format's own limit
JSON_LIMIT = 1 << 28  # bytes; a tokenizer.json has some 12 MB
DTYPES = {"BF16": ("bf16", 2), "F16": ("f16", 2), "F32": ("f32", 4)}  # safetensors' name: ours, bytes


@dataclass(frozen=True)
class Source:
    """One tensor of what is converted: where its bytes are, and their format, a name of ivlite.gguf.FORMATS."""

    name: str
    file: Path
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """An open checkpoint folder: `tensors` (name -> Source), `json(name)`, `text(name)`, `raw(...)`.

    Use as a context manager, or close(). Raises ModelFileError for whatever is missing or damaged.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        _check_folder(self.folder)
        self._files = {}
        self.tensors = {}
        try:
            self._open_weights()
        except OSError as error:
            self.close()
            raise ModelFileError(f"{self.folder} cannot be read: {error.strerror}; check its permissions") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for fd in self._files.values():
            os.close(fd)
        self._files = {}

    @property
    def files(self):
        """Paths of the weight files."""
        return list(self._files)

    # -------------------------------------------------------------------------------------------- text files

    def text(self, name, required=True):
        """The text of a file of the folder; None for one that need not be there and is not."""
        path = self.folder / name
        try:
            info = path.stat()
            if not stat.S_ISREG(info.st_mode):
                raise ModelFileError(f"{path} is not a regular file; {AGAIN}")
            if info.st_size > JSON_LIMIT:
                raise ModelFileError(f"{path} is larger than {JSON_LIMIT >> 20} MiB: it is not a {name}; {AGAIN}")
            return path.read_bytes().decode()
        except FileNotFoundError:
            if required:
                raise ModelFileError(f"{self.folder} has no {name}: download the whole checkpoint") from None
            return None
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
        except UnicodeDecodeError:
            raise ModelFileError(f"{path} is not UTF-8 text; {AGAIN}") from None

    def json(self, name, required=True):
        """A JSON object of the folder as a dict; {} for a file that need not be there and is not."""
        text = self.text(name, required)
        return {} if text is None else parse(text, self.folder / name)

    # -------------------------------------------------------------------------------------------- weights

    def raw(self, name, start, count):
        """`count` bytes of a tensor from byte `start` on, uint8 (count,)."""
        source = self.tensors[name]
        out = np.empty(count, np.uint8)
        fill(self._files[source.file], out, source.offset + start, source.file)
        return out

    def _open_weights(self):
        single = self.folder / SINGLE
        if single.exists():
            self.tensors = self._open_file(single)
            return
        if not (self.folder / INDEX).exists():
            raise ModelFileError(f"{self.folder} has neither {SINGLE} nor {INDEX}: {_what_instead(self.folder)}")
        wanted = self._index()
        files = sorted(set(wanted.values()))
        absent = next((file for file in files if not (self.folder / file).exists()), None)
        if absent:
            raise ModelFileError(
                f"{self.folder / absent} is missing, which {INDEX} names: download the whole checkpoint"
            )
        for file in files:
            path = self.folder / file
            held = self._open_file(path)
            missing = [name for name, where in wanted.items() if where == file and name not in held]
            if missing:
                raise ModelFileError(f"{path} lacks {listed(missing)}, which {INDEX} places there; {AGAIN}")
            spare = [name for name in held if wanted.get(name) != file]
            if spare:
                raise ModelFileError(f"{path} holds {listed(spare)}, which {INDEX} does not place there; {AGAIN}")
            self.tensors |= held

    def _index(self):
        """tensor name -> file name, none of them outside the folder."""
        path = self.folder / INDEX
        table = self.json(INDEX).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ModelFileError(f"{path} has no weight_map; {AGAIN}")
        for file in table.values():
            plain = isinstance(file, str) and file == os.path.basename(file) and file.endswith(".safetensors")
            if not plain or "\0" in file:
                raise ModelFileError(f"{path} names the file {file!r:.80}, which is no .safetensors of this folder")
        return table

    def _open_file(self, path):
        try:
            if not path.is_file():
                raise ModelFileError(f"{path} is not a regular file; {AGAIN}")
            fd = self._files[path] = os.open(path, os.O_RDONLY)
            size = os.fstat(fd).st_size
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
        return _header(fd, path, size)


def _check_folder(folder):
    try:
        if folder.is_dir():
            return
        exists = folder.exists()
    except (OSError, ValueError):
        exists = False
    if exists:
        raise ModelFileError(f"{folder} is not a folder: give the folder of the checkpoint, with its config.json")
    raise ModelFileError(f"there is no folder {folder}: download the checkpoint first, then give its folder")


def _what_instead(folder):
    names = [p.name for p in folder.iterdir()]
    if any(n.endswith(".bin") for n in names):
        return "PyTorch .bin weights are not read, download the safetensors"
    if any(n.endswith(".safetensors") for n in names):
        return "download the index as well"
    return "download the whole checkpoint"


def parse(text, path):
    """A JSON object as a dict. Raises ModelFileError for anything else, repeated keys included."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelFileError(f"{path} is not valid JSON ({reason:.100}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object; {AGAIN}")
    return value


def _once(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key appears twice")
    return out


def fill(fd, out, offset, path):
    """Fills a numpy array of uint8 with a file's bytes from `offset` on."""
    view = memoryview(out)
    done = 0
    while done < len(view):
        try:  # one call moves 2 GiB at most
            got = os.preadv(fd, [view[done : done + (1 << 30)]], offset + done)
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}; check the disk") from None
        if not got:
            raise ModelFileError(f"{path} is incomplete; {AGAIN}")
        done += got


# ------------------------------------------------------------------------------------------------ safetensors


def _header(fd, path, size):
    """The tensors of a safetensors file, name -> Source."""
    if size < 8:
        raise ModelFileError(f"{path} is {'empty' if not size else 'too short for safetensors'}; {AGAIN}")
    start = np.empty(8, np.uint8)
    fill(fd, start, 0, path)
    length = int.from_bytes(start.tobytes(), "little")
    if not 2 <= length <= min(size - 8, HEADER_LIMIT):
        hint = " (it is a Git LFS pointer: run `git lfs pull`)" if start.tobytes() == b"version " else ""
        raise ModelFileError(f"{path} is not a whole safetensors file{hint}; {AGAIN}")
    text = np.empty(length, np.uint8)
    fill(fd, text, 8, path)
    try:
        entries = parse(text.tobytes().decode(), path)
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
        raise ModelFileError(f"{what} has type {dtype!r:.20}; ivlite converts {', '.join(DTYPES)}")
    fmt, size = DTYPES[dtype]
    nbytes = math.prod(shape) * size
    if span[1] - span[0] != nbytes:
        raise ModelFileError(f"{what} has {span[1] - span[0]} bytes where its shape needs {nbytes}; {AGAIN}")
    return Source(name, path, fmt, tuple(shape), base + span[0], nbytes)


def _whole_numbers(value):
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 60 for v in value)


def _check_cover(sources, path, base, size):
    """Tensors follow one another and fill the file."""
    end = base
    for source in sorted(sources, key=lambda s: (s.offset, s.nbytes)):
        if source.offset != end:
            raise ModelFileError(f"{path}: tensor {source.name!r:.80} overlaps another or leaves a gap; {AGAIN}")
        end += source.nbytes
    if end != size:
        state = "is incomplete" if end > size else "is damaged"
        raise ModelFileError(f"{path} {state}: {size} bytes where its header describes {end}; {AGAIN}")
