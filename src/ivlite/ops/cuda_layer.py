"""A decoder layer of few tokens on a card: rounding, norms and rotations within the kernels beside them."""

import weakref

from ivlite.ops.cuda_attention import Queries
from ivlite.ops.cuda_linear import FEW, Few


class Ready:
    """The input of layer `index`, made by the layer before as it ended; `few` is None where it is still to be made."""

    def __init__(self):
        self.index, self.few = -1, None

    def take(self, index):
        few, self.few = self.few if self.index == index else None, None
        return few


class DecoderLayer:
    """See `ivlite.ops`: (x, cos, sin, cache, index) -> x, changed in place, with absorbed attention.

    following: what gives the layer that was made next, if there is one: in a step, where nothing comes between two layers, this one
    makes its input.
    """

    def __init__(self, ops, operands):
        self.ops = ops
        self.__dict__.update(operands)
        self.heads, self.nope = self.uk_t.heads, self.uk_t.cols
        self.rank = self.uk_t.rows
        self.rope = self.q[0].rows // self.heads - self.nope
        self.following = lambda: None
        if (before := ops.newest()) is not None:
            before.following = weakref.ref(self)
        ops.newest = weakref.ref(self)

    def __call__(self, x, cos, sin, cache, index):
        step = self._few if len(x) <= FEW else self._many
        step(x, cos, sin, cache, index)
        return x

    def _few(self, x, cos, sin, cache, index):
        ops, tokens, empty = self.ops, len(x), self.ops.memory.empty
        ready = Ready() if cache.inside is None else cache.inside.ready
        normed = ready.take(index) or Few(ops, x, self.q[0], self.kv_a[0], norm=self.attn_norm, eps=self.eps)
        q, a = empty((tokens, self.q[0].rows)), empty((tokens, self.kv_a[0].rows))
        ops.few(normed, [(self.q[0], q, self.q[1]), (self.kv_a[0], a, self.kv_a[1])])
        mixed = self._mixed(q, a, cos, sin, cache, index)

        values = empty((tokens, self.heads, self.uv.rows))
        joined = self._product(mixed, (self.uv, None), values, (self.o[0],))
        joined = joined or Few(ops, values.reshape(tokens, -1), self.o[0])
        normed = self._product(joined, self.o, x, (self.up[0],), norm=self.ffn_norm, into=True)
        normed = normed or Few(ops, x, self.up[0], norm=self.ffn_norm, eps=self.eps)
        inner = empty((tokens, self.up[0].rows // 2))
        wide = self._product(normed, self.up, inner, (self.down[0],), "silu_mul") or Few(ops, inner, self.down[0])
        following = None if cache.inside is None else self.following()
        if following is None or len(following.attn_norm) != x.shape[1]:
            ops.few(wide, [(self.down[0], x, self.down[1])], accumulate=True)
        else:
            weights = following.q[0], following.kv_a[0]
            ready.few = self._product(wide, self.down, x, weights, norm=following.attn_norm, into=True)
            ready.index = index + 1

    def _product(self, rows, linear, y, weights, activation="none", norm=None, into=False):
        """y = linear(rows), or y += it; returns y as products with `weights` take it, or None where that is still to be made."""
        w, bias = linear
        outputs = w.heads * (w.rows // 2 if activation == "silu_mul" else w.rows)
        after = self.ops.after(len(y), w.heads, outputs, *weights, norm=norm, eps=self.eps)
        self.ops.few(rows, [(w, y, bias)], activation, into, after)
        return after and after.few

    def _mixed(self, q, a, cos, sin, cache, index):
        """Absorbed attention, as a product with W_UV takes it."""
        ops, tokens = self.ops, len(q)
        queries = Queries(ops, q.reshape(tokens, self.heads, -1), self.nope, self.uk_t)
        cache.append(
            index,
            a[:, : self.rank],
            a[:, self.rank :],
            self.latent_norm,
            self.eps,
            (cos, sin),
            self.interleaved,
            queries,
        )
        latent = ops.memory.empty((tokens, self.heads, self.rank))
        ops.few(queries.nope, [(self.uk_t, latent, None)])
        rounded = None if self.uv.floats else Few.to_come(ops, tokens, self.heads, self.rank)
        mixed = ops.absorbed_attention(latent, queries.rope, cache, index, self.scale, rounded)
        return rounded or Few.of_floats(ops, mixed)

    def _many(self, x, cos, sin, cache, index):
        ops, tokens = self.ops, len(x)
        normed = ops.rms_norm(x, self.attn_norm, self.eps)
        q, a = ops.linear(normed, *self.q).reshape(tokens, self.heads, -1), ops.linear(normed, *self.kv_a)
        cache.append(
            index, a[:, : self.rank], a[:, self.rank :], self.latent_norm, self.eps, (cos, sin), self.interleaved
        )
        q_rope = ops.rope(q[:, :, self.nope :], cos, sin, self.interleaved)
        q_latent = ops.linear_heads(q[:, :, : self.nope], self.uk_t)
        mixed = ops.absorbed_attention(q_latent, q_rope, cache, index, self.scale)
        ops.linear(ops.linear_heads(mixed, self.uv).reshape(tokens, -1), *self.o, into=x)
        ops.mlp(ops.rms_norm(x, self.ffn_norm, self.eps), self.up, "silu_mul", self.down, x)
