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
QUICK = 1 << 25  # pixels that are decoded for a wanted frame: of fewer, the first ones are measured themselves
OTHERS = 0.25  # share of the decoded frames by which the first ones may be unlike the rest
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
        self.indexes = {}  # of the pictures that would have come

    def near(self, step):
        """[seconds until each picture] of frames near the first, `step` apart."""
        return self._measured(np.arange(self.first, min(self.first + MOST_FRAMES, self.last) + 1, step), step)

    def _close(self):
        """(seconds until the first picture, and from one to the next) of frames side by side."""
        start, *more = self.near(1)
        return start, (more[-1] - start) / len(more) if more else 0.0

    def beside(self, chosen, count):
        """(seconds, frames) of as many decoders side by side, each at the beginning of a run of `chosen`."""
        at = np.unique(np.maximum(self.keys.searchsorted(chosen, "right") - 1, 0))[:count]
        most = min(MOST_FRAMES, max(FAR, QUICK * ROUNDS // self.pixels // FAR * FAR))
        ends = np.minimum(np.append(self.keys[1:], self.last + 1), self.last + 1)
        indexes = [np.arange(self.keys[n], min(self.keys[n] + most + 1, ends[n]), FAR) for n in at]
        came = self._measured(np.concatenate(indexes), "side by side")
        return came[-1], work(self.indexes["side by side"], self.keys)

    def _measured(self, indexes, name):
        if name not in self.taken:
            began, came, medium = time.perf_counter(), [], self.opened(indexes)
            self.decoders[name] = medium.decoders()[0]
            with closing(medium.pictures()) as pictures:
                for _ in pictures:
                    came.append(time.perf_counter() - began)
                    if len(came) >= max(2, ROUNDS * self.decoders[name]) and came[-1] > MOMENT:
                        break
            self.taken[name], self.indexes[name] = came, indexes
        return self.taken[name]

    def seconds(self, chosen, size):
        """Seconds of decoding the frames of these indexes, ascending."""
        spacing = int((chosen[-1] - chosen[0]) / max(1, len(chosen) - 1))
        count = self.opened(chosen).decoders()[0] if spacing > 1 else 1
        first = self._quick(chosen, count) if spacing > 1 else 0
        if first:
            return self._as_chosen(chosen, count, f"as chosen, {spacing.bit_length()}", first)
        start, close = self._close()
        if spacing <= 1:
            return start + close * (len(chosen) - 1)
        each = self._between(chosen, count)
        return start + each * work(chosen, self.keys) + max(0.0, close - each) * len(chosen)

    def _between(self, chosen, count):
        """Seconds of a frame that is decoded on the way to a wanted one."""
        start, close = self._close()
        if count > 1:
            seconds, frames = self.beside(chosen, count)
            each = max(seconds - start, 0.0) / frames
        else:
            far = self.near(FAR)
            # One by one, or at once. All of the last ones were decoded when the first one came, but for those that follow.
            began = far[0] if len(far) < len(self.indexes[FAR]) and far[-1] > 1.5 * far[0] else start
            each = max(far[-1] - began, 0.0) / max(1, FAR * (len(far) - 1))
        each = each or close
        return min(each, close or each)  # a frame that is shown is also decoded: more is a disturbance

    def _quick(self, chosen, count):
        """How many of the first frames come soon, since few pixels are decoded for them; 0 if too few, or more for the others."""
        ends, frames = self._ends(chosen, count), between(chosen, self.keys).cumsum()
        most = QUICK * ROUNDS * count // self.pixels
        runs = max(int(ends.searchsorted(ROUNDS * count)) + 1, count)
        least = ends[min(runs, len(ends)) - 1]
        if frames[least - 1] > most or frames[-1] * self.pixels > QUICK * len(chosen):
            return 0
        return int(max(least, *ends[frames[ends - 1] <= 2 * most]))

    def _ends(self, chosen, count):
        """The numbers of pictures that have come together: one decoder's come one by one, others' with the last before a key frame."""
        if count == 1:
            return np.arange(1, len(chosen) + 1)
        return np.append(np.flatnonzero(np.diff(np.searchsorted(self.keys, chosen, "right"))) + 1, len(chosen))

    def _as_chosen(self, chosen, count, name, most):
        """Seconds, from the first `most` of the frames themselves: seeks, too, count where frames are quick.

        Each decoder opens the file before its first picture, and reads the index of a long one for most of a second.
        """
        came = self._measured(chosen[:most], name)
        measured, beside = self.indexes[name], self.decoders[name]
        ends = self._ends(measured, beside)
        rounds = -(-(int(ends.searchsorted(len(came))) + 1) // beside)  # in which each decoder makes one run
        opened, ready = (int(ends[min(runs, len(ends)) - 1]) for runs in (beside, rounds * beside))
        first = came[min(opened, len(came)) - 1]
        each = (came[-1] - first) / (ready - opened) if ready > opened else first / opened
        total = first + each * (len(chosen) - opened)
        frames = work(chosen, self.keys)
        more = frames - work(measured[:ready], self.keys) * len(chosen) / ready
        if (
            abs(more) > OTHERS * frames
        ):  # at first key frames themselves were wanted, and later were not, or the other way round
            total += more * self._between(chosen, count)
        return max(total, first)


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
    return int(between(chosen, keys).sum())


def between(chosen, keys):
    """For each of ascending indexes, the frames that are decoded from the one before on."""
    chosen = np.asarray(chosen)
    before = np.append(0, chosen[:-1] + 1)  # the next frame that comes without a seek
    key = keys[np.maximum(np.searchsorted(keys, chosen, "right") - 1, 0)]
    return chosen + 1 - np.where(key >= before + SEEK_FROM, key, before)
