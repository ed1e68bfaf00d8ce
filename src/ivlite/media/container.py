"""Opens video files safely: FFmpeg reads no other file, and decodes no picture that is too large."""

import errno
import os
from contextlib import contextmanager, suppress
from itertools import chain

import av
from av.stream import Discard, Disposition

from ivlite.errors import MediaError, UsageError
from ivlite.machine import MARGIN, available_memory
from ivlite.media import boxes
from ivlite.media.display import decoder
from ivlite.media.faults import system_fault, system_faults
from ivlite.media.resize import check_pixels
from ivlite.media.source import MAX_PIXELS
from ivlite.stop import checkpoint

# Containers whose demuxers open no other file; no playlists and scripts (HLS, DASH, concat).
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif,mxf,ivf,yuv4mpegpipe"
RAW = "h264,hevc,vvc,obu,m4v,mpegvideo,mjpeg"  # raw streams without a container
# Without the file: scheme FFmpeg takes "concat:..." or "http:..." as a protocol. The whitelist is for names in files.
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": f"{FORMATS},{RAW}", "max_pixels": str(MAX_PIXELS)}
ERRORS = (av.FFmpegError, OSError, EOFError, ValueError, ArithmeticError, LookupError)
REREAD = 64 << 20  # bytes: more than one packet and what FFmpeg reads ahead
JPEG = b"\xff\xd8\xff"
ENCRYPTED = "video {} is encrypted (DRM), and ivlite cannot decrypt it: give an unprotected copy"
NO_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails


@contextmanager
def open_stream(path, name, number=None):
    """Context manager: (container, stream) of the video in a file. Raises MediaError, UsageError.

    number: the index of the stream, as FFmpeg numbers them; None for the one that a player shows.
    """
    head = first_bytes(path, name)
    try:
        # Without a format FFmpeg takes a sequence of JPEG pictures for a single one.
        form = "mjpeg" if head.startswith(JPEG) else None
        container = av.open("file:" + path, format=form, options=dict(OPTIONS), metadata_errors="replace")
    except (*ERRORS, MemoryError) as error:
        fault = proven_fault(error, path, f"video {name}", 0)
        raise fault or MediaError(refusal(head, path, name)) from error
    with container, system_faults(f"video {name}"):
        stream = pick(container, name) if number is None else numbered(container, name, number)
        prepare(container, stream, path, name)
        yield container, stream


def first_bytes(path, name):
    try:
        with open(path, "rb") as file:
            return file.read(4096)
    except OSError as error:
        gone = MediaError(f"video {name} can no longer be read: check that it is still there")
        raise system_fault(error, f"video {name}") or gone from error


def refusal(head, path, name):
    """The error for a file that FFmpeg does not open, by its first bytes."""
    is_mp4 = head[4:8] in (b"ftyp", b"mdat", b"moov", b"free", b"wide")
    with suppress(OSError), open(path, "rb") as file:
        if is_mp4 and boxes.encrypted(file):  # FFmpeg does not know all forms of encryption
            return ENCRYPTED.format(name)
    if is_mp4 or head[:4] == b"\x1aE\xdf\xa3" or head[8:12] == b"AVI ":  # the middle one is Matroska
        return f"video {name} was cut off before its index, or is damaged: copy or record it again"
    return f"video {name} is not a video file ivlite reads (mp4, mov, mkv, webm, avi, ts and the like): convert it"


def pick(container, name):
    """The video stream that a player shows: the largest of those marked as default (or of all), without cover art."""
    streams = [s for s in container.streams.video if not s.disposition & NO_PICTURES]
    if not streams:
        has = "sound and no pictures" if container.streams.audio else "no video stream"
        raise MediaError(f"video {name} has {has}: give a file with pictures")
    return max(streams, key=rank)  # the first of equals


def rank(stream):
    codec = stream.codec_context
    marked = bool(stream.disposition & Disposition.default)
    return codec is not None, marked, codec.width * codec.height if codec else 0


