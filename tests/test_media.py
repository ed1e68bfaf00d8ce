"""Images and videos made here: which frames, at which times, how large, and every way in which files are bad."""

import contextlib
import errno
import gc
import os
import shutil
import struct
import wave
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
from PIL import Image

from ivlite import media
from ivlite.errors import MediaError, OutOfMemoryError, UsageError
from ivlite.media import container
from ivlite.media.resize import fitted

VIDEO = {"fps": 1, "min_frames": 4, "max_frames": 768, "min_pixels": 1024, "max_pixels": 1 << 20}
IMAGE = {"min_pixels": 1024, "max_pixels": 1 << 20}
NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def bits(number, height=48, width=64):
    """A picture that says `number` (0 to 255) in eight black or white columns."""
    picture = np.zeros((height, width, 3), np.uint8)
    for b in range(8):
        picture[:, b * width // 8 : (b + 1) * width // 8] = 255 * (number >> b & 1)
    return picture


def said(picture):
    """The number that a picture of bits says, after whatever was done to it."""
    width = picture.shape[1]
    return sum(int(picture[:, b * width // 8 + 2 : (b + 1) * width // 8 - 2].mean() > 128) << b for b in range(8))


def numbered(path, count, *, rate=25, codec="libx264", pix_fmt="yuv420p", size=(48, 64), times=None, options=None,
             container=None, rotation=None, gop=12):  # fmt: skip
    """A video whose frame i says i; times: milliseconds of each frame, for a varying rate."""
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = gop
        stream.options = options or {}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(bits(i, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def lossless(path, count, **more):
    return numbered(path, count, codec="ffv1", pix_fmt="bgr0", **more)


def opened(path, **more):
    return media.open_video(path, **VIDEO | more)


def shown(medium):
    """The numbers that the frames of a video of bits say."""
    return [said(frame) for pair in medium.pairs() for frame in pair]


def paired(frames):
    return [*frames, *frames[-1:] * (len(frames) % 2)]


# ------------------------------------------------------------------------------------------------ which frames, when

KINDS = {
    "a.mp4": dict(count=200), "long gop.mp4": dict(count=250, gop=250), "a.ts": dict(count=150),
    "a.mov": dict(count=120, codec="mpeg4"), "a.avi": dict(count=120, codec="mpeg4", options={"bf": "2"}),
    "a.mkv": dict(count=90, codec="ffv1", pix_fmt="bgr0"), "a.webm": dict(count=90, codec="libvpx-vp9"),
    "hidden.webm": dict(count=90, codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k"}),
    "ntsc.mp4": dict(count=240, rate=Fraction(30000, 1001)),
    "open gop.mp4": dict(count=250, options={"x264-params": "open-gop=1:keyint=30:bframes=3"}),
    "a.gif": dict(count=30, codec="gif", pix_fmt="rgb8", rate=10),
}  # fmt: skip


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


# ------------------------------------------------------------------------------------------------ damage


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.avi", "a.flv"])
def test_a_video_cut_off_is_used_as_far_as_it_goes(tmp_path, name):
    path = cut(numbered(tmp_path / name, 200, container={"movflags": "faststart"}), 0.6)
    medium = opened(path, fps=2)
    assert "cut off: only the first" in medium.warnings[0] and "8.0 seconds" in medium.warnings[0]
    numbers = shown(medium)
    assert len(numbers) == 2 * medium.grid[0] and 0 < medium.duration < 8
    # The last packets are decoded before frames that are shown earlier and were cut away: the last index may be another frame's.
    wrong = sum(a != b and b != len(medium.times.times) - 1 for a, b in zip(numbers, medium.frames, strict=False))
    assert (
        numbers[-1] >= medium.frames[-2]
        and wrong <= 1
        and (not wrong or any("could not be decoded" in w or "damaged" in w for w in medium.warnings))
    )
    said_before = list(medium.warnings)
    assert shown(medium) == numbers and medium.warnings == said_before


def single(path):
    """The numbers that a decoder of one thread shows of all that can be decoded."""
    with av.open(str(path)) as source:
        stream, found = source.streams.video[0], []
        stream.codec_context.thread_count = 1
        for packet in source.demux(stream):
            with contextlib.suppress(av.FFmpegError):
                found += [said(frame.to_ndarray(format="rgb24")) for frame in packet.decode()]
    return found


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9])
def test_the_end_of_a_video_cut_off_is_what_can_be_decoded(tmp_path, share):
    """A decoder of several threads keeps the frames before a packet that is not whole."""
    made = {"options": {"bf": "2"}, "container": {"movflags": "frag_keyframe+empty_moov"}}
    path = cut(numbered(tmp_path / "a.mp4", 100, **made), share)
    whole = single(path)
    assert 30 < len(whole) < 100
    medium = opened(path, nframes=100)
    assert set(shown(medium)) == set(whole) and len(medium.frames) - len(whole) <= 1
    assert medium.warnings[0] == f"video {path} is cut off: only its first {medium.duration:.1f} seconds are there"


def test_a_damaged_video_gives_every_pair_and_says_so(tmp_path):
    path = numbered(tmp_path / "a.mp4", 200, container={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    for i in np.random.default_rng(0).integers(data.index(b"mdat") + 1000, len(data), 60):
        data[i] ^= 0x55
    path.write_bytes(data)
    medium = opened(path, fps=10)
    assert len(shown(medium)) == 80 and any("80 frames used" in w for w in medium.warnings)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.webm"])
def test_any_cut_is_a_video_or_a_sentence(tmp_path, name, share):
    path = cut(numbered(tmp_path / name, **KINDS[name]), share)
    try:
        medium = opened(path)
        assert len(list(medium.pairs())) == medium.grid[0]
    except MediaError as error:
        assert name in str(error) and "\n" not in str(error)


def write(content):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def sound(path):
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(16000))


def sound_in_mp4(path):
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def huge(path):
    with av.open(str(path), "w", format="mov") as out:
        stream = out.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 9000, 9000, "monob"
        out.mux(stream.encode(av.VideoFrame(9000, 9000, "monob")))
        out.mux(stream.encode())


BAD_VIDEOS = {
    "missing": (lambda path: None, "does not exist"), "empty": (write(b""), "empty"),
    "folder": (lambda path: path.mkdir(), "folder"), "pipe": (os.mkfifo, "regular file"),
    "loop": (lambda path: path.symlink_to(path), "cannot be reached"),
    "text": (write("no video\n" * 99), "not a video"),
    "concat": (write("ffconcat version 1.0\nfile good.mp4\n"), "not a video"),
    "hls": (write("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\ngood.ts\n#EXT-X-ENDLIST\n"), "not a video"),
    "dash": (write('<?xml version="1.0"?><MPD><BaseURL>good.mp4</BaseURL></MPD>'), "not a video"),
    "sound": (sound, "not a video"), "sound in mp4": (sound_in_mp4, "no pictures"), "huge": (huge, "too large"),
    "header": (lambda path: cut(lossless(path.with_suffix(".mkv"), 30), 0.05).rename(path), "copy or record it again"),
    "no index": (lambda path: cut(numbered(path, 30), 0.4), "index"),
    "noise": (write(b"\0\0\0\x20ftypisom" + NOISE.tobytes()), "damaged"),
    "thin": (lambda path: lossless(path.with_suffix(".mkv"), 2, size=(2, 500)).rename(path), "200 times"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_bad_videos_are_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make, words = BAD_VIDEOS[name]
    make(tmp_path / f"{name}.mp4")
    with pytest.raises(MediaError) as caught:
        opened(f"{name}.mp4")
    assert words in str(caught.value) and f"{name}.mp4" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("script, target", [
    ("ffconcat version 1.0\nfile good.mp4\n", "list.mp4"), ("#EXTM3U\n#EXTINF:3,\ngood.ts\n", "list.m3u8"),
])  # fmt: skip
def test_scripts_open_nothing_else(tmp_path, script, target):
    """What a script names is a pipe: had it been opened, this test would hang."""
    for name in ("good.mp4", "good.ts"):
        os.mkfifo(tmp_path / name)
    (tmp_path / target).write_text(script)
    with pytest.raises(MediaError):
        opened(tmp_path / target)


@pytest.mark.parametrize("name", ["a:b.mp4", "http:x.mp4", "-x.mp4", "%d.mp4", "😀 é.mp4", "two\nlines.mp4",
                                  "concat:a|b.mp4", "x" * 251 + ".mp4", b"\xff\xfe.mp4"])  # fmt: skip
def test_any_file_name_works(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    lossless("a.mkv", 3)
    shutil.copy("a.mkv", name)
    assert shown(opened(name)) == [0, 1, 2, 2]


def with_sound(path):
    """Two seconds of frames and three of sound, the sound first."""
    with av.open(str(path), "w") as out:
        heard, seen = out.add_stream("aac", rate=8000), out.add_stream("libx264", rate=25)
        seen.width, seen.height, seen.pix_fmt = 64, 48, "yuv420p"
        for n in range(24):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 8000, 1000 * n
            out.mux(heard.encode(frame))
        for i in range(50):
            out.mux(seen.encode(av.VideoFrame.from_ndarray(bits(i), format="rgb24")))
        out.mux([*heard.encode(), *seen.encode()])
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_is_passed_over(tmp_path, name):
    medium = opened(with_sound(tmp_path / name), fps=5)
    assert medium.duration == 2 and medium.warnings == []
    assert len(medium.frames) == 10 and shown(medium) == medium.frames


def test_protocols_are_not_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lossless("a.mkv", 3)
    for name in ("concat:a.mkv|a.mkv", "subfile,,start,0,end,0,,:a.mkv", "cache:a.mkv", "pipe:0", "file:a.mkv"):
        with pytest.raises(MediaError, match="does not exist"):
            opened(name)


def test_a_file_that_vanishes_before_it_is_decoded(tmp_path):
    path = lossless(tmp_path / "a.mkv", 5)
    medium = opened(path)
    path.unlink()
    with pytest.raises(MediaError, match="a.mkv"):
        next(medium.pairs())


class BrokenDisk:
    """A file whose bytes from `good` on the disk does not give."""

    def __init__(self, file, good, number):
        self.file, self.good, self.number = file, good, number

    def read(self, *count):
        if self.file.tell() >= self.good:
            raise OSError(self.number, os.strerror(self.number))
        return self.file.read(*count)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO])
def test_a_disk_that_fails_is_no_damaged_video(tmp_path, monkeypatch, number):
    """FFmpeg takes a file that it cannot read for a damaged one; a file that can be read is damaged."""
    path = numbered(tmp_path / "clip.mkv", 20)
    broken = av.FFmpegError(errno.EIO, os.strerror(errno.EIO))

    class Demuxer:
        name = f"file:{path}"

        def demux(self, stream):
            yield from islice(found.demux(stream), 5)
            raise broken

    plain, size = open, os.path.getsize(path)
    with av.open(str(path)) as found:
        assert len(list(container.packets(Demuxer(), found.streams.video[0]))) == 5
    with pytest.raises(MediaError, match="damaged"):
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(numbered(tmp_path / "whole.mp4", 20).read_bytes()[:2000])
        opened(bad)

    def partly(name, *args, **more):
        file = plain(name, *args, **more)
        return BrokenDisk(file, 1500, number) if str(name).startswith(str(tmp_path)) else file

    monkeypatch.setattr("builtins.open", partly)
    with av.open(str(path)) as found, pytest.raises(MediaError, match=os.strerror(number)):
        list(container.packets(Demuxer(), found.streams.video[0]))
    with pytest.raises(MediaError, match=os.strerror(number)):
        opened(bad)
    assert size > 1500


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_memory_that_runs_out_is_no_damaged_frame(monkeypatch, error):
    class Stream:
        class container:
            name = "file:/dev/null"

    class Decoder:
        def decode(self, packet):
            raise error

    monkeypatch.setattr(container, "decoder", lambda stream: Decoder())
    monkeypatch.setattr(container, "available_memory", lambda: 1 << 20)
    with pytest.raises(OutOfMemoryError):
        list(container.decoded(Stream, []))
    monkeypatch.setattr(container, "available_memory", lambda: 1 << 40)
    assert list(container.decoded(Stream, [])) == []  # an absurd size in the file
