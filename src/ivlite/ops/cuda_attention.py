"""Attention on a card: absorbed over the cache, expanded in pieces of cached tokens, and the vision tower's."""

from ivlite.ops.cuda_linear import HEADS_F16, HEADS_F32, Few, padded

EXPANDED = 4096  # cached tokens whose keys and values exist at a time
WORKSPACE = 64 << 20  # bytes at most for what the parts of split tokens leave
SPLIT = 128  # tokens of a part at least, and parts at most


class Queries:
    """What becomes of the queries q (T, H, nope + rope) of a layer: the rotary part, rotated (T, H, rope), and the other as a
    product with W_UK^T takes it.
    """

    def __init__(self, ops, q, nope, uk_t):
        tokens, heads, width = q.shape
        self.rope = ops.memory.empty((tokens, heads, width - nope))
        self.nope = Few.of_floats(ops, q[:, :, :nope]) if uk_t.floats else Few.to_come(ops, tokens, heads, nope)
        codes = 0 if self.nope.codes is None else ops.memory.pointer(self.nope.codes)
        at = ops.memory.pointer(q), *ops.memory.strides(q)[:2]
        self.args = at, heads, nope, ops.memory.pointer(self.rope), codes


class Attention:
    """The attentions of `ivlite.ops.cuda.Ops`, and the cache's kernels."""

    def _layer(self, cache, layer):
        return cache.place(layer), cache.ranks[layer], cache.rope_dim, cache.kind

    def _pointers(self, arrays):
        return tuple(0 if x is None else self.memory.pointer(x) for x in arrays)

    def append(self, cache, layer, latent, k_rope, norm, eps, turn, interleaved, given, queries):
        """Writes rows behind those of a cache: see `Cache.append`."""
        if not len(latent):
            return
        (latent_at, ld_latent, _l), (rope_at, ld_rope, _r) = self.rows(latent), self.rows(k_rope)
        (norm,), turn = self._pointers([norm]), self._pointers(turn or (None, None))
        self.launch(
            "append_rows", self._layer(cache, layer), cache.at, (latent_at, ld_latent), norm, eps, (rope_at, ld_rope), turn,
            interleaved, self._pointers(given), len(latent), None if queries is None else queries.args,
        )  # fmt: skip
        if len(latent) > SPLIT:
            self.pace()

    def rows_of(self, cache, layer, s0, s1, kinds=("f32", "f32"), given=(None, None)):
        """Rows [s0, s1) of a layer, (latents, keys), each as float32, or as 16 bits in bytes: (n, 2 * padded(columns))."""
        n, memory, out, parts = s1 - s0, self.memory, [], []
        for kind, width in zip(kinds, (cache.ranks[layer], cache.rope_dim), strict=True):
            ld = width if kind == "f32" else padded(width)
            out.append(memory.empty((n, ld)) if kind == "f32" else memory.zeros((n, 2 * ld), "uint8"))
            parts.append((memory.pointer(out[-1]), ld))
        none, of, seen = (0, 0), self._layer(cache, layer), (s0, n, cache.length, self._pointers(given))
        both = kinds[0] == kinds[1]
        for kind, to in ((kinds[0], (parts[0], parts[1] if both else none)), (kinds[1], (none, parts[1])))[: 2 - both]:
            if n:
                self.launch("read_rows", of, *seen, kind, *to)
        return out

    def absorbed_attention(self, q_latent, q_rope, cache, layer, scale, rounded=None):
        """rounded: a `Few` to come that takes the place of what is returned."""
        q_latent, q_rope = self.memory.contiguous(q_latent), self.memory.contiguous(q_rope)
        tokens, heads, rank = q_latent.shape
        out = self.memory.empty((tokens, heads, rank)) if rounded is None else None
        if not tokens:
            return out
        splits = max(8, min(SPLIT, cache.bucket // SPLIT))
        each = self.memory.kernels.absorbed_query_floats(heads, rank, splits)
        floats = each * max(1, min(tokens, WORKSPACE // (4 * each)))
        work = self.memory.empty(floats)
        self.launch(
            "absorbed_attention", *self._pointers((out, rounded and rounded.codes, q_latent, q_rope)),
            self._layer(cache, layer), self._pointers(cache.fresh(layer)), cache.at, cache.pending, tokens, heads, splits,
            scale, self.memory.pointer(work), floats,
        )  # fmt: skip
        return out

    def expanded_attention(self, queries, tokens, cache, layer, kv_b, scale):
        """Keys and values of EXPANDED cached tokens at a time, in half; in float32 where the weights are."""
        q_nope, q_rope = queries(0, tokens)
        _, heads, nope = q_nope.shape
        kind, v = "f32" if kv_b.format == "f32" else "f16", kv_b.rows - nope
        out = self.memory.empty((tokens, heads, v))
        state = self.memory.empty((tokens, heads)), self.memory.empty((tokens, heads))
        visible = cache.length + cache.pending
        q, q2 = self._strided(q_nope), self._strided(q_rope)
        for s0 in range(0, visible, EXPANDED):
            n = min(EXPANDED, visible - s0)
            keys, rope, values = self._expanded(cache, layer, kv_b, nope, s0, s0 + n, kind)
            ld = rope.shape[1] if kind == "f32" else rope.shape[1] // 2
            self._attend(
                kind, out, q, q2, (keys, nope, nope * n), (rope, ld), (values, v, v * n), state,
                (nope, cache.rope_dim, v, tokens, n, heads, 1), True, visible - tokens - s0, s0 > 0, s0 + n < visible, scale,
            )  # fmt: skip
            if tokens > SPLIT:
                self.pace()
        return out

    def _expanded(self, cache, layer, kv_b, nope, s0, s1, kind):
        """Keys (H, n, nope), rotary keys (n, rope) and values (H, n, v) of cached rows."""
        n, v, memory = s1 - s0, kv_b.rows - nope, self.memory
        given = cache.fresh(layer) if s1 > cache.length else (None, None)
        taken = "f32" if kv_b.format in ("f32", "f16") else "bf16"
        latent, rope = self.rows_of(cache, layer, s0, s1, (taken, kind), given)
        if taken == "f32":
            x = self._rounded(latent, kv_b)
        else:
            x = memory.pointer(latent), latent.shape[1] // 2, 0, latent
        wide, output = (4, HEADS_F32) if kind == "f32" else (2, HEADS_F16)
        keys = memory.empty((kv_b.heads * n, wide * nope), "uint8")
        values = memory.empty((kv_b.heads * n, wide * v), "uint8")
        self._many(x, n, kv_b, None, keys, False, "none", output, (values, kv_b.rows, nope))
        return keys, rope, values

    def attention(self, q, k, v, scale, segment, exact=False):
        tokens, heads, d = q.shape
        out = self.memory.empty((tokens, heads, v.shape[2]))
        if tokens > SPLIT:
            self.pace()
        if exact or d > 256 or v.shape[2] > 128:
            kind, k, v = "f32", self._strided(k), self._strided(v)
        else:
            kind, k, v = "f16", self._packed_heads(k), self._packed_heads(v)
        sizes = d, 0, out.shape[2], segment, segment, heads, tokens // segment
        self._attend(kind, out, self._strided(q), None, k, None, v, (None, None), sizes, False, 0, False, False, scale)
        return out

    def _strided(self, x):
        """(array, elements from row to row, from head to head) of (T, H, D)."""
        x = x if self.memory.strides(x)[2] == 1 or x.shape[2] == 1 else self.memory.contiguous(x)
        return x, *self.memory.strides(x)[:2]

    def _packed_heads(self, x):
        """The same of a copy (H, T, D) in half."""
        tokens, heads, d = x.shape
        x, *steps = self._strided(x)
        out = self.memory.empty((heads * tokens, 2 * d), "uint8")
        self.launch("pack_heads", self.memory.pointer(out), (self.memory.pointer(x), *steps), tokens, heads, d)
        return out, d, d * tokens

    def _attend(self, kind, out, q, q2, k, k2, v, state, *rest):
        def part(x, count):
            return (0,) * count if x is None else (self.memory.pointer(x[0]), *x[1:])

        arrays = (
            part((out, *self.memory.strides(out)[:2]), 3),
            part(q, 3),
            part(q2, 3),
            part(k, 3),
            part(k2, 2),
            part(v, 3),
        )
        self.launch("attention", kind, *arrays, self._pointers(state), *rest)
