"""Clips: which frames they show and when, their sound and subtitles, and what is refused."""

import errno
import os
import re
import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest
from made_videos import bits, numbered, opened, said, shown
from PIL import Image
from test_time import joined, timed

from ivlite import output
from ivlite.errors import DiskError, MediaError, Stopped, UsageError
from ivlite.media import cut as cutting
from ivlite.media.cut import cut, suffix
from ivlite.stop import Stop, using

RATE, RATES = 8000, {"libopus": 48000, "wmav2": 44100}  # samples of sound a second
LOUD = (60, 65)  # frames during which the sound is loud


def film(path, count=200, *, codec="libx264", sound="aac", gop=50, bf=2, subtitles=None, options=None):
    """A video of numbered frames, 25 a second, whose sound is loud during the frames of LOUD."""
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25, options={"sc_threshold": "0", **(options or {})})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        video.codec_context.gop_size, video.codec_context.max_b_frames = gop, bf
        audio = out.add_stream(sound, rate=RATES.get(sound, RATE), layout="mono") if sound else None
        if sound == "wmav2":
            audio.bit_rate = 64_000
        text = out.add_mux_stream(subtitles[0]) if subtitles else None
        for i in range(count):
            out.mux(video.encode(av.VideoFrame.from_ndarray(bits(i % 256), format="rgb24")))
            if audio:
                out.mux(audio.encode(tone(i, audio.codec_context.sample_rate)))
        out.mux(video.encode())
        out.mux(audio.encode() if audio else [])
        for start, end, line in subtitles[1] if subtitles else ():
            packet = av.Packet(line.encode())
            packet.stream, packet.time_base = text, Fraction(1, 1000)
            packet.pts = packet.dts = int(1000 * start)
            packet.duration = int(1000 * (end - start))
            out.mux(packet)
    return path


def tone(i, rate):
    """The sound of frame i."""
    length = rate // 25
    samples = 0.8 * np.sin(0.4 * np.arange(length)) if LOUD[0] <= i < LOUD[1] else np.zeros(length)
    frame = av.AudioFrame.from_ndarray((32767 * samples).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, i * length, Fraction(1, rate)
    return frame


def played(path):
    """[(seconds, number)] of the frames that a player shows."""
    with av.open(str(path)) as clip:
        return [(f.time, said(f.to_ndarray(format="rgb24"))) for f in clip.decode(video=0)]


def lasts(path):
    """Seconds of the pictures of a clip."""
    with av.open(str(path)) as clip:
        stream = clip.streams.video[0]
        return float(stream.duration * stream.time_base) if stream.duration else clip.duration / 1e6


def numbers(path):
    return [number for _, number in played(path)]


def loud(path):
    """(start, end) in seconds of the clip during which the sound is loud."""
    with av.open(str(path)) as clip:
        times, levels = [], []
        for frame in clip.decode(audio=0):
            samples = frame.to_ndarray().astype(float)
            samples = samples.reshape(-1) / (32768 if frame.format.name.startswith("s16") else 1)
            begin = times[-1] + 1 / frame.sample_rate if frame.pts is None else frame.time
            times += [begin + i / frame.sample_rate for i in range(len(samples))]
            levels += np.abs(samples).tolist()
    heard = np.array(times)[np.array(levels) > 0.3]
    return heard.min(), heard.max()


def checked_by_ffmpeg(path):
    """Whether FFmpeg's own programs, where installed, find a clip without fault that begins at 0."""
    if shutil.which("ffprobe") is None:
        return True
    told = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-f", "null", "-"], capture_output=True, text=True)
    begins = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-read_intervals", "%+#99", "-show_entries",
         "frame=best_effort_timestamp_time", "-of", "csv=p=0", path],
        capture_output=True, text=True,
    )  # fmt: skip
    return not told.stderr and not told.returncode and float(re.split(r"[\s,]", begins.stdout)[0]) == 0


# ------------------------------------------------------------------------------------------------ frames

