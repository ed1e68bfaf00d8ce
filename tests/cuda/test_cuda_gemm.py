"""Products of many rows: rounding of activations, tiles of every size, epilogues, keys and values of heads."""

import math

import numpy as np
import pytest
from weights import ACTIVATIONS, FORMATS, QUANTIZED, Packed, blocks_of, decoded, normal

KINDS = ["f32", "bf16", "heads_f32", "heads_f16"]
NORMS = ["none", "rms", "layer"]
PLANS = [
    (256, 128, 1),
    (128, 128, 1),
    (128, 64, 1),
    (128, 32, 1),
    (256, 128, 3),
    (128, 128, 2),
    (128, 64, 3),
    (128, 32, 7),
]
HALVES = "f16", "bf16"  # weights that lie on the card as halves
PAD = 64  # columns of rounded rows


def to_bf16(x):
    """Rounds to nearest even: float32 values that bf16 has."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), rounded)


def of_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def padded(cols):
    return -(-cols // PAD) * PAD


class Weight(Packed):
    """A random weight, or one of blocks, on a device; `values` (all rows, cols) as its format has them."""

    def __init__(self, device, fmt, rows, cols, heads=1, blocks=None):
        rng = np.random.default_rng([rows, cols, heads])
        matrix = normal(rng, heads, rows, cols) * rng.uniform(0.2, 2, (heads, rows, 1)).astype(np.float32)
        super().__init__(device, fmt, matrix, blocks)
        self.values, self.all_rows = decoded(fmt, self.blocks, cols), heads * rows


def rounded(device, fmt, x, norm="none", w=None, b=None, eps=0.0):
    """x (tokens, cols) as products with weights of that format take it: (buffer, row length, scales or None)."""
    x = np.ascontiguousarray(x, np.float32)
    source = device.array(x)
    if fmt == "f32":
        return source, x.shape[1], None
    out = device.empty((len(x), padded(x.shape[1])), np.uint16)
    scale = device.empty(len(x)) if fmt in HALVES else None
    vectors = [0 if v is None else device.array(np.asarray(v, np.float32)).pointer for v in (w, b)]
    device.cuda.round_rows(out.pointer, out.shape[1], scale.pointer if scale else 0, source.pointer, x.shape[1], *x.shape,
                           NORMS.index(norm), *vectors, eps, 0)  # fmt: skip
    return out, out.shape[1], scale


def gemm(device, weight, x, bias=None, activation="none", into=None, kind="f32", nope=0, plan=None):
    """The product of float rows, or of `rounded` ones: a buffer, of heads two. plan: None, or (rows and tokens of a tile, splits)."""
    x, ldx, scale = x if isinstance(x, tuple) else rounded(device, weight.fmt, x)
    tokens, rows = x.shape[0], weight.all_rows // (2 if activation == "silu_mul" else 1)
    dtype = np.uint16 if kind.endswith("16") else np.float32
    if kind.startswith("heads"):
        y, values = (device.empty((weight.heads, tokens, n), dtype) for n in (nope, weight.rows - nope))
    else:
        y, values = device.empty((tokens, padded(rows) if kind == "bf16" else rows), dtype), None
    if into is not None:
        y.set(into)
    splits = (plan or device.cuda.gemm_plan(weight.args[0], weight.all_rows, weight.cols, tokens))[2]
    partial = device.empty((splits, tokens, weight.all_rows)) if splits > 1 else None
    values_at, bias_at, scale_at, partial_at = (
        0 if a is None else a.pointer for a in (values, None if bias is None else device.array(bias), scale, partial)
    )
    device.cuda.gemm(*weight.args, x.pointer, ldx, tokens, KINDS.index(kind), ACTIVATIONS.index(activation), into is not None,
                     y.pointer, y.shape[1], values_at, weight.rows, nope, bias_at, scale_at, partial_at, 0, 0, plan)  # fmt: skip
    return y if values is None else (y, values)


def operands(weight, x):
    """Weights and activations as they are multiplied, in float64."""
    if weight.fmt == "f32":
        return weight.values.astype(np.float64), x.astype(np.float64)
    if weight.fmt in HALVES:
        largest = np.abs(x).max(1, keepdims=True)
        scale = 2.0 ** (np.frexp(largest)[1] - 14)
        return weight.values.astype(np.float64), (x / scale).astype(np.float16).astype(np.float64) * scale
    return to_bf16(weight.values).astype(np.float64), to_bf16(x).astype(np.float64)


def inputs(tokens, cols, seed=0):
    rng = np.random.default_rng([seed, tokens, cols])
    return (rng.standard_normal((tokens, cols)) * rng.uniform(0.1, 4, (tokens, 1))).astype(np.float32)


def check(y, weight, x, bias=0.0):
    """Sums of rounded operands to float rounding; sums of the weights and activations themselves to that of bf16."""
    w, rounded_x = operands(weight, x)
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weight.values).astype(np.float64).T + np.abs(bias)
    fine = (2.0**-22 + weight.cols * 2.0**-24) * magnitude + 1e-30  # float32 sums in any order
    assert (np.abs(y - (rounded_x @ w.T + bias)) <= fine).all()
    # Rounding to bf16 moves an operand by up to 2^-8 of it, to half by 2^-11. Weights in bf16 and f16 are not rounded.
    error = {"f32": 0, "f16": 2.0**-11, "bf16": 2.0**-11}.get(weight.fmt, 2.0**-7 + 2.0**-16)
    exact = x.astype(np.float64) @ weight.values.astype(np.float64).T + bias
    assert (np.abs(y - exact) <= error * magnitude + fine).all()


def plan_for(fmt, plan):
    return (64, 64, 1) if fmt == "f32" else plan


@pytest.mark.parametrize(
    "rows, cols, tokens", [(16, 32, 17), (1, 1, 33), (129, 256, 33), (33, 300, 65), (15, 544, 130), (300, 97, 20)]
)
@pytest.mark.parametrize("fmt", FORMATS)
def test_tails(device, fmt, rows, cols, tokens):
    weight, x = Weight(device, fmt, rows, cols), inputs(tokens, cols)
    check(gemm(device, weight, x).numpy(), weight, x)


@pytest.mark.parametrize("fmt", FORMATS)
def test_tiles(device, fmt):
    """All tiles, longer than the ring of copies, and parts of K: without parts the same bits."""
    weight, x = Weight(device, fmt, 260, 330), inputs(140, 330)
    same = None
    for plan in PLANS if fmt != "f32" else [(64, 64, 1)]:
        y = gemm(device, weight, x, plan=plan).numpy()
        check(y, weight, x)
        if plan[2] == 1:
            same = y if same is None else same
            assert np.array_equal(y, same)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "rows, cols, tokens", [(8192, 4096, 40), (24576, 4096, 2048), (1024, 4096, 150), (1152, 4304, 784), (1, 1, 1)]
)
def test_plan(device, fmt, rows, cols, tokens):
    plan = device.cuda.gemm_plan(FORMATS.index(fmt), rows, cols, tokens)
    assert plan == (64, 64, 1) if fmt == "f32" else plan[:2] in {p[:2] for p in PLANS}
    blocks = -(-rows // plan[0]) * -(-tokens // plan[1])
    assert plan[2] == 1 or blocks * plan[2] <= 128
    partial = device.cuda.gemm_partial_bytes(FORMATS.index(fmt), rows, cols, tokens)
    assert partial == (plan[2] * tokens * rows * 4 if plan[2] > 1 else 0)


@pytest.mark.parametrize("plan", [(1, 1, 1), (256, 64, 1), (64, 64, 1), (128, 32, 0), (128, 0, 1)])
def test_a_plan_that_does_not_exist(device, plan):
    weight, x = Weight(device, "q8_0", 16, 32), inputs(17, 32)
    with pytest.raises(device.cuda.Error) as caught:
        gemm(device, weight, x, plan=plan)
    assert caught.value.args[0] == 1


def activated(y, activation):
    gelu = {"gelu_tanh": lambda v: np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)),
            "gelu_erf": np.vectorize(lambda v: math.erf(v / math.sqrt(2)))}  # fmt: skip
    if activation in gelu:
        return 0.5 * y * (1 + gelu[activation](y))
    if activation == "silu_mul":
        gate, up = np.split(y, 2, 1)
        return gate / (1 + np.exp(-gate)) * up
    return y


@pytest.mark.parametrize("plan", [(256, 128, 1), (128, 32, 4)])
@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fmt", ["f32", "f16", "q4_k"])
def test_activations(device, fmt, activation, kind, plan):
    rows, cols, tokens = 146, 300, 33
    weight, x = Weight(device, fmt, rows, cols), inputs(tokens, cols) / 16
    bias = np.random.default_rng(1).standard_normal(rows).astype(np.float32)
    w, rounded_x = operands(weight, x)
    expected = activated(rounded_x @ w.T + bias, activation)
    y = gemm(device, weight, x, bias, activation, kind=kind, plan=plan_for(fmt, plan)).numpy()
    real = expected.shape[1]
    if kind == "bf16":
        assert (y[:, real:] == 0).all()
        y = of_bf16(y[:, :real])
    error = 2.0**-8 if kind == "bf16" else 2e-6
    assert np.allclose(y, expected, rtol=error, atol=1e-4)


@pytest.mark.parametrize("plan", [(256, 128, 1), (128, 32, 4)])
@pytest.mark.parametrize("fmt", ["f32", "f16", "q6_k"])
def test_accumulate(device, fmt, plan):
    weight, x = Weight(device, fmt, 70, 300), inputs(40, 300)
    bias, into = (np.random.default_rng(2).standard_normal(n).astype(np.float32) for n in (70, (40, 70)))
    plan = plan_for(fmt, plan)
    y = gemm(device, weight, x, bias, plan=plan).numpy()
    assert np.array_equal(gemm(device, weight, x, bias, into=into, plan=plan).numpy(), into + y)


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0", "q6_k"])
def test_mlp(device, fmt):
    """Between two products values are bf16, padded for the second one."""
    up, down, x = Weight(device, fmt, 2 * 75, 96), Weight(device, fmt, 40, 75), inputs(20, 96) / 8
    between = gemm(device, up, x, activation="silu_mul", kind="bf16")
    y = gemm(device, down, (between, between.shape[1], None))
    check(y.numpy(), down, of_bf16(between.numpy()[:, :75]))


@pytest.mark.parametrize("plan", [(256, 128, 1), (128, 128, 1), (128, 32, 2)])
@pytest.mark.parametrize("kind", ["heads_f32", "heads_f16"])
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "q8_0", "q5_k"])
def test_keys_and_values_of_heads(device, fmt, kind, plan):
    heads, nope, v, rank, tokens = 3, 24, 17, 200, 70
    weight, x = Weight(device, fmt, nope + v, rank, heads), inputs(tokens, rank)
    plan = plan_for(fmt, plan)
    flat = gemm(device, weight, x, plan=plan).numpy()
    check(flat, weight, x)
    expected = flat.reshape(tokens, heads, nope + v).transpose(1, 0, 2)
    keys, values = (a.numpy() for a in gemm(device, weight, x, kind=kind, nope=nope, plan=plan))
    if kind == "heads_f16":
        keys, values, expected = (
            a.view(np.float16) for a in (keys, values, expected.astype(np.float16).view(np.uint16))
        )
    assert np.array_equal(keys, expected[:, :, :nope]) and np.array_equal(values, expected[:, :, nope:])


@pytest.mark.parametrize("tokens", [1, 17, 33, 70, 150])
@pytest.mark.parametrize("rows, cols", [(128, 40), (256, 200)])
@pytest.mark.parametrize("fmt", ["q8_0", "q4_0", "q5_k"])
def test_heads_with_rows_of_their_own(device, fmt, rows, cols, tokens):
    """The bits of a product of each head alone."""
    heads, width = 3, padded(cols)
    weight, x = Weight(device, fmt, rows, cols, heads), inputs(tokens * heads, cols)
    source, _, _ = rounded(device, fmt, x)
    y = device.empty((tokens, heads, rows))
    device.cuda.gemm(*weight.args, source.pointer, heads * width, tokens, KINDS.index("f32"), 0, False, y.pointer, heads * rows,
                     0, 0, 0, 0, 0, 0, width, 0)  # fmt: skip
    flat = gemm(device, weight, (source, width, None), plan=(128, 32, 1)).numpy().reshape(tokens, heads, heads, rows)
    assert np.array_equal(y.numpy(), np.stack([flat[:, h, h] for h in range(heads)], 1))


# ---------------------------------------------------------------------------------------------- rounding of activations


def normed(x, norm, w, b, eps):
    x = x.astype(np.float64)
    if norm == "none":
        return x
    if norm == "layer":
        x = x - x.mean(1, keepdims=True)
    x = x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * w
    return x + b if norm == "layer" else x


@pytest.mark.parametrize("cols", [1, 7, 8, 64, 100, 1152, 2050])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("fmt", ["q8_0", "f16"])
def test_rounding(device, fmt, norm, cols):
    x, rng = inputs(5, cols) + 0.5, np.random.default_rng(cols)
    w, b = rng.standard_normal((2, cols)).astype(np.float32)
    out, _, scale = rounded(device, fmt, x, norm, w, b, 1e-6)
    expected = normed(x, norm, w, b, 1e-6)
    bits = out.numpy()
    assert (bits[:, cols:] == 0).all()
    if fmt == "q8_0":  # to bf16
        got, error = of_bf16(bits[:, :cols]), 2.0**-8
    else:
        scales = scale.numpy()
        assert (np.frexp(scales)[0] == 0.5).all()
        halves = bits[:, :cols].view(np.float16).astype(np.float64)
        assert (np.abs(halves).max(1) <= 2.0**14).all() and (np.abs(halves).max(1) >= 2.0**12.9).all()
        got, error = halves * scales[:, None], 2.0**-11
    assert (np.abs(got - expected) <= error * 1.001 * np.abs(expected) + 1e-6 * np.abs(expected).max()).all()
    if norm == "none" and fmt == "q8_0":
        assert np.array_equal(got, to_bf16(x))


@pytest.mark.parametrize("largest", [0.0, 1e-38, 3e38])
def test_rows_of_any_size_in_half(device, largest):
    x = np.float32(largest) * np.linspace(-1, 1, 40, dtype=np.float32).reshape(2, 20)
    out, _, scale = rounded(device, "f16", x)
    got = out.numpy()[:, :20].view(np.float16).astype(np.float64) * scale.numpy().astype(np.float64)[:, None]
    assert np.abs(got - x).max() <= 2.0**-11 * largest


# ---------------------------------------------------------------------------------------------- NaN and infinity

BAD = [np.nan, np.inf, -np.inf]


def lost(y, bad):
    """Elements of y that are numbers, or for NaN anything but NaN."""
    return ~np.isnan(y) if np.isnan(bad) else np.isfinite(y)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("fmt", FORMATS)
def test_bad_activations(device, fmt, bad):
    weight, x = Weight(device, fmt, 37, 420), inputs(40, 420)
    clean = gemm(device, weight, x).numpy()
    for at in (0, 133, 419):
        broken = x.copy()
        broken[20, at] = bad
        y = gemm(device, weight, broken).numpy()
        assert not lost(y[20], bad).any()
        assert np.array_equal(np.delete(y, 20, 0), np.delete(clean, 20, 0))


@pytest.mark.parametrize("fmt", QUANTIZED)
def test_weights_whose_scale_is_nan(device, fmt):
    clean, x = Weight(device, fmt, 40, 512), inputs(40, 512)
    broken = clean.blocks.copy()
    last = -210 + 208 if fmt == "q6_k" else -{"q8_0": 34, "q4_0": 18, "q4_k": 144, "q5_k": 176}[fmt]
    broken[19, last:][:2] = np.frombuffer(np.uint16(0x7E00).tobytes(), np.uint8)
    y, expected = (gemm(device, w, x).numpy() for w in (Weight(device, fmt, 40, 512, blocks=broken), clean))
    assert np.isnan(y[:, 19]).all()
    assert np.array_equal(np.delete(y, 19, 1), np.delete(expected, 19, 1))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
def test_bad_weights(device, fmt, bad):
    clean = Weight(device, fmt, 20, 70)
    matrix = clean.values.copy()
    matrix[7, 69] = bad
    weight = Weight(device, fmt, 20, 70, blocks=blocks_of(fmt, matrix))
    y, expected = (gemm(device, w, inputs(20, 70)).numpy() for w in (weight, clean))
    assert not lost(y[:, 7], bad).any()
    assert np.array_equal(np.delete(y, 7, 1), np.delete(expected, 7, 1))


# ---------------------------------------------------------------------------------------------- every access, checked


CHECKED = [(256, 128, 1), (128, 128, 2), (128, 64, 1), (128, 32, 2)]


@pytest.mark.parametrize("fmt, plan", [("f32", (64, 64, 1))] + [(fmt, plan) for fmt in FORMATS[1:] for plan in CHECKED])
def test_accesses(checked, fmt, plan):
    """No access outside of an array, no race, nothing read that was not written, no bank conflict."""
    cols = 330 * plan[2]  # in each part more steps than the ring of copies has places
    weight, x = Weight(checked, fmt, 70, cols), inputs(20, cols)
    operand = rounded(checked, fmt, x)
    with checked.traffic() as found:
        y = gemm(checked, weight, operand, plan=plan).numpy()
    check(y, weight, x)
    assert checked.unwritten() == (0, "")
    shared = [t for t in found if t["memory"] == "shared"]
    assert {t["access"] for t in shared} == {"read", "write"}
    assert not [(t["source"], t["parts"], t["needed"]) for t in shared if t["parts"] > t["needed"]]


@pytest.mark.parametrize(
    "kind, plan, activation",
    [("f32", (256, 128, 1), "silu_mul"), ("f32", (128, 64, 2), "gelu_erf"), ("bf16", (128, 32, 2), "silu_mul"),
     ("bf16", (128, 128, 1), "gelu_tanh"), ("heads_f16", (128, 64, 1), "none"), ("heads_f32", (128, 32, 2), "none")],
)  # fmt: skip
@pytest.mark.parametrize("fmt", ["f32", "q4_k"])
def test_accesses_of_epilogues(checked, fmt, kind, plan, activation):
    weight, bias = Weight(checked, fmt, 35, 100, 2), normal(np.random.default_rng(5), 70)
    gemm(checked, weight, inputs(20, 100), bias, activation, kind=kind, nope=20, plan=plan_for(fmt, plan))
    assert checked.unwritten() == (0, "")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("fmt", ["q8_0", "f16"])
def test_accesses_of_rounding(checked, fmt, norm):
    with checked.traffic() as found:
        rounded(checked, fmt, inputs(3, 77), norm, np.ones(77), np.ones(77), 1e-6)
    assert checked.unwritten() == (0, "")
    assert not [t for t in found if t["memory"] == "shared" and t["parts"] > t["needed"]]
