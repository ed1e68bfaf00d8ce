"""Time in videos: joined segments, pauses, last frames, times that lie, parts of large files, tracks, what stays open."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from made_videos import bits, cut, numbered, opened, paired, said, shown

from ivlite import media
from ivlite.errors import UsageError
from ivlite.media import scan

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="reads /proc")


def timed(path, moments, total=None, codec="mpeg4", size=(48, 64), first=0, container=None, bf=0):
    """A video whose frame i says first + i, from moments[i] (milliseconds) on; the last one until `total`."""
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = Fraction(1, 1000), 12
        stream.codec_context.max_b_frames = bf
        for i, moment in enumerate(moments):
            frame = av.VideoFrame.from_ndarray(bits(first + i, *size), format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        for packet in stream.encode():
            if total is not None and packet.pts == moments[-1]:
                packet.duration = total - moments[-1]
            out.mux(packet)
    return path


def ends_at(path, moments, total):
    """As timed(), of frames that are all encoded on their own, so that the last packet is the last frame."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, (moment, after) in enumerate(zip(moments, [*moments[1:], total], strict=True)):
            frame = av.VideoFrame.from_ndarray(bits(i), format="rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = after - moment
                out.mux(packet)
        out.mux(stream.encode())
    return path


def every(path, **more):
    """The numbers of all frames, by a rate that leaves none out."""
    medium = opened(path, fps=1000, max_frames=5000, **more)
    return shown(medium)[: len(medium.frames)], medium


def as_decoded(path):
    """[(seconds from the first frame, number)] of the frames as PyAV decodes them."""
    with av.open(str(path)) as container:
        frames = [(f.time, said(f.to_ndarray(format="rgb24"))) for f in container.decode(video=0)]
    return [(time - frames[0][0], number) for time, number in frames]


# ------------------------------------------------------------------------------------------------ joined segments

SEGMENTS = {
    "a.ts": dict(codec="libx264", options={"bf": "3"}), "a.mpg": dict(codec="mpeg2video", options={"bf": "2"}),
    "a.mkv": dict(codec="libx264", options={"bf": "3"}), "b.mkv": dict(codec="ffv1", pix_fmt="bgr0"),
    "a.ogv": dict(codec="libtheora"), "a.h264": dict(codec="libx264", options={"bf": "3"}),
    "a.gif": dict(codec="gif", pix_fmt="rgb8"), "a.m2ts": dict(codec="libx264"), "a.mjpeg": dict(codec="mjpeg", pix_fmt="yuvj420p"),
}  # fmt: skip


def joined(path, counts, **more):
    """Segments, each counted from 0, whose bytes follow one another."""
    segments = []
    for n, count in enumerate(counts):
        part = path.with_name(f"{n}-{path.name}")
        segments.append(numbered(part, count, **more).read_bytes())
    path.write_bytes(b"".join(segments))
    return [i for count in counts for i in range(count)]


@pytest.mark.parametrize("counts", [(50, 50), (30, 90, 61)])
@pytest.mark.parametrize("name", SEGMENTS)
def test_joined_segments_follow_one_another(tmp_path, name, counts):
    if SEGMENTS[name]["codec"] not in av.codecs_available:
        pytest.skip("this FFmpeg has no such encoder")
    numbers = joined(tmp_path / name, counts, **SEGMENTS[name])
    if name.endswith("mkv"):  # FFmpeg reads on into the second, and stops before a third
        numbers = numbers[: counts[0] + counts[1]]
    found, medium = every(tmp_path / name)
    assert found == numbers and medium.duration == pytest.approx(len(numbers) / 25, abs=0.045)
    assert not [w for w in medium.warnings if "raw stream" not in w]
    assert medium.times.times == pytest.approx(np.arange(len(numbers)) / 25, abs=0.045)
    few = opened(tmp_path / name, fps=2)
    assert shown(few)[: len(few.frames)] == [numbers[i] for i in few.frames]
    late = opened(tmp_path / name, fps=5, start=counts[0] / 25 + 0.4)
    assert abs(late.frames[0] - counts[0] - 10) <= 1 and shown(late)[0] == numbers[late.frames[0]]


def test_a_walk_over_many_joints_decodes_only_what_it_needs(tmp_path):
    numbers = joined(tmp_path / "a.ts", [100] * 6, codec="libx264", gop=10)
    medium = opened(tmp_path / "a.ts", nframes=7)
    assert shown(medium) == [numbers[i] for i in paired(medium.frames)] and medium.frames[-1] == 599


@pytest.mark.parametrize("codec, bf", [("libx264", 2), ("mpeg4", 0)])
def test_an_hour_that_a_transport_stream_jumps_is_not_there(tmp_path, codec, bf):
    moments = [40 * i for i in range(50)]
    first = timed(tmp_path / "0.ts", moments, codec=codec, bf=bf)
    second = timed(tmp_path / "1.ts", [3_600_000 + m for m in moments], codec=codec, bf=bf, first=50)
    (tmp_path / "a.ts").write_bytes(first.read_bytes() + second.read_bytes())
    found, medium = every(tmp_path / "a.ts")
    assert found == list(range(100)) and medium.duration == pytest.approx(4, abs=0.05) and not medium.warnings


@pytest.mark.parametrize("bf", [0, 2, 3])
@pytest.mark.parametrize("at", [[13], [30], [7, 31]])
def test_an_hour_that_the_clock_of_an_encoder_jumps_is_not_there(tmp_path, bf, at):
    """Within a group of pictures: frames that are decoded early have times from after the jump, others not yet."""
    moments = [40 * i + sum(3_600_000 for jump in at if i >= jump) for i in range(60)]
    found, medium = every(timed(tmp_path / "a.ts", moments, codec="libx264", bf=bf))
    assert found == list(range(60)) and not medium.warnings
    assert medium.times.times == pytest.approx(np.arange(60) / 25, abs=0.02) and medium.duration == pytest.approx(
        2.4, abs=0.05
    )


def test_a_pause_of_an_hour_in_a_file_is_one(tmp_path):
    moments = [40 * i for i in range(50)]
    moments += [3_600_000 + m for m in moments]
    for name in ("a.mkv", "a.mp4"):
        medium = opened(timed(tmp_path / name, moments), fps=1)
        assert medium.duration == pytest.approx(3602, abs=0.05) and not medium.warnings


@pytest.mark.parametrize("name", ["a.mkv", "a.flv"])
def test_times_shared_by_several_frames_are_still_times(tmp_path, name):
    """Three frames each second, all with the time of the first of them: the last one stays on screen."""
    codec = "mjpeg" if name == "a.mkv" else "flv1"
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"g": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(bits(i), format="rgb24")
            frame.pts, frame.time_base = i * 40, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = i // 3 * 1000
                out.mux(packet)
    found, medium = every(tmp_path / name)
    assert sorted(set(found)) == list(range(2, 30, 3)) and not medium.warnings
    assert medium.times.times[medium.frames[-1]] == pytest.approx(9, abs=1e-3)


@pytest.mark.parametrize("codec, bf", [("libx264", 0), ("libx264", 3), ("mpeg2video", 0), ("mpeg4", 0)])
def test_a_recording_that_begins_between_key_frames(tmp_path, codec, bf):
    path = numbered(tmp_path / "a.ts", 100, codec=codec, options={"bf": str(bf)}, gop=20)
    with av.open(str(path)) as file:
        positions = [p.pos for p in file.demux(video=0) if p.pos is not None]
    path.write_bytes(path.read_bytes()[positions[7] :])
    found, medium = every(path)
    assert found == list(range(found[0], 100)) and 7 < found[0] <= 24 and medium.warnings == []
    assert medium.times.times[0] == 0 and medium.duration == pytest.approx(len(found) / 25, abs=0.01)


def test_time_stamps_that_wrap(tmp_path):
    begin = (1 << 33) // 90 - 1000  # milliseconds; a second before 33 bits of 90 kHz are full
    found, medium = every(timed(tmp_path / "a.ts", [begin + 40 * i for i in range(100)], codec="libx264"))
    assert found == list(range(100)) and medium.duration == pytest.approx(4, abs=0.01)


# ------------------------------------------------------------------------------------------------ lengths of frames


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_the_last_frame_stays_as_long_as_the_file_says(tmp_path, name):
    path = ends_at(tmp_path / name, [33 * i for i in range(60)], 20_000)
    medium = opened(path)
    assert medium.duration == pytest.approx(20, abs=0.04) and medium.warnings == []
    assert shown(opened(path, start=15, end=18)) == [59, 59] and opened(path, start=15, end=18).frames == [59]
    with pytest.raises(UsageError, match="after the end"):
        opened(path, start=20.5)


def test_an_estimate_begins_with_the_first_frame(tmp_path):
    """As of a part of a long recording, whose clock goes on."""
    path = numbered(tmp_path / "a.mkv", 150, codec="mpeg4", times=[60_000 + 40 * n for n in range(150)])
    probe = media.probe(path, fps=1)
    assert probe.estimated and probe.times.duration == pytest.approx(6, abs=0.3)
    probe.settle()
    assert probe.times.duration == pytest.approx(6, abs=0.1)


def test_the_last_frame_of_a_gif_stays(tmp_path):
    from PIL import Image

    frames = [Image.fromarray(bits(i)) for i in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100] * 4 + [10_000])
    medium = opened(tmp_path / "a.gif")
    assert medium.duration == pytest.approx(10.4) and medium.warnings == []
    assert shown(opened(tmp_path / "a.gif", start=9)) == [4, 4]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cut_file_is_not_one_whose_last_frame_stays(tmp_path, name):
    path = cut(numbered(tmp_path / name, 200, container={"movflags": "faststart"}), 0.5)
    medium = opened(path)
    assert medium.duration < 7 and "cut off: only the first" in medium.warnings[0]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_frame_is_in_the_range_while_it_is_on_screen(tmp_path, name):
    slides = ends_at(tmp_path / name, [0, 60_000, 120_000, 180_000, 250_000], 300_000)
    for start, end, numbers in (
        (70, 130, [1, 2]),
        (110, 121, [1, 2]),
        (61, 62, [1]),
        (0, 59, [0]),
        (200, None, [3, 4]),
    ):
        medium = opened(slides, start=start, end=end)
        assert sorted(set(shown(medium))) == numbers, (start, end)
        assert all(mark <= (end or 300) for mark in medium.timestamps)


