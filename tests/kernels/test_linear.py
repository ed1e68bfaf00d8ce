"""Linear layers: every format, instruction set, tail of rows, columns and tokens."""

import numpy as np
import pytest

from ivlite import _C, ops

FORMATS = [f["name"] for f in _C.formats()]
QUANTIZED = {f["name"] for f in _C.formats() if f["quantized"]}
# Float kernels differ from the double sums of ref by rounding; integer sums are exact and rounded once scaled.
CLOSE = dict(rtol=1e-4, atol=2e-4)
# Tokens from which a set takes the GEMM path: weights unpacked once, k-blocks of 128 columns; AMX takes q8_0 in bf16.
GEMM_FROM = {"amx": 16, "avx2": 32, "avx512vnni": 48}


def uses_gemm(fmt, tokens):
    """Whether the set in use takes the GEMM path for that format and number of tokens."""
    return fmt in QUANTIZED and tokens >= GEMM_FROM.get(_C.isa(), tokens + 1)


def in_bf16(fmt):
    """Whether the set in use unpacks that format to bf16."""
    return _C.isa() == "amx" and fmt == "q8_0"


def close(got, expected, fmt, tokens):
    """Whether a result is that of the plain kernel, which quantizes activations to int8 per 32 columns."""
    if uses_gemm(fmt, tokens):
        return np.abs(got - expected).max() < (0.03 if in_bf16(fmt) else 0.06) * expected.std()
    return np.allclose(got, expected, **CLOSE)


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def weight(fmt, matrix):
    o = ops.get("cpu")
    flat = matrix.reshape(-1, matrix.shape[-1])
    return o.weight(fmt, o.encode(fmt, flat), matrix.shape)


def run(make, x, w, bias=None, before=None):
    y = make((len(x), w.rows), margin=3, fill=np.nan if before is None else before)
    _C.linear(y, x, w, bias, before is not None)
    return y.copy()


def plain_out(shape, margin=0, fill=0):
    return np.full(shape, fill, np.float32)


@pytest.mark.parametrize("cols", [32, 1, 31, 33, 64, 70, 144, 896])
@pytest.mark.parametrize("fmt", FORMATS)
def test_columns(isa, plainly, guarded, rng, fmt, cols):
    x, w = normal(rng, 3, cols), weight(fmt, normal(rng, 19, cols))
    expected = plainly(run, plain_out, x, w)
    assert np.allclose(run(guarded, x, w), expected, **CLOSE)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 15, 16, 17, 33, 64])
@pytest.mark.parametrize("fmt", FORMATS)
def test_rows(isa, plainly, guarded, rng, fmt, rows):
    x, w = normal(rng, 5, 96), weight(fmt, normal(rng, rows, 96))
    bias = normal(rng, rows)
    expected = plainly(run, plain_out, x, w, bias)
    assert np.allclose(run(guarded, x, w, bias), expected, **CLOSE)


@pytest.mark.parametrize("tokens", [*range(1, 27), 63, 130])
@pytest.mark.parametrize("fmt", FORMATS)
def test_tokens(isa, plainly, guarded, rng, fmt, tokens):
    x, w = normal(rng, tokens, 80), weight(fmt, normal(rng, 20, 80))
    expected = plainly(run, plain_out, x, w)
    assert close(run(guarded, x, w), expected, fmt, tokens)


@pytest.mark.parametrize("rows, cols, tokens", [(1, 33, 16), (130, 600, 17), (129, 96, 47), (40, 520, 1040)])
@pytest.mark.parametrize("fmt", sorted(QUANTIZED))
def test_many_tokens_are_the_decoded_matrix_times_x(isa, guarded, rng, fmt, rows, cols, tokens):
    """However a set quantizes activations, the product is near that of float activations."""
    x, matrix, bias = normal(rng, tokens, cols), normal(rng, rows, cols), normal(rng, rows)
    o = ops.get("cpu")
    data = o.encode(fmt, matrix)
    padded = data.size // rows // next(f["block_bytes"] for f in _C.formats() if f["name"] == fmt) * o.blocks[fmt]
    decoded = _C.decode(fmt, data, rows * padded).reshape(rows, padded)[:, :cols].astype(np.float64)
    got = run(guarded, x, o.weight(fmt, data, (rows, cols)), bias, before=1)
    expected = x.astype(np.float64) @ decoded.T + bias + 1
    limit = 0.03 if not uses_gemm(fmt, tokens) else 0.012 if in_bf16(fmt) else 0.05
    assert np.abs(got - expected).max() < limit * expected.std() * (1 if rows > 1 else 3)


