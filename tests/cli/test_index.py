"""`ivlite index`: what it prints, what it keeps, and that it goes on after a kill."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from command import ivlite, refused

SRT = "1\n00:00:00,500 --> 00:00:01,500\nA red truck\n"


@pytest.fixture
def films(toy, tmp_path, monkeypatch):
    """A folder with model.gguf and three videos, one of them with subtitles, and a library of its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    os.symlink(toy / "model.gguf", tmp_path / "model.gguf")
    (tmp_path / "films" / "old").mkdir(parents=True)
    shutil.copy(toy / "clip.mp4", tmp_path / "films" / "a.mp4")
    (tmp_path / "films" / "a.en.srt").write_text(SRT)
    (tmp_path / "films" / "old" / "b.MP4").write_bytes((toy / "clip.mp4").read_bytes() + b"\0\0\0\x08free")
    (tmp_path / "films" / "notes.txt").write_text("no video")
    return tmp_path


def rows(folder, sql):
    with sqlite3.connect(folder / "data/ivlite/library.sqlite") as connection:
        return connection.execute(sql).fetchall()


def test_texts_need_no_model(films):
    done = ivlite("index", "--no-captions", "films", cwd=films)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a.mp4 (3 s): 1 line of subtitles", "b.MP4 (3 s): no texts"]
    done = ivlite("index", "--no-captions", "films/a.mp4", "--json", cwd=films)
    data = json.loads(done.stdout)
    assert data["complete"] and data["videos"][0]["subtitles"] == 1 and data["videos"][0]["new"] == 0
    done = ivlite("index", "--list", cwd=films)
    assert "a.mp4 (3 s): 1 line of subtitles" in done.stdout
    assert rows(films, "SELECT count(*) FROM segment") == [(0,)]


def test_segments_are_described_once(films):
    first = ivlite("index", "model.gguf", "films", cwd=films)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0] == "a.mp4 (3 s): 1 line of subtitles, 1 segment described"
    captions = rows(films, "SELECT id, body FROM text WHERE kind = 'caption'")
    assert len(captions) == 2 and rows(films, "SELECT DISTINCT maker FROM segment") == [("model.gguf",)]
    second = ivlite("index", "model.gguf", "films", cwd=films)
    assert second.stdout.splitlines()[0] == "a.mp4 (3 s): already indexed: 1 line of subtitles, 1 segment described"
    assert rows(films, "SELECT id, body FROM text WHERE kind = 'caption'") == captions
    again = ivlite("index", "model.gguf", "films/a.mp4", "--again", "--json", cwd=films)
    assert json.loads(again.stdout)["videos"][0]["new"] == 1
    assert len(rows(films, "SELECT id FROM text WHERE kind = 'caption'")) == 2


def test_a_bad_video_does_not_keep_others_back(films):
    (films / "films" / "0.mp4").write_text("no video at all")
    done = ivlite("index", "--no-captions", "films", "--json", cwd=films)
    assert done.returncode == 4 and "0.mp4" in done.stderr
    assert [video["error"] is None for video in json.loads(done.stdout)["videos"]] == [False, True, True]


def test_time_that_is_over_is_said_and_work_goes_on(films):
    done = ivlite("index", "model.gguf", "films", "--max-wait", "0.01", "--json", cwd=films)
    assert done.returncode == 0, done.stderr
    assert not json.loads(done.stdout)["complete"] and "again to go on" in done.stderr
    done = ivlite("index", "model.gguf", "films", "--json", cwd=films)
    assert json.loads(done.stdout)["complete"]
    assert rows(films, "SELECT count(*) FROM segment WHERE maker IS NOT NULL") == [(2,)]