# ------------------------------------------------------------------------------------------------ rates that vary


def bursts(path, **more):
    moments = [33 * i for i in range(60)] + [200_000 + 33 * i for i in range(60)]
    return timed(path, moments, **more), np.array(moments) / 1000


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("fps", [0.25, 0.5, 1, 3])
def test_samples_are_laid_over_time(tmp_path, name, fps):
    path, times = bursts(tmp_path / name)
    medium = opened(path, fps=fps)
    chosen = times[medium.frames]
    assert medium.times.rate is None and 59 in medium.frames and 4 <= len(medium.frames)
    for second in (0, 1, 200, 201):
        inside = set(chosen[(chosen >= second) & (chosen < second + 1)])
        assert len(inside) <= max(2, fps + 1)
    # a pair does not reach over the pause
    assert [m for m in medium.timestamps if 2.1 < m < 199.9] == []
    assert shown(medium) == paired(medium.frames)


def test_a_varying_rate_keeps_the_bounds(tmp_path):
    path, _ = bursts(tmp_path / "a.mkv")
    for nframes in (1, 2, 5, 17, 119, 120, 500):
        frames = opened(path, nframes=nframes).frames
        assert len(frames) == min(nframes, 120) == len(set(frames)) and frames == sorted(frames)
    assert len(opened(path, fps=1, min_frames=30).frames) >= 30
    assert len(opened(path, fps=1000, max_frames=11).frames) <= 11
    assert opened(path, fps=1e9).frames == sorted(opened(path, fps=1e9).frames)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts"])
