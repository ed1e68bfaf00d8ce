"""Golden values: stored activations of a small input, which `ivlite verify` computes again and compares.

The input is a computed picture and a short conversation about it. The reference is the model on the CPU backend with the
source's weights; for a checkpoint these are floats, and so is all arithmetic. Layers are loaded one at a time, so that an
8B checkpoint takes 1.5 GB and a minute, not 20 GB. Stages are the vision tower's output, the output of each DeepStack
layer, and the logits of the last POSITIONS tokens: of each position the TOP largest logits and the log-sum-exp of all,
which give a lower bound of the KL divergence.
"""

import math
from dataclasses import dataclass

import numpy as np

from ivlite import ops
from ivlite.engine.divergence import kl_of_likeliest
from ivlite.errors import ModelFileError
from ivlite.gguf import TensorInfo
from ivlite.gguf.config import AGAIN, TOKENIZER
from ivlite.gguf.streaming import StreamingLoader
from ivlite.gguf.tokenizer import Tokenizer
from ivlite.models.internvideo3 import Network
from ivlite.prompt.positions import mrope_positions, vision_runs
from ivlite.quantize.encode import finite

PREFIX = "ivlite.golden."
KEYS = {
    "size": np.uint32, "tokens": np.uint32, "vision": np.float32, "deepstack": np.float32,
    "top_ids": np.uint32, "top_logits": np.float32, "log_sums": np.float32,
}  # fmt: skip
QUESTION, ANSWER = "What is in the picture?", "A pattern of small squares over a gradient of red and green."
POSITIONS, TOP = 16, 64
# Per format: relative error of a vision stage, mean KL of the logits. At least three times the error with random weights,
# which amplify rounding more than trained ones (docs/numerics.md); a wrong kernel or weight gives an error of about one.
LIMITS = {
    "f32": (1e-3, 1e-4), "f16": (1e-2, 1e-3), "bf16": (3e-2, 3e-3), "q8_0": (0.06, 0.01),
    "q6_k": (0.1, 0.03), "q5_k": (0.2, 0.05), "q4_k": (0.4, 0.2), "q4_0": (0.6, 0.3),
}  # fmt: skip
SHARE = 0.1  # a format sets the limit if at least this fraction of the tower's or decoder's weights has it


@dataclass(frozen=True)
class Stage:
    """error: RMS of the difference divided by RMS of the reference; for logits, the mean KL in nats."""

    name: str
    error: float
    limit: float

    @property
    def ok(self):
        return self.error <= self.limit  # false for NaN


# ------------------------------------------------------------------------------------------------ input


def picture(height, width):
    """uint8 (2, height, width, 3): two equal frames with a checkered gradient."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack([x * 255 // width, y * 255 // height, (x // 8 + y // 8) % 2 * 255], -1).astype(np.uint8)
    return np.stack([frame, frame])


def conversation(config, tokenizer, count):
    """Token ids of a question about a picture of `count` tokens, and its answer."""
    t = config.tokens
    ids = [t.im_start, *tokenizer.encode("user\n"), t.vision_start, *[t.image_pad] * count, t.vision_end]
    ids += [*tokenizer.encode(QUESTION), t.im_end, *tokenizer.encode("\n"), t.im_start]
    return ids + tokenizer.encode("assistant\n" + ANSWER)


# ------------------------------------------------------------------------------------------------ running


class Weights:
    """The tensors of an Origin under their GGUF names, as a source for a Network.

    allow_nan: weights that are not finite are zero, as the conversion makes them, instead of a ModelFileError.
    """

    def __init__(self, origin, allow_nan=False):
        self.origin, self.allow_nan = origin, allow_nan
        found = [(spec, origin.source(spec)) for spec in origin.specs]
        self.tensors = {
            spec.gguf: TensorInfo(spec.gguf, _stored_shape(s, spec), s.format, s.offset, s.nbytes) for spec, s in found
        }

    def read(self, name, first=0, count=None):
        info = self.tensors[name]
        row = info.nbytes // info.shape[0]
        return self._raw(name, first * row, info.nbytes if count is None else count * row)

    def read_rows(self, name, ids):
        info = self.tensors[name]
        row = info.nbytes // info.shape[0]
        return np.stack([self._raw(name, int(i) * row, row) for i in ids])

    def _raw(self, name, start, size):
        name = self.origin.names[name]
        return finite(self.origin.weights.tensors[name], self.origin.weights.raw(name, start, size), self.allow_nan)


def _stored_shape(source, spec):
    """The shape in the source, which may be padded; a convolution as a matrix."""
    return spec.shape if math.prod(source.shape) == math.prod(spec.shape) else source.shape


def run(config, source, size, tokens, threads=None, progress=None):
    """Runs the input: float32 (vision (n, hidden), deepstack (K, n, hidden), logits (POSITIONS, vocab))."""
    counted = progress and (lambda _, done, total: progress("golden", done, total))
    network = Network(config, source, ops.get("cpu", threads), counted, loader=StreamingLoader)
    patch = config.vision.patch_size
    merged, deep = network.vision([picture(*size)], config.image.mean, config.image.std)
    first, count = vision_runs(tokens, config.tokens)[0]
    x = network.embed(tokens)
    x[first : first + count] = merged
    grid = [(1, size[0] // patch, size[1] // patch)]
    positions, _ = mrope_positions(tokens, grid, config.tokens, config.vision.spatial_merge_size)
    x = network.forward(x, positions, network.cache(len(tokens), "f32"), [(first, deep)])
    return merged, np.stack(deep) if deep else np.zeros((0, *merged.shape), np.float32), network.logits(x[-POSITIONS:])


def make(origin, progress=None, allow_nan=False):
    """The golden metadata of an Origin; keeps that of a model file. Raises ModelFileError for values that are not finite."""
    have = {key: value for key, value in origin.metadata.items() if key.startswith(PREFIX)}
    if have:
        return have
    config = origin.config
    unit = config.vision.patch_size * config.vision.spatial_merge_size
    size = (2 * unit, 3 * unit)
    tokens = conversation(config, Tokenizer(origin.metadata[TOKENIZER]), 6)
    vision, deep, logits = run(config, Weights(origin, allow_nan), size, tokens, progress=progress)
    top = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    values = {
        "size": size, "tokens": tokens, "vision": vision, "deepstack": deep, "top_ids": top,
        "top_logits": np.take_along_axis(logits, top, 1), "log_sums": log_sums(logits),
    }  # fmt: skip
    made = typed({PREFIX + key: value for key, value in values.items()})
    if not _finite(made):
        raise ModelFileError(
            f"{origin.path} computes values that are not finite, so that nothing could be verified; convert it without --golden"
        )
    return made


def _finite(values):
    return all(np.isfinite(value).all() for value in values.values())


def typed(metadata):
    """Golden metadata as flat arrays with their stored types."""
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # what becomes of NaN as a whole number is checked where it is used
        return {
            key: np.ascontiguousarray(value, KEYS[key.removeprefix(PREFIX)]).reshape(-1)
            for key, value in metadata.items()
        }


def stored(metadata, path):
    """The golden values in a file's metadata, {} without any. Raises ModelFileError for malformed ones."""
    try:
        found = typed({key: value for key, value in metadata.items() if key.startswith(PREFIX)})
    except (KeyError, ValueError, TypeError, OverflowError):
        raise ModelFileError(f"{path} has damaged golden values; {AGAIN}") from None
    if not _finite(found):
        raise _not_finite(path)
    return found


