"""The operations of a model behind one interface, with several backends: `ops = ivlite.ops.get("cpu", threads=2)`.

Each backend is a module of this package with a class `Ops`: `cpu` (numpy arrays, compiled kernels), `cuda` (arrays on a card)
and `reference` (float32 torch, slow and simple). Arrays are float32 unless stated otherwise. A model handles them only with reshape,
slicing, `+` and `+=`, which mean the same in numpy and torch. T is tokens (rows), S cached tokens, H heads.

    array(x)                                   numpy -> the backend's float32 array
    numpy(x)                                   the backend's array -> numpy
    weight(fmt, data, shape, *names)           a packed matrix (rows, cols), or one per head (H, rows, cols).
                                               fmt: a name in ivlite._C.formats(); data: uint8 (nbytes,), row-major blocks
                                               whose rows may be padded with zeros: (rows, ceil(cols / block)) blocks;
                                               or an iterable of row chunks (n, row bytes), read and packed one by one.
                                               names: its tensors, for forward hooks (`observed`); the k-th named weight
                                               with heads multiplies the latents of layer k
    decode(fmt, data, count)                   dequantizes `count` weights of data to a numpy float32 vector
    encode(fmt, matrix)                        quantizes numpy float32 (rows, cols) -> uint8 (nbytes,), columns padded to
                                               whole blocks
    transposed(fmt, data, shape, count, into)  the first `count` rows of each matrix of data, blocks of shape (H, rows, cols),
                                               transposed and quantized to the format `into`: shape (H, cols, count)
    concat(arrays, axis=1)                     arrays joined along that axis
    linear(x, w, bias=None, into=None, activation="none")     x (T, cols) -> (T, rows); if `into` is given, adds to it in
                                               place and returns it. activation (not with `into`): "gelu_tanh" or "gelu_erf"
                                               of the product, or "silu_mul" of it, -> (T, rows / 2)
    mlp(x, up, activation, down, into=None)    down(activation(up(x))), up and down each (w, bias or None); the values
                                               between may be quantized to the input format of down directly
    linear_heads(x, w)                         x (T, H, cols), w (H, rows, cols) -> (T, H, rows)
    rms_norm(x, w, eps)  layer_norm(x, w, b, eps)
    rope(x, cos, sin, interleaved)             x (T, H, D), cos and sin (T, D/2) -> (T, H, D) in half order
    silu_mul(x)                                (T, 2N) -> (T, N): silu(x[:, :N]) * x[:, N:]
    attention(q, k, v, scale, segment, exact)  bidirectional within each `segment` rows: (T, H, D) each -> (T, H, D);
                                               unless exact, the products may use bf16
    cache(ranks, rope_dim, capacity, kind)     a latent cache of one of CACHE_KINDS, one rank per layer, see below
    absorbed_attention(ql, qr, cache, layer, scale)           ql (T, H, rank), qr (T, H, rope) -> (T, H, rank)
    expanded_attention(queries, T, cache, layer, kv_b, scale)     queries(first, last) -> qn (n, H, nope), qr (n, H, rope) of
                                               these tokens, asked for once, in order, in parts or all together; kv_b a
                                               weight (H, nope + v, rank) -> (T, H, v)
    decoder_layer(**operands)                  a fused decoder layer for few tokens: (x, cos, sin, cache, index) -> x, changed
                                               in place; equals its separate operations with absorbed attention.
                                               operands: attn_norm, latent_norm, ffn_norm; q, kv_a, o, up, down, each
                                               (w, bias or None); uk_t (W_UK^T), uv (W_UV); interleaved, eps, scale.
                                               Returns None if the backend has no fused layer
    patchify(frames, patch, merge, mean, std)  frames uint8 (temporal, h, w, 3) -> (h*w/patch^2, 3*temporal*patch^2)

Both latent attentions are causal: their T queries belong to the newest T cached rows of that layer.

A backend may have more, which others lack:

    embedding(w, ids)                          rows of a weight (vocab, cols), int ids (T,) -> (T, cols): then the table of
                                               embeddings is one of its weights, and else it stays in the file
    together                                   true: few tokens of several caches go through a layer in one pass. A decoder_layer
                                               then has together(x, cos, sin, parts, index), parts: (cache, rows) in x's order
    step(compute, token_ids, cos, sin, cache, recorded)       logits of a few tokens of text, from compute(ids, cos, sin, cache)
                                               -> (T, vocab), which appends to the cache and does not advance it; recorded: a
                                               dict that belongs to compute
    settle()                                   waits until everything that was asked for is computed
    free_memory()                              bytes that weights and caches may still take
    device                                     what computes, in words

`same_rows` is the most tokens of a call of which each gets the bits that a call of its own would give it, with absorbed
attention; 1 where a row depends on those beside it.

A cache has `length` (tokens stored in every layer), `capacity`, `append(layer, latent (T, rank), k_rope (T, rope))`,
which writes rows length .. length + T of that layer, `advance(T)`, called once after every layer has appended,
`truncate(length)`, `read(layer, s0, s1)` -> float32 (latent, k_rope), and `nbytes`. Between append and advance, the
attentions include the new rows of the layer appended last: the expanded one in float32 as they were given, the absorbed one
so for a query's own row only, so that queries do not depend on what was appended together. Other rows have the precision
of the cache: "f32"; "f16": float16 latents and keys; "q8": int8 latents with one scale per token, float16 keys; "q4":
latents that are rotated (a Hadamard matrix on every 128 columns) and rounded to 4 bits, with a scale per token and one of
16 tables of levels per 16 columns, and int8 keys with a scale per 32 columns (csrc/kernels/q4.h).

Its rows can be taken out and put back: `reserve(capacity)` makes room for at least so many tokens and keeps what is there, layer
by layer, so that memory holds one layer twice at most (memory is taken as rows are written, so a large capacity costs nothing
by itself); `dump(first, last)` -> uint8 (n,), the stored bytes of rows [first, last) of all layers, (last - first) *
`token_bytes` of them: layer after layer, of each layer all latents, then all scales, then all keys, little endian, whatever the
capacity, the threads, the instruction set or the backend; `restore(first, data)` puts them back behind the rows that are there
(first == length) and raises ValueError when data is not whole rows, does not fit or would leave a gap. Whether the bytes are
sound is for the caller to know: any bytes are rows, possibly of NaN. `kind` is the name of its precision.
"""

