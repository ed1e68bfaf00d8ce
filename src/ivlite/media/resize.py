"""To what size a picture is resized, and the resizing."""

import math

import numpy as np
from PIL import Image

from ivlite.errors import MediaError
from ivlite.media.source import MAX_PIXELS

MAX_ASPECT = 200


def fitted(height, width, factor, min_pixels, max_pixels, what):
    """Height and width as multiples of `factor`, near the picture's shape, with min_pixels <= area <= max_pixels.

    `what` names the picture in messages. Raises MediaError for shapes that make no sense.
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
    """Refuses a picture that is too large to decode, before it is decoded. Raises MediaError."""
    if height * width > MAX_PIXELS:
        limit = MAX_PIXELS >> 20
        raise MediaError(f"{what} is {width}x{height}, beyond the limit of {limit} megapixels: make it smaller first")


def resized(pixels, size):
    """uint8 (H, W, 3) of `size` (H, W), bicubic with antialiasing, from uint8 (h, w, 3) or a PIL image in RGB."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    if image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)
