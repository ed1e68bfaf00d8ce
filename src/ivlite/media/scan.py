"""Builds the Timeline of a video file from its index or its packets; decodes frames only if timestamps may be wrong.

Timestamps of files are often not clean:

- *Discontinuities.* If the decoding times of neighbouring packets go back, or ahead by more than 10 seconds in streaming
  formats (MPEG-TS and -PS, Ogg) or 30 hours in others, segments were concatenated. They are placed end to end, as FFmpeg
  and players do. Any other gap is a pause; so is one over which the file's clock goes on, and a step that is usual in the file.
- *Counting.* If packets have no times, or times that cannot be those of their frames (AVI with B-frames, MP4 without
  composition offsets), frames are counted in the order of the decoder's output, and the n-th frame has the n-th time.
- *The beginning* of a streaming format is its first key frame: nothing before it can be decoded. Frames that follow the first
  key frame in the file and come before it in time refer to what was cut off: those that the decoder leaves out are not there.
- *The last frame* lasts as long as its packet declares, or until the declared end of a complete file.
"""

import os
import re
from array import array
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from ivlite.errors import MediaError
from ivlite.media import boxes
from ivlite.media.container import ERRORS, RAW, decoded, open_stream, packets
from ivlite.media.ends import unread, unseen
from ivlite.media.libraries import give_back
from ivlite.media.pauses import AHEAD, BACK, pauses
from ivlite.media.timeline import Timeline, nearest

NONE = -(1 << 63)
FROM_ZERO = ("matroska", "flv")  # formats whose declared length counts from zero, and not from the first frame
STREAMED = 0x200  # FFmpeg's AVFMT_TS_DISCONT
AHEAD_ELSEWHERE = 30 * 3600  # seconds; FFmpeg's limit, as AHEAD
SLOW = 8  # usual steps that a step may take: slides come seldom
REORDERED = 64  # packets, at most, from a frame that is decoded early to the packets of its time
PROBED = 48  # packets decoded to check their times
JITTER = 0.1  # seconds that a frame may deviate from a constant rate
MAX_LISTED = 10_000_000  # most frames of a timeline derived from an index
OFFSETS = ("mpegts",)  # formats without an index, where a search by time is slow and ends anywhere
UNSURE = ("mpeg",)  # formats in which times after a seek differ from those of a pass through the file
CHECKED = 64  # entries of an index that are compared at its beginning, at its end, and in between
REPORTED = 256  # packets from one report of progress to the next
LARGE = 256 << 20  # bytes of a Matroska file that is not read as a whole
SPREAD = 16  # runs between key frames that are read of a long range
HEAD = 32  # packets read at the beginning if an index covers the rest


@dataclass
class Packets:
    """The packets of a stream in file order: times as int64 ticks (NONE if unknown), and flags.

    missing: number of packets in the index that are beyond the end of the file; None without an index. offsets: where packets
    begin in the file (NONE if unknown), for streaming formats. last: the largest offset of a packet, None if unknown.
    """

    pts: np.ndarray
    dts: np.ndarray
    durations: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    missing: int | None = None
    offsets: np.ndarray | None = None
    last: int | None = None


def scan(path, name, number=None, start=None, end=None, progress=None):
    """The Timeline of the video in a file. start, end: the range that will be used in seconds, or None. Raises MediaError.

    progress("scan", done, total) counts bytes, if the file has no index and is read as a whole.
    """
    times = indexed(path, name, number, start, end)
    if times:
        return times
    with open_stream(path, name, number) as (container, stream):
        times = build(read(container, stream, None, progress), container, stream, path, name, number)
    return slim(times)


def slim(times):
    """The Timeline, with what was freed while a long one was made given back to the system."""
    give_back(len(times.times))
    return times


