"""Decodes selected frames of a video file in ascending order, with seeks where they save time.

On the way to a wanted frame, frames that no other refers to are not decoded, and once the last wanted frame of a run is in
the decoder, it is drained. Both are undone for a frame that then does not come out as itself (it is damaged, hidden, or
made of two fields): it is decoded again with all frames around it. Where the decoder ends too early, it is once more
started with a single thread: decoders of several keep the frames before a damaged last packet to themselves.
"""

from contextlib import ExitStack
from dataclasses import replace
from itertools import chain

import numpy as np

from ivlite.media.container import ERRORS, decoded, open_stream, packets
from ivlite.media.display import Interlaced, with_neighbours
from ivlite.media.libraries import give_back
from ivlite.media.timeline import nearest

SEEK_FROM = 8  # frames that a seek must skip to pay where threads decode several at once: it empties their pipeline
SKIPPING = ("h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video")  # decoders that leave out frames, packet by packet


class FrameDecoder:
    """Decodes frames of a Timeline in ascending order. A context manager that closes decoder and file.

    number: the index of the stream in the file, None for the one a player shows. wanted: the indexes that will be asked
    for; None for any. threads: of the decoder, 0 for one per processor.
    """

    def __init__(self, path, name, times, number=None, wanted=None, threads=0):
        self.file, self.times, self.threads = (path, name, number), times, threads
        self.wanted = None if wanted is None else frozenset(wanted)
        self.seek_from = 1 if threads == 1 else SEEK_FROM
        self.stack = ExitStack()
        self.jumps = True
        self.sparing = wanted is not None and times.seekable  # leave out frames, and drain
        self.fields = False  # frames need those beside them

    def __enter__(self):
        self._open()
        return self

    def __exit__(self, *error):
        self._close()
        give_back(len(self.times.times))

    def _close(self):
        self.container = self.stream = self.codec = self.source = self.coming = self.frame = self.ahead = None
        self.stack.close()

    def _open(self):
        self._close()
        self.container, self.stream = self.stack.enter_context(open_stream(*self.file))
        self.codec = self.stream.codec_context
        self.codec.thread_count = self.threads
        self._read()

    def _read(self):
        """Starts decoding at the container's position."""
        self.taken = 0  # packets
        self.source = packets(self.container, self.stream)
        self._decode()

    def _decode(self, skip=0):
        """Starts decoding with a flushed decoder, after `skip` packets."""
        self.codec.flush_buffers()
        if self.codec.name in SKIPPING:
            self.codec.skip_frame = "DEFAULT"
        self.leaving = False  # out what nothing refers to
        self.until = None  # the index after which the decoder is drained
        self.drained = self.ended = False
        place = None if self.times.pts is None and self.times.places is None else self._place
        self.coming = with_neighbours(decoded(self.stream, self._counted(self.taken + skip), place))
        self.index, self.frame = -1, None  # the frame decoded last
        self.ahead = None  # (index, frame) decoded beyond the wanted one

    def _counted(self, first):
        """Yields the packets of the file from index `first` on, up to the one after which the decoder is drained."""
        for packet in self.source:
            self.taken += 1
            if self.taken <= first:
                continue
            self.drained = False
            yield packet
            if self.drained:
                return

    def _place(self, packet):
        """The index of the frame in the current packet; None if it is not shown."""
        at = self._index(packet)
        if self.sparing and self.codec.name in SKIPPING:
            leave = at is not None and at not in self.wanted
            if leave != self.leaving:
                self.leaving = leave
                self.codec.skip_frame = "NONREF" if leave else "DEFAULT"
        self.drained = at is not None and at == self.until
        return at

    def _index(self, packet):
        pts, places = self.times.pts, self.times.places
        if pts is not None:
            if packet.pts is None:
                return None
            at = int(pts.searchsorted(packet.pts))
            return at if at < len(pts) and pts[at] == packet.pts else int(nearest(pts, packet.pts))
        at = int(places[self.taken - 1]) if self.taken <= len(places) else -1
        return None if at < 0 else at

    def at(self, index, last=False):
        """(index, frame) of the wanted frame, or of the one on screen at its time; (index, None) if there is none.

        Indexes must not decrease from call to call. last: the next index is asked for after a later key frame, if any.
        """
        fresh = self._jump(index)
        if last and self.sparing and self.index < index:
            self.until = index
        found, frame = self._at(index, fresh)
        if found < index and self.ended and not self.drained and self.threads != 1:
            self.threads, self.seek_from = 1, 1
            self._open()
            found, frame = self._at(index, self._restart(index))
        spared = self.sparing and (self.codec.name in SKIPPING or self.drained)
        if spared and (found != index or isinstance(frame, Interlaced)):
            self.sparing = False
            found, frame = self._at(index, self._restart(index - 1))
            self.fields = isinstance(frame, Interlaced)
            self.sparing = self.times.seekable and not self.fields
        return found, frame

    def _at(self, index, fresh):
        """As at(), from where the decoder is; fresh: that is after a seek."""
        back = 0  # key frames before the nearest one
        while (found := self._reach(index, fresh)) is None:  # the seek ended after the frame
            back = 2 * back + 1
            fresh = self._restart(index, back)
        return found

    def _reach(self, index, fresh):
        """(index, frame) of the frame on screen at an index; None if a fresh seek ended after it."""
        while self.index < index:
            following = self.ahead or self._next()
            self.ahead = None
            if following is None:
                return None if fresh else (self.index, self.frame)
            if following[0] > index and self.frame is not None:
                self.ahead = following
                return self.index, self.frame
            if following[0] > index and fresh:
                return None
            if following[0] > self.index:
                self.index, self.frame = following
            elif self.times.ordered:  # the packets' times are not those of their frames
                self.times = replace(self.times, pts=None, places=None, offsets=None, ordered=False)
                self.jumps = self.sparing = False
                self._open()
            fresh = False
        return self.index, self.frame

    def _next(self):
        for frame in self.coming:
            if frame.pts is not None:
                return frame.pts, frame
        self.ended = True
        return None

    def _key(self, index):
        """The position among the key frames of the last one at or before an index; -1 if there is none."""
        return int(self.times.keys.searchsorted(index, "right")) - 1

    def _jump(self, index):
        """Seeks to the last key frame before `index` if that saves decoding; returns whether it did."""
        at = self._key(index - self.fields)
        behind = at < 0 or self.times.keys[at] < max(self.index, 0) + self.seek_from
        if self.drained and self.index < index:
            return self._restart(index)
        if not self.jumps or behind:
            return False
        if not self.times.seekable:  # reads packets without decoding them
            skip = self._number(at) - self.taken
            if skip > 0:
                self._decode(skip)
            return False
        return self._seek(at)

    def _number(self, at):
        """The number of the packet of a key frame in the file."""
        return int(np.flatnonzero(self.times.places == self.times.keys[at])[0])

    def _restart(self, index, back=0):
        """Begins at the key frame before an index, or `back` key frames before that one, or at the file's beginning.

        Returns whether it is a key frame.
        """
        at = self._key(index) - back
        if self.jumps and self.times.seekable and at >= 0 and self._seek(at):
            return True
        self._open()
        return False

    def _seek(self, at):
        """Begins at a key frame, given by its position among them; returns whether it does, else at the file's beginning."""
        times = self.times
        try:
            if times.offsets is None:
                self.container.seek(int(times.pts[times.keys[at]]), stream=self.stream)
                self._read()
                return True
            self.container.seek(int(times.offsets[at]), unsupported_byte_offset=True)
            self._read()
            first = next(self.source, None)
            if first is not None and first.pos == times.offsets[at]:
                self.source = chain([first], self.source)
                self.taken = 0 if times.places is None else self._number(at)
                return True
        except ERRORS:
            pass
        self.jumps = False
        self._open()
        return False