def numbered(container, name, number):
    """The video stream of that index."""
    streams = {s.index: s for s in container.streams.video}
    if number not in streams:
        shown = [f"{n} ({described(s)})" for n, s in list(streams.items())[:8]]
        tracks = ", ".join(shown) or "none"
        raise UsageError(f"stream {number!r:.20} of video {name} is no video track; those are {tracks}")
    return streams[number]


def described(stream):
    codec = stream.codec_context
    return f"{codec.name}, {codec.width}x{codec.height}" if codec else "unknown codec"


def prepare(container, stream, path, name):
    """Checks the stream before decoding, and configures the decoder. Raises MediaError."""
    codec = stream.codec_context
    if protected(container, stream, path):
        raise MediaError(ENCRYPTED.format(name))
    if codec is None:
        raise MediaError(f"video {name} uses a codec that this PyAV does not decode: convert it to H.264")
    if codec.width and codec.height:
        check_pixels(codec.height, codec.width, f"video {name}")
    codec.options = {"max_pixels": str(MAX_PIXELS)}  # the limit in OPTIONS is for probing only
    codec.thread_type = "AUTO"
    for other in container.streams:  # skips audio packets
        if other.index != stream.index:
            other.discard = Discard.all


def protected(container, stream, path):
    """Whether the container marks the pictures of a stream as encrypted."""
    check = boxes.PROTECTED.get(container.format.name.split(",")[0])
    if check is None:
        return "enc_key_id" in stream.metadata  # Matroska
    with open(path, "rb") as file:
        return check(file, stream.id)


def packets(container, stream):
    """Yields the packets of a stream up to its end or to damage. Raises MediaError, OutOfMemoryError: faults of the system."""
    theora = stream.codec_context.name == "theora"
    at = 0
    try:
        for packet in container.demux(stream):
            checkpoint()
            at = packet.pos or at
            if packet.size and not (theora and memoryview(packet)[0] & 128):  # headers repeated in chained files
                yield packet
    except (*ERRORS, MemoryError) as error:
        path = container.name.removeprefix("file:")
        if fault := proven_fault(error, path, f"video {path}", at):
            raise fault from error


def proven_fault(error, path, what, at):
    """The IvliteError for an error of FFmpeg that is the system's fault; None for damage.

    at: an offset in the file shortly before the error. FFmpeg takes a file that cannot be read for a damaged one, and
    reports EIO for truncated files and ENOMEM for absurd sizes: the file is read again, and the memory is asked for.
    """
    if failed := reading_error(path, at):
        return system_fault(failed, what)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        left = available_memory()
        return system_fault(error, what) if left is not None and left < MARGIN else None
    return None if getattr(error, "errno", None) == errno.EIO else system_fault(error, what)


def reading_error(path, at):
    """The OSError of reading REREAD bytes of a file from an offset on, and as many at its end; None if they can be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            for place in (at, max(0, os.fstat(file.fileno()).st_size - REREAD)):
                file.seek(place)
                for _ in range(REREAD >> 20):
                    file.read(1 << 20)
    except OSError as error:
        return error
    return None


def decoded(stream, packets, place=None):
    """Yields the decoded frames of packets; skips damaged packets. Raises OutOfMemoryError.

    The pts of a frame is place(packet), which may be None. Without `place` it is the number of frames before it, where
    a packet that cannot be decoded counts as a frame.
    """
    using, shown = decoder(stream), 0
    for packet in chain(packets, [None]):  # None flushes the decoder
        if packet is not None:
            packet.pts = place(packet) if place else None
        try:
            frames = using.decode(packet)
        except (*ERRORS, MemoryError) as error:
            memory = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
            if memory and (fault := proven_fault(error, stream.container.name.removeprefix("file:"), "the video", 0)):
                raise fault from error
            shown += 1
            continue
        for frame in frames:
            if place is None:
                frame.pts = shown
            shown += 1
            yield frame
