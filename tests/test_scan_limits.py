"""Times of packets, table by table: clocks with holes, joints, segments end to end, rates, declared durations, indexes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.media import scan
from ivlite.media.scan import NONE, Packets
from ivlite.media.timeline import Timeline

N = NONE


def packets(pts, dts=None, durations=None, keys=None, shown=None):
    count = len(pts)
    return Packets(
        np.array(pts, np.int64), np.array(pts if dts is None else dts, np.int64),
        np.array([0] * count if durations is None else durations, np.int64),
        np.array([True] * count if keys is None else keys, bool), np.array([True] * count if shown is None else shown, bool),
    )  # fmt: skip


@pytest.mark.parametrize("found, clock", [
    (packets([5, 6, 9]), [5, 6, 9]),
    (packets([N] * 4, durations=[2, 0, 3, 2]), [0, 10, 13, 15]),  # from their durations, or the rate: 10 ticks
    (packets([N] * 3, durations=[4, 4, 4]), [0, 4, 8]),
    (packets([9] * 5, dts=[N, 40, N, 60, N]), [30, 40, 50, 60, 70]),
    (packets([9] * 5, dts=[N, N, 40, 50, 60], durations=[1, 2, 3, 4, 5]), [37, 38, 40, 50, 60]),
    (packets([9] * 5, dts=[10, 20, 30, N, N], durations=[1, 2, 3, 4, 5]), [10, 20, 30, 33, 37]),
    (packets([7, 30, 27, N], dts=[N] * 4, keys=[1, 0, 1, 0]), [7, 17, 27, 37]),  # times of key frames, where no packet has one
])  # fmt: skip
def test_a_clock_for_every_packet(found, clock):
    got = scan.filled(found, [20.0, 5.0], 1 / 200)
    assert got.tolist() == clock and got.dtype == np.int64


def test_a_clock_without_a_rate():
    assert scan.filled(packets([N] * 3), [], 1 / 240).tolist() == [0, 10, 20]  # 24 frames a second


@pytest.mark.parametrize("streamed, times, keys, joints", [
    (True, [0, 1, 2, 3], [1] * 4, []), (True, [0, 1, 11, 12], [1] * 4, []), (True, [0, 1, 11.5, 12], [1] * 4, [2]),
    (False, [0, 1, 11.5, 12], [1] * 4, []), (False, [0, 1, 108001, 108002], [1] * 4, []), (False, [0, 1, 108001.5, 108002], [1] * 4, [2]),
    (False, [0, 1, 2, 1.5, 2.5], [1] * 5, [3]), (False, [0, 1, 2, 1.5, 2.5], [1, 1, 1, 0, 1], []),  # back: only at key frames
    (False, [0, 0.5, 17, 1.5, 2.5], [1, 1, 1, 0, 1], []), (False, [5, 5.01, 5.02, 4.02, 4.03], [1, 1, 1, 0, 1], []),  # unless it is far
    (False, [5, 5.01, 5.02, 4.01, 4.02], [1, 1, 1, 0, 1], [3]), (False, [50, 50.5, 51, 43, 43.5], [1, 0, 0, 0, 0], []),
    (False, [50, 50.5, 51, 42.5, 43], [1, 0, 0, 0, 0], [3]), (False, [3, 1], [1, 1], [1]), (False, [3], [1], []), (False, [], [], []),
])  # fmt: skip
def test_where_segments_were_joined(streamed, times, keys, joints):
    clock = (np.array(times) * 1000).round().astype(np.int64)
    assert scan.joined(clock, np.array(keys, bool), 1 / 1000, streamed).tolist() == joints


def laid(found, joints, far=1e9):
    return scan.lay(found.pts, found.dts, found, np.array(joints, int), far).tolist()


def test_segments_end_to_end():
    found = packets([10, 12, 14, 3, 5, 7], durations=[2, 2, 2, 0, 0, 0])
    assert laid(found, []) == [10, 12, 14, 3, 5, 7]
    assert laid(found, [3]) == [10, 12, 14, 16, 18, 20]
    longer = replace(found, durations=np.array([2, 2, 9, 0, 0, 0]))  # until the end of the last frame
    assert laid(longer, [3]) == [10, 12, 14, 23, 25, 27]
    unknown = replace(found, durations=np.zeros(6, np.int64))  # the usual step: 2
    assert laid(unknown, [3]) == [10, 12, 14, 16, 18, 20]
    back = packets([10, 14, 12, 3, 7, 5, 100, 102], durations=[2] * 8)  # by their lowest and highest times
    assert laid(back, [3, 6]) == [10, 14, 12, 16, 20, 18, 22, 24]
    hidden = packets([10, 99, 12, 3, 5], durations=[2] * 5, shown=[1, 0, 1, 1, 1])
    assert laid(hidden, [3]) == [10, 99, 12, 14, 16]
    empty = packets([10, 12, 50, 3, 5], durations=[2] * 5, shown=[1, 1, 0, 1, 1])
    assert laid(empty, [2, 3]) == [10, 12, 64, 14, 16]
    alone = packets([4, 4], durations=[0, 0])
    assert laid(alone, [1]) == [4, 5]
    early = packets(
        [0, 2, 1004, 1000, 1002], dts=[0, 2, 4, 1000, 1002], durations=[2] * 5
    )  # one is decoded before its segment
    assert laid(early, [3], 999) == [0, 2, 8, 4, 6] and laid(early, [3], 1000) == [0, 2, 1004, 1006, 1008]


@pytest.mark.parametrize("seconds, rates, rate", [
    (np.arange(10) / 25, [25.0], 25.0), (np.arange(10) / 25, [30.0], 25.0), (np.arange(10) / 25, [30.0, 24.9], 24.9),
    (np.arange(10) / 25, [], 25.0), ([0.0], [], None), ([0.0], [7.0], 7.0),
    (np.arange(10) / 25 + [0, *[0.0199] * 9], [25.0], 25.0), (np.arange(10) / 25 + [0, *[0.0201] * 9], [25.0], None),  # half a frame
    (np.arange(10.0) + [0, *[0.0995] * 9], [1.0], 1.0), (np.arange(10.0) + [0, *[0.1005] * 9], [1.0], None),  # a tenth of a second
    ([0.0, 1, 2, 10], [1.0], None),
])  # fmt: skip
def test_a_rate_from_which_no_frame_deviates(seconds, rates, rate):
    if rate is None and len(seconds) == 10:  # nor from the mean of all
        seconds = np.array(seconds)
        seconds[5] += 0.3
    got = scan.constant_rate(np.array(seconds), rates)
    assert got is None if rate is None else got == pytest.approx(rate)


def settled(times, rates=(), length=0.0, claimed=0.0, entire=None):
    bare = Timeline(np.array(times, float), None, np.zeros(1, np.int64), None, 0.0)
    got = scan.settled(bare, list(rates), length, claimed, entire)
    return got.rate, round(got.interval, 6), got.last, got.declared, round(got.duration, 6)


@pytest.mark.parametrize("given, found", [
    # times, rates, length of the last packet, claimed, entire -> rate, interval, last, declared, duration
    (([0, 1, 2],), (1.0, 1.0, None, 0.0, 3.0)), (([0, 1, 2], [1.0], 1.5), (1.0, 1.0, None, 0.0, 3.0)),
    (([0, 1, 2], [1.0], 1.51), (None, 1.0, 1.51, 0.0, 3.51)), (([0, 0.1, 0.2], [10.0], 1.0), (10.0, 0.1, 1.0, 0.0, 1.2)),
    (([0, 0.1, 0.2], [10.0], 1.01), (None, 0.1, 1.01, 0.0, 1.21)), (([0, 0.1, 0.2], [10.0], 0.15), (10.0, 0.1, None, 0.0, 0.3)),
    (([0, 0.1, 0.2], [10.0], 0.16), (10.0, 0.1, 0.16, 0.0, 0.36)),
    (([0, 1, 5], [1.0], 2.0), (None, 2.5, 2.0, 0.0, 7.0)), (([0, 1, 5], [1.0], 0.0), (None, 2.5, 2.5, 0.0, 7.5)),
    (([0, 1, 1, 2, 9],), (None, 1.0, 1.0, 0.0, 10.0)), (([0], [4.0]), (4.0, 0.25, None, 0.0, 0.25)), (([0],), (None, 0.041667, 1 / 24, 0.0, 0.041667)),
    (([0], [4.0], 0.3), (4.0, 0.25, None, 0.0, 0.25)), (([0], [4.0], 3.0), (None, 3.0, 3.0, 0.0, 3.0)),
    (([0, 1, 2], [1.0], 0.0, 3.5, True), (1.0, 1.0, None, 0.0, 3.0)), (([0, 1, 2], [1.0], 0.0, 3.51, True), (None, 1.0, 1.5099999999999998, 0.0, 3.51)),
    (([0, 1, 2], [1.0], 0.0, 9.0, False), (1.0, 1.0, None, 9.0, 3.0)), (([0, 1, 2], [1.0], 0.0, 9.0, None), (1.0, 1.0, None, 9.0, 3.0)),
    (([0, 1, 2], [1.0], 0.0, 9.0, True), (None, 1.0, 7.0, 0.0, 9.0)),
])  # fmt: skip
def test_what_completes_a_timeline(given, found):
    assert settled(*given) == (*found[:2], found[2] and pytest.approx(found[2]), *found[3:])


def container(duration=None, tag=None, whole=None, streams=1, flags=0):
    stream = SimpleNamespace(duration=duration, time_base=0.5, metadata={} if tag is None else {"DURATION": tag})
    return SimpleNamespace(format=SimpleNamespace(flags=flags), streams=[stream] * streams, duration=whole), stream


@pytest.mark.parametrize("given, seconds", [
    (dict(duration=7, tag="01:00:00", whole=9_000_000), 3.5), (dict(tag="01:02:03.5", whole=9_000_000), 3723.5), (dict(tag=" 00:00:07 "), 7.0),
    (dict(tag="100:00:00"), 360000.0), (dict(tag="1 h", whole=9_500_000), 9.5), (dict(whole=9_500_000), 9.5), (dict(whole=9_500_000, streams=2), 0.0),
    (dict(duration=7, flags=0x200), 0.0), (dict(duration=7, flags=0x100), 3.5), (dict(), 0.0),
])  # fmt: skip
def test_what_a_file_declares(given, seconds):
    assert scan.declared_seconds(*container(**given)) == seconds


# ------------------------------------------------------------------------------------------------ indexes


def entries(count, shift=0, **changes):
    """FFmpeg's entries of an index, frame i at 10 i, its 5 bytes from 100 i, every fourth a key frame; and the tables."""
    made = [SimpleNamespace(timestamp=10 * i + shift, pos=100 * i, size=5, flags=int(i % 4 == 0)) for i in range(count)]
    for at, change in changes.items():
        vars(made[int(at[1:])]).update(change)
    number = np.arange(count)
    return made, (10 * number, 100 * number + 5, number % 4 == 0)


