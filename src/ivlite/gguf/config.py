"""The configuration of a model: frozen dataclasses, read from GGUF metadata and checked value by value.

Each field declares its metadata key and its range; docs/gguf_keys.md has them as a table.
"""

import math
from dataclasses import MISSING, dataclass, field, fields

from ivlite.errors import ModelFileError
from ivlite.gguf.file import text_of

ARCHITECTURE = "internvideo3"
TOKENIZER = "tokenizer.huggingface.json"  # the text of a tokenizer.json
# Kinds of chat templates: the beginning of the answer with enable_thinking off and on. "open": Qwen3's thinking models;
# "close": Qwen3's hybrid models.
THINKING = {"none": ("", ""), "open": ("", "<think>\n"), "close": ("<think>\n\n</think>\n\n", "")}
LONGEST = 1024  # most values of a field
AGAIN = "convert the checkpoint again with `ivlite quantize`"


def _key(name, kind, low=None, high=None, length=None, default=MISSING):
    """A field with the metadata key `name`. kind: int, float, bool or str. length: None for one value, else (min, max)."""
    return field(default=default, metadata=dict(key=name, kind=kind, low=low, high=high, length=length))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder. kv_lora_rank has one rank per layer; mrope_section counts rotary frequencies for t, h, w.

    mrope_interleaved: the frequencies of the three axes are interleaved, not in three sections. rope_interleave: a rotary
    vector consists of pairs (x0, y0, x1, y1, ...), not of halves. latent_norm: an RMSNorm on the latent.
    """

    hidden_size: int = _key("embedding_length", int, 1, 1 << 17)
    num_layers: int = _key("block_count", int, 1, 1024)
    num_heads: int = _key("attention.head_count", int, 1, 1024)
    kv_lora_rank: tuple[int, ...] = _key("attention.kv_lora_rank", int, 1, 1 << 16, (1, LONGEST))
    qk_rope_head_dim: int = _key("rope.dimension_count", int, 2, 4096)
    qk_nope_head_dim: int = _key("attention.key_length_nope", int, 1, 4096)
    v_head_dim: int = _key("attention.value_length", int, 1, 4096)
    intermediate_size: int = _key("feed_forward_length", int, 1, 1 << 20)
    vocab_size: int = _key("vocab_size", int, 1, 1 << 24)
    rms_norm_eps: float = _key("attention.layer_norm_rms_epsilon", float, 1e-12, 1e-1)
    rope_theta: float = _key("rope.freq_base", float, 1, 1e12)
    mrope_section: tuple[int, ...] = _key("rope.dimension_sections", int, 0, 4096, (3, 3))
    mrope_interleaved: bool = _key("rope.sections_interleaved", bool)
    rope_interleave: bool = _key("rope.pairs_interleaved", bool)
    latent_norm: bool = _key("attention.latent_norm", bool)
    attention_bias: bool = _key("attention.bias", bool)
    context_length: int = _key("context_length", int, 1, 1 << 30)
    tie_word_embeddings: bool = _key("tie_word_embeddings", bool)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower. deepstack_indexes: the blocks whose outputs are added to the first text layers."""

    depth: int = _key("vision.block_count", int, 1, 1024)
    hidden_size: int = _key("vision.embedding_length", int, 4, 1 << 16)
    num_heads: int = _key("vision.attention.head_count", int, 1, 1024)
    intermediate_size: int = _key("vision.feed_forward_length", int, 1, 1 << 20)
    patch_size: int = _key("vision.patch_size", int, 1, 256)
    temporal_patch_size: int = _key("vision.temporal_patch_size", int, 2, 2)
    spatial_merge_size: int = _key("vision.spatial_merge_size", int, 1, 16)
    in_channels: int = _key("vision.channel_count", int, 3, 3)
    num_position_embeddings: int = _key("vision.position_count", int, 1, 1 << 20)
    deepstack_indexes: tuple[int, ...] = _key("vision.deepstack_indexes", int, 0, 1023, (0, LONGEST))
    out_hidden_size: int = _key("vision.projection_length", int, 1, 1 << 17)
    layer_norm_eps: float = _key("vision.attention.layer_norm_epsilon", float, 1e-12, 1e-1, default=1e-6)
    rope_theta: float = _key("vision.rope.freq_base", float, 1, 1e12, default=10000.0)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Preprocessing of images: pixels after resizing; mean and standard deviation of each channel, in 0..1."""

    min_pixels: int = _key("image.min_pixels", int, 1, 1 << 40)
    max_pixels: int = _key("image.max_pixels", int, 1, 1 << 40)
    mean: tuple[float, ...] = _key("image.mean", float, -16, 16, (3, 3))
    std: tuple[float, ...] = _key("image.std", float, 1e-6, 16, (3, 3))


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """Preprocessing of videos: frames sampled per second, their number, pixels of each frame, mean and deviation."""

    fps: float = _key("video.fps", float, 1e-6, 1e4)
    min_frames: int = _key("video.min_frames", int, 1, 1 << 24)
    max_frames: int = _key("video.max_frames", int, 1, 1 << 24)
    min_pixels: int = _key("video.min_pixels", int, 1, 1 << 40)
    max_pixels: int = _key("video.max_pixels", int, 1, 1 << 40)
    mean: tuple[float, ...] = _key("video.mean", float, -16, 16, (3, 3))
    std: tuple[float, ...] = _key("video.std", float, 1e-6, 16, (3, 3))


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The ids of control tokens; eos are the tokens that end an answer."""

    image_pad: int = _key("tokens.image_pad", int, 0, 1 << 24)
    video_pad: int = _key("tokens.video_pad", int, 0, 1 << 24)
    vision_start: int = _key("tokens.vision_start", int, 0, 1 << 24)
    vision_end: int = _key("tokens.vision_end", int, 0, 1 << 24)
    im_start: int = _key("tokens.im_start", int, 0, 1 << 24)
    im_end: int = _key("tokens.im_end", int, 0, 1 << 24)
    eos: tuple[int, ...] = _key("tokens.eos", int, 0, 1 << 24, (1, 64))


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """The recommended sampling parameters (temperature 0 is greedy). thinking: a key of THINKING."""

    temperature: float = _key("generation.temperature", float, 0, 100, default=0.0)
    top_k: int = _key("generation.top_k", int, 0, 1 << 31, default=0)
    top_p: float = _key("generation.top_p", float, 0, 1, default=1.0)
    min_p: float = _key("generation.min_p", float, 0, 1, default=0.0)
    repetition_penalty: float = _key("generation.repetition_penalty", float, 0.01, 100, default=1.0)
    thinking: str = _key("generation.thinking", str, default="none")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration of a model file, without tensors and tokenizer."""

    name: str
    text: TextConfig
    vision: VisionConfig
    image: ImageConfig
    video: VideoConfig
    tokens: TokenIds
    generation: GenerationConfig

    @classmethod
    def from_metadata(cls, metadata, path):
        """The Config in GGUF metadata. Raises ModelFileError, naming `path`, for missing or wrong values."""
        if text_of(metadata, "general.architecture") != ARCHITECTURE:
            architecture = metadata.get("general.architecture")
            raise ModelFileError(
                f"{path} has architecture {architecture!r:.60}, and ivlite runs {ARCHITECTURE}; "
                "convert an InternVideo3 checkpoint with `ivlite quantize`"
            )
        if not isinstance(metadata.get(TOKENIZER), str):
            raise ModelFileError(f"{path} has no tokenizer ({TOKENIZER}); {AGAIN}")
        parts = {f.name: _read_part(f.type, metadata, path) for f in fields(cls) if f.name != "name"}
        config = cls(name=text_of(metadata, "general.name"), **parts)
        known = {"general.architecture", "general.name", *config.to_metadata()}
        strange = sorted(k for k in metadata if k.startswith(f"{ARCHITECTURE}.") and k not in known)
        if strange:
            raise ModelFileError(
                f"{path} has the key {strange[0]!r:.80}, which this version of ivlite does not know; update ivlite"
            )
        config.check(path)
        return config

    def to_metadata(self):
        """The metadata of this configuration, {key: plain value}, with general.architecture and general.name."""
        out = {"general.architecture": ARCHITECTURE, "general.name": self.name}
        for part in fields(self):
            if part.name != "name":
                value = getattr(self, part.name)
                out |= {_full(f): _plain(getattr(value, f.name)) for f in fields(value)}
        return out

    def check(self, path, advice=AGAIN):
        """Raises ModelFileError, naming `path`, if a value is out of range or contradicts another."""
        for part in fields(self):
            if part.name == "name":
                continue
            value = getattr(self, part.name)
            for f in fields(value):
                _check(getattr(value, f.name), f, f"{path}: {part.name}.{f.name}", advice)
        for holds, sentence in (*_text_rules(self), *_vision_rules(self), *_other_rules(self)):
            if not holds:
                raise ModelFileError(f"{path}: {sentence}; {advice}")


# ------------------------------------------------------------------------------------------------ values


def _full(f):
    return f"{ARCHITECTURE}.{f.metadata['key']}"


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _read_part(part, metadata, path):
    """One of the dataclasses above, read from metadata and type-checked."""
    values = {}
    for f in fields(part):
        key = _full(f)
        if key not in metadata:
            raise ModelFileError(f"{path} has no {key}; {AGAIN}")
        values[f.name] = _typed(metadata[key], f)
        _check(values[f.name], f, f"{path}: {key}")
    return part(**values)


def checked(part, path, prefix="", keys=None, advice=AGAIN, **values):
    """One of the dataclasses above from untrusted values. Raises ModelFileError for a value out of range.

    path, prefix and keys locate a value in the error: "config.json: text_config.num_hidden_layers is ...". keys: the keys
    of the file that have other names than the fields.
    """
    keys = keys or {}
    known = {f.name: f for f in fields(part)}
    values = {name: _typed(value, known[name]) for name, value in values.items()}
    for name, value in values.items():
        _check(value, known[name], f"{path}: {prefix}{keys.get(name, name)}", advice)
    return part(**values)


def _typed(value, f):
    """Converts lists to tuples, and ints to floats for float fields; _check checks the rest."""
    if hasattr(value, "dtype"):  # an array of the file: one value more than a field may have is enough
        value = value[: LONGEST + 1].tolist()
    many = isinstance(value, (list, tuple))
    if f.metadata["kind"] is float:
        value = [_float(v) for v in value] if many else _float(value)
    return tuple(value) if many else value


def _float(value):
    """An int as a float, if it is small enough."""
    return float(value) if type(value) is int and abs(value) < 1 << 1000 else value


def _check(value, f, what, advice=AGAIN):
    """Raises ModelFileError unless the value has the kind, length and range of its field."""
    kind, low, high, length = (f.metadata[k] for k in ("kind", "low", "high", "length"))
    if length is None:
        return _check_one(value, kind, low, high, what, advice)
    if not isinstance(value, tuple) or not length[0] <= len(value) <= length[1]:
        counts = str(length[0]) if length[0] == length[1] else f"{length[0]} to {length[1]}"
        raise ModelFileError(f"{what} is {value!r:.80}; it must be a list of {counts} values; {advice}")
    for item in value:
        _check_one(item, kind, low, high, what, advice)


def _check_one(value, kind, low, high, what, advice):
    allowed = (int, float) if kind is float else kind
    right = isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
    if right and low is not None:
        right = low <= value <= high  # false for NaN as well
    if not right:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
        span = f" from {low} to {high}" if low is not None else ""
        raise ModelFileError(f"{what} is {value!r:.80}; it must be {words}{span}; {advice}")


# ------------------------------------------------------------------------------------------------ rules


def _text_rules(config):
    """Yields (condition, the error if it does not hold)."""
    text, ranks = config.text, len(config.text.kv_lora_rank)
    t, h, w = text.mrope_section
    half = text.qk_rope_head_dim / 2
    yield ranks == text.num_layers, f"there are {ranks} latent ranks for {text.num_layers} layers"
    yield text.qk_rope_head_dim % 2 == 0, f"the rotary dimension {text.qk_rope_head_dim} is odd"
    yield t + h + w == half, f"the rotary sections {t}, {h}, {w} do not add up to half the dimension, {half:g}"
    fits = 3 * h - 1 <= half and 3 * w <= half
    yield fits or not text.mrope_interleaved, f"the rotary sections {t}, {h}, {w} cannot take turns over {half:g}"


def _vision_rules(config):
    vision, text, side = config.vision, config.text, math.isqrt(config.vision.num_position_embeddings)
    width, heads, deepstack = vision.hidden_size, vision.num_heads, vision.deepstack_indexes
    yield width % heads == 0, f"{heads} vision heads do not divide a width of {width}"
    yield width // heads % 4 == 0, f"the vision heads have {width // heads} dimensions, no multiple of 4"
    yield side**2 == vision.num_position_embeddings, f"{vision.num_position_embeddings} vision positions are no square"
    rising = all(a < b for a, b in zip(deepstack, deepstack[1:], strict=False))
    inside = all(i < vision.depth for i in deepstack)
    yield rising and inside, f"the DeepStack blocks {list(deepstack)} are not ascending numbers below {vision.depth}"
    yield len(deepstack) <= text.num_layers, f"{len(deepstack)} DeepStack blocks feed {text.num_layers} text layers"
    out, takes = vision.out_hidden_size, text.hidden_size
    yield out == takes, f"the vision tower gives {out} features and the text takes {takes}"


def _other_rules(config):
    video, vocab = config.video, config.text.vocab_size
    for part, name in ((config.image, "image"), (video, "video")):
        low, high = part.min_pixels, part.max_pixels
        yield low <= high, f"{name} min_pixels {low} is above max_pixels {high}"
    low, high = video.min_frames, video.max_frames
    yield low <= high, f"video min_frames {low} is above max_frames {high}"
    thinking = config.generation.thinking
    yield thinking in THINKING, f"generation.thinking is {thinking!r:.40}, and must be one of {', '.join(THINKING)}"
    for f in fields(config.tokens):
        value = getattr(config.tokens, f.name)
        largest = max(value) if isinstance(value, tuple) else value
        yield largest < vocab, f"token id {largest} ({f.name}) is beyond the vocabulary of {vocab}"


# ------------------------------------------------------------------------------------------------ tensors


def check_tensors(tensors, specs, path):
    """Raises ModelFileError unless a file's tensors are exactly those of `specs`, with their shapes and kinds.

    tensors: name -> object with shape, format, block (weights per block) and runs (ivlite computes with the format).
    specs: TensorSpecs of the architecture. Rows may be padded to whole blocks.
    """
    wanted = {spec.gguf: spec for spec in specs}
    missing = [name for name, spec in wanted.items() if name not in tensors and not spec.optional]
    vision = [name for name in wanted if name.startswith("v.")]
    if missing and vision and not any(name.startswith("v.") for name in tensors):
        raise ModelFileError(f"{path} has no vision tensors: convert the whole checkpoint again with `ivlite quantize`")
    if missing:
        raise ModelFileError(f"{path} lacks {listed(missing)}; {AGAIN}")
    extra = [name for name in tensors if name not in wanted]
    if extra:
        raise ModelFileError(f"{path} has {listed(extra)}, for which its model has no use; {AGAIN}")
    for name, info in tensors.items():
        _check_tensor(info, wanted[name], f"{path}: tensor {name}")


def _check_tensor(info, spec, what):
    if not info.runs or (spec.kind == "vector" and info.block > 1):
        raise ModelFileError(
            f"{what} has type {info.format}, with which ivlite does not compute{' there' if info.runs else ''}; {AGAIN}"
        )
    padded = (*spec.shape[:-1], -(-spec.shape[-1] // info.block) * info.block)
    if tuple(info.shape) != padded:
        raise ModelFileError(f"{what} has shape {list(info.shape)} where its model needs {list(spec.shape)}; {AGAIN}")


def listed(names, most=3):
    """Names for a sentence: "the tensors a, b" or "the tensors a, b, c and 7 more"."""
    names = [f"{name!r:.80}"[1:-1] for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {', '.join(names[:most])}{more}"
