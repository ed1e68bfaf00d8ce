"""The CPU backend: numpy arrays in and out, the arithmetic in the compiled module."""

import numpy as np

from ivlite import _C
from ivlite.stop import checkpoint

QUERIES, PACKED = 512, 128  # queries that are made and packed together, at most and a multiple of


def _rows(x):
    """x with a contiguous last axis; the compiled module takes any strides on the other axes."""
    return x if x.shape[-1] <= 1 or x.strides[-1] == x.itemsize else np.ascontiguousarray(x)


def _packed(x):
    return np.ascontiguousarray(x)


class Ops:
    """The interface of `ivlite.ops` with the kernels of this machine's instruction set."""

    name, together = "cpu", True

    def __init__(self, threads=None):
        self.pool = _C.ThreadPool(threads)
        self.blocks = {f["name"]: f["block"] for f in _C.formats()}

    @property
    def threads(self):
        return self.pool.threads

    @property
    def same_rows(self):
        return _C.few_tokens()

    def array(self, x):
        return np.ascontiguousarray(x, np.float32)

    def numpy(self, x):
        return x

    def concat(self, arrays, axis=1):
        return np.concatenate(arrays, axis)

    def decode(self, fmt, data, count):
        return _C.decode(fmt, data, count, self.pool)

    def encode(self, fmt, matrix):
        padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % self.blocks[fmt])))
        return _C.encode(fmt, np.ascontiguousarray(padded, np.float32).reshape(-1), pool=self.pool)

    def transposed(self, fmt, data, shape, count, into):
        return _C.transposed(fmt, data, *shape, count, into, self.pool)

    def weight(self, fmt, data, shape, *names):
        heads, rows, cols = shape if len(shape) == 3 else (1, *shape)
        if isinstance(data, np.ndarray):
            return _C.Weight(fmt, data, heads, rows, cols, self.pool)
        weight, first = _C.Weight(fmt, None, heads, rows, cols), 0
        for chunk in data:
            weight.fill(first, chunk, self.pool)
            first += len(chunk)
        if first != heads * rows:
            raise ValueError(f"a weight of {heads * rows} rows is given {first}")
        return weight

    def linear(self, x, w, bias=None, into=None, activation="none"):
        rows = w.rows // 2 if activation == "silu_mul" else w.rows
        y = np.empty((len(x), rows), np.float32) if into is None else into
        _C.linear(y, _rows(x), w, bias, into is not None, activation, self.pool)
        return y

    def mlp(self, x, up, activation, down, into=None):
        y = np.empty((len(x), down[0].rows), np.float32) if into is None else into
        _C.mlp(y, _rows(x), *up, activation, *down, into is not None, self.pool)
        return y

    def linear_heads(self, x, w):
        y = np.empty((*x.shape[:2], w.rows), np.float32)
        _C.linear_heads(y, _rows(x), w, self.pool)
        return y

    def rms_norm(self, x, w, eps):
        y = np.empty(x.shape, np.float32)
        _C.rms_norm(y, _rows(x), w, eps, self.pool)
        return y

    def layer_norm(self, x, w, b, eps):
        y = np.empty(x.shape, np.float32)
        _C.layer_norm(y, _rows(x), w, b, eps, self.pool)
        return y

    def rope(self, x, cos, sin, interleaved):
        y = np.empty(x.shape, np.float32)
        _C.rope(y, _rows(x), _packed(cos), _packed(sin), interleaved, self.pool)
        return y

    def silu_mul(self, x):
        y = np.empty((len(x), x.shape[1] // 2), np.float32)
        _C.silu_mul(y, _packed(x), self.pool)
        return y

    def attention(self, q, k, v, scale, segment, exact=False):
        y = np.empty(v.shape, np.float32)
        _C.attention(y, _rows(q), _rows(k), _rows(v), scale, segment, exact, self.pool)
        return y

    def cache(self, ranks, rope_dim, capacity, kind):
        return Cache(self.pool, ranks, rope_dim, capacity, kind)

    def absorbed_attention(self, q_latent, q_rope, cache, layer, scale):
        y = np.empty(q_latent.shape, np.float32)
        _C.absorbed_attention(y, _packed(q_latent), _packed(q_rope), cache.rows, layer, scale, self.pool)
        return y

    def expanded_attention(self, queries, tokens, cache, layer, kv_b, scale):
        work = _C.ExpandedAttention(tokens, cache.rows, layer, kv_b, scale, self.pool)
        parts = -(-tokens // QUERIES)
        part = -(-tokens // parts // PACKED) * PACKED  # of nearly equal size
        for first in range(0, tokens, part):
            q_nope, q_rope = map(_rows, queries(first, min(first + part, tokens)))
            work.add(q_nope, q_rope, self.pool)
            nope = q_nope.shape[2]
            del q_nope, q_rope  # before the next are made
        y = np.empty((tokens, kv_b.heads, kv_b.rows - nope), np.float32)
        while work.step(y, self.pool):
            checkpoint()
        return y

    def decoder_layer(self, **operands):
        return DecoderLayer(self.pool, operands)

    def patchify(self, frames, patch, merge, mean, std):
        temporal, h, w, channels = frames.shape
        y = np.empty((h // patch * (w // patch), channels * temporal * patch * patch), np.float32)
        _C.patchify(y, _packed(frames), patch, merge, mean, std, self.pool)
        return y


class DecoderLayer:
    """`_C.DecoderLayer` for arrays of any strides. together: the same for the rows of several caches."""

    def __init__(self, pool, operands):
        self.pool, self.layer = pool, _C.DecoderLayer(**operands)

    def __call__(self, x, cos, sin, cache, index):
        return self.together(x, cos, sin, [(cache, len(x))], index)

    def together(self, x, cos, sin, parts, index):
        caches, rows = [cache.rows for cache, _ in parts], [count for _, count in parts]
        self.layer.run(x, _packed(cos), _packed(sin), caches, rows, index, self.pool)
        return x


class Cache:
    """A latent cache: `_C.LatentCache` for arrays of any strides."""

    def __init__(self, pool, ranks, rope_dim, capacity, kind):
        self.pool, self.rows = pool, _C.LatentCache(list(ranks), rope_dim, capacity, kind)
        self.advance, self.truncate, self.read = self.rows.advance, self.rows.truncate, self.rows.read
        self.kind, self.token_bytes = self.rows.kind, self.rows.token_bytes

    length = property(lambda self: self.rows.length)
    capacity = property(lambda self: self.rows.capacity)
    nbytes = property(lambda self: self.rows.nbytes)

    def append(self, layer, latent, k_rope):
        self.rows.append(layer, _rows(latent), _rows(k_rope), self.pool)

    def reserve(self, capacity):
        self.rows.reserve(capacity, self.pool)

    def dump(self, first, last):
        return self.rows.dump(first, last, self.pool)

    def restore(self, first, data):
        self.rows.restore(first, data, self.pool)
