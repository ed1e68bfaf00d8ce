"""The interface of an opened image or video: its plan, and its pixels in frame pairs."""

import numpy as np

from ivlite.stop import checkpoint


class Medium:
    """An image or a video that is open but not decoded.

    kind: "image" or "video". source: its name for messages. size: (H, W) after resizing. grid: (t, h, w) in patches, t
    in frame pairs. frames: the indexes of the sampled source frames, in order. timestamps: seconds of each pair ([] for
    an image). duration: seconds of the whole video (None for an image). warnings: sentences; decoding may add some.
    """

    def __init__(self, kind, source, size, frames, times, duration, *, patch_size, temporal, warnings=()):
        self.kind, self.source, self.size, self.duration = kind, source, size, duration
        self.frames = [int(i) for i in frames]
        self.temporal = temporal
        self.timestamps = marks([float(t) for t in times], temporal) if kind == "video" else []
        self.grid = (-(-len(self.frames) // temporal), size[0] // patch_size, size[1] // patch_size)
        self.warnings = list(warnings)

    def pictures(self):
        """Yields uint8 (H, W, 3) for each of `frames`. Raises MediaError."""
        raise NotImplementedError

    def pairs(self):
        """Yields contiguous uint8 (temporal, H, W, 3), one per t of the grid; may be called again.

        Decodes lazily and holds one pair. If the last pair lacks a frame, the last frame is repeated.
        """
        pair = None
        for n, picture in enumerate(self.pictures()):
            checkpoint()
            at = n % self.temporal
            if at == 0:
                pair = np.empty((self.temporal, *self.size, 3), np.uint8)
            pair[at:] = picture
            if at == self.temporal - 1 or n == len(self.frames) - 1:
                yield pair

    def warn(self, sentence):
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def marks(times, temporal):
    """Seconds of each pair: the mean of its first and last frame's time; an incomplete pair ends with the last frame."""
    pairs = [times[i : i + temporal] for i in range(0, len(times), temporal)]
    return [(p[0] + (p[-1] if len(p) == temporal else times[-1])) / 2 for p in pairs]
