"""Opening a video file so that nothing but this file is read, and no picture is decoded that is too large."""

from contextlib import contextmanager

import av
from av.stream import Disposition

from ivlite.errors import MediaError
from ivlite.media.display import decoder
from ivlite.media.resize import check_pixels
from ivlite.media.source import MAX_PIXELS

Discard = getattr(av.stream, "Discard", None)  # PyAV before 16 has no such thing

# Containers whose demuxers open no other file. Playlists and scripts (HLS, DASH, concat) are not among them.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"
# Without the scheme FFmpeg reads "concat:..." or "http:..." as a protocol; the whitelist holds for what files name.
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MAX_PIXELS)}
ERRORS = (av.FFmpegError, OSError, EOFError, ValueError, ArithmeticError, LookupError)


@contextmanager
def opened(path, name):
    """(container, stream) of the video in a file, closed at the end. Raises MediaError."""
    try:
        container = av.open("file:" + path, options=dict(OPTIONS), metadata_errors="replace")
    except ERRORS as error:
        raise MediaError(refusal(path, name)) from error
    with container:
        stream = pick(container, name)
        prepare(container, stream, name)
        yield container, stream


def refusal(path, name):
    """Why a file that FFmpeg does not open is refused, as far as its first bytes tell."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return f"video {name} can no longer be read: check that it is still there"
    is_mp4 = head[4:8] in (b"ftyp", b"mdat", b"moov", b"free", b"wide")
    if is_mp4 or head[:4] == b"\x1aE\xdf\xa3" or head[8:12] == b"AVI ":  # the middle one is Matroska
        return f"video {name} was cut off before its index, or is damaged: copy or record it again"
    return f"video {name} is not a video file ivlite reads (mp4, mov, mkv, webm, avi, ts and the like): convert it"


def pick(container, name):
    """The video stream: the marked or first one that is not cover art."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        has = "sound and no pictures" if container.streams.audio else "no video stream"
        raise MediaError(f"video {name} has {has}: give a file with pictures")
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def prepare(container, stream, name):
    """Checks the size, and readies the decoder. Raises MediaError."""
    codec = stream.codec_context
    if codec is None:
        raise MediaError(f"video {name} uses a codec that this PyAV does not decode: convert it to H.264")
    if codec.width and codec.height:
        check_pixels(codec.height, codec.width, f"video {name}")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # the limit above holds for probing only
    codec.thread_type = "AUTO"
    for other in container.streams if Discard else ():  # saves reading the sound
        if other.index != stream.index:
            other.discard = Discard.all


def packets(container, stream):
    """Yields the packets of a stream; a damaged end is the end."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except ERRORS:
        return


def decoded(container, stream):
    """Yields the frames of a stream from where the container stands, going on after damaged packets."""
    using = decoder(stream)
    for packet in packets(container, stream):
        try:
            yield from using.decode(packet)
        except ERRORS:
            continue
    try:
        yield from using.decode(None)  # what the decoder still holds
    except ERRORS:
        return
