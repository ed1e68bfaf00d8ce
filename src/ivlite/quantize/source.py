"""The source of a conversion: a checkpoint folder or a model file, behind one interface."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ivlite.errors import ModelFileError
from ivlite.files import expanded, reason
from ivlite.gguf import GGUFFile, located
from ivlite.gguf.config import TOKENIZER, Config, check_tensors, listed
from ivlite.gguf.tokenizer import Tokenizer, check_ids
from ivlite.models import internvideo3
from ivlite.quantize import golden, hf_config, tokenizer
from ivlite.quantize.checkpoint import Checkpoint
from ivlite.quantize.safetensors import FLOATS, Source

# Metadata of a model file that a conversion writes again. The rest is copied: golden values, statistics, authorship.
ANEW = (
    "internvideo3.", "ivlite.checksum.", "ivlite.recipe", golden.PREFIX, "general.architecture", "general.alignment",
    "general.name", "general.file_type", "general.quantization_version",
)  # fmt: skip
INTEGERS = ("bool", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
BUFFERS = ("inv_freq", "original_inv_freq")  # computed buffers that some checkpoints contain


@dataclass(frozen=True)
class Origin:
    """An open source of weights.

    path: as given. weights: `tensors` (name -> Source), `raw(name, start, count)`, `stamps` of its files. config: a Config.
    metadata: metadata for the new file besides the config. specs: TensorSpecs of its tensors, in order. names: GGUF name
    -> name in the source. notes: sentences about skipped tensors.
    """

    path: Path
    weights: object
    config: Config
    metadata: dict
    specs: list
    names: dict
    notes: tuple[str, ...] = ()

    @property
    def files(self):
        """Paths of all files of the source: weights, settings, tokenizer. Raises ModelFileError."""
        try:
            return [p for p in self.path.iterdir() if p.is_file()] if self.path.is_dir() else [self.path]
        except OSError as error:
            raise ModelFileError(f"{self.path} cannot be listed: {reason(error)}") from None

    def source(self, spec):
        """The Source of a TensorSpec."""
        return self.weights.tensors[self.names[spec.gguf]]


class ModelFile:
    """An open GGUFFile with the interface of a Checkpoint."""

    def __init__(self, file):
        self.file, self.stamps = file, [file.reader.stamp]
        self.tensors = {
            t.name: Source(t.name, file.path, t.format, t.shape, t.offset, t.nbytes) for t in file.tensors.values()
        }

    def raw(self, name, start, count):
        """`count` bytes of a tensor from byte `start` on, uint8 (count,)."""
        return self.file.reader.read(self.tensors[name].offset + start, count)

    def header(self):
        """All bytes before the first tensor's data, uint8 (n,)."""
        return self.file.reader.read(0, min((t.offset for t in self.tensors.values()), default=self.file.size))


@contextmanager
def open_source(path):
    """Context manager: the Origin at a path. Raises ModelFileError for missing and damaged files."""
    found, path = located(path), Path(expanded(path))
    if os.path.isfile(found) and not os.path.isfile(path / "config.json"):  # of a name too long is_file() raises
        with GGUFFile(found) as file:
            yield _of_model_file(file, ModelFile(file))
    else:
        with Checkpoint(path) as checkpoint:
            yield _of_checkpoint(checkpoint)


def _of_model_file(file, weights):
    config = Config.from_metadata(file.metadata, file.path)
    check_ids(Tokenizer(file.metadata[TOKENIZER], f"{file.path}: the tokenizer"), config, file.path)
    specs = internvideo3.tensor_names(config)
    check_tensors(file.tensors, specs, file.path)
    specs = [spec for spec in specs if spec.gguf in file.tensors]
    metadata = {TOKENIZER: file.metadata[TOKENIZER]}
    metadata |= {key: file.stored(key) for key in file.metadata if not key.startswith(ANEW)}
    metadata |= golden.stored(file.metadata, file.path)
    return Origin(file.path, weights, config, metadata, specs, {spec.gguf: spec.gguf for spec in specs})


def _of_checkpoint(checkpoint):
    text, tokens = tokenizer.read(checkpoint)
    config = hf_config.read(checkpoint, tokens)
    check_ids(tokens, config, checkpoint.folder)
    specs = internvideo3.tensor_names(config)
    wanted = {spec.hf: spec for spec in specs}
    missing = [name for name, spec in wanted.items() if name not in checkpoint.tensors and not spec.optional]
    if missing:
        raise ModelFileError(f"{checkpoint.folder} lacks {listed(missing)}: download the whole checkpoint")
    others = [source for name, source in checkpoint.tensors.items() if name not in wanted]
    buffers = [s.name for s in others if s.name.split(".")[-1] in BUFFERS or s.format in INTEGERS]
    known = set(buffers)
    spare = [s.name for s in others if s.name not in known]
    if spare:
        tied = spare == ["lm_head.weight"] and config.text.tie_word_embeddings
        reason = "though config.json ties the head to the embeddings" if tied else "for which InternVideo3 has no use"
        raise ModelFileError(f"{checkpoint.folder} has {listed(spare)}, {reason}: it is a model ivlite does not know")
    specs = [spec for spec in specs if spec.hf in checkpoint.tensors]
    for spec in specs:
        _check_shape(checkpoint.tensors[spec.hf], spec, config.vision)
    names = {spec.gguf: spec.hf for spec in specs}
    notes = [f"{checkpoint.folder} has {listed(buffers)}, which every run computes itself: left out"] if buffers else []
    return Origin(checkpoint.folder, checkpoint, config, {TOKENIZER: text}, specs, names, tuple(notes))


def _check_shape(source, spec, vision):
    conv = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    allowed = [spec.shape]
    if spec.gguf == "v.patch_embd.weight":  # a convolution whose stride is its kernel size: a matrix product
        allowed.append((spec.shape[0], *conv))
    if source.format not in FLOATS:
        raise ModelFileError(
            f"{source.file}: tensor {source.name} has type {source.format.upper()}; ivlite converts BF16, F16, F32"
        )
    if source.shape not in allowed:
        raise ModelFileError(
            f"{source.file}: tensor {source.name} has shape {list(source.shape)} where config.json asks for "
            f"{list(allowed[-1])}; they belong to different models"
        )
