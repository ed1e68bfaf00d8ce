"""A video that was looked at and not sampled yet: its times, and the shape of its frames."""

from ivlite.media import timeline
from ivlite.media.resize import fitted


class Probe:
    """What is known of a video before its frames are chosen.

    name: for messages. shape: (height, width) of a frame on the screen. times: the Timeline of its frames. start, end:
    seconds of the range that is used, or None. estimated: `times` are what the file declares; settle() replaces them.
    every: all frames of the range are meant; fps is their rate, or nothing.
    """

    estimated = False

    def __init__(self, name, shape, times, start=None, end=None, every=False):
        self.name, self.shape, self.times = name, shape, times
        self.start, self.end, self.every = start, end, every

    @property
    def what(self):
        return f"video {self.name}"

    @property
    def seconds(self):
        """Seconds of the range that is used."""
        last = self.times.duration if self.end is None else min(self.end, self.times.duration)
        return max(0.0, last - (self.start or 0.0))

    def settle(self, progress=None):
        """Replaces estimated times by the file's own. progress("scan", done, total) counts bytes. Raises MediaError."""

    def chosen(self, temporal, *, fps, min_frames, max_frames, nframes=None):
        """The indexes of the sampled frames, int64 (n,): see timeline.choose. Raises UsageError."""
        if self.every and nframes is None:
            nframes = max_frames
        limits = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames, "nframes": nframes}
        return timeline.choose(
            self.times, self.what, **limits, start=self.start, end=self.end, temporal=temporal
        )  # fmt: skip

    def size(self, factor, min_pixels, max_pixels):
        """(H, W) after resizing: see resize.fitted. Raises MediaError."""
        return fitted(*self.shape, factor, min_pixels, max_pixels, self.what)

    def cost(self, chosen, size, measuring=True):
        """(seconds of reading the file for its times, of decoding the frames of these indexes), from a moment of doing so.

        measuring: False to spare the moment where a rough figure is good enough.
        """
        return 0.0, 0.0

    def tracks(self):
        """(Subtitles of the text tracks in the file, sentences about the other tracks). Raises MediaError."""
        return [], []

    def beside(self, path):
        """The paths of the subtitle files beside the video's own path."""
        from ivlite.media import subtitles

        return subtitles.beside(path)

    def read(self, path):
        """The Subtitles of such a file. Raises MediaError."""
        from ivlite.media import subtitles

        return subtitles.read(path, self.times.duration, self.times.rate)

    def open(self, chosen, size, **shape):
        """A Medium of the chosen frames, resized to `size`. shape: patch_size and temporal."""
        raise NotImplementedError
