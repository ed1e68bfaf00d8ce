"""Clips of evidence: one each, named after it, that show what was seen."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import av
import pytest
from export_answers import answer
from made_videos import numbered, said

from ivlite import output
from ivlite.agent.answer import Evidence, Video
from ivlite.agent.export import clips
from ivlite.errors import DiskError


def numbers(path):
    with av.open(str(path)) as clip:
        return [said(frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
def test_one_clip_for_each_piece_of_evidence_that_is_named(tmp_path, name):
    film = numbered(tmp_path / name, 250)
    made = clips.write(tmp_path / "new" / "folder", answer(film, 10.0))
    names = ["E2_00-00-02.000.mp4", "E3_00-00-06.200.mp4", "E4_00-00-08.000.mp4"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == names
    assert [clip.evidence.id for clip in made] == ["E2", "E3", "E4"] and all(clip.cut.copied for clip in made)
    for clip, first, last in zip(made, (50, 155, 200), (99, 204, 249), strict=True):  # two seconds at least
        shown = numbers(clip.cut.path)
        assert shown[: last - first + 1] == list(range(first, last + 1)) and len(shown) <= last - first + 4


def test_evidence_at_the_end_and_of_the_whole_video(tmp_path):
    film = numbered(tmp_path / "film.mp4", 250)
    evidence = (
        Evidence("E1", "v1", 0.0, 9.96, "frames", (0.0, 9.96)),
        Evidence("E2", "v1", 9.96, 9.96, "frames", (9.96,)),
        Evidence("E3", "v1", 0.0, 0.0, "frames", (0.0,)),
    )
    whole, last, first = clips.write(
        tmp_path / "c", answer(film, 10.0, text="[E1] [E2] [E3]", claims=(), evidence=evidence)
    )
    assert whole.cut is None and whole.note == "E1 is the whole video"
    assert numbers(last.cut.path) == list(range(200, 250)) and os.path.basename(last.cut.path) == "E2_00-00-09.960.mp4"
    assert numbers(first.cut.path)[:50] == list(range(50))


def test_a_clip_of_a_short_video_is_the_video(tmp_path):
    film = numbered(tmp_path / "film.mp4", 25)
    (made,) = clips.write(tmp_path, answer(film, 1.0, text="[E1]", claims=()))
    assert numbers(made.cut.path) == list(range(25))


def test_a_video_that_is_gone_or_shorter_now_has_a_note(tmp_path):
    short = numbered(tmp_path / "short.mp4", 50)
    videos = (Video("v1", str(tmp_path / "gone.mp4"), 10.0), Video("v2", str(short), 10.0))
    evidence = (
        Evidence("E1", "v1", 1.0, 2.0, "frames"),
        Evidence("E2", "v2", 5.0, 6.0, "frames"),
        Evidence("E3", "v9", 1.0, 2.0, "text"),
    )
    made = clips.write(tmp_path / "c", answer(videos=videos, evidence=evidence, claims=(), text="[E1] [E2] [E3]"))
    assert [clip.cut for clip in made] == [None] * 3 and os.listdir(tmp_path / "c") == []
    assert "does not exist" in made[0].note and "begins after the end" in made[1].note and made[2].note


def test_no_clip_takes_the_place_of_a_video(tmp_path):
    film = numbered(tmp_path / "film.mp4", 250)
    other = numbered(tmp_path / "E2_00-00-02.000.mp4", 25)
    before = Path(other).read_bytes()
    base = answer(film, 10.0)
    both = replace(base, videos=(*base.videos, Video("v2", str(other), 1.0, "E2.mp4")))
    first, *rest = clips.write(tmp_path, both)
    assert first.cut is None and "E2_00-00-02.000.mp4" in first.note and all(clip.cut for clip in rest)
    assert Path(other).read_bytes() == before


def test_a_full_disk_ends_it(tmp_path, monkeypatch):
    film = numbered(tmp_path / "film.mp4", 50)

    def pwrite(fd, data, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(output.os, "pwrite", pwrite)
    with pytest.raises(DiskError, match="No space left"):
        clips.write(tmp_path / "c", answer(film, 2.0))
    assert os.listdir(tmp_path / "c") == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "c", "a\0b"):
        with pytest.raises(DiskError, match="cannot be made"):
            clips.write(folder, answer())
