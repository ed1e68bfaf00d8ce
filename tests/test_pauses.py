"""Pauses of stream formats, estimates that cannot be, and beginnings that refer to what was cut off."""

from fractions import Fraction

import av
import numpy as np
import pytest
from made_videos import bits, numbered, opened, paired, said, shown
from test_time import as_decoded, every, timed

from ivlite import media

# ------------------------------------------------------------------------------------------------ pauses


def sounding(path, moments, first=0, begin=0, lag=0):
    """A stream with a frame at each of `moments` (milliseconds, from `begin`), and sound without a break.

    lag: milliseconds that a frame comes later in the file than the sound of its time.
    """
    with av.open(str(path), "w") as out:
        stream, sound = out.add_stream("mpeg2video", rate=25), out.add_stream("mp2", rate=48000, layout="stereo")
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = Fraction(1, 25), 1
        heard = [(24 * n, None) for n in range((moments[-1] + 1000) // 24)]
        for moment, i in sorted([*heard, *((m + lag, i) for i, m in enumerate(moments))], key=lambda event: event[0]):
            if i is None:
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
                frame.sample_rate, frame.pts = 48000, 48 * (begin + moment)
                out.mux(sound.encode(frame))
            else:
                frame = av.VideoFrame.from_ndarray(bits(first + i, 480, 640), format="rgb24")
                frame.pts, frame.time_base = (begin + moments[i]) // 40, Fraction(1, 25)
                out.mux(stream.encode(frame))
        out.mux(stream.encode())
        out.mux(sound.encode())
    return path


SLIDES = [0, 40, 80, 15_080, 15_120, 30_120, 30_160, 30_200, 50_200]


@pytest.mark.parametrize("name", ["a.ts", "a.m2ts", "a.mpg"])
@pytest.mark.parametrize("lag", [0, 45_000])
def test_a_pause_with_sound_in_a_stream_is_one(tmp_path, name, lag):
    medium = opened(sounding(tmp_path / name, SLIDES, lag=lag), fps=25)
    assert medium.times.times == pytest.approx(np.array(SLIDES) / 1000, abs=0.01)
    assert medium.duration == pytest.approx(50.24, abs=0.02) and sorted(set(shown(medium))) == list(range(9))
    late = opened(tmp_path / name, start=20, end=30)
    assert late.frames == [4] and set(shown(late)) == {4}


def test_a_joint_with_sound_in_a_stream_is_no_pause(tmp_path):
    """The sound jumps, too: ahead, and back; the pauses within the segments stay."""
    parts = [
        sounding(tmp_path / f"{n}.ts", SLIDES, n * 9, begin).read_bytes() for n, begin in enumerate((0, 120_000, 0))
    ]
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    found, medium = every(tmp_path / "a.ts")
    assert sorted(set(found)) == list(range(27)) and medium.duration == pytest.approx(3 * 50.24, abs=0.05)
    assert np.diff(medium.times.times)[[8, 17]] == pytest.approx(0.04, abs=0.01)


@pytest.mark.parametrize("name", ["a.ts", "a.m2ts"])
@pytest.mark.parametrize("bf", [0, 2])
def test_a_pause_that_the_clock_of_a_transport_stream_counts_is_one(tmp_path, name, bf):
    moments = [40 * i for i in range(30)] + [16_000 + 40 * i for i in range(30)]
    constant = {"muxrate": "400000"}
    medium = opened(timed(tmp_path / name, moments, codec="libx264", bf=bf, container=constant), fps=25)
    assert medium.times.times == pytest.approx(np.array(moments) / 1000, abs=1e-3)
    assert shown(medium) == medium.frames == list(range(60))
    (tmp_path / "b.ts").write_bytes(2 * (tmp_path / name).read_bytes())  # pauses and a joint, with frames decoded early
    twice = opened(tmp_path / "b.ts", fps=25).times
    assert twice.times == pytest.approx(np.concatenate([moments, np.array(moments) + 17_200]) / 1000, abs=0.05)
    packets = (
        np.frombuffer((tmp_path / name).read_bytes(), np.uint8).reshape(-1, 192 if name == "a.m2ts" else 188).copy()
    )
    head = packets[:, packets.shape[1] - 188 :]
    clocks = (head[:, 3] & 32 > 0) & (head[:, 4] > 6) & (head[:, 5] & 16 > 0)
    head[np.flatnonzero(clocks)[clocks.sum() // 2], 5] |= 128  # the clock says of itself that it jumps
    (tmp_path / name).write_bytes(packets.tobytes())
    assert opened(tmp_path / name).duration == pytest.approx(2.4, abs=0.05)


def test_a_pause_in_an_ogg_stream_is_one(tmp_path):
    if "libvpx" not in av.codecs_available:
        pytest.skip("this FFmpeg has no such encoder")
    moments = [0, 40, 80, 120, 15_000, 15_040, 30_000, 30_040, 30_080]
    for name in ("0.ogv", "1.ogv"):
        timed(tmp_path / name, moments, codec="libvpx", container={"page_duration": "0"})
    truth = [time for time, _ in as_decoded(tmp_path / "0.ogv")]
    medium = opened(tmp_path / "0.ogv", fps=25)
    assert medium.times.times == pytest.approx(truth, abs=1e-3) and medium.duration > 25
    (tmp_path / "a.ogv").write_bytes((tmp_path / "0.ogv").read_bytes() + (tmp_path / "1.ogv").read_bytes())
    assert opened(tmp_path / "a.ogv").duration == pytest.approx(2 * medium.duration, abs=0.1)


@pytest.mark.parametrize("seconds", [15, 600])
@pytest.mark.parametrize("bf", [0, 3])
def test_slides_that_come_seldom_are_no_segments(tmp_path, seconds, bf):
    path = numbered(tmp_path / "a.ts", 20, rate=Fraction(1, seconds), options={"bf": str(bf)})
    found, medium = every(path)
    assert found == list(range(20)) and medium.duration == pytest.approx(20 * seconds)
    assert medium.times.times == pytest.approx(np.arange(20) * seconds)
    path.write_bytes(2 * path.read_bytes())
    assert every(path)[0] == [*range(20), *range(20)]


# ------------------------------------------------------------------------------------------------ estimates


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.flv"])
def test_an_estimate_of_more_than_the_file_can_hold_is_none(tmp_path, name):
    moments = [40 * i + 3_600_000 * (i >= 20) for i in range(40)]
    probe = media.probe(timed(tmp_path / name, moments, codec="libx264"), fps=4)
    assert not probe.estimated and len(probe.times.times) == 40
    assert probe.times.duration == pytest.approx(1.6 if name == "a.ts" else 3601.6, abs=0.1)


@pytest.mark.parametrize("seconds, estimated", [((0, 40), False), ((0, 4), True), ((0,) * 6, False), ((0,) * 2, True)])
def test_an_estimate_out_of_proportion_is_none(tmp_path, seconds, estimated):
    """Segments of 4 seconds, of which each begins at some second of the clock: all together, they may seem far longer."""
    random = np.random.default_rng(0).integers(0, 255, (100, 96, 128, 3), np.uint8)
    for n, begin in enumerate(seconds):
        with av.open(str(tmp_path / f"{n}.ts"), "w") as out:
            stream = out.add_stream("mpeg2video", rate=25)
            stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 96, 128, "yuv420p", 4_000_000
            for i, picture in enumerate(random):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = 25 * begin + i, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    (tmp_path / "a.ts").write_bytes(b"".join((tmp_path / f"{n}.ts").read_bytes() for n in range(len(seconds))))
    probe = media.probe(tmp_path / "a.ts", fps=1)
    assert probe.estimated == estimated
    probe.settle()
    assert probe.times.duration == pytest.approx(4 * len(seconds), abs=0.1)


# ------------------------------------------------------------------------------------------------ beginnings

OPEN = {
    "libx264": {"x264-params": "open-gop=1:keyint=25:min-keyint=25:bframes=3:scenecut=0"},
    "mpeg2video": {"bf": "2", "b_strategy": "0"},
    "libx265": {"x265-params": "open-gop=1:keyint=25:min-keyint=25:bframes=3:scenecut=0:log-level=none"},
}


def cut_at_a_key_frame(path, codec):
    """A video of open groups of pictures without its first one: the next begins with frames that refer to it."""
    whole = numbered(path.with_name("whole.ts"), 100, codec=codec, options=OPEN[codec], gop=25)
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        copy, key = out.add_stream_from_template(stream), 0
        for packet in source.demux(stream):
            key += packet.is_keyframe
            if key > 1 and packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4", "a.mov"])
@pytest.mark.parametrize("codec", OPEN)
def test_frames_that_refer_to_what_was_cut_off_are_not_there(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip("this FFmpeg has no such encoder")
    path = cut_at_a_key_frame(tmp_path / name, codec)
    truth = as_decoded(path)
    found, medium = every(path)
    assert found == [number for _, number in truth] == list(range(truth[0][1], 100)) and truth[0][1] >= 25
    assert medium.times.times == pytest.approx([time for time, _ in truth], abs=2e-3) and not medium.warnings
    assert shown(opened(path, start=2, end=2.5)) == paired([truth[i][1] for i in opened(path, start=2, end=2.5).frames])
    assert set(shown(opened(path, nframes=2))) == {truth[0][1], 99}
    assert [said(f) for pair in opened(path, nframes=1).pairs() for f in pair] == [truth[0][1]] * 2
