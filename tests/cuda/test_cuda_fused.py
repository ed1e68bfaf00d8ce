"""Kernels that do the work of several: to the bits of the plain kernels one after another."""

import numpy as np
import pytest
from latent_layer import Layer
from test_cuda_latent import absorbed, filled
from weights import ACTIVATIONS, FORMATS, Packed, int8_rows, normal

from ivlite import _C, ops

COUNTERS = 64


class Rows:
    """A product of few rows and the rows that it makes of its outputs for the next one."""

    def __init__(self, device, w, outputs, tokens, norm=None, floats=False):
        self.device, self.w, self.tokens, self.outputs = device, w, tokens, outputs
        self.norm, self.floats = norm, device.empty((tokens, outputs)) if floats else None
        self.codes = None if floats else device.empty(device.cuda.int8_bytes(1, tokens, outputs), np.uint8)
        self.arrived = device.array(np.zeros(COUNTERS, np.int32))
        assert device.cuda.next_runs(outputs) <= COUNTERS
        pointers = [0 if b is None else b.pointer for b in (self.codes, self.floats, norm)]
        self.next = self.arrived.pointer, *pointers, 1e-6

    def run(self, x, activation="none", before=None):
        """The outputs (tokens, outputs) of x (tokens, heads, cols)."""
        tokens, heads, cols = x.shape
        each = self.outputs // heads
        y = self.device.empty((tokens, self.outputs))
        y.set(np.full(y.shape, np.nan if before is None else before, np.float32))
        self.device.cuda.few_rows(
            [(*self.w.args, y.pointer, self.outputs, each, 0)], int8_rows(self.device, x).pointer,
            self.device.array(x).pointer, heads * cols, cols, tokens, ACTIVATIONS.index(activation), before is not None,
            self.next, 0,
        )  # fmt: skip
        assert not self.arrived.numpy().any(), "counters are as they were"
        return y.numpy()

    def expected(self, y):
        """The codes of outputs, by kernels of their own."""
        norm = None if self.norm is None else self.norm.numpy()
        return int8_rows(self.device, y[:, None], norm, 1e-6).numpy()


def check(device, rng, w, outputs, tokens, activation="none", before=None, normed=False):
    norm = device.array(normal(rng, outputs)) if normed else None
    rows = Rows(device, w, outputs, tokens, norm)
    for _ in range(2):
        y = rows.run(normal(rng, tokens, w.heads, w.cols), activation, before)
        assert np.isfinite(y).all() and np.array_equal(rows.codes.numpy(), rows.expected(y))


# Columns of which 1, 2, 4 and 8 warps of a block share a tile: then blocks have 128, 64, 32 and 16 rows.
WIDTHS = {"floats": (96, 256, 512, 1100), "quantized": (256, 1100, 2080, 4100)}


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rows", [1, 20, 32, 150, 300])
@pytest.mark.parametrize("fmt", ["f16", "q4_k", "q8_0"])
def test_outputs_rounded_for_the_next_product(device, rng, fmt, rows, normed):
    for i, cols in enumerate(WIDTHS["floats" if fmt == "f16" else "quantized"]):
        w = Packed(device, fmt, normal(rng, rows, cols))
        check(device, rng, w, rows, 1 + i, before=3 if normed else None, normed=normed)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_every_format_and_number_of_tokens(device, rng, fmt, tokens):
    w = Packed(device, fmt, normal(rng, 66, 300))
    check(device, rng, w, 66, tokens)
    check(device, rng, w, 66, tokens, before=2, normed=True)
    check(device, rng, w, 33, tokens, "silu_mul")


