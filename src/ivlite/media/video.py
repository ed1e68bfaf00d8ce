"""Video files."""

import os
import struct
import time
from contextlib import closing
from itertools import islice

import numpy as np

from ivlite.errors import MediaError
from ivlite.media import lanes, timeline
from ivlite.media.container import ERRORS, RAW, decoded, open_stream, packets
from ivlite.media.decode import FrameDecoder
from ivlite.media.display import Display
from ivlite.media.medium import Content, Medium
from ivlite.media.pace import Pace, RoughPace, work
from ivlite.media.probe import Probe
from ivlite.media.scan import FROM_ZERO, declared_seconds, indexed, scan
from ivlite.media.source import local_path
from ivlite.numbers import whole

MISSING = 0.02  # fraction of the declared duration that may be missing without a warning: files round it
LONGEST = 400 * 24 * 3600  # seconds: a declared length beyond it is damage
LITTLE, PIXEL = 1 << 28, 4e-9  # pixels to decode that are not worth measuring; seconds of one, roughly
MOST_RATE, USUAL_RATE = 1000, 30.0  # frames a second
MOST_ESTIMATED = 4_000_000  # frames of an estimated timeline
ROW = 16  # bytes of a frame in a Timeline
FRAME, FRAME_MPEGTS = 8, 188  # bytes that a frame takes in a file, at least
ENTERED = ("mpegts", "mpeg")  # formats whose times may jump, and that are read from any offset on
PLACES, EACH = 5, 48  # places of a file where its bytes a second are measured, packets of each
PROPORTION = 4  # how many times the length that follows from these a declared one may be, or the reverse


class VideoProbe(Probe):
    """A video file. stream: the stream index in the file, as FFmpeg numbers them; None for the one that a player shows.

    Reads the file's index; without one, the times are those that the container declares until settle() reads all packets.
    It is called at once where the container declares what cannot be.
    """

    def __init__(self, source, start=None, end=None, stream=None):
        self.held = source  # of bytes in memory: the temporary file
        self.path, name = local_path(source, "video")
        self.track = None if stream is None else whole("stream", stream, 0)
        times = indexed(self.path, name, self.track, start, end)
        super().__init__(name, None, times, start, end)
        self._display = self._shape = self._pace = None
        self._first = 0.0  # seconds of opening a decoder and of its first frame
        if times is None:
            self.times, self.estimated = self._declared(), True
            if self.times is None or (start or 0) >= self.times.duration:
                self.settle()

    def _declared(self):
        with open_stream(self.path, self.name, self.track) as (container, stream):
            times = declared(container, stream)
            return None if times is None or doubtful(container, stream, times) else times

    def settle(self, progress=None):
        if self.estimated:
            self.times, self.estimated = scan(self.path, self.name, self.track, self.start, self.end, progress), False
            self._shape = self._pace = None

    @property
    def shape(self):
        """(height, width) of the first frame of the range; of the file's first while the times are estimated."""
        if self._shape is None:
            self._look()
        return self._shape

    @shape.setter
    def shape(self, value):
        self._shape = value

    def _look(self):
        if self.estimated:
            with open_stream(self.path, self.name, self.track) as (container, stream):
                picture = next(decoded(stream, packets(container, stream)), None)
                self._seen(stream, picture)
            return
        began, (first, _) = time.perf_counter(), timeline.within(self.times, self.start, self.end, self.what)
        with FrameDecoder(self.path, self.name, self.times, self.track) as decoder:
            _, picture = decoder.at(first)
            self._first = time.perf_counter() - began
            self._seen(decoder.stream, picture)

    def _seen(self, stream, picture):
        if picture is None:
            raise MediaError(f"{self.what} has no frame that can be decoded (it is damaged or too large): convert it")
        self._display = Display(stream)
        self._shape = self._display.shape(picture)

    def cost(self, chosen, size, measuring=True):
        if not measuring and not self.estimated:
            pixels = self.shape[0] * self.shape[1] * work(chosen, self.times.keys)
            if pixels < LITTLE:
                return 0.0, self._first + pixels * PIXEL
        if self._pace is None and self.estimated:
            self._pace = RoughPace(self.path, self.name, self.track)
        elif self._pace is None:
            first, last = timeline.within(self.times, self.start, self.end, self.what)
            shape = {"patch_size": 1, "temporal": 1}
            pixels = self.shape[0] * self.shape[1]
            self._pace = Pace(lambda some: self.open(some, size, **shape), first, last, self.times.keys, pixels)
        return self._pace.scan if self.estimated else 0.0, self._pace.seconds(chosen, size)

    def tracks(self):
        from ivlite.media import subtitles

        return subtitles.of_tracks(self.path, self.times.duration)

    def open(self, chosen, size, **shape):
        if self._display is None:
            self._look()
        marks, length = self.times.times[chosen], self.times.duration
        medium = VideoFile(
            self.path, self.track, self.times, self._display, "video", self.name, size, chosen, marks, length, **shape
        )
        medium.held = self.held
        for sentence in (*remarks(self.name, self.times), *self._display.notes(self.name)):
            medium.warn(sentence)
        return medium


