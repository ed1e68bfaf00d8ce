"""Image files as videos: the frames of an animated image, composed by Pillow; a still image is a single frame."""

import os
import time

import numpy as np
from PIL import PngImagePlugin

from ivlite.errors import IvliteError, MediaError
from ivlite.media import frames, memory, stills, timeline
from ivlite.media.color import to_rgb
from ivlite.media.faults import reason, system_fault
from ivlite.media.image import content_of
from ivlite.media.medium import Medium
from ivlite.media.probe import Probe
from ivlite.media.resize import shown
from ivlite.stop import checkpoint

HEADS = (b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
BRANDS = (b"avif", b"avis", *stills.HEIC)  # of ISO media files that are images; FFmpeg reads GIF
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm")
JPEG = b"\xff\xd8\xff"
SHORTEST, USUAL = 0.011, 0.1  # seconds: browsers show a frame shorter than SHORTEST for USUAL


def is_image(open_file, name):
    """Whether a file is an image, by its first bytes, and not a stream of JPEG pictures."""
    suffix = os.path.splitext(os.fsdecode(name))[1].lower()
    try:
        with open_file() as file:
            head = file.read(64)
            if head.startswith(JPEG):
                return suffix in SUFFIXES or not several(file)
    except OSError:  # the next reader reports it better
        return False
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    iso = head[4:8] == b"ftyp" and head[8:12] in BRANDS
    return head.startswith(HEADS) or webp or iso or (suffix in SUFFIXES and not head.startswith(b"GIF8"))


def several(file):
    """Whether a JPEG file has several pictures, as in a raw stream."""
    before = b""
    while part := file.read(1 << 20):
        if b"\xff\xd9" + JPEG in before + part:
            return True
        before = part[-4:]
    return False


def probe_images(open_file, source, name, fps, start=None, end=None):
    """The Probe of an image file as a video. Raises MediaError, UsageError, OutOfMemoryError.

    open_file: opens it in binary. source: the same file in a form that open_image takes. Decodes each frame once.
    """
    began = time.perf_counter()
    ends, shape, notes = scan(open_file, f"video {name}")
    frame = (time.perf_counter() - began) / max(1, len(ends))
    if len(ends) < 2:
        return frames.FrameListProbe(memory.Frames([source]), fps, start, end, name)
    times = np.array([0.0, *ends[:-1]])
    lengths = np.diff(ends, prepend=0)
    clock = timeline.Timeline(
        times, None, np.zeros(1, np.int64), None, float(np.median(lengths)), last=float(lengths[-1])
    )
    return AnimationProbe(open_file, content_of(source, "video"), notes, frame, name, shape, clock, start, end)


class AnimationProbe(Probe):
    """An animated image file."""

    def __init__(self, open_file, content, notes, frame, *known):
        super().__init__(*known)
        self._open, self._content, self._notes = open_file, content, notes
        self._frame = frame  # seconds of decoding one

    def cost(self, chosen, size, measuring=True):
        return 0.0, self._frame * (int(chosen[-1]) + 1)

    def open(self, chosen, size, **shape):
        marks, length = self.times.times[chosen], self.times.duration
        named = "video", self.name, size, chosen, marks, length
        return Animation(self._open, self._content, *named, warnings=self._notes, **shape)


def scan(open_file, what):
    """(seconds at which each frame ends, (height, width), sentences) of an image file; decodes all its frames."""
    ends, size, notes = [], None, []
    try:
        with open_file() as file:
            for image in composed(file, what):
                size = image.size[::-1]
                seconds = (image.info.get("duration") or 0) / 1000
                ends.append((ends[-1] if ends else 0.0) + (USUAL if seconds < SHORTEST else seconds))
    except IvliteError:
        raise
    except Exception as error:  # of Pillow's decoders; the reader of still images reports more
        fault = system_fault(error, what)
        if fault:
            raise fault from error
        if len(ends) > 1:
            notes.append(f"{what} is damaged or cut off after {len(ends)} frames: the others are left out")
    return ends, size, notes


def composed(file, what):
    """Yields the composed frames of an animated image."""
    image, _ = stills.prepared(file, what, 1.0)
    for index in range(image.info.get("default_image", False), getattr(image, "n_frames", 1)):
        checkpoint()
        image.seek(index)
        before = image._prev_im.copy() if undone(image) else None
        image.load()
        if before is not None:  # Pillow composes a frame in its copy of the one before, which it needs again
            image._prev_im = before
        yield image


def undone(image):
    """Whether the current frame of an APNG is replaced by the one before it when its time is over."""
    disposal = image.info.get("disposal") if image.format == "PNG" else None
    return disposal == PngImagePlugin.Disposal.OP_PREVIOUS and getattr(image, "_prev_im", None) is not None


class Animation(Medium):
    """An animated image file; every call of pairs() decodes it from the beginning."""

    def __init__(self, open_file, content, *args, **more):
        super().__init__(*args, **more)
        self._open, self._content = open_file, content

    def content(self):
        return self._content

    def pictures(self, first=0):
        what, wanted = f"video {self.source}", iter(self.frames[first:])
        try:
            with self._open() as file:
                index = next(wanted)
                for at, image in enumerate(composed(file, what)):
                    while index == at:
                        yield shown(image, self.size, None, to_rgb(image))
                        index = next(wanted, None)
                    if index is None:
                        return
        except IvliteError:
            raise
        except Exception as error:
            fault = system_fault(error, what)
            raise fault or MediaError(f"{what} can no longer be decoded ({reason(error)})") from error
        raise MediaError(f"{what} can no longer be decoded: check that it has not changed")
