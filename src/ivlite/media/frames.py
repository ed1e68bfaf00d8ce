"""Videos given as a list of frames."""

import numpy as np

from ivlite.media import timeline
from ivlite.media.image import open_still
from ivlite.media.medium import Medium
from ivlite.media.resize import fitted


class FrameList(Medium):
    """A video of given frames, each decoded when it is needed."""

    def __init__(self, stills, *args, **more):
        super().__init__(*args, **more)
        self._stills = stills

    def pictures(self):
        for index in self.frames:
            yield self._stills[index].rgb(self.size)


def open_list(source, limits, pixels, shape):
    """A Medium of kind "video" from memory.Frames, with their own times or at limits["fps"]; the first sets the shape.

    If there are more than max_frames, that many are used, evenly spaced. Raises UsageError, MediaError.
    """
    stills = [open_still(frame, "frame") for frame in source.items]
    name = f"<{len(stills)} frames>"
    times = clock(source, limits["fps"])
    count = limits["max_frames"] if limits["nframes"] is None and source.times is None else limits["nframes"]
    chosen = timeline.choose(times, f"video {name}", **limits | {"nframes": count}, temporal=shape["temporal"])
    first = stills[chosen[0]]
    notes = first.look()
    size = fitted(*first.shape, *pixels, f"video {name}")
    return FrameList(stills, "video", name, size, chosen, times.times[chosen], times.duration, warnings=notes, **shape)


def clock(source, fps):
    """The Timeline of memory.Frames; frames without times have the rate `fps`."""
    keys, count = np.zeros(1, np.int64), len(source.items)
    if source.times is None:
        return timeline.Timeline(np.arange(count) / fps, None, keys, fps, 1 / fps)
    times = np.array(source.times)
    interval = float(np.median(np.diff(times))) if count > 1 else 1 / fps
    return timeline.Timeline(times, None, keys, None, interval)
