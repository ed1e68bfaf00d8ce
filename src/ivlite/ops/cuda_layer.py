"""A decoder layer of few tokens on a card: rounding, norms and rotations within the kernels beside them."""

from ivlite.ops.cuda_linear import FEW, Few


class DecoderLayer:
    """See `ivlite.ops`: (x, cos, sin, cache, index) -> x, changed in place, with absorbed attention."""

    def __init__(self, ops, operands):
        self.ops = ops
        self.__dict__.update(operands)
        self.heads, self.nope = self.uk_t.heads, self.uk_t.cols
        self.rank = self.uk_t.rows
        self.rope = self.q[0].rows // self.heads - self.nope

    def __call__(self, x, cos, sin, cache, index):
        step = self._few if len(x) <= FEW else self._many
        step(x, cos, sin, cache, index)
        return x

    def _few(self, x, cos, sin, cache, index):
        ops, tokens = self.ops, len(x)
        q, a = ops.memory.empty((tokens, self.q[0].rows)), ops.memory.empty((tokens, self.kv_a[0].rows))
        normed = Few(ops, x, self.q[0], self.kv_a[0], norm=self.attn_norm, eps=self.eps)
        ops.few(normed, [(self.q[0], q, self.q[1]), (self.kv_a[0], a, self.kv_a[1])])
        self._attend(x, q, a, cos, sin, cache, index)
        up, down = self.up[0], self.down[0]
        inner = ops.memory.empty((tokens, up.rows // 2))
        normed = Few(ops, x, up, norm=self.ffn_norm, eps=self.eps)
        ops.few(normed, [(up, inner, self.up[1])], "silu_mul")
        ops.few(Few(ops, inner, down), [(down, x, self.down[1])], accumulate=True)

    def _many(self, x, cos, sin, cache, index):
        ops = self.ops
        normed = ops.rms_norm(x, self.attn_norm, self.eps)
        self._attend(x, ops.linear(normed, *self.q), ops.linear(normed, *self.kv_a), cos, sin, cache, index)
        ops.mlp(ops.rms_norm(x, self.ffn_norm, self.eps), self.up, "silu_mul", self.down, x)

    def _attend(self, x, q, a, cos, sin, cache, index):
        """x += o(attention), of the products q (T, H (nope + rope)) and a (T, rank + rope)."""
        ops, tokens = self.ops, len(x)
        cache.append(
            index, a[:, : self.rank], a[:, self.rank :], self.latent_norm, self.eps, (cos, sin), self.interleaved
        )
        q = q.reshape(tokens, self.heads, -1)
        q_rope = ops.rope(q[:, :, self.nope :], cos, sin, self.interleaved)
        q_latent = ops.linear_heads(q[:, :, : self.nope], self.uk_t)
        mixed = ops.absorbed_attention(q_latent, q_rope, cache, index, self.scale)
        ops.linear(ops.linear_heads(mixed, self.uv).reshape(tokens, -1), *self.o, into=x)
