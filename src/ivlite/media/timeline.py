"""The times of a video's frames, and the sampling of frames."""

from dataclasses import dataclass

import numpy as np

from ivlite.errors import UsageError
from ivlite.numbers import number, whole

SLACK = 1e-6  # seconds of tolerance between a given time and a frame's time
REFINEMENTS = 40  # how often the number of samples is doubled to find enough frames


@dataclass(frozen=True)
class Timeline:
    """The frames of a video in presentation order.

    times: float64 (N,), seconds from the first frame. pts: int64 (N,) in ticks, ascending; None if they do not identify
    frames. keys: indexes of key frames. rate: frames per second if constant, else None. interval: median seconds between
    frames. declared: the declared duration of a truncated file in seconds, or 0. last: seconds that the last frame stays
    on screen, None for the interval. places: int64 (packets,), the index of the frame in each packet of the file, -1 for
    one that is not shown; None if `pts` identifies frames, or if frames are counted during decoding. offsets: int64 (keys,),
    the offset of each key frame in the file; None where times lead to them. ordered: the frames
    of a codec that reorders have times in decoding order, which may be wrong. notes: warnings.
    """

    times: np.ndarray
    pts: np.ndarray | None
    keys: np.ndarray
    rate: float | None
    interval: float
    declared: float = 0.0
    last: float | None = None
    places: np.ndarray | None = None
    offsets: np.ndarray | None = None
    ordered: bool = False
    notes: tuple[str, ...] = ()

    @property
    def seekable(self):
        """Whether decoding may begin at any key frame."""
        return self.pts is not None or self.offsets is not None

    @property
    def duration(self):
        """Seconds until the end of the last frame."""
        if self.rate:
            return len(self.times) / self.rate + max(0.0, (self.last or 0) - 1 / self.rate)
        return float(self.times[-1]) + (self.interval if self.last is None else self.last)


def within(timeline, start, end, name):
    """(first, last) index of the frames on screen between two times."""
    start = 0.0 if start is None else number("start", start, 0)
    if start >= timeline.duration:
        raise UsageError(f"start ({start:g} s) is after the end of {name} ({timeline.duration:.1f} s)")
    last = len(timeline.times) - 1
    if end is not None:
        number("end", end, 0)
        if end <= start:
            raise UsageError(f"end ({end:g} s) must come after start ({start:g} s)")
        last = int(np.searchsorted(timeline.times, end + SLACK, "right")) - 1
        if last < 0:
            raise UsageError(f"end ({end:g} s) is before the first frame of {name} ({timeline.times[0]:g} s)")
    first = int(np.searchsorted(timeline.times, start + SLACK, "right")) - 1
    return max(0, first), last


def choose(timeline, name, *, fps, min_frames, max_frames, nframes=None, start=None, end=None, temporal=1):
    """The indexes of the sampled frames, int64 (n,), ascending.

    At a constant rate: n = (frames of the range / their rate) * fps, within the limits, evenly spaced from the first
    frame of the range to its last.

    At a variable rate: sample times are evenly spaced over the range, `fps` per second, and each takes the frame on
    screen at that time. A frame with several samples is taken once, and once more if it would otherwise share a group of
    `temporal` frames with one after a pause. If this gives fewer than min_frames or nframes, samples get closer until
    there are enough.
    """
    first, last = within(timeline, start, end, name)
    total = last - first + 1
    if nframes is not None:
        least = most = min(whole("nframes", nframes), total)
    else:
        least, most = min(min_frames, total), max_frames
    if timeline.rate:
        count = least if nframes is not None else min(max(int(total / timeline.rate * fps), least), most, total)
        return first + spread(total, count)
    begin = max(float(timeline.times[first]), start or 0.0)
    over = min(timeline.duration, float("inf") if end is None else max(end, begin))
    final = max(float(timeline.times[last]), over - 1 / fps)  # of the samples
    count = int((over - begin) * fps) if nframes is None else least
    chosen = first + sampled(timeline.times[first : last + 1], begin, final, max(count, least, 1), least, most)
    if nframes is None and temporal > 1:
        apart = grouped(chosen, timeline.times, 2 * max(1 / fps, timeline.interval), temporal)
        chosen = apart if len(apart) <= most else chosen
    return chosen


def spread(total, count):
    """int64 (count,): evenly spaced indexes from 0 to total - 1."""
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def sampled(times, begin, final, count, least, most):
    """Indexes of the frames on screen at `count` or more times from `begin` to `final`, each once, ascending.

    times: ascending seconds, the first no later than `begin`, the last no later than `final`. At least `least` indexes
    if there are so many frames with a duration, at most `most`.
    """
    if final <= begin:
        return completed(np.zeros(1, np.int64), np.arange(len(times)), least)
    for _ in range(REFINEMENTS):
        found = shown(times, begin, final, count)
        if len(found) >= least:
            break
        count = 2 * count
    if len(found) < least:
        return completed(found, np.arange(len(times)), least)
    return thinned(times, begin, final, count, most) if len(found) > most else found


def shown(times, begin, final, count):
    """Indexes of the frames on screen at `count` evenly spaced times from `begin` to `final`, each once, ascending."""
    step = (final - begin) / max(count - 1, 1)
    ahead = np.append(np.ceil((times - begin) / step - 1e-9).clip(0, count), count)  # moments before each frame
    return np.flatnonzero(np.diff(ahead))


def thinned(times, begin, final, count, most):
    """Indexes of `most` frames on screen at times as close as gives no more; as sampled(), where `count` times give more."""
    few = min(most, count)
    while few + 1 < count:
        middle = (few + count) // 2
        few, count = (few, middle) if len(shown(times, begin, final, middle)) > most else (middle, count)
    return completed(shown(times, begin, final, few), shown(times, begin, final, count), most)


def completed(found, others, count):
    """Ascending indexes: `found`, and as many of `others` that it lacks, evenly spaced, as make `count` of them."""
    rest = np.setdiff1d(others, found)
    return np.union1d(found, rest[spread(len(rest), min(len(rest), max(0, count - len(found))))])


def grouped(chosen, times, pause, temporal):
    """`chosen`, with frames repeated so that no group of `temporal` frames spans a pause of more than `pause` seconds."""
    out = []
    for index in chosen.tolist():
        while len(out) % temporal and times[index] - times[out[-1]] > pause:
            out.append(out[-1])
        out.append(index)
    return np.array(out, np.int64)


def nearest(times, moments):
    """Indexes of the entries of ascending `times` nearest to each of `moments`; of two equally near, the earlier."""
    after = np.clip(np.searchsorted(times, moments), 1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(np.shape(moments), np.int64)
    return after - (moments - times[after - 1] <= times[after] - moments)
