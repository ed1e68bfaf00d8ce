"""Block formats against the gguf package: decoding bit for bit, encoding byte for byte."""

import numpy as np
import pytest

from ivlite import _C

gguf = pytest.importorskip("gguf")

FORMATS = {f["name"]: f for f in _C.formats()}


def sample(rng, n):
    x = rng.standard_normal(n).astype(np.float32)
    x[:32] = 0
    x[32:64] *= 1e-6
    x[64:96] *= 3000
    x[96:128] = -x[96]  # all equal
    x[128:256] = rng.integers(-254, 255, 128) / 2  # codes that lie half way
    x[128::32][:4] = 127, -127, 127, -127
    x[131::32][:4] = -127, 127, 127, -127  # the first of equal magnitudes counts
    return x


def kind(name):
    return gguf.GGMLQuantizationType(FORMATS[name]["ggml_type"])


@pytest.mark.parametrize("name", FORMATS)
def test_the_table_is_the_standard_s(name):
    block, size = gguf.GGML_QUANT_SIZES[kind(name)]
    assert (FORMATS[name]["block"], FORMATS[name]["block_bytes"]) == (block, size)
    assert kind(name).name.lower() == name


@pytest.mark.parametrize("name", FORMATS)
def test_decoding_is_bit_for_bit(name, rng):
    data = _C.encode(name, sample(rng, 256 * 50))
    expected = gguf.dequantize(data.reshape(50, -1), kind(name)).reshape(-1)
    assert np.array_equal(_C.decode(name, data, 256 * 50).view(np.uint32), expected.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("name", [n for n in FORMATS if not n.endswith("_k")])  # that package encodes no K format
def test_encoding_is_the_package_s(name, rng):
    x = sample(rng, 32 * 50)
    expected = gguf.quantize(x.reshape(50, 32), kind(name)).view(np.uint8).reshape(-1)
    assert np.array_equal(_C.encode(name, x), expected)


def relative_error(name, x, costs, importance):
    """Weighted RMSE of the encoded rows over the weighted RMS of the rows."""
    data = _C.encode(name, x.reshape(-1), importance)
    squared = (x - _C.decode(name, data, x.size).reshape(x.shape)).astype(np.float64) ** 2
    return ((squared * costs).sum() / (x.astype(np.float64) ** 2 * costs).sum()) ** 0.5


# What llama.cpp's encoders leave of gaussian rows, with and without importance (benchmarks/encoders.py).
@pytest.mark.parametrize("name, most, weighted", [
    ("q6_k", 0.0177, 0.0123), ("q5_k", 0.0361, 0.0238), ("q4_k", 0.0713, 0.0451), ("q4_0", 0.0865, 0.0600)])  # fmt: skip
def test_encoders_search(name, most, weighted):
    rng = np.random.default_rng(1)
    costs = rng.lognormal(0, 1.2, 4096)
    costs[rng.random(4096) < 0.005] *= 100
    x = rng.standard_normal((64, 4096)).astype(np.float32)
    assert relative_error(name, x, np.ones(4096), None) < most * 1.002
    assert relative_error(name, x, costs, costs.astype(np.float32)) < weighted


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q5_k", "q4_k", "q4_0"])
def test_any_bytes_decode_as_the_package_decodes_them(name, rng):
    size, block = FORMATS[name]["block_bytes"], FORMATS[name]["block"]
    data = rng.integers(0, 256, (200, size), np.uint8)
    for at in {"q6_k": (209,), "q5_k": (1, 3), "q4_k": (1, 3)}.get(name, (1,)):
        data[:, at] &= 0x7B  # scales that are finite and positive
    expected = gguf.dequantize(data, kind(name)).reshape(-1)
    assert np.array_equal(_C.decode(name, data.reshape(-1), 200 * block), expected)


def test_every_half_survives_a_round_trip():
    bits = np.arange(65536, dtype=np.uint16)
    for name, expected in (
        ("f16", bits.view(np.float16).astype(np.float32)),
        ("bf16", (bits.astype(np.uint32) << 16).view(np.float32)),
    ):
        decoded = _C.decode(name, bits.view(np.uint8), 65536)
        assert np.array_equal(decoded, expected, equal_nan=True)
        number = ~np.isnan(expected)
        assert np.array_equal(_C.encode(name, decoded).view(np.uint16)[number], bits[number])


def test_rounding_is_to_nearest_even(rng):
    x = (rng.integers(0, 2**32, 200000, np.uint64).astype(np.uint32)).view(np.float32)
    x = x[np.isfinite(x)]
    with np.errstate(over="ignore"):
        assert np.array_equal(_C.encode("f16", x).view(np.float16), x.astype(np.float16))


@pytest.mark.parametrize("call", [
    lambda: _C.encode("q8_0", np.zeros(33, np.float32)),
    lambda: _C.decode("q8_0", np.zeros(33, np.uint8), 32),
    lambda: _C.decode("f32", np.zeros(8, np.uint8), 3),
    lambda: _C.decode("f32", np.zeros(0, np.uint8), -1),
    lambda: _C.encode("q9_0", np.zeros(32, np.float32)),
])  # fmt: skip
def test_wrong_sizes_and_names_are_refused(call):
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize("shape, count", [((1, 1, 1), 1), ((2, 40, 70), 33), ((3, 128, 300), 128), ((5, 7, 256), 3)])
@pytest.mark.parametrize("into", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("fmt", [f["name"] for f in _C.formats()])
def test_transposed_rows_are_what_numpy_makes_of_them(fmt, into, shape, count):
    block = {f["name"]: f["block"] for f in _C.formats()}
    heads, rows, cols = shape
    padded, width = (-(-n // block[name]) * block[name] for n, name in ((cols, fmt), (count, into)))
    matrix = np.zeros((heads, rows, padded), np.float32)
    matrix[..., :cols] = np.random.default_rng(0).standard_normal(shape)
    data = _C.encode(fmt, matrix.reshape(-1))
    decoded = _C.decode(fmt, data, matrix.size).reshape(matrix.shape)[:, :count, :cols]
    expected = np.zeros((heads, cols, width), np.float32)
    expected[..., :count] = decoded.swapaxes(1, 2)
    got = _C.transposed(fmt, data, *shape, count, into)
    assert np.array_equal(got, _C.encode(into, expected.reshape(-1)))


@pytest.mark.parametrize(
    "shape, count", [((0, 4, 32), 1), ((1, 4, 32), 5), ((1, 4, 32), 0), ((2, 4, 32), 4), ((1, 1 << 30, 32), 1)]
)
def test_what_cannot_be_transposed_is_refused(shape, count):
    with pytest.raises(ValueError):
        _C.transposed("q8_0", np.zeros(4 * 34, np.uint8), *shape, count, "q8_0")
