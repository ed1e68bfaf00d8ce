import numpy as np
import pytest

from ivlite import _C

WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1152]


def norms(make, x, w, b):
    rms, layer = make(x.shape, margin=2), make(x.shape)
    _C.rms_norm(rms, x, w, 1e-6)
    _C.layer_norm(layer, x, w, b, 1e-6)
    return rms.copy(), layer.copy()


def plain_out(shape, margin=0):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("n", WIDTHS)
def test_norms(isa, plainly, guarded, rng, n):
    x = rng.standard_normal((5, n + 3), dtype=np.float32)[:, :n] * 4 + 1
    w, b = rng.standard_normal((2, n), dtype=np.float32)
    for got, expected in zip(norms(guarded, x, w, b), plainly(norms, plain_out, x, w, b), strict=True):
        assert np.allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_plain_norms_are_their_formulas(plainly, rng):
    x = rng.standard_normal((3, 40)).astype(np.float32)
    w, b = rng.standard_normal((2, 40)).astype(np.float32)
    rms, layer = plainly(norms, plain_out, x, w, b)
    d = x.astype(np.float64)
    assert np.allclose(rms, d / np.sqrt((d**2).mean(1, keepdims=True) + 1e-6) * w, atol=1e-6)
    centred = d - d.mean(1, keepdims=True)
    assert np.allclose(layer, centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * w + b, atol=1e-6)


def test_a_large_offset_does_not_cancel(isa, plainly, guarded, rng):
    x = rng.standard_normal((2, 1152)).astype(np.float32) + 1000
    w, b = np.ones(1152, np.float32), np.zeros(1152, np.float32)
    got, expected = norms(guarded, x, w, b)[1], plainly(norms, plain_out, x, w, b)[1]
    assert np.allclose(got, expected, atol=2e-3)


def test_constant_rows(isa, guarded):
    x, w = np.full((1, 33), 2, np.float32), np.ones(33, np.float32)
    rms, layer = norms(guarded, x, w, w)
    assert np.allclose(rms, 1, atol=1e-5) and np.allclose(layer, 1, atol=1e-3)
