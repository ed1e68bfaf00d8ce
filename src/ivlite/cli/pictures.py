"""Pictures in a terminal: as the terminal's own graphics where it has some, else as coloured half blocks.

What a terminal can do is read from the variables that terminals set. Nothing is asked of it: an answer may never come.
"""

import base64
import os
import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from ivlite.cli.progress import capable

CELLS, GAP = 26, 2  # columns of a picture, and between two
TALLEST = 14  # rows of a picture
CELL = 2.1  # height of a character to its width
PIXELS = 10  # of a column, for terminals with graphics
CHUNK = 4096  # bytes of an escape sequence of kitty's
GRAPHICS = {
    "kitty": {"TERM": ("xterm-kitty", "xterm-ghostty"), "TERM_PROGRAM": ("ghostty",)},
    "iterm": {"TERM_PROGRAM": ("iTerm.app", "WezTerm", "mintty"), "LC_TERMINAL": ("iTerm2",)},
}
BLOCK = "▀"  # the upper half: its colour is the upper pixel's, the background the lower one's


def way(out: TextIO | None = None, environ: Mapping[str, str] = os.environ) -> str | None:
    """How pictures are shown on a stream: "kitty", "iterm", "colors" (24 bits), "palette" (256 colours), or None for not at all."""
    out = sys.stdout if out is None else out
    if not capable(out, environ):
        return None
    term = environ.get("TERM", "")
    inside = "TMUX" in environ or term.startswith(("screen", "tmux"))  # which pass no graphics on
    if not inside:
        if "KITTY_WINDOW_ID" in environ:
            return "kitty"
        for name, signs in GRAPHICS.items():
            if any(environ.get(variable) in values for variable, values in signs.items()):
                return name
    try:
        BLOCK.encode(getattr(out, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return None
    if environ.get("NO_COLOR"):
        return None
    if environ.get("COLORTERM") in ("truecolor", "24bit"):
        return "colors"
    return "palette" if "256color" in term else None


def rows(pictures: Sequence[tuple[bytes, str]], kind: str, columns: int | None = None) -> str:
    """Text that shows pictures side by side with a line below each.

    pictures: (bytes of a JPEG file, what is written below it). kind: see `way`. columns: of the terminal.
    """
    columns = columns or shutil.get_terminal_size().columns
    cells = max(1, min(CELLS, columns - 1))
    across = max(1, (columns - 1 + GAP) // (cells + GAP))
    return "".join(row(pictures[i : i + across], kind, cells) for i in range(0, len(pictures), across))


def row(pictures: Sequence[tuple[bytes, str]], kind: str, cells: int) -> str:
    from ivlite.cli import printable
    from ivlite.media.thumbnails import dimensions

    boxes = [box(*dimensions(data), cells) for data, _ in pictures]
    labels = [printable(label).replace("\n", " ")[:cells].ljust(cells) for _, label in pictures]
    draw = blocks if kind in ("colors", "palette") else graphics
    return draw([data for data, _ in pictures], boxes, kind, cells) + (" " * GAP).join(labels).rstrip() + "\n"


def box(height: int, width: int, cells: int) -> tuple[int, int]:
    """(rows, columns) of characters for a picture of so many pixels."""
    scale = min(cells / width, TALLEST * CELL / height)
    return max(1, round(height * scale / CELL)), max(1, round(width * scale))


# ------------------------------------------------------------------------------------------------ graphics


def graphics(files: Sequence[bytes], boxes: Sequence[tuple[int, int]], kind: str, cells: int) -> str:
    """Pictures in a terminal's own graphics. Room is made first, so that nothing scrolls while the cursor is moved."""
    high = max(height for height, _ in boxes)
    send = {"kitty": kitty, "iterm": iterm}[kind]
    drawn = "".join(
        f"\x1b[{i * (cells + GAP) + 1}G\x1b7{send(data, *size)}\x1b8"
        for i, (data, size) in enumerate(zip(files, boxes, strict=True))
    )
    return "\n" * high + f"\x1b[{high}A{drawn}\x1b[{high}B\r"


def kitty(data: bytes, height: int, width: int) -> str:
    """A picture in kitty's protocol: compressed RGB in chunks; the cursor stays (C=1), and the terminal is silent (q=2)."""
    from ivlite.media.thumbnails import pixels

    picture = pixels(data, (max(1, round(height * PIXELS * CELL)), width * PIXELS))
    text = base64.b64encode(zlib.compress(picture.tobytes())).decode()
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    keys = f"a=T,f=24,o=z,s={picture.shape[1]},v={picture.shape[0]},c={width},r={height},C=1,q=2,"
    return "".join(
        f"\x1b_G{keys if i == 0 else ''}m={int(i < len(chunks) - 1)};{chunk}\x1b\\" for i, chunk in enumerate(chunks)
    )


def iterm(data: bytes, height: int, width: int) -> str:
    """A picture in iTerm2's protocol: the file as it is."""
    keys = f"inline=1;size={len(data)};width={width};height={height};preserveAspectRatio=1"
    return f"\x1b]1337;File={keys}:{base64.b64encode(data).decode()}\x07"


# ------------------------------------------------------------------------------------------------ blocks


def blocks(files: Sequence[bytes], boxes: Sequence[tuple[int, int]], kind: str, cells: int) -> str:
    """Pictures of half blocks: two pixels a character."""
    from ivlite.media.thumbnails import pixels

    color = {"colors": full, "palette": nearest}[kind]
    high = max(height for height, _ in boxes)
    shown = [lines(color(pixels(data, (2 * h, w))), cells) for data, (h, w) in zip(files, boxes, strict=True)]
    padded = [[" " * cells] * (high - len(some)) + some for some in shown]
    return "".join((" " * GAP).join(line).rstrip(" ") + "\n" for line in zip(*padded, strict=True))


def lines(codes: Sequence[Sequence[str]], cells: int) -> list[str]:
    """Lines of `cells` characters for the colours of pixels, two rows each. A colour is written where it changes."""
    out = []
    for upper, lower in zip(codes[::2], codes[1::2], strict=True):
        line, before = "", ("", "")
        for pair in zip(upper, lower, strict=True):
            line += (f"\x1b[38;{pair[0]}m" if pair[0] != before[0] else "") + (
                f"\x1b[48;{pair[1]}m" if pair[1] != before[1] else ""
            )
            line, before = line + BLOCK, pair
        out.append(line + "\x1b[0m" + " " * (cells - len(upper)))
    return out


def full(picture: Any) -> list[list[str]]:
    """The colours of uint8 (h, w, 3) as parameters of an escape sequence, 24 bits each."""
    return [[f"2;{r};{g};{b}" for r, g, b in line] for line in picture.tolist()]


def nearest(picture: Any) -> list[list[str]]:
    """As `full`, of the 256 colours that terminals share: a cube of 6 x 6 x 6 and 24 greys."""
    import numpy as np

    steps = np.array([0, 95, 135, 175, 215, 255])
    greys = np.arange(8, 248, 10)
    values = picture.astype(int)
    cube = np.abs(values[..., None] - steps).argmin(-1)
    grey = np.abs(values.mean(-1)[..., None] - greys).argmin(-1)
    far = ((steps[cube] - values) ** 2).sum(-1)
    near = ((greys[grey][..., None] - values) ** 2).sum(-1)
    codes = np.where(near < far, 232 + grey, 16 + cube @ np.array([36, 6, 1]))
    return [[f"5;{code}" for code in line] for line in codes.tolist()]
