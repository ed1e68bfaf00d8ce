"""Media that another process decodes: the same pictures and keys, and one that dies, hangs or swells costs nothing else."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivlite import media
from ivlite.errors import MediaError, OutOfMemoryError, Stopped, UsageError
from ivlite.media.apart import Apart, Decoders
from ivlite.stop import Stop, using

CLIP = str(Path(__file__).parents[1] / "examples" / "clip.mp4")
LIMITS = {"fps": 2, "min_frames": 1, "max_frames": 100, "min_pixels": 1024, "max_pixels": 65536}
PIXELS = {"min_pixels": 1024, "max_pixels": 65536}


@pytest.fixture(scope="module")
def decoders():
    made = Decoders()
    yield made
    made.close()


def replaced(work, body, memory=4 << 30):
    """The command of a process whose piece of work is another function, the lines of `body`."""
    code = f"""
    import os, sys, time
    from ivlite.media import child
    def other(media, **what):
        {body}
        yield {{}}, ()
    child.WORK[{work!r}] = other
    child.main()
    """
    return [sys.executable, "-c", textwrap.dedent(code), str(memory)]


def test_a_video_is_the_same_as_here(decoders):
    for more in ({}, {"start": 1.5, "end": 4}, {"nframes": 5}):
        there = media.open_video(Apart(CLIP, "a clip", decoders), **LIMITS, **more)
        here = media.open_video(CLIP, **LIMITS, **more)
        assert there.frames == here.frames and there.timestamps == here.timestamps and there.size == here.size
        assert there.pair_keys() == here.pair_keys() and there.duration == here.duration and there.grid == here.grid
        for first in (0, 2):
            for one, other in zip(there.pairs(first), here.pairs(first), strict=True):
                assert np.array_equal(one, other)
        assert there.source == "a clip" and there.warnings == here.warnings


def test_pictures_and_animations(decoders, tmp_path):
    pictures = [Image.new("RGB", (96, 64), color) for color in ("red", "green", "blue", "white")]
    pictures[0].save(tmp_path / "a.png")
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=500)
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=500)
    path = str(tmp_path / "a.png")
    there, here = (media.open_image(source, **PIXELS) for source in (Apart(path, "a", decoders), path))
    assert there.pair_keys() == here.pair_keys() and np.array_equal(*(next(m.pairs()) for m in (there, here)))
    for name in ("a.gif", "a.webp", "a.png"):
        path = str(tmp_path / name)
        there, here = (media.open_video(source, **LIMITS) for source in (Apart(path, "a", decoders), path))
        assert there.timestamps == here.timestamps and there.frames == here.frames
        assert all(np.array_equal(*pair) for pair in zip(there.pairs(), here.pairs(), strict=True))
    frames = [{"t": t, "image": Apart(str(tmp_path / "a.png"), "a", decoders)} for t in range(3)]
    assert media.open_video(frames, **LIMITS).timestamps == [0.5, 2.0]


def test_a_video_without_an_index(decoders, tmp_path):
    """Its times are what it declares, until it is read: with its progress."""
    import av

    path = str(tmp_path / "a.mkv")
    with av.open(path, "w", options={"live": "1"}) as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for n in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), n * 8, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    there, here = (media.probe(source, fps=2) for source in (Apart(path, "a", decoders), path))
    assert there.estimated == here.estimated
    told = []
    there.settle(lambda *counts: told.append(counts))
    here.settle()
    assert not there.estimated and np.array_equal(there.times.times, here.times.times) and there.shape == here.shape
    assert all(stage == "scan" for stage, *_ in told)


@pytest.mark.parametrize("work, body", [
    ("probe", "os._exit(3)"), ("probe", "os.abort()"), ("probe", "os.kill(os.getpid(), 9)"),
    ("frames", "os.abort()"), ("frames", "yield {}, [bytes(5)]"), ("frames", "yield {}, [bytes(what['size'][0] * what['size'][1] * 3)]"),
    ("probe", "yield {'shape': [5, 5]}, ()"), ("probe", "yield {}, [bytes(9)]"), ("probe", "from ivlite.media import wire; wire.packed = lambda *_: [b'no message' * 9]"),
    ("probe", "time.sleep(1000)"), ("frames", "time.sleep(1000)"),
    ("frames", "yield {}, [bytes(what['size'][0] * what['size'][1] * 3)]; time.sleep(1000)"),
    ("probe", "bytes(8 << 30)"), ("frames", "bytes(8 << 30)"), ("probe", "open('/tmp/ivlite-no', 'wb').write(bytes(100))"),
    ("probe", "raise RuntimeError('what a library says')"),
])  # fmt: skip
def test_a_decoder_that_dies_hangs_or_swells(work, body):
    failing = Decoders(patience=2.0, command=replaced(work, body))
    try:
        began = time.monotonic()
        with pytest.raises(MediaError) as caught:
            for _ in media.open_video(Apart(CLIP, "a clip", failing), **LIMITS).pairs():
                pass
        assert "a clip" in str(caught.value) and CLIP not in str(caught.value) and time.monotonic() - began < 60
    finally:
        failing.close()


def test_errors_are_those_of_the_file(decoders, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(MediaError, match="video a clip") as caught:
        media.open_video(Apart(str(tmp_path / "a.mp4"), "a clip", decoders), **LIMITS)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(UsageError, match="stream 9 of video a clip"):
        media.open_video(Apart(CLIP, "a clip", decoders), **LIMITS, stream=9)
    assert media.open_video(Apart(CLIP, "a clip", decoders), **LIMITS).frames  # the process goes on


def with_subtitles(path):
    """A video with a track of subtitles, made of the clip."""
    import av

    with av.open(CLIP) as clip, av.open(str(path), "w") as out:
        source = clip.streams.video[0]
        pictures, words = out.add_stream_from_template(source), out.add_stream("srt")
        words.time_base, words.metadata["language"] = Fraction(1, 1000), "eng"
        words.codec_context.subtitle_header = b"[Script Info]\n[Events]\nFormat: Layer, Start, End, Text\n"
        for packet in clip.demux(source):
            if packet.dts is not None:
                packet.stream = pictures
                out.mux(packet)
        said = av.Packet(b"a red truck")
        said.pts = said.dts = 1000
        said.duration, said.time_base, said.stream = 500, Fraction(1, 1000), words
        out.mux(said)
    return str(path)


def test_subtitles_are_read_there(decoders, tmp_path):
    path = with_subtitles(tmp_path / "a.mkv")
    (tmp_path / "a.en.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n\nno time\n")
    (tmp_path / "a.de.srt").write_text("secret")
    for found in (media.probe(path, fps=2), media.probe(Apart(path, "a", decoders), fps=2)):
        (track,), skipped = found.tracks()
        assert [(c.start, c.end, c.text) for c in track.cues] == [(1, 1.5, "a red truck")] and not skipped
        assert (track.language, track.path) == ("en", None)
    chosen = Apart(path, "a", decoders, lambda file: file.endswith(".en.srt"))
    there, here = media.probe(chosen, fps=2), media.probe(path, fps=2)
    assert there.beside(path) == [str(tmp_path / "a.en.srt")] and len(here.beside(path)) == 2
    assert there.read(str(tmp_path / "a.en.srt")) == here.read(str(tmp_path / "a.en.srt"))
    with pytest.raises(MediaError):
        there.read(str(tmp_path / "a.de.srt"))
    assert media.probe(Apart(CLIP, "a clip", decoders), fps=2).tracks() == ([], [])


@pytest.mark.parametrize("answer", (
    "yield {'tracks': [{}], 'skipped': []}, [b'[]']", "yield {'tracks': [], 'skipped': 3}, ()", "yield {}, ()",
    "yield {'tracks': [child.facts(said)], 'skipped': []}, [b'[[0, NaN, 1]]']", "os._exit(1)",
))  # fmt: skip
def test_subtitles_that_make_no_sense(answer):
    made = "from ivlite.media.subtitles import Subtitles; said = Subtitles((), 'a')"
    lying = Decoders(patience=5.0, command=replaced("tracks", f"{made}; {answer}"))
    try:
        with pytest.raises(MediaError, match="a clip"):
            media.probe(Apart(CLIP, "a clip", lying), fps=2).tracks()
    finally:
        lying.close()


def test_a_video_that_is_too_long():
    short = Decoders(longest=5)
    try:
        with pytest.raises(MediaError, match="longer than"):
            media.open_video(Apart(CLIP, "a clip", short), **LIMITS)
        assert media.open_video(Apart(CLIP, "a clip", short), **LIMITS, end=3).frames
    finally:
        short.close()


def test_a_stop_ends_it_at_once():
    sleeping = Decoders(patience=600, command=replaced("probe", "time.sleep(1000)"))
    stop, ended = Stop(), []

    def look():
        with using(stop):
            try:
                media.open_video(Apart(CLIP, "a clip", sleeping), **LIMITS)
            except Stopped:
                ended.append(True)

    thread = threading.Thread(target=look)
    thread.start()
    time.sleep(0.5)
    stop.set("left")
    thread.join(30)
    assert ended and not thread.is_alive()
    sleeping.close()


def test_a_system_that_starts_no_process():
    none = Decoders(command=["/nothing/here"])
    with pytest.raises(OutOfMemoryError, match="starts no process"):
        media.open_video(Apart(CLIP, "a clip", none), **LIMITS)


def test_a_process_that_was_started_before():
    some = Decoders()
    some.warm()
    (child,) = some._idle
    assert media.open_video(Apart(CLIP, "a clip", some), **LIMITS).frames and some._idle == [child]
    some.close()
    assert child.process.poll() is not None


def test_processes_are_used_again_and_end(tmp_path):
    some = Decoders()
    source = Apart(CLIP, "a clip", some)
    medium = media.open_video(source, **LIMITS)
    (child,) = some._idle
    list(medium.pairs())
    assert some._idle == [child]
    pairs = medium.pairs()
    next(pairs)
    pairs.close()  # nobody wants the rest
    assert child.process.poll() is not None and not some._idle
    list(medium.pairs())
    (child,) = some._idle
    child.process.kill()
    child.process.wait()
    list(medium.pairs())  # one that died while it waited is not taken
    (child,) = some._idle
    some.close()
    assert child.process.poll() is not None


def test_they_end_with_their_parent():
    code = f"""
    import os, sys
    from ivlite import media
    from ivlite.media.apart import Apart, Decoders
    some = Decoders()
    media.open_video(Apart({CLIP!r}, "a", some), **{LIMITS!r})
    print(some._idle[0].process.pid, flush=True)
    os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    pid, end = int(done.stdout), time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert os.getpid() != pid