def declared(container, stream):
    """The Timeline that a container declares, at a constant rate; None where it declares no length or no rate."""
    rates = [float(r) for r in (stream.average_rate, stream.guessed_rate) if r]
    if rates and rates[0] > MOST_RATE:  # the clock's rate, where FFmpeg knows none of frames
        rates = [USUAL_RATE]
    seconds = declared_seconds(container, stream) or (container.duration or 0) / 1e6
    if container.format.name.startswith(FROM_ZERO):
        seconds -= max(0.0, (container.start_time or 0) / 1e6)
    if container.format.name in RAW.split(",") or not rates or not 0 < seconds < LONGEST:
        return None
    rate = min(rates[0], MOST_ESTIMATED / seconds)
    count = max(1, round(seconds * rate))
    return timeline.Timeline(np.arange(count) / rate, None, np.zeros(1, np.int64), rate, 1 / rate)


def doubtful(container, stream, times):
    """Whether a file has too few bytes for its declared Timeline, or a length out of proportion to them.

    FFmpeg takes the length of a transport or program stream from its first and last time, whatever is between.
    """
    form, size = container.format.name, container.size
    if len(times.times) * (FRAME_MPEGTS if form == "mpegts" else FRAME) > size:
        return True
    if form not in ENTERED:
        return False
    measured = [paced(container, stream, size * n // PLACES) for n in range(PLACES)]
    seconds, read = (sum(column) for column in zip(*measured, strict=True))
    reckoned = size * seconds / read if read else 0.0
    return not reckoned / PROPORTION <= times.duration <= reckoned * PROPORTION


def paced(container, stream, offset):
    """(seconds, bytes) of some packets of the file from an offset on; zeros if it cannot be read there."""
    try:
        container.seek(offset, unsupported_byte_offset=True)
        some = [(p.dts, p.pos) for p in islice(packets(container, stream), EACH) if None not in (p.dts, p.pos)]
    except ERRORS:
        return 0.0, 0
    if len(some) < 2:
        return 0.0, 0
    step = np.median(np.diff([dts for dts, _ in some]))  # a jump among them does not count
    return max(0.0, float(step * stream.time_base)) * (len(some) - 1), max(0, some[-1][1] - some[0][1])


def remarks(name, times):
    """Warnings about a video that are known before it is decoded."""
    yield from times.notes
    missing = times.declared - times.duration
    if missing > max(MISSING * times.declared, 2 * times.interval):
        yield f"video {name} is cut off: only the first {times.duration:.1f} of {times.declared:.1f} seconds are there"


class VideoFile(Medium):
    """A video file; every call of pairs() decodes it from disk."""

    def __init__(self, path, track, times, display, *args, **more):
        super().__init__(*args, **more)
        self.path, self.track, self.times, self.display = path, track, times, display
        self._content = Content(path, repr(track).encode())

    def content(self):
        return self._content

    def decoders(self):
        """(decoders that work side by side, threads of each, bytes of memory that all take)."""
        return lanes.decoders(
            self.times, self.frames, lanes.split(self.times, self.frames), self.display.stored, self.size
        )

    def memory(self, decoding=True):
        count = len(self.times.times)
        return ROW * count + max(lanes.ENTRY * count, self.decoders()[2] if decoding else 0)

    def _picture_key(self, content, n):  # with a start or an end, a file's index may be read in part
        return super()._picture_key(content, n) + struct.pack("<d", self.times.times[self.frames[n]])

    def pictures(self, first=0):
        lost = damaged = 0
        last = None
        file, wanted = (self.path, self.source, self.track), self.frames[first:]
        decoding = lanes.pictures(file, self.times, wanted, self._picture, self.display.stored, self.size)
        with closing(decoding):
            for index, (found, picture, bad) in zip(wanted, decoding, strict=True):
                last = last if picture is None else picture
                if last is None:
                    raise MediaError(f"video {self.source} can no longer be decoded: check that it has not changed")
                damaged += bad
                lost += picture is None or self._far(found, index)
                yield last
        of = f"of the {len(self.frames)} frames used from video {self.source}"
        if self._content.changed() and os.path.exists(self.path):
            self.warn(
                f"video {self.source} has changed since it was opened: its frames may be others than those planned"
            )
        elif lost:
            self.warn(f"{lost} {of} could not be decoded: a neighbouring frame stands in for each")
        if damaged:
            self.warn(f"{damaged} {of} are damaged and may show wrong things")
        for sentence in self.display.notes(self.source):
            self.warn(sentence)

    def _picture(self, frame):
        return self.display.rgb(frame, self.size)

    def _far(self, found, index):
        """Whether the found frame differs from the wanted one by more than hidden frames (packets that are never shown)."""
        times = self.times.times
        return abs(times[min(found, len(times) - 1)] - times[index]) > 1.5 * self.times.interval
