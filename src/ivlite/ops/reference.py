"""The reference backend, float32 torch: slow and simple; tests compare every other backend with it.

Weights are dequantized to float32 and activations are never quantized, so the error of a quantized file is that of its
weights alone. Needs the optional package torch.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ivlite import _C


def silu_mul(x):
    n = x.shape[-1] // 2
    return F.silu(x[:, :n]) * x[:, n:]


ACTIVATIONS = {
    "none": lambda x: x,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "silu_mul": silu_mul,
}


class Cache:
    """A latent cache of float32 tensors; "f16" and "q8" round the stored rows to these formats."""

    def __init__(self, ranks, rope_dim, capacity, kind):
        self.capacity, self.kind, self.length, self.pending = capacity, kind, 0, 0
        self.fresh = None, None, None
        self.latent = [torch.zeros(capacity, rank) for rank in ranks]
        self.rope = [torch.zeros(capacity, rope_dim) for _ in ranks]

    @property
    def nbytes(self):
        return sum(t.nbytes for t in self.latent + self.rope)

    def append(self, layer, latent, k_rope):
        rows = slice(self.length, self.length + len(latent))
        self.pending = len(latent)
        self.fresh = layer, latent.clone(), k_rope.clone()
        self.latent[layer][rows] = self._stored(latent)
        self.rope[layer][rows] = k_rope if self.kind == "f32" else k_rope.half().float()

    def _stored(self, latent):
        if self.kind == "f32":
            return latent
        if self.kind in ("f16", "bf16"):
            return latent.half().float()
        scale = latent.abs().amax(1, keepdim=True) / 127
        return torch.where(scale > 0, torch.round(latent / scale), torch.zeros_like(latent)) * scale

    def advance(self, tokens):
        self.length += tokens
        self.pending = 0

    def truncate(self, length):
        self.length = length

    def read(self, layer, s0, s1):
        return self.latent[layer][s0:s1].numpy(), self.rope[layer][s0:s1].numpy()

    def rows(self, layer):
        """Latent (S, rank) and rope (S, rope) for the newest queries: the rows appended last are not rounded."""
        if not self.pending or self.fresh[0] != layer:
            end = self.length + self.pending
            return self.latent[layer][:end], self.rope[layer][:end]
        _, latent, rope = self.fresh
        return (
            torch.cat((self.latent[layer][: self.length], latent)),
            torch.cat((self.rope[layer][: self.length], rope)),
        )


class Ops:
    """The interface of `ivlite.ops` in float32 torch on the CPU."""

    name = "reference"

    def __init__(self, threads=None):
        self.threads = threads or _C.wanted_threads()
        torch.set_num_threads(self.threads)  # for the whole process: torch has no other setting

    def array(self, x):
        return torch.from_numpy(np.ascontiguousarray(x, np.float32))

    def numpy(self, x):
        return x.numpy()

    def concat(self, arrays, axis=1):
        return torch.cat(arrays, axis)

    def decode(self, fmt, data, count):
        return _C.decode(fmt, data, count)

    def encode(self, fmt, matrix):
        return self.block_rows(fmt, matrix)

    def transposed(self, fmt, data, shape, count, into):
        return _C.transposed(fmt, data, *shape, count, into)

    @staticmethod
    def block_rows(fmt, matrix):
        """Quantizes (rows, cols), padded with zero columns to whole blocks."""
        block = next(f["block"] for f in _C.formats() if f["name"] == fmt)
        padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % block)))
        return _C.encode(fmt, np.ascontiguousarray(padded, np.float32).reshape(-1))

    def weight(self, fmt, data, shape, *names):
        if not isinstance(data, np.ndarray):
            data = np.concatenate([chunk.reshape(-1) for chunk in data])
        info = next(f for f in _C.formats() if f["name"] == fmt)
        rows, cols = int(np.prod(shape[:-1])), shape[-1]
        padded = -(-cols // info["block"]) * info["block"]
        full = _C.decode(fmt, data, rows * padded).reshape(rows, padded)[:, :cols]
        return self.array(full).reshape(shape)

    def linear(self, x, w, bias=None, into=None, activation="none"):
        y = ACTIVATIONS[activation](F.linear(x, w, bias))
        if into is None:
            return y
        into += y
        return into

    def mlp(self, x, up, activation, down, into=None):
        return self.linear(self.linear(x, *up, activation=activation), *down, into)

    def linear_heads(self, x, w):
        return torch.einsum("thc,hrc->thr", x, w)

    def rms_norm(self, x, w, eps):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w

    def layer_norm(self, x, w, b, eps):
        return F.layer_norm(x, x.shape[-1:], w, b, eps)

    def rope(self, x, cos, sin, interleaved):
        half = x.shape[-1] // 2
        a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
        cos, sin = cos[:, None], sin[:, None]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def silu_mul(self, x):
        return silu_mul(x)

    def attention(self, q, k, v, scale, segment, exact=True):
        def heads(x):  # (T, H, D) -> (segments, H, segment, D)
            return x.reshape(-1, segment, *x.shape[1:]).transpose(1, 2)

        scores = heads(q) @ heads(k).transpose(-1, -2) * scale
        return (scores.softmax(-1) @ heads(v)).transpose(1, 2).reshape(len(q), q.shape[1], -1)

    def cache(self, ranks, rope_dim, capacity, kind):
        return Cache(ranks, rope_dim, capacity, kind)

    def absorbed_attention(self, q_latent, q_rope, cache, layer, scale):
        latent, rope = cache.rows(layer)
        scores = torch.einsum("thl,sl->ths", q_latent, latent) + torch.einsum("thr,sr->ths", q_rope, rope)
        return torch.einsum("ths,sl->thl", self._causal(scores * scale), latent)

    def expanded_attention(self, q_nope, q_rope, cache, layer, kv_b, scale):
        latent, rope = cache.rows(layer)
        nope = q_nope.shape[-1]
        kv = torch.einsum("sl,hrl->shr", latent, kv_b)
        scores = torch.einsum("thn,shn->ths", q_nope, kv[..., :nope])
        scores += torch.einsum("thr,sr->ths", q_rope, rope)
        return torch.einsum("ths,shv->thv", self._causal(scores * scale), kv[..., nope:])

    @staticmethod
    def _causal(scores):
        """Causal softmax over the keys of (T, H, S): query t sees the first S - T + t + 1."""
        tokens, _, keys = scores.shape
        hidden = torch.ones(tokens, keys, dtype=torch.bool).triu(keys - tokens + 1)
        return scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)

    def decoder_layer(self, **operands):
        return None

    def patchify(self, frames, patch, merge, mean, std):
        x = (torch.from_numpy(np.ascontiguousarray(frames)).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
        t, h, w, c = x.shape
        blocks = x.reshape(t, h // patch // merge, merge, patch, w // patch // merge, merge, patch, c)
        return blocks.permute(1, 4, 2, 5, 7, 0, 3, 6).reshape(-1, c * t * patch * patch)
