"""Cuts a span out of a video into a file of its own: packets are copied where that is right, and encoded where it is not.

Copying begins at the key frame before the span. In mp4 and mov an edit list hides what comes before the start, so players
begin with the frame that is on screen at the start. In mkv nothing can, and decoders of AV1 and VP9 may show it all the same:
there the clip begins early, and says by how much.
Frames are decoded and encoded where times do not identify packets (joined streams, AVI with B-frames), where there are no
packets (animated images), where the container does not take the codec, and where the clip that was copied does not show
the same pictures as its source.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ivlite import output as outputs
from ivlite.errors import IvliteError, MediaError, UsageError
from ivlite.files import path_text
from ivlite.media import animation, encode, probe, remux, tracks
from ivlite.media.container import ERRORS, open_stream
from ivlite.media.faults import reason
from ivlite.media.probe import Probe
from ivlite.media.source import local_path
from ivlite.media.timeline import SLACK, within
from ivlite.media.video import VideoProbe
from ivlite.numbers import number

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # of an output, by the end of its name
MOV = "mov,mp4"  # how FFmpeg's name of that family of formats begins
# Codecs that players expect in mp4, and those that a file of the family may bring along.
MP4 = {"h264", "hevc", "av1", "mpeg4", "aac", "mp3", "ac3", "eac3", "alac", "mov_text"}
MP4_ALREADY = MP4 | {"vp9", "opus", "flac", "vvc"}
FARTHEST = 20.0  # seconds between a key frame and the start: beyond it a clip would mostly hold what nobody asked for
SAME = 4.0  # levels of 255: mean difference of a frame and its copy; it is not 0 where fields are interpolated from neighbours
CHECKED = 48  # pixels: height and width of the pictures that are compared


@dataclass(frozen=True)
class Cut:
    """A clip that was written.

    path: the file. start, end: seconds of the video that it shows. early: seconds that are shown before the start that
    was asked for. hidden: seconds before it that are in the file and that players skip. copied: whether packets were
    copied; else frames were encoded. notes: sentences about what is different from the video.
    """

    path: str
    start: float
    end: float
    early: float
    hidden: float
    copied: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """Part of a video: indexes of the frames on screen from `start` to `end` seconds, and of the key frame before."""

    first: int
    last: int
    key: int
    start: float
    end: float


def cut(
    source: str | os.PathLike[str] | Probe,
    output: str | os.PathLike[str],
    start: float = 0.0,
    end: float | None = None,
    *,
    exact: bool = False,
    stream: int | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Cut:
    """Writes the part of a video from `start` to `end` seconds (None: its end) to a file, with sound and subtitles.

    source: a video or an animated image, or the Probe of one (for several clips). output: a name that ends in .mp4, .m4v,
    .mov or .mkv; an older file is replaced once the clip is complete. Times are those of `ivlite.media.probe`: seconds from
    the first frame. exact: encode, so that the file holds nothing from before the start. stream: as for probe.
    progress(stage, done, total): "scan" counts bytes, "encode" frames. Raises MediaError, UsageError, DiskError, Stopped.
    """
    output = path_text(output)
    form = FORMATS.get(os.path.splitext(output)[1].lower())
    if form is None:
        raise UsageError(f"{output} has no ending of a clip: name it .mp4, .mov or .mkv")
    start = number("start", start, 0)
    if isinstance(source, Probe):
        found, path = source, getattr(source, "path", None)
    else:
        found, path = probe(source, fps=25, start=start, end=end, stream=stream), local_path(source, "video")[0]
    outputs.check_outputs([output], [path])
    found.settle(progress)
    span = span_of(found, start, end)
    if not exact and copyable(found, span):
        made = write(output, found, span, form, remux.copy, None)
        if made is not None:
            return made
    return write(output, found, span, form, encode.encode, progress)


def suffix(source: str | os.PathLike[str], stream: int | None = None) -> str:
    """The ending of a clip's name with which `cut` keeps most of a video: ".mp4", ".mov" or ".mkv". Raises MediaError."""
    path, name = local_path(source, "video")
    if animation.is_image(lambda: open(path, "rb"), path):
        return ".mp4"
    with open_stream(path, name, stream) as (container, video):
        streams = container.streams
        sound, subtitles = ({tracks.codec(s) for s in some} - {None} for some in (streams.audio, streams.subtitles))
        pictures = {tracks.codec(video)} if tracks.takes("matroska", video) else set()  # else they are encoded
        if container.format.name.startswith(MOV):
            return ".mp4" if pictures | sound <= MP4_ALREADY else ".mov"
        return ".mp4" if pictures | sound | subtitles <= MP4 else ".mkv"


def span_of(found, start, end):
    """The Span of a Probe. Raises UsageError."""
    times = found.times
    first, _ = within(times, start, end, found.what)
    end = min(times.duration, end or times.duration)
    last = max(first, int(np.searchsorted(times.times, end - SLACK)) - 1)
    at = int(times.keys.searchsorted(first, "right")) - 1
    return Span(first, last, int(times.keys[at]) if at >= 0 else -1, start, end)


def copyable(found, span):
    """Whether the times of a file's packets say which frames they are, and a key frame is near."""
    times = found.times
    clear = isinstance(found, VideoProbe) and times.pts is not None and not times.ordered
    return clear and span.key >= 0 and span.start - times.times[span.key] <= FARTHEST


def write(output, found, span, form, make, progress):
    """The Cut written by make(found, span, file, form, progress); None if a copy fails, or shows something else than its source."""
    copying = make is remux.copy
    file = outputs.Partial(output, 0)
    sink = encode.Sink(file)
    try:
        early, notes = make(found, span, sink, form, progress)
        if copying and not same(found, span, early, file.partial):
            return None
        file.finish()
    except IvliteError:
        raise
    except ERRORS as error:
        if sink.failure:
            raise sink.failure from None
        if copying:
            return None
        raise MediaError(f"{found.what} cannot be cut ({reason(error)}): try another span or another ending") from error
    finally:
        file.close(keep=False)
    before = span.start - float(found.times.times[span.key]) if copying and not early and span.key < span.first else 0.0
    return Cut(os.fspath(output), span.start - early, span.end, early, before, copying, (*notes, *file.notes))


def same(found, span, early, path):
    """Whether a clip can be decoded, and begins and ends with the pictures of the source."""
    try:
        clip = probe(path, fps=25)
        clip.settle()
        first = span.key if early else span.first
        count = len(clip.times.times)
        if clip.shape != found.shape or count < span.last - first + 1:
            return False
        ours = pictures(clip, [0, span.last - first])
        theirs = pictures(found, [first, span.last])
    except MediaError:
        return False
    return all(np.abs(a.astype(float) - b).mean() <= SAME for a, b in zip(ours, theirs, strict=True))


def pictures(found, indexes):
    chosen = np.unique(np.array(indexes, np.int64))
    return list(found.open(chosen, (CHECKED, CHECKED), patch_size=1, temporal=1).pictures())
