"""Small pictures of moments of a video as JPEG, and many of them on one sheet."""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ivlite.errors import UsageError
from ivlite.media import probe
from ivlite.media.probe import Probe
from ivlite.numbers import clock, number, whole
from ivlite.stop import checkpoint

ROUNDED = 0.001  # seconds by which a given time may be below its frame's: times are kept with three decimals
QUALITY = 80
CELL, BAR, GAP = 240, 22, 8  # pixels of a sheet: width of a picture, height of the line below it, space between two
WIDEST = 6  # pictures of a row
MOST = 400  # pictures of a sheet: JPEG allows 65,535 pixels a side
PAPER, INK, FAINT = (24, 24, 27), (244, 244, 245), (161, 161, 170)


@dataclass(frozen=True)
class Thumbnail:
    """A frame as a small picture. time: seconds of the frame. index: of the frame in the video. jpeg: the file's bytes."""

    time: float
    index: int
    width: int
    height: int
    jpeg: bytes


@dataclass(frozen=True)
class Item:
    """A picture of a contact sheet. jpeg: of any image format that Pillow reads. time: seconds. score: 0 to 1, or None.

    title: another line, such as the name of the video.
    """

    jpeg: bytes
    time: float
    score: float | None = None
    title: str = ""


def thumbnails(
    source: str | os.PathLike[str] | Probe, times: Iterable[float], longest: int = 320, *, stream: int | None = None
) -> list[Thumbnail]:
    """The frames on screen at given times, in seconds and in any order, with at most `longest` pixels on a side.

    source: a video, an animated image, an image, or its Probe. A time of a frame that the model was shown gives that frame;
    one behind the end gives the last. Each frame is decoded once. Raises MediaError, UsageError, Stopped.
    """
    longest = whole("longest", longest, 1)
    wanted = np.array([number("a time", t, 0) for t in times])
    found = source if isinstance(source, Probe) else probe(source, fps=25, stream=stream)
    found.settle()
    if not len(wanted):
        return []
    at = np.maximum(np.searchsorted(found.times.times, wanted + ROUNDED, "right") - 1, 0)
    chosen = np.unique(at)
    height, width = found.shape
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    pictures = found.open(chosen, size, patch_size=1, temporal=1).pictures()
    made = {}
    for index, picture in zip(chosen.tolist(), pictures, strict=True):
        checkpoint()
        made[index] = Thumbnail(
            float(found.times.times[index]), index, size[1], size[0], jpeg(Image.fromarray(picture))
        )
    return [made[index] for index in at.tolist()]


def jpeg(image: Image.Image) -> bytes:
    """The bytes of a JPEG file of an image."""
    out = io.BytesIO()
    image.convert("RGB").save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def dimensions(data: bytes) -> tuple[int, int]:
    """(height, width) of a picture in a file's bytes."""
    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def pixels(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) of a picture in a file's bytes, resized to `size` (H, W)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS))


def contact_sheet(items: Sequence[Item], width: int = CELL) -> bytes:
    """A sheet of pictures in rows as JPEG, with the time and the score of each written below it.

    width: pixels of one picture; all have the height of the highest. Raises UsageError for none or for too many.
    """
    if not 1 <= len(items) <= MOST:
        raise UsageError(f"a contact sheet has 1 to {MOST} pictures, and {len(items)} are given")
    pictures = [fitting(item.jpeg, width) for item in items]
    bar = BAR * (2 if any(item.title for item in items) else 1)
    columns = min(WIDEST, len(items))
    cell = width + GAP, max(p.height for p in pictures) + bar + GAP
    rows = -(-len(items) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (item, picture) in enumerate(zip(items, pictures, strict=True)):
        checkpoint()
        x, y = GAP + i % columns * cell[0], GAP + i // columns * cell[1]
        sheet.paste(picture, (x + (width - picture.width) // 2, y + cell[1] - GAP - bar - picture.height))
        label(draw, item, (x, y + cell[1] - GAP - bar), width)
    return jpeg(sheet)


def fitting(data, width):
    """The image of a file, `width` pixels wide, at most as high as twice that."""
    with Image.open(io.BytesIO(data)) as image:
        image = image.convert("RGB")
    scale = min(width / image.width, 2 * width / image.height)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
    )


def label(draw, item, corner, width):
    """Writes time and score, and the title below, from a corner on."""
    (x, y), font = corner, ImageFont.load_default(14)
    draw.text((x, y + 3), clock(item.time), INK, font)
    if item.score is not None:
        draw.text((x + width, y + 3), f"{item.score:.2f}", FAINT, font, anchor="ra")
    if item.title:
        draw.text((x, y + BAR), shortened(draw, item.title, width, font), FAINT, font)


def shortened(draw, text, width, font):
    """A text in one line of at most so many pixels, without its middle where it is longer."""
    text = "".join(c if c.isprintable() else " " for c in text[:200])
    cut = text
    while len(cut) > 1 and draw.textlength(cut, font) > width:
        text = text[: len(text) // 2] + text[len(text) // 2 + 1 :]
        cut = f"{text[: len(text) // 2]}...{text[len(text) // 2 :]}"
    return cut
