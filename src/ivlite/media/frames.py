"""A list of frames as a video."""

import numpy as np

from ivlite.errors import UsageError
from ivlite.media import timeline
from ivlite.media.image import loader
from ivlite.media.medium import Medium
from ivlite.media.resize import fitted, resized


class FrameList(Medium):
    """Frames that a program gives, each loaded when it is needed."""

    def __init__(self, loads, *args, **more):
        super().__init__(*args, **more)
        self._loads = loads

    def pictures(self):
        for index in self.frames:
            yield resized(self._loads[index](), self.size)


def open_list(source, limits, pixels, shape):
    """A Medium of kind "video" from frames taken limits["fps"] times a second; the first one gives the shape.

    Of more than max_frames, so many are used, evenly spread. Raises UsageError, MediaError.
    """
    if not len(source):
        raise UsageError("the video is an empty list of frames")
    loads = [loader(frame, "frame")[0] for frame in source]
    name = f"<{len(loads)} frames>"
    rate = limits["fps"]
    times = timeline.Timeline(np.arange(len(loads)) / rate, None, np.zeros(1, np.int64), rate, 1 / rate)
    count = limits["max_frames"] if limits["nframes"] is None else limits["nframes"]
    chosen = timeline.choose(times, f"video {name}", **limits | {"nframes": count})
    width, height = loads[chosen[0]]().size
    size = fitted(height, width, *pixels, f"video {name}")
    return FrameList(loads, "video", name, size, chosen, times.times[chosen], times.duration, **shape)
