"""What decoding a video will take, from a moment of decoding its beginning."""

import os
import time

import numpy as np

from ivlite.media.container import decoded, open_stream, packets
from ivlite.media.decode import SEEK_FROM
from ivlite.media.display import Display, with_neighbours

MOMENT = 0.2  # seconds of decoding, and as many of reading packets
MOST_FRAMES, MOST_PACKETS = 32, 2000


class Pace:
    """Measured on the beginning of a video file.

    opening: seconds until the first frame. frame: seconds of each further frame that is decoded. byte: seconds of reading
    a byte of packets. gap: frames from one key frame to the next, None if there was no second one.
    """

    def __init__(self, path, name, track):
        began = time.perf_counter()
        self.size, self.picture = os.path.getsize(path), None
        with open_stream(path, name, track) as (container, stream):
            self._decode(container, stream, began)
        with open_stream(path, name, track) as (container, stream):
            self._read(container, stream)

    def _decode(self, container, stream, began):
        count, first, last = 0, began, None
        self.display = Display(stream)
        for self.frame_seen in with_neighbours(decoded(stream, packets(container, stream))):
            last = time.perf_counter()
            first = last if count == 0 else first
            count += 1
            if count == MOST_FRAMES or last - began > MOMENT:
                break
        self.opening = first - began
        self.frame = (last - first) / (count - 1) if count > 1 else self.opening

    def _read(self, container, stream):
        began, count, read, keys = time.perf_counter(), 0, 0, []
        for packet in packets(container, stream):
            read += packet.size
            if packet.is_keyframe:
                keys.append(count)
            count += 1
            if count == MOST_PACKETS or time.perf_counter() - began > MOMENT:
                break
        self.byte = (time.perf_counter() - began) / max(1, read)
        self.gap = float(np.median(np.diff(keys))) if len(keys) > 1 else None

    def shown(self, size):
        """Seconds of making one decoded frame a picture of that size."""
        if self.picture is None:
            for _ in range(2):  # the first time, tables are made
                began = time.perf_counter()
                self.display.rgb(self.frame_seen, size)
                self.picture = time.perf_counter() - began
            self.frame_seen = None
        return self.picture

    def seconds(self, chosen, keys, size):
        """Seconds of decoding the frames of these indexes, ascending. keys: indexes of the key frames, None if unknown."""
        if keys is None:
            gap = self.gap or float("inf")
            keys = np.arange(0, chosen[-1] + 1, max(1, int(gap))) if gap < float("inf") else np.zeros(1, np.int64)
        frames, jumps = work(chosen, keys)
        return self.opening * (1 + jumps / 4) + self.frame * frames + self.shown(size) * len(chosen)


def work(chosen, keys):
    """(frames that are decoded, seeks) for frames of ascending indexes."""
    before = np.append(0, chosen[:-1] + 1)  # the next frame that comes without a seek
    key = keys[np.maximum(np.searchsorted(keys, chosen, "right") - 1, 0)]
    jumps = key >= before + SEEK_FROM
    return int((chosen + 1 - np.where(jumps, key, before)).sum()), int(jumps.sum())
