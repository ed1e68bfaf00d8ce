"""Videos made here: which frames, at which times, how large."""

import gc
import os
import struct

import av
import numpy as np
import pytest
from made_videos import KINDS, bits, lossless, numbered, opened, paired, said, shown
from PIL import Image

from ivlite import media
from ivlite.errors import UsageError
from ivlite.media.resize import fitted

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


# ------------------------------------------------------------------------------------------------ which frames, when


@pytest.mark.parametrize("fps", [0.3, 1, 7, 100])
@pytest.mark.parametrize("name", KINDS)
def test_asked_for_a_frame_got_that_frame(tmp_path, name, fps):
    path, count = tmp_path / name, KINDS[name]["count"]
    numbered(path, **KINDS[name])
    medium = opened(path, fps=fps)
    rate = float(KINDS[name].get("rate", 25))
    n = min(max(int(count / rate * fps), 4), count)
    frames = np.linspace(0, count - 1, n).round().astype(int).tolist()
    assert medium.frames == frames and shown(medium) == paired(frames) and medium.warnings == []
    times = np.array(paired(frames)) / rate
    assert medium.timestamps == pytest.approx(times.reshape(-1, 2).mean(1).tolist(), abs=1e-9)
    assert medium.duration == pytest.approx(count / rate)
    assert medium.kind == "video" and medium.grid == (len(paired(frames)) // 2, 4, 4)


def test_bounds_of_the_frame_count(tmp_path):
    path = lossless(tmp_path / "a.mkv", 100)
    assert len(opened(path, fps=100, max_frames=7).frames) == 7
    assert len(opened(path, fps=0.01, min_frames=9).frames) == 9
    assert opened(path, nframes=3).frames == [0, 50, 99] and len(opened(path, nframes=1000).frames) == 100


@pytest.mark.parametrize("count", [1, 2, 3])
def test_videos_of_few_frames(tmp_path, count):
    medium = opened(numbered(tmp_path / "a.mp4", count))
    assert shown(medium) == paired(list(range(count)))


def test_pairs_can_be_had_again_and_are_what_the_model_wants(tmp_path):
    medium = opened(lossless(tmp_path / "a.mkv", 9), fps=25)
    first, second = list(medium.pairs()), list(medium.pairs())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) and len(first) == 5
    assert all(p.dtype == np.uint8 and p.shape == (2, 64, 64, 3) and p.flags.c_contiguous for p in first)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads memory in use from /proc")
def test_frames_do_not_pile_up(tmp_path):
    """A long video takes the memory of a short one, without waiting for the garbage collector."""
    path = numbered(tmp_path / "a.mp4", 150, size=(720, 1280))

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    gc.disable()
    try:
        pairs = opened(path, fps=25, min_pixels=4096, max_pixels=8192).pairs()
        for _ in range(15):
            next(pairs)
        before = resident()
        assert sum(1 for _ in pairs) == 60
        assert resident() - before < 40e6  # 120 frames would be 160 MB
    finally:
        gc.enable()


def test_pixels_are_the_sources(tmp_path):
    lossless(tmp_path / "a.mkv", 5, size=(64, 96))
    pairs = list(opened(tmp_path / "a.mkv", fps=25).pairs())
    assert all(np.array_equal(f, bits(min(i, 4), 64, 96)) for i, f in enumerate(np.concatenate(pairs)))


def test_times_of_a_varying_rate_are_true(tmp_path):
    times = [0, 33, 66, 100, 1100, 1133, 5000, 5033, 9000]
    path = lossless(tmp_path / "a.mkv", 9, times=times)
    medium = opened(path, fps=100)
    assert shown(medium) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert medium.timestamps == pytest.approx([0.0165, 0.083, 1.1165, 5.0165, 9.0])
    spread = opened(path, fps=0.5, min_frames=1)
    assert spread.frames == [0, 5, 7, 8] and shown(spread) == spread.frames


def test_time_begins_at_the_first_frame(tmp_path):
    path = lossless(tmp_path / "a.mkv", 20, times=[7000 + 100 * i for i in range(20)], rate=10)
    medium = opened(path, fps=10)
    assert medium.timestamps[0] == pytest.approx(0.05) and shown(medium) == list(range(20))


