"""What decoding is said to take and to need, against clocks and counts of the test's own; which frames are chosen."""

import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest
from made_videos import numbered

from ivlite.errors import UsageError
from ivlite.media import lanes, pace, timeline
from ivlite.media.timeline import Timeline

# ------------------------------------------------------------------------------------------------ frames that are decoded


def decoded(chosen, keys, skip):
    """Frames that are decoded, one after the other: a seek goes to a key frame at least `skip` frames ahead."""
    at, count = 0, 0
    for index in chosen:
        key = max([k for k in keys if k <= index], default=keys[0])
        at = key if key >= at + skip else at
        count, at = count + index + 1 - at, index + 1
    return count


def test_frames_that_are_decoded_for_others(rng):
    assert pace.work([0], np.array([0])) == 1 and pace.work([7], np.array([0, 8])) == 8
    assert pace.work([8], np.array([0, 8])) == 1 and pace.work([7], np.array([0, 7])) == 8  # a seek over 8 frames pays
    assert pace.work([3, 12], np.array([0, 12])) == 5 and pace.work([3, 11], np.array([0, 11])) == 12
    for _ in range(200):
        keys = np.unique(np.append(0, rng.integers(0, 300, rng.integers(1, 30))))
        chosen = np.unique(rng.integers(0, 300, rng.integers(1, 40)))
        assert pace.work(chosen, keys) == decoded(chosen, keys, 8)


LARGE = 1 << 25  # pixels of a frame


class Clock:
    now = 100.0


def close(indexes):
    """Whether one decoder takes them all, and not several side by side."""
    return indexes[-1] - indexes[0] < lanes.SPARSE * len(indexes)


class Played:
    """Pictures that come at given seconds after the file was opened."""

    def __init__(self, clock, indexes, came, count, asked):
        self.clock, self.indexes, self.came, self.count, self.asked = clock, list(indexes), came, count, asked

    def decoders(self):
        return 1 if close(self.indexes) else self.count, 1, 0

    def pictures(self):
        began = self.clock.now
        self.asked.append(self.indexes)
        for at in self.came(self.indexes):
            self.clock.now = began + at
            yield None


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(pace.time, "perf_counter", lambda: made.now)
    return made


def paced(clock, came, last=10**6, keys=(0,), pixels=64 * 64, count=1, first=0):
    """A Pace whose pictures come at came(indexes), and the lists of indexes that were decoded."""
    asked = []
    return pace.Pace(lambda some: Played(clock, some, came, count, asked), first, last, np.array(keys), pixels), asked


def even(opening, each):
    return lambda indexes: [opening + each * n for n in range(len(indexes))]


def test_frames_that_follow_each_other_are_timed_on_the_first(clock):
    made, asked = paced(clock, even(0.5, 0.01), first=7)
    assert made.seconds(np.arange(1000), (64, 64)) == pytest.approx(0.5 + 999 * 0.01)
    assert asked == [[*range(7, 7 + 49)]]
    assert made.seconds(np.arange(5), (64, 64)) == pytest.approx(0.5 + 4 * 0.01) and len(asked) == 1
    few, asked = paced(clock, even(0.5, 0.01), last=10, first=7)
    few.seconds(np.arange(3), (64, 64))
    assert asked == [[7, 8, 9, 10]]
    one, _ = paced(clock, even(0.5, 0.0), last=0)
    assert one.seconds(np.array([0]), (64, 64)) == 0.5


@pytest.mark.parametrize(
    "count, each, taken", [(1, 0.2, 3), (1, 0.1, 4), (1, 0.05, 7), (2, 0.2, 6), (8, 0.2, 24), (1, 1.0, 3)]
)
def test_a_moment_is_enough_and_every_decoder_is_timed(clock, count, each, taken):
    chosen = np.arange(0, 12_000, 12)
    made, _ = paced(clock, even(0.0, each), keys=chosen, count=count)
    made.seconds(chosen, (64, 64))
    (came,) = made.taken.values()
    assert len(came) == taken  # three of each decoder, and more than a quarter of a second
    assert list(made.decoders.values()) == [count]


def test_frames_apart_take_what_lies_between(clock):
    """Decoding takes 0.01 s a frame and showing one 0.03: from 12 apart and side by side, both are found."""

    def came(indexes):
        total, at, out = 0.5, indexes[0], []
        for index in indexes:
            total += 0.01 * (index - at) + 0.03
            out.append(total)
            at = index
        return out

    made, asked = paced(clock, came, pixels=LARGE)
    wanted = np.arange(0, 300, 6)
    each = (0.12 + 0.03) / 12
    expected = 0.53 + each * 295 + (0.04 - each) * 50
    assert made.seconds(wanted, (64, 64)) == pytest.approx(expected)
    assert [indexes[1] - indexes[0] for indexes in asked] == [1, 12]