def long_film(path, seconds):
    """A video of one picture a second."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for i in range(seconds):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i % 40, np.uint8))
            frame.pts = i
            out.mux(video.encode(frame))
        out.mux(video.encode())


def test_a_killed_index_goes_on(films):
    long_film(films / "long.mp4", 720)  # 24 segments
    command = [sys.executable, "-m", "ivlite", "index", "demo", "long.mp4"]
    kept = []
    for sign in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, cwd=films, stdout=-1, stderr=-1)
        deadline, before = time.monotonic() + 60, len(kept)
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if len(rows(films, "SELECT id FROM segment WHERE maker IS NOT NULL")) > before:
                    break
            except sqlite3.Error:
                pass
            time.sleep(0.02)
        process.send_signal(sign)
        out, err = process.communicate(timeout=60)
        assert process.returncode in (-9, 130, 0), err
        if process.returncode == 130:
            assert b"goes on" in err
        now = rows(films, "SELECT segment, id, body FROM text WHERE kind = 'caption' ORDER BY id")
        assert now[: len(kept)] == kept and len(now) > len(kept)
        kept = now
    done = ivlite("index", "demo", "long.mp4", "--json", cwd=films)
    video = json.loads(done.stdout)["videos"][0]
    assert video["captioned"] == video["segments"] >= 24 and video["new"] == video["segments"] - len(kept)
    assert rows(films, "SELECT segment, id, body FROM text WHERE kind = 'caption' ORDER BY id")[: len(kept)] == kept


def test_an_index_that_cannot_be_kept_is_refused(films, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/none")
    refused(ivlite("index", "--no-captions", "films", cwd=films), 6, "not kept", "XDG_DATA_HOME")


def test_videos_are_forgotten(films):
    ivlite("index", "--no-captions", "films", cwd=films)
    done = ivlite("index", "--forget", "films/a.mp4", cwd=films)
    assert done.returncode == 0 and "forgotten" in done.stdout
    refused(ivlite("index", "--forget", "films/a.mp4", cwd=films), 2, "not in the library")
    os.unlink(films / "films/old/b.MP4")
    assert "not there now" in ivlite("index", "--list", cwd=films).stdout
    assert ivlite("index", "--forget", "films/old/b.MP4", "--json", cwd=films).returncode == 0
    assert ivlite("index", "--list", cwd=films).stdout == "nothing is indexed\n"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "name the videos"), (("films",), 2, "descriptions need a model"), (("model.gguf",), 2, "name the videos"),
        (("--no-captions", "gone.mp4"), 4, "does not exist"), (("--no-captions", "data"), 4, "no video files"),
        (("--list", "films"), 2, "takes no files"), (("--no-captions", "--again", "films"), 2, "makes none"),
        (("--no-captions", "films/a.mp4", "--library", "films/a.mp4"), 2, "also a file that is read"),
        (("--no-captions", "films", "--library", "gone/x.sqlite"), 6, "there is no folder"),
        (("--no-captions", "films", "--library", "/proc/x.sqlite"), 6, "cannot be written"),
        (("--no-captions", "films", "--speech", "films/notes.txt"), 3, "no model of whisper.cpp"),
        (("gone.gguf", "films"), 3, "gone.gguf"),
        (("--no-captions", "films", "--context", "77"), 2, "--context is about captions"),
        (("--no-captions", "films", "--kv", "q4"), 2, "--kv is about captions"),
        (("--no-captions", "films", "--threads", "1"), 2, "--threads is about captions"),
        (("--no-captions", "films", "--threads", "1", "--speech", "films/notes.txt"), 3, "no model of whisper.cpp"),
        (("--no-captions", "model.gguf", "films"), 2, "model.gguf is one"),
        (("--forget", "model.gguf", "films"), 2, "model.gguf is a model"),
        (("--forget", "films", "--speech", "x"), 2, "--speech is about indexing, and --forget only removes"),
        (("--forget", "films", "--device", "cpu"), 2, "--device is about indexing"),
        (("--list", "--max-wait", "5"), 2, "--max-wait is about indexing, and --list only lists"),
        (("--list", "--no-captions"), 2, "--no-captions is about indexing"),
        (("--list", "--load", "mmap"), 2, "--load is about indexing"),
    ],
)  # fmt: skip
def test_what_cannot_be_indexed_is_refused(films, args, code, words):
    os.makedirs(films / "data", exist_ok=True)
    refused(ivlite("index", *args, cwd=films), code, words)
