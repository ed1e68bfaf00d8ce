"""The library: what is kept is found again, whatever is typed, and whatever happens to its file."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest

from ivlite.errors import DiskError, MediaError, UsageError
from ivlite.library import Library, Step, database, schema, searching


@pytest.fixture
def said():
    return []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "library.sqlite"


@pytest.fixture
def library(path, said):
    with Library.open(path, warn=said.append) as library:
        yield library
    assert not said


@pytest.fixture
def clip(tmp_path):
    """clip(name, content) writes a file that stands for a video."""

    def clip(name="a.mp4", content=b"frames"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return clip


def cues(*texts):
    return [SimpleNamespace(start=float(i), end=i + 1.0, text=text) for i, text in enumerate(texts)]


def found(library, query, **where):
    return [hit.text for hit in library.search(query, **where)]


# ------------------------------------------------------------------------------------------------ videos and texts


def test_a_video_is_known_by_its_content(library, clip, tmp_path):
    first = library.add_video(clip(), duration=60, title="one")
    assert library.add_video(clip("copy.mp4"), duration=60.5) == first  # the same content under another name
    video = library.find(tmp_path / "a.mp4")
    assert (video.id, video.path, video.duration, video.meta) == (
        first,
        str(tmp_path / "copy.mp4"),
        60.5,
        {"title": "one"},
    )
    assert library.find(clip("other.mp4", b"others")) is None
    assert [v.id for v in library.videos()] == [first]
    with pytest.raises(MediaError):
        library.add_video(tmp_path / "gone.mp4")
    with pytest.raises(UsageError):
        library.video(99)


def test_the_memory_of_a_changed_video_is_kept_and_not_used(library, clip):
    path = clip()
    first = library.add_video(path, duration=60)
    library.add_texts(first, "subtitle", cues("an old line"), "a.srt")
    assert not library.changed(path)
    clip(content=b"another film")
    assert library.changed(path) and library.find(path) is None
    second = library.add_video(path, duration=70)
    assert second != first and not library.changed(path)
    assert found(library, "old line", videos=[second]) == [] and found(library, "old line", videos=[first]) == [
        "an old line"
    ]
    clip()  # the old file is back
    assert library.find(path).id == first


def test_names_that_are_no_text_come_back(library, tmp_path):
    name = os.fsdecode(b"caf\xe9 \n\xff.mp4")
    (tmp_path / name).write_bytes(b"x")
    library.add_video(tmp_path / name, title="\udcff")
    assert library.videos()[0].path == str(tmp_path / name)


def test_texts_of_a_source_replace_its_earlier_ones(library, clip):
    video = library.add_video(clip())
    assert library.add_texts(video, "subtitle", cues("one", "two", " \n "), "a.srt", "m1", language="en") == 2
    library.add_texts(video, "subtitle", cues("three"), "b.srt", "m2")
    library.add_texts(video, "subtitle", cues("four"), "a.srt", "m3")
    assert (
        library.sources(video, "subtitle") == {"a.srt": "m3", "b.srt": "m2"} and library.sources(video, "speech") == {}
    )
    assert sorted(hit.text for hit in library.texts(video)) == ["four", "three"]
    assert found(library, "one") == [] and found(library, "four") == ["four"]
    library.forget_texts(video, "subtitle", "b.srt")
    assert [hit.text for hit in library.texts(video)] == ["four"]
    with pytest.raises(UsageError, match="subtitle, speech"):
        library.add_texts(video, "song", [], "x")


def test_segments_and_captions(library, clip):
    video = library.add_video(clip())
    segments = library.add_segments(video, [(0, 10), (10, 25.5)])
    assert [(s.start, s.end, s.maker) for s in segments] == [(0, 10, None), (10, 25.5, None)]
    assert library.add_segments(video, [(0, 99)]) == segments  # those that are there stay
    library.caption(segments[0], video, "a dog\nruns", "m")
    library.caption(segments[1], video, "", "m")
    assert [(s.maker, s.caption) for s in library.segments(video)] == [("m", "a dog runs"), ("m", "")]
    library.caption(segments[0], video, "a cat", "n")
    assert found(library, "dog") == [] and found(library, "cat", kinds=["caption"]) == ["a cat"]


def test_notes_are_searched_and_kept_once(library, clip):
    video = library.add_video(clip())
    note = library.note(video, "the truck is red", ["E1", "E3"], start=3, end=5, run="r")
    assert library.note(video, "the truck is red", ["E9"], start=3, end=5) == note
    (hit,) = library.search("red truck")
    assert (hit.id, hit.kind, hit.start, hit.end, hit.score) == (note, "note", 3, 5, 1.0)
    with pytest.raises(UsageError, match="empty"):
        library.note(video, " \n")


def test_a_forgotten_video_leaves_nothing(library, clip, path):
    video = library.add_video(clip())
    library.add_texts(video, "subtitle", cues("one"), "a.srt")
    library.caption(library.add_segments(video, [(0, 1)])[0], video, "two", "m")
    library.note(video, "three")
    run = library.begin_run("why?")
    library.step(run, 1, "call", {}, [{"id": "E1", "video": video, "start": 0, "end": 1, "kind": "frames"}])
    library.forget(video)
    assert not any(found(library, query) for query in ("one", "two", "three"))
    assert library.evidence(run)[0]["video"] is None
    with sqlite3.connect(path) as other:
        for table in ("video", "segment", "source", "text", "note"):
            assert other.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


# ------------------------------------------------------------------------------------------------ searches

LINES = (
    "A red truck crosses the bridge", "红色卡车正在过桥", 'He said "; DROP TABLE text; --', "Fireworks 🎉 tonight", "C++ and 100% sure_thing",
    "Ärger im Café", "we saw the TRUCKS go", "short a b", "Ёлка стоит у моста", "赤いトラックが橋を渡る", "back\\slash", "the\u0301 end",
)  # fmt: skip


@pytest.fixture
def full(library, clip):
    library.add_texts(library.add_video(clip(), duration=100), "subtitle", cues(*LINES), "a.srt")
    return library


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("red truck", 0), ("truck red", 0), ("RED TRUCK", 0), ("bridge", 0), ('"crosses the bridge"', 0), ("where is the red truck", 0),
        ("卡", 1), ("卡车", 1), ("红色卡车", 1), ("红色的卡车在哪里", 1), ('"; DROP TABLE', 2), ("drop table text", 2), ("🎉", 3),
        ("fireworks 🎉", 3), ("100%", 4), ("sure_thing", 4), ("_", 4), ("%", 4), ("C++", 4), ("cafe", 5), ("CAFÉ", 5), ("Cafe\u0301", 5),
        ("ärger", 5), ("rucks", 6), ("ёлка", 8), ("МОСТА", 8), ("トラック", 9), ("赤", 9), ("橋", 9), ("back\\slash", 10), ("\\", 10),
    ],
)  # fmt: skip
def test_what_is_typed_is_found(full, query, first):
    hits = full.search(query)
    assert hits and hits[0].text == searching.clean(LINES[first])
    assert all(0 < hit.score <= 1 for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize(
    "query",
    [
        "", " ", "\0", "\n", "xyzzy", "%%", "__", "*", '"', '""', "'; DROPS TABLES; --", "zz OR yy", "NEAR(qq ww, 2)", "NOT qq", "^qq", "-qq",
        "body:qq", "{body}:qq", "q*q", "(((", ")", "\ud800\udfff", "\x1b[31m", "🦊", "𠮷", "ﷺ", "qq " * 500, "q" * 100_000, "\u202eqq", "{}[]",
    ],
)  # fmt: skip
def test_nothing_that_is_typed_is_an_operator(full, query):
    assert full.search(query, k=3) == []
    assert len(full.texts(1)) == len(LINES)


def test_queries_of_any_characters_never_fail(full):
    chance = random.Random(3)
    alphabet = "ab红车🎉 \"'%_*()^:-+{}[]\\;,.ANDORNEAT\0\n\ud800é\u0301"
    for _ in range(500):
        full.search("".join(chance.choices(alphabet, k=chance.randrange(1, 12))), k=5)
    for query in (None, 5, b"red"):
        with pytest.raises(UsageError):
            full.search(query)


def test_searches_take_conditions(full, clip):
    other = full.add_video(clip("b.mp4", b"b"))
    full.add_texts(other, "speech", cues("nothing", "a red truck too"), "whisper")
    assert len(full.search("red truck")) == 2
    assert found(full, "red truck", videos=[other]) == ["a red truck too"]
    assert found(full, "red truck", kinds=["subtitle"]) == [LINES[0]]
    assert found(full, "red truck", end=0.5) == [LINES[0]]
    assert found(full, "red truck", start=1) == ["a red truck too"]  # a text that ended by then is not in it
    assert found(full, "red truck", videos=[]) == found(full, "red truck", kinds=[]) == []
    assert len(found(full, "e", k=3)) == 3
    with pytest.raises(UsageError):
        full.search("red", kinds=["song"])
    with pytest.raises(UsageError):
        full.search("red", k=0)


@pytest.mark.parametrize("usable", [[], ["words"], ["grams"]])
def test_searches_do_without_full_text_indexes(path, clip, monkeypatch, usable):
    monkeypatch.setattr(schema, "usable", lambda: usable)
    with Library.open(path) as library:
        library.add_texts(library.add_video(clip()), "subtitle", cues(*LINES), "a.srt")
        assert found(library, "truck", k=1) == [LINES[0]]
        assert found(library, "卡车") == [LINES[1]] and found(library, "sure_thing") == [LINES[4]]


def test_many_rows_are_searched_through_an_index(library, clip):
    """In instructions of SQLite's machine, not in seconds."""
    lines = [f"{i} walks 卡车" for i in range(60_000)]
    library.add_texts(library.add_video(clip()), "speech", cues(*lines), "whisper")
    steps = []
    library._database.connection.set_progress_handler(lambda: steps.append(1) and None, 1000)
    assert found(library, "57777", k=1) == [lines[57_777]]
    assert len(steps) < 20  # a look at every row takes hundreds
    steps.clear()
    assert found(library, "7777 walks", k=1) == [lines[7_777]]
    assert len(steps) < 200
    steps.clear()
    assert len(found(library, "walks", k=5)) == 5 and len(found(library, "卡", k=5)) == 5
    assert len(steps) < 5_000


