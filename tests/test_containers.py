"""Video files that are large, have several tracks, or must not stay open."""

import gc
import os
import struct
import time

import av
import numpy as np
import pytest
from av.stream import Disposition
from made_videos import bits, lossless, numbered, opened, paired, said, shown
from test_time import needs_proc, timed

from ivlite.errors import MediaError, UsageError

# ------------------------------------------------------------------------------------------------ large files


def read_bytes():
    with open("/proc/self/io") as file:
        return int(file.read().split()[1])


@needs_proc
@pytest.mark.parametrize("name, options", [("a.mp4", {}), ("fast.mp4", {"movflags": "faststart"}), ("a.mkv", {})])
def test_a_part_of_a_large_file_is_read_alone(tmp_path, name, options):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with av.open(str(tmp_path / name), "w", options=options) as out:
        stream = out.add_stream("mpeg4", rate=25, options={"bf": "2", "qmin": "1", "qmax": "1"})
        stream.height, stream.width, stream.pix_fmt = 480, 640, "yuv420p"
        stream.codec_context.gop_size = 10
        for i in range(300):
            picture = np.roll(noise, 37 * i, 0)
            picture[:64] = bits(i % 256, 64, 640)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    size = os.path.getsize(tmp_path / name)
    before = read_bytes()
    medium = opened(tmp_path / name, start=6, end=6.4, fps=25, min_pixels=640 * 480)
    pairs = list(medium.pairs())
    assert size > 60e6 and read_bytes() - before < size / 2.5
    top = [said(frame[:64]) for pair in pairs for frame in pair]
    assert medium.frames == list(range(150, 161)) and top == paired(medium.frames) and not medium.warnings
    assert medium.duration == pytest.approx(12) and medium.timestamps[0] == pytest.approx(6.02)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("start, end", [(0, 1), (3, None), (3.21, 3.99), (7.5, 7.6), (7.99, 9)])
def test_a_part_is_the_same_however_it_is_found(tmp_path, name, start, end):
    numbered(tmp_path / name, 200, options={"bf": "3"}, gop=20)
    medium = opened(tmp_path / name, fps=25, start=start, end=end)
    first, last = int(start * 25 + 1e-6), min(199, int((end or 8) * 25 + 1e-6))
    assert medium.frames == list(range(first, last + 1)) and shown(medium) == paired(medium.frames)
    assert medium.duration == pytest.approx(8) and medium.times.rate == 25


def test_a_part_of_a_varying_rate_has_true_times(tmp_path):
    moments = [40 * i for i in range(100)] + [9_000 + 70 * i for i in range(60)]
    medium = opened(timed(tmp_path / "a.mkv", moments), fps=1000, start=9, end=9.2)
    assert medium.frames == [100, 101, 102] and shown(medium) == [100, 101, 102, 102]


@pytest.mark.parametrize("change", [
    lambda data, at: data[: at + 8] + struct.pack(">I", 1 << 31) + data[at + 12 :],
    lambda data, at: data[: at + 8] + struct.pack(">I", 3) + data[at + 12 :],
    lambda data, at: data[: at + 12] + struct.pack(">I", 0xFFFFFFFF) + data[at + 16 :],
])  # fmt: skip
def test_an_mp4s_damaged_table_of_offsets(tmp_path, change):
    path = numbered(tmp_path / "a.mp4", 60, options={"bf": "3"})
    data = path.read_bytes()
    path.write_bytes(change(data, data.index(b"ctts")))
    try:
        medium = opened(path)
        assert len(list(medium.pairs())) == medium.grid[0]
    except MediaError as error:  # FFmpeg refuses some
        assert "damaged" in str(error)


# ------------------------------------------------------------------------------------------------ tracks


def two_tracks(path):
    with av.open(str(path), "w") as out:
        streams = []
        for height, width in ((48, 64), (96, 128)):
            stream = out.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.disposition = Disposition.default
            streams.append(stream)
        for i in range(30):
            for n, stream in enumerate(streams):
                picture = bits(i + 100 * n, stream.height, stream.width)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            out.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_the_largest_track_is_taken_and_any_other_on_demand(tmp_path, name):
    path = two_tracks(tmp_path / name)
    assert opened(path).size == (96, 128) and shown(opened(path))[0] == 100
    assert opened(path, stream=0).size == (64, 64) and shown(opened(path, stream=0, fps=25)) == list(range(30))
    assert shown(opened(path, stream=1))[0] == 100
    for number in (2, 7, 10**9):
        with pytest.raises(UsageError, match=r"those are 0 \(h264, 64x48\), 1 \(h264, 128x96\)"):
            opened(path, stream=number)
    for number in (-1, "0", 0.5, True):
        with pytest.raises(UsageError, match="stream is"):
            opened(path, stream=number)


# ------------------------------------------------------------------------------------------------ joined files

JOINED = {"a.mp4": {}, "a.mov": {}, "a.flv": {}, "a.wmv": {"codec": "wmv2"}, "a.ivf": {"codec": "libvpx"}, "a.ts": {}}


