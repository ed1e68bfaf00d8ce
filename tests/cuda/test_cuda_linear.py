"""Products of 1 to 16 tokens on the device, beside the plain kernels of the CPU; and what they multiply, bit for bit."""

import numpy as np
import pytest
from weights import ACTIVATIONS, FORMATS, INFO, QUANTIZED, Packed, int8_rows, normal

from ivlite import _C

CLOSE = dict(rtol=1e-4, atol=2e-4)
BAD = [np.nan, np.inf, -np.inf]
TOKENS = [1, 2, 3, 4, 5, 8, 9, 16]
MARGIN = 3


def unpacked(codes, heads, tokens, cols):
    """The codes, scales and half sums of int8 rows: (heads, tokens, groups, 32), (heads, tokens, groups), (.., 2); padding is checked."""
    padded, groups = tokens if tokens <= 4 else 8 if tokens <= 8 else 16, -(-cols // 256) * 8
    raw, count = codes.numpy(), heads * padded * groups
    order = (heads, padded, groups) if tokens <= 4 else (heads, groups, padded)
    q = np.empty((*order, 8, 4), np.int8)
    q[..., [0, 4, 1, 5, 2, 6, 3, 7], :] = raw[: 32 * count].view(np.int8).reshape(q.shape)
    chunks = raw[32 * count :].view(np.dtype([("scale", "<f4"), ("halves", "<i2", 2)])).reshape(order)
    if tokens > 4:
        q, chunks = np.moveaxis(q, 1, 2), np.moveaxis(chunks, 1, 2)
    used = -(-cols // 32)
    for rest in (q[:, tokens:], q[:, :, used:]):
        assert not rest.any()
    for rest in (chunks[:, tokens:], chunks[:, :, used:]):
        assert not rest["scale"].any() and not rest["halves"].any()
    chunks = chunks[:, :tokens, :used]
    return q[:, :tokens, :used].reshape(heads, tokens, used, 32), chunks["scale"], chunks["halves"]


@pytest.mark.parametrize("cols", [1, 32, 33, 100, 256, 300])
@pytest.mark.parametrize("heads, tokens", [(1, 1), (3, 1), (1, 3), (2, 4), (1, 5), (3, 8), (2, 9), (1, 16)])
def test_rounded_as_on_the_cpu(device, plainly, rng, heads, tokens, cols):
    x = normal(rng, tokens, heads, cols) * np.exp(normal(rng, tokens, heads, 1) * 3)
    x[0, -1, : min(cols, 40)] = 0
    x[-1, 0, -1] = rng.choice([1e-35, np.nan, np.inf, -np.inf, 7])
    q, scale, halves = unpacked(int8_rows(device, x, margin=MARGIN), heads, tokens, cols)
    for h in range(heads):
        expected = plainly(_C.testing.quantize_rows, np.ascontiguousarray(x[:, h]))
        assert np.array_equal(q[h].reshape(tokens, -1), expected[0])
        assert np.array_equal(scale[h], expected[1], equal_nan=True)
        assert np.array_equal(halves[h].sum(-1), expected[2]) and np.array_equal(halves[h], expected[3])


@pytest.mark.parametrize("tokens", [1, 4, 7, 16])
@pytest.mark.parametrize("cols", [40, 256, 1000])
def test_norm_before_rounding(device, rng, tokens, cols):
    x, norm = normal(rng, tokens, 1, cols) * 5, normal(rng, cols)
    x[0, 0, 3] = 1e3
    q, scale, halves = unpacked(int8_rows(device, x, norm, 1e-6), 1, tokens, cols)
    normed = np.empty((tokens, cols), np.float32)
    _C.rms_norm(normed, x[:, 0], norm, 1e-6)
    got = (q * scale[..., None]).reshape(tokens, -1)[:, :cols]
    assert (np.abs(got - normed) <= np.repeat(scale[0], 32, -1)[:, :cols] * 0.501).all()
    assert np.array_equal(halves[0], q[0].reshape(tokens, -1, 2, 16).sum(-1))
    x[tokens // 2, 0, cols // 2] = np.nan
    _, scale, _ = unpacked(int8_rows(device, x, norm, 1e-6), 1, tokens, cols)
    hit = np.isnan(scale[0]).all(-1)
    assert hit[tokens // 2] and hit.sum() == 1


def expected_rows(x, w, bias=None, before=None, activation="none"):
    """What the CPU's kernels in use make of x (tokens, heads, cols)."""
    y = np.zeros((*x.shape[:2], w.rows // (2 if activation == "silu_mul" else 1)), np.float32)
    if w.heads > 1:
        _C.linear_heads(y, x, w.cpu)
        return y
    if before is not None:
        y[:] = before
    _C.linear(y[:, 0], np.ascontiguousarray(x[:, 0]), w.cpu, bias, before is not None, activation)
    return y


def run(device, x, weights, biases=(None, None), before=None, activation="none"):
    """The outputs of one launch for x (tokens, heads, cols), one per weight; what lies between their rows is checked."""
    tokens, heads, cols = x.shape
    codes = int8_rows(device, x)
    at, parts, outputs = device.array(x), [], []
    for w, bias in zip(weights, biases, strict=False):
        rows = w.rows // (2 if activation == "silu_mul" else 1)
        y = device.empty((tokens, heads, rows + MARGIN))
        y.set(np.full(y.shape, np.nan if before is None else before, np.float32))
        ld = rows + MARGIN
        parts.append((*w.args, y.pointer, heads * ld, ld, 0 if bias is None else device.array(bias).pointer))
        outputs.append((y, rows))
    device.cuda.few_rows(
        parts,
        codes.pointer,
        at.pointer,
        heads * cols,
        cols,
        tokens,
        ACTIVATIONS.index(activation),
        before is not None,
        None,
        0,
    )
    results = []
    for y, rows in outputs:
        whole = y.numpy()
        gap = whole[..., rows:]
        assert (np.isnan(gap) if before is None else gap == before).all(), "a kernel wrote between rows"
        results.append(whole[..., :rows])
    return results


@pytest.mark.parametrize("tokens", range(1, 17))
@pytest.mark.parametrize("fmt", FORMATS)
def test_tokens(device, plainly, rng, fmt, tokens):
    x, w = normal(rng, tokens, 1, 300), Packed(device, fmt, normal(rng, 20, 300))
    (got,) = run(device, x, [w])
    assert np.allclose(got, plainly(expected_rows, x, w), **CLOSE)


@pytest.mark.parametrize("cols", [1, 31, 33, 128, 144, 600, 1100, 2080])
@pytest.mark.parametrize("fmt", FORMATS)
def test_columns(device, plainly, rng, fmt, cols):
    """Up to as many columns as all warps of a block share."""
    w = Packed(device, fmt, normal(rng, 19, cols))
    for tokens in (1, 3, 7):
        x = normal(rng, tokens, 1, cols)
        (got,) = run(device, x, [w])
        assert np.allclose(got, plainly(expected_rows, x, w), **CLOSE)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 15, 16, 17, 33, 130])
@pytest.mark.parametrize("fmt", FORMATS)
def test_rows(device, plainly, rng, fmt, rows):
    w, bias = Packed(device, fmt, normal(rng, rows, 96)), normal(rng, rows)
    for tokens in (2, 9):
        x = normal(rng, tokens, 1, 96)
        (got,) = run(device, x, [w], [bias], before=7)
        assert np.allclose(got, plainly(expected_rows, x, w, bias, before=7), **CLOSE)


@pytest.mark.parametrize("cols", [96, 1100])
@pytest.mark.parametrize("fmt", FORMATS)
def test_a_token_has_the_same_bits_beside_others(device, rng, fmt, cols):
    """Whatever the number of tokens, and so the kernel: what is drafted and checked together is what steps would compute."""
    x, w, bias = normal(rng, 16, 1, cols), Packed(device, fmt, normal(rng, 34, cols)), normal(rng, 34)
    (together,) = run(device, x, [w], [bias])
    for tokens in (1, 2, 3, 4, 5, 11):
        (got,) = run(device, x[:tokens], [w], [bias])
        assert np.array_equal(got, together[:tokens])


@pytest.mark.parametrize("tokens", [1, 4, 6])
@pytest.mark.parametrize("rows", [2, 14, 16, 18, 34, 256])
@pytest.mark.parametrize("fmt", ["f32", "bf16", "q8_0", "q4_k", "q6_k"])
def test_activations(device, plainly, rng, fmt, rows, tokens):
    """silu_mul's halves may begin anywhere."""
    x, w, bias = normal(rng, tokens, 1, 96), Packed(device, fmt, normal(rng, rows, 96)), normal(rng, rows)
    for name in ACTIVATIONS:
        (got,) = run(device, x, [w], [bias], activation=name)
        assert np.allclose(got, plainly(expected_rows, x, w, bias, activation=name), **CLOSE)


@pytest.mark.parametrize("tokens", [1, 4, 16])
@pytest.mark.parametrize("first, second", [("q4_0", "q8_0"), ("q4_k", "q4_k"), ("bf16", "q6_k"), ("q5_k", "f32")])
def test_two_weights_in_one_launch(device, rng, first, second, tokens):
    """The same bits as one by one."""
    x = normal(rng, tokens, 1, 300)
    weights = [Packed(device, first, normal(rng, 150, 300)), Packed(device, second, normal(rng, 21, 300))]
    biases = [normal(rng, 150), None]
    together = run(device, x, weights, biases)
    for w, bias, got in zip(weights, biases, together, strict=True):
        assert np.array_equal(got, run(device, x, [w], [bias])[0])


@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("rows, cols", [(1, 33), (20, 64), (40, 200)])
@pytest.mark.parametrize("fmt", FORMATS)
def test_heads(device, plainly, rng, fmt, rows, cols, tokens):
    x, w = normal(rng, tokens, 3, cols), Packed(device, fmt, normal(rng, 3, rows, cols))
    (got,) = run(device, x, [w])
    assert np.allclose(got, plainly(expected_rows, x, w), **CLOSE)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("fmt", FORMATS)
def test_what_is_not_finite_reaches_its_token_alone(device, rng, fmt, bad):
    w = Packed(device, fmt, normal(rng, 37, 420))
    for tokens in (1, 4, 9):
        x = normal(rng, tokens, 1, 420)
        (clean,) = run(device, x, [w])
        for at in (0, 133, 419):
            y = x.copy()
            y[tokens // 2, 0, at] = bad
            (got,) = run(device, y, [w])
            hit = got[tokens // 2]
            assert (np.isnan(hit) if np.isnan(bad) else ~np.isfinite(hit)).all()
            assert np.array_equal(np.delete(got, tokens // 2, 0), np.delete(clean, tokens // 2, 0))


@pytest.mark.parametrize("half", [0x7E00, 0xFE00, 0x7FFF, 0x7C00, 0xFC00])
@pytest.mark.parametrize("fmt", QUANTIZED)
def test_weights_whose_scale_is_not_finite(device, rng, fmt, half):
    matrix, at = normal(rng, 32, 512), 208 if fmt == "q6_k" else 0
    clean = Packed(device, fmt, matrix)
    blocks = clean.blocks.copy().reshape(32, -1, INFO[fmt]["block_bytes"])
    blocks[19, -1, at : at + 2] = np.frombuffer(np.uint16(half).tobytes(), np.uint8)
    broken = Packed(device, fmt, matrix, blocks.reshape(32, -1))
    for tokens in (1, 9):
        x = normal(rng, tokens, 1, 512)
        (got,), (expected,) = run(device, x, [broken]), run(device, x, [clean])
        assert not np.isfinite(got[..., 19]).any()
        assert np.array_equal(np.delete(got, 19, 2), np.delete(expected, 19, 2))


def test_extreme_codes_are_summed_exactly(device, plainly, rng):
    """Integer sums of the largest codes of every format and of activations are exact."""
    for fmt in QUANTIZED:
        blocks = np.full((16, 2 * INFO[fmt]["block_bytes"]), 0xFF, np.uint8)
        cols = 2 * INFO[fmt]["block"]
        view = blocks.reshape(16, 2, -1)
        at = {"q6_k": [208], "q4_k": [0, 2], "q5_k": [0, 2]}.get(fmt, [0])
        for a in at:
            view[..., a : a + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        if fmt == "q8_0":
            view[..., 2:] = 0x80
        w = Packed(device, fmt, np.empty((16, cols)), blocks)
        for tokens in (1, 5):
            x = np.full((tokens, 1, cols), -127, np.float32)
            x[:, :, ::2] *= rng.choice([-1, 1], (tokens, 1, cols // 2))
            x[0] = 127
            (got,) = run(device, x, [w])
            assert np.allclose(got, plainly(expected_rows, x, w), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 4, 6, 16])
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_access_is_sound(checked, rng, fmt, tokens):
    """No access beside a buffer, no race, nothing read that was not written; and whole sectors and different banks."""
    w, heads = Packed(checked, fmt, normal(rng, 34, 300)), Packed(checked, fmt, normal(rng, 3, 20, 40))
    run(checked, normal(rng, tokens, 1, 300), [w], [normal(rng, 34)], activation="silu_mul")
    run(checked, normal(rng, tokens, 3, 40), [heads])
    int8_rows(checked, normal(rng, tokens, 1, 300), normal(rng, 300), 1e-6)
    assert checked.unwritten()[0] == 0
    wide, x = Packed(checked, fmt, normal(rng, 32, 2048)), normal(rng, tokens, 1, 2048)
    with checked.traffic() as found:
        run(checked, x, [wide])
    found = [t for t in found if "few_rows" in t["kernel"] and t["bytes"] == 16]
    # 32 bytes beside one another, of q8_0 and of activations, are read by one thread in two halves: the second is in L1. A step
    # takes half a sector of the high bits of q5_k, and copies of high bits meet in banks.
    twice = {"global": wide.floats or tokens <= 4 or fmt == "q5_k", "shared": fmt in ("q5_k", "q6_k")}
    assert found
    for t in found:
        most = 2 if twice[t["memory"]] and (t["memory"], t["access"]) != ("shared", "read") else 1
        assert t["parts"] <= most * t["needed"], t
