import numpy as np
import pytest

from ivlite import _C


def rotated(make, x, cos, sin, interleaved):
    y = make(x.shape)
    _C.rope(y, x, cos, sin, interleaved)
    return y.copy()


def plain_out(shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("d", [2, 4, 6, 8, 14, 16, 18, 30, 32, 34, 64, 72, 128])
def test_rope(isa, plainly, guarded, rng, d, interleaved):
    x = rng.standard_normal((5, 3, d + 5), dtype=np.float32)[:, :, 3 : 3 + d]
    angles = rng.uniform(-9, 9, (5, d // 2)).astype(np.float32)
    args = x, np.cos(angles), np.sin(angles), interleaved
    assert np.allclose(rotated(guarded, *args), plainly(rotated, plain_out, *args), atol=1e-6)


def test_plain_rope_rotates_pairs(plainly, rng):
    x = rng.standard_normal((4, 1, 6)).astype(np.float32)
    angles = rng.uniform(-3, 3, (4, 3)).astype(np.float32)
    for interleaved, first, second in ((True, slice(0, 6, 2), slice(1, 6, 2)), (False, slice(0, 3), slice(3, 6))):
        z = (x[:, 0, first] + 1j * x[:, 0, second]) * np.exp(1j * angles)
        got = plainly(rotated, plain_out, x, np.cos(angles), np.sin(angles), interleaved)[:, 0]
        assert np.allclose(got, np.concatenate([z.real, z.imag], 1), atol=1e-5)


def test_odd_dimensions_are_refused():
    x = np.zeros((1, 1, 3), np.float32)
    with pytest.raises(ValueError, match="even"):
        _C.rope(x.copy(), x, x[0, :, :1], x[0, :, :1], True)
