"""`ivlite run` twice: what the first took long to compute, the second finds in the store."""

import itertools
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest
from command import ivlite

sys.path.insert(0, str(Path(__file__).parents[1]))

from session_fakes import written

from ivlite import cli
from ivlite.session import store


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(question, ...) gives (exit code, output, error lines) of `ivlite run demo --video clip.avi question ...`."""
    video = written(tmp_path / "clip.avi")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "WORTH", 0.0)

    def call(question, *more):
        code = cli.main(["run", "demo", "--video", str(video), question, "--temperature", "0", *more])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    call.video, call.folder = video, tmp_path / "cache" / "ivlite" / "sessions"
    return call


def test_the_second_question(run):
    code, text, lines = run("What moves?")
    assert code == 0 and "from the store" not in lines[-1] and len(os.listdir(run.folder)) >= 1
    code, again, lines = run("What moves?")
    assert (code, again) == (0, text)
    total, stored = re.search(r"([\d,]+) prompt tokens \(.*?([\d,]+) from the store\)", lines[-1]).groups()
    assert total == stored
    alone = json.loads(run("Which colour is it?", "--json", "--no-store")[1])
    other = json.loads(run("Which colour is it?", "--json")[1])
    assert other["text"] == alone["text"] and alone["usage"]["stored_tokens"] == 0
    assert other["usage"]["stored_tokens"] > other["usage"]["vision_tokens"]


def test_plan_looks_into_the_store(run, capsys):
    def planned(*more):
        assert cli.main(["plan", "demo", "--video", str(run.video), "What moves?", *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert planned()["held"] == 0
    run("What moves?")
    made, apart = planned(), planned("--no-store")
    assert made["held"] == made["prompt_tokens"] and apart["held"] == planned("--kv", "f16")["held"] == 0
    assert made["seconds"]["vision"] == made["seconds"]["prefill"] == 0 < apart["seconds"]["vision"]
    line = next(line for line in run("Which colour is it?")[2] if ": plan: " in line)
    held, total = map(int, re.search(r"\((\d+) of the (\d+) prompt tokens are computed already\)", line).groups())
    assert made["vision_tokens"] < held < total
    written(run.video, shade=90)
    assert planned()["held"] == 0


def test_another_clip_of_that_name(run):
    run("What moves?")
    info = run.video.stat()
    written(run.video, shade=150)
    os.utime(run.video, ns=(info.st_atime_ns, info.st_mtime_ns))
    _, text, lines = run("What moves?")
    assert sum("warning" in line and "has changed" in line for line in lines) == 1
    assert text == run("What moves?", "--no-store")[1]


def test_a_clock_that_jumps(run, monkeypatch, capsys):
    """By a day, and by a year back, between any two looks: what is measured and what is kept know nothing of it."""
    jumps, now, now_ns = itertools.cycle([0, 86_400, -31_536_000]), time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 1_000_000_000 * next(jumps))
    first, second = (json.loads(run("What moves?", "--json")[1]) for _ in range(2))
    assert second["text"] == first["text"] and second["usage"]["stored_tokens"] == first["usage"]["prompt_tokens"]
    for made in (first, second):
        planned = made["plan"]["seconds"] or {}
        spent = [*made["timings"].values(), *planned.values(), *made["plan"]["took"]["seconds"].values()]
        assert all(0 <= seconds < 600 for seconds in spent)
    assert cli.main(["sessions"]) == 0
    assert re.search(r" (just now|1 day ago|365 days ago) ", capsys.readouterr().out)


def test_no_store_keeps_nothing_of_what_was_watched(run):
    assert run("What moves?", "--no-store")[0] == 0
    assert not run.folder.exists() and not (run.folder.parent / "digests").exists()


@pytest.mark.parametrize("home", ["unset", "empty", "missing", "file", "/proc"])
def test_without_a_home(tmp_path, home):
    """Row 79: the answer, one warning, exit code 0."""
    (tmp_path / "file").write_text("x")
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    values = {"empty": "", "missing": str(tmp_path / "none"), "file": str(tmp_path / "file"), "/proc": "/proc"}
    env |= {"HOME": values[home]} if home in values else {}
    for command in (("run", "--temperature", "0"), ("plan",)):
        done = ivlite(command[0], "demo", "Hi", *command[1:], cwd=tmp_path, env=env)
        assert done.returncode == 0 and done.stdout.strip()
        warnings = [line for line in done.stderr.splitlines() if "warning" in line]
        assert len(warnings) == 1 and "nothing is kept for later commands" in warnings[0]
    assert sorted(os.listdir(tmp_path)) == ["file"]


def test_a_full_disk(run, monkeypatch):
    """Row 71: the answer, and one warning that it is not kept."""
    import errno

    expected = run("What moves?", "--no-store")[1]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    code, text, lines = run("What moves?")
    assert (code, text) == (0, expected)
    assert sum("warning" in line and "not kept" in line and "No space left" in line for line in lines) == 1
