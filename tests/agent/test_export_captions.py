"""Captions and chapters of an answer: their times, what readers need, and texts that try to be more than text."""

import os
import re
import shutil
import subprocess

import pytest
from export_answers import HOSTILE, answer

from ivlite.agent.answer import Claim, Evidence, Video
from ivlite.agent.export import captions, chapters
from ivlite.agent.export.captions import Caption, srt, vtt
from ivlite.agent.export.chapters import Chapter, ffmetadata, site_list
from ivlite.agent.export.text import line, uncited
from ivlite.errors import DiskError, UsageError

TIME = r"(\d\d+):(\d\d):(\d\d)[.,](\d\d\d)"


def cues(text):
    """[(start, end, lines)] of SubRip or WebVTT, as a plain reader finds them."""
    found = []
    for block in re.split(r"\n\n+", text.strip()):
        lines = block.split("\n")
        at = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if at is not None:
            h = [[int(n) for n in t] for t in re.findall(TIME, lines[at])]
            found.append((*(3600 * a + 60 * b + c + d / 1000 for a, b, c, d in h), lines[at + 1 :]))
    return found


# ------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize("form", [srt, vtt])
def test_claims_are_at_the_times_of_their_evidence(form):
    a = answer()
    found = cues(form(captions.of_claims(a, a.videos[0])))
    assert found == [
        (20, 30, ["It begins."]), (62, 64, ["It is said."]), (80, 82, ["It is blue. (not confirmed)"]), (80, 82, ["It is said."]),
    ]  # fmt: skip


def test_captions_can_be_read_and_lie_in_the_video():
    made = captions.captions(
        [(98, 98, "last"), (-5, 0, "first"), (3, 3.1, "short"), (120, 130, "behind"), (5, 9, " \n")], 99
    )
    assert made == [Caption(0, 2, "first"), Caption(3, 5, "short"), Caption(98, 99, "last")]


@pytest.mark.parametrize("form", [srt, vtt])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_makes_no_captions_and_no_markup(form, text):
    found = cues(form(captions.captions([(1, 5, f"x{text}"), (6, 9, "after")], 10)))
    assert [(start, end) for start, end, _ in found] == [(1, 5), (6, 9)] and all(len(lines) == 1 for *_, lines in found)
    line = found[0][2][0]
    assert (
        not re.search(r"<[a-z/!]", line, re.IGNORECASE)
        and "-->" not in line
        and (form is vtt or "{\\" not in line)
        and len(line) < 1200
    )
    assert not re.search("[\x00-\x1f\u202e]", line)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
@pytest.mark.parametrize("name", ["a.srt", "a.vtt"])
def test_ffmpeg_reads_them(tmp_path, name):
    a = answer(says=HOSTILE)
    assert captions.write(tmp_path / name, a, name[2:]) == [str(tmp_path / name)]
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "packet=pts_time,duration_time", "-of", "csv=p=0", tmp_path / name],
        capture_output=True, text=True,
    )  # fmt: skip
    assert not told.stderr and sorted(line[:9] for line in told.stdout.split()) == [
        "20.000000",
        "62.000000",
        "80.000000",
        "80.000000",
    ]


def test_an_answer_without_claims_shows_its_evidence(tmp_path):
    captions.write(tmp_path / "a.srt", answer(claims=()), "srt")
    assert len(cues((tmp_path / "a.srt").read_text())) == 5


@pytest.mark.parametrize("text, wanted", [
    ("It ends [E1].", "It ends."), ("[E1] It ends [E1, E2], then", "It ends, then"), ("Vraiment ? Oui : 3 % [E1] !", "Vraiment ? Oui : 3 % !"),
    ("a = ; b", "a = ; b"), ("[E1][E2]", ""), ("no [E1] mark", "no mark"),
])  # fmt: skip
def test_marks_of_evidence_are_taken_out_and_nothing_else(text, wanted):
    assert line(uncited(text)) == wanted


def test_several_videos_have_a_file_each(tmp_path):
    a = answer()
    other = Evidence("E6", "v2", 1.0, 4.0, "frames", (1.0, 4.0))
    more = {"evidence": (*a.evidence, other), "claims": (*a.claims, Claim("There too.", ("E6",)))}
    both = answer(videos=(*a.videos, Video("v2", "b.mp4", 10.0), Video("v3", "c.mp4", 10.0)), **more)
    assert captions.write(tmp_path / "a.srt", both, "srt") == [str(tmp_path / f"a.v{n}.srt") for n in (1, 2)]
    assert cues((tmp_path / "a.v2.srt").read_text()) == [(1, 4, ["There too."])]
    assert chapters.write(tmp_path / "c.ffmeta", both) == [str(tmp_path / f"c.v{n}.ffmeta") for n in (1, 2)]