@pytest.mark.parametrize("name", ["a.mp4", "long gop.mp4", "a.ts", "open gop.mp4"])
def test_a_part_of_a_video_keeps_its_times(tmp_path, name):
    numbered(tmp_path / name, **KINDS[name])
    medium = opened(tmp_path / name, start=3, end=5, fps=2)
    assert medium.frames[0] == 75 and medium.frames[-1] == 125 and shown(medium) == paired(medium.frames)
    assert medium.timestamps[0] == pytest.approx((medium.frames[0] + medium.frames[1]) / 50)


def test_moments_between_frames_and_beyond_the_end(tmp_path):
    path = lossless(tmp_path / "a.mkv", 50)
    assert opened(path, start=1.999).frames == [49]
    assert opened(path, start=1.001, end=1.002).frames == [25]
    assert opened(path, start=1, end=90, fps=25).frames == list(range(25, 50))
    for start in (2, 2.5, 1e9):
        with pytest.raises(UsageError, match="after the end"):
            opened(path, start=start)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_turned_videos_stand_upright(tmp_path, rotation):
    path = numbered(tmp_path / "a.mp4", 5, rotation=rotation, size=(64, 96))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    medium = opened(path)
    assert medium.size == pixels.shape[:2] and np.array_equal(next(medium.pairs())[0], pixels)


def test_a_mirrored_video_is_mirrored_back(tmp_path):
    path = numbered(tmp_path / "a.mp4", 5, rotation=0)
    data = path.read_bytes()
    at = data.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), data.index(b"tkhd"))
    path.write_bytes(data[:at] + struct.pack(">i", -1 << 16) + data[at + 4 :])
    assert said(next(opened(path).pairs())[1][:, ::-1]) == 1


@pytest.mark.parametrize("size", [(47, 63), (1, 60), (8, 8), (33, 200), (480, 17)])
def test_odd_sizes(tmp_path, size):
    medium = opened(lossless(tmp_path / "a.mkv", 3, size=size))
    assert all(n % 32 == 0 for n in medium.size) and len(list(medium.pairs())) == 2


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("size, low, high, expected", [
    ((720, 1280), 131072, 131072, (256, 480)), ((1080, 1920), 65536, 16777216, (1088, 1920)),
    ((100, 100), 65536, 16777216, (256, 256)), ((48, 80), 1, 1 << 30, (64, 64)), ((16, 16), 1, 1024, (32, 32)),
    ((288, 512), 1, 131072, (256, 480)), ((2, 400), 1024, 1 << 20, (32, 480)), ((3000, 32), 1, 4096, (608, 32)),
])  # fmt: skip
def test_fitted(size, low, high, expected):
    assert fitted(*size, 32, low, high, "it") == expected


def test_limits():
    file = {"min_pixels": 100, "max_pixels": 200}
    assert media.limits({}, file) == file
    assert media.limits({"min_pixels": 300}, file) == {"min_pixels": 300, "max_pixels": 300}
    assert media.limits({"max_pixels": 50}, file) == {"min_pixels": 50, "max_pixels": 50}
    for given in ({"min_pixels": 5, "max_pixels": 4}, {"max_pixels": 0}, {"min_pixels": 1.5}, {"max_pixels": "9"}):
        with pytest.raises(UsageError):
            media.limits(given, file)


# ------------------------------------------------------------------------------------------------ lists of frames


def test_frames_of_every_kind_make_a_video(tmp_path):
    Image.fromarray(bits(2)).save(tmp_path / "2.png")
    frames = [bits(0), Image.fromarray(bits(1)), tmp_path / "2.png"]
    medium = opened(frames, fps=4)
    assert shown(medium) == [0, 1, 2, 2] and medium.timestamps == [0.125, 0.5] and medium.duration == 0.75
    assert opened([bits(i) for i in range(9)], max_frames=5).frames == [0, 2, 4, 6, 8]
    assert shown(opened(np.stack([bits(i) for i in range(9)]), start=2, end=4)) == [2, 3, 4, 4]


@pytest.mark.parametrize("frames", [
    [], [7], [NOISE[0, 0]], [NOISE.astype(np.float32)], np.zeros((2, 8, 8, 2), np.uint8), np.zeros((0, 4, 4, 3), np.uint8),
])  # fmt: skip
def test_frames_that_are_refused(frames):
    with pytest.raises(UsageError):
        opened(frames)