# ------------------------------------------------------------------------------------------------ runs


def test_runs_go_on_after_their_last_step(path, clip):
    with Library.open(path) as library:
        video = library.add_video(clip())
        run = library.begin_run("Who wins?\ud800", videos=["a.mp4"], budget={"rounds": 12})
        library.step(run, 1, "call", {"name": "watch"}, [
            {"id": "E1", "video": video, "start": 1, "end": 2, "kind": "frames", "frames": [1.0, 1.5]}, {"id": "E10", "start": 0, "end": 0, "kind": "x"},
        ])  # fmt: skip
        library.step(
            run,
            2,
            "call",
            {"name": "look", "path": "\udcff"},
            [{"id": "E2", "video": video, "start": 3, "end": 3, "kind": "text"}],
        )
        library.step(run, 2, "call", {"name": "again"})
    with Library.open(path) as library:
        found = library.run(run[:4])
        assert (found.id, found.question, found.state, found.data["budget"]) == (
            run,
            "Who wins??",
            "running",
            {"rounds": 12},
        )
        assert found.steps == (Step(1, "call", {"name": "watch"}), Step(2, "call", {"name": "again"}))
        evidence = library.evidence(run)
        assert [item["id"] for item in evidence] == ["E1", "E2", "E10"] and evidence[0]["frames"] == [1.0, 1.5]
        other = library.begin_run("And now?")
        assert library.run().id == other and [r.id for r in library.runs()] == [other, run]
        library.end_run(run, answer="red")
        assert library.run(run).state == "done" and library.run().data["answer"] == "red"
        assert [r.id for r in library.runs(state="running")] == [other]
        for wrong in ("", "zz"):
            with pytest.raises(UsageError):
                library.run(wrong)
        with pytest.raises(UsageError, match="plain data"):
            library.step(run, 3, "call", {"x": object()})
        with pytest.raises(UsageError, match="plain data"):
            library.step(run, 3, "call", float("nan"))


