"""The tracks of sound and subtitles of a clip: copied where its format takes their codec, sound encoded as AAC elsewhere."""

import io
from fractions import Fraction

import av
from av.stream import Discard

from ivlite.media.container import ERRORS

KEPT = ("language", "title")  # of a track's metadata
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # of AAC that every player plays


def codec(stream):
    """The name of a stream's codec, None if it is not known. A context has that of the decoder."""
    return stream.codec_context and stream.codec_context.codec.canonical_name


def takes(form, stream):
    """Whether a format takes the codec of a stream: FFmpeg's tables say more than its writers do."""
    try:
        with av.open(io.BytesIO(), "w", format=form) as out:
            out.add_stream_from_template(stream, opaque=True)
            out.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def others_of(container, out):
    """({index of a stream: its track in `out`} of sound and subtitles, sentences about those that are left out)."""
    taken, lost = {}, []
    for stream in (*container.streams.audio, *container.streams.subtitles):
        if stream.codec_context is None:
            continue
        track = track_of(stream, out)
        if track is None:
            lost.append(f"subtitles ({codec(stream)})" if stream.type == "subtitle" else f"sound ({codec(stream)})")
            continue
        track.stream.metadata.update({k: v for k, v in stream.metadata.items() if k in KEPT})
        track.stream.disposition = stream.disposition
        stream.discard = Discard.default
        taken[stream.index] = track
    return taken, [f"a clip in {out.format.name} cannot hold {' and '.join(lost)}: left out"] if lost else []


def track_of(stream, out):
    """The Copied or Encoded track of a stream; None where the format takes neither."""
    if takes(out.format.name, stream):
        return Copied(out.add_stream_from_template(stream, opaque=True))
    sound = stream.type == "audio" and stream.codec_context.sample_rate and "aac" in av.codecs_available
    return Encoded(stream, out) if sound else None


class Copied:
    """A track whose packets are those of its source."""

    def __init__(self, stream):
        self.stream = stream

    def put(self, out, packet):
        packet.stream = self.stream
        out.mux(packet)

    def finish(self, out):
        pass


class Encoded:
    """A track of sound that is decoded and encoded as AAC, in one or two channels. What cannot be decoded is silent."""

    def __init__(self, source, out):
        self.source = source
        layout = "mono" if source.codec_context.channels == 1 else "stereo"
        rate = min(RATES, key=lambda rate: abs(rate - source.codec_context.sample_rate))
        self.stream = out.add_stream("aac", rate=rate, layout=layout)
        self.resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        self.rate, self.next = rate, None  # the sample that comes next

    def put(self, out, packet):
        try:
            frames = self.source.codec_context.decode(packet)
        except ERRORS:
            return
        for frame in frames:
            self._encode(out, frame)

    def finish(self, out):
        self._encode(out, None)
        out.mux(self.stream.encode(None))

    def _encode(self, out, frame):
        if frame is None and self.next is None:
            return  # nothing was ever decoded
        for made in self.resampler.resample(frame):
            at = self.next if made.pts is None else round(made.pts * made.time_base * self.rate)
            if self.next is None or abs(at - self.next) > self.rate // 20:  # a gap; less is rounding
                self.next = at
            made.pts, made.time_base = self.next, Fraction(1, self.rate)
            self.next += made.samples
            out.mux(self.stream.encode(made))
