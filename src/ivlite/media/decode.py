"""Decodes selected frames of a video file in one forward pass, with seeks where they save time."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from ivlite.media.container import ERRORS, decoded, open_stream, packets
from ivlite.media.display import with_neighbours
from ivlite.media.timeline import nearest

SEEK_FROM = 64  # a seek pays if it skips at least this many frames: it empties the decoder's pipeline


class FrameDecoder:
    """Decodes frames of a Timeline in ascending order. A context manager that closes decoder and file.

    number: the index of the stream in the file, None for the one a player shows.
    """

    def __init__(self, path, name, times, number=None):
        self.file, self.times = (path, name, number), times
        self.stack = ExitStack()
        self.jumps = True

    def __enter__(self):
        self._open()
        return self

    def __exit__(self, *error):
        self._close()

    def _close(self):
        self.container = self.stream = self.source = self.coming = self.frame = self.ahead = None
        self.stack.close()

    def _open(self):
        self._close()
        self.container, self.stream = self.stack.enter_context(open_stream(*self.file))
        self._read()

    def _read(self):
        """Starts decoding at the container's position."""
        self.taken = 0  # packets
        self.source = packets(self.container, self.stream)
        self._decode()

    def _decode(self, skip=0):
        """Starts decoding with a flushed decoder, after `skip` packets."""
        self.stream.codec_context.flush_buffers()
        place = None if self.times.pts is None and self.times.places is None else self._place
        self.coming = with_neighbours(decoded(self.stream, self._counted(self.taken + skip), place))
        self.index, self.frame = -1, None  # the frame decoded last
        self.ahead = None  # (index, frame) decoded beyond the wanted one

    def _counted(self, first):
        """Yields the packets of the file from index `first` on."""
        for packet in self.source:
            self.taken += 1
            if self.taken > first:
                yield packet

    def _place(self, packet):
        """The index of the frame in the current packet; None if it is not shown."""
        if self.times.pts is not None:
            return None if packet.pts is None else int(nearest(self.times.pts, packet.pts))
        at = int(self.times.places[self.taken - 1]) if self.taken <= len(self.times.places) else -1
        return None if at < 0 else at

    def at(self, index):
        """(index, frame) of the wanted frame, or of the one on screen at its time; (index, None) if there is none.

        Indexes must not decrease from call to call.
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
                return self._from_start(index)  # the seek ended after the frame
            if following[0] > self.index:
                self.index, self.frame = following
            elif self.times.ordered:  # the packets' times are not those of their frames
                self.times = replace(self.times, pts=None, places=None, ordered=False)
                return self._from_start(index)
            fresh = False
        return self.index, self.frame

    def _next(self):
        for frame in self.coming:
            if frame.pts is not None:
                return frame.pts, frame
        return None

    def _jump(self, index):
        """Seeks to the last key frame before `index` if that saves decoding; returns whether it did."""
        at = int(np.searchsorted(self.times.keys, index, "right")) - 1
        if not self.jumps or at < 0 or self.times.keys[at] < max(self.index, 0) + SEEK_FROM:
            return False
        key = int(self.times.keys[at])
        if self.times.places is not None:  # cannot seek by time: reads packets without decoding them
            skip = int(np.flatnonzero(self.times.places == key)[0]) - self.taken
            if skip > 0:
                self._decode(skip)
            return False
        try:
            self.container.seek(int(self.times.pts[key]), stream=self.stream)
        except ERRORS:
            self.jumps = False
            return False
        self._read()
        return True

    def _from_start(self, index):
        self.jumps = False
        self._open()
        return self.at(index)
