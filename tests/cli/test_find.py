"""`ivlite find`: spans of texts and of frames, as text, JSON and a contact sheet."""

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from command import ivlite, refused
from PIL import Image

from ivlite import cli, files
from ivlite.cli import find
from ivlite.errors import Stopped
from ivlite.library import Library, indexing
from ivlite.media.cues import Cue

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"
SRT = """1
00:00:01,000 --> 00:00:02,000
A red truck crosses the bridge

2
00:00:03,000 --> 00:00:04,500
红色卡车; "quoted" -- text

3
00:00:05,000 --> 00:00:06,000
red \x1b[31malert
"""


@pytest.fixture
def films(tmp_path, monkeypatch):
    """A folder with two videos of 8.7 seconds, one with subtitles, and a library of its own; it is the current one."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(CLIP, tmp_path / "a.mp4")
    (tmp_path / "a.srt").write_text(SRT)
    (tmp_path / "b.mp4").write_bytes(CLIP.read_bytes() + b"\0\0\0\x08free")
    return tmp_path


@pytest.fixture
def found(films, capsys):
    """found(*words) runs the command; returns (exit code, lines of output, standard error)."""

    def found(*words):
        code = cli.main(["find", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return found


@pytest.fixture
def indexed(films):
    """The library of the folder: both videos, the second one described."""
    with Library.open() as library:
        indexing.texts(library, films / "a.mp4")
        done = indexing.texts(library, films / "b.mp4")
        segments = library.add_segments(done.id, [(0.0, 4.0), (4.0, 8.0)])
        library.caption(segments[0], done.id, "A red truck stands at a gate.", "m")
        library.caption(segments[1], done.id, "A dog.", "m")
        library.add_texts(done.id, "speech", [Cue(2.0, 3.0, "the truck is red")], "whisper")
        yield library


def test_texts_are_found_with_their_times(found, indexed):
    code, lines, err = found("red truck")
    assert code == 0 and not err
    assert sorted(lines[:2])[0] == "a.mp4  00:00:01.000 - 00:00:02.000  1.00  subtitle: A red truck crosses the bridge"
    assert sorted(lines[:2])[1] == "b.mp4  00:00:00.000 - 00:00:04.000  1.00  caption: A red truck stands at a gate."
    assert lines[2] == "b.mp4  00:00:02.000 - 00:00:03.000  1.00  speech: the truck is red"
    # less than half: "red" is in more texts than "truck"
    assert len(lines) == 4 and "0.39  subtitle: red [31malert" in lines[3]  # no control characters
    assert len(found("red truck", "-n", 2)[1]) == 2
    assert found("red truck", "--kind", "speech")[1] == [lines[2]]
    assert found("red truck", "b.mp4")[1][0] == sorted(lines[:2])[1]
    assert found("truck", "--start", 1.5, "--end", 2.5, "--kind", "subtitle")[1] == sorted(lines[:2])[:1]


def test_json_holds_everything(found, indexed, films):
    code, lines, _ = found("卡车", "--json")
    (line,) = lines
    data = json.loads(line)
    assert code == 0 and data["query"] == "卡车" and data["complete"]
    assert data["found"] == [
        {"path": str(films / "a.mp4"), "start": 3.0, "end": 4.5, "score": 1.0, "kind": "subtitle",
         "text": '红色卡车; "quoted" -- text', "looked": False}
    ]  # fmt: skip


def test_videos_that_are_not_indexed_are_searched_by_their_subtitles(found, films):
    assert found("bridge")[0] == 1
    code, lines, _ = found("bridge", ".")
    assert code == 0 and lines[0].startswith("a.mp4  00:00:01.000")
    assert found("bridge")[0] == 0  # from now on


def test_nothing_is_exit_code_1_and_says_what_to_do(found, films):
    code, lines, err = found("zebra")
    assert code == 1 and not lines and "nothing is indexed" in err
    code, lines, err = found("zebra", "a.mp4", "b.mp4")
    assert code == 1 and not lines and "2 of 2 videos are not described" in err
    code, lines, err = found("zebra", "a.mp4", "--json", "--quiet")
    assert code == 1 and json.loads(lines[0])["found"] == [] and not err


@pytest.mark.parametrize(
    "query", ['"; DROP TABLE text; --', '"a" OR NEAR(', "*", "%", "\\", "🎉", "a:b", "-- x", "text MATCH 1"]
)
def test_queries_are_words(found, indexed, query):
    code, _, err = found("--", query)
    assert code in (0, 1) and "defect" not in err
    assert found("red truck")[0] == 0


def test_a_bad_video_is_said_and_others_are_searched(found, films):
    (films / "bad.mp4").write_text("no video")
    code, lines, err = found("bridge", ".")
    assert code == 4 and len(lines) == 1 and "bad.mp4" in err


def test_a_changed_video_is_not_found_by_its_old_texts(found, indexed, films):
    (films / "b.mp4").write_bytes(CLIP.read_bytes() + b"\0\0\0\x0cfreexxxx")
    code, lines, err = found("gate", "b.mp4")
    assert code == 1 and not lines and "has changed since it was remembered" in err


def test_what_a_path_showed_before_is_found_nowhere(found, indexed, films, monkeypatch):
    assert found("bridge")[0] == 0
    (films / "a.mp4").write_bytes(CLIP.read_bytes() + b"\0\0\0\x0cfreeyyyy")
    (films / "a.srt").unlink()
    code, lines, err = found("bridge")
    assert code == 1 and not lines and err.count("has changed since it was remembered") == 1
    assert ivlite("index", "--no-captions", "a.mp4", cwd=films).returncode == 0
    code, lines, err = found("bridge")
    assert code == 1 and not lines and "changed" not in err
    listed = ivlite("index", "--list", cwd=films).stdout.splitlines()
    assert len(listed) == 3 and [line for line in listed if "what it was before" in line and "a.mp4" in line]
    monkeypatch.setattr(find, "Eyes", Eyes)
    (films / "m.gguf").write_bytes(b"GGUF")
    rows = json.loads(found("m.gguf", "red truck", "--json", "--least", 0)[1][0])["found"]
    assert {os.path.basename(row["path"]) for row in rows} == {"a.mp4", "b.mp4"}
    assert not [row for row in rows if row["path"].endswith("a.mp4") and row["kind"] != "frames"]
    assert ivlite("index", "--forget", "a.mp4", cwd=films).returncode == 0
    assert "a.mp4" not in ivlite("index", "--list", cwd=films).stdout


def test_a_video_that_cannot_be_looked_at_costs_no_other(found, indexed, films, monkeypatch):
    (films / "bad.mp4").write_bytes(b"no video at all" * 100)
    with Library.open() as library:
        library.add_video(films / "bad.mp4")
    monkeypatch.setattr(find, "Eyes", Eyes)
    (films / "m.gguf").write_bytes(b"GGUF")
    code, lines, err = found("m.gguf", "red truck", "--json")
    assert code == 4 and json.loads(lines[0])["found"] and "bad.mp4" in err and "progress" not in err


def test_odd_names_stay_on_one_line(found, films):
    for name in (b"new\nline\t.mp4", b"caf\xe9.mp4", b"-x.mp4", "emoji 🎉 %d.mp4".encode()):
        (films / os.fsdecode(name)).write_bytes(CLIP.read_bytes() + b"\0\0\0\x0cfree" + name[:4])
        (films / os.fsdecode(name[:-4] + b".en.srt")).write_text(SRT)
    code, lines, err = found("bridge", ".")
    assert code == 0 and not err and len(lines) == 5
    assert sorted(line.split("  ")[0] for line in lines)[3:] == ["emoji 🎉 %d.mp4", "new\\nline\\t.mp4"]
    data = json.loads(found("bridge", "--json")[1][0])["found"]
    assert {os.path.exists(row["path"]) for row in data} == {True} and len(data) == 5
    assert len(found("bridge", "--", "-x.mp4")[1]) == 1


def test_a_contact_sheet_shows_the_middle_of_each_span(found, indexed, films):
    code, lines, err = found("red truck", "--sheet", "sheet.jpg")
    assert code == 0 and not err
    with Image.open(films / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG" and (sheet.width > 2 * 240 or sheet.height > 240)
    assert found("zebra", "--sheet", "other.jpg")[0] == 1 and not (films / "other.jpg").exists()
    assert found("red", "a.mp4", "--sheet", "a.mp4")[0] == 2  # never in place of a video


class Eyes:
    """Sees the truck from 0 to 4 seconds of b.mp4, and faintly in a.mp4; stops after some looks."""

    most = 10**6

    def __init__(self, path, args):
        self.looks = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def odds(self, span, query):
        assert query == "red truck" and 0 <= span.start < span.end
        self.looks += 1
        if self.looks > self.most:
            raise Stopped.because("deadline")
        return 0.9 if span.path.endswith("b.mp4") and span.start < 2 else 0.1


def test_a_model_looks_at_what_texts_say(found, indexed, monkeypatch, films):
    monkeypatch.setattr(find, "Eyes", Eyes)
    (films / "m.gguf").write_bytes(b"GGUF")
    code, lines, _ = found("m.gguf", "red truck", "--json")
    data = json.loads(lines[0])
    assert code == 0 and data["complete"] and all(row["looked"] and row["score"] == 0.9 for row in data["found"])
    spans = [(Path(row["path"]).name, row["start"], row["end"]) for row in data["found"]]
    assert spans and all(name == "b.mp4" and start < 1 and 4 <= end <= 4.5 for name, start, end in spans)
    every = json.loads(found("m.gguf", "red truck", "--json", "--least", 0)[1][0])["found"]
    assert [row["score"] for row in every] == sorted((row["score"] for row in every), reverse=True)
    assert {row["kind"] for row in every} >= {
        "caption",
        "subtitle",
        "frames",
    }  # a.mp4 is not described: all of it is looked at
    said = [row for row in every if row["kind"] == "subtitle"][0]
    assert said["end"] - said["start"] >= 3  # around what is said


def test_looks_that_are_stopped_print_what_was_found(found, indexed, monkeypatch, films):
    monkeypatch.setattr(find, "Eyes", Eyes)
    monkeypatch.setattr(Eyes, "most", 2)
    (films / "m.gguf").write_bytes(b"GGUF")
    code, lines, err = found("m.gguf", "red truck", "--least", 0)
    assert code == 0 and len(lines) == 2 and "2 of" in err and "were looked at" in err
    monkeypatch.setattr(Eyes, "most", 0)
    code, lines, err = found("m.gguf", "red truck", "--json")
    assert code == 1 and json.loads(lines[0]) == {"query": "red truck", "complete": False, "found": []}


def test_a_real_model_gives_probabilities(films):
    done = ivlite("find", "demo", "a red cross", "a.mp4", "--least", 0, "--json", cwd=films)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["found"]
    assert len(rows) >= 2 and all(0 <= row["score"] <= 1 and row["looked"] for row in rows)
    assert all(0 <= row["start"] < row["end"] <= 8.73 for row in rows)


def test_a_library_that_is_damaged_or_nowhere_costs_no_answer(found, films, monkeypatch):
    path = films / "data/ivlite/library.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 100)
    code, lines, err = found("bridge", "a.mp4")
    assert code == 0 and len(lines) == 1 and err.count("warning") == 1 and "set aside" in err
    monkeypatch.setenv("XDG_DATA_HOME", "/proc/none")
    code, lines, err = found("bridge", "a.mp4")
    assert code == 0 and len(lines) == 1 and err.count("warning") == 1 and "not kept" in err


def test_another_writer_is_no_traceback(found, films, monkeypatch):
    from ivlite.library import database

    monkeypatch.setattr(database, "BUSY", 0.2)
    found("bridge", "a.mp4")
    other = sqlite3.connect(films / "data/ivlite/library.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    code, lines, err = found("bridge", "a.mp4")
    other.close()
    assert code == 0 and len(lines) == 1 and "another program" in err and "locked" not in err


@pytest.mark.parametrize(
    "option",
    [
        "--least 0", "--least 0.9", "--max-wait 5", "--budget 10", "--context 100", "--kv q4", "--vit fp32", "--load mmap",
        "--threads 1", "--device cpu",
    ],
)  # fmt: skip
def test_options_of_sight_without_a_model_are_refused(found, films, option):
    code, lines, err = found("bridge", "a.mp4", *option.split())
    name = option.split()[0]
    assert code == 2 and not lines and err.startswith(f"ivlite: error: {name} is about sight, and there is no MODEL: ")


@pytest.mark.parametrize("words", [("find", "bridge"), ("index", "--no-captions")])
def test_no_store_neither_writes_nor_reads_digests(films, monkeypatch, words):
    hashed, real = [], files._hashed
    monkeypatch.setattr(files, "_hashed", lambda path, *more: hashed.append(path) or real(path, *more))
    monkeypatch.setenv("XDG_CACHE_HOME", str(films / "cache"))
    digests = films / "cache" / "ivlite" / "digests"
    try:
        for more, reads, kept in (("--no-store", 1, False), ("", 2, True), ("", 2, True), ("--no-store", 3, True)):
            files._digests.clear()  # as in a process of its own
            assert cli.main([*words, str(CLIP), *more.split()]) in (0, find.NOTHING)
            assert (hashed.count(str(CLIP)), digests.exists()) == (reads, kept)
    finally:
        files.keep_digests(None)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((" ",), 2, "say what to find"), (("demo",), 1, "nothing"), (("x", "gone.mp4"), 4, "does not exist"),
        (("gone.gguf", "x", "a.mp4"), 3, "gone.gguf"), (("x", "--end", "1", "--start", "2"), 2, "must come after"),
        (("x", "a.mp4", "--library", "a.mp4"), 2, "also a file"), (("x", "--sheet", "gone/s.jpg"), 6, "no folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_out_is_refused(films, words, code, said):
    done = ivlite("find", *words, cwd=films)
    if code == 1:
        assert done.returncode == 1 and said in done.stderr
    else:
        refused(done, code, said)