# ------------------------------------------------------------------------------------------------ damage


def filled(path, clip, count=400):
    with Library.open(path) as library:
        video = library.add_video(clip())
        library.add_texts(
            video, "subtitle", cues(*(f"line {i} of the film about trucks" for i in range(count))), "a.srt"
        )
        library.note(video, "a note")
        library.step(library.begin_run("?"), 1, "call", {"x": "y" * 5000})


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


@pytest.mark.parametrize("kind", ["foreign", "newer"])
def test_files_of_others_are_set_aside_whole(path, said, kind):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE mine (x)")
        other.execute("INSERT INTO mine VALUES ('precious')")
        if kind == "newer":
            other.execute(f"PRAGMA application_id = {schema.APPLICATION}")
            other.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    other.close()
    with Library.open(path, warn=said.append) as library:
        assert library.kept and library.videos() == []
    assert len(said) == 1 and ("version 2" if kind == "newer" else "another program") in said[0]
    (aside,) = [name for name in os.listdir(path.parent) if ".corrupt-" in name and not name.endswith(("-wal", "-shm"))]
    with sqlite3.connect(path.parent / aside) as other:
        assert other.execute("SELECT x FROM mine").fetchall() == [("precious",)]


# ------------------------------------------------------------------------------------------------ others, disks, kills


