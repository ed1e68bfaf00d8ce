"""Reads a Hugging Face checkpoint folder: its JSON files and ranges of its safetensors, single or in shards."""

import os
import stat
from pathlib import Path

from ivlite.errors import ModelFileError
from ivlite.files import reason
from ivlite.gguf.config import listed
from ivlite.gguf.jsontext import AGAIN, parse
from ivlite.gguf.reader import Reader
from ivlite.quantize import safetensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT_LIMIT = 1 << 26  # bytes; the largest known tokenizer.json has about 35 MB


class Checkpoint:
    """An open checkpoint folder: `tensors` (name -> Source), `json(name)`, `text(name)`, `raw(...)`.

    Use as a context manager, or close(). Raises ModelFileError for missing and damaged files.
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
            raise ModelFileError(f"{self.folder} cannot be read: {reason(error)}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for reader in self._files.values():
            reader.close()
        self._files = {}

    @property
    def stamps(self):
        """The stamps of the weight files (see Reader): they differ after a file is written to."""
        return [reader.stamp for reader in self._files.values()]

    # -------------------------------------------------------------------------------------------- text files

    def text(self, name, required=True):
        """The text of a file of the folder; None if it is missing and not required."""
        path = self.folder / name
        if not os.path.lexists(path):
            if required:
                raise ModelFileError(f"{self.folder} has no {name}: download the whole checkpoint")
            return None
        reader = Reader(path)
        try:
            if reader.size > TEXT_LIMIT:
                raise ModelFileError(f"{path} is larger than {TEXT_LIMIT >> 20} MiB: it is not a {name}; {AGAIN}")
            return reader.read(0, reader.size).tobytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ModelFileError(f"{path} is not UTF-8 text; {AGAIN}") from None
        finally:
            reader.close()

    def json(self, name, required=True):
        """A JSON object of the folder as a dict; {} if the file is missing and not required."""
        text = self.text(name, required)
        return {} if text is None else parse(text, self.folder / name)

    # -------------------------------------------------------------------------------------------- weights

    def raw(self, name, start, count):
        """`count` bytes of a tensor from byte `start` on, uint8 (count,)."""
        source = self.tensors[name]
        return self._files[source.file].read(source.offset + start, count)

    def _open_weights(self):
        single = self.folder / SINGLE
        if os.path.lexists(single):  # a link that leads nowhere is told where it is opened
            self.tensors = self._open_file(single)
            return
        if not os.path.lexists(self.folder / INDEX):
            raise ModelFileError(f"{self.folder} has neither {SINGLE} nor {INDEX}: {_what_instead(self.folder)}")
        wanted = self._index()
        files = {file: [] for file in sorted(set(wanted.values()))}
        for name, file in wanted.items():
            files[file].append(name)
        absent = next((file for file in files if not os.path.lexists(self.folder / file)), None)
        if absent:
            raise ModelFileError(
                f"{self.folder / absent} is missing, which {INDEX} names: download the whole checkpoint"
            )
        for file, names in files.items():
            path = self.folder / file
            held = self._open_file(path)
            missing = [name for name in names if name not in held]
            if missing:
                raise ModelFileError(f"{path} lacks {listed(missing)}, which {INDEX} places there; {AGAIN}")
            spare = [name for name in held if wanted.get(name) != file]
            if spare:
                raise ModelFileError(f"{path} holds {listed(spare)}, which {INDEX} does not place there; {AGAIN}")
            self.tensors |= held

    def _index(self):
        """{tensor name: file name}; checks that no file is outside the folder."""
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
        reader = self._files[path] = Reader(path)
        return safetensors.tensors(reader)


def _check_folder(folder):
    try:
        mode = os.stat(folder).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ModelFileError(
            f"there is no folder {folder}: download the checkpoint first, then give its folder"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ModelFileError(f"{folder} cannot be opened: {reason(error)}") from None
    if not stat.S_ISDIR(mode):
        raise ModelFileError(f"{folder} is not a folder: give the folder of the checkpoint, with its config.json")


def _what_instead(folder):
    names = os.listdir(folder)
    if any(n.startswith("adapter_") for n in names):
        return "it holds an adapter (LoRA); merge that into its model first, and give the folder of the merged model"
    if any(n.endswith(".bin") for n in names):
        return "PyTorch .bin weights are not read, download the safetensors"
    if any(n.endswith(".safetensors") for n in names):
        return "download the index as well"
    return "download the whole checkpoint"
