"""Speech: the sound of a video in pieces, with a fake engine; and the process of the real one, with a fake program."""

import importlib.util
import struct
import sys
import threading

import av
import numpy as np
import pytest

from ivlite.errors import MediaError, ModelFileError, Stopped, UsageError
from ivlite.media import speech
from ivlite.media.cues import Cue
from ivlite.stop import Stop, using

RATE = speech.RATE


def film(path, sound, rate=RATE, first=0.0, pictures=5, layout="mono"):
    """A video with sound: float (n,) samples, or a list of (seconds, samples). first: seconds of the first picture."""
    parts = sound if isinstance(sound, list) else [(0.0, sound)]
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        track = out.add_stream("pcm_s16le", rate=rate, layout=layout)
        for i in range(pictures * 10):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
            frame.pts = i + round(first * 10)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        for start, samples in parts:
            data = (np.asarray(samples) * 32767).astype(np.int16)
            for i in range(0, len(data), 1024):
                part = data[None, i : i + 1024]
                part = np.repeat(part, 2, 1).copy() if layout == "stereo" else part.copy()
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
                frame.sample_rate, frame.pts = rate, round((start + first) * rate) + i
                out.mux(track.encode(frame))
        out.mux(track.encode())
    return path


def beeps(seconds, at, rate=RATE):
    """Silence with a loud quarter of a second at each of some times."""
    out = np.zeros(round(seconds * rate))
    for t in at:
        n = round(t * rate)
        out[n : n + rate // 4] = 0.5 * np.sign(np.sin(np.arange(rate // 4) * 0.3))[: len(out) - n]
    return out


class Loud:
    """An engine that says "beep" where it is loud."""

    name = "loud"

    def __init__(self):
        self.pieces = []

    def transcribe(self, samples, rate):
        assert samples.dtype == np.float32 and samples.ndim == 1 and rate == RATE
        self.pieces.append(len(samples) / rate)
        loud = np.flatnonzero(np.abs(samples) > 0.2) / rate
        starts = [t for i, t in enumerate(loud) if i == 0 or t - loud[i - 1] > 0.1]
        return [Cue(t, t + 0.25, f"beep {t:.1f}") for t in starts] + [
            Cue(0.0, 0.1, "[BLANK_AUDIO]"),
            Cue(1.0, 2.0, " "),
        ]


@pytest.mark.parametrize(("rate", "layout"), [(16_000, "mono"), (44_100, "mono"), (48_000, "stereo")])
def test_speech_has_the_times_of_the_video(tmp_path, rate, layout):
    path = film(tmp_path / "a.mkv", beeps(5, [0.5, 2, 4.5], rate), rate, layout=layout)
    cues = speech.transcribe(path, Loud(), 5.0)
    assert np.allclose([cue.start for cue in cues], [0.5, 2, 4.5], atol=0.02)
    late = film(tmp_path / "b.mkv", beeps(5, [0.5, 2], rate), rate, first=7, layout=layout)
    assert np.allclose([cue.start for cue in speech.transcribe(late, Loud(), 5.0)], [0.5, 2], atol=0.02)


def test_long_sound_is_cut_where_it_is_quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "PIECE", 6)
    monkeypatch.setattr(speech, "SEARCHED", 3)
    sound = beeps(20, []) + 0.02
    moments = [t + 0.1 for t in range(20)]
    sound += beeps(20, moments)
    engine, seen = Loud(), []
    cues = speech.transcribe(
        film(tmp_path / "a.mkv", sound, pictures=20), engine, 20.0, lambda *state: seen.append(state)
    )
    assert np.allclose([cue.start for cue in cues], moments, atol=0.02)  # none is cut in two
    assert len(engine.pieces) >= 4 and max(engine.pieces) <= 6 and abs(sum(engine.pieces) - 20) < 0.1
    assert seen[-1] == ("speech", 20, 20)