def indexed(path, name, number=None, start=None, end=None):
    """The Timeline from the file's index, without reading its packets; None if it has none to rely on. Raises MediaError."""
    with open_stream(path, name, number) as (container, stream):
        times = part(container, stream, path, start, end)
        if times:
            return times
        found = from_index(container, stream, path)
        times = build(found, container, stream, path, name, number) if found else None
    found = None  # before memory is given back
    return times and slim(times)


def read(container, stream, until=None, progress=None):
    """The Packets from the container's position to the end, or to the first for which until(packet) is true."""
    pts, dts, durations, keys, shown, offsets = (array(form) for form in "qqqbbq")
    total, streamed, last = max(1, container.size), bool(container.format.flags & STREAMED), -1
    for number, packet in enumerate(packets(container, stream)):
        if until and until(packet):
            break
        if progress and number % REPORTED == 0:
            progress("scan", min(packet.pos or 0, total), total)
        pts.append(NONE if packet.pts is None else packet.pts)
        dts.append(NONE if packet.dts is None else packet.dts)
        durations.append(packet.duration or 0)
        keys.append(packet.is_keyframe)
        if streamed:
            offsets.append(NONE if packet.pos is None else packet.pos)
        if (at := packet.pos) is not None and at > last:
            last = at
        shown.append(not packet.is_discard)  # removed by an edit list: players do not show it
    if progress:
        progress("scan", total, total)
    *times, offsets = (
        np.frombuffer(a, np.int64) if len(a) else np.zeros(0, np.int64) for a in (pts, dts, durations, offsets)
    )
    packed = Packets(*times, *(np.array(a, bool) for a in (keys, shown)), last=None if last < 0 else last)
    return replace(packed, offsets=offsets) if streamed else packed


def from_index(container, stream, path):
    """The Packets from the index of an mp4; None for other files, and if the index is incomplete."""
    entries = stream.index_entries
    count = len(entries)
    if "mp4" not in container.format.name or not count or count != stream.frames:
        return None
    with open(path, "rb") as file:
        later = boxes.compositions(file, stream.id, count)
        table = boxes.samples(file, stream.id, count)
        size = os.fstat(file.fileno()).st_size
    if table is None or not agree(entries, table):
        table = listed(entries, count)  # an object of Python for each frame, one after the other
    if later is None or table is None:
        return None
    dts, ends, keys = table
    there = ends <= size
    first = [(p.pts, p.dts) for p in islice(packets(container, stream), min(8, int(there.sum())))]
    if not there[0] or not first or None in first[0]:
        return None
    dts += first[0][1] - dts[0]
    pts = dts + later  # relative to the start of the edit list, as dts
    pts += first[0][0] - pts[0]
    if first != list(zip(pts[: len(first)].tolist(), dts[: len(first)].tolist(), strict=True)):
        return None
    durations = np.diff(dts, append=max(dts[-1], (stream.duration or 0) + dts[0]))
    kept = [a if there.all() else a[there] for a in (pts, dts, durations, keys)]
    last = int(ends[there].max()) - 1
    return Packets(*kept, np.ones(len(kept[0]), bool), int((~there).sum()), last=last)


def agree(entries, table):
    """Whether FFmpeg's entries of an index are those of a table (dts, ends, keys) at its ends and at places in between.

    FFmpeg applies edit lists to its entries: times move, and frames disappear or are marked.
    """
    dts, ends, keys = table
    edge = min(len(dts), CHECKED)
    some = np.concatenate(
        [np.arange(edge), np.linspace(0, len(dts) - 1, CHECKED), np.arange(len(dts) - edge, len(dts))]
    )
    known = np.flatnonzero(keys)
    some = np.union1d(
        some.astype(np.int64), known[np.linspace(0, len(known) - 1, min(len(known), CHECKED)).astype(np.int64)]
    )
    rows = np.array([(e.timestamp, e.pos + e.size, e.flags) for e in (entries[int(i)] for i in some)], np.int64).T
    moved = rows[0] - dts[some]
    return bool((moved == moved[0]).all() and (rows[1] == ends[some]).all() and (rows[2] == keys[some]).all())


