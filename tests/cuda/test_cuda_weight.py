"""Packed weights on the device: what is packed is read back as the CPU decodes it, bit for bit."""

import numpy as np
import pytest
from weights import FORMATS, INFO, QUANTIZED, Packed, blocks_of, decoded, normal

from ivlite import _C


def read(device, w, ids):
    y, at = device.empty((len(ids), w.cols)), device.array(np.asarray(ids, np.int32))
    device.cuda.embedding_rows(y.pointer, w.cols, *w.args, at.pointer, len(ids), 0)
    return y.numpy()


def same_bits(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 31), (17, 32), (16, 33), (5, 70), (2, 144), (19, 256), (3, 300), (2, 5, 40)]
)
@pytest.mark.parametrize("fmt", FORMATS)
def test_rows_are_read_back(device, rng, fmt, shape):
    matrix = normal(rng, *shape)
    w = Packed(device, fmt, matrix, chunk=4)
    assert same_bits(read(device, w, range(w.heads * w.rows)), kept(fmt, w.blocks, w.cols))


def kept(fmt, blocks, cols):
    values = decoded(fmt, blocks, cols)
    return values.astype(np.float16).astype(np.float32) if fmt == "bf16" else values


def test_bf16_is_kept_as_half(device):
    """Exactly from 2^-14 to 65504; smaller numbers are 2^-25 away at most, larger ones end there, what is no number stays."""
    exact = np.float32([[2.0**-14, 1.5, -0.0078125, 65280, 2.0**-24, 0]])
    others = np.float32([[1e5, -3e38, np.inf, -np.inf, np.nan, 3e-5]])
    w = Packed(device, "bf16", np.concatenate([exact, others]))
    got = read(device, w, [0, 1])
    assert same_bits(got[0], exact[0])
    assert np.array_equal(got[1, :5], [65504, -65504, np.inf, -np.inf, np.nan], equal_nan=True)
    assert abs(got[1, 5] - decoded("bf16", w.blocks, 6)[1, 5]) <= 2.0**-25


@pytest.mark.parametrize("fmt", QUANTIZED)
def test_any_bytes_are_a_weight(device, rng, fmt):
    """Every code, scale and minimum, and scales that are infinite or NaN."""
    blocks = rng.integers(0, 256, (24, 2 * INFO[fmt]["block_bytes"]), np.uint8)
    w = Packed(device, fmt, np.empty((24, 2 * INFO[fmt]["block"])), blocks)
    got, expected = read(device, w, range(24)), decoded(fmt, blocks, w.cols)
    bad = np.isnan(expected)
    assert np.array_equal(np.isnan(got), bad) and same_bits(got[~bad], expected[~bad])


@pytest.mark.parametrize("fmt", ["f32", "q4_k"])
def test_rows_in_any_order(device, rng, fmt):
    w = Packed(device, fmt, normal(rng, 9, 64))
    ids = [3, 3, 8, 0, 9, -1, 2**31 - 1]
    got, expected = read(device, w, ids), decoded(fmt, w.blocks, 64)
    assert same_bits(got[:4], expected[ids[:4]]) and np.isnan(got[4:]).all()
    assert read(device, w, []).shape == (0, 64)


@pytest.mark.parametrize("fmt", FORMATS)
def test_padding_of_rows_is_left_out(device, rng, fmt):
    """Rows of blocks may be longer than a row of the weight."""
    blocks = blocks_of(fmt, normal(rng, 4, 512))
    w = Packed(device, fmt, np.empty((4, 40)), blocks)
    assert same_bits(read(device, w, range(4)), kept(fmt, blocks, 40))


def test_bytes_of_a_weight(device):
    """Planes have so many bits per weight that the 8B model's sizes follow from them."""
    bits = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q6_k": 6.5625, "q5_k": 5.625, "q4_k": 4.625, "q4_0": 4.5}
    for code, f in enumerate(_C.formats()):
        assert device.cuda.device_weight_bytes(code, 1, 4096, 12288) == bits[f["name"]] * 4096 * 12288 / 8
