"""Encodes a span of a video from the pictures of this package's own decoder, with its sound copied."""

import io
import os
from fractions import Fraction

import av
import numpy as np

from ivlite.errors import DiskError, MediaError
from ivlite.media.container import open_stream
from ivlite.media.remux import shown_within
from ivlite.media.tracks import others_of
from ivlite.media.video import VideoProbe
from ivlite.stop import checkpoint

CLOCK = Fraction(1, 90000)  # seconds of a tick
# Encoders from the best on, with their settings: FFmpeg is built with some of them.
ENCODERS = {
    "libx264": {"crf": "20", "preset": "veryfast"},
    "libopenh264": {"b": "4M"},
    "mpeg4": {"qmin": "2", "qmax": "5"},
}
BT709, LIMITED = 1, 1  # in H.273: how the colours are written
NEAR = 5.0  # seconds between sound and pictures that lie beside each other in a file
JOINT = 1.0  # seconds by which times jump where segments were joined


class Sink:
    """An output.Partial as a binary file that FFmpeg writes. failure: the DiskError that ended it: FFmpeg loses it."""

    def __init__(self, file):
        self.file, self.at, self.failure = file, 0, None

    def write(self, data):
        try:
            self.file.put(data, self.at)
        except DiskError as error:
            self.failure = self.failure or error
            raise
        self.at += len(data)
        return len(data)

    def seek(self, offset, whence=io.SEEK_SET):
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: os.fstat(self.file.fd).st_size}[whence]
        self.at = base + offset
        return self.at

    def tell(self):
        return self.at


def encode(found, span, sink, form, progress=None):
    """Writes the frames of a Span; returns (0.0, notes). Raises MediaError, errors of FFmpeg. Arguments: as for remux.copy."""
    if not isinstance(found, VideoProbe):
        return 0.0, written(found, span, sink, form, progress, None)
    with open_stream(found.path, found.name, found.track) as (container, stream):
        return 0.0, written(found, span, sink, form, progress, (container, stream))


def written(found, span, sink, form, progress, file):
    """Encodes the pictures of a Probe. file: (container, stream) that sound is copied from, or None. Returns notes."""
    times = found.times.times
    chosen = np.arange(span.first, span.last + 1)
    size = tuple(max(2, side - side % 2) for side in found.shape)  # chroma has half as many
    medium = found.open(chosen, size, patch_size=1, temporal=1)
    ticks = np.round(np.maximum(0.0, times[chosen] - span.start) / float(CLOCK)).astype(np.int64)
    ends = np.append(ticks[1:], max(int(ticks[-1]) + 1, round((span.end - span.start) / float(CLOCK))))
    lengths = dict(zip(ticks.tolist(), (ends - ticks).tolist(), strict=True))
    with av.open(sink, "w", format=form) as out:
        stream = encoder(out, size, found.times.interval)
        others, notes = others_of(file[0], out) if file else ({}, [])
        sound = Sound(found.times, span, *file, others) if others else None
        for number, (picture, pts) in enumerate(zip(medium.pictures(), ticks.tolist(), strict=True), 1):
            checkpoint()
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.pts, frame.time_base = pts, CLOCK
            put(out, stream.encode(frame), lengths)
            if sound:
                sound.put(out, pts * CLOCK)
            if progress:
                progress("encode", number, len(ticks))
        put(out, stream.encode(None), lengths)
        if sound:
            sound.put(out, Fraction(span.end - span.start))
        for track in others.values():
            track.finish(out)
    return [*notes, *medium.warnings]


def encoder(out, size, interval):
    """The track of `out` that encodes pictures of (height, width). Raises MediaError."""
    for name, options in ENCODERS.items():
        if name in av.codecs_available:
            stream = out.add_stream(name, rate=Fraction(1 / interval).limit_denominator(1001), options=dict(options))
            (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
            codec = stream.codec_context
            codec.time_base = stream.time_base = CLOCK
            codec.colorspace = codec.color_primaries = codec.color_trc = BT709
            codec.color_range = LIMITED
            return stream
    raise MediaError("this FFmpeg has no encoder for a clip: install PyAV's own wheel (pip install av)")


def put(out, packets, lengths):
    for packet in packets:
        packet.duration = lengths.get(packet.pts, packet.duration)
        out.mux(packet)


class Sound:
    """The packets of sound and subtitles for a clip, with its times, in file order.

    In a file of joined streams their times follow the pictures beside them, whose places in the timeline are known.
    """

    def __init__(self, times, span, container, stream, others):
        self.times, self.span, self.stream = times, span, stream
        self.tracks = others
        self.tick, self.number = float(stream.time_base), 0
        self.shifts = []  # seconds from a file's time to the timeline's: the latest first, then the one before
        self.now = 0.0
        self.last = {}  # the dts of each track
        if times.pts is not None:
            self.shifts = [float(times.times[span.first]) - int(times.pts[span.first]) * self.tick]
            container.seek(int(times.pts[max(span.key, 0)]), stream=stream)
        elif times.places is None and stream.start_time is not None:  # frames are counted from the first one
            self.shifts = [-stream.start_time * self.tick]
        self.packets = self._placed(container.demux(stream, *(container.streams[index] for index in others)))
        self.waiting = next(self.packets, None)

    def put(self, out, moment):
        """Writes the packets up to a moment of the clip, in seconds."""
        while self.waiting is not None and self.waiting.pts * self.waiting.time_base <= moment:
            self.tracks[self.waiting.stream_index].put(out, self.waiting)
            self.waiting = next(self.packets, None)

    def _placed(self, packets):
        for packet in packets:
            checkpoint()
            if not packet.size:
                continue
            if packet.stream_index == self.stream.index:
                self._follow(packet)
                if self.now > self.span.end + NEAR:
                    return
            elif self._taken(packet):
                self.last[packet.stream_index] = packet.dts
                yield packet

    def _taken(self, packet):
        """Whether a packet of sound or subtitles belongs to the clip; if so, it has its new times."""
        moment = self._moment(packet)
        if moment is None or moment >= self.span.end:
            return False
        packet.pts = packet.dts = round((moment - self.span.start) / float(packet.time_base))
        visible = (
            shown_within(packet, 0, Fraction(self.span.end - self.span.start))
            if packet.stream.type == "subtitle"
            else packet.pts >= 0
        )
        return visible and packet.dts > self.last.get(packet.stream_index, -1)

    def _follow(self, packet):
        """Takes the shift of times from a packet of pictures."""
        time = packet.pts if packet.pts is not None else packet.dts
        places = self.times.places
        place = int(places[self.number]) if places is not None and self.number < len(places) else -1
        self.number += 1
        if time is None or (places is not None and place < 0 and not self.shifts):
            return
        if places is None or place < 0:
            self.shifts = self.shifts or [-time * self.tick]
            self.now = time * self.tick + self.shifts[0]
            return
        self.now = float(self.times.times[place])
        shift = self.now - time * self.tick
        if not self.shifts or abs(shift - self.shifts[0]) > JOINT:
            self.shifts = [shift, *self.shifts[:1]]

    def _moment(self, packet):
        """Seconds of the timeline at which a packet of sound begins; None if they are not known."""
        if packet.pts is None or not self.shifts:
            return None
        found = [packet.pts * float(packet.time_base) + shift for shift in self.shifts]
        nearest = min(found, key=lambda moment: abs(moment - self.now))
        constant = self.times.pts is not None
        return nearest if constant or abs(nearest - self.now) <= NEAR else None
