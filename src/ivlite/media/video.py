"""Video files."""

from ivlite.errors import MediaError
from ivlite.media.decode import FrameDecoder
from ivlite.media.display import Display
from ivlite.media.medium import Medium
from ivlite.media.resize import fitted
from ivlite.media.scan import scan
from ivlite.media.source import local_path
from ivlite.media.timeline import choose
from ivlite.numbers import number, whole

MISSING = 0.02  # fraction of the declared duration that may be missing without a warning: files round it


def open_video(source, *, fps, min_frames, max_frames, min_pixels, max_pixels, nframes=None, start=None, end=None,
               stream=None, factor=32, patch_size=16, temporal=2):  # fmt: skip
    """Opens a video file by its path or file: URI; returns a Medium.

    fps: frames sampled per second, at least min_frames and at most max_frames; nframes: exactly that many instead.
    start, end: seconds; timestamps stay those of the whole video. stream: the stream index in the file, as FFmpeg numbers
    them; None for the one that a player shows. min_pixels, max_pixels: of each resized frame, whose sides are multiples
    of `factor`.

    Reads the file's index, or all packets if there is none, and decodes one frame. Raises MediaError (the file),
    UsageError (an argument).
    """
    limits = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    limits |= {"nframes": nframes, "start": start, "end": end}
    shape = {"patch_size": patch_size, "temporal": temporal}
    pixels = (factor, min_pixels, max_pixels)
    path, name = local_path(source, "video")
    part = (None if moment is None else number(what, moment, 0) for what, moment in (("start", start), ("end", end)))
    track = None if stream is None else whole("stream", stream, 0)
    times = scan(path, name, track, *part)
    chosen = choose(times, f"video {name}", **limits, temporal=temporal)
    with FrameDecoder(path, name, times, track) as decoder:
        _, picture = decoder.at(int(chosen[0]))
        if picture is None:
            raise MediaError(f"video {name} has no frame that can be decoded (it is damaged or too large): convert it")
        display = Display(decoder.stream)
        height, width = display.shape(picture)
    size = fitted(height, width, *pixels, f"video {name}")
    marks = times.times[chosen]
    medium = VideoFile(path, track, times, display, "video", name, size, chosen, marks, times.duration, **shape)
    for sentence in remarks(name, times):
        medium.warn(sentence)
    return medium


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

    def pictures(self):
        lost = damaged = 0
        last = None
        with FrameDecoder(self.path, self.source, self.times, self.track) as decoder:
            for index in self.frames:
                found, frame = decoder.at(index)
                if frame is not None:
                    last = self.display.rgb(frame, self.size)
                    damaged += bool(frame.is_corrupt)
                if last is None:
                    raise MediaError(f"video {self.source} can no longer be decoded: check that it has not changed")
                lost += frame is None or self._far(found, index)
                yield last
        of = f"of the {len(self.frames)} frames used from video {self.source}"
        if lost:
            self.warn(f"{lost} {of} could not be decoded: a neighbouring frame stands in for each")
        if damaged:
            self.warn(f"{damaged} {of} are damaged and may show wrong things")

    def _far(self, found, index):
        """Whether the found frame differs from the wanted one by more than hidden frames (packets that are never shown)."""
        times = self.times.times
        return abs(times[min(found, len(times) - 1)] - times[index]) > 1.5 * self.times.interval
