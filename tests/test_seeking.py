"""Frames that are reached by seeks, past frames that are not decoded, and by several decoders: each is the one asked for."""

import gc
import os
import threading

import av
import numpy as np
import pytest
from made_videos import numbered, opened, said
from test_time import timed

from ivlite.errors import Stopped
from ivlite.media import decode, lanes, scan
from ivlite.media.decode import FrameDecoder
from ivlite.media.display import Display
from ivlite.stop import Stop, using

B_FRAMES = "bframes=3:b-pyramid=2:keyint=30:min-keyint=30:scenecut=0:ref=3"
FILES = {
    "closed.mp4": dict(options={"x264-params": B_FRAMES}), "open.mp4": dict(options={"x264-params": f"{B_FRAMES}:open-gop=1"}),
    "open.mkv": dict(options={"x264-params": f"{B_FRAMES}:open-gop=1"}), "b.ts": dict(options={"x264-params": B_FRAMES}),
    "refresh.ts": dict(options={"x264-params": "intra-refresh=1:keyint=20:bframes=0"}), "one.mp4": dict(gop=1000),
    "fields.ts": dict(options={"x264-params": f"{B_FRAMES}:tff=1", "flags": "+ildct+ilme"}), "intra.mkv": dict(gop=1),
    "short.mp4": dict(options={"x264-params": "bframes=2:keyint=4:min-keyint=1"}),
    "hevc.mp4": dict(codec="libx265", options={"x265-params": "log-level=error:bframes=4:keyint=25:open-gop=1:b-pyramid=1"}),
    "b.avi": dict(codec="mpeg4", options={"bf": "2"}), "b.mov": dict(codec="mpeg4", options={"bf": "2"}),
    "2.mpg": dict(codec="mpeg2video", options={"bf": "2"}), "2.ts": dict(codec="mpeg2video", options={"bf": "2"}),
    "fields2.ts": dict(codec="mpeg2video", options={"bf": "2", "flags": "+ildct+ilme"}),
    "a.webm": dict(codec="libvpx-vp9", gop=20),
}  # fmt: skip
COUNT = 130


def moving(path, **more):
    """As numbered(), of COUNT frames."""
    if more.get("codec", "libx264") not in av.codecs_available:
        pytest.skip("this FFmpeg has no such encoder")
    return numbered(path, COUNT, **more)


def varying(path):
    steps = np.random.default_rng(1).integers(20, 200, COUNT)
    return timed(path, [7000 + int(m) for m in np.cumsum(steps)], codec="libx264", bf=3)


def decoded(path):
    """uint8 (h, w, 3) of all frames, in the order in which they are shown."""
    times = scan.scan(str(path), "it")
    with FrameDecoder(str(path), "it", times) as decoder:
        decoder.jumps = False
        display = Display(decoder.stream)
        return times, display, [display.pixels(decoder.at(i)[1]).copy() for i in range(len(times.times))]


def reached(path, times, display, frames, count):
    """The pictures of frames with `count` decoders; 0: with one of several threads."""
    file = str(path), "it", None
    if count == 0:
        return list(lanes.in_one(file, times, frames, display.pixels, 2, 0))
    return list(lanes.side_by_side(file, times, lanes.split(times, frames), display.pixels, count))


