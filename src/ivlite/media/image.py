"""Images: files, PIL images and arrays, as upright RGB."""

import warnings

import numpy as np
from PIL import Image, ImageOps

from ivlite.errors import MediaError, UsageError
from ivlite.media.medium import Medium
from ivlite.media.resize import check_pixels, fitted, resized
from ivlite.media.source import MAX_PIXELS, local_path

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")


class StillImage(Medium):
    """An image: one picture, the same in every slot of its only pair."""

    def __init__(self, load, *args, **more):
        super().__init__(*args, **more)
        self._load = load

    def pictures(self):
        yield resized(self._load(), self.size)


def open_image(source, *, min_pixels, max_pixels, factor=32, patch_size=16, temporal=2):
    """Opens an image: a path, a file:// URI, a PIL image or uint8 (H, W, 3). Returns a Medium of kind "image".

    min_pixels, max_pixels: of the resized image, whose sides are multiples of `factor`. The file is decoded once here,
    so that damage is known before the model starts. Raises MediaError (the file), UsageError (the argument).
    """
    load, name, notes = loader(source, "image")
    width, height = load().size
    size = fitted(height, width, factor, min_pixels, max_pixels, f"image {name}")
    return StillImage(
        load, "image", name, size, [0], [], None, patch_size=patch_size, temporal=temporal, warnings=notes
    )


def loader(source, kind):
    """(load, name, warnings): load() returns an upright RGB PIL image. Raises UsageError, MediaError."""
    if isinstance(source, Image.Image):
        check_pixels(source.height, source.width, f"the {kind}")
        return lambda: upright(source), f"<{source.width}x{source.height}>", []
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
            raise UsageError(f"the {kind} is {source.dtype} {source.shape}; an array must be uint8 (height, width, 3)")
        check_pixels(*source.shape[:2], f"the {kind}")
        return lambda: Image.fromarray(source), f"<{source.shape[1]}x{source.shape[0]}>", []
    path, name = local_path(source, kind)
    notes = []
    with_file(path, name, kind, lambda image: notes.extend(remarks(image, name)))
    return lambda: with_file(path, name, kind, upright), name, notes


def remarks(image, name):
    if image.format in ANIMATED and getattr(image, "is_animated", False):
        advice = "; give it as a video to use the others" if image.format == "GIF" else ""
        yield f"image {name} is animated: only its first frame is used{advice}"
    elif image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        yield f"image {name} has {image.n_frames} pages: only the first is used"


def with_file(path, name, kind, use):
    """use(image) of an image file whose size has been checked; the errors of Pillow as MediaError."""
    what = f"{kind} {name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: metadata it could not read, and sizes that we check ourselves
            with Image.open(path, formats=[f for f in FORMATS if f in known()]) as image:
                check_pixels(image.height, image.width, what)
                return use(image)
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS >> 20
        raise MediaError(f"{what} is beyond the limit of {limit} megapixels: make it smaller first") from error
    except Image.UnidentifiedImageError as error:
        raise MediaError(f"{what} is not an image ivlite reads ({', '.join(FORMATS)}): convert it") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError, ...
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise MediaError(f"{what} is damaged or cut off ({reason}): copy or export it again") from error


def known():
    Image.init()
    return Image.OPEN


def upright(image):
    """A copy as RGB: turned as its EXIF says, transparency on white, 16 bits cut to 8."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(grey(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def grey(values):
    """uint8 of deeper grey values: 16-bit integers by their upper byte, floats in 0..1 by their share."""
    values = np.nan_to_num(values)
    if values.dtype.kind == "f":
        return np.clip(values * (255 if values.max() <= 1 else 1), 0, 255).astype(np.uint8)
    return (np.clip(values, 0, 65535) // 257 if values.max() > 255 else np.clip(values, 0, 255)).astype(np.uint8)
