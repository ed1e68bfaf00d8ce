"""The pictures of chosen frames of a video file, decoded and resized by several threads.

Where few frames are wanted, each run of frames between two key frames is decoded by one of several decoders of one thread
each: a seek costs them nothing, and they work side by side. Where many are, one decoder runs through the file with all its
threads, and resizing is done beside it.
"""

import math
import os
from collections import deque
from contextlib import ExitStack, closing

import numpy as np

from ivlite import _C
from ivlite.media.decode import FrameDecoder
from ivlite.stop import bound, checkpoint, using, within
from ivlite.workers import Workers

SPARSE = 4  # frames of the file to a wanted one, from which on decoders work side by side
MOST = 8  # decoders
DECODERS = 256 << 20  # bytes that all decoders together may take, as reckoned here
REFERENCES = 10  # frames that a decoder holds
ENTRY = 170  # bytes of a frame in what FFmpeg keeps of an index (MP4 with composition offsets), while it is made
PICTURES = 64 << 20  # bytes of resized frames that may wait to be used
RESIZING = 128 << 20  # bytes of the frames that are being resized, or wait for it
RESIZED = 5  # frames' bytes that each thread takes for it: up to three frames, one of them in RGB
BATCH = 1 << 19  # pixels of the frames that are handed over together to be resized


def processors():
    """Processors that this process may use."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        count = os.cpu_count() or 1
    return max(1, min(count, math.ceil(min(_C.cpu_quota(), 1 << 16))))


def pictures(file, times, frames, render, shape, size):
    """Yields (index found, picture or None, whether it is damaged) for each of ascending `frames`.

    file: path, name and number of the stream. render(frame): its picture, uint8 (H, W, 3) of `size`. shape: (height,
    width) of the decoded frames. The index is that of the frame on screen. Raises MediaError.
    """
    if not frames:
        return
    runs = split(times, frames)
    count, threads, _ = decoders(times, frames, runs, shape, size)
    if count > 1:
        found = side_by_side(file, times, runs, render, count)
    else:
        threads = 0 if 1 < processors() == threads else threads
        found = in_one(file, times, frames, render, resizers(shape), threads)
    with closing(found):
        yield from found


def decoders(times, frames, runs, shape, size):
    """(decoders of `frames`, threads of each, bytes of memory that all take while they decode)."""
    frame, cores = max(1, int(1.5 * shape[0] * shape[1])), processors()  # bytes of a frame
    index = ENTRY * len(times.times)
    each = index + (REFERENCES + RESIZED) * frame
    most = DECODERS // each
    count = min(cores, MOST, len(runs), most)
    waiting = 2 * count * max(map(len, runs)) * size[0] * size[1] * 3
    apart = frames[-1] - frames[0] >= SPARSE * len(frames) and times.seekable
    if count > 1 and apart and waiting <= PICTURES:
        return count, 1, count * each + waiting
    threads = min(cores, max(1, (DECODERS // frame - REFERENCES) // 2))
    return 1, threads, index + (REFERENCES + 2 * threads + RESIZED * resizers(shape)) * frame


def resizers(shape):
    """Threads that resize frames of that (height, width) beside one decoder."""
    most = RESIZING // (RESIZED * max(1, int(1.5 * shape[0] * shape[1])))
    return max(1, min(4, processors(), max(2, processors() // 2), most))


def split(times, frames):
    """`frames` in runs, each of which begins at or after a key frame and ends before the next one."""
    frames = np.asarray(frames)
    at = np.searchsorted(times.keys, frames, "right")
    return [run.tolist() for run in np.split(frames, np.flatnonzero(np.diff(at)) + 1)]


def side_by_side(file, times, runs, render, count):
    """Decodes each run in one of `count` threads, two runs ahead of each."""
    stop, decoders, idle, coming = within(), ExitStack(), [], deque()
    wanted = frozenset(index for run in runs for index in run)

    def pictures_of(run):
        with using(stop):
            checkpoint()
            try:
                decoder = idle.pop()
            except IndexError:  # asked this way, since another thread may take the last one at any time
                decoder = decoders.enter_context(FrameDecoder(*file[:2], times, file[2], wanted, 1))
            made = [picture_of(decoder, index, render, index == run[-1]) for index in run]
            idle.append(decoder)
            return made

    with decoders, Workers(count, "ivlite-frames") as workers:
        try:
            for run in runs:
                coming.append(workers.submit(pictures_of, run))
                if len(coming) >= 2 * count:
                    yield from coming.popleft().result()
            while coming:
                yield from coming.popleft().result()
        finally:
            coming.clear()  # breaks the cycle of an exception: future, traceback, this frame, future
            stop.set("closed")


def picture_of(decoder, index, render, last):
    found, frame = decoder.at(index, last)
    return (found, None, False) if frame is None else (found, render(frame), bool(frame.is_corrupt))


def in_one(file, times, frames, render, beside, threads):
    """Decodes all with one decoder, while `beside` threads make the pictures of frames before."""
    waiting, before = deque(), None
    batch, told = [], []  # frames; and for each index: that of the frame, its place in the batch, whether it is damaged
    wanted = frames if frames[-1] - frames[0] >= 2 * len(frames) else None

    def pictures_of(batch):
        return [render(frame) for frame in batch]

    with (
        FrameDecoder(*file[:2], times, file[2], wanted, threads) as decoder,
        Workers(beside, "ivlite-resize") as workers,
    ):
        for index in frames:
            found, frame = decoder.at(index)
            if frame is not None and (frame is not before or not batch):
                batch.append(frame)
            before = frame
            told.append(
                (found, None if frame is None else len(batch) - 1, frame is not None and bool(frame.is_corrupt))
            )
            if frame is None or len(told) * frame.width * frame.height >= BATCH:
                waiting.append((told, workers.submit(bound(pictures_of), batch)))
                batch, told = [], []
            while len(waiting) > beside:
                yield from ready(*waiting.popleft())
        if told:
            waiting.append((told, workers.submit(bound(pictures_of), batch)))
        while waiting:
            yield from ready(*waiting.popleft())


def ready(told, made):
    pictures = made.result()
    return [(found, None if at is None else pictures[at], damaged) for found, at, damaged in told]