import importlib
import os

from ivlite.errors import UsageError
from ivlite.ops import cards

BACKENDS = ("cpu", "cuda", "reference")
CACHE_KINDS = ("f32", "f16", "q8", "q4")


def cache_token_bytes(ranks, rope_dim, kind):
    """Bytes per token of a cache of one of CACHE_KINDS, over all layers. ranks: the latent rank of each layer."""
    from ivlite import _C

    return _C.cache_token_bytes(list(ranks), rope_dim, kind)


def machine():
    """What decides how fast this process computes, besides its threads, as texts.

    The processor's name, the instruction set, and of the compiled kernels the size of the file and when it was written.
    """
    from ivlite import _C

    file = os.stat(_C.__file__)
    return str(_C.cpu_info()["name"]), str(_C.isa()), str(file.st_size), str(file.st_mtime_ns)


def observed(ops, observe):
    """The same backend with a forward hook: observe(names, x) gets the input x, numpy (T, cols), of every named weight."""
    from ivlite.ops.observer import Observed

    return Observed(ops, observe)


def get(name, threads=None, card=0):
    """The backend of that name, with its own pool of `threads` threads; "cuda" on the card of that number.

    None: IVLITE_NUM_THREADS, or one per usable physical core. If the system refuses some threads, the pool is smaller:
    see `threads` of the result. Raises UsageError if the backend needs a package that is not installed, or a card that cannot
    be used; DeviceError if a card fails.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
    if name == "cuda":
        cards.check(card)
    try:
        module = importlib.import_module(f"ivlite.ops.{name}")
        return module.opened(card, threads) if name == "cuda" else module.Ops(threads)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError(f"the {name} operations need PyTorch, which is not installed: pip install torch") from error
