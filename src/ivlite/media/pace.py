"""What decoding a video will take, from a moment of doing so."""

import os
import time
from contextlib import closing

import numpy as np

from ivlite.media.container import decoded, open_stream, packets
from ivlite.media.decode import SEEK_FROM
from ivlite.media.display import Display, with_neighbours

MOMENT = 0.25  # seconds of decoding, and as many of reading packets
FAR = 12  # frames from one that is shown to the next, at most, where the pace is measured
QUICK = 1 << 25  # pixels: wanted frames for which fewer are decoded are measured themselves
ROUNDS = 3  # pictures of each decoder, at least: the first one comes after the file was opened
MOST_FRAMES, MOST_PACKETS = 48, 2000


class Pace:
    """Measured on frames near the first wanted one, which are decoded and shown as wanted ones are.

    Decoders work ahead and side by side, so what is timed is how long the last of some pictures takes.
    """

    def __init__(self, opened, first, last, keys, pixels):
        """opened(indexes): the Medium of these frames. first, last: the range. pixels: of a frame."""
        self.opened, self.first, self.last, self.keys, self.pixels = opened, first, last, keys, pixels
        self.taken, self.decoders = {}, {}  # seconds until each picture, and how many decoders made them

    def near(self, step):
        """[seconds until each picture] of frames near the first, `step` apart."""
        return self._measured(np.arange(self.first, min(self.first + MOST_FRAMES, self.last) + 1, step), step)

    def _measured(self, indexes, name):
        if name not in self.taken:
            began, came, medium = time.perf_counter(), [], self.opened(indexes)
            self.decoders[name] = medium.decoders()[0]
            with closing(medium.pictures()) as pictures:
                for _ in pictures:
                    came.append(time.perf_counter() - began)
                    if len(came) >= max(2, ROUNDS * self.decoders[name]) and came[-1] > MOMENT:
                        break
            self.taken[name] = came
        return self.taken[name]

    def seconds(self, chosen, size):
        """Seconds of decoding the frames of these indexes, ascending."""
        spacing = int((chosen[-1] - chosen[0]) / max(1, len(chosen) - 1))
        if spacing > FAR and work(chosen, self.keys) * self.pixels <= QUICK * len(chosen):
            return self._as_chosen(chosen, spacing)
        start, *more = self.near(1)
        close = (more[-1] - start) / len(more) if more else 0.0
        if spacing <= 1:
            return start + close * (len(chosen) - 1)
        far = self.near(FAR)
        began = far[0] if far[-1] > 1.5 * far[0] else start  # they come one by one, or at once
        each = max(far[-1] - began, 0.0) / max(1, FAR * (len(far) - 1)) or close
        each = min(each, close or each)  # a frame that is shown is also decoded: more is a disturbance
        total = each * work(chosen, self.keys) + max(0.0, close - each) * len(chosen)
        return start + total

    def _as_chosen(self, chosen, spacing):
        """Seconds, from the first of the frames themselves: seeks, too, count where frames are quick.

        Each decoder opens the file before its first picture, and reads the index of a long one for most of a second.
        """
        name = f"as chosen, {spacing.bit_length()}"
        came = self._measured(chosen, name)
        opened = min(self.decoders[name], len(came))
        each = (came[-1] - came[opened - 1]) / max(1, len(came) - opened)
        return came[opened - 1] + each * (len(chosen) - opened)


class RoughPace:
    """Measured on the beginning of a video file whose index does not tell where its key frames are.

    byte: seconds of reading a byte of packets. gap: frames from one key frame to the next, None if there was no second one.
    """

    def __init__(self, path, name, track):
        self.bytes = os.path.getsize(path)
        with open_stream(path, name, track) as (container, stream):
            self._decode(container, stream)
        with open_stream(path, name, track) as (container, stream):
            self._read(container, stream)

    def _decode(self, container, stream):
        began, came = time.perf_counter(), []
        self.display = Display(stream)
        for frame in with_neighbours(decoded(stream, packets(container, stream))):
            came.append(time.perf_counter() - began)
            self.frame = frame
            if len(came) == MOST_FRAMES or came[-1] > MOMENT:
                break
        self.each = (came[-1] - came[0]) / (len(came) - 1) if len(came) > 1 else came[0]

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

    @property
    def scan(self):
        """Seconds of reading the whole file."""
        return self.byte * self.bytes

    def seconds(self, chosen, size):
        """Seconds of decoding the frames of these indexes, ascending, each resized to `size`."""
        gap = int(self.gap or chosen[-1] + 1)
        began = time.perf_counter()
        self.display.rgb(self.frame, size)
        shown = time.perf_counter() - began
        return self.each * work(chosen, np.arange(0, chosen[-1] + 1, max(1, gap))) + shown * len(chosen)


def work(chosen, keys):
    """Frames that are decoded to get those of ascending indexes."""
    chosen = np.asarray(chosen)
    before = np.append(0, chosen[:-1] + 1)  # the next frame that comes without a seek
    key = keys[np.maximum(np.searchsorted(keys, chosen, "right") - 1, 0)]
    return int((chosen + 1 - np.where(key >= before + SEEK_FROM, key, before)).sum())
