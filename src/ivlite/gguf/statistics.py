"""The file of `ivlite calibrate`: the mean squared input of every channel of every linear layer (an importance matrix).

It is a GGUF file of architecture "internvideo3-stats", with one float32 vector `<weight>.importance` per linear layer;
docs/gguf_keys.md lists the metadata.
"""

from dataclasses import dataclass, field

import numpy as np

from ivlite.errors import ModelFileError
from ivlite.gguf.file import GGUFFile
from ivlite.gguf.reader import Kind
from ivlite.gguf.writer import GGUFWriter

ARCHITECTURE = "internvideo3-stats"
TOKENS, MODEL, PROMPTS, ROWS = (f"{ARCHITECTURE}.{name}" for name in ("tokens", "model", "prompts", "rows"))
SUFFIX = ".importance"
ADVICE = "make the statistics of this model with `ivlite calibrate`"
KIND = Kind(ADVICE, ADVICE)


@dataclass
class Importance:
    """The content of the file.

    model: its name. tokens: their number over all prompts. prompts: the prompts' keys. rows: weight name -> number of
    input vectors. means: weight name -> their mean square, float32 (columns,).
    """

    model: str
    tokens: int
    prompts: list = field(default_factory=list)
    rows: dict = field(default_factory=dict)
    means: dict = field(default_factory=dict)


def save(path, found):
    """Writes the file; replaces an older one atomically. Returns notes about the disk. Raises DiskError."""
    metadata = {
        "general.architecture": ARCHITECTURE, TOKENS: found.tokens, MODEL: found.model,
        PROMPTS: found.prompts, ROWS: list(found.rows.values()),
    }  # fmt: skip
    tensors = [(name + SUFFIX, (len(found.means[name]),), "f32") for name in found.rows]
    with GGUFWriter(path, metadata, tensors) as out:
        for name in found.rows:
            out.write(found.means[name].astype(np.float32).tobytes())
    return out.notes


def load(path):
    """The Importance in a file. Raises ModelFileError."""
    with GGUFFile(path, KIND) as file:
        if file.architecture != ARCHITECTURE:
            raise ModelFileError(f"{path} has architecture {file.architecture!r:.60} and holds no statistics; {ADVICE}")
        tokens, model = file.metadata.get(TOKENS), file.metadata.get(MODEL)
        if type(tokens) is not int or not isinstance(model, str):
            raise ModelFileError(f"{path} does not say of how many tokens and which model it is; {ADVICE}")
        infos = sorted(file.tensors.values(), key=lambda info: info.offset)
        odd = next((t for t in infos if t.format != "f32" or len(t.shape) != 1 or not t.name.endswith(SUFFIX)), None)
        if odd:
            raise ModelFileError(f"{path} has {odd.name!r:.80}, which is no vector of importance; {ADVICE}")
        means = {info.name.removesuffix(SUFFIX): _vector(file, info) for info in infos}
        prompts, rows = _counts(file, len(means))
    return Importance(model, tokens, prompts, dict(zip(means, rows, strict=True)), means)


def _vector(file, info):
    values = file.read(info.name).view(np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ModelFileError(f"{file.path}: {info.name} has values that are no squares; {ADVICE}")
    return values


def _counts(file, layers):
    """The keys of the prompts, and the number of input vectors of each layer."""
    prompts, rows = file.metadata.get(PROMPTS, []), file.metadata.get(ROWS, [])
    rows = rows.tolist() if hasattr(rows, "dtype") else rows
    texts = isinstance(prompts, list) and all(isinstance(key, str) for key in prompts)
    if not texts and len(prompts):
        raise ModelFileError(f"{file.path} is damaged: its prompts are no texts; calibrate again")
    if not isinstance(rows, list) or len(rows) != layers or not all(type(n) is int and n > 0 for n in rows):
        raise ModelFileError(f"{file.path} is damaged: its vectors and their counts differ; calibrate again")
    return list(prompts) if texts else [], rows
