"""Where a video changes: its scenes, by small grey pictures of frames that are spread over it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ivlite.media.probe import Probe
from ivlite.stop import checkpoint

EVERY = 0.5  # seconds between two frames that are compared, where the video is short
MOST = 1_800  # frames that are compared
HEIGHT, WIDTH, BLOCK = 36, 64, 4  # pixels of a picture, and of the squares whose means are compared
LEVELS = 16  # of the histogram of a picture
LEAST = 6.0  # of a difference that may be a cut: levels of 255
TIMES = 3.0  # the usual difference around it
AROUND = 8  # differences on each side that tell what is usual
SHORTEST, LONGEST = 2.0, 30.0  # seconds of a segment
WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue in luma


@dataclass(frozen=True)
class Scenes:
    """The segments of a video: they cover it without gaps. spans: (start, end) in seconds. every: seconds between the frames
    that were compared; cuts are found to within them. cuts: how many were found.
    """

    spans: tuple[tuple[float, float], ...]
    every: float
    cuts: int


def scenes(probe: Probe, progress: Callable[[str, int, int], Any] | None = None) -> Scenes:
    """The Scenes of a video: from cut to cut; long ones in parts of equal length, short ones joined to the one before.

    progress("scenes", done, total) counts frames. Raises MediaError, Stopped.
    """
    probe.settle()
    times, duration = probe.times.times, float(probe.times.duration)
    wanted = int(min(len(times), MOST, max(1, duration / EVERY)))
    chosen = np.unique(np.searchsorted(times, np.linspace(0, duration, wanted, endpoint=False) + 1e-6, "right") - 1)
    chosen = chosen[chosen >= 0]
    medium = probe.open(chosen, (HEIGHT, WIDTH), patch_size=1, temporal=1)
    differences, before = [], None
    for n, picture in enumerate(medium.pictures(), 1):
        checkpoint()
        look = signature(picture)
        if before is not None:
            differences.append(difference(before, look))
        before = look
        if progress:
            progress("scenes", n, len(chosen))
    found = cuts(differences)
    starts = [float(times[chosen[i + 1]]) for i in found]
    return Scenes(tuple(segments(starts, duration)), duration / max(1, len(chosen)), len(found))


def signature(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(means of the squares, shares of the levels) of the luma of uint8 (H, W, 3)."""
    luma = picture.astype(np.float32) @ WEIGHTS
    height, width = luma.shape[0] // BLOCK * BLOCK, luma.shape[1] // BLOCK * BLOCK
    squares = luma[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean((1, 3))
    levels = np.bincount(np.minimum(luma.reshape(-1) * LEVELS / 256, LEVELS - 1).astype(np.int64), minlength=LEVELS)
    return squares, levels / luma.size


def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """How much two pictures differ, 0 to 255: in their squares, and half as much in their levels, which motion leaves alone."""
    return float(np.abs(a[0] - b[0]).mean() + 127 * 0.5 * np.abs(a[1] - b[1]).sum()) / 1.5


def cuts(differences: Sequence[float]) -> list[int]:
    """The indexes of the differences that are cuts: far above those around them, and the largest of their neighbours."""
    found, values = [], np.asarray(differences, np.float64)
    for i, value in enumerate(values):
        around = np.delete(values[max(0, i - AROUND) : i + AROUND + 1], min(i, AROUND))
        usual = float(np.median(around)) if len(around) else 0.0
        if value >= LEAST and value >= TIMES * usual:
            found.append(i)
    return found


def segments(starts: Sequence[float], duration: float) -> list[tuple[float, float]]:
    """Spans over a video from the starts of its scenes: none shorter than SHORTEST, unless the video is; none longer than LONGEST."""
    edges = [0.0]
    for start in starts:
        if start - edges[-1] >= SHORTEST and duration - start >= SHORTEST:
            edges.append(start)
    out = []
    for start, end in zip(edges, [*edges[1:], duration], strict=True):
        parts = max(1, int(np.ceil((end - start) / LONGEST)))
        marks = np.linspace(start, end, parts + 1)
        out += [(round(float(a), 3), round(float(b), 3)) for a, b in zip(marks, marks[1:], strict=False)]
    return out
