"""InternVideo3: a Qwen3-VL vision tower and decoder whose attention is multi-head latent attention (M2LA).

The arithmetic is in `ivlite.ops`, the tensors are in `tensors.py`, the vision tower in `vision.py`; here are the decoder
and the network. Per text layer and token x, for each head h, with a latent c and a rotary key that all heads share:

    q_h = [q_nope | q_rope]            c, k_rope = split(W_kva x + b)           [k_nope_h | v_h] = W_kvb,h c
    s_h = (q_nope . k_nope + rot(q_rope) . rot(k_rope)) / sqrt(nope + rope)     o = W_o [softmax(s_h) v_h]

Only c and rot(k_rope) are cached. With W_kvb,h = [W_UK,h; W_UV,h], there are two equal ways to compute attention:

    expanded: k_nope_h and v_h are computed for every cached token as above; cheaper for many queries.
    absorbed: the scores use (W_UK,h^T q_nope) . c and the output is W_UV,h (softmax(s_h) c); cheaper for few queries.
              The code names the matrices uk_t (W_UK^T) and uv (W_UV).
"""

import math

import numpy as np

from ivlite.gguf.loading import Loader
from ivlite.models.internvideo3.tensors import TensorSpec, tensor_names
from ivlite.models.internvideo3.vision import Merger, Vision, VisionBlock
from ivlite.ops.modules import Linear, Mlp, SplitMlp
from ivlite.prompt.positions import mrope_axes, rotary
from ivlite.stop import checkpoint

__all__ = ["ARCHITECTURE", "Layer", "Merger", "Network", "TensorSpec", "Vision", "VisionBlock", "tensor_names"]

ARCHITECTURE = "internvideo3"
ROWS = 512  # tokens that go together through what is computed row by row: it would need most of the memory at once


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