@pytest.mark.parametrize("name", JOINED)
def test_a_second_part_that_is_not_read_is_noted(tmp_path, name):
    path = numbered(tmp_path / name, 20, **JOINED[name])
    other = {"container": {"mpegts_start_pid": "0x200"}} if name == "a.ts" else {}
    more = numbered(tmp_path / f"more {name}", 20, **JOINED[name], **other)
    assert opened(path).warnings == []
    first = path.read_bytes()
    path.write_bytes(first + more.read_bytes())
    medium = opened(path)
    assert len(medium.warnings) == 1 and "begins again at byte" in medium.warnings[0] and medium.duration <= 0.84
    told = int(medium.warnings[0].split("byte ")[1].split(":")[0].replace(",", ""))
    assert told == len(first) or (name == "a.ts" and len(first) <= told <= len(first) + 10 * 188)


def test_a_first_part_that_is_not_read_is_noted(tmp_path):
    """Of two videos of a transport stream, the larger is shown."""
    path = numbered(tmp_path / "a.ts", 20)
    more = numbered(tmp_path / "b.ts", 20, size=(96, 128), container={"mpegts_start_pid": "0x200"})
    path.write_bytes(path.read_bytes() + more.read_bytes())
    medium = opened(path)
    assert (
        medium.size == (96, 128) and len(medium.warnings) == 1 and "has another video before byte" in medium.warnings[0]
    )


@pytest.mark.parametrize("name, more", [("a.ts", {}), ("a.mkv", {}), ("a.mpg", {"codec": "mpeg2video"})])
def test_joined_parts_that_are_read_are_not_noted(tmp_path, name, more):
    path = numbered(tmp_path / name, 20, **more)
    path.write_bytes(2 * path.read_bytes())
    medium = opened(path)
    assert medium.warnings == [] and medium.duration > 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_tracks_beside_each_other_are_no_parts(tmp_path, name):
    path = two_tracks(tmp_path / name)
    assert opened(path).warnings == opened(path, stream=0).warnings == []


def test_protected_videos_are_named(tmp_path):
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
           "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}  # fmt: skip
    with pytest.raises(MediaError, match="encrypted"):
        opened(numbered(tmp_path / "a.mp4", 30, container=key))
    key["movflags"] = "frag_keyframe+empty_moov"  # FFmpeg does not open what it writes so
    with pytest.raises(MediaError, match="encrypted"):
        opened(numbered(tmp_path / "fragments.mp4", 30, container=key))
    data = numbered(tmp_path / "b.mp4", 30).read_bytes()
    at = data.index(b"avc1", data.index(b"stsd"))
    (tmp_path / "b.mp4").write_bytes(data[:at] + b"drmi" + data[at + 4 :])
    with pytest.raises(MediaError, match="encrypted"):
        opened(tmp_path / "b.mp4")


def test_scrambled_transport_streams_are_named(tmp_path):
    data = bytearray(numbered(tmp_path / "a.ts", 60).read_bytes())
    for at in range(0, len(data), 188):
        if data[at + 1] & 31 == 1 and data[at + 2] == 0:  # the first program's pictures
            data[at + 3] |= 0x80
    (tmp_path / "a.ts").write_bytes(data)
    with pytest.raises(MediaError, match="encrypted"):
        opened(tmp_path / "a.ts")


# ------------------------------------------------------------------------------------------------ what stays open


def in_use(path):
    links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    return len(os.listdir("/proc/self/task")), sum(os.path.exists(n) and os.readlink(n) == str(path) for n in links)


def again(path, before, seconds=60):
    """Whether what is in use becomes what was before: the system ends a thread shortly after Python does."""
    end = time.monotonic() + seconds
    while in_use(path) != before and time.monotonic() < end:
        time.sleep(0.001)
    return in_use(path) == before


@needs_proc
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_nothing_stays_open(tmp_path, codec):
    """Decoders, their threads and files end without the garbage collector."""
    path = numbered(tmp_path / "a.mkv", 60, codec=codec, size=(240, 320))
    next(opened(path).pairs())
    gc.collect()
    gc.disable()
    try:
        before = in_use(path)
        plans = [opened(path) for _ in range(5)]
        assert again(path, before) and before[1] == 0
        pairs = plans[0].pairs()
        next(pairs)
        assert in_use(path)[1] >= 1
        pairs.close()
        assert again(path, before)
        for plan in plans:
            next(plan.pairs())
            list(plan.pairs())
        assert again(path, before)
        with pytest.raises(UsageError):
            opened(path, start=99)
        with pytest.raises(UsageError):
            opened(path, stream=9)
        assert again(path, before)
    finally:
        gc.enable()


def test_too_few_descriptors_are_no_damage(tmp_path, monkeypatch):
    path = lossless(tmp_path / "a.mkv", 5)
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(path, os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, limits[1]))
        with pytest.raises(MediaError, match="Too many open files"):
            while True:
                opened(path)
                held.append(os.dup(held[0]))
    except OSError:
        pytest.skip("the test itself ran out of descriptors first")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for number in held:
            os.close(number)