def test_gaps_of_sound_are_silence(tmp_path):
    path = film(tmp_path / "a.mkv", [(0.0, beeps(1, [0.5])), (3.0, beeps(1, [0.25]))])
    assert np.allclose([cue.start for cue in speech.transcribe(path, Loud(), 5.0)], [0.5, 3.25], atol=0.02)


def test_a_video_without_sound_says_nothing(tmp_path):
    engine = Loud()
    assert speech.transcribe(film(tmp_path / "a.mkv", np.zeros(RATE)), engine) == () and not engine.pieces
    with av.open(str(tmp_path / "b.mkv"), "w") as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        out.mux(video.encode())
    assert speech.transcribe(tmp_path / "b.mkv", engine) == ()
    (tmp_path / "c.mkv").write_bytes(b"no video")
    with pytest.raises(MediaError):
        speech.transcribe(tmp_path / "c.mkv", engine)


# ------------------------------------------------------------------------------------------------ the process

ECHO = """
import json, os, struct, sys
while len(head := sys.stdin.buffer.read(8)) == 8:
    data = sys.stdin.buffer.read(struct.unpack("<q", head)[0])
    {body}
    print(json.dumps([[0.0, 1.0, str(len(data) // 4)]]), flush=True)
"""


@pytest.fixture
def whisper(tmp_path, monkeypatch):
    """whisper(body) is a Whisper whose process runs a program of ours."""
    made = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "ggml-tiny.bin").write_bytes(speech.MAGIC + bytes(100))
    started = speech.started

    def whisper(body):
        monkeypatch.setattr(speech, "started", lambda command: started([sys.executable, "-c", ECHO.format(body=body)]))
        made.append(speech.Whisper(tmp_path / "ggml-tiny.bin"))
        return made[-1]

    yield whisper
    for engine in made:
        engine.close()


def test_pieces_go_to_the_process_and_texts_come_back(whisper):
    engine = whisper("pass")
    assert engine.name == "ggml-tiny.bin"
    for seconds in (1, 300, 2):  # 300 seconds are more than a pipe holds
        assert engine.transcribe(np.zeros(seconds * RATE, np.float32), RATE) == [Cue(0.0, 1.0, str(seconds * RATE))]
    with pytest.raises(UsageError, match="16000"):
        engine.transcribe(np.zeros(10, np.float32), 8000)


@pytest.mark.parametrize(("body", "words"), [("os.kill(os.getpid(), 11)", "signal 11"), ("sys.exit(3)", "exit code 3")])
def test_an_engine_that_dies_is_an_error(whisper, body, words):
    engine = whisper(body)
    for _ in range(2):
        with pytest.raises(ModelFileError, match=words):
            engine.transcribe(np.zeros(RATE * 60, np.float32), RATE)


def test_an_engine_at_work_is_stopped(whisper):
    engine, stop = whisper("import time; time.sleep(100)"), Stop()
    threading.Timer(0.3, stop.set).start()
    with using(stop), pytest.raises(Stopped):
        engine.transcribe(np.zeros(RATE, np.float32), RATE)


def test_what_is_no_model_of_whisper_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.bin").write_bytes(b"GGUF" + bytes(100))
    for name, words in (("a.bin", "no model of whisper.cpp"), ("gone.bin", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(ModelFileError, match=words):
            speech.Whisper(tmp_path / name)
    (tmp_path / "b.bin").write_bytes(speech.MAGIC)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install 'ivlite\\[speech\\]'"):
        speech.Whisper(tmp_path / "b.bin")


@pytest.mark.skipif(importlib.util.find_spec("pywhispercpp") is None, reason="pywhispercpp is not installed")
def test_the_real_engine_refuses_a_damaged_model(tmp_path):
    (tmp_path / "cut.bin").write_bytes(
        speech.MAGIC + struct.pack("<11i", 51865, 1500, 384, 6, 4, 448, 384, 6, 4, 80, 1)
    )
    with speech.Whisper(tmp_path / "cut.bin") as engine, pytest.raises(ModelFileError):
        engine.transcribe(np.zeros(RATE, np.float32), RATE)