def listed(entries, count):
    """(dts, ends, keys) of FFmpeg's entries of an index; None if an edit list removes frames."""
    rows = np.fromiter(((e.timestamp, e.pos, e.size, e.flags) for e in entries), np.dtype((np.int64, 4)), count)
    dts, positions, sizes, flags = rows.T.copy()
    if (flags & 2).any() or (sizes <= 0).any():
        return None
    return dts, positions + sizes, flags & 1 > 0


def build(found, container, stream, path, name, number):
    """The Timeline of Packets."""
    streamed = bool(container.format.flags & STREAMED)
    late = int(found.keys.argmax()) if streamed and len(found.keys) else 0  # packets before the first key frame
    found.shown[:late] = False
    found.shown[undecodable(found, path, name, number)] = False
    shown = np.flatnonzero(found.shown)
    if not len(shown):
        raise MediaError(f"video {name} has no frames: copy or record it again")
    form, raw = container.format.name, container.format.name in RAW.split(",")
    if len(shown) == len(found.shown):
        shown = slice(None)  # views, not copies
    tick = float(stream.time_base)
    rates = [float(r) for r in (stream.average_rate, stream.guessed_rate, stream.base_rate) if r]
    reorders = bool(stream.codec_context.has_b_frames)
    pts = found.pts[shown]
    clock, notes = filled(found, rates[1:] or rates, tick), ()
    joints = joined(clock, found.keys, tick, streamed)
    if streamed and len(joints):
        joints = without_pauses(joints, clock * tick, found.offsets, (path, name, number), form)
    timed = bool((pts != NONE).all()) and not (form == "avi" and reorders)
    laid = lay(found.pts if timed else clock, clock, found, joints, limit(clock, tick, True) / tick)[shown]
    if len(laid) > 1 and laid.min() == laid.max():  # no times at all
        laid, timed = np.arange(len(laid)) / (rates[0] if rates else 24.0) / tick, False
    ordered = timed and reorders and len(pts) > 2 and bool((np.diff(laid) > 0).all())
    counted = not timed or (ordered and lies(path, name, number))
    if raw and (found.pts == NONE).all() and (found.dts == NONE).all():
        rate = 1 / (tick * float(np.median(np.diff(clock)))) if len(clock) > 1 else rates[0]
        rates = [rate, *rates]
        notes = (f"video {name} is a raw stream without times: it is taken to have {rate:g} frames a second",)
    order = np.argsort(laid, kind="stable")
    seconds = (laid[order] - laid[order[0]]) * tick
    length = float(found.durations[shown][order[-1]]) * tick
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    times = Timeline(seconds, None, np.zeros(1, np.int64), None, 0.0, ordered=ordered and not counted, notes=notes)
    if not counted:
        places = np.full(len(found.pts), -1)
        places[shown] = ranks
        keys, ones = np.unique(ranks[found.keys[shown]], return_index=True)
        if form in OFFSETS and len(keys):
            offsets = found.offsets[found.shown & found.keys][ones]
            times = replace(times, offsets=offsets if (offsets >= 0).all() else None)
        clean = form not in UNSURE and not late and not len(joints) and bool((np.diff(laid[order]) > 0).all())
        times = replace(times, places=None if clean else places, keys=keys if len(keys) else times.keys)
        times = replace(times, pts=pts[order] if clean else None)
    begun = int(pts[order[0]]) * tick if timed and form.startswith(FROM_ZERO) else 0.0
    claimed = 0.0 if len(joints) else declared_seconds(container, stream) - max(0.0, begun)
    entire = False if found.missing or lost(found, stream.frames, path, name, number, form) else boxes.whole(path, form)
    if form == "avi" and entire is False:  # without its index, FFmpeg declares what is there
        claimed = max(claimed, stream.frames * tick)
    if entire is False and (form == "gif" or (form.startswith("mov") and boxes.fragmented(path))):
        claimed = 0.0
    times = settled(times, rates, length, claimed, entire)
    if entire is False and claimed <= 0:  # how much is missing is not told
        cut = f"video {name} is cut off: only its first {times.duration:.1f} seconds are there"
        times = replace(times, notes=(*times.notes, cut))
    others = [s.id for s in container.streams.video if s.index != stream.index]
    more = unseen(name, path, form, found.offsets, found.last, others)
    times = replace(times, notes=(*times.notes, *more))
    return times


