"""Files that are no library, or are one no more: they are set aside, and nobody loses an answer."""

import os
import random
import sqlite3

import pytest
from library_files import cues, filled, found

from ivlite.errors import UsageError
from ivlite.library import Library, schema


def used(path, said):
    """Uses every part of a library; returns what a search finds."""
    with Library.open(path, warn=said.append) as library:
        video = library.add_video(path.parent / "a.mp4")
        library.add_texts(video, "speech", cues("a new line"), "b.srt")
        hits = library.search("line trucks", k=5) + library.search("new", k=5)
        library.step(library.begin_run("?"), 1, "call", {})
        library.runs(), library.videos(), library.segments(video), library.texts(video)
        return hits


DAMAGE = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello, I am no database\n" * 10,
    "zeros": lambda data: bytes(len(data)),
    "half": lambda data: data[: len(data) // 2],
    "a page": lambda data: data[:4096],
    "header": lambda data: data[:100],
    "short": lambda data: data[:-20_000],
    "no header": lambda data: bytes(100) + data[100:],
    "middle": lambda data: data[:8192] + b"\xff" * 20_000 + data[28_192:],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_library_is_set_aside_and_begins_anew(path, clip, said, kind):
    filled(path, clip)
    damaged = DAMAGE[kind](path.read_bytes())
    path.write_bytes(damaged)
    assert used(path, said)
    aside = [name for name in os.listdir(path.parent) if ".corrupt-" in name]
    if kind == "empty":
        assert not said and not aside
        return
    assert len(said) == 1 and "set aside as library.sqlite.corrupt-" in said[0] and "begins" in said[0]
    assert len(aside) == 1 and (path.parent / aside[0]).read_bytes() == damaged
    said.clear()
    assert used(path, said) and not said


def test_flipped_bytes_never_raise(path, clip, said):
    filled(path, clip, 200)
    whole, chance = path.read_bytes(), random.Random(11)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 20, 400])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        for suffix in ("", "-wal", "-shm"):
            (path.parent / f"library.sqlite{suffix}").unlink(missing_ok=True)
        path.write_bytes(data)
        said.clear()
        assert any(hit.text == "a new line" for hit in used(path, said))
        assert len(said) <= 1


def test_a_library_that_is_damaged_under_way(path, clip, said):
    filled(path, clip)
    with Library.open(path, warn=said.append) as library:
        with sqlite3.connect(path) as other:
            other.execute("DROP TABLE text")
        other.close()
        assert library.search("line") == [] and len(said) == 1 and "damaged" in said[0]
        video = library.add_video(clip())
        library.add_texts(video, "subtitle", cues("after all"), "a.srt")
        assert found(library, "after") == ["after all"] and library.kept


@pytest.mark.parametrize("usable", [["words", "grams"], ["words"], []])
def test_tables_are_compared_with_those_that_are_made(path, monkeypatch, usable):
    with monkeypatch.context() as patch:
        patch.setattr(schema, "usable", lambda: usable)
        Library.open(path).close()
    with sqlite3.connect(path) as other:
        assert schema.intact(other)
        other.execute("DROP TRIGGER words_added" if usable else "DROP INDEX text_video")
        assert not schema.intact(other)
    other.close()


def test_what_is_not_there_is_no_damage(library, path):
    run = library.begin_run("?")
    for wrong in (
        lambda: library.note(99, "x"), lambda: library.add_texts(99, "subtitle", cues("x"), "s"), lambda: library.add_segments(99, [(0, 1)]),
        lambda: library.step("nope", 1, "call", {}), lambda: library.step(run, 1, "call", {}, [{"id": "E1", "video": 99, "start": 0, "end": 1, "kind": "x"}]),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="no such video"):
            wrong()
    assert library.kept and library.run(run).steps == () and len(os.listdir(path.parent)) <= 3
    with pytest.raises(UsageError, match="no such video"):
        Library.in_memory().note(1, "x")


def test_a_defect_sets_nothing_aside(library, path):
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        library._database.rows("SELECT id FRM video")
    assert not [name for name in os.listdir(path.parent) if ".corrupt-" in name]


def others(path, newer=False):
    """A database that is none of ours, or of a version to come."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
        other.execute("INSERT INTO mine VALUES ('precious')")
        if newer:
            other.execute(f"PRAGMA application_id = {schema.APPLICATION}")
            other.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    other.close()


@pytest.mark.parametrize("kind", ["foreign", "newer"])
def test_what_lies_at_the_default_place_is_set_aside_whole(tmp_path, monkeypatch, said, kind):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = tmp_path / "ivlite" / "library.sqlite"
    path.parent.mkdir()
    others(path, kind == "newer")
    with Library.open(warn=said.append) as library:
        assert library.kept and library.videos() == []
    assert len(said) == 1 and ("version 2" if kind == "newer" else "another program") in said[0]
    (aside,) = [name for name in os.listdir(path.parent) if ".corrupt-" in name and not name.endswith(("-wal", "-shm"))]
    with sqlite3.connect(path.parent / aside) as other:
        assert other.execute("SELECT x FROM mine").fetchall() == [("precious",)]


@pytest.mark.parametrize("name", ["history.sqlite", "film.mp4", "model.gguf", "talk.srt", "notes"])
def test_a_file_of_another_kind_that_is_named_stays_as_it_is(tmp_path, said, name):
    path = tmp_path / name
    if name.endswith(".sqlite"):
        others(path)
    else:
        path.write_bytes(b"GGUF and other bytes" * 100)
    before = path.read_bytes()
    for strict in (False, True):
        with pytest.raises(UsageError, match="name another file"):
            Library.open(path, warn=said.append, strict=strict)
    assert os.listdir(tmp_path) == [name] and path.read_bytes() == before and not said


def test_a_library_with_a_damaged_header_is_known_by_its_tables(path, clip, said):
    filled(path, clip)
    data = bytearray(path.read_bytes())
    data[68:72] = b"\xff" * 4  # the application's id
    path.write_bytes(data)
    assert used(path, said) and len(said) == 1 and "is damaged" in said[0]