SPANS = [(0, 2), (0.5, 1.5), (2, 4), (3.3, 4.7), (6.5, 8), (7.9, None), (0, None), (4.0, 4.04)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.ts"])
def test_a_player_begins_with_the_frame_at_the_start(tmp_path, name):
    path = film(tmp_path / name)
    for start, end in SPANS:
        made = cut(path, tmp_path / "clip.mp4", start, end)
        seen = played(made.path)
        first, last = int(25 * start + 1e-6), min(199, int(25 * (end or 8) - 1e-6))
        assert [n for _, n in seen][: last - first + 1] == list(range(first, last + 1))
        assert len(seen) - (last - first + 1) <= 3  # frames that are decoded before others
        moments = [max(0, i / 25 - start) for i in range(first, last + 1)]  # the start may be between two frames
        assert [t for t, _ in seen][: len(moments)] == pytest.approx(moments, abs=0.001)
        assert made.end - start - 0.001 <= lasts(made.path) <= made.end - start + 0.13
        assert made.early == 0 and made.start == start and made.end == pytest.approx(end or 8)
        assert made.copied and made.hidden == pytest.approx(start % 2) and checked_by_ffmpeg(made.path)


@pytest.mark.parametrize("bf, copied", [(0, True), (2, False)])
def test_avi_has_no_times_of_frames_that_are_reordered(tmp_path, bf, copied):
    path = film(tmp_path / "a.avi", bf=bf)
    made = cut(path, tmp_path / "clip.mp4", 2, 4)
    ours = opened(path, start=2, end=3.99, nframes=99)
    assert (
        numbers(made.path) == shown(ours)[: len(ours.frames)] and made.copied == copied and checked_by_ffmpeg(made.path)
    )


def test_without_edit_lists_a_clip_begins_early_and_says_so(tmp_path):
    path = film(tmp_path / "a.mkv")
    for start, end in SPANS:
        made = cut(path, tmp_path / "clip.mkv", start, end)
        seen = played(made.path)
        assert seen[0] == (0, int(25 * (start // 2 * 2))) and made.early == pytest.approx(start % 2)
        assert made.start == pytest.approx(start - made.early) and made.hidden == 0 and made.copied
        assert checked_by_ffmpeg(made.path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_exactly(tmp_path, name):
    made = cut(film(tmp_path / name), tmp_path / f"clip{suffix(tmp_path / name)}", 3.3, 4.5, exact=True)
    seen = played(made.path)
    assert [n for _, n in seen] == list(range(82, 113)) and not made.copied and made.early == made.hidden == 0
    assert seen[0][0] == 0 and seen[1][0] == pytest.approx(0.02, abs=0.001)  # the start is between two frames
    assert checked_by_ffmpeg(made.path)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_varying_rate_keeps_its_times(tmp_path, name, exact):
    """A slide that is on screen for nine seconds is there from the start, for what is left of its time."""
    moments = [40 * i for i in range(100)] + [13_000 + 70 * i for i in range(60)]
    made = cut(timed(tmp_path / "a.mkv", moments), tmp_path / name, 10, 14, exact=exact)
    seen = played(made.path)
    begin = 10 - made.early
    after = [(t, n) for t, n in seen if n >= 100]
    assert [n for _, n in after] == list(range(100, 115)) and seen[0][0] == 0
    assert [t for t, _ in after] == pytest.approx([3 + made.early + 0.07 * i for i in range(15)], abs=0.002)
    assert seen[0][1] == 99 if not made.early else moments[seen[0][1]] / 1000 == pytest.approx(begin, abs=0.001)


SLIDES = [
    (10, 13, [(0, 0)]),
    (0, 5, [(0, 0)]),
    (25, 40, [(0, 0), (5, 1)]),
    (40, 61, [(0, 1), (20, 2)]),
    (125, 130, [(0, 4)]),
]


@pytest.mark.parametrize("bf", [0, 2])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_slides_are_shown_for_the_time_of_the_clip(tmp_path, name, bf):
    moments = [0, 30_000, 60_000, 90_000, 120_000]
    path = timed(tmp_path / "a.mkv", moments, total=150_000, codec="libx264", bf=bf)
    for start, end, wanted in SLIDES:
        made = cut(path, tmp_path / name, start, end)
        with av.open(made.path) as clip:
            assert clip.duration / 1e6 == pytest.approx(end - start, abs=0.01)
        assert played(made.path) == wanted and made.early == made.hidden == 0 and checked_by_ffmpeg(made.path)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_times_that_do_not_begin_at_zero(tmp_path, name):
    path = timed(tmp_path / name, [1_000_000 + 40 * i for i in range(100)], codec="libx264", bf=2)
    made = cut(path, tmp_path / "clip.mp4", 2, 3)
    assert numbers(made.path)[:25] == list(range(50, 75)) and made.copied


def test_joined_streams_are_encoded(tmp_path):
    said_there = joined(tmp_path / "a.ts", [60, 60, 60], codec="libx264", gop=20)
    made = cut(tmp_path / "a.ts", tmp_path / "clip.mp4", 1.6, 4)
    assert not made.copied and numbers(made.path) == said_there[40:100]
    assert [t for t, _ in played(made.path)] == pytest.approx([i / 25 for i in range(60)], abs=0.001)


@pytest.mark.parametrize("rotation", [90, 180])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_turned_video_stays_turned(tmp_path, rotation, name):
    path = numbered(tmp_path / "a.mp4", 60, rotation=rotation)
    made = cut(path, tmp_path / name, 1, 2)
    with av.open(made.path) as clip:
        assert next(clip.decode(video=0)).rotation % 360 == rotation
    encoded = cut(path, tmp_path / "b.mp4", 1, 2, exact=True)
    with av.open(encoded.path) as clip:
        frame = next(clip.decode(video=0))
        assert frame.rotation == 0 and (frame.height, frame.width) == ((64, 48) if rotation == 90 else (48, 64))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv"])
def test_pixels_keep_their_shape(tmp_path, name):
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for i in range(30):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(bits(i, 64, 64), format="rgb24")))
        out.mux(stream.encode())
    made = cut(tmp_path / "a.mkv", tmp_path / name, 0.4, 1)
    with av.open(made.path) as clip:
        assert clip.streams.video[0].sample_aspect_ratio == 2 and made.copied


@pytest.mark.parametrize("form", ["gif", "webp", "png"])
def test_an_animated_image_becomes_a_video(tmp_path, form):
    path = tmp_path / f"a.{form}"
    first, *rest = (Image.fromarray(bits(i)) for i in range(12))
    first.save(path, save_all=True, append_images=rest, duration=200, loop=0)
    made = cut(path, tmp_path / f"clip{suffix(path)}", 0.9, 2)
    seen = played(made.path)
    assert [n for _, n in seen] == list(range(4, 10)) and not made.copied and suffix(path) == ".mp4"
    assert [t for t, _ in seen] == pytest.approx([0, *(0.1 + 0.2 * i for i in range(5))], abs=0.001)


def test_a_still_image_is_a_clip_of_one_frame(tmp_path):
    Image.fromarray(bits(77)).save(tmp_path / "a.png")
    assert numbers(cut(tmp_path / "a.png", tmp_path / "clip.mp4").path) == [77]


def test_a_distant_key_frame_is_not_taken_along(tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "FARTHEST", 1.0)
    path = film(tmp_path / "a.mp4")
    far, near = (cut(path, tmp_path / "clip.mp4", start, 5) for start in (3.5, 4.5))
    assert not far.copied and near.copied and near.hidden == 0.5


def test_a_copy_that_shows_something_else_is_not_kept(tmp_path, monkeypatch):
    """As a decoder would find it that needs what is not in the file."""
    path = film(tmp_path / "a.mp4")
    real = cutting.remux.Copy.takes
    monkeypatch.setattr(
        cutting.remux.Copy, "takes", lambda self, p: real(self, p) and not (p.stream_index == self.number and p.is_keyframe)
    )  # fmt: skip
    made = cut(path, tmp_path / "clip.mp4", 3, 5)
    assert not made.copied and numbers(made.path) == list(range(75, 125))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_video_cut_off_is_cut_as_far_as_it_goes(tmp_path, share):
    path = film(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[: int(share * os.path.getsize(path))])
    made = cut(path, tmp_path / "clip.mp4", 2, None)
    assert numbers(made.path) == numbers(path)[50:] and made.end < 7


# ------------------------------------------------------------------------------------------------ sound, subtitles


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "name, sound", [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.ts", "aac"), ("a.mov", "pcm_s16le")]
)
def test_sound_stays_with_its_pictures(tmp_path, name, sound, exact):
    path = film(tmp_path / name, sound=sound)
    made = cut(path, tmp_path / f"clip{suffix(path)}", 2.2, 3.4, exact=exact)
    before = [time for time, number in played(made.path) if number == LOUD[0]]
    begin, end = loud(made.path)
    assert begin == pytest.approx(before[0], abs=0.03) and end == pytest.approx(before[0] + 0.2, abs=0.1)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("sound", ["pcm_s16le", "wmav2"])
def test_sound_that_the_container_does_not_take_is_encoded(tmp_path, sound, exact):
    path = film(tmp_path / ("a.wmv" if sound == "wmav2" else "a.mkv"), sound=sound)
    late = loud(path)[0] - LOUD[0] / 25  # by the encoder's own delay
    for name in ("clip.mp4", "clip.mkv"):
        made = cut(path, tmp_path / name, 2.2, 3.4, exact=exact)
        before = [time for time, number in played(made.path) if number == LOUD[0]]
        begin, end = (time - late for time in loud(made.path))
        with av.open(made.path) as clip:
            name = clip.streams.audio[0].codec_context.codec.canonical_name
        assert begin == pytest.approx(before[0], abs=0.04) and end == pytest.approx(before[0] + 0.2, abs=0.12)
        assert name in ("aac", sound.removeprefix("lib")) and not made.notes and checked_by_ffmpeg(made.path)


def test_codecs_that_only_the_writer_refuses(tmp_path):
    """Opus goes into mp4 and not into mov, and FFmpeg's table does not say so."""
    path = film(tmp_path / "a.mkv", 60, sound="libopus")
    for ending, wanted in ((".mp4", "opus"), (".mov", "aac"), (".mkv", "opus")):
        made = cut(path, tmp_path / f"clip{ending}", 1, 2)
        with av.open(made.path) as clip:
            assert clip.streams.audio[0].codec_context.codec.canonical_name == wanted
        first = 25 - round(25 * made.early)
        assert made.copied and not made.notes and numbers(made.path)[: 50 - first] == list(range(first, 50))


def test_codecs_whose_decoders_show_what_an_edit_list_hides(tmp_path):
    path = film(tmp_path / "a.webm", 60, codec="libvpx-vp9", sound=None, gop=20, bf=0)
    made = cut(path, tmp_path / "clip.mp4", 1, 2)
    assert made.early == pytest.approx(0.2) and made.hidden == 0 and played(made.path)[0] == (0, 20)


def test_sound_of_joined_streams(tmp_path):
    one = film(tmp_path / "one.ts", 100, gop=20).read_bytes()
    (tmp_path / "a.ts").write_bytes(one + one)
    made = cut(tmp_path / "a.ts", tmp_path / "clip.mp4", 5.4, 7.8)
    begin, _ = loud(made.path)
    before = [time for time, number in played(made.path) if number == LOUD[0]]
    assert not made.copied and begin == pytest.approx(before[0], abs=0.06)


LINES = [(0.5, 1.0, "gone"), (2.0, 3.5, "on screen"), (3.8, 4.2, "next"), (6.0, 7.0, "later")]


@pytest.mark.parametrize("exact", [False, True])
def test_subtitles_come_along(tmp_path, exact):
    path = film(tmp_path / "a.mkv", subtitles=("subrip", LINES))
    assert suffix(path) == ".mkv"
    made = cut(path, tmp_path / "clip.mkv", 3, 5, exact=exact)
    with av.open(made.path) as clip:
        lines = [(float(p.pts * p.time_base), bytes(p).decode()) for p in clip.demux(subtitles=0) if p.size]
    begin = 3 - made.early
    assert [text for _, text in lines] == ["on screen", "next"]
    assert [time for time, _ in lines] == pytest.approx([max(0, 2 - begin), 3.8 - begin], abs=0.002)


def test_what_a_container_cannot_hold_is_left_out_and_said(tmp_path):
    path = film(tmp_path / "a.mkv", sound="pcm_u8")
    assert suffix(path) == ".mkv"
    lines = film(tmp_path / "b.mkv", subtitles=("subrip", LINES))
    made = cut(lines, tmp_path / "clip.mp4", 3, 5)
    assert len(made.notes) == 1 and "subtitles (subrip)" in made.notes[0] and numbers(made.path)


def test_of_two_tracks_the_one_asked_for(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        streams = [out.add_stream("libx264", rate=25) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(50):
            for n, stream in enumerate(streams):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(bits(i + 100 * n), format="rgb24")))
        for stream in streams:
            out.mux(stream.encode())
    for n in range(2):
        made = cut(tmp_path / "a.mkv", tmp_path / "clip.mp4", 1, 1.4, stream=n)
        assert numbers(made.path)[:10] == [100 * n + i for i in range(25, 35)]
        with av.open(made.path) as clip:
            assert len(clip.streams.video) == 1


# ------------------------------------------------------------------------------------------------ endings, codecs


def test_the_ending_follows_the_codecs(tmp_path):
    assert suffix(film(tmp_path / "a.mkv", 10)) == ".mp4"
    assert suffix(film(tmp_path / "a.webm", 10, codec="libvpx-vp9", sound="libopus", bf=0)) == ".mkv"
    assert (
        suffix(film(tmp_path / "a.avi", 10, codec="mpeg4", sound="mp3" if "mp3" in av.codecs_available else None))
        == ".mp4"
    )
    assert suffix(film(tmp_path / "a.mov", 10, sound="pcm_s16le")) == ".mov"


@pytest.mark.parametrize("codec", ["ffv1", "mjpeg", "mpeg2video", "libx265", "libvpx-vp9"])
def test_every_codec_has_a_clip_that_plays(tmp_path, codec):
    if codec not in av.codecs_available:
        pytest.skip("this FFmpeg lacks the codec")
    with av.open(str(tmp_path / "a.mkv"), "w") as out:
        stream = out.add_stream(codec, rate=25, options={"x265-params": "log-level=none"} if codec == "libx265" else {})
        stream.height, stream.width = 48, 64
        stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = 20
        for i in range(60):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(bits(i), format="rgb24")))
        out.mux(stream.encode())
    for ending in (suffix(tmp_path / "a.mkv"), ".mp4", ".mkv"):
        made = cut(tmp_path / "a.mkv", tmp_path / f"clip{ending}", 1, 2)
        first = 25 - round(25 * made.early)
        assert numbers(made.path)[: 50 - first] == list(range(first, 50)) and checked_by_ffmpeg(made.path)


# ------------------------------------------------------------------------------------------------ what is refused


def test_names_that_are_hostile(tmp_path):
    path = film(tmp_path / "a.mp4", 60)
    for name in (
        "-y.mp4",
        "file:x.mp4",
        "a%03d.mp4",
        "concat:a|b.mp4",
        "x\ny.mp4",
        "pipe:1.mp4",
        "ä \"'$(id).mp4",
        "u" * 240 + ".mp4",
    ):
        source = tmp_path / f"source{name[:200]}"
        shutil.copy(path, source)
        made = cut(source, tmp_path / name, 0.4, 0.8)
        assert numbers(tmp_path / name)[:10] == list(range(10, 20)) and made.copied
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]


