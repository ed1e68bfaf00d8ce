"""Videos given as a list of frames."""

import time

import numpy as np

from ivlite.media import timeline
from ivlite.media.image import open_still
from ivlite.media.medium import Medium
from ivlite.media.probe import Probe


class FrameList(Medium):
    """A video of given frames, each decoded when it is needed."""

    def __init__(self, stills, *args, **more):
        super().__init__(*args, **more)
        self._stills = stills

    def content(self):
        found = [still.content() for still in self._stills]
        return None if None in found else found

    def pictures(self, first=0):
        for index in self.frames[first:]:
            yield self._stills[index].rgb(self.size)


class FrameListProbe(Probe):
    """A list of frames. The first of the range sets the shape. name: of the file that is the only frame."""

    def __init__(self, source, fps, start=None, end=None, name=None):
        self._stills = [open_still(frame, "frame" if name is None else "video") for frame in source.items]
        times, count = clock(source, fps), len(self._stills)
        name = f"<{count} frame{'s' * (count != 1)}>" if name is None else name
        super().__init__(name, None, times, start, end, every=source.times is None)
        first = self._stills[timeline.within(times, start, end, self.what)[0]]
        self._notes = first.look()
        self.shape = first.shape

    def cost(self, chosen, size, measuring=True):
        if not measuring:
            return 0.0, 0.0
        took = []
        for index in chosen[:2].tolist() * 2:
            began = time.perf_counter()
            self._stills[index].rgb(size)
            took.append(time.perf_counter() - began)
        return 0.0, min(took) * len(chosen)

    def open(self, chosen, size, **shape):
        marks, length = self.times.times[chosen], self.times.duration
        return FrameList(self._stills, "video", self.name, size, chosen, marks, length, warnings=self._notes, **shape)


def clock(source, fps):
    """The Timeline of memory.Frames; frames without times have the rate `fps`."""
    keys, count = np.zeros(1, np.int64), len(source.items)
    if source.times is None:
        return timeline.Timeline(np.arange(count) / fps, None, keys, fps, 1 / fps)
    times = np.array(source.times)
    interval = float(np.median(np.diff(times))) if count > 1 else 1 / fps
    return timeline.Timeline(times, None, keys, None, interval)
