"""Every way in which videos are bad: cut off, damaged, no videos at all, on disks that fail."""

import contextlib
import errno
import os
import shutil
import wave
from itertools import islice

import av
import numpy as np
import pytest
from made_videos import KINDS, bits, cut, lossless, numbered, opened, said, shown

from ivlite.errors import MediaError, OutOfMemoryError
from ivlite.media import boxes, container, ends

NOISE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


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


FORMS = {
    "a.mkv": {}, "a.webm": {"codec": "libvpx"}, "live.mkv": {"container": {"live": "1"}}, "a.mpg": {"codec": "mpeg2video"},
    "a.avi": {"codec": "mpeg4"}, "a.wmv": {"codec": "wmv2"}, "a.gif": {"codec": "gif", "pix_fmt": "rgb8"}, "bf.mkv": {"options": {"bf": "3"}},
}  # fmt: skip


@pytest.mark.parametrize("begin, end", [(0.4, 0.6), (0.5, 0.6), (0.7, 0.9)])
@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "live.mkv", "a.mpg", "a.avi", "a.wmv", "bf.mkv"])
def test_frames_that_are_lost_behind_damage_are_missed(tmp_path, name, begin, end):
    """The last frame that FFmpeg reads does not stay for as long as the others were to last."""
    path = numbered(tmp_path / name, 100, **FORMS[name])
    assert opened(path).warnings == []
    data = bytearray(path.read_bytes())
    low, high = int(begin * len(data)), int(end * len(data))
    data[low:high] = bytes(high - low)
    path.write_bytes(data)
    medium = opened(path)
    assert medium.times.last is None or medium.times.last < 0.1
    if medium.duration < 3.9:
        assert "is cut off: only" in medium.warnings[0]


@pytest.mark.parametrize("share", [0.3, 0.55, 0.77, 0.97])
@pytest.mark.parametrize("name", ["a.gif", "a.wmv", "a.mpg", "live.mkv", "a.mkv"])
def test_every_cut_is_noted(tmp_path, name, share):
    path = cut(numbered(tmp_path / name, 100, **FORMS[name]), share)
    medium = opened(path)
    assert len(list(medium.pairs())) == medium.grid[0]
    if medium.duration < 3.9:
        assert any("is cut off: only" in w for w in medium.warnings)


@pytest.mark.parametrize("name", FORMS)
def test_whole_files_are_not_said_to_be_cut(tmp_path, name):
    path = numbered(tmp_path / name, 100, **FORMS[name])
    last = max(packet.pos for packet in demuxed(path))
    with av.open(str(path)) as source:
        form = source.format.name
    assert ends.unread(path, form, last) is (False if name.endswith(("mkv", "webm", "mpg")) else None)
    assert boxes.whole(path, form) is not False and ends.again(path, form, last, []) is None
    if name == "a.gif":  # what follows a GIF is none of it
        path.write_bytes(path.read_bytes() + b"more\0")
        assert boxes.whole(path, form) is None
    assert opened(path).warnings == []


def demuxed(path):
    with av.open(str(path)) as source:
        return [packet for packet in source.demux(video=0) if packet.size and packet.pos is not None]


@pytest.mark.parametrize("name", ["a.mkv", "a.mpg", "a.flv", "a.ts", "a.mp4"])
def test_sound_behind_the_pictures_is_no_damage(tmp_path, name):
    path = with_sound(tmp_path / name, *(("mpeg2video", "mp2") if name == "a.mpg" else ("libx264", "aac")), later=True)
    assert opened(path).warnings == []


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


def with_sound(path, pictures="libx264", sound="aac", later=False):
    """Two seconds of frames and three of sound, the sound first, or last."""
    kind, rate, each = (np.float32, 8000, 1000) if sound == "aac" else (np.int16, 48000, 6000)
    with av.open(str(path), "w") as out:
        heard, seen = out.add_stream(sound, rate=rate), out.add_stream(pictures, rate=25)
        seen.width, seen.height, seen.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for n in range(24):
            samples = np.zeros((1, each), kind)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp" if sound == "aac" else "s16p", layout="mono")
            frame.rate, frame.pts = rate, each * n
            packets += heard.encode(frame)
        shown = []
        for i in range(50):
            shown += seen.encode(av.VideoFrame.from_ndarray(bits(i), format="rgb24"))
        packets, shown = [*packets, *heard.encode()], [*shown, *seen.encode()]
        out.mux([*shown, *packets] if later else [*packets, *shown])
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