def test_threads_and_connections_share_a_library(path, clip, said):
    video_path, errors = clip(), []

    def work(n):
        try:
            with Library.open(path, warn=said.append) as library:
                video = library.add_video(video_path)
                for i in range(10):
                    library.note(video, f"note {n} {i}")
                    library.search(f"note {n}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not said
    with Library.open(path) as library:
        assert len(library.texts(1)) == 60


def test_one_library_is_used_by_many_threads(library, clip):
    video = library.add_video(clip())
    threads = [
        threading.Thread(target=lambda n=n: [library.note(video, f"note {n} {i}") for i in range(20)]) for n in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(library.texts(video)) == 100


@pytest.fixture
def busy(path, clip, monkeypatch):
    filled(path, clip)
    monkeypatch.setattr(database, "BUSY", 0.3)
    monkeypatch.setattr(database, "SAID", 0.1)
    monkeypatch.setattr(database, "SLICE", 0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_a_library_that_is_busy_from_the_start_is_read(busy, path, clip, said):
    with Library.open(path, warn=said.append) as library:  # it could not be opened for writing
        assert not library.kept and found(library, "a note") == ["a note"]
    assert "another program" in said[-1] and "database is locked" not in " ".join(said)


def test_a_library_that_stays_busy_goes_on_in_memory(path, clip, said, monkeypatch):
    filled(path, clip)
    monkeypatch.setattr(database, "BUSY", 0.3)
    monkeypatch.setattr(database, "SLICE", 0.05)
    with Library.open(path, warn=said.append) as library:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        library.note(1, "written in vain")
        assert found(library, "vain") == ["written in vain"] and found(library, "a note")[0] == "a note"
        assert not library.kept and len(said) == 1 and "another program" in said[0]
        library.note(1, "more")
        assert len(said) == 1
        other.close()
    with Library.open(path) as library:
        assert found(library, "vain") == []
    with Library.open(path, strict=True) as library:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DiskError, match="another program"):
            library.note(1, "x")
        other.close()


def test_no_home_costs_no_answer(tmp_path, clip, said, monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    for home in (None, "/nowhere/at/all"):
        monkeypatch.delenv("HOME", raising=False)
        if home:
            monkeypatch.setenv("HOME", home)
        said.clear()
        with Library.open(warn=said.append) as library:
            library.note(library.add_video(clip()), "seen")
            assert not library.kept and found(library, "seen") == ["seen"]
        assert len(said) == 1 and "not kept" in said[0] and "XDG_DATA_HOME" in said[0]
        with pytest.raises(DiskError, match="XDG_DATA_HOME"):
            Library.open(warn=said.append, strict=True)
        assert len(said) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    with Library.open() as library:
        assert library.path == str(tmp_path / ".local/share/ivlite/library.sqlite")
    assert os.stat(library.path).st_mode & 0o077 == 0


def test_folders_that_cannot_be_written_cost_no_answer(clip, said):
    with Library.open("/proc/library.sqlite", warn=said.append) as library:
        library.note(library.add_video(clip()), "seen")
        assert not library.kept and found(library, "seen") == ["seen"]
    assert len(said) == 1 and "/proc/library.sqlite" in said[0]
    with pytest.raises(DiskError):
        Library.open("/proc/library.sqlite", strict=True)


def test_a_library_that_is_read_only_is_read(path, clip, said, monkeypatch):
    filled(path, clip)
    error = sqlite3.OperationalError("attempt to write a readonly database")
    error.sqlite_errorcode = sqlite3.SQLITE_READONLY

    def refuse(*_):
        raise error

    monkeypatch.setattr(database, "_prepared", refuse)
    with Library.open(path, warn=said.append) as library:
        assert found(library, "a note") == ["a note"]
        library.note(1, "in memory")
        assert found(library, "memory") == ["in memory"]
    assert len(said) == 1 and "readonly" in said[0] and "permissions" in said[0]


@pytest.mark.parametrize("bad", ["", ".", "missing/x.sqlite", "a\0b", "pipe"])
def test_paths_that_can_be_no_library_are_refused(tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((UsageError, DiskError)):
        Library.open(bad)


def process(code, *args, **options):
    """A Python process that has imported what it needs when it prints "ready"."""
    head = "import sys, resource, signal\nfrom ivlite.library import Library\nfrom types import SimpleNamespace as N\nprint('ready', flush=True)\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_full_disk_costs_no_answer(path, clip):
    filled(path, clip)
    code = """
    limit = 400_000
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    said = []
    with Library.open(sys.argv[1], warn=said.append) as library:
        for i in range(200):
            library.add_texts(1, "speech", [N(start=j, end=j + 1, text=f"words {i} {j} " + "x" * 200) for j in range(50)], f"s{i}")
        print(len(said), said[0], library.kept, len(library.search("words 199 49", k=1)))
    """
    run = process(code, path)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert out.splitlines()[1].startswith("1 what is found out is not kept") and out.rstrip().endswith("False 1"), out
    with Library.open(path, warn=lambda sentence: pytest.fail(sentence)) as library:  # whole, as far as it was written
        assert found(library, "a note") == ["a note"]
        assert len(library.texts(1, ["speech"])) % 50 == 0


def test_kills_at_random_moments_leave_whole_transactions(path, clip):
    filled(path, clip, 10)
    code = """
    with Library.open(sys.argv[1]) as library:
        for i in range(10_000):
            run = library.begin_run(f"run {i}")
            library.add_texts(1, "speech", [N(start=j, end=j + 1, text=f"words {i} {j}") for j in range(7)], f"s{i}")
            library.step(run, 1, "call", {}, [{"id": f"E{j}", "start": 0, "end": 1, "kind": "x"} for j in range(5)])
    """
    chance, written = random.Random(2), 0
    for _ in range(6):
        run = process(code, path)
        run.stdout.readline()
        time.sleep(0.05 + chance.random() / 4)
        run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close(), run.stderr.close()
        with Library.open(path, warn=lambda sentence: pytest.fail(sentence)) as library:
            rows = library._database.rows
            assert rows("PRAGMA integrity_check") == [("ok",)]
            counts = rows("SELECT count(*) FROM text WHERE kind = 'speech' GROUP BY source")
            assert all(row == (7,) for row in counts)
            assert all(row == (5,) for row in rows("SELECT count(*) FROM evidence GROUP BY run"))
            written = max(written, len(counts))
            assert len(library.search("words 0", k=3)) == min(3, written) or not counts
    assert written


def test_two_processes_that_find_a_damaged_library(path, clip):
    """They set it aside once, and share the new one."""
    filled(path, clip)
    path.write_bytes(b"no database" * 1000)
    code = """
    said = []
    with Library.open(sys.argv[1], warn=said.append) as library:
        library.begin_run(sys.argv[2])
        print(len(said), library.kept)
    """
    runs = [process(code, path, n) for n in range(4)]
    lines = []
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, err
        lines.append(out.splitlines()[1])
    assert all(line.endswith("True") for line in lines)
    assert len([name for name in os.listdir(path.parent) if ".corrupt-" in name]) == 1
    with Library.open(path) as library:
        assert len(library.runs()) == 4
