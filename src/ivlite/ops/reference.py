"""The reference backend, float32 torch: slow and simple; tests compare every other backend with it.

Weights are dequantized to float32 and activations are never quantized, so the error of a quantized file is that of its
weights alone. Needs the optional package torch.
"""

import numpy as np
import torch
import torch.nn.functional as F

from ivlite import _C
from ivlite.ops import q4


def silu_mul(x):
    n = x.shape[-1] // 2
    return F.silu(x[:, :n]) * x[:, n:]


ACTIVATIONS = {
    "none": lambda x: x,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "silu_mul": silu_mul,
}


def _store_q8(latent, keys):
    """int8 codes, and a scale per row: NaN where a row holds what is not finite."""
    top = latent.abs().amax(1, keepdim=True)
    some = (top > 0) & (top < torch.inf)
    codes = torch.where(some, torch.round(latent * (127 / (top + (top == 0).float()))), torch.zeros_like(latent))
    return codes.to(torch.int8), top / 127 + (top - top), keys.half()


def _store_q4(latent, keys):
    rows, scale = q4.store(latent.numpy())
    codes, scales = q4.store_keys(keys.numpy())
    return tuple(torch.from_numpy(x) for x in (rows, np.concatenate((scale, scales), 1), codes))


def _load_q4(rows, scales, keys, rank):
    rows, scales, keys = rows.numpy(), scales.numpy(), keys.numpy()
    return torch.from_numpy(q4.load(rows, scales[:, :1], rank)), torch.from_numpy(q4.load_keys(keys, scales[:, 1:]))


# kind -> latents and keys to what is stored (latents, scales or None, keys), and back to float32
KINDS = {
    "f32": (lambda latent, keys: (latent, None, keys), lambda latent, scale, keys, rank: (latent, keys)),
    "f16": (
        lambda latent, keys: (latent.half(), None, keys.half()),
        lambda latent, scale, keys, rank: (latent.float(), keys.float()),
    ),
    "q8": (_store_q8, lambda codes, scale, keys, rank: (codes.float() * scale, keys.float())),
    "q4": (_store_q4, _load_q4),
}


class Cache:
    """A latent cache of tensors in the formats of `ivlite.ops.CACHE_KINDS`, with the bytes of the CPU backend."""

    def __init__(self, ranks, rope_dim, capacity, kind):
        self.kind = "f16" if kind == "bf16" else kind
        self.store, self.load = KINDS[self.kind]
        self.ranks, self.rope_dim = list(ranks), rope_dim
        self.token_bytes = _C.cache_token_bytes(self.ranks, rope_dim, kind)
        self.capacity, self.length, self.pending = capacity, 0, 0
        self.fresh = None, None, None
        self.layers = [self._empty(rank, capacity) for rank in self.ranks]

    def _empty(self, rank, capacity):
        """What is stored of one layer: latents, scales or None, keys."""
        parts = self.store(torch.zeros(1, rank), torch.zeros(1, self.rope_dim))
        return [None if x is None else torch.zeros(capacity, x.shape[1], dtype=x.dtype) for x in parts]

    @property
    def nbytes(self):
        return self.capacity * self.token_bytes

    def append(self, layer, latent, k_rope):
        rows = slice(self.length, self.length + len(latent))
        self.pending = len(latent)
        self.fresh = layer, latent.clone(), k_rope.clone()
        for part, values in zip(self.layers[layer], self.store(latent, k_rope), strict=True):
            if part is not None:
                part[rows] = values

    def advance(self, tokens):
        self.length += tokens
        self.pending = 0

    def truncate(self, length):
        self.length, self.pending = length, 0

    def reserve(self, capacity):
        if capacity <= self.capacity:
            return
        for i, rank in enumerate(self.ranks):
            larger = self._empty(rank, capacity)
            for old, new in zip(self.layers[i], larger, strict=True):
                if old is not None:
                    new[: self.capacity] = old
            self.layers[i] = larger
        self.capacity = capacity

    def dump(self, first, last):
        if not 0 <= first <= last <= self.length:
            raise ValueError("there are no such rows in the cache")
        parts = (part for layer in self.layers for part in layer if part is not None)
        return np.concatenate([part[first:last].numpy().reshape(-1).view(np.uint8) for part in parts])

    def restore(self, first, data):
        tokens, rest = divmod(data.size, self.token_bytes)
        if first != self.length:
            raise ValueError(f"the row that restored rows begin at is {first}; it must be {self.length}")
        if rest:
            raise ValueError("restored data is not whole rows of this cache")
        if first + tokens > self.capacity:
            raise ValueError("the cache is full")
        at = 0
        for part in (part for layer in self.layers for part in layer if part is not None):
            rows = part[first : first + tokens].numpy()
            rows[...] = data[at : at + rows.nbytes].view(rows.dtype).reshape(rows.shape)
            at += rows.nbytes
        self.length, self.pending = first + tokens, 0

    def stored(self, layer, s0, s1):
        """Rows [s0, s1) as float32: latent (n, rank) and rope (n, rope)."""
        parts = (part if part is None else part[s0:s1] for part in self.layers[layer])
        return self.load(*parts, self.ranks[layer])

    def read(self, layer, s0, s1):
        return tuple(x.numpy() for x in self.stored(layer, s0, s1))

    def rows(self, layer):
        """Latent (S, rank) and rope (S, rope) for the newest queries: the rows appended last are not rounded."""
        if not self.pending or self.fresh[0] != layer:
            return self.stored(layer, 0, self.length + self.pending)
        return tuple(torch.cat(pair) for pair in zip(self.stored(layer, 0, self.length), self.fresh[1:], strict=True))


class Ops:
    """The interface of `ivlite.ops` in float32 torch on the CPU."""

    name = "reference"
    same_rows = 1  # a product of more rows may add in another order

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
        given, given_rope = cache.rows(layer)
        latent, rope = (torch.from_numpy(x) for x in cache.read(layer, 0, len(given)))
        scores = torch.einsum("thl,sl->ths", q_latent, latent) + torch.einsum("thr,sr->ths", q_rope, rope)
        t = torch.arange(len(q_latent))
        own = t + len(given) - len(t)  # a query's own row is seen as it was given, if that is still known
        scores[t, :, own] = torch.einsum("thl,tl->th", q_latent, given[own])
        scores[t, :, own] += torch.einsum("thr,tr->th", q_rope, given_rope[own])
        weights = self._causal(scores * scale)
        out = torch.einsum("ths,sl->thl", weights, latent)
        return out + weights[t, :, own][:, :, None] * (given - latent)[own][:, None]

    def expanded_attention(self, queries, tokens, cache, layer, kv_b, scale):
        q_nope, q_rope = queries(0, tokens)
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