def _not_finite(path):
    return ModelFileError(
        f"{path} has golden values that are not finite, which nothing can be verified against; {AGAIN}"
    )


# ------------------------------------------------------------------------------------------------ comparing


def compare(config, file, threads=None, progress=None):
    """The Stages of a model file with golden values. Raises ModelFileError if these are malformed."""
    g = _checked(config, file)
    vision, deep, logits = run(config, file, g["size"].tolist(), g["tokens"].tolist(), threads, progress)
    n, limit = g["vision"].size, _limit(file, "v.", 0)
    stages = [Stage("vision", _relative(vision, g["vision"]), limit)]
    for k, got in enumerate(deep):
        stages.append(Stage(f"DeepStack {k}", _relative(got, g["deepstack"][k * n : (k + 1) * n]), limit))
    ids, top = g["top_ids"].reshape(len(logits), -1), g["top_logits"].reshape(len(logits), -1)
    kl = divergence(top - g["log_sums"][:, None], np.take_along_axis(logits, ids, 1) - log_sums(logits)[:, None])
    return [*stages, Stage("logits", kl, max(_limit(file, "v.", 1), _limit(file, "blk.", 1)))]


def _checked(config, file):
    """Golden values by their short names; checks their sizes and ranges against the model."""
    path, keys = file.path, [PREFIX + key for key in KEYS]
    try:
        g = {key.removeprefix(PREFIX): v for key, v in typed({key: file.metadata[key] for key in keys}).items()}
        unit = config.vision.patch_size * config.vision.spatial_merge_size
        (_, count), *more = vision_runs(g["tokens"], config.tokens)
        height, width = g["size"].tolist()
        rows = min(POSITIONS, g["tokens"].size)
        whole = (
            not more and height * width == count * unit**2 and height % unit == width % unit == 0 and count <= 64
            and g["tokens"].size <= 1024 and g["tokens"].max() < config.text.vocab_size
            and g["vision"].size == count * config.text.hidden_size
            and g["deepstack"].size == g["vision"].size * len(config.vision.deepstack_indexes)
            and g["top_ids"].size == g["top_logits"].size and g["log_sums"].size == rows
            and g["top_ids"].size % rows == 0 and g["top_ids"].max() < config.text.vocab_size
        )  # fmt: skip
    except (KeyError, ValueError, TypeError, OverflowError):  # UsageError, of tokens that fit no picture, is one too
        whole = False
    if not whole:
        raise ModelFileError(f"{path} has damaged golden values; {AGAIN}")
    if not _finite(g):
        raise _not_finite(path)
    return g


def _limit(file, start, which):
    """The widest limit among the formats of the tensors whose names begin with `start`."""
    sizes = {}
    for t in file.tensors.values():
        if t.name.startswith(start):
            sizes[t.format] = sizes.get(t.format, 0) + math.prod(t.shape)
    return max(LIMITS[fmt][which] for fmt, n in sizes.items() if n >= SHARE * sum(sizes.values()))


def _relative(got, expected):
    expected = expected.reshape(got.shape).astype(np.float64)
    return float(np.sqrt(np.mean((got - expected) ** 2) / max(np.mean(expected**2), 1e-30)))


def log_sums(logits):
    """The log-sum-exp of each row, float32 (T,)."""
    most = logits.max(1)
    return most + np.log(np.exp(logits - most[:, None]).sum(1))


def divergence(expected, got):
    """Mean KL in nats between rows of log-probabilities of the same tokens, with all other tokens counted as one."""
    return float(kl_of_likeliest(expected, got).mean())
