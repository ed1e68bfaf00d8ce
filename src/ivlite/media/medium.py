"""The interface of an opened image or video: its plan, its identity, and its pixels in frame pairs."""

import copy
import hashlib
import os
import struct
import threading

import numpy as np

from ivlite import files
from ivlite.errors import MediaError
from ivlite.stop import checkpoint

FORM = b"ivlite frame pair 1"  # part of every key; changes when the same file gives other pixels
SQUARE, NEAR = 8, 6  # pixels, and levels of 255: above what compression changes in a still picture, below a letter
LARGE = 32 << 20  # bytes: a file that is read in a thread of its own, while it is decoded


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
        self._keys = None

    def pictures(self, first=0):
        """Yields uint8 (H, W, 3) for each of `frames` from number `first` on. Raises MediaError."""
        raise NotImplementedError

    def pairs(self, first=0):
        """Yields contiguous uint8 (temporal, H, W, 3), one per t of the grid from `first` on; may be called again.

        Decodes lazily and holds one pair. If the last pair lacks a frame, the last frame is repeated.
        """
        pair, keys, mine = None, [], self.content() is None
        for n, picture in enumerate(self.pictures(first * self.temporal), first * self.temporal):
            checkpoint()
            at = n % self.temporal
            if at == 0:
                pair = np.empty((self.temporal, *self.size, 3), np.uint8)
            pair[at] = picture
            if at == self.temporal - 1 or n == len(self.frames) - 1:
                pair[at + 1 :] = picture
                if mine:
                    keys.append(pixel_key(self.kind, pair))
                yield pair
        self._keys = self._seen_keys(first, keys if mine else None)

    def _seen_keys(self, first, keys):
        """The keys after the pairs from `first` on were seen. keys: theirs, of pixels in memory: as they were just now."""
        if keys is not None:
            keys = [*(self._keys or [])[:first], *keys]
            return keys if len(keys) == self.grid[0] else None
        content = self.content()
        if self._keys is not None and isinstance(content, Content) and content.changed():
            return [*self._keys[:first], *(os.urandom(16) for _ in self._keys[first:])]  # nobody knows what was seen
        return self._keys

    def repeats(self):
        """For each pair, whether it shows nearly what the last one shows for which this was not so. Holds two pairs.

        Nearly: in no square of 8 pixels does the mean of a colour differ by more than NEAR.
        """
        last = None
        for pair in self.pairs():
            t, h, w, _ = pair.shape
            means = pair.reshape(t, h // SQUARE, SQUARE, w // SQUARE, SQUARE, 3).mean((2, 4), np.float32)
            near = last is not None and np.abs(means - last).max() <= NEAR
            last = last if near else means
            yield near

    def only(self, pairs):
        """This medium with some of its pairs, given by ascending numbers."""
        if len(pairs) == self.grid[0]:
            return self
        out, n = copy.copy(self), self.temporal
        out.frames = [frame for pair in pairs for frame in self.frames[pair * n : (pair + 1) * n]]
        out.timestamps = [self.timestamps[pair] for pair in pairs]
        out.grid, out.warnings, out._keys = (len(pairs), *self.grid[1:]), list(self.warnings), None
        return out

    def content(self):
        """What the pixels come from, to tell sources apart: a Content, or a list of one per frame of the source.

        None for pixels in memory, which are their own identity.
        """
        return None

    def memory(self, decoding=True):
        """Bytes of memory that the index of its file takes, and the decoders, roughly."""
        return 0

    def identify(self):
        """Begins to read large files for pair_keys, in threads of their own."""
        content = self.content()
        if isinstance(content, Content):
            content.begin()

    def has_keys(self):
        """Whether pair_keys reads no more than small files."""
        content = self.content()
        return self._keys is not None or content is not None and (isinstance(content, list) or content.small())

    def pair_keys(self):
        """16 bytes for each frame pair. Equal keys: equal pixels, at any time and place. Raises MediaError, Stopped.

        Of files, the key is a digest of content, frames and size; of pixels in memory, a digest of the resized pixels.
        Reads the files once, or the pixels.
        """
        if self._keys is None:
            content = self.content()
            if content is None:
                for _ in self.pairs():
                    pass
                return self._keys
            pictures = [self._picture_key(content, n) for n in range(len(self.frames))]
            pairs = [pictures[i : i + self.temporal] for i in range(0, len(pictures), self.temporal)]
            self._keys = [digest(self.kind.encode(), struct.pack("<3q", self.temporal, *self.size), *p) for p in pairs]
        return self._keys

    def _picture_key(self, content, n):
        if isinstance(content, list):
            return content[self.frames[n]].digest()
        return content.digest() + struct.pack("<q", self.frames[n])

    def warn(self, sentence):
        if sentence not in self.warnings:
            self.warnings.append(sentence)


class Seen(Medium):
    """A medium that a model has seen: its plan and its keys, without its pixels.

    medium: the one that is asked for the keys when they are wanted, where `keys` is None.
    """

    def __init__(self, kind, source, size, grid, frames, timestamps, duration, temporal, keys, medium=None):
        self.kind, self.source, self.size, self.grid, self.frames = kind, source, tuple(size), tuple(grid), list(frames)
        self.timestamps, self.duration, self.temporal = list(timestamps), duration, temporal
        self.warnings, self._keys, self.medium = [], keys, medium

    @classmethod
    def of(cls, medium):
        """A Medium without its pixels. Large files are not waited for."""
        if isinstance(medium, cls):
            return medium
        known = medium.has_keys()
        return cls(
            medium.kind, str(medium.source), medium.size, medium.grid, medium.frames, medium.timestamps, medium.duration,
            medium.temporal, medium.pair_keys() if known else None, None if known else medium,
        )  # fmt: skip

    def has_keys(self):
        return self._keys is not None

    def pair_keys(self):
        if self._keys is None:
            self._keys, self.medium = self.medium.pair_keys(), None
        return self._keys

    def pictures(self, first=0):
        raise MediaError(f"the pixels of {self.kind} {self.source} are no longer there: give it again")


class Content:
    """The content of a file as it was when this object was made. more: bytes that distinguish parts of the file."""

    def __init__(self, path, more=b""):
        self.path, self.more, self.signature = os.fspath(path), more, signature(path)
        self._digest = None

    def small(self):
        """Whether the digest is known, or soon read."""
        known = self._digest is not None or not self.signature or self.signature[2] < LARGE
        return known or files.has_digest(self.signature)

    def begin(self):
        """Reads a large file in a thread, which outlives the call: the next question needs the digest."""
        if not self.small():
            try:
                threading.Thread(target=self._warm, name="ivlite-digest", daemon=True).start()
            except RuntimeError:  # no more threads: read when it is needed
                pass

    def _warm(self):
        try:
            files.content_digest(self.path)
        except OSError:
            pass  # the next reader reports it

    def changed(self):
        """Whether the file is another one now, or gone."""
        return signature(self.path) != self.signature

    def digest(self):
        """16 bytes. Those of a file that has changed since, or is gone, equal no other's."""
        if self._digest is None:
            try:
                found = None if self.changed() else files.content_digest(self.path)
            except OSError:
                found = None
            same = found is not None and not self.changed()
            self._digest = digest(found, self.more) if same else os.urandom(16)
        return self._digest


class Bytes:
    """The content of a file in memory: a Content."""

    def __init__(self, content):
        self._content, self._digest = content, None

    def digest(self):
        if self._digest is None:
            self._digest = digest(hashlib.blake2b(self._content, digest_size=32).digest(), b"")
        return self._digest

    def small(self):
        return True


def signature(path):
    """files.signature, None where there is no file."""
    try:
        return files.signature(path)
    except (OSError, ValueError):
        return None


def digest(*parts):
    """16 bytes for byte strings: their lengths count as well."""
    out = hashlib.blake2b(FORM, digest_size=16)
    for part in parts:
        out.update(struct.pack("<q", len(part)))
        out.update(part)
    return out.digest()


def pixel_key(kind, pair):
    """16 bytes for uint8 (temporal, H, W, 3), the pixels that a medium of that kind shows."""
    return digest(b"pixels", kind.encode(), struct.pack("<3q", *pair.shape[:3]), memoryview(pair).cast("B"))


def marks(times, temporal):
    """Seconds of each pair: the mean of its first and last frame's time; an incomplete pair ends with the last frame."""
    pairs = [times[i : i + temporal] for i in range(0, len(times), temporal)]
    return [(p[0] + (p[-1] if len(p) == temporal else times[-1])) / 2 for p in pairs]