def lost(found, declared, path, name, number, form):
    """Whether packets are missing for damage: behind the last that was read, or of those in the index of an AVI file.

    declared: the number of packets that its header tells; empty ones among them are frames that stay.
    """
    if form == "avi" and declared > len(found.pts):
        with open_stream(path, name, number) as (_, stream):  # without what reading added to its index
            return sum(entry.size > 0 for entry in stream.index_entries) != len(found.pts)
    return bool(unread(path, form, found.last))


def leading(found):
    """Indexes of the packets of frames that follow the first key frame in the file and come before it in time."""
    keys = np.flatnonzero(found.keys)
    if not len(keys) or found.pts[keys[0]] == NONE:
        return keys[:0]
    end = keys[1] if len(keys) > 1 else len(found.pts)
    pts = found.pts[keys[0] : end]
    return keys[0] + np.flatnonzero((pts < pts[0]) & (pts != NONE) & found.shown[keys[0] : end])


def undecodable(found, path, name, number):
    """Indexes of the packets of leading frames that the decoder does not return."""
    early = leading(found)
    if not len(early):
        return early
    with open_stream(path, name, number) as (container, stream):
        some = islice(packets(container, stream), int(early[-1]) + 1)
        returned = [f.pts for f in decoded(stream, some, lambda packet: packet.pts) if f.pts is not None]
    return early[~np.isin(found.pts[early], returned)]


def filled(found, rates, tick):
    """int64 ticks: the decoding time of each packet, estimated if it has none."""
    known = found.dts != NONE
    source = found.dts
    if not known.any():
        known, source = found.keys & (found.pts != NONE), found.pts
    at = np.arange(len(source))
    step = np.where(found.durations > 0, found.durations, 1 / (rates[0] if rates else 24.0) / tick)
    if not known.any():
        return (np.cumsum(step) - step[0]).astype(np.int64)
    if known.all():
        return source
    reckoned = np.interp(at, at[known], source[known].astype(float))
    first, last = at[known][0], at[known][-1]
    reckoned[:first] -= np.cumsum(step[:first][::-1])[::-1]
    reckoned[last + 1 :] += np.cumsum(step[last:-1])
    return reckoned.astype(np.int64)


def joined(clock, keys, tick, streamed):
    """Indexes of the packets at which a segment begins, without the first."""
    step = np.diff(clock.astype(float)) * tick
    usual = float(np.median(step[step > 0])) if (step > 0).any() else 0.0
    back = (step < 0) & (keys[1:] | (step < -max(BACK, 16 * usual)))
    return np.flatnonzero(back | (step > limit(clock, tick, streamed))) + 1


