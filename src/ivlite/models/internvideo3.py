"""InternVideo3: a Qwen3-VL vision tower and decoder whose attention is multi-head latent attention (M2LA).

The arithmetic is in `ivlite.ops`; this file defines the tensors and the network. Per text layer and token x, for each
head h, with a latent c and a rotary key that all heads share:

    q_h = [q_nope | q_rope]            c, k_rope = split(W_kva x + b)           [k_nope_h | v_h] = W_kvb,h c
    s_h = (q_nope . k_nope + rot(q_rope) . rot(k_rope)) / sqrt(nope + rope)     o = W_o [softmax(s_h) v_h]

Only c and rot(k_rope) are cached. With W_kvb,h = [W_UK,h; W_UV,h], there are two equal ways to compute attention:

    expanded: k_nope_h and v_h are computed for every cached token as above; cheaper for many queries.
    absorbed: the scores use (W_UK,h^T q_nope) . c and the output is W_UV,h (softmax(s_h) c); cheaper for few queries.
              The code names the matrices uk_t (W_UK^T) and uv (W_UV).
"""

import math
from dataclasses import dataclass

import numpy as np

from ivlite.gguf.loading import Loader
from ivlite.ops.modules import Linear, Mlp, SplitMlp
from ivlite.prompt.positions import mrope_axes, rotary
from ivlite.stop import checkpoint

ARCHITECTURE = "internvideo3"
ROWS = 512  # tokens that go together through what is computed row by row: it would need most of the memory at once


# ------------------------------------------------------------------------------------------------ tensors


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint: its Hugging Face name, its GGUF name, and its shape as a matrix or vector.

    kind: "matrix" may be quantized, "float_matrix" keeps a float format, "vector" is always float32.
    """

    hf: str
    gguf: str
    shape: tuple[int, ...]
    kind: str = "matrix"
    optional: bool = False


def _pair(hf, gguf, rows, cols, bias=True, kind="matrix"):
    """A linear layer's weight and bias."""
    yield TensorSpec(f"{hf}.weight", f"{gguf}.weight", (rows, cols), kind)
    if bias:
        yield TensorSpec(f"{hf}.bias", f"{gguf}.bias", (rows,), "vector")


def _norm(hf, gguf, n, bias=False):
    yield TensorSpec(f"{hf}.weight", f"{gguf}.weight", (n,), "vector")
    if bias:
        yield TensorSpec(f"{hf}.bias", f"{gguf}.bias", (n,), "vector")


def _text_layer(text, i):
    hf, gg = f"model.language_model.layers.{i}", f"blk.{i}"
    width, heads, rank = text.hidden_size, text.num_heads, text.kv_lora_rank[i]
    yield from _norm(f"{hf}.input_layernorm", f"{gg}.attn_norm", width)
    yield from _norm(f"{hf}.post_attention_layernorm", f"{gg}.ffn_norm", width)
    attn, bias = f"{hf}.self_attn", text.attention_bias
    query = heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
    yield from _pair(f"{attn}.q_proj", f"{gg}.attn_q", query, width, bias)
    latent = rank + text.qk_rope_head_dim
    yield from _pair(f"{attn}.kv_a_proj_with_mqa", f"{gg}.attn_kv_a", latent, width, bias)
    if text.latent_norm:
        yield from _norm(f"{attn}.kv_a_layernorm", f"{gg}.attn_kv_a_norm", rank)
    expanded = heads * (text.qk_nope_head_dim + text.v_head_dim)
    yield from _pair(f"{attn}.kv_b_proj", f"{gg}.attn_kv_b", expanded, rank, bias=False)
    yield from _pair(f"{attn}.o_proj", f"{gg}.attn_output", width, heads * text.v_head_dim, bias=False)
    for part, rows, cols in (
        ("gate", text.intermediate_size, width),
        ("up", text.intermediate_size, width),
        ("down", width, text.intermediate_size),
    ):
        yield from _pair(f"{hf}.mlp.{part}_proj", f"{gg}.ffn_{part}", rows, cols, bias=False)


