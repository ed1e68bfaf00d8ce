"""A list of frames as a video."""

import numpy as np

from ivlite.errors import UsageError
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
    """A Medium of kind "video" from frames taken limits["fps"] times a second; the first one gives the shape.

    Of more than max_frames, so many are used, evenly spread. Raises UsageError, MediaError.
    """
    if not len(source):
        raise UsageError("the video is an empty list of frames")
    stills = [opened(frame, "frame") for frame in source]
    name = f"<{len(stills)} frames>"
    rate = limits["fps"]
    times = timeline.Timeline(np.arange(len(stills)) / rate, None, np.zeros(1, np.int64), rate, 1 / rate)
    count = limits["max_frames"] if limits["nframes"] is None else limits["nframes"]
    chosen = timeline.choose(times, f"video {name}", **limits | {"nframes": count})
    first = stills[chosen[0]]
    notes = first.look()
    size = fitted(*first.shape, *pixels, f"video {name}")
    return FrameList(stills, "video", name, size, chosen, times.times[chosen], times.duration, warnings=notes, **shape)
