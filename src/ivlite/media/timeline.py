"""When the frames of a video are, and which of them are used. From packets alone: nothing is decoded here."""

import re
from array import array
from dataclasses import dataclass

import numpy as np

from ivlite.errors import MediaError, UsageError
from ivlite.media.container import packets
from ivlite.media.source import number, whole

SLACK = 1e-6  # seconds by which a given time may miss a frame's


@dataclass(frozen=True)
class Timeline:
    """The frames of a video in the order they are shown.

    times: float64 (N,), seconds from the first frame. pts: int64 (N,) in ticks, or None for a file that has none. keys:
    indexes of frames from which decoding can begin. rate: frames per second where it is constant, else None. interval:
    usual seconds between frames. declared: seconds that the file claims, or 0.
    """

    times: np.ndarray
    pts: np.ndarray | None
    keys: np.ndarray
    rate: float | None
    interval: float
    declared: float = 0.0

    @property
    def duration(self):
        """Seconds until the last frame is over."""
        return len(self.times) / self.rate if self.rate else float(self.times[-1]) + self.interval


def scan(container, stream, name):
    """The Timeline of a stream. Reads the whole file once, without decoding. Raises MediaError."""
    pts, keys, timed = array("q"), array("q"), True
    for packet in packets(container, stream):
        if packet.is_discard:  # cut away by an edit list: players do not show it
            continue
        time = packet.pts
        timed = timed and time is not None
        pts.append(time if timed else len(pts))
        if packet.is_keyframe:
            keys.append(pts[-1])
    if not pts:
        raise MediaError(f"video {name} has no frames: copy or record it again")
    declared = declared_seconds(container, stream)
    rates = [float(r) for r in (stream.average_rate, stream.guessed_rate, stream.base_rate) if r]
    if not timed:
        rate = rates[0] if rates else 24.0
        return Timeline(np.arange(len(pts)) / rate, None, np.zeros(1, np.int64), rate, 1 / rate, declared)
    ticks = np.unique(np.frombuffer(pts, np.int64))
    seconds = (ticks - ticks[0]) * float(stream.time_base)
    interval = float(np.median(np.diff(seconds))) if len(ticks) > 1 else 1 / (rates[0] if rates else 24.0)
    rate = constant_rate(seconds, rates)
    times = np.arange(len(ticks)) / rate if rate else seconds
    starts = np.searchsorted(ticks, np.frombuffer(keys, np.int64)) if keys else np.zeros(1, np.int64)
    return Timeline(times, ticks, np.unique(starts), rate, interval, declared)


def constant_rate(seconds, rates):
    """The one of `rates` at which all frames are within half a frame of where they should be, or None."""
    span = float(seconds[-1])
    measured = [(len(seconds) - 1) / span] if span > 0 else []
    for rate in rates + measured:
        if np.abs(seconds - np.arange(len(seconds)) / rate).max() <= 0.5 / rate:
            return rate
    return None


def declared_seconds(container, stream):
    """Seconds of video that the file says it has, 0 where it does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip())
    if tag:  # as Matroska writes it for each stream
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len(container.streams) == 1  # the file's own length may be that of its sound
    return container.duration / 1e6 if container.duration and alone else 0.0


def within(timeline, start, end, name):
    """(first, last) index of the frames between two moments; the frame on screen if none begins there."""
    start = 0.0 if start is None else number("start", start, 0)
    last = len(timeline.times) - 1
    if start >= timeline.duration:
        raise UsageError(f"start ({start:g} s) is after the end of {name} ({timeline.duration:.1f} s)")
    if end is not None:
        number("end", end, 0)
        if end <= start:
            raise UsageError(f"end ({end:g} s) must come after start ({start:g} s)")
        last = int(np.searchsorted(timeline.times, end + SLACK, "right")) - 1
    first = int(np.searchsorted(timeline.times, start - SLACK, "left"))
    return (first, last) if first <= last else (last, last)


def choose(timeline, name, *, fps, min_frames, max_frames, nframes=None, start=None, end=None):
    """The indexes of the frames to use, int64 (n,), rising.

    At a constant rate: n = (frames of the range / their rate) * fps, within the bounds, spread evenly from the first
    frame of the range to its last. Where the rate varies, evenly over time: a frame that stays long is taken once.
    """
    first, last = within(timeline, start, end, name)
    total = last - first + 1
    span = total / timeline.rate if timeline.rate else float(timeline.times[last] - timeline.times[first])
    if nframes is not None:
        count = min(whole("nframes", nframes), total)
    else:
        extra = 0 if timeline.rate else timeline.interval
        count = min(max(int((span + extra) * fps), min_frames), max_frames, total)
    if timeline.rate or nframes is not None or count == total:
        return first + np.linspace(0, total - 1, count).round().astype(np.int64)
    moments = np.linspace(timeline.times[first], timeline.times[last], count)
    found = np.unique(nearest(timeline.times, moments))
    if len(found) < min(min_frames, total):
        return first + np.linspace(0, total - 1, min(min_frames, total)).round().astype(np.int64)
    return found


def nearest(times, moments):
    """Indexes of the entries of rising `times` nearest to each of `moments`, the earlier where two are as near."""
    after = np.clip(np.searchsorted(times, moments), 1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(len(moments), np.int64)
    return after - (moments - times[after - 1] <= times[after] - moments)
