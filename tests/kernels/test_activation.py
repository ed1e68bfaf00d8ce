import math

import numpy as np
import pytest

from ivlite import _C

SIZES = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 100, 4304]
EXTREMES = [0, -0.0, 1e-30, -1e-30, 0.5, -0.5, 5, -5, 20, -20, 88, -88, 104, -104, 1000, -1000, 1e20, -1e20]


def apply(make, name, x):
    if name == "silu_mul":
        y = make((len(x), x.shape[1] // 2))
        _C.silu_mul(y, x)
    else:
        y = make(x.shape)
        _C.testing.gelu(y, x, name == "erf")
    return y.copy()


def plain_out(shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("name", ["silu_mul", "tanh", "erf"])
@pytest.mark.parametrize("n", SIZES)
def test_activations(isa, plainly, guarded, rng, name, n):
    x = rng.standard_normal((3, 2 * n)).astype(np.float32) * 4
    assert np.allclose(apply(guarded, name, x), plainly(apply, plain_out, name, x), rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["silu_mul", "tanh", "erf"])
def test_extremes(isa, plainly, guarded, name):
    x = np.array([EXTREMES * 2], np.float32)
    if name == "silu_mul":
        x[:, len(EXTREMES) :] = 1
    got, expected = apply(guarded, name, x), plainly(apply, plain_out, name, x)
    assert np.allclose(got, expected, rtol=3e-6, atol=1e-6)


def test_every_small_step(isa, plainly, guarded):
    x = np.linspace(-12, 12, 20001, dtype=np.float32)[None]
    for name in ("tanh", "erf"):
        assert np.allclose(apply(guarded, name, x), plainly(apply, plain_out, name, x), rtol=0, atol=2e-6)


def test_plain_forms(plainly):
    x = np.array([[-3, -1, 0, 0.3, 1, 4]], np.float32)
    erf = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x[0].tolist()]
    tanh = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x[0].tolist()]
    assert np.allclose(plainly(apply, plain_out, "erf", x), [erf], atol=1e-6)
    assert np.allclose(plainly(apply, plain_out, "tanh", x), [tanh], atol=1e-6)
    gate, up = x[0, :3].astype(np.float64), x[0, 3:]
    assert np.allclose(plainly(apply, plain_out, "silu_mul", x), gate / (1 + np.exp(-gate)) * up, atol=1e-6)