@pytest.mark.parametrize("rows", [2, 34, 100, 640])
@pytest.mark.parametrize("cols", [256, 4100])
def test_gated_outputs(device, rng, rows, cols):
    """Tiles have 8 outputs: four blocks complete a group."""
    check(device, rng, Packed(device, "q4_0", normal(rng, rows, cols)), rows // 2, 3, "silu_mul")


@pytest.mark.parametrize("rows", [32, 96, 128])
@pytest.mark.parametrize("cols", [40, 900, 2080, 4100])
def test_outputs_of_heads(device, rng, rows, cols):
    check(device, rng, Packed(device, "q8_0", normal(rng, 3, rows, cols)), 3 * rows, 2)


@pytest.mark.parametrize("tokens", [1, 3, 4])
@pytest.mark.parametrize("cols", [96, 1100])
def test_normed_floats_for_float_weights(device, rng, tokens, cols):
    outputs = 150
    w, norm = Packed(device, "bf16", normal(rng, outputs, cols)), device.array(normal(rng, outputs))
    rows = Rows(device, w, outputs, tokens, norm, floats=True)
    y = rows.run(normal(rng, tokens, 1, cols), before=1)
    at, out = device.array(y), device.empty(y.shape)
    device.cuda.rms_norm((out.pointer, outputs), (at.pointer, outputs), norm.pointer, outputs, tokens, 1e-6, 0)
    assert np.array_equal(rows.floats.numpy(), out.numpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_next_product(device, rng, bad):
    w, norm = Packed(device, "q8_0", normal(rng, 66, 600)), device.array(normal(rng, 66))
    for given in (None, norm):
        rows, x = Rows(device, w, 66, 2, given), normal(rng, 2, 1, 600)
        x[1, 0, 5] = bad
        y = rows.run(x)
        assert not np.isfinite(y[1]).any() and np.array_equal(rows.codes.numpy(), rows.expected(y))


def test_what_cannot_be_rounded_is_refused(device, rng):
    w = Packed(device, "q8_0", normal(rng, 3, 40, 64))
    with pytest.raises(ValueError, match="cannot be rounded"):
        check(device, rng, w, 120, 1)
    with pytest.raises(ValueError, match="cannot be rounded"):
        check(device, rng, Packed(device, "q8_0", normal(rng, 40, 64)), 40, 5)


class Prepared:
    """The queries of a layer, made ready beside its append and by kernels of their own."""

    def __init__(self, device, rng, kind, tokens, heads, nope, rope, interleaved, rounded=True):
        q = normal(rng, tokens, heads, nope + rope)
        at, turned = device.array(q), device.empty((tokens, heads, rope))
        angles = rng.uniform(-3, 3, (tokens, rope // 2)).astype(np.float32)
        cos, sin = device.array(np.cos(angles)).pointer, device.array(np.sin(angles)).pointer
        codes = device.empty(device.cuda.int8_bytes(heads, tokens, nope), np.uint8) if rounded else None
        steps = heads * (nope + rope), nope + rope
        self.layer = Layer(device, kind, 48, rope, tokens)
        queries = (at.pointer, *steps), heads, nope, turned.pointer, codes.pointer if rounded else 0
        self.rows = normal(rng, tokens, 48), normal(rng, tokens, rope)
        self.layer.append(*self.rows, angles=(cos, sin), interleaved=interleaved, queries=queries)
        alone = device.empty((tokens, heads, rope))
        device.cuda.rope(alone.pointer, (at.pointer + 4 * nope, *steps), cos, sin, heads, rope, interleaved, tokens, 0)
        assert np.array_equal(turned.numpy(), alone.numpy())
        if rounded:
            assert np.array_equal(codes.numpy(), int8_rows(device, q[:, :, :nope]).numpy())
        other = Layer(device, kind, 48, rope, tokens)
        other.append(*self.rows, angles=(cos, sin), interleaved=interleaved)
        assert np.array_equal(self.layer.stored(tokens), other.stored(tokens))


@pytest.mark.parametrize("tokens", [1, 3, 5, 8, 9, 16])
@pytest.mark.parametrize("heads, nope, rope", [(1, 1, 2), (3, 33, 18), (8, 100, 34), (9, 32, 64), (33, 128, 128)])
def test_queries_beside_an_append(device, rng, tokens, heads, nope, rope):
    kind = ops.CACHE_KINDS[(tokens + heads) % 4]
    for interleaved in (False, True):
        Prepared(device, rng, kind, tokens, heads, nope, rope, interleaved, rounded=tokens != 3)


@pytest.mark.parametrize("kind", ops.CACHE_KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 5, 9, 16])
@pytest.mark.parametrize("rank", [33, 128, 200, 896])
def test_attention_rounded_for_the_next_product(device, rng, kind, tokens, rank):
    heads, rope = 3, 16
    cache, _, _ = filled(device, rng, kind, rank, rope, 40 + tokens, tokens)
    ql, qr = normal(rng, tokens, heads, rank), normal(rng, tokens, heads, rope)
    expected = int8_rows(device, absorbed(cache, ql, qr, 0.1, 2)).numpy()
    codes = device.empty(device.cuda.int8_bytes(heads, tokens, rank), np.uint8)
    one = device.cuda.absorbed_query_floats(heads, rank, 2)
    for room in (tokens * one, one):  # all queries in one launch, and one by one
        absorbed(cache, ql, qr, 0.1, 2, room, codes)
        assert np.array_equal(codes.numpy(), expected)


@pytest.mark.parametrize("tokens", [1, 4])
def test_every_access_is_sound(checked, rng, tokens):
    """Blocks that others complete the work of do not race with them."""
    for w, outputs, activation in (
        (Packed(checked, "q4_k", normal(rng, 70, 4100)), 35, "silu_mul"),
        (Packed(checked, "q8_0", normal(rng, 2, 64, 600)), 128, "none"),
        (Packed(checked, "f16", normal(rng, 40, 600)), 40, "none"),
    ):
        check(checked, rng, w, outputs, tokens, activation)
        if w.heads == 1 and activation == "none":
            check(checked, rng, w, outputs, tokens, before=1, normed=True)
    Prepared(checked, rng, "q8", 3 * tokens, 9, 40, 18, True)
    cache, _, _ = filled(checked, rng, "q8", 200, 16, 20, tokens)
    ql, qr = normal(rng, tokens, 2, 200), normal(rng, tokens, 2, 16)
    codes = checked.empty(checked.cuda.int8_bytes(2, tokens, 200), np.uint8)
    absorbed(cache, ql, qr, 0.1, 2, codes=codes)
    assert checked.unwritten() == (0, "")


@pytest.mark.skipif(not hasattr(_C, "testing"), reason="this build has no functions for tests")
def test_codes_are_those_of_the_cpu(device, plainly, rng):
    """What a product leaves for the next one is what the CPU would make of the same outputs."""
    w = Packed(device, "q8_0", normal(rng, 256, 64))
    rows = Rows(device, w, 256, 1)
    y = rows.run(normal(rng, 1, 1, 64))
    q, scale, *_ = plainly(_C.testing.quantize_rows, y)
    raw = rows.codes.numpy()
    found = np.empty((8, 8, 4), np.int8)
    found[:, [0, 4, 1, 5, 2, 6, 3, 7]] = raw[:256].view(np.int8).reshape(8, 8, 4)
    assert np.array_equal(found.reshape(-1), q.reshape(-1))
    assert np.array_equal(raw[256:].view(np.dtype([("scale", "<f4"), ("sums", "<i4")]))["scale"], scale.reshape(-1))
