"""A video of an agent: its times, parts of it as messages take them, and the frames that such a part shows."""

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ivlite import media
from ivlite.agent.answer import Video
from ivlite.media import timeline

ROUNDING = 0.05  # seconds that one decimal may be beyond the end
MANY = 1 << 40  # frames: no limit
CROP = 8  # times as many pixels as a frame has by default are decoded for a box of it


class Wrong(Exception):
    """A call that makes no sense. The message is for the model: one short sentence."""


class NothingLeft(Wrong):
    """A call that makes sense, for which nothing of the budget is left."""


@dataclass(frozen=True)
class Detail:
    """How closely a window is looked at: the most frames, and the pixels of each as a multiple of the model file's default."""

    frames: int
    pixels: float


DETAILS = {"low": Detail(8, 0.5), "mid": Detail(16, 1.0), "high": Detail(32, 2.0)}
OVERVIEW = Detail(32, 1.0)
LOOK = Detail(1, 4.0)


class Film:
    """A video by its handle. config: of the model. Raises MediaError, UsageError (the source)."""

    def __init__(self, handle: str, source: Any, config: Any) -> None:
        self.handle, self.source, self.config = handle, source, config
        self.probe = media.probe(source, fps=config.video.fps)
        self.probe.settle()

    @property
    def times(self) -> np.ndarray:
        """Seconds of every frame, ascending."""
        return self.probe.times.times

    @property
    def duration(self) -> float:
        return float(self.probe.times.duration)

    @property
    def file(self) -> str | None:
        """The path of a video file; None for bytes and frames in memory, and for images."""
        held = getattr(self.probe, "held", None)
        return str(self.probe.path) if isinstance(held, str | os.PathLike) and not hasattr(held, "close") else None

    @cached_property
    def video(self) -> Video:
        name = str(self.probe.name)
        return Video(self.handle, self.file or name, round(self.duration, 3), Path(name).name)

    def window(self, start: Any = None, end: Any = None) -> tuple[float, float]:
        """(start, end) within the video; None for its start and its end. Raises Wrong."""
        for time in (start, end):
            if isinstance(time, str):
                raise Wrong(f"there is no evidence {time[:20]} of this video")
        begin, finish = 0.0 if start is None else float(start), self.duration if end is None else float(end)
        if not (math.isfinite(begin) and math.isfinite(finish)):
            raise Wrong("a time is not a number")
        if begin < 0 or begin > self.duration + ROUNDING:
            raise Wrong(f"start is outside the video, which ends at {self.duration:.1f}")
        begin = min(begin, float(self.times[-1]))
        if finish <= begin:
            raise Wrong("end must come after start")
        return begin, min(finish, self.duration)

    def possible(self, start: float, end: float) -> int:
        """How many frames there are from start to end."""
        first, last = timeline.within(self.probe.times, start, end, self.handle)
        return last - first + 1

    def shown(self, start: float, end: float, nframes: int) -> tuple[float, ...]:
        """The times of the frames that `part` shows, seconds."""
        limits = {"fps": self.config.video.fps, "min_frames": 1, "max_frames": MANY}
        temporal = self.config.vision.temporal_patch_size
        chosen = timeline.choose(
            self.probe.times, self.handle, **limits, nframes=nframes, start=start, end=end, temporal=temporal
        )
        return tuple(round(float(t), 3) for t in self.times[chosen])

    def part(self, start: float, end: float, nframes: int, pixels: float = 1.0) -> dict[str, Any]:
        """The part of a message that shows `nframes` frames from start to end, as JSON data: `resolved` makes it one.

        pixels: see Detail.
        """
        whole = {} if start <= 0 and end >= self.duration else {"start": start, "end": end}
        return {"type": "video", "video": self.handle, **whole, "nframes": nframes, **self.limits(pixels)}

    def resolved(self, part: dict[str, Any]) -> dict[str, Any]:
        """A part of this video with its pixels or where they come from, in place of its handle."""
        given = {name: value for name, value in part.items() if name not in ("index", "box")}
        if "index" not in part:
            return given | {"video": self.source}
        return given | {
            "video": [{"t": float(self.times[part["index"]]), "image": self.cut(part["index"], part["box"])}]
        }

    def limits(self, pixels: float) -> dict[str, int]:
        """min_pixels and max_pixels of frames whose pixels are a multiple of the default."""
        video = self.config.video
        least = (self.config.vision.patch_size * self.config.vision.spatial_merge_size) ** 2
        most = max(least, round(video.max_pixels * pixels))
        return {"min_pixels": max(least, min(most, round(video.min_pixels * pixels))), "max_pixels": most}

    def pair_tokens(self, pixels: float = 1.0) -> int:
        """Vision tokens of a frame pair, its borders and time mark counted as 16."""
        unit = self.config.vision.patch_size * self.config.vision.spatial_merge_size
        limits = self.limits(pixels)
        height, width = self.probe.size(unit, limits["min_pixels"], limits["max_pixels"])
        return int(height * width // unit**2) + 16

    def frame(self, t: Any, box: Any = None) -> tuple[float, dict[str, Any]]:
        """(its time, a part as of `part`): the frame on screen at a time in full detail, or a box of it in thousandths.

        Raises Wrong.
        """
        begin, _ = self.window(t, None)
        index, _ = timeline.within(self.probe.times, begin, None, self.handle)
        limits, at = self.limits(LOOK.pixels), float(self.times[index])
        if box is not None:
            boxed(box)
            return round(at, 3), {"type": "video", "video": self.handle, "index": index, "box": list(box), **limits}
        rest = self.duration if index + 1 >= len(self.times) else float(self.times[index + 1])
        end = at + max(rest - at, 1e-3) / 2
        return round(at, 3), {"type": "video", "video": self.handle, "start": at, "end": end, "nframes": 1, **limits}

    def cut(self, index: int, box: Any) -> np.ndarray:
        """uint8 (h, w, 3): a box, in thousandths, of a frame. Raises Wrong, MediaError."""
        x0, y0, x1, y1 = boxed(box)
        picture = self.picture(index)
        height, width = picture.shape[:2]
        top, left = int(y0 * height), int(x0 * width)
        bottom, right = max(top + 1, math.ceil(y1 * height)), max(left + 1, math.ceil(x1 * width))
        return np.ascontiguousarray(picture[top:bottom, left:right])

    def picture(self, index: int) -> np.ndarray:
        """uint8 (H, W, 3): one frame, at most CROP times as large as frames are by default in each detail."""
        vision = self.config.vision
        unit = vision.patch_size * vision.spatial_merge_size
        most = max(unit**2, round(self.config.video.max_pixels * LOOK.pixels * CROP))
        size = self.probe.size(unit, 1, most)
        medium = self.probe.open(
            np.array([index]), size, patch_size=vision.patch_size, temporal=vision.temporal_patch_size
        )
        for picture in medium.pictures():
            return np.asarray(picture)
        raise Wrong("that frame cannot be decoded")


def boxed(box: Any) -> tuple[float, float, float, float]:
    """The corners of a box as fractions. Raises Wrong."""
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(isinstance(n, int | float) for n in box):
        raise Wrong("box must be four numbers from 0 to 1000: x0, y0, x1, y1")
    x0, y0, x1, y1 = (min(1000.0, max(0.0, float(n))) / 1000 for n in box)
    if x1 <= x0 or y1 <= y0:
        raise Wrong("box must have x0 < x1 and y0 < y1")
    return x0, y0, x1, y1
