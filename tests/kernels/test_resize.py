"""Resizing gives Pillow's bytes, on every instruction set, from arrays of any strides, and touches nothing else."""

import numpy as np
import PIL
import pytest
from PIL import Image

from ivlite import _C

SIZES = [  # height and width before and after
    ((1080, 1920), (256, 480)), ((64, 96), (64, 96)), ((64, 96), (32, 96)), ((64, 96), (64, 128)), ((1, 1), (32, 32)),
    ((3, 700), (32, 64)), ((700, 3), (64, 32)), ((33, 2), (32, 32)), ((47, 63), (96, 128)), ((480, 17), (32, 32)),
    ((5, 5), (1, 1)), ((2, 2), (3, 160)), ((240, 426), (224, 416)), ((31, 1000), (64, 32)),
]  # fmt: skip


def pillow(pixels, size):
    """One axis after the other, in the order in which Pillow 13 takes both."""
    image, (height, width) = Image.fromarray(pixels), size
    down_first = height < image.height and image.height - height > 2 * (image.width - width)
    for step in ((image.width, height) if down_first else (width, image.height), (width, height)):
        image = image.resize(step, Image.Resampling.BICUBIC)
    return np.asarray(image)


def resized(pixels, size, make=lambda shape: np.zeros(shape, np.uint8)):
    out = make((*size, 3))
    _C.Resizer(*pixels.shape[:2], *size).run(out, pixels)
    return out


@pytest.mark.parametrize("before, after", SIZES)
def test_pillows_bytes(isa, rng, before, after):
    for pixels in (rng.integers(0, 256, (*before, 3), np.uint8), rng.integers(0, 2, (*before, 3), np.uint8) * 255):
        assert np.array_equal(resized(pixels, after), pillow(pixels, after))


def test_pillows_bytes_at_random_sizes(isa, rng):
    for _ in range(150):
        before, after = (tuple(int(n) for n in 2 ** rng.uniform(0, 8.5, 2)) for _ in range(2))
        pixels = rng.integers(0, 256, (*before, 3), np.uint8)
        assert np.array_equal(resized(pixels, after), pillow(pixels, after)), (before, after)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="an older Pillow always takes the width first")
def test_the_order_of_both_axes_is_pillows(rng):
    for _ in range(200):
        before, after = (tuple(int(n) for n in 2 ** rng.uniform(0, 8.5, 2)) for _ in range(2))
        pixels = rng.integers(0, 256, (*before, 3), np.uint8)
        whole = np.asarray(Image.fromarray(pixels).resize(after[::-1], Image.Resampling.BICUBIC))
        assert np.array_equal(resized(pixels, after), whole), (before, after)


VIEWS = {
    "rows apart": lambda a: a[:, :70], "pixels apart": lambda a: a[:, ::2], "upside down": lambda a: a[::-1],
    "mirrored": lambda a: a[:, ::-1], "turned": lambda a: a.transpose(1, 0, 2)[::-1], "four bytes": lambda a: a[:, 3:-3],
    "one row": lambda a: np.broadcast_to(a[:1], (9, *a.shape[1:])), "one pixel": lambda a: np.broadcast_to(a[:1, :1], a.shape),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [(32, 64), (64, 32), (9, 50), (100, 100)])
def test_views(isa, rng, name, size):
    view = VIEWS[name](rng.integers(0, 256, (61, 97, 3), np.uint8))
    for after in (size, (view.shape[0], size[1]), (size[0], view.shape[1]), view.shape[:2]):
        assert np.array_equal(resized(view, after), pillow(np.ascontiguousarray(view), after))


@pytest.mark.parametrize("before, after", SIZES[1:9])
def test_nothing_beyond_the_picture_is_read_or_written(isa, rng, before, after):
    """What lies around the picture changes no byte of the result, and what lies around the result stays."""
    pixels = rng.integers(0, 256, (*before, 3), np.uint8)
    inside = np.zeros((before[0] + 2, before[1], 3), np.uint8)
    inside[1:-1], inside[0], inside[-1] = pixels, 255, 255
    outside = np.full((after[0] + 2, after[1], 3), 77, np.uint8)
    _C.Resizer(*before, *after).run(outside[1:-1], inside[1:-1])
    assert np.array_equal(outside[1:-1], pillow(pixels, after)) and (outside[[0, -1]] == 77).all()


def test_what_does_not_fit_is_refused():
    resizer = _C.Resizer(8, 9, 16, 18)
    good, out = np.zeros((8, 9, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)
    for y, x in (
        (out, good[:, 1:]),
        (out[1:], good),
        (good, good),
        (out, np.zeros((8, 9, 4), np.uint8)),
        (out, good[..., :1]),
    ):
        with pytest.raises(ValueError):
            resizer.run(y, x)
    with pytest.raises(ValueError):
        resizer.run(out, np.zeros((8, 9, 6), np.uint8)[..., ::2])
    for y, x in ((out.astype(np.float32), good), (out, good.astype(np.int16))):
        with pytest.raises(TypeError):
            resizer.run(y, x)
    out.flags.writeable = False
    with pytest.raises(ValueError):
        resizer.run(out, good)
    for sizes in ((0, 1, 1, 1), (1, 1, 1, -1), (1 << 40, 1, 1, 1)):
        with pytest.raises(ValueError):
            _C.Resizer(*sizes)
