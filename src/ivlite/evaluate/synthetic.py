"""Models with random weights, built in memory, and inputs for them: `ivlite bench --random` measures these."""

import hashlib
import math
from dataclasses import replace

import numpy as np

from ivlite import _C, models
from ivlite.errors import UsageError
from ivlite.gguf import GGUFFile, TensorInfo
from ivlite.gguf.config import Config, GenerationConfig, ImageConfig, TextConfig, TokenIds, VideoConfig, VisionConfig
from ivlite.loading import CACHE_KINDS, check_fit, chosen_device
from ivlite.model import Model
from ivlite.prompt import Prompt
from ivlite.quantize import recipes

# hidden, layers, heads, rank, rope = nope = v, ffn, vocabulary; vision: depth, hidden, heads, ffn, positions, DeepStack layers
SIZES = {
    "8b": (4096, 36, 32, 896, 128, 12288, 151936, 27, 1152, 16, 4304, 2304, (8, 16, 24)),
    "4b": (2560, 36, 32, 896, 128, 9728, 151936, 24, 1024, 16, 4096, 2304, (5, 11, 17)),
    "tiny": (128, 4, 4, 96, 32, 384, 448, 4, 96, 4, 160, 64, (0, 1, 2)),
}


def config(size):
    """The Config of one of SIZES, or of the package's "demo". "8b" is InternVideo3-8B, the others are smaller versions."""
    if size == "demo":
        with GGUFFile("demo") as file:
            return replace(Config.from_metadata(file.metadata, file.path), name="random-demo")
    if size not in SIZES:
        raise UsageError(f"no random model of size {size!r}; there are {', '.join((*SIZES, 'demo'))}")
    hidden, layers, heads, rank, head, ffn, vocab, depth, width, vheads, vffn, places, deepstack = SIZES[size]
    height = width_axis = (head // 2 - 4) // 3 if head == 128 else 5
    section = (head // 2 - height - width_axis, height, width_axis)
    text = TextConfig(
        hidden_size=hidden, num_layers=layers, num_heads=heads, kv_lora_rank=(rank,) * layers, qk_rope_head_dim=head,
        qk_nope_head_dim=head, v_head_dim=head, intermediate_size=ffn, vocab_size=vocab, rms_norm_eps=1e-6,
        rope_theta=5e6, mrope_section=section, mrope_interleaved=True, rope_interleave=True, latent_norm=False,
        attention_bias=True, context_length=262144, tie_word_embeddings=False,
    )  # fmt: skip
    vision = VisionConfig(
        depth=depth, hidden_size=width, num_heads=vheads, intermediate_size=vffn, patch_size=16,
        temporal_patch_size=2, spatial_merge_size=2, in_channels=3, num_position_embeddings=places,
        deepstack_indexes=deepstack, out_hidden_size=hidden,
    )  # fmt: skip
    half = (0.5, 0.5, 0.5)
    return Config(
        name=f"random-{size}", text=text, vision=vision,
        image=ImageConfig(min_pixels=65536, max_pixels=16777216, mean=half, std=half),
        video=VideoConfig(fps=1, min_frames=4, max_frames=768, min_pixels=131072, max_pixels=131072, mean=half, std=half),
        tokens=TokenIds(image_pad=1, video_pad=2, vision_start=3, vision_end=4, im_start=5, im_end=6, eos=(6,)),
        generation=GenerationConfig(),
    )  # fmt: skip


CHUNK = 1 << 18  # weights that are generated; a matrix repeats them. A multiple of every block size


class RandomSource:
    """A source of weights like a model file, with random values scaled to keep activations near 1."""

    def __init__(self, cfg, type_name, seed=0):
        self.random = np.random.default_rng(seed)
        self.formats = {f["name"]: f for f in _C.formats()}
        self.tensors, self.table = {}, None
        self.digest = hashlib.sha256(repr((cfg, type_name, seed)).encode()).hexdigest()
        for choice in recipes.plan(models.module("internvideo3").tensor_names(cfg), recipes.named(type_name)):
            name, info = choice.spec.gguf, self.formats[choice.format]
            nbytes = math.prod(choice.shape) // info["block"] * info["block_bytes"]
            self.tensors[name] = TensorInfo(name, choice.shape, choice.format, 0, nbytes)

    def close(self):
        """Does nothing: no file is open."""

    def read(self, name, first=0, count=None):
        info = self.tensors[name]
        if len(info.shape) == 1:
            value = np.ones if name.endswith("weight") else np.zeros
            return value(info.shape, np.float32).view(np.uint8)
        return self._blocks(info.format, (count or info.shape[0]) * info.shape[1], info.shape[1])

    def read_rows(self, name, rows):
        if self.table is None:  # all tokens share one row: the values do not affect the time
            info = self.tensors[name]
            self.table = self._blocks(info.format, info.shape[1], 1)
        return np.repeat(self.table[None], len(rows), 0)

    def _blocks(self, fmt, count, cols):
        """`count` weights: quantized normal numbers, repeated. The values do not affect the time."""
        chunk = self.random.standard_normal(min(count, CHUNK), np.float32) / np.float32(math.sqrt(cols))
        info = self.formats[fmt]
        return np.resize(_C.encode(fmt, chunk), count // info["block"] * info["block_bytes"])


def random_model(size="8b", type="q4_k_m", *, device="cpu", threads=None, context=8192, kv="q8", seed=0, progress=None,
                 tokenizer=None):  # fmt: skip
    """A Model with random weights, in the formats of the quantizer's `type`. Raises UsageError, OutOfMemoryError.

    tokenizer: of a model with as many tokens, for messages; without one, a Prompt alone can be answered.
    """
    cfg, kv = config(size), CACHE_KINDS[kv]
    source = RandomSource(cfg, type, seed)
    tensors = source.tensors.values()
    operations, _ = chosen_device(device, threads, lambda o: check_fit(o, tensors, "repack", cfg.text, context, kv))
    network = models.module("internvideo3").Network(cfg, source, operations, progress)
    return Model(cfg, network, tokenizer, context=context, kv=kv)


def text_prompt(tokens):
    """A Prompt of token ids without media."""
    positions = np.tile(np.arange(len(tokens), dtype=np.int64), (3, 1))
    return Prompt(
        token_ids=list(tokens), positions=positions, next_position=len(tokens), grid_thw=np.zeros((0, 3), np.int64),
        timestamps=[], frames=[], media=[], warnings=[], spans=[],
    )  # fmt: skip


def fill(cache, config, tokens, random, array=lambda x: x):
    """Fills every layer of an empty cache with `tokens` random rows: the values do not affect the time. array: of the backend."""
    text = config.text
    widest = max((*text.kv_lora_rank, text.qk_rope_head_dim))
    rows = random.standard_normal((min(tokens, 2048), widest), np.float32)
    for first in range(0, tokens, 2048):
        n = min(2048, tokens - first)
        for layer, rank in enumerate(text.kv_lora_rank):
            cache.append(layer, array(rows[:n, :rank]), array(rows[:n, : text.qk_rope_head_dim]))
        cache.advance(n)


def usual_pair(config):
    """(width, height, frames) of a frame pair at the default size of video frames."""
    unit = config.vision.patch_size * config.vision.spatial_merge_size
    side = max(1, int(math.sqrt(config.video.max_pixels)) // unit) * unit
    return side, side, config.vision.temporal_patch_size