def test_nothing_to_write_and_nowhere_to_write_it(tmp_path):
    with pytest.raises(UsageError):
        captions.write(tmp_path / "a.srt", answer(claims=(), evidence=()), "srt")
    with pytest.raises(UsageError, match="srt, vtt"):
        captions.write(tmp_path / "a.srt", answer(), ".srt")
    with pytest.raises(DiskError):
        captions.write(tmp_path / "no" / "a.srt", answer(), "srt")
    with pytest.raises(UsageError):
        chapters.write(tmp_path / "a", answer(claims=()))
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ chapters


def test_claims_become_chapters_without_those_that_failed():
    a = answer()
    assert chapters.of_claims(a, a.videos[0]) == [Chapter(20.0, "It begins."), Chapter(62.0, "It is said.")]


def test_chapters_follow_each_other():
    made = chapters.chapters(
        [(50, "c"), (10.0004, "a"), (10, "b"), (100, "at the end"), (-1, "before"), (60, " ")], 100
    )
    assert made == [Chapter(10.0, "b"), Chapter(50.0, "c")]


@pytest.mark.parametrize("text", HOSTILE)
def test_titles_are_one_escaped_line(text):
    made = ffmetadata(chapters.chapters([(0, f"x{text}"), (30, "next")], 60), 60)
    titles = [line for line in made.split("\n") if line.startswith("title=")]
    assert made.count("[CHAPTER]\nTIMEBASE=") == 2 and len(titles) == 2
    assert not re.search(r"(?<!\\)(?:\\\\)*[=;#]", titles[0][6:]) and len(titles[0]) < 220


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
def test_ffmpeg_reads_the_chapters(tmp_path):
    marks = [(12.345, "a=b;c#d\\e"), (40, HOSTILE[0]), (61.5, "é 夏 🎬"), (80, "[CHAPTER]")]
    (tmp_path / "c.ffmeta").write_text(ffmetadata(chapters.chapters(marks, 100.5), 100.5))
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-f", "ffmetadata", "-show_chapters", "-of", "flat", tmp_path / "c.ffmeta"],
        capture_output=True, text=True,
    )  # fmt: skip
    found = dict(re.findall(r'chapters\.chapter\.(\S+)="(.*)"', told.stdout))
    assert not told.stderr
    assert [float(found[f"{i}.start_time"]) for i in range(5)] == [0, 12.345, 40, 61.5, 80]
    assert [float(found[f"{i}.end_time"]) for i in range(5)] == [12.345, 40, 61.5, 80, 100.5]
    titles = [found[f"{i}.tags.title"].replace("\\\\", "\\").replace('\\"', '"') for i in range(5)]
    assert titles == ["Beginning", *(title for _, title in marks)]


def seconds(mark):
    return sum(60**i * int(n) for i, n in enumerate(reversed(mark.split(":"))))


@pytest.mark.parametrize("starts, duration, wanted", [
    ([0, 60, 120], 180, [0, 60, 120]),
    ([4, 60, 120], 180, [0, 60, 120]),
    ([30, 60], 180, [0, 30, 60]),
    ([0, 5, 9.9, 10, 60, 66, 75], 180, [0, 10, 60, 75]),
    ([0, 60, 120, 175], 180, [0, 60, 120]),
    ([0, 3599, 3700.9], 4000, [0, 3599, 3700]),
])  # fmt: skip
def test_the_list_that_video_sites_read(starts, duration, wanted):
    text = site_list(chapters.chapters([(t, f"Part <{i}>") for i, t in enumerate(starts)], duration), duration)
    lines = [line.split(" ", 1) for line in text.splitlines()]
    marks = [seconds(mark) for mark, _ in lines]
    assert marks == wanted and lines[0][0] in ("0:00", "0:00:00") and not re.search("[<>]", text)
    assert all(b - a >= 10 for a, b in zip(marks, [*marks[1:], duration], strict=True))
    assert all(re.fullmatch(r"(\d+:)?\d{1,2}:\d\d", mark) for mark, _ in lines)


@pytest.mark.parametrize(
    "starts, duration", [([], 100), ([0], 100), ([0, 30], 100), ([0, 30, 33], 36), ([0, 1, 2], 100)]
)
def test_too_few_chapters_for_video_sites(starts, duration):
    with pytest.raises(UsageError, match="3 chapters"):
        site_list(chapters.chapters([(t, "x") for t in starts], duration), duration)


def test_the_ending_of_the_name_is_the_form(tmp_path):
    a = answer(claims=[*answer().claims, Claim("Then more.", ("E5",))])
    chapters.write(tmp_path / "a.txt", a)
    chapters.write(tmp_path / "a.ffmeta", a)
    assert (tmp_path / "a.txt").read_text() == "0:00 Beginning\n0:20 It begins.\n1:02 It is said.\n1:30 Then more.\n"
    assert (tmp_path / "a.ffmeta").read_text().startswith(";FFMETADATA1\n")
