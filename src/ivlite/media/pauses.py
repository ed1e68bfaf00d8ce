"""Tells a pause from a joint where the times of a stream format go ahead: in a pause, the clock of the file goes on."""

from array import array

import numpy as np
from av.stream import Discard

from ivlite.media.container import ERRORS, open_stream
from ivlite.stop import checkpoint

AHEAD = 10  # seconds that a clock may go ahead from one packet to the next; FFmpeg's limit
APART = AHEAD / 2  # seconds that one stream may begin or end before another
BACK = 1  # seconds that it may go back: packets of one stream are not always written in order
SYNC, PACKET, CLOCK = (
    0x47,
    188,
    90_000,
)  # a packet of a transport stream: first byte, bytes; ticks of its clock a second
WRAP = 1 << 33  # ticks after which that clock begins again
PAGE = b"OggS\0"  # how a page of an Ogg file begins; the flags follow
FIRST = 2  # the flag of the first page of a stream
MOST = 256 << 20  # bytes between two packets that are read for clocks


def pauses(gaps, file, form):
    """bool (n,): whether each of the gaps of a stream is a pause.

    gaps: float64 (n, 4): seconds of the packets before and after each gap, and their offsets in the file in bytes, -1 if
    unknown. file: path, name and number of the stream. form: the name of the format.
    """
    if form == "ogg":
        return np.array([unbroken(file[0], *gap[2:]) for gap in gaps], bool)
    runs = [run for stream in others(*file) for run in unbroken_runs(*stream)]
    found = np.array([any(covers(run, *gap) for run in runs) for gap in gaps], bool)
    if form == "mpegts":
        for n in np.flatnonzero(~found):
            found[n] = counted(file[0], *gaps[n])
    return found


def others(path, name, number):
    """[(seconds, offsets)] of the packets of each other stream in file order: float64 (n,), int64 (n,)."""
    found = {}
    with open_stream(path, name, number) as (container, stream):
        for other in container.streams:
            other.discard = Discard.default
        place = 0
        try:
            for packet in container.demux():
                checkpoint()
                place = place if packet.pos is None else packet.pos
                time = packet.pts if packet.dts is None else packet.dts
                if time is not None and packet.stream.index != stream.index:
                    seconds, offsets = found.setdefault(packet.stream.index, (array("d"), array("q")))
                    seconds.append(float(time * packet.time_base))
                    offsets.append(place)
        except (*ERRORS, MemoryError):  # damage: what comes before it counts
            pass
    return [(np.array(seconds), np.array(offsets)) for seconds, offsets in found.values()]


def unbroken_runs(seconds, offsets):
    """[(first second, last second, first offset, last offset)] of the packets between which the clock does not jump."""
    step = np.diff(seconds)
    cuts = np.flatnonzero((step > AHEAD) | (step < -BACK)) + 1
    first, last = np.append(0, cuts), np.append(cuts, len(seconds)) - 1
    return list(zip(seconds[first], seconds[last], offsets[first], offsets[last], strict=True))


def covers(run, begin, end, before, after):
    """Whether a run of packets without a jump is from the same place of the file as a gap, and reaches over it."""
    return run[0] <= begin + APART and run[1] >= end - APART and run[2] <= after and run[3] >= before


def counted(path, begin, end, before, after):
    """Whether a clock (PCR) of a transport stream counts on from one packet to another, whose offsets are given."""
    rows = transported(between(path, before, after))
    rows = rows[(rows[:, 3] & 32 > 0) & (rows[:, 4] > 0)]  # with an adaptation field
    pids, new = (rows[:, 1] & 31).astype(int) << 8 | rows[:, 2], rows[:, 5] & 128 > 0
    has = (rows[:, 5] & 16 > 0) & (rows[:, 4] >= 7)
    for pid in np.unique(pids[has]):
        clock = rows[has & (pids == pid), 6:11].astype(np.int64) @ (1 << np.arange(32, -1, -8)) >> 7
        step = np.diff(clock) % WRAP / CLOCK
        if not new[pids == pid].any() and (step <= AHEAD).all() and step.sum() >= end - begin - APART:
            return True
    return False


def transported(data):
    """uint8 (n, PACKET): the packets in bytes of a transport stream. Others carry 4 bytes before, or 16 after each."""
    for size, first in ((PACKET, 0), (192, 0), (192, 4), (204, 0)):
        whole = np.frombuffer(data, np.uint8)[first:]
        rows = whole[: len(whole) // size * size].reshape(-1, size)[:, :PACKET]
        if len(rows) and (rows[:, 0] == SYNC).all():
            return rows
    return np.zeros((0, PACKET), np.uint8)


def unbroken(path, before, after):
    """Whether no stream of an Ogg file begins between two packets, whose offsets are given."""
    data = between(path, before, after + 1)
    at = data.find(PAGE)
    while at >= 0 and at + len(PAGE) < len(data):
        if data[at + len(PAGE)] & FIRST:
            return False
        at = data.find(PAGE, at + 1)
    return bool(data)


def between(path, before, after):
    """The bytes from one offset of a file to another; none if these are not known, or far apart."""
    if not 0 <= before < after <= before + MOST:
        return b""
    with open(path, "rb") as file:
        file.seek(int(before))
        return file.read(int(after - before))
