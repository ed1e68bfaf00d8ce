"""Copies the packets of a span of a video, of its sound and its subtitles, into another file."""

from fractions import Fraction
from itertools import chain

import av

from ivlite.errors import MediaError
from ivlite.media.container import open_stream
from ivlite.media.timeline import nearest
from ivlite.media.tracks import Copied, codec, others_of
from ivlite.stop import checkpoint

EDITS = ("mp4", "mov")  # formats in which an edit list hides what comes before the start
SHOWN = ("av1", "vp9", "vp8")  # codecs whose decoders show what it hides, in older players
LATE = 5  # seconds that sound may come later in a file than the pictures of its time


def copy(found, span, sink, form, progress=None):
    """Writes the packets of a Span; returns (seconds shown before its start, notes). Raises MediaError, errors of FFmpeg.

    found: a VideoProbe whose times identify packets. sink: an open binary file. form: FFmpeg's name of the format.
    """
    with open_stream(found.path, found.name, found.track) as (container, stream):
        with av.open(sink, "w", format=form) as out:
            copying = Copy(found.times, span, stream, form in EDITS and codec(stream) not in SHOWN)
            video = out.add_stream_from_template(stream, opaque=True)
            if stream.sample_aspect_ratio:
                video.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio
            if codec(stream) == "hevc" and form in EDITS:
                video.codec_context.codec_tag = "hvc1"  # Apple's players take no other
            others, notes = others_of(container, out)
            tracks = {stream.index: Copied(video)} | others
            for packet in begun(container, [container.streams[index] for index in tracks], copying):
                checkpoint()
                if copying.takes(packet):
                    tracks[packet.stream_index].put(out, packet)
                if copying.done(packet, len(others)):
                    break
            for track in tracks.values():
                track.finish(out)
            if not copying.complete:
                raise MediaError(f"{found.what} has other packets than its index says")
    return copying.early, notes


def begun(container, streams, copying):
    """The packets of streams in file order from one before the key frame of a Copy on. Raises MediaError."""
    times, stream = copying.times, streams[0]
    at = int(times.keys.searchsorted(copying.span.key))
    for place in dict.fromkeys(max(0, at - back) for back in (0, 1, 3, 7, 15)):
        if times.offsets is None:
            container.seek(int(times.pts[times.keys[place]]), stream=stream)
        else:
            container.seek(int(times.offsets[place]), unsupported_byte_offset=True)
        before, packets = [], (p for p in container.demux(*streams) if p.size)
        for packet in packets:
            before.append(packet)
            if packet.stream_index == stream.index:
                if copying.rank(packet) <= copying.span.key:
                    return chain(before, packets)
                break
    raise MediaError("no seek leads to the key frame")


def shown_within(packet, begin, end):
    """Whether a packet of subtitles is on screen between two moments, in seconds; if so, it is cut to them."""
    late = max(0, round(begin / packet.time_base) - packet.pts)
    left = min((packet.duration or 0), round(end / packet.time_base) - packet.pts) - late
    if late and left <= 0:
        return False
    packet.pts = packet.dts = packet.pts + late
    packet.duration = max(0, left)
    return True


class Copy:
    """Which packets belong to a span, and their new times.

    edits: whether an edit list hides what has a time below zero; else time zero is the key frame's. complete: whether all
    frames of the span were taken.
    """

    def __init__(self, times, span, stream, edits):
        self.times, self.span, self.edits = times, span, edits
        self.number, self.tick = stream.index, stream.time_base
        self.reorders = bool(stream.codec_context.has_b_frames)
        frame = span.first if edits else span.key
        self.early = 0.0 if frame == span.first else span.start - float(times.times[span.key])
        # A frame that is long on screen may begin before the start: it is given the start's time.
        late = 0 if frame != span.first else round(max(0.0, span.start - float(times.times[frame])) / float(self.tick))
        if frame + 1 < len(times.pts):
            late = max(0, min(late, int(times.pts[frame + 1] - times.pts[frame]) - 1))
        self.zero = (int(times.pts[frame]) + late) * self.tick  # of the clip in the file's time, Fraction seconds
        self.low = int(times.pts[span.key]) * self.tick
        first = float(times.times[span.first])
        self.high = int(times.pts[span.first]) * self.tick + Fraction(span.end - first).limit_denominator(10**6)
        self.over = round(self.high / self.tick)  # the end in ticks
        self.usual = max(1, round(times.interval / float(self.tick)))  # ticks of a frame
        self.started = self.complete = False
        self.seen = 0  # frames of the span so far
        self.past = set()  # streams that are behind the end

    def rank(self, packet):
        """The index of a packet's frame."""
        if packet.pts is None:
            raise ValueError("a packet without a time")
        return int(nearest(self.times.pts, packet.pts))

    def takes(self, packet):
        """Whether a packet belongs to the clip; if so, it has its new times."""
        taken = self._picture(packet) if packet.stream_index == self.number else self._other(packet)
        if taken:
            shift = round(self.zero / packet.time_base)
            packet.pts -= shift
            if packet.dts is not None:
                packet.dts = min(packet.dts - shift, packet.pts)
        return taken

    def _picture(self, packet):
        rank, span = self.rank(packet), self.span
        self.started |= rank == span.key and packet.is_keyframe
        behind = self.complete or (packet.dts is not None and packet.dts > self.times.pts[span.last])
        self.complete |= self.started and behind
        # Frames before the key frame that come after it refer to frames that are not there.
        if not self.started or behind or rank < span.key or packet.is_discard:
            return False
        if rank > span.last:  # one that others refer to: it is shown after the end, but no later than it must
            after = max(self.over, int(self.times.pts[span.last]) + self.usual)
            packet.pts = min(packet.pts, after + (rank - span.last - 1) * self.usual)
            packet.duration = self.usual
            return True
        self.seen += 1
        self.complete = self.seen >= span.last - span.key + 1
        # Of reordered frames, files give durations in the order of decoding, and the last frame may be on screen for long.
        after = self.over if rank == span.last else int(self.times.pts[rank + 1])
        packet.duration = max(1, after - max(packet.pts, int(self.zero / self.tick)))
        late = int(self.zero / self.tick) - packet.pts
        if rank == span.first and late > 0:
            packet.pts += late
            alone = rank == span.key and self.complete
            if packet.dts is not None and rank == span.key and (alone or not self.reorders):
                packet.dts += late  # else the dts of what follows may be earlier
        return True

    def _other(self, packet):
        if packet.pts is None:
            return False
        base = packet.time_base
        begin, over = packet.pts * base, (packet.pts + (packet.duration or 0)) * base
        if begin >= self.high:
            self.past.add(packet.stream_index)
            return False
        if packet.stream.type == "subtitle":
            return shown_within(packet, self.zero, self.high)
        return over > self.low if self.edits else begin >= self.low

    def done(self, packet, others):
        """Whether nothing that follows belongs to the clip."""
        if not self.complete:
            return False
        behind = packet.pts is not None and packet.pts * packet.time_base > self.high + LATE
        return len(self.past) == others or (behind and packet.stream_index == self.number)
