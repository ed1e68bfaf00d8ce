"""Video files."""

from ivlite.errors import MediaError
from ivlite.media.display import Display
from ivlite.media.medium import Medium
from ivlite.media.resize import fitted
from ivlite.media.scan import scan
from ivlite.media.source import local_path
from ivlite.media.timeline import choose
from ivlite.media.walk import Walk
from ivlite.numbers import number, whole

MISSING = 0.02  # share of the declared time that may be absent without a word: files round it


def open_video(source, *, fps, min_frames, max_frames, min_pixels, max_pixels, nframes=None, start=None, end=None,
               stream=None, factor=32, patch_size=16, temporal=2):  # fmt: skip
    """Opens a video file by its path or file: URI; returns a Medium.

    fps: frames taken per second, between min_frames and max_frames of them; nframes: that many instead. start, end:
    seconds; time marks stay those of the whole video. stream: the index of the file's stream to use, as FFmpeg counts
    them; None for the one that a player shows. min_pixels, max_pixels: of each resized frame, whose sides are multiples
    of `factor`.

    Reads the file's index, or all packets where it has none, and decodes one frame. Raises MediaError (the file),
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
    with Walk(path, name, times, track) as walk:
        _, picture = walk.at(int(chosen[0]))
        if picture is None:
            raise MediaError(f"video {name} has no frame that can be decoded (it is damaged or too large): convert it")
        display = Display(walk.stream)
        height, width = display.shape(picture)
    size = fitted(height, width, *pixels, f"video {name}")
    marks = times.times[chosen]
    medium = VideoFile(path, track, times, display, "video", name, size, chosen, marks, times.duration, **shape)
    for sentence in remarks(name, times):
        medium.warn(sentence)
    return medium


def remarks(name, times):
    """What is to be said about a video before it is decoded."""
    yield from times.notes
    missing = times.declared - times.duration
    if missing > max(MISSING * times.declared, 2 * times.interval):
        yield f"video {name} is cut off: only the first {times.duration:.1f} of {times.declared:.1f} seconds are there"


class VideoFile(Medium):
    """A video file, decoded from disk each time its pairs are asked for."""

    def __init__(self, path, track, times, display, *args, **more):
        super().__init__(*args, **more)
        self.path, self.track, self.times, self.display = path, track, times, display

    def pictures(self):
        lost = damaged = 0
        last = None
        with Walk(self.path, self.source, self.times, self.track) as walk:
            for index in self.frames:
                found, frame = walk.at(index)
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
        """Whether another frame than the wanted one was found, beyond packets that never show (hidden frames)."""
        times = self.times.times
        return abs(times[min(found, len(times) - 1)] - times[index]) > 1.5 * self.times.interval
