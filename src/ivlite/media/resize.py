"""Resizing of pictures: the target size, and the resampling."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from ivlite import _C
from ivlite.errors import MediaError
from ivlite.media.source import MAX_PIXELS

MAX_ASPECT = 200
QUARTERS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
)  # the transpositions that swap width and height
WHOLE = 1 << 24  # most pixels of an image that is turned and converted as a whole
BAND = 1 << 22  # pixels at a time of a larger image


def fitted(height, width, factor, min_pixels, max_pixels, what):
    """Height and width as multiples of `factor`, near the picture's shape, with min_pixels <= area <= max_pixels.

    `what` names the picture in messages. Raises MediaError for empty and for extreme shapes.
    """
    if min(height, width) < 1:
        raise MediaError(f"{what} has no pixels ({width}x{height}): give another file")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise MediaError(f"{what} is {width}x{height}, more than {MAX_ASPECT} times as long as wide: crop it")
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h = max(factor, math.floor(height / shrink / factor) * factor)
        w = max(factor, math.floor(width / shrink / factor) * factor)
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    if h * w > MAX_PIXELS:
        raise MediaError(f"{what} would be resized to {w}x{h}, beyond {MAX_PIXELS >> 20} megapixels: lower the pixels")
    return h, w


def check_pixels(height, width, what):
    """Raises MediaError for a picture that is too large to decode."""
    if height * width > MAX_PIXELS:
        limit = MAX_PIXELS >> 20
        raise MediaError(f"{what} is {width}x{height}, beyond the limit of {limit} megapixels: make it smaller first")


resizer = lru_cache(maxsize=16)(_C.Resizer)  # of (height, width) before and after


def resized(pixels, size):
    """uint8 (H, W, 3) of `size` (H, W), bicubic with antialiasing, from uint8 (h, w, 3) or a PIL image in RGB.

    Pixels may be any view of an array whose three channels lie side by side; the result may be the same array.
    """
    if isinstance(pixels, Image.Image):
        if pixels.size != (size[1], size[0]):
            pixels = pixels.resize((size[1], size[0]), Image.Resampling.BICUBIC)
        return np.asarray(pixels)
    if pixels.shape[:2] == tuple(size):
        return pixels
    out = np.empty((*size, 3), np.uint8)
    resizer(*pixels.shape[:2], *size).run(out, pixels)
    return out


def shown(image, size, turn=None, convert=lambda part: part):
    """uint8 (H, W, 3) of `size`, of a PIL image of any mode that `turn` (a Transpose) and `convert` make upright RGB.

    Images above WHOLE are turned, converted and resized in width band by band, which takes little extra memory. The last
    bits may differ from those of resizing at once, since Pillow may resize the columns first.
    """
    if image.width * image.height <= WHOLE:
        return resized(convert(image if turn is None else image.transpose(turn)), size)
    height, width = size
    rows = image.width if turn in QUARTERS else image.height
    step = max(1, BAND * rows // (image.width * image.height))
    narrow = Image.new("RGB", (width, rows))
    for top in range(0, rows, step):
        part = image.crop(stored_box(image.size, top, min(top + step, rows), turn))
        part = convert(part if turn is None else part.transpose(turn))
        narrow.paste(part.resize((width, part.height), Image.Resampling.BICUBIC), (0, top))
    return resized(narrow, size)


def stored_box(stored, top, bottom, turn):
    """The box of the stored image, of size `stored` (width, height), that holds rows top..bottom of the upright one."""
    width, height = stored
    if turn in (Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270):
        return top, 0, bottom, height
    if turn in (Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90):
        return width - bottom, 0, width - top, height
    if turn in (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180):
        return 0, height - bottom, width, height - top
    return 0, top, width, bottom
