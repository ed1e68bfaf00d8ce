"""The operations a model may use, behind one interface: `ops = ivlite.ops.get("cpu", threads=2)`.

Each set is a module of this package with a class `Ops`: `cpu` (numpy arrays, compiled kernels) and `reference`
(float32 torch, slow and obvious). Arrays are float32 unless said otherwise; a model touches them only with reshape,
slicing, `+` and `+=`, which mean the same in numpy and torch. T is tokens (rows), S cached tokens, H heads.

    array(x)                                   numpy -> the set's own float32 array
    numpy(x)                                   and back
    weight(fmt, data, shape, *names)           a packed matrix (rows, cols) or one per head (H, rows, cols).
                                               fmt: a name in ivlite._C.formats(); data: uint8 (nbytes,), row-major blocks
                                               whose rows may be padded with zeros: data is (rows, ceil(cols / block)) blocks.
                                               Or pieces of it, each asked for when the last is packed: (n, row bytes).
                                               names: the tensors it is made of, for observers (`observed`); the k-th
                                               named weight of heads is that of layer k's latents
    decode(fmt, data, count)                   `count` weights of data as a numpy float32 vector
    encode(fmt, matrix)                        numpy float32 (rows, cols) -> uint8 (nbytes,), columns padded to whole blocks
    transposed(fmt, data, shape, count, into)  the first `count` rows of each matrix of data, blocks of shape (H, rows, cols),
                                               as columns: blocks of the format `into` of shape (H, cols, count)
    concat(arrays, axis=1)                     joined along that axis
    linear(x, w, bias=None, into=None, activation="none")     x (T, cols) -> (T, rows); adds into `into` in place where
                                               given, returns it. activation, which goes without `into`: "gelu_tanh" or
                                               "gelu_erf" of the product, or "silu_mul" of it, -> (T, rows / 2)
    mlp(x, up, activation, down, into=None)    linear of linear, up and down each (w, bias or None); what lies between may
                                               be rounded to what down multiplies and need never exist as floats
    linear_heads(x, w)                         x (T, H, cols), w (H, rows, cols) -> (T, H, rows)
    rms_norm(x, w, eps)  layer_norm(x, w, b, eps)
    rope(x, cos, sin, interleaved)             x (T, H, D), cos and sin (T, D/2) -> (T, H, D) in half order
    silu_mul(x)                                (T, 2N) -> (T, N): silu(x[:, :N]) * x[:, N:]
    attention(q, k, v, scale, segment, exact)  bidirectional within runs of `segment` rows: (T, H, D) each -> (T, H, D);
                                               unless exact, products may be of bf16
    cache(ranks, rope_dim, capacity, kind)     a latent cache, kind "f32" | "f16" | "q8", one rank per layer, see below
    absorbed_attention(ql, qr, cache, layer, scale)           ql (T, H, rank), qr (T, H, rope) -> (T, H, rank)
    expanded_attention(qn, qr, cache, layer, kv_b, scale)     qn (T, H, nope), qr (T, H, rope); kv_b a weight
                                               (H, nope + v, rank) -> (T, H, v)
    decoder_layer(**operands)                  a layer of few tokens as one operation (x, cos, sin, cache, index) -> x, changed
                                               in place: the same as its operations in the absorbed form, one by one.
                                               operands: attn_norm, latent_norm, ffn_norm; q, kv_a, o, up, down, each
                                               (w, bias or None); uk_t, uv; interleaved, eps, scale. None where a set has none
    patchify(frames, patch, merge, mean, std)  frames uint8 (temporal, h, w, 3) -> (h*w/patch^2, 3*temporal*patch^2)

The T queries of both latent attentions are the newest T cached rows of that layer: query t sees the rows up to its own.

A cache has `length` (tokens that every layer holds), `capacity`, `append(layer, latent (T, rank), k_rope (T, rope))`,
which writes rows length .. length + T of that layer, `advance(T)`, called once when every layer has appended,
`truncate(length)`, `read(layer, s0, s1)` -> float32 (latent, k_rope), and `nbytes`. Between append and advance the
newest rows of the layer appended last count as cached for the attentions, which see them as they were given; older rows
are seen as the cache stores them: "f32"; "f16" float16 latents and keys; "q8" int8 latents, one scale per token, with
float16 keys.
"""

import importlib

from ivlite.errors import UsageError

SETS = ("cpu", "reference")
CACHE_KINDS = ("f32", "f16", "q8")


def cache_token_bytes(ranks, rope_dim, kind):
    """Bytes that one token takes in a cache of one of CACHE_KINDS, over all layers, whose ranks these are."""
    from ivlite import _C

    return _C.cache_token_bytes(list(ranks), rope_dim, kind)


def observed(ops, observe):
    """The same operations, with observe(names, x) called for the inputs x, numpy (T, cols), of every named weight."""
    from ivlite.ops.observer import Observed

    return Observed(ops, observe)


def get(name, threads=None):
    """The operation set of that name, on `threads` threads of its own.

    None: as many as IVLITE_NUM_THREADS says, or one per usable physical core. Threads that the system refuses are done
    without: `threads` of what is returned tells. Raises UsageError when the set needs what is not installed.
    """
    if name not in SETS:
        raise ValueError(f"unknown operation set {name!r}; there are {', '.join(SETS)}")
    try:
        return importlib.import_module(f"ivlite.ops.{name}").Ops(threads)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(f"the {name} operations need PyTorch, which is not installed: pip install torch") from error