def test_an_older_file_is_replaced_at_the_end(tmp_path):
    path, clip = film(tmp_path / "a.mp4", 60), tmp_path / "clip.mp4"
    clip.write_bytes(b"older")
    with pytest.raises(UsageError):
        cut(path, clip, 100)
    assert clip.read_bytes() == b"older"
    cut(path, clip, 1)
    assert numbers(clip) == list(range(25, 60))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("room", [0, 3000])
def test_a_full_disk(tmp_path, monkeypatch, exact, room):
    path, clip = film(tmp_path / "a.mp4", 100), tmp_path / "clip.mp4"
    clip.write_bytes(b"older")
    real = os.pwrite

    def pwrite(fd, data, offset):
        if offset + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(output.os, "pwrite", pwrite)
    with pytest.raises(DiskError, match="clip.mp4 cannot be written: No space left"):
        cut(path, clip, 1, 3, exact=exact)
    assert clip.read_bytes() == b"older" and sorted(os.listdir(tmp_path)) == ["a.mp4", "clip.mp4"]


@pytest.mark.parametrize("exact", [False, True])
def test_stopped_in_the_middle(tmp_path, exact):
    stop, path = Stop(), film(tmp_path / "a.mp4", 60)
    stop.set()
    with pytest.raises(Stopped), using(stop):
        cut(path, tmp_path / "clip.mp4", exact=exact)
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_what_is_refused(tmp_path):
    path = film(tmp_path / "a.mp4", 30)
    (tmp_path / "notes.txt").write_text("no video")
    for call, kind in (
        (lambda: cut(path, tmp_path / "clip.avi"), UsageError),
        (lambda: cut(path, tmp_path / "clip"), UsageError),
        (lambda: cut(path, path), UsageError),
        (lambda: cut(path, tmp_path / "clip.mp4", 9), UsageError),
        (lambda: cut(path, tmp_path / "clip.mp4", 1, 0.5), UsageError),
        (lambda: cut(path, tmp_path / "clip.mp4", -1), UsageError),
        (lambda: cut(path, tmp_path / "clip.mp4", float("nan")), UsageError),
        (lambda: cut(tmp_path / "notes.txt", tmp_path / "clip.mp4"), MediaError),
        (lambda: cut(tmp_path / "none.mp4", tmp_path / "clip.mp4"), MediaError),
        (lambda: cut(path, tmp_path / "no" / "clip.mp4"), DiskError),
    ):
        with pytest.raises(kind):
            call()
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "notes.txt"]