def limit(clock, tick, streamed):
    """Seconds that the decoding times of neighbouring packets may go ahead within a segment."""
    step = np.diff(clock.astype(float)) * tick
    steps = np.sort(step[step > 0])
    usual = float(steps[(len(steps) - 1) // 2]) if len(steps) > 1 else 0.0  # the lower median: a jump is not usual
    return max(AHEAD if streamed else AHEAD_ELSEWHERE, SLOW * usual)


def without_pauses(joints, seconds, offsets, file, form):
    """`joints` without those at which the times go ahead and so does the clock of the file. seconds: of each packet."""
    ahead = joints[seconds[joints] > seconds[joints - 1]]
    if not len(ahead):
        return joints
    offsets = np.maximum.accumulate(offsets)  # of frames that share a packet of the file, only the first has one
    gaps = np.stack([seconds[ahead - 1], seconds[ahead], offsets[ahead - 1], offsets[ahead]], 1)
    return np.setdiff1d(joints, ahead[pauses(gaps, file, form)])


def lay(ticks, clock, found, joints, far):
    """float64 ticks with the segments placed end to end. clock: decoding times, in which the joints are.

    A frame whose time is `far` ticks from its decoding time, and not from the joint soon after it, is of the next segment:
    frames that are decoded early, for others to refer to, have their times from beyond the joint.
    """
    ticks = ticks.astype(float)
    if not len(joints):
        return ticks
    known = found.shown & (ticks != float(NONE))
    of = np.searchsorted(joints, np.arange(len(ticks)), "right")  # the segment of each packet
    following = np.append(joints, joints[-1])[of]
    near = (np.abs(ticks - clock[following]) <= far) & (following - np.arange(len(ticks)) <= REORDERED)
    of = np.minimum(of + (known & near & (np.abs(ticks - clock) > far)), len(joints))
    step = np.diff(np.sort(ticks[known]))
    usual = float(np.median(step[step > 0])) if (step > 0).any() else 1.0
    over = ticks + np.where(found.durations > 0, found.durations, usual)
    low, high = np.full(len(joints) + 1, np.inf), np.full(len(joints) + 1, -np.inf)
    np.minimum.at(low, of[known], ticks[known])
    np.maximum.at(high, of[known], over[known])
    empty = ~np.isfinite(low)
    low[empty] = high[empty] = 0
    lengths = high - low
    offsets = low[0] + np.append(0, np.cumsum(lengths)[:-1]) - low
    return ticks + offsets[of]


def settled(times, rates, length, claimed, entire):
    """The Timeline completed with its rate, the duration of its last frame, and the declared duration of a truncated file.

    length: seconds of the last packet, 0 if unknown. claimed: declared seconds of the file, 0 if unknown. entire: whether
    the file is complete, None if unknown.
    """
    seconds = times.times
    steps = np.diff(seconds)
    interval = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1 / (rates[0] if rates else 24.0)
    if len(seconds) == 1 and length > 0:
        interval = length
    last = length if length > 0 else interval
    if (entire or (entire is None and len(seconds) == 1)) and claimed > seconds[-1] + last + interval / 2:
        last = claimed - float(seconds[-1])
    rate = constant_rate(seconds, rates)
    if rate and last > max(1.5 / rate, 1.0):
        rate = None
    if rate:
        seconds, interval = np.arange(len(seconds)) / rate, 1 / rate
        last = last if last > 1.5 / rate else None
    declared = claimed if entire is not True else 0.0
    return replace(times, times=seconds, rate=rate, interval=interval, last=last, declared=declared)


def constant_rate(seconds, rates):
    """The first of `rates`, or the mean rate, from which all frames deviate by at most half a frame and JITTER; or None."""
    span = float(seconds[-1])
    measured = [(len(seconds) - 1) / span] if span > 0 else []
    for rate in rates + measured:
        if np.abs(seconds - np.arange(len(seconds)) / rate).max() <= min(0.5 / rate, JITTER):
            return rate
    return None


def declared_seconds(container, stream):
    """The duration that the file declares in seconds, 0 if it does not."""
    if container.format.flags & STREAMED:  # FFmpeg computes it from the first and the last time
        return 0.0
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", "").strip())
    if tag:  # Matroska has one per stream
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len(container.streams) == 1  # else the duration of the file may be that of its audio
    return container.duration / 1e6 if container.duration and alone else 0.0


def lies(path, name, number):
    """Whether the times of the first packets differ from those of their decoded frames."""
    with open_stream(path, name, number) as (container, stream):
        some = islice(packets(container, stream), PROBED)
        order = [f.pts for f in decoded(stream, some, lambda packet: packet.pts) if f.pts is not None]
    return any(b < a for a, b in zip(order, order[1:], strict=False))


def part(container, stream, path, start, end):
    """The Timeline of a Matroska file from its index, without reading all of it: of a range, or of a large file.

    None unless the rate is constant at all places that are read: the beginning, the range (of a long one, SPREAD runs
    between key frames), the end, and every key frame of the index.
    """
    form, size = container.format.name, os.path.getsize(path)
    rates = [float(r) for r in (stream.average_rate, stream.guessed_rate, stream.base_rate) if r]
    whole = not start and end is None
    if (whole and size < LARGE) or "matroska" not in form or not boxes.whole(path, form) or not rates:
        return None
    head = read(container, stream, stop_after(HEAD))
    if (head.pts == NONE).any() or not len(head.pts) or len(leading(head)):
        return None
    tick, first = float(stream.time_base), int(head.pts.min())
    try:
        container.seek(first, stream=stream)  # reads the index
        cues = np.array([e.timestamp for e in stream.index_entries if e.flags & 1], np.int64)
        if len(cues) < 3 or (np.diff(cues) <= 0).any():
            return None
        container.seek(int(cues[-1]), stream=stream)
        tail = read(container, stream)
        low, high = first + (start or 0) / tick, np.inf if end is None else first + end / tick
        middle = list(between(container, stream, cues, low, high))
    except ERRORS:
        return None
    places = [head, *middle, tail]
    if not all(len(p.pts) and (p.pts != NONE).all() and p.shown.all() for p in places):
        return None
    if unread(path, form, tail.last):
        return None
    claimed = declared_seconds(container, stream) - max(0, first) * tick
    length = float(tail.durations[tail.pts.argmax()]) * tick
    keys = np.union1d(cues, np.concatenate([p.pts[p.keys] for p in middle]))
    parts = [p.pts for p in places]
    for rate in rates:
        times = on_grid(parts, keys, first, tick, rate, bool(stream.codec_context.has_b_frames), size)
        if times:
            times = settled(times, [rate], length, claimed, True)
            return times if times.rate == rate else None
    return None


def between(container, stream, cues, low, high):
    """Yields the Packets of the range from `low` to `high` ticks; of a long one, of SPREAD runs between key frames."""
    begin = max(0, int(np.searchsorted(cues, low, "right")) - 1)
    end = int(np.searchsorted(cues, high, "right"))
    if end - begin <= SPREAD:
        container.seek(int(cues[begin]), stream=stream)
        yield read(container, stream, lambda p: p.is_keyframe and (p.pts is None or p.pts > high))
        return
    for at in np.linspace(begin, end - 2, SPREAD).astype(int):
        container.seek(int(cues[at]), stream=stream)
        following = int(cues[at + 1])
        yield read(container, stream, lambda p, until=following: p.is_keyframe and (p.pts is None or p.pts >= until))


def stop_after(count):
    seen = iter(range(count))
    return lambda packet: next(seen, None) is None


def on_grid(parts, keys, first, tick, rate, reorders, size):
    """The Timeline of frames at a constant rate from `first`, if all times in `parts` and `keys` agree; else None."""
    frames = int(round((int(parts[-1].max()) - first) * tick * rate)) + 1
    if not 0 < frames <= min(MAX_LISTED, size):
        return None
    grid = np.round(first + np.arange(frames) / rate / tick).astype(np.int64)
    if frames > 1 and (np.diff(grid) <= 0).any():
        return None
    for ticks in (*parts, keys):
        at = nearest(grid, ticks)
        if (np.abs(grid[at] - ticks) * tick > tick + 0.05 / rate).any():
            return None
        if ticks is not keys and not contiguous(at, 16 if reorders else 0):
            return None
    return Timeline(np.arange(frames) / rate, grid, np.unique(nearest(grid, keys)), rate, 1 / rate)


def contiguous(indexes, late):
    """Whether no frame is missing, except among the last `late`, which may come later in the file."""
    steps = np.diff(np.sort(indexes))
    return bool((steps > 0).all() and (steps[: max(0, len(steps) - late)] == 1).all())