def _vision_block(vision, i):
    hf, gg = f"model.visual.blocks.{i}", f"v.blk.{i}"
    width, inner = vision.hidden_size, vision.intermediate_size
    yield from _norm(f"{hf}.norm1", f"{gg}.ln1", width, bias=True)
    yield from _norm(f"{hf}.norm2", f"{gg}.ln2", width, bias=True)
    yield from _pair(f"{hf}.attn.qkv", f"{gg}.attn_qkv", 3 * width, width)
    yield from _pair(f"{hf}.attn.proj", f"{gg}.attn_out", width, width)
    yield from _pair(f"{hf}.mlp.linear_fc1", f"{gg}.ffn_up", inner, width)
    yield from _pair(f"{hf}.mlp.linear_fc2", f"{gg}.ffn_down", width, inner)


def _merger(vision, hf, gg, norm):
    inner = vision.hidden_size * vision.spatial_merge_size**2
    yield from _norm(f"{hf}.norm", f"{gg}.norm", norm, bias=True)
    yield from _pair(f"{hf}.linear_fc1", f"{gg}.fc1", inner, inner)
    yield from _pair(f"{hf}.linear_fc2", f"{gg}.fc2", vision.out_hidden_size, inner)


def _vision(vision):
    width = vision.hidden_size
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    yield from _pair("model.visual.patch_embed.proj", "v.patch_embd", width, patch, kind="float_matrix")
    yield TensorSpec("model.visual.pos_embed.weight", "v.position_embd.weight",
                     (vision.num_position_embeddings, width), "float_matrix")  # fmt: skip
    for i in range(vision.depth):
        yield from _vision_block(vision, i)
    yield from _merger(vision, "model.visual.merger", "v.merger", width)
    merged = width * vision.spatial_merge_size**2
    for k in range(len(vision.deepstack_indexes)):
        yield from _merger(vision, f"model.visual.deepstack_merger_list.{k}", f"v.deepstack.{k}", merged)


def tensor_names(config):
    """A list of TensorSpec: every tensor of a checkpoint of this configuration."""
    text = config.text
    table = (text.vocab_size, text.hidden_size)
    specs = [TensorSpec("model.language_model.embed_tokens.weight", "token_embd.weight", table)]
    for i in range(text.num_layers):
        specs += _text_layer(text, i)
    specs += _norm("model.language_model.norm", "output_norm", text.hidden_size)
    if not text.tie_word_embeddings:
        specs.append(TensorSpec("lm_head.weight", "output.weight", table))
    return specs + list(_vision(config.vision))


# ------------------------------------------------------------------------------------------------ positions


def interpolated_positions(table, h, w, merge):
    """Resamples the (side, side) table of position embeddings bilinearly to an h x w grid, with align_corners.

    table float32 (side * side, width) -> float32 (h * w, width), rows in merge-block order.
    """
    side = math.isqrt(len(table))

    def corners(n):
        at = _linspace32(side - 1, n)
        low = at.astype(np.int64)
        return low, np.minimum(low + 1, side - 1), (at - low.astype(np.float32))[:, None]

    top, bottom, dh = corners(h)
    left, right, dw = corners(w)
    grid = table.reshape(side, side, -1)
    dh = dh[:, None]
    one = np.float32(1)
    out = grid[top][:, left] * ((one - dh) * (one - dw)) + grid[top][:, right] * ((one - dh) * dw)
    out += grid[bottom][:, left] * (dh * (one - dw))
    out += grid[bottom][:, right] * (dh * dw)
    return block_order(out, merge)