# Error of an unpacked weight in steps of absmax / 127 (bf16: 1/256 of itself), and the largest activation code.
UNPACKED = {
    "amx": lambda fmt: (0.226, 255) if fmt == "q8_0" else (0.52, 127),
    "avx512vnni": lambda fmt: (1e-4 if fmt == "q8_0" else 0.52, 127),
    "avx2": lambda fmt: (0.008, 2047) if fmt == "q8_0" else (0.05, 127),
}


@pytest.mark.parametrize("cols", [128, 96, 600, 1100])
@pytest.mark.parametrize("fmt", sorted(QUANTIZED))
@pytest.mark.parametrize("unpacker", sorted(UNPACKED))
def test_unpacked_weights_and_exact_sums(guarded, rng, unpacker, fmt, cols):
    """The weights a set unpacks, read through unit vectors, are near the encoded ones, and its sums of them are exact."""
    if unpacker not in _C.isas():
        pytest.skip("this processor lacks it")
    before = _C.isa()
    _C.testing.use_isa(unpacker)
    try:
        off, top = UNPACKED[unpacker](fmt)
        o, info = ops.get("cpu"), next(f for f in _C.formats() if f["name"] == fmt)
        rows, padded = 35, -(-cols // info["block"]) * info["block"]
        data = o.encode(fmt, normal(rng, rows, cols) * np.exp(normal(rng, rows, cols)))
        weights = _C.decode(fmt, data, rows * padded).reshape(rows, padded)[:, :cols]
        w = o.weight(fmt, data, (rows, cols))
        seen = run(guarded, np.eye(cols, dtype=np.float32)[: max(cols, 48)], w).T
        for first in range(0, cols, 128):
            block = slice(first, first + 128)
            # The largest code that a scale could have stood for may be twice the largest that there is.
            step = 2.2 * np.abs(weights[:, block]).max(1, keepdims=True) / 127
            assert (np.abs(seen[:, block] - weights[:, block]) <= off * step).all()
        x = rng.integers(-top, top + 1, (50, cols)).astype(np.float32)
        x[:, ::128] = top  # a scale of one
        assert np.allclose(
            run(guarded, x, w), x.astype(np.float64) @ seen.T.astype(np.float64), rtol=1e-5, atol=8e-6 * top
        )
    finally:
        _C.testing.use_isa(before)


@pytest.mark.skipif("amx" not in _C.isas(), reason="this processor lacks it")
@pytest.mark.parametrize("rows, cols, tokens", [(1, 32, 48), (290, 640, 530), (40, 1300, 65), (512, 256, 64)])
@pytest.mark.parametrize("fmt", sorted(QUANTIZED - {"q8_0"}))
def test_int8_tiles_give_the_sums_of_vnni(guarded, rng, fmt, rows, cols, tokens):
    x, w = normal(rng, tokens, cols), weight(fmt, normal(rng, rows, cols))
    before, results = _C.isa(), {}
    for name in ("amx", "avx512vnni"):
        _C.testing.use_isa(name)
        try:
            results[name] = run(guarded, x, w)
        finally:
            _C.testing.use_isa(before)
    assert np.array_equal(*results.values())


@pytest.mark.parametrize("fmt", FORMATS)
def test_accumulates(isa, plainly, guarded, rng, fmt):
    x, w, bias = normal(rng, 6, 64), weight(fmt, normal(rng, 24, 64)), normal(rng, 24)
    assert np.allclose(run(guarded, x, w, bias, before=7), plainly(run, plain_out, x, w, bias) + 7, **CLOSE)


@pytest.mark.parametrize("tokens", [1, 2, 7, 47, 130])
@pytest.mark.parametrize("rows", [2, 30, 62, 64, 96, 330, 768])
@pytest.mark.parametrize("fmt", ["f32", "q8_0", "q4_k"])
def test_activations_of_a_product(isa, guarded, rng, fmt, rows, tokens):
    """Each is what its own kernel makes of the product, to the last bit; silu_mul's halves may begin within a panel."""
    x, w, bias = normal(rng, tokens, 96), weight(fmt, normal(rng, rows, 96)), normal(rng, rows)
    product = run(guarded, x, w, bias)

    def fused(name, columns):
        y = guarded((tokens, columns), margin=3)
        _C.linear(y, x, w, bias, False, name)
        return y.copy()

    for name, exact in (("gelu_tanh", False), ("gelu_erf", True)):
        y = guarded(product.shape)
        _C.testing.gelu(y, product, exact)
        assert np.array_equal(fused(name, rows), y)
    y = guarded((tokens, rows // 2))
    _C.silu_mul(y, product)
    assert np.array_equal(fused("silu_mul", rows // 2), y)


@pytest.mark.parametrize("tokens", [1, 3, 7, 50])
@pytest.mark.parametrize("inner", [70, 1024, 1100, 2200])
@pytest.mark.parametrize("activation", ["none", "gelu_tanh", "gelu_erf", "silu_mul"])
@pytest.mark.parametrize(
    "up_fmt, down_fmt", [("f32", "f32"), ("q8_0", "q8_0"), ("q4_k", "q6_k"), ("bf16", "q4_k"), ("q4_0", "bf16")]
)
def test_mlp_is_linear_of_linear(isa, threads, guarded, rng, up_fmt, down_fmt, activation, inner, tokens):
    """Bit-identical whether activations are quantized in place (from 1024 columns per thread) or in a separate step."""
    rows = inner * 2 if activation == "silu_mul" else inner
    x, before = normal(rng, tokens, 40), normal(rng, tokens, 20)
    up, down = weight(up_fmt, normal(rng, rows, 40)), weight(down_fmt, normal(rng, 20, inner))
    b, c = normal(rng, rows), normal(rng, 20)
    between, expected = guarded((tokens, inner)), before.copy()
    _C.linear(between, x, up, b, False, activation)
    _C.linear(expected, between, down, c, True)
    for n in (1, 2):
        threads(n)
        y = guarded((tokens, 20), margin=3, fill=0)
        y[:] = before
        _C.mlp(y, x, up, b, activation, down, c, True)
        assert np.array_equal(y, expected)
    y = guarded((tokens, 20), fill=np.nan)
    _C.mlp(y, x, up, b, activation, down, c, False)
    assert np.allclose(y, expected - before, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(x=np.zeros((2, 31), np.float32)), "columns of x"),
        (dict(y=np.zeros((2, 9), np.float32)), "columns of y"),
        (dict(y=np.zeros((3, 8), np.float32)), "rows of y"),
        (dict(up=weight("f32", np.zeros((63, 32), np.float32))), "even number of rows"),
        (dict(up=weight("f32", np.zeros((70, 32), np.float32))), "columns of x is 35"),
        (dict(bias=np.zeros(32, np.float32)), "vector"),
    ],
)
def test_mlp_of_wrong_shapes_is_refused(change, word):
    given = dict(y=np.zeros((2, 8), np.float32), x=np.zeros((2, 32), np.float32), bias=None)
    given |= dict(up=weight("f32", np.zeros((64, 32), np.float32)), down=weight("q8_0", np.zeros((8, 32), np.float32)))
    given |= change
    with pytest.raises(ValueError, match=word):
        _C.mlp(given["y"], given["x"], given["up"], given["bias"], "silu_mul", given["down"], None, False)


def test_a_bias_of_another_type_is_refused():
    x, y = np.zeros((2, 32), np.float32), np.zeros((2, 8), np.float32)
    up, down = weight("f32", np.zeros((64, 32), np.float32)), weight("q8_0", np.zeros((8, 32), np.float32))
    with pytest.raises(TypeError, match="up_bias"):
        _C.mlp(y, x, up, np.zeros(64), "silu_mul", down, None, False)


def test_activations_that_cannot_be(rng):
    x, w, y = normal(rng, 2, 32), weight("f32", normal(rng, 5, 32)), np.empty((2, 5), np.float32)
    for activation, accumulate, said in (
        ("silu_mul", False, "an even number of rows"),
        ("gelu_erf", True, "not added to y"),
        ("relu", False, "unknown activation 'relu'"),
    ):
        with pytest.raises(ValueError, match=said):
            _C.linear(y, x, w, None, accumulate, activation)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_plain_kernel_is_the_decoded_matrix_times_what_it_sees(plainly, rng, fmt):
    """Float formats see x; quantised formats see x rounded to int8 per 32 columns."""
    x, matrix = normal(rng, 4, 100), normal(rng, 30, 100)
    o = ops.get("cpu")
    data = o.encode(fmt, matrix)
    padded = -(-100 // o.blocks[fmt]) * o.blocks[fmt]
    decoded = _C.decode(fmt, data, 30 * padded).reshape(30, padded)[:, :100].astype(np.float64)
    seen = x.astype(np.float64)
    if fmt in QUANTIZED:
        q, scale, *_ = plainly(_C.testing.quantize_rows, x)
        seen = (q * np.repeat(scale, 32, 1).astype(np.float64))[:, :100]
    got = plainly(run, plain_out, x, o.weight(fmt, data, (30, 100)))
    assert np.allclose(got, seen @ decoded.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fmt", sorted(QUANTIZED))
def test_extreme_codes_do_not_overflow(isa, plainly, guarded, fmt):
    """Largest weights of either sign times largest activations: 16-bit intermediate sums would wrap."""
    cols = 256
    signs = np.where(np.arange(cols) % 2, -1, 1).astype(np.float32)
    matrix = np.stack([np.ones(cols), -np.ones(cols), signs, -signs]).astype(np.float32)
    x = np.stack([np.ones(cols), -np.ones(cols), signs]).astype(np.float32)
    w = weight(fmt, np.repeat(matrix, 5, 0))
    assert np.allclose(run(guarded, x, w), plainly(run, plain_out, x, w), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("fmt", FORMATS)
def test_zero_and_huge_activations(isa, plainly, guarded, rng, fmt):
    x = normal(rng, 4, 64)
    x[0] = 0
    x[1, :32] = 0
    x[2] *= 1e20
    x[3] *= 1e-30
    w = weight(fmt, normal(rng, 16, 64))
    expected = plainly(run, plain_out, x, w)
    got = run(guarded, x, w)
    scale = np.abs(expected).max(1, keepdims=True) + 1e-38
    assert np.allclose(got / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 13, 40])
def test_heads(isa, plainly, guarded, rng, fmt, tokens):
    heads, rows, cols = 5, 37, 48
    matrices, x = normal(rng, heads, rows, cols), normal(rng, tokens, heads, 2 * cols)[:, :, cols:]
    w = weight(fmt, matrices)

    def call(make):
        y = make((tokens, heads, rows))
        _C.linear_heads(y, x, w)
        return y.copy()

    got = call(guarded)
    for h in range(heads):
        expected = plainly(run, plain_out, np.ascontiguousarray(x[:, h]), weight(fmt, matrices[h]))
        assert np.allclose(got[:, h], expected, **CLOSE)


@pytest.mark.parametrize("n", [1, 5, 31, 32, 33, 100, 128])
def test_quantize_rows_is_the_plain_one(isa, plainly, rng, n):
    x = normal(rng, 6, n) * np.float32(3)
    x[1] = 0
    x[2, 0] = 1e6
    x[3] = np.float32(0.5)
    for got, expected in zip(_C.testing.quantize_rows(x), plainly(_C.testing.quantize_rows, x), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("tokens", [1, 2, 7, 13])
@pytest.mark.parametrize("fmt", sorted(QUANTIZED))
def test_integer_sums_are_those_of_every_other_set(isa, plainly, guarded, rng, fmt, tokens):
    """With scales of one nothing is rounded anywhere, so that every set must give the very same numbers."""
    cols = 544
    data = whole_blocks(rng, fmt, 21, cols)
    x = rng.integers(-126, 127, (tokens, cols)).astype(np.float32)
    x[:, ::32] = 127
    w = _C.Weight(fmt, data.reshape(-1), 1, 21, cols)
    assert np.array_equal(run(guarded, x, w), plainly(run, plain_out, x, w))


def whole_blocks(rng, fmt, rows, cols):
    """Random codes under a scale of one (of two per group in K formats), uint8 (rows, bytes of a row)."""
    info = next(f for f in _C.formats() if f["name"] == fmt)
    blocks = rng.integers(0, 256, (rows, -(-cols // info["block"]), info["block_bytes"]), np.uint8)
    one = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    if fmt in ("q4_k", "q5_k"):
        blocks[..., :2], blocks[..., 2:4] = one, one
        blocks[..., 4:16] &= 3
    elif fmt == "q6_k":
        blocks[..., 192:208] %= 5
        blocks[..., 208:] = one
    else:
        blocks[..., :2] = one
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize("fmt", FORMATS)
def test_threads_do_not_change_a_bit(isa, threads, guarded, rng, fmt):
    x, w = normal(rng, 9, 64), weight(fmt, normal(rng, 700, 64))
    results = []
    for n in (1, 2, 5):
        threads(n)
        results.append(run(guarded, x, w))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(x=np.zeros((2, 31), np.float32)), "columns of x"),
        (dict(y=np.zeros((2, 9), np.float32)), "columns of y"),
        (dict(y=np.zeros((3, 8), np.float32)), "rows of y"),
        (dict(bias=np.zeros(7, np.float32)), "vector"),
        (dict(x=np.zeros((32, 2), np.float32).T), "contiguous"),
    ],
)
def test_wrong_shapes_are_refused(change, word):
    given = dict(y=np.zeros((2, 8), np.float32), x=np.zeros((2, 32), np.float32), bias=None)
    given["w"] = weight("f32", np.zeros((8, 32), np.float32))
    given |= change
    with pytest.raises(ValueError, match=word):
        _C.linear(given["y"], given["x"], given["w"], given["bias"], False)


@pytest.mark.parametrize("sizes", [(1, 5, 100), (16, 32, 58), (7, 9, 90), (106,)])
@pytest.mark.parametrize("fmt", FORMATS)
def test_weights_filled_in_pieces(guarded, rng, fmt, sizes):
    """Pieces may begin and end within a panel, and within a head's matrix; a row may end in padding."""
    heads, rows, cols = 2, 53, 70
    data = np.pad(weight_rows(rng, fmt, heads * rows, cols), ((0, 0), (0, block_bytes(fmt))))
    whole, pieces = _C.Weight(fmt, data.reshape(-1), heads, rows, cols), _C.Weight(fmt, None, heads, rows, cols)
    for first, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
        pieces.fill(int(first), data[first : first + size])
    x = normal(rng, 3, heads, cols)
    got = [guarded((3, heads, rows)) for _ in range(2)]
    for y, w in zip(got, (whole, pieces), strict=True):
        _C.linear_heads(y, x, w)
    assert np.array_equal(*got) and np.abs(got[0]).min() > 0


def block_bytes(fmt):
    return next(f["block_bytes"] for f in _C.formats() if f["name"] == fmt)


def weight_rows(rng, fmt, rows, cols):
    """Random rows, uint8 (rows, row bytes)."""
    return ops.get("cpu").encode(fmt, normal(rng, rows, cols)).reshape(rows, -1)


def test_rows_that_a_weight_has_not_are_refused(rng):
    rows, w = weight_rows(rng, "q8_0", 8, 32), _C.Weight("q8_0", None, 1, 20, 32)
    for first, given in ((13, rows), (-1, rows), (0, rows[:, :33].copy()), (0, np.zeros((8, 0), np.uint8))):
        with pytest.raises(ValueError, match="weight"):
            w.fill(first, given)
    with pytest.raises(ValueError, match="20 rows is given 8"):
        ops.get("cpu").weight("q8_0", iter([rows]), (20, 32))


@pytest.mark.parametrize("nbytes", [0, 33, 34 * 7, 34 * 8 + 1])
def test_weights_of_the_wrong_size_are_refused(nbytes):
    with pytest.raises(ValueError):
        _C.Weight("q8_0", np.zeros(nbytes, np.uint8), 1, 8, 32)
