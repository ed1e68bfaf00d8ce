"""Videos: a file, or a list of frames."""

from contextlib import ExitStack

import numpy as np

from ivlite.errors import MediaError
from ivlite.media import frames, timeline
from ivlite.media.container import decoded, opened
from ivlite.media.display import Display, with_neighbours
from ivlite.media.medium import Medium
from ivlite.media.resize import fitted
from ivlite.media.source import local_path

SEEK_FROM = 64  # frames that must be saved before a jump pays: it empties the decoder's pipeline
MISSING = 0.02  # share of the declared time that may be absent without a word: files round it


def open_video(source, *, fps, min_frames, max_frames, min_pixels, max_pixels, nframes=None, start=None, end=None,
               factor=32, patch_size=16, temporal=2):  # fmt: skip
    """Opens a video: a path, a file:// URI, or a list of frames (paths, PIL images, uint8 arrays). Returns a Medium.

    fps: frames taken per second, between min_frames and max_frames of them; nframes: that many instead. For a list of
    frames, all are taken (up to max_frames) and fps says when they were. start, end: seconds; time marks stay those of
    the whole video. min_pixels, max_pixels: of each resized frame, whose sides are multiples of `factor`.

    Scans packet times and decodes one frame. Raises MediaError (the file), UsageError (an argument).
    """
    limits = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    limits |= {"nframes": nframes, "start": start, "end": end}
    shape = {"patch_size": patch_size, "temporal": temporal}
    pixels = (factor, min_pixels, max_pixels)
    if isinstance(source, list | tuple | np.ndarray):
        return frames.open_list(source, limits, pixels, shape)
    path, name = local_path(source, "video")
    with opened(path, name) as (container, stream):
        times = timeline.scan(container, stream, name)
    chosen = timeline.choose(times, f"video {name}", **limits)
    with Walk(path, name, times) as walk:
        _, picture = walk.at(int(chosen[0]))
        if picture is None:
            raise MediaError(f"video {name} has no frame that can be decoded (it is damaged or too large): convert it")
        display = Display(walk.stream)
        height, width = display.shape(picture)
    size = fitted(height, width, *pixels, f"video {name}")
    medium = VideoFile(path, times, display, "video", name, size, chosen, times.times[chosen], times.duration, **shape)
    for sentence in remarks(name, times):
        medium.warn(sentence)
    return medium


def remarks(name, times):
    """What is to be said about a video before it is decoded."""
    missing = times.declared - times.duration
    if missing > max(MISSING * times.declared, 2 * times.interval):
        yield f"video {name} is cut off: only the first {times.duration:.1f} of {times.declared:.1f} seconds are there"


class VideoFile(Medium):
    """A video file, decoded from disk each time its pairs are asked for."""

    def __init__(self, path, times, display, *args, **more):
        super().__init__(*args, **more)
        self.path, self.times, self.display = path, times, display

    def pictures(self):
        lost = damaged = 0
        last = None
        with Walk(self.path, self.source, self.times) as walk:
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
        return abs(times[found] - times[index]) > 1.5 * self.times.interval


class Walk:
    """A decoder that walks forward through a video file, from one wanted frame to the next."""

    def __init__(self, path, name, times):
        self.path, self.name, self.times = path, name, times
        self.stack = ExitStack()
        self.jumps = times.pts is not None

    def __enter__(self):
        self._open()
        return self

    def __exit__(self, *error):
        self.stack.close()

    def _open(self):
        self.stack.close()
        self.container, self.stream = self.stack.enter_context(opened(self.path, self.name))
        self.coming = with_neighbours(decoded(self.container, self.stream))
        self.index, self.frame = -1, None  # the frame decoded last
        self.ahead = None  # (index, frame) decoded beyond the wanted one

    def at(self, index):
        """(index, frame) of the wanted frame, or of the one on screen then; (index, None) if nothing is left to show.

        Indexes must rise from call to call.
        """
        fresh = self._jump(index)
        while self.index < index:
            following = self.ahead or self._next()
            self.ahead = None
            if following is None:
                return (self.index, self.frame) if not fresh else self._from_start(index)
            if following[0] > index and self.frame is not None:
                self.ahead = following
                return self.index, self.frame
            if following[0] > index and fresh:
                return self._from_start(index)  # the jump landed behind the frame
            self.index, self.frame = following
            fresh = False
        return self.index, self.frame

    def _next(self):
        frame = next(self.coming, None)
        if frame is None:
            return None
        if self.times.pts is None or frame.pts is None:
            return (self.ahead or (self.index,))[0] + 1, frame
        return int(np.searchsorted(self.times.pts, frame.pts)), frame

    def _jump(self, index):
        """Seeks to the last key frame before `index` where that saves decoding; whether it did."""
        if not self.jumps:
            return False
        at = int(np.searchsorted(self.times.keys, index, "right")) - 1
        if at < 0 or self.times.keys[at] < max(self.index, 0) + SEEK_FROM:
            return False
        try:
            self.container.seek(int(self.times.pts[self.times.keys[at]]), stream=self.stream)
        except OSError:
            self.jumps = False
            return False
        self.coming = with_neighbours(decoded(self.container, self.stream))
        self.index, self.frame, self.ahead = -1, None, None
        return True

    def _from_start(self, index):
        self.jumps = False
        self._open()
        return self.at(index)
