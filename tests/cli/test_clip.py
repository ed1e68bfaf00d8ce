"""`ivlite clip`: what it writes, what it says, what it refuses."""

import json
import os

import av
import pytest
from command import ivlite, refused
from made_videos import numbered, said


@pytest.fixture
def folder(tmp_path):
    numbered(tmp_path / "film.mkv", 100, gop=50, options={"sc_threshold": "0"})
    return tmp_path


def numbers(path):
    with av.open(str(path)) as clip:
        return [said(frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]


def test_a_clip_with_a_name_of_its_own(folder):
    done = ivlite("clip", "film.mkv", "--start", "0:01", "--end", "2.4", cwd=folder)
    assert done.returncode == 0 and done.stdout == "film_00-00-01.000.mp4: 00:00:01.000 to 00:00:02.400, copied\n"
    assert numbers(folder / "film_00-00-01.000.mp4")[:35] == list(range(25, 60)) and not done.stderr


def test_a_clip_that_begins_early_says_so(folder):
    done = ivlite("clip", "film.mkv", "--start", "3", "-o", "a.mkv", cwd=folder)
    assert "00:00:02.000 to 00:00:04.000, copied, which is 1.00 s early" in done.stdout
    assert numbers(folder / "a.mkv") == list(range(50, 100))
    exact = ivlite("clip", "film.mkv", "--start", "3", "-o", "a.mkv", "--exact", "--json", cwd=folder)
    assert json.loads(exact.stdout) == {
        "path": "a.mkv", "start": 3, "end": 4, "early": 0, "hidden": 0, "copied": False, "notes": [],
    }  # fmt: skip
    assert numbers(folder / "a.mkv") == list(range(75, 100))


def test_what_is_refused(folder):
    refused(ivlite("clip", "film.mkv", "--start", "2", "--end", "1", cwd=folder), 2, "--end")
    refused(ivlite("clip", "film.mkv", "--start", "9", cwd=folder), 2, "start (9 s)")
    refused(ivlite("clip", "film.mkv", "-o", "film.gif", cwd=folder), 2, ".mp4, .mov or .mkv")
    refused(ivlite("clip", "film.mkv", "-o", "film.mkv", cwd=folder), 2, "being read")
    refused(ivlite("clip", "gone.mkv", cwd=folder), 4, "gone.mkv")
    refused(ivlite("clip", "film.mkv", "-o", "no/a.mp4", cwd=folder), 6, "no folder")
    assert os.listdir(folder) == ["film.mkv"]


def test_verbose_says_how_far_it_is(folder):
    done = ivlite("clip", "film.mkv", "--end", "1", "-o", "a.mkv", "--exact", "--verbose", cwd=folder)
    assert "ivlite: encode 25 of 25 frames" in done.stderr and done.returncode == 0
    assert ivlite("clip", "film.mkv", "--end", "1", "-o", "a.mkv", "--exact", "--quiet", cwd=folder).stdout == ""
