"""What is converted: the folder of a checkpoint or a model file, as one thing with tensors and settings."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.gguf import GGUFFile
from ivlite.gguf.config import TOKENIZER, Config, check_tensors, listed
from ivlite.models import internvideo3
from ivlite.quantize import golden, hf_config, tokenizer
from ivlite.quantize.checkpoint import Checkpoint, Source, fill

CALIBRATION = "ivlite.calibration."  # like golden values, it stays true when a model file is converted again


@dataclass(frozen=True)
class Origin:
    """An open source of weights.

    path: as given. weights: `tensors` (name -> Source), `raw(name, start, count)`, `files`. config: a Config.
    metadata: what goes into the new file besides the config. specs: TensorSpecs of what is there, in order. names: the
    source's name of each, by GGUF name.
    """

    path: Path
    weights: object
    config: Config
    metadata: dict
    specs: list
    names: dict

    def source(self, spec):
        """The Source of a TensorSpec."""
        return self.weights.tensors[self.names[spec.gguf]]


class ModelFile:
    """The bytes of an open GGUFFile with the reading interface of a Checkpoint. Use as a context manager."""

    def __init__(self, file):
        self.file, self.files = file, [file.path]
        self._fd = os.open(file.path, os.O_RDONLY)
        self.tensors = {
            t.name: Source(t.name, file.path, t.format, t.shape, t.offset, t.nbytes) for t in file.tensors.values()
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._fd)

    def raw(self, name, start, count):
        """`count` bytes of a tensor from byte `start` on, uint8 (count,)."""
        return self._bytes(self.tensors[name].offset + start, count)

    def header(self):
        """All bytes before the first tensor's data, uint8 (n,)."""
        return self._bytes(0, min((t.offset for t in self.tensors.values()), default=self.file.size))

    def _bytes(self, offset, count):
        out = np.empty(count, np.uint8)
        fill(self._fd, out, offset, self.file.path)
        return out


@contextmanager
def opened(path):
    """The Origin at a path while the block runs. Raises ModelFileError for whatever is missing or damaged."""
    path = Path(path)
    if os.path.isfile(path):
        with GGUFFile(path) as file, ModelFile(file) as weights:
            yield _of_model_file(file, weights)
    else:
        with Checkpoint(path) as checkpoint:
            yield _of_checkpoint(checkpoint)


def _of_model_file(file, weights):
    config = Config.from_metadata(file.metadata, file.path)
    specs = internvideo3.tensor_names(config)
    check_tensors(file.tensors, specs, file.path)
    specs = [spec for spec in specs if spec.gguf in file.tensors]
    metadata = {TOKENIZER: file.metadata[TOKENIZER]}
    metadata |= {key: value for key, value in file.metadata.items() if key.startswith(CALIBRATION)}
    metadata |= golden.typed({key: value for key, value in file.metadata.items() if key.startswith(golden.PREFIX)})
    return Origin(file.path, weights, config, metadata, specs, {spec.gguf: spec.gguf for spec in specs})


def _of_checkpoint(checkpoint):
    text, ids, added = tokenizer.read(checkpoint)
    config = hf_config.read(checkpoint, ids, added)
    specs = internvideo3.tensor_names(config)
    wanted = {spec.hf: spec for spec in specs}
    missing = [name for name, spec in wanted.items() if name not in checkpoint.tensors and not spec.optional]
    if missing:
        raise ModelFileError(f"{checkpoint.folder} lacks {listed(missing)}: download the whole checkpoint")
    spare = [name for name in checkpoint.tensors if name not in wanted]
    if spare:
        tied = spare == ["lm_head.weight"] and config.text.tie_word_embeddings
        reason = "though config.json ties the head to the embeddings" if tied else "for which InternVideo3 has no use"
        raise ModelFileError(f"{checkpoint.folder} has {listed(spare)}, {reason}: it is a model ivlite does not know")
    specs = [spec for spec in specs if spec.hf in checkpoint.tensors]
    for spec in specs:
        _check_shape(checkpoint.tensors[spec.hf], spec, config.vision)
    names = {spec.gguf: spec.hf for spec in specs}
    return Origin(checkpoint.folder, checkpoint, config, {TOKENIZER: text}, specs, names)


def _check_shape(source, spec, vision):
    conv = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    allowed = [spec.shape]
    if spec.gguf == "v.patch_embd.weight":  # a convolution that steps by its own size is a matrix
        allowed.append((spec.shape[0], *conv))
    if source.shape not in allowed:
        raise ModelFileError(
            f"{source.file}: tensor {source.name} has shape {list(source.shape)} where config.json asks for "
            f"{list(allowed[-1])}; they belong to different models"
        )