def test_an_index_that_agrees_with_the_tables():
    for count in (1, 5, 63, 64, 65, 1000):
        assert scan.agree(*entries(count)) and scan.agree(*entries(count, shift=-77))
    for at in (0, 1, 63, 936, 999):
        for change in (
            dict(timestamp=-1),
            dict(pos=1),
            dict(size=4),
            dict(flags=2 | int(at % 4 == 0)),
            dict(flags=int(at % 4 != 0)),
        ):
            assert not scan.agree(*entries(1000, **{f"_{at}": change})), (at, change)
    asked = []
    made, table = entries(100_000)
    assert scan.agree(Recorded(made, asked), table)
    assert 150 < len(asked) <= 256 and {0, 63, 99_936, 99_999} <= set(asked) and 64 not in asked[:65]


class Recorded(list):
    def __init__(self, items, asked):
        super().__init__(items)
        self.asked = asked

    def __getitem__(self, at):
        self.asked.append(at)
        return super().__getitem__(at)


def test_an_index_alone():
    made, table = entries(9)
    got = scan.listed(made, 9)
    assert [a.tolist() for a in got] == [a.tolist() for a in table]
    assert (
        scan.listed(entries(9, _3=dict(flags=2))[0], 9) is None
        and scan.listed(entries(9, _3=dict(flags=3))[0], 9) is None
    )
    assert (
        scan.listed(entries(9, _3=dict(size=0))[0], 9) is None
        and scan.listed(entries(9, _3=dict(size=1))[0], 9) is not None
    )


