import numpy as np
import pytest

from ivlite import _C

MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.25, 0.2]


def patches(make, frames, patch, merge):
    t, h, w, _ = frames.shape
    y = make((h * w // patch**2, 3 * t * patch**2))
    _C.patchify(y, frames, patch, merge, MEAN, STD)
    return y.copy()


def plain_out(shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("patch, merge", [(16, 2), (14, 2), (4, 1), (5, 3), (7, 2)])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize("temporal", [1, 2])
def test_patchify(isa, plainly, guarded, rng, patch, merge, blocks, temporal):
    h, w = (n * patch * merge for n in blocks)
    frames = rng.integers(0, 256, (temporal, h, w, 3), np.uint8)
    assert np.allclose(
        patches(guarded, frames, patch, merge), plainly(patches, plain_out, frames, patch, merge), atol=2e-6
    )


def test_plain_patchify_is_the_transposition(plainly, rng):
    frames = rng.integers(0, 256, (2, 64, 96, 3), np.uint8)
    x = (frames / 255 - MEAN) / STD
    x = x.reshape(2, 2, 2, 16, 3, 2, 16, 3).transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(24, -1)
    assert np.allclose(plainly(patches, plain_out, frames, 16, 2), x, atol=1e-6)


def test_frames_that_are_not_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="whole blocks"):
        _C.patchify(np.zeros((4, 1536), np.float32), np.zeros((2, 32, 40, 3), np.uint8), 16, 2, MEAN, STD)