@pytest.mark.parametrize("bf", [0, 3])
def test_every_frame_is_at_its_true_time(tmp_path, name, bf):
    steps = np.random.default_rng(bf).integers(20, 200, 80)
    moments = [700 + int(m) for m in np.cumsum(steps)]
    path = timed(tmp_path / name, moments, codec="libx264", bf=bf)
    found, medium = every(path)
    truth = as_decoded(path)
    assert found == [number for _, number in truth] == list(range(80))
    assert medium.times.times == pytest.approx([time for time, _ in truth], abs=1e-6)


# ------------------------------------------------------------------------------------------------ times that lie


def without_offsets(path):
    """An mp4 with B-frames that says nothing of when they are shown."""
    numbered(path, 100, options={"bf": "3"}, gop=25, container={"use_editlist": "0"})
    data = path.read_bytes()
    assert data.count(b"ctts") == 1
    path.write_bytes(data.replace(b"ctts", b"free"))


def packed(path):
    """An AVI as DivX made them: a B-frame in the packet of the P-frame before it, and then a packet that shows nothing."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.max_b_frames, stream.codec_context.gop_size = 1, 100
        stream.options = {"b_strategy": "0"}
        made = []
        for i in range(61):
            made += stream.encode(av.VideoFrame.from_ndarray(bits(i), format="rgb24"))
        made += stream.encode()
        datas = [bytes(p) for p in made]
        start = datas[0].index(b"\0\0\x01\xb6")
        datas[0] = datas[0][:start] + b"\0\0\x01\xb2DivX503b1393p" + datas[0][start:]
        time_base, n = made[0].time_base, 0
        while n < len(datas):
            follows = n + 1 < len(datas) and datas[n + 1][4] >> 6 == 2
            for data in (datas[n] + datas[n + 1], b"\0\0\x01\xb6\x00\x00\x7f") if follows else (datas[n],):
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = stream, time_base, n == 0
                packet.pts = packet.dts = packed.count
                packed.count += 1
                out.mux(packet)
            n += 2 if follows else 1


packed.count = 0


@pytest.mark.parametrize("fps", [3, 1000])
@pytest.mark.parametrize("make, name, count", [
    (without_offsets, "a.mp4", 100), (packed, "packed.avi", 61),
    (lambda path: numbered(path, 100, options={"bf": "3"}), "x264.avi", 100),
    (lambda path: numbered(path, 100, codec="mpeg4", options={"bf": "2"}), "b.avi", 100),
    (lambda path: numbered(path, 100, codec="mpeg4"), "plain.avi", 100),
])  # fmt: skip
def test_times_that_lie(tmp_path, make, name, count, fps):
    packed.count = 0
    make(tmp_path / name)
    medium = opened(tmp_path / name, fps=fps)
    assert shown(medium) == paired(medium.frames) and medium.frames[-1] == count - 1
    assert medium.duration == pytest.approx(count / 25, abs=1e-3) and medium.warnings == []
    assert medium.times.times == pytest.approx(np.arange(count) / 25, abs=1e-3)
    late = opened(tmp_path / name, start=1.6, fps=2)
    assert late.frames[0] == 40 and shown(late)[0] == 40


def test_lies_that_begin_late_end_with_every_frame_in_order(tmp_path, monkeypatch):
    without_offsets(tmp_path / "a.mp4")
    monkeypatch.setattr(scan, "PROBED", 1)
    medium = opened(tmp_path / "a.mp4", fps=1000)
    assert medium.times.ordered and shown(medium)[10:] == paired(medium.frames)[10:]


def test_frames_that_an_edit_list_cuts_away_are_not_shown(tmp_path):
    path = numbered(tmp_path / "a.mp4", 100, options={"bf": "3"}, gop=25)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"ctts", b"free"))  # so the list cuts away the first two that are decoded
    found, medium = every(path)
    assert found == [number for _, number in as_decoded(path)] and 90 < len(found) < 100 and not medium.warnings


@pytest.mark.parametrize("codec, name, said_so", [
    ("libx264", "a.h264", True), ("libx265", "a.hevc", True), ("libvpx", "a.ivf", False), ("mjpeg", "a.mjpeg", False),
    ("rawvideo", "a.y4m", False), ("mpeg2video", "a.mxf", False), ("libx264", "a.m2ts", False), ("mpeg4", "a.3gp", False),
])  # fmt: skip
@pytest.mark.parametrize("rate", [25, 30])
def test_raw_streams_and_rarer_containers(tmp_path, codec, name, said_so, rate):
    if codec not in av.codecs_available:
        pytest.skip("this FFmpeg has no such encoder")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    numbered(tmp_path / name, 60, codec=codec, rate=rate, pix_fmt=pix_fmt)
    found, medium = every(tmp_path / name)
    rate = 25 if name == "a.mjpeg" else rate
    assert found == list(range(60)) and medium.duration == pytest.approx(60 / rate, abs=1e-3)
    assert [("raw stream" in w) for w in medium.warnings] == [True] * said_so


@pytest.mark.parametrize("codec, name, duration", [
    ("mjpeg", "a.mjpeg", 1.0), ("wmv2", "a.wmv", 0.04), ("mpeg4", "a.mp4", 0.04), ("mpeg2video", "a.ts", 0.04),
])  # fmt: skip
def test_a_video_of_a_single_frame(tmp_path, codec, name, duration):
    """A packet of an ASF file lasts a tick: that is no length, and nothing is cut off. A lone JPEG is a picture."""
    numbered(tmp_path / name, 1, codec=codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    medium = opened(tmp_path / name)
    assert shown(medium) == [0, 0] and medium.duration == pytest.approx(duration) and medium.warnings == []


# ------------------------------------------------------------------------------------------------ absent times


@pytest.mark.parametrize("every_nth", [2, 3, 12, 1000])
@pytest.mark.parametrize("codec, bf", [("libx264", "0"), ("libx264", "3"), ("mpeg2video", "2")])
def test_packets_without_times(tmp_path, codec, bf, every_nth):
    path = numbered(tmp_path / "a.ts", 100, codec=codec, options={"bf": bf})
    data, at = bytearray(path.read_bytes()), -1
    for n in range(100):
        at = data.index(b"\0\0\x01\xe0", at + 1)
        data[at + 7] &= 0x3F if n % every_nth else 0xFF  # the flags of both times
    path.write_bytes(data)
    found, medium = every(path)
    assert found == list(range(100)) and not medium.warnings
    assert medium.times.times == pytest.approx(np.arange(100) / 25, abs=1e-3)