@pytest.mark.parametrize("close, each", [(0.02, (0.6 - 0.3) / (12 * 2)), (0.001, 0.001)])
def test_pictures_that_come_at_once_are_timed_from_the_opening(clock, close, each):
    """Decoders that work ahead: all three come as the first does, and the time of decoding lies before it. A frame that is
    shown is also decoded, so decoding takes no more."""

    def came(indexes):
        return [0.6 if indexes[1] - indexes[0] > 1 else 0.3 + close * n for n in range(len(indexes))]

    ahead, _ = paced(clock, came, pixels=LARGE)
    assert ahead.seconds(np.arange(0, 300, 6), (64, 64)) == pytest.approx(0.3 + each * 295 + (close - each) * 50)


@pytest.mark.parametrize("spacing, whole", [(1, False), (2, True), (13, True), (1000, True)])
def test_frames_apart_are_timed_themselves_where_they_are_quick(clock, spacing, whole):
    chosen, keys = np.arange(0, 40 * spacing, spacing), np.arange(0, 40 * spacing + 1)
    made, asked = paced(clock, even(0.5, 0.05), keys=keys)
    made.seconds(chosen, (64, 64))
    assert (asked == [chosen[: len(asked[0])].tolist()]) == whole
    # pixels of a frame at which 2^25 are decoded for each of the first three, or of all
    most = min(3 * 2**25 // pace.work(chosen[:3], keys), 40 * 2**25 // pace.work(chosen, keys))
    for pixels, quick in ((most, whole), (most + 1, False)):
        made, asked = paced(clock, even(0.5, 0.05), keys=keys, pixels=pixels)
        made.seconds(chosen, (64, 64))
        assert (asked == [chosen[: len(asked[0])].tolist()]) == quick


@pytest.mark.parametrize("span, whole", [(1.9 * 39, False), (2 * 39, True)])
def test_the_mean_distance_is_of_one_to_the_next(clock, span, whole):
    """Forty frames have thirty-nine distances."""
    chosen = np.linspace(0, int(span), 40).astype(int)
    made, asked = paced(clock, even(0.5, 0.05), keys=np.arange(600))
    made.seconds(chosen, (64, 64))
    assert (asked == [chosen.tolist()]) == whole
    close = np.arange(10)
    made, asked = paced(clock, even(0.5, 0.05))
    assert made.seconds(close + np.arange(10) // 2, (64, 64)) == pytest.approx(0.5 + 9 * 0.05) and len(asked) == 1


def by_lanes(keys, count, opening, each, shown):
    """came(indexes) of decoders side by side: each takes the next run, whose pictures come with its last one. One takes all that are
    close, with as many threads."""

    def came(indexes):
        if close(indexes):
            return [
                opening + (each * (index - indexes[0] + 1) + shown * (n + 1)) / count for n, index in enumerate(indexes)
            ]
        free, out, number = [opening] * count, [], np.searchsorted(keys, indexes, "right") - 1
        for n in np.unique(number):
            run = np.array(indexes)[number == n]
            lane = int(np.argmin(free))
            free[lane] += each * (run[-1] - keys[n] + 1) + shown * len(run)
            out += [max([free[lane], *out[-1:]])] * len(run)
        return out

    return came


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("gap", [25, 250])
@pytest.mark.parametrize("spacing", [5, 16, 125, 1000])
@pytest.mark.parametrize("pixels", [1 << 16, 1 << 21, 1 << 23])
def test_runs_that_come_as_a_whole(clock, count, gap, spacing, pixels):
    """Of small frames the first runs are timed; of large ones their beginnings. Some came out at half of their time: all pictures
    of a run come at once, and the decoder is ahead of the first one."""
    keys, each = np.arange(0, 50_000, gap), 2e-9 * pixels
    came = by_lanes(keys, count, 0.02, each, each)
    made, asked = paced(clock, came, last=49_999, keys=keys, count=count, pixels=pixels)
    chosen = np.arange(spacing // 2, 40_000, spacing)
    before = clock.now
    assert made.seconds(chosen, (64, 64)) == pytest.approx(came(chosen.tolist())[-1], rel=0.3)
    assert clock.now - before < 2.5


@pytest.mark.parametrize("first, last", [(700, 3_800), (710, 2_020)])
def test_nothing_behind_the_end_is_decoded(clock, first, last):
    """A part of a file has the key frames of all of it."""
    keys = np.arange(0, 50_000, 250)
    came = by_lanes(keys, 2, 0.02, 0.008, 0.008)
    made, asked = paced(clock, came, first=first, last=last, keys=keys, count=2, pixels=1 << 21)
    chosen = np.linspace(first, last, 20).round().astype(int)
    assert made.seconds(chosen, (64, 64)) == pytest.approx(came(chosen.tolist())[-1], rel=0.3)
    assert len(asked) == 2 and all(500 <= index <= last for indexes in asked for index in indexes)


@pytest.mark.parametrize("pixels", [1 << 14, 1 << 21])
def test_frames_that_are_key_frames_at_first_and_not_later(clock, pixels):
    """Of ten minutes, sixteen frames were 1,000 apart, then 999: the first ones key frames, the others 250 frames behind one."""
    keys, each = np.arange(0, 15_000, 250), 1e-9 * pixels
    came = by_lanes(keys, 2, 0.02, each, 0.002)
    made, _ = paced(clock, came, last=14_999, keys=keys, count=2, pixels=pixels)
    chosen = np.linspace(0, 14_999, 16).round().astype(int)
    assert made.seconds(chosen, (64, 64)) == pytest.approx(came(chosen.tolist())[-1], rel=0.3)
    assert made.seconds(np.append(0, chosen[8:]), (64, 64)) == pytest.approx(
        came([0, *chosen[8:].tolist()])[-1], rel=0.3
    )


@pytest.mark.parametrize("latency", [0, 20])
@pytest.mark.parametrize("most", [30, 10**6])
def test_a_decoder_that_works_ahead(clock, latency, most):
    """Of frames apart it holds each back until `latency` others are decoded, and gives out the rest at the end."""

    def came(indexes):
        late = latency if indexes[1] - indexes[0] > 1 else 0
        return [0.02 + 0.002 * (min(index + late, indexes[-1]) + 1) + 0.0005 * n for n, index in enumerate(indexes)]

    made, _ = paced(clock, came, last=most, pixels=LARGE)
    chosen = np.arange(0, min(most, 9000) + 1, 6)
    assert made.seconds(chosen, (64, 64)) == pytest.approx(came(chosen.tolist())[-1], rel=0.3)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_decoders_side_by_side_begin_together(clock, count):
    chosen = np.arange(0, 100_000, 100)
    made, _ = paced(
        clock, lambda indexes: [0.8 + 0.02 * (n // count) for n in range(len(indexes))], keys=chosen, count=count
    )
    taken = 3 * count
    came = [0.8 + 0.02 * (n // count) for n in range(max(taken, 2))]
    rest = (came[-1] - came[count - 1]) / max(1, len(came) - count)
    assert made.seconds(chosen, (64, 64)) == pytest.approx(0.8 + rest * (1000 - count))
    two, _ = paced(clock, even(0.3, 0.1), keys=np.arange(0, 200), count=count)
    assert two.seconds(np.array([0, 100]), (64, 64)) == pytest.approx(0.3 if count == 1 else 0.4, abs=0.1001)


def test_the_beginning_of_a_file_says_how_it_goes_on(tmp_path, monkeypatch):
    """Of a file without an index: seconds of a frame and of a byte, and how far apart key frames are."""
    path = str(numbered(tmp_path / "a.mkv", 60, codec="mpeg4", gop=10))
    ticks = itertools.count()
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(ticks) / 1024)
    made = pace.RoughPace(path, "a", None)
    assert made.each == 1 / 1024 and made.gap == 10 and made.bytes == os.path.getsize(path)
    assert made.scan == made.byte * made.bytes and 61 / 1024 <= made.byte * made.bytes <= 61 / 1024 * 1.5
    chosen = np.array([0, 30, 55])
    frames = 1 + 1 + 6
    assert made.seconds(chosen, (32, 32)) == pytest.approx(frames / 1024 + 3 / 1024)
    monkeypatch.setattr(pace, "MOST_PACKETS", 10)
    assert pace.RoughPace(path, "a", None).gap is None
    monkeypatch.setattr(pace, "MOST_PACKETS", 11)
    assert pace.RoughPace(path, "a", None).gap == 10
    made.gap = None
    assert made.seconds(chosen, (32, 32)) == pytest.approx(56 / 1024 + 3 / 1024)


@pytest.mark.parametrize("slow, frames, packets", [(1 / 1024, 48, 60), (0.2, 2, 2), (0.25, 2, 2), (0.3, 1, 1)])
def test_the_beginning_is_a_moment(tmp_path, monkeypatch, slow, frames, packets):
    path, ticks, counted = str(numbered(tmp_path / "a.mkv", 60, codec="mpeg4", gop=10)), itertools.count(), []
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(ticks) * slow)
    for name in ("with_neighbours", "packets"):
        plain = getattr(pace, name)
        monkeypatch.setattr(
            pace, name, lambda *args, plain=plain, name=name: (counted.append(name) or x for x in plain(*args))
        )
    made = pace.RoughPace(path, "a", None)
    assert counted.count("with_neighbours") == frames
    assert made.each == pytest.approx(slow)
    assert 0 < made.byte and made.display is not None and made.frame is not None


# ------------------------------------------------------------------------------------------------ decoders and memory


@pytest.mark.parametrize("cores, shape, threads", [
    (1, (64, 64), 1), (2, (64, 64), 2), (3, (64, 64), 2), (4, (64, 64), 2), (6, (64, 64), 3), (8, (64, 64), 4), (64, (64, 64), 4),
    (8, (4096, 4096), 1), (8, (2400, 3584), 2), (8, (1, 1), 4), (8, (8640, 15360), 1),
])  # fmt: skip
def test_threads_that_resize(monkeypatch, cores, shape, threads):
    monkeypatch.setattr(lanes, "processors", lambda: cores)
    assert lanes.resizers(shape) == threads
    if threads > 1:
        assert threads * 5 * 1.5 * shape[0] * shape[1] <= 128 << 20


def planned(monkeypatch, frames, total=10_000, cores=4, shape=(64, 64), size=(32, 32), gop=50, seekable=True):
    monkeypatch.setattr(lanes, "processors", lambda: cores)
    times = SimpleNamespace(times=np.empty(total), keys=np.arange(0, total, gop), seekable=seekable)
    return lanes.decoders(times, frames, lanes.split(times, frames), shape, size)


def test_how_many_decoders_and_what_they_take(monkeypatch):
    frame = 1.5 * 64 * 64
    apart = list(range(0, 10_000, 500))
    waiting = 2 * 4 * 1 * 32 * 32 * 3
    assert planned(monkeypatch, apart) == (4, 1, 4 * (170 * 10_000 + 15 * frame) + waiting)
    assert planned(monkeypatch, apart, cores=16)[0] == 8 and planned(monkeypatch, apart, cores=1)[0] == 1
    assert planned(monkeypatch, apart[:3])[0] == 3 and planned(monkeypatch, apart, seekable=False)[0] == 1
    one = 170 * 10_000 + (10 + 2 * 4 + 5 * 2) * frame
    assert planned(monkeypatch, list(range(200))) == (1, 4, one)
    # four frames of the file to a wanted one
    for step, count in ((3, 1), (4, 1), (5, 4)):
        assert planned(monkeypatch, list(range(0, 2000, step)), shape=(64, 64))[0] == count
    for end, count in ((400, 4), (399, 1)):
        assert planned(monkeypatch, [*range(0, 99 * 3, 3), end], gop=20)[0] == count
    # 64 MB of pictures wait: two runs of each decoder
    pictures = 10
    edge = (64 << 20) // (2 * 4 * pictures * 3)
    frames = [n for start in range(0, 10_000, 1000) for n in range(start, start + pictures)]
    for pixels, count in ((edge, 4), (edge + 1, 1)):
        assert planned(monkeypatch, frames, size=(1, pixels), gop=1000)[0] == count
    # 256 MB of decoders
    for side, count in ((3000, 1), (2000, 2), (1900, 3), (1700, 4)):
        assert planned(monkeypatch, apart, shape=(side, side))[0] == count
    for total, count in ((390_000, 4), (400_000, 3), (500_000, 3), (900_000, 1)):
        assert planned(monkeypatch, [*range(0, total, total // 20)], total=total)[0] == count


@pytest.mark.parametrize(
    "side, threads", [(64, 16), (2000, 16), (2300, 11), (2500, 9), (3800, 1), (4096, 1), (12000, 1)]
)
def test_threads_of_one_decoder_by_the_size_of_frames(monkeypatch, side, threads):
    count, got, size = planned(monkeypatch, list(range(100)), cores=16, shape=(side, side))
    assert (count, got) == (1, threads) and got in (1, 16, ((256 << 20) // int(1.5 * side * side) - 10) // 2)
    assert size == 170 * 10_000 + (10 + 2 * threads + 5 * lanes.resizers((side, side))) * int(1.5 * side * side)


def test_processors_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr(lanes.os, "sched_getaffinity", lambda pid: set(range(6)) if pid == 0 else {0}, raising=False)
    for quota, count in ((2.0, 2), (2.1, 3), (0.5, 1), (1e300, 6), (float("inf"), 6), (0, 1)):
        monkeypatch.setattr(lanes._C, "cpu_quota", lambda quota=quota: quota)
        assert lanes.processors() == count
    monkeypatch.delattr(lanes.os, "sched_getaffinity", raising=False)
    for count in (5, None):
        monkeypatch.setattr(lanes.os, "cpu_count", lambda count=count: count)
        monkeypatch.setattr(lanes._C, "cpu_quota", lambda: 64.0)
        assert lanes.processors() == (count or 1)


def test_runs_begin_at_key_frames():
    times = SimpleNamespace(keys=np.array([0, 10, 20, 30]))
    assert lanes.split(times, [0, 9, 10, 11, 29, 35]) == [[0, 9], [10, 11], [29], [35]]
    assert lanes.split(times, [3]) == [[3]] and lanes.split(times, [10, 20]) == [[10], [20]]


# ------------------------------------------------------------------------------------------------ which frames


def line(times, rate=None, last=None, interval=0.5, **more):
    return Timeline(np.array(times, float), None, np.zeros(1, np.int64), rate, interval, last=last, **more)


def test_how_long_a_video_is():
    assert line([0, 1, 2], rate=2.0).duration == 1.5 and line([0, 1, 2], rate=2.0, last=3.0).duration == 4.0
    assert line([0, 1, 2], rate=2.0, last=0.25).duration == 1.5
    assert (
        line([0, 1, 2]).duration == 2.5
        and line([0, 1, 2], last=4.0).duration == 6.0
        and line([0, 1, 2], last=0.0).duration == 2.0
    )
    bare = line([0])
    assert (bare.declared, bare.last, bare.places, bare.offsets, bare.ordered, bare.notes) == (
        0.0,
        None,
        None,
        None,
        False,
        (),
    )
    assert not bare.seekable and line([0], offsets=np.zeros(1)).seekable


@pytest.mark.parametrize("start, end, found", [
    (None, None, (0, 4)), (0, None, (0, 4)), (0.99, None, (0, 4)), (1 - 1e-7, None, (1, 4)), (1 - 3e-6, None, (0, 4)), (1, None, (1, 4)),
    (4.4, None, (4, 4)), (0, 3, (0, 3)), (0, 3 - 1e-7, (0, 3)), (0, 3 - 3e-6, (0, 2)), (2, 2.5, (2, 2)), (0, 99, (0, 4)), (0, 1e-9, (0, 0)),
])  # fmt: skip
def test_frames_on_screen(start, end, found):
    assert timeline.within(line([0, 1, 2, 3, 4]), start, end, "a") == found


@pytest.mark.parametrize("start, end, words", [
    (4.5, None, r"start \(4.5 s\) is after the end of a \(4.5 s\)"), (2, 2, r"end \(2 s\) must come after start \(2 s\)"),
    (None, 0, r"end \(0 s\) must come after start \(0 s\)"), (-0.1, None, "start"), (0, -1, "end"), (3, 1, "must come after"),
])  # fmt: skip
def test_ranges_that_are_none(start, end, words):
    with pytest.raises(UsageError, match=words):
        timeline.within(line([0, 1, 2, 3, 4]), start, end, "a")


def chosen(times, **more):
    settings = dict(fps=1, min_frames=1, max_frames=99) | more
    return timeline.choose(times, "a", **settings).tolist()


def test_frames_at_a_constant_rate():
    even = line(np.arange(100) / 10, rate=10.0)
    for settings, count in (
        ({}, 10), ({"fps": 0.5}, 5), ({"fps": 0.59}, 5), ({"fps": 0.01}, 1), ({"fps": 100}, 99), ({"fps": 100, "max_frames": 500}, 100),
        ({"min_frames": 12}, 12), ({"min_frames": 200, "max_frames": 300}, 100), ({"max_frames": 7}, 7), ({"nframes": 33}, 33),
        ({"nframes": 500}, 100), ({"nframes": 1}, 1), ({"start": 5}, 5), ({"end": 4.95}, 5), ({"start": 9.95}, 1),
    ):  # fmt: skip
        got = chosen(even, **settings)
        first, last = timeline.within(even, settings.get("start"), settings.get("end"), "a")
        assert got == (first + np.linspace(0, last - first, count).round()).astype(int).tolist(), settings
    with pytest.raises(UsageError, match="nframes"):
        chosen(even, nframes=0)


def test_frames_at_a_variable_rate():
    slides = line([0, 1, 10, 11, 12, 20], last=5.0)
    assert chosen(slides) == [0, 1, 2, 3, 4, 5] and chosen(slides, fps=0.1) == [0, 5]
    assert chosen(slides, fps=0.2) == [0, 1, 2, 4, 5] and chosen(slides, max_frames=3) == [0, 4, 5]
    assert chosen(slides, nframes=2) == [0, 5] and chosen(slides, nframes=6) == [0, 1, 2, 3, 4, 5]
    assert chosen(slides, start=10.5, end=12.5) == [2, 4] and chosen(slides, start=21) == [5]
    assert chosen(slides, fps=0.01, min_frames=4) == [0, 1, 4, 5]
    for gap in (1e-5, 4e-15):  # found by refining, and whatever their times
        burst = line([0, 10, 10 + gap, 10 + 2 * gap, 50], last=1.0)
        assert chosen(burst, min_frames=5) == [0, 1, 2, 3, 4]
    assert chosen(burst, min_frames=4) == [0, 1, 3, 4]
    assert chosen(slides, temporal=2) == [0, 1, 2, 3, 4, 4, 5]
    assert chosen(line([0, 10, 11, 20], last=1.0, interval=1.0), temporal=2) == [0, 0, 1, 2, 3]
    assert chosen(line([0, 10, 11, 20], last=1.0, interval=1.0), temporal=2, max_frames=4) == [0, 1, 2, 3]


def test_a_cap_thins_by_time_and_not_by_count():
    burst = line(np.cumsum([0.0] + [0.033] * 200 + [30.0] * 19), last=30.0)
    for settings in (dict(max_frames=10), dict(nframes=10), dict(max_frames=10, temporal=2)):
        got = chosen(burst, fps=2, **settings)
        assert len(got) == 10 and got[0] == 0 and min(got[1:]) > 200 and set(np.diff(got[1:])) <= {2, 3}
    got = chosen(burst, fps=2, max_frames=30)  # of the burst only what the slides leave
    assert got == [*range(0, 200, 20), *range(200, 220)]
    still = line([0, 0.04, 0.08, 5.08, 5.12, 5.16], last=0.04)
    for count in range(3, 7):
        for settings in (dict(nframes=count), dict(fps=1000, max_frames=count)):
            got = chosen(still, **settings)
            assert len(set(got)) == count and got == sorted(got) and {0, 2, 5} <= set(got)
    twice = line([0, 1, 1, 1, 50, 60], last=1.0)  # frames that are never on screen come last
    assert [chosen(twice, nframes=n) for n in (3, 4, 5)] == [[0, 3, 5], [0, 3, 4, 5], [0, 1, 3, 4, 5]]


def test_as_many_frames_as_are_asked_for_whatever_their_times():
    random = np.random.default_rng(0)
    for _ in range(12):
        steps = random.choice([1e-3, 0.04, 0.04, 5, 600], random.integers(1, 200))
        some = line(np.append(0, np.cumsum(steps)), last=1.0)
        for count in range(1, len(steps) + 2, 7):
            for settings in (dict(nframes=count), dict(fps=1e4, max_frames=count)):
                got = chosen(some, **settings)
                assert len(got) == count and (np.diff(got) > 0).all()


def test_groups_that_span_no_pause():
    times = np.array([0.0, 1, 2, 10, 11, 30])
    assert timeline.grouped(np.arange(6), times, 2.0, 2).tolist() == [0, 1, 2, 2, 3, 4, 5]
    assert timeline.grouped(np.arange(6), times, 8.0, 2).tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert timeline.grouped(np.arange(6), times, 7.99, 3).tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert timeline.grouped(np.arange(6), times, 0.5, 1).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_nearest_of_times():
    times = np.array([0.0, 1, 4])
    assert timeline.nearest(times, np.array([-5, 0, 0.5, 0.51, 1, 2.5, 2.6, 9])).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert timeline.nearest(np.array([3.0]), np.array([-1, 3, 9])).tolist() == [0, 0, 0]
    assert timeline.spread(10, 4).tolist() == [0, 3, 6, 9] and timeline.spread(5, 1).tolist() == [0]
