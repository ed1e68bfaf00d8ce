"""A library that others use, disks that are full or cannot be written, and kills."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from library_files import filled, found

from ivlite.errors import DiskError, UsageError
from ivlite.library import Library, database, schema


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


@pytest.mark.parametrize("statement", range(5))
def test_a_library_that_is_made_while_it_is_looked_at(path, statement):
    """Its tables are seen together with its number, or neither is: what is half there would be called damaged."""
    one, other = (sqlite3.connect(path, isolation_level=None) for _ in range(2))
    one.execute("PRAGMA journal_mode = WAL")
    seen = []

    def made(sql):
        seen.append(sql)
        if len(seen) == statement + 1:
            other.execute("BEGIN IMMEDIATE")
            schema.create(other)
            other.execute("COMMIT")

    one.set_trace_callback(made)
    assert schema.state(one) in ("", "empty")
    one.set_trace_callback(None)
    assert len(seen) > statement and schema.state(one) == ""
    one.close(), other.close()


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