@pytest.mark.parametrize("name", [*FILES, "varying.mp4", "varying.mkv", "varying.ts"])
def test_every_frame_shows_itself_at_every_stride(tmp_path, name):
    path = varying(tmp_path / name) if name.startswith("varying") else moving(tmp_path / name, **FILES[name])
    times, display, whole = decoded(path)
    assert [said(p) for p in whole] == list(range(len(whole))) and len(whole) == COUNT
    for stride in (2, 3, 7, 10, 26, 64, 129):
        for start in {0, stride // 2}:
            frames = list(range(start, COUNT, stride))
            for count in (0, 1, 2):
                found = reached(path, times, display, frames, count)
                assert [i for i, _, _ in found] == frames and not any(damaged for _, _, damaged in found)
                for index, picture, _ in found:
                    assert np.array_equal(picture, whole[index]), (index, stride, count)


@pytest.mark.parametrize("name", ["closed.mp4", "open.mkv", "b.ts", "hevc.mp4", "b.mov"])
def test_sparse_frames_are_reached_without_those_between(tmp_path, monkeypatch, name):
    """What nothing refers to is not decoded, and a run ends at its last wanted frame."""
    path = moving(tmp_path / name, **FILES[name])
    times, display, whole = decoded(path)
    made, plain = [], decode.decoded
    monkeypatch.setattr(decode, "decoded", lambda *args: (made.append(f.pts) or f for f in plain(*args)))
    frames = list(range(12, COUNT, 26))
    reached(path, times, display, frames, 1)
    assert set(frames) <= set(made) and len(made) < 0.45 * COUNT


def test_runs_between_key_frames():
    class Times:
        keys = np.array([0, 10, 20, 50])

    assert lanes.split(Times, [3, 9, 10, 19, 60, 61]) == [[3, 9], [10, 19], [60, 61]]
    assert lanes.split(Times, [5]) == [[5]] and lanes.split(Times, [20, 20, 21]) == [[20, 20, 21]]


def test_the_same_pictures_however_they_are_decoded(tmp_path, monkeypatch):
    path = moving(tmp_path / "a.mp4", **FILES["open.mp4"])
    pairs = [list(opened(path, fps=4).pairs())]
    for name, value in (("MOST", 1), ("SPARSE", 1), ("BATCH", 1)):
        monkeypatch.setattr(lanes, name, value)
        pairs.append(list(opened(path, fps=4).pairs()))
    assert all(np.array_equal(a, b) for other in pairs[1:] for a, b in zip(pairs[0], other, strict=True))


# ------------------------------------------------------------------------------------------------ ends


def threads():
    return {t.name for t in threading.enumerate() if t.name.startswith("ivlite-")}


@pytest.mark.parametrize("most", [1, 8])
def test_a_stop_ends_decoding_and_leaves_no_thread(tmp_path, monkeypatch, most):
    path = moving(tmp_path / "a.mp4", **FILES["closed.mp4"])
    monkeypatch.setattr(lanes, "MOST", most)
    monkeypatch.setattr(lanes, "BATCH", 1)
    monkeypatch.setattr(lanes, "processors", lambda: 4)
    gc.disable()
    try:
        stop = Stop()
        with using(stop):
            pairs = opened(path, nframes=20).pairs()
            next(pairs)
            stop.set("enough")
            with pytest.raises(Stopped, match="enough|stopped"):
                list(pairs)
        assert not threads()
        pairs = opened(path, nframes=20).pairs()
        next(pairs)
        pairs.close()
        assert not threads()
    finally:
        gc.enable()


def test_no_threads_are_needed(tmp_path, monkeypatch):
    """Where the system allows none, the calling thread decodes."""
    path = moving(tmp_path / "a.mp4", **FILES["closed.mp4"])
    expected = list(opened(path, nframes=9).pairs())

    def refused(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert all(np.array_equal(a, b) for a, b in zip(opened(path, nframes=9).pairs(), expected, strict=True))


def test_a_fault_in_one_decoder_is_that_of_all(tmp_path, monkeypatch):
    path = moving(tmp_path / "a.mp4", **FILES["closed.mp4"])
    medium = opened(path, nframes=9)
    os.truncate(path, 100)
    from ivlite.errors import MediaError

    with pytest.raises(MediaError, match="a.mp4"):
        list(medium.pairs())
    assert not threads()


def test_a_size_that_changes_in_the_middle(tmp_path):
    """Row 52: every frame is resized from its own size."""
    parts = []
    for n, size in enumerate([(48, 64), (96, 128), (48, 64)]):
        path = numbered(tmp_path / f"{n}.ts", 30, size=size, gop=10)
        parts.append(path.read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    medium = opened(tmp_path / "a.ts", fps=25)
    shown = [said(frame) for pair in medium.pairs() for frame in pair]
    assert shown == [*range(30)] * 3 and medium.size == (64, 64)


def test_damage_gives_the_warnings_of_a_whole_pass(tmp_path):
    path = moving(tmp_path / "a.mkv", **FILES["closed.mp4"])
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(3).integers(3000, len(data) - 2000, 25):
        data[at] ^= 0x55
    path.write_bytes(data)
    medium = opened(path, nframes=12)
    pictures = [f for pair in medium.pairs() for f in pair]
    assert len(pictures) == 12 and all(p.shape == (64, 64, 3) for p in pictures)