def _linspace32(end, n):
    """torch.linspace(0, end, n) in float32: like torch, counts up from 0 in the first half, down from the end in the second."""
    if n == 1:
        return np.zeros(1, np.float32)
    step = np.float32(end) / np.float32(n - 1)
    i = np.arange(n)
    up = step * i.astype(np.float32)
    down = np.float32(end) - step * (n - 1 - i).astype(np.float32)
    return np.where(i < n // 2, up, down).astype(np.float32)


def block_order(grid, merge):
    """(h, w, ...) reordered to rows (h/merge, w/merge, merge, merge): the order of the patches."""
    h, w = grid.shape[:2]
    rest = grid.shape[2:]
    blocks = grid.reshape(h // merge, merge, w // merge, merge, *rest).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).reshape(h * w, *rest)


# ------------------------------------------------------------------------------------------------ the decoder


def expand_from(text, rank):
    """With fewer queries than this, absorbed attention takes fewer multiplications than expanding every cached token."""
    both = text.qk_nope_head_dim + text.v_head_dim
    return rank * both / (2 * rank - both) if 2 * rank > both else math.inf


class Layer:
    """One decoder layer: M2LA attention and a SwiGLU MLP, each behind an RMSNorm and added to the residual."""

    def __init__(self, load, text, i):
        self.ops, self.text, self.index, self.rank = load.ops, text, i, text.kv_lora_rank[i]
        name, width, heads = f"blk.{i}", text.hidden_size, text.num_heads
        nope, rope, v = text.qk_nope_head_dim, text.qk_rope_head_dim, text.v_head_dim
        self.scale = (nope + rope) ** -0.5
        self.attn_norm, self.ffn_norm = load.norm(f"{name}.attn_norm")[0], load.norm(f"{name}.ffn_norm")[0]
        self.q = load.linear(f"{name}.attn_q", heads * (nope + rope), width)
        self.kv_a = load.linear(f"{name}.attn_kv_a", self.rank + rope, width)
        self.latent_norm = load.vector(f"{name}.attn_kv_a_norm.weight")
        self._load_kv_b(load, f"{name}.attn_kv_b.weight")
        self.o = load.linear(f"{name}.attn_output", width, heads * v)
        self.mlp = self._load_mlp(load, name)
        self.expand_from = expand_from(text, self.rank)
        self.fused = self._fused() if isinstance(self.mlp, Mlp) else None

    def _fused(self):
        """The whole layer with absorbed attention as one operation, or None if the backend has none."""
        norms = dict(attn_norm=self.attn_norm, latent_norm=self.latent_norm, ffn_norm=self.ffn_norm)
        linears = dict(q=self.q, kv_a=self.kv_a, o=self.o, up=self.mlp.up, down=self.mlp.down)
        return self.ops.decoder_layer(
            **norms, **{name: (w.weight, w.bias) for name, w in linears.items()}, uk_t=self.uk_t, uv=self.uv,
            interleaved=self.text.rope_interleave, eps=self.text.rms_norm_eps, scale=self.scale,
        )  # fmt: skip

    def _load_kv_b(self, load, name):
        """W_kvb for expanded attention, and W_UK^T and W_UV per head for absorbed attention."""
        text, ops = self.text, self.ops
        heads, nope, v = text.num_heads, text.qk_nope_head_dim, text.v_head_dim
        shape = heads, nope + v, self.rank
        fmt, data = load.read(name)
        self.kv_b = ops.weight(fmt, data, shape, name)
        # Blocks lie along columns, so a transposed matrix must be quantized again: to 8 bits.
        into = fmt if fmt in ("f32", "f16", "bf16") else "q8_0"
        self.uk_t = ops.weight(into, ops.transposed(fmt, data, shape, nope, into), (heads, self.rank, nope))
        value = np.ascontiguousarray(data.reshape(heads, nope + v, -1)[:, nope:]).reshape(-1)
        self.uv = ops.weight(fmt, value, (heads, v, self.rank))

    def _load_mlp(self, load, name):
        """An MLP with gate and up joined in one matrix, unless their formats differ."""
        names = [f"{name}.ffn_{part}.weight" for part in ("gate", "up")]
        inner, width = self.text.intermediate_size, self.text.hidden_size
        if len({load.source.tensors[n].format for n in names}) == 1:
            joined = Linear(self.ops, load.matrix(2 * inner, width, *names))
            return Mlp(joined, "silu_mul", load.linear(f"{name}.ffn_down", width, inner))
        gate, up = (Linear(self.ops, load.matrix(inner, width, n)) for n in names)
        return SplitMlp(gate, up, load.linear(f"{name}.ffn_down", width, inner))

    def __call__(self, x, cos, sin, cache):
        """x (T, hidden) in place; cos, sin (T, rope/2). Appends T rows to the cache's layer."""
        ops, eps = self.ops, self.text.rms_norm_eps
        if self.fused and len(x) < self.expand_from:
            return self.fused(x, cos, sin, cache, self.index)
        attended = self.attention(x, cos, sin, cache)
        for first in range(0, len(x), ROWS):
            checkpoint()
            chunk = self.o(attended[first : first + ROWS], into=x[first : first + ROWS])
            self.mlp(ops.rms_norm(chunk, self.ffn_norm, eps), into=chunk)
        return x

    def attention(self, x, cos, sin, cache):
        """(T, hidden) -> (T, heads * v)."""
        ops, tokens = self.ops, len(x)
        cache.append(self.index, *self.latents(x, cos, sin))

        def queries(first, last):
            checkpoint()
            return self.queries(x[first:last], cos[first:last], sin[first:last])

        if tokens < self.expand_from:
            q_nope, q_rope = queries(0, tokens)
            u = ops.absorbed_attention(ops.linear_heads(q_nope, self.uk_t), q_rope, cache, self.index, self.scale)
            out = ops.linear_heads(u, self.uv)
        else:
            out = ops.expanded_attention(queries, tokens, cache, self.index, self.kv_b, self.scale)
        return out.reshape(tokens, -1)

    def together(self, x, cos, sin, parts):
        """The same for a few tokens of several caches. parts: (cache, number of rows) in the order of x's rows."""
        if self.fused:
            return self.fused.together(x, cos, sin, parts, self.index)
        ops, (latent, k_rope), (q_nope, q_rope) = self.ops, self.latents(x, cos, sin), self.queries(x, cos, sin)
        q_latent, mixed, first = ops.linear_heads(q_nope, self.uk_t), [], 0
        for cache, rows in parts:
            own = slice(first, first := first + rows)
            cache.append(self.index, latent[own], k_rope[own])
            mixed.append(ops.absorbed_attention(q_latent[own], q_rope[own], cache, self.index, self.scale))
        attended = ops.linear_heads(ops.concat(mixed, axis=0), self.uv).reshape(len(x), -1)
        x = self.o(attended, into=x)
        return self.mlp(ops.rms_norm(x, self.ffn_norm, self.text.rms_norm_eps), into=x)

    def queries(self, x, cos, sin):
        """(T, hidden) -> both parts of the queries, (T, heads, nope) and (T, heads, rope)."""
        text = self.text
        q = self.q(self.ops.rms_norm(x, self.attn_norm, text.rms_norm_eps)).reshape(len(x), text.num_heads, -1)
        nope = text.qk_nope_head_dim
        return q[:, :, :nope], self.ops.rope(q[:, :, nope:], cos, sin, text.rope_interleave)

    def latents(self, x, cos, sin):
        """(T, hidden) -> latents (T, rank) and rotated keys (T, rope)."""
        parts = [self._latents(x[a : a + ROWS], cos[a : a + ROWS], sin[a : a + ROWS]) for a in range(0, len(x), ROWS)]
        return parts[0] if len(parts) == 1 else [self.ops.concat(list(p), axis=0) for p in zip(*parts, strict=True)]

    def _latents(self, x, cos, sin):
        ops, text, tokens = self.ops, self.text, len(x)
        a = self.kv_a(ops.rms_norm(x, self.attn_norm, text.rms_norm_eps))
        latent, k_rope = a[:, : self.rank], a[:, self.rank :].reshape(tokens, 1, -1)
        if self.latent_norm is not None:
            latent = ops.rms_norm(latent, self.latent_norm, text.rms_norm_eps)
        return latent, ops.rope(k_rope, cos, sin, text.rope_interleave).reshape(tokens, -1)


# ------------------------------------------------------------------------------------------------ the vision tower


class Merger:
    """LayerNorm, concatenation of 2x2 neighbours, Linear, erf GELU, Linear: patches (N, width) -> (N/4, hidden)."""

    def __init__(self, load, vision, name, norm_after_merge):
        self.ops, self.eps, self.after = load.ops, vision.layer_norm_eps, norm_after_merge
        self.width = vision.hidden_size * vision.spatial_merge_size**2
        self.norm = load.norm(f"{name}.norm")
        fc1 = load.linear(f"{name}.fc1", self.width, self.width)
        self.mlp = Mlp(fc1, "gelu_erf", load.linear(f"{name}.fc2", vision.out_hidden_size, self.width))

    def __call__(self, x):
        x = x.reshape(-1, self.width) if self.after else x
        x = self.ops.layer_norm(x, *self.norm, self.eps).reshape(-1, self.width)
        return self.mlp(x)


class VisionBlock:
    """Attention within one frame pair and a tanh-GELU MLP, both pre-norm."""

    def __init__(self, load, vision, i):
        self.ops, self.vision = load.ops, vision
        name, width, inner = f"v.blk.{i}", vision.hidden_size, vision.intermediate_size
        self.ln1, self.ln2 = load.norm(f"{name}.ln1"), load.norm(f"{name}.ln2")
        self.qkv = load.linear(f"{name}.attn_qkv", 3 * width, width)
        self.exact = load.exact(f"{name}.attn_qkv.weight")
        self.out = load.linear(f"{name}.attn_out", width, width)
        up = load.linear(f"{name}.ffn_up", inner, width)
        self.mlp = Mlp(up, "gelu_tanh", load.linear(f"{name}.ffn_down", width, inner))

    def __call__(self, x, cos, sin, segment):
        ops, heads, eps = self.ops, self.vision.num_heads, self.vision.layer_norm_eps
        qkv = self.qkv(ops.layer_norm(x, *self.ln1, eps)).reshape(len(x), 3, heads, -1)
        q, k = (ops.rope(qkv[:, i], cos, sin, False) for i in (0, 1))
        h = ops.attention(q, k, qkv[:, 2], qkv.shape[-1] ** -0.5, segment, self.exact)
        x = self.out(h.reshape(len(x), -1), into=x)
        return self.mlp(ops.layer_norm(x, *self.ln2, eps), into=x)


def _nth_merger(load, vision, k):
    """The k-th merger in execution order: one per DeepStack layer, then the one after the last block."""
    if k < len(vision.deepstack_indexes):
        return Merger(load, vision, f"v.deepstack.{k}", norm_after_merge=True)
    return Merger(load, vision, "v.merger", norm_after_merge=False)


class Vision:
    """The vision tower: turns frame pairs into merged features and DeepStack features."""

    def __init__(self, load, config):
        vision = self.config = config.vision
        self.ops = load.ops
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self.patch_embed = load.linear("v.patch_embd", vision.hidden_size, patch)
        self.positions = load.floats("v.position_embd.weight")
        self.blocks = load.layers(vision.depth, lambda i: VisionBlock(load, vision, i))
        self.mergers = load.layers(len(vision.deepstack_indexes) + 1, lambda k: _nth_merger(load, vision, k))
        self._grid = None, None

    def _grid_constants(self, h, w, pairs):
        """Position embeddings and rotary cos, sin of `pairs` grids of h x w patches; caches the last result."""
        key = (h, w, pairs)
        if self._grid[0] != key:
            vision, merge = self.config, self.config.spatial_merge_size
            embedding = interpolated_positions(self.positions, h, w, merge)
            at = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)
            at = block_order(at, merge)
            half = vision.hidden_size // vision.num_heads // 2
            parts = [rotary(at[:, axis], half, vision.rope_theta) for axis in (0, 1)]
            cos, sin = (np.concatenate([p[i] for p in parts], 1) for i in (0, 1))
            self._grid = key, [self.ops.array(np.tile(a, (pairs, 1))) for a in (embedding, cos, sin)]
        return self._grid[1]

    def __call__(self, pairs, mean, std):
        """Encodes frame pairs of one size, a list of uint8 (temporal, H, W, 3).

        Returns merged (n, hidden) and a list of DeepStack features (n, hidden), n = pairs * H/32 * W/32 tokens.
        """
        vision, ops = self.config, self.ops
        h, w = pairs[0].shape[1] // vision.patch_size, pairs[0].shape[2] // vision.patch_size
        patches = [ops.patchify(p, vision.patch_size, vision.spatial_merge_size, mean, std) for p in pairs]
        embedding, cos, sin = self._grid_constants(h, w, len(pairs))
        x = self.patch_embed(patches[0] if len(patches) == 1 else ops.concat(patches, axis=0))
        x += embedding
        deep, mergers = [], iter(self.mergers)
        for i, block in enumerate(self.blocks):
            checkpoint()
            x = block(x, cos, sin, h * w)
            if i in vision.deepstack_indexes:
                deep.append(next(mergers)(x))
        return next(mergers)(x), deep


# ------------------------------------------------------------------------------------------------ the network


class Network:
    """The whole network: token ids and frame pairs in, hidden states and logits out.

    source has `tensors` (name -> format, shape, nbytes), `read(name, first, count)` and `read_rows(name, ids)`.
    """

    def __init__(self, config, source, ops, progress=None, loader=Loader):
        self.config, self.ops, self.source = config, ops, source
        load, text = loader(source, ops, progress), config.text
        self.layers = load.layers(text.num_layers, lambda i: Layer(load, text, i))
        self.norm = load.vector("output_norm.weight")
        head = "token_embd.weight" if text.tie_word_embeddings else "output.weight"
        self.head = load.head(head, text.vocab_size, text.hidden_size)
        self.table = load.table("token_embd.weight", text.vocab_size, text.hidden_size, self.head, head)
        self.vision = Vision(load, config)
        self.recorded = {}  # what the backend keeps of its own steps
        self.seen = None  # features of frame pairs that were encoded before: an engine.vision.Seen
        self.axes = mrope_axes(text.mrope_section, text.mrope_interleaved)

    @property
    def same_rows(self):
        """The most tokens of a call of which each gets the bits of a call of its own: its logits and its row in the cache."""
        absorbed = min(expand_from(self.config.text, rank) for rank in self.config.text.kv_lora_rank)
        return max(1, min(self.ops.same_rows, math.ceil(min(absorbed, 1 << 31)) - 1))

    def cache(self, capacity, kind):
        text = self.config.text
        return self.ops.cache(text.kv_lora_rank, text.qk_rope_head_dim, capacity, kind)

    def embed(self, token_ids):
        """The embeddings (T, hidden) of int token ids (T,)."""
        if self.table is not None:
            return self.ops.embedding(self.table, token_ids)
        width, name = self.config.text.hidden_size, "token_embd.weight"
        info = self.source.tensors[name]
        rows = self.source.read_rows(name, np.asarray(token_ids, np.int64))
        table = self.ops.decode(info.format, rows.reshape(-1), len(rows) * info.shape[1])
        return self.ops.array(np.ascontiguousarray(table.reshape(len(rows), -1)[:, :width]))

    @property
    def early(self):
        """The number of layers after which DeepStack features are added; 0 if these are all."""
        count = len(self.config.vision.deepstack_indexes)
        return count if count < self.config.text.num_layers else 0

    def forward(self, x, positions, cache, deepstack=(), layers=slice(None), each=None):
        """Runs T new tokens. x (T, hidden), changed in place; positions int (3, T). Returns hidden states (T, hidden).

        deepstack: (first row, list of (n, hidden)) per run of vision tokens; the k-th features are added after layer k.
        layers: those that are run; the cache counts the tokens as appended. each(T) is called after each of them.
        """
        cos, sin = (self.ops.array(part) for part in self._rotation(positions))
        x = self._layers(x, cos, sin, cache, deepstack, layers, each)
        cache.advance(len(x))
        return x

    def _rotation(self, positions):
        """float32 cos and sin (T, rope/2) of positions int (3, T)."""
        text = self.config.text
        return rotary(positions[self.axes].T, text.qk_rope_head_dim, text.rope_theta)

    def _layers(self, x, cos, sin, cache, deepstack=(), layers=slice(None), each=None):
        for i, layer in enumerate(self.layers[layers], layers.start or 0):
            checkpoint()
            x = layer(x, cos, sin, cache)
            for first, features in deepstack:
                if i < len(features):
                    x[first : first + len(features[i])] += features[i]
            if each:
                each(len(x))
        return x

    def step(self, token_ids, positions, cache):
        """Logits (T, vocab) after each of a few tokens of text: numpy, or what a backend with steps of its own keeps of them."""
        own = None if self.table is None else getattr(self.ops, "step", None)
        if own is None or any(len(token_ids) >= layer.expand_from for layer in self.layers):
            return self.ops.numpy(self.logits(self.forward(self.embed(token_ids), positions, cache)))

        return own(self._computed, token_ids, *self._rotation(positions), cache, self.recorded)

    def _computed(self, token_ids, cos, sin, cache):
        return self.logits(self._layers(self.embed(token_ids), cos, sin, cache))

    def steps(self, parts):
        """The logits of `step` for each of several (token_ids, positions, cache), which get the bits of a call of their own.

        One pass over the weights for all where the backend can; their tokens are `same_rows` at most.
        """
        if len(parts) == 1 or not getattr(self.ops, "together", False):
            return [self.step(*part) for part in parts]
        x = self.embed([token for ids, _, _ in parts for token in ids])
        cos, sin = (self.ops.array(a) for a in self._rotation(np.concatenate([part[1] for part in parts], 1)))
        rows = [(cache, len(ids)) for ids, _, cache in parts]
        for layer in self.layers:
            checkpoint()
            x = layer.together(x, cos, sin, rows)
        for cache, count in rows:
            cache.advance(count)
        logits = self.ops.numpy(self.logits(x))
        return np.split(logits, np.cumsum([count for _, count in rows])[:-1])

    def logits(self, x):
        """Hidden states (T, hidden) to logits (T, vocab)."""
        return self.head(self.ops.rms_norm(x, self.norm, self.config.text.rms_norm_eps))