@pytest.mark.parametrize("indexes, late, good", [
    ([3, 4, 5], 0, True), ([5, 3, 4], 0, True), ([3, 5], 0, False), ([3, 3, 4], 0, False), ([3, 3, 4], 9, False), ([3], 0, True),
    ([3, 4, 6], 1, True), ([3, 5, 6], 1, False), ([3, 5, 7], 2, True), ([3, 5, 7], 9, True),
])  # fmt: skip
def test_frames_without_a_hole(indexes, late, good):
    assert scan.contiguous(np.array(indexes), late) == good


def grid(parts, keys=(0,), first=0, tick=0.001, rate=25.0, reorders=False, size=10**6):
    return scan.on_grid([np.array(p) for p in parts], np.array(keys), first, tick, rate, reorders, size)


def test_times_on_a_grid():
    got = grid([[0, 40, 80], [200, 240]], keys=(0, 120))
    assert (got.rate, got.interval, len(got.times), got.pts.tolist()) == (
        25.0,
        0.04,
        7,
        [0, 40, 80, 120, 160, 200, 240],
    )
    assert got.keys.tolist() == [0, 3] and got.times.tolist() == [i / 25 for i in range(7)]
    assert grid([[5, 45]], keys=[5], first=5).pts.tolist() == [5, 45] and len(grid([[0]]).times) == 1
    for moved, good in ((43, True), (44, False), (37, True), (36, False)):  # a tick and a twentieth of a frame
        assert (grid([[0, moved, 80]]) is not None) == good and (
            grid([[0, 40, 80]], keys=[0, moved]) is not None
        ) == good
    assert grid([[0, 80, 120]]) is None and grid([[0, 80, 120]], reorders=True) is not None
    assert grid([[0, 80, *range(120, 1000, 40)]], reorders=True) is None
    assert grid([[0, 40]], size=2) is not None and grid([[0, 40]], size=1) is None
    assert grid([[0, 40]], first=100) is None and grid([[0, 1]], rate=2000.0) is None
    assert grid([[0, 4 * 10**8]], size=10**9) is None  # more frames than are listed


def test_packets_up_to_a_number():
    stop = scan.stop_after(3)
    assert [stop(None) for _ in range(5)] == [False, False, False, True, True]
