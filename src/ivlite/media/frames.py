"""A list of frames as a video."""

import numpy as np

from ivlite.media import timeline
from ivlite.media.image import opened
from ivlite.media.medium import Medium
from ivlite.media.resize import fitted


class FrameList(Medium):
    """Frames that a program gives, each decoded when it is needed."""

    def __init__(self, stills, *args, **more):
        super().__init__(*args, **more)
        self._stills = stills

    def pictures(self):
        for index in self.frames:
            yield self._stills[index].rgb(self.size)


def open_list(source, limits, pixels, shape):
    """A Medium of kind "video" of memory.Frames at their own times, or limits["fps"] a second; the first gives the shape.

    Of more than max_frames, so many are used, evenly spread. Raises UsageError, MediaError.
    """
    stills = [opened(frame, "frame") for frame in source.items]
    name = f"<{len(stills)} frames>"
    times = clock(source, limits["fps"])
    count = limits["max_frames"] if limits["nframes"] is None and source.times is None else limits["nframes"]
    chosen = timeline.choose(times, f"video {name}", **limits | {"nframes": count}, temporal=shape["temporal"])
    first = stills[chosen[0]]
    notes = first.look()
    size = fitted(*first.shape, *pixels, f"video {name}")
    return FrameList(stills, "video", name, size, chosen, times.times[chosen], times.duration, warnings=notes, **shape)


def clock(source, fps):
    """The Timeline of memory.Frames; of those without times, `fps` are taken a second."""
    keys, count = np.zeros(1, np.int64), len(source.items)
    if source.times is None:
        return timeline.Timeline(np.arange(count) / fps, None, keys, fps, 1 / fps)
    times = np.array(source.times)
    interval = float(np.median(np.diff(times))) if count > 1 else 1 / fps
    return timeline.Timeline(times, None, keys, None, interval)
