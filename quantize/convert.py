"""The conversion: plans every tensor, then streams each in slices from the checkpoint to the encoder to the file."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivlite import _C
from ivlite.config import TOKENIZER, listed
from ivlite.errors import ModelFileError, UsageError
from ivlite.models import internvideo3
from ivlite.quantize import hf_config, tokenizer
from ivlite.quantize.checkpoint import Checkpoint, Source
from ivlite.quantize.recipes import TYPES, plan_tensor
from ivlite.quantize.writer import GGUFWriter

SLICE = 1 << 23  # weights at a time: 32 MiB of float32, of which four or five copies are alive
# The first magnitude that a format turns into infinity: in the weights themselves or in the scale of their block.
OVERFLOW = {"f16": 65520.0, "q8_0": 65520.0 * 127, "q4_0": 65520.0 * 8, "bf16": 3.396e38}


@dataclass(frozen=True)
class Plan:
    """One tensor on its way: where it comes from, its logical shape, and as what it is stored."""

    source: Source
    name: str
    rows: int
    columns: int
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """What was written: path, type, parameters, and the bytes of the checkpoint's weights and of the file."""

    path: Path
    type: str
    tensors: int
    parameters: int
    source_bytes: int
    nbytes: int


def convert(src, out, type, progress=None):
    """See ivlite.quantize.quantize."""
    if type not in TYPES:
        raise UsageError(f"there is no type {type!r}; there are {', '.join(TYPES)}")
    with Checkpoint(src) as checkpoint:
        text, ids, added = tokenizer.read(checkpoint)
        config = hf_config.read(checkpoint, ids, added)
        plans = plan(checkpoint, config, type)
        _check_output(out, checkpoint)
        metadata = config.to_metadata() | {
            "general.alignment": 32,
            "general.file_type": TYPES[type].file_type,
            "general.quantization_version": 2,
            TOKENIZER: text,
        }
        with GGUFWriter(out, metadata, [(p.name, p.shape, p.format) for p in plans]) as writer:
            stream(checkpoint, plans, writer, progress)
        return Summary(
            Path(out), type, len(plans), sum(math.prod(p.source.shape) for p in plans),
            sum(p.source.nbytes for p in plans), writer.size,
        )  # fmt: skip


def plan(checkpoint, config, type):
    """A Plan for every tensor of the architecture; raises ModelFileError unless they are exactly the checkpoint's."""
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
    return [_plan_one(checkpoint.tensors[name], wanted[name], config, type) for name in wanted if name not in missing]


def _plan_one(source, spec, config, type):
    vision = config.vision
    conv = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    allowed = [spec.shape]
    if spec.gguf == "v.patch_embd.weight":  # a convolution that steps by its own size is a matrix
        allowed.append((spec.shape[0], *conv))
    if source.shape not in allowed:
        raise ModelFileError(
            f"{source.file}: tensor {source.name} has shape {list(source.shape)} where config.json asks for "
            f"{list(allowed[-1])}; they belong to different models"
        )
    fmt, shape = plan_tensor(spec, type)
    rows = spec.shape[0] if len(spec.shape) == 2 else 1
    return Plan(source, spec.gguf, rows, spec.shape[-1], fmt, shape)


def _check_output(out, checkpoint):
    """Refuses to write over what is being read: any file of the checkpoint's folder but an older .gguf."""
    folder, path = os.path.realpath(checkpoint.folder), os.path.realpath(out)
    inputs = [os.path.realpath(file) for file in checkpoint.files]
    inside = os.path.commonpath([folder, path]) == folder
    if path in inputs or inside and not path.endswith(".gguf"):
        raise UsageError(f"{out} lies in the checkpoint {checkpoint.folder} and is no .gguf file; choose another name")


# ------------------------------------------------------------------------------------------------ streaming


def stream(checkpoint, plans, writer, progress=None):
    """Encodes and writes every tensor; the next slice is read and checked while one is encoded (in _C's threads)."""
    pieces = [(p, *piece) for p in plans for piece in _slices(p)]
    total, done = sum(p.source.nbytes for p in plans), 0
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(_load, checkpoint, *pieces[0])
        for i, (p, _, count) in enumerate(pieces):
            values = following.result()
            if i + 1 < len(pieces):
                following = reader.submit(_load, checkpoint, *pieces[i + 1])
            writer.write(_C.encode(p.format, values.reshape(-1)))
            done += p.source.nbytes * count // p.rows if count < p.rows else p.source.nbytes
            if progress:
                progress("convert", min(done, total), total)


def _slices(p):
    """(first row, rows) of pieces of about SLICE weights."""
    step = max(1, SLICE // p.columns)
    return [(first, min(step, p.rows - first)) for first in range(0, p.rows, step)]


def _load(checkpoint, p, first, count):
    """Rows of a tensor as float32 (count, stored columns), padded with zeros, none of them beyond its format."""
    values = checkpoint.floats(p.source.name, first * p.columns, count * p.columns)
    largest = float(np.abs(values).max())  # NaN where one of them is
    if not math.isfinite(largest):
        raise ModelFileError(
            f"{p.source.file}: tensor {p.source.name} holds values that are no numbers; download it again"
        )
    if largest >= OVERFLOW.get(p.format, math.inf):
        raise ModelFileError(
            f"{p.source.file}: tensor {p.source.name} holds {largest:g}, beyond {p.format}; convert with --type bf16"
        )
    values = values.reshape(count, p.columns)
    if p.shape[-1] > p.columns:
        values = np.pad(values, ((0, 0), (0, p.shape[-1] - p.columns)))
    return values
