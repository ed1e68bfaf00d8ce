"""`ivlite agent`: answers, JSON, refusals, interrupts, and runs that go on after a kill."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ivlite, refused

from ivlite import cli
from ivlite.library import Library

CLIP = str(Path(__file__).parents[2] / "examples" / "clip.mp4")
ASK = "Which shapes are there?"


def agent(*more, library, ask=ASK):
    return ["agent", "demo", *more, "--library", str(library), *([] if ask is None else [ask])]


@pytest.fixture
def library(tmp_path):
    return tmp_path / "library.sqlite"


def essence(data):
    return {name: data[name] for name in ("answer", "claims", "evidence", "confidence", "looked_at", "steps")}


def called(data):
    return [step["name"] for step in data["steps"] if step["type"] == "call"]


def test_an_answer_with_its_evidence(library, capsys):
    assert cli.main(agent("--video", CLIP, library=library)) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^\[E\d+\] clip.mp4 00:00:\d\d.\d\d\d", out, re.M) and "Confidence: " in out and "rounds" in err
    assert "overview" not in out and "has not been trained to use these tools" in err
    assert cli.main([*agent("--video", CLIP, library=library), "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert "> overview" in err and "  [E1] v1 00:00:00.000-" in err


def test_json_is_one_object(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert (
        cli.main(["agent", "demo", "--video", CLIP, ASK, "--json", "--rounds", "3", "--frames", "40", "--no-store"])
        == 0
    )
    out, _ = capsys.readouterr()
    data = json.loads(out)
    assert {"answer", "claims", "evidence", "confidence", "looked_at", "missing", "usage", "videos", "steps"} <= set(
        data
    )
    assert data["usage"]["frames"] <= 40 and data["usage"]["rounds"] <= 3
    assert not list(tmp_path.rglob("*.sqlite"))
    assert all(0 <= e["start"] <= e["end"] <= data["videos"][0]["duration"] for e in data["evidence"])


@pytest.mark.parametrize("time", ["0.01", "0.2s"])
def test_every_time_to_wait_is_taken(library, capsys, time):
    """It is about how long: an answer comes at once."""
    assert cli.main([*agent("--video", CLIP, library=library), "--max-wait", time, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["usage"]["rounds"] >= 1 and data["steps"]


def test_exports_are_written(library, capsys, tmp_path):
    page, captions = tmp_path / "page.html", tmp_path / "claims.srt"
    assert cli.main([*agent("--video", CLIP, library=library), "--report", str(page), "--srt", str(captions)]) == 0
    assert "<html" in page.read_text()[:200] and "-->" in captions.read_text()


def test_follow_ups_go_on_with_a_run(library, capsys):
    assert cli.main([*agent("--video", CLIP, library=library), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert cli.main([*agent("--resume", library=library, ask=None), "--json"]) == 0
    assert essence(json.loads(capsys.readouterr().out)) == essence(first)
    assert (
        cli.main([*agent("--resume", first["run"], library=library, ask="Which colours?"), "--json", "--rounds", "1"])
        == 0
    )
    second = json.loads(capsys.readouterr().out)
    assert second["run"] == first["run"] and called(first)[0] == "overview" and not called(second)
    assert (
        cli.main([*agent("--resume", "And which colours?", library=library, ask=None), "--json"]) == 0
    )  # where a run may stand


@pytest.mark.parametrize("arguments, code, words", [
    (["agent", "demo", "What?"], 2, ["no video"]),
    (["agent", "demo", "--video", CLIP], 2, ["no question"]),
    (["agent", "demo", "--video", "/nowhere.mp4", "What?"], 4, ["does not exist"]),
    (["agent", "demo", "--resume", "--video", CLIP, "What?"], 2, ["--video"]),
    (["agent", "demo", "--resume", "--no-store"], 2, ["--no-store"]),
    (["agent", "demo", "What?", "--video", CLIP, "--no-store", "--library", "x"], 2, ["--no-store keeps nothing", "--library"]),
    (["agent", "/nowhere.gguf", "--video", CLIP, "What?"], 3, ["/nowhere.gguf"]),
    (["agent", "demo", "--video", CLIP, "--rounds", "0", "What?"], 2, ["--rounds"]),
    (["agent", "demo", "--video", CLIP, ""], 2, ["empty"]),
    (["agent", "demo", "--video", CLIP, "--report", "/nowhere/page.html", "What?"], 6, ["/nowhere"]),
])  # fmt: skip
def test_refusals(arguments, code, words, tmp_path):
    refused(ivlite(*arguments, "--library", tmp_path / "l.sqlite", cwd=tmp_path), code, *words)


def test_nothing_that_is_read_is_replaced(library, tmp_path, capsys):
    """The files of a run that is resumed are known only once it is open."""
    video, subtitles = tmp_path / "talk.mp4", tmp_path / "talk.srt"
    shutil.copy(CLIP, video)
    subtitles.write_text("1\n00:00:01,000 --> 00:00:02,000\nmine\n")
    brief = ("--rounds", "1", "--frames", "4", "--no-verify", "--quiet")
    refused(ivlite(*agent("--video", video, "--srt", subtitles, library=library), cwd=tmp_path), 2, "being read")
    refused(ivlite(*agent("--video", video, library=video), cwd=tmp_path), 2, "another file")
    assert cli.main([*agent("--video", str(video), library=library), *brief]) == 0
    capsys.readouterr()
    for name, path in (("--srt", subtitles), ("--report", video), ("--chapters", library)):
        assert cli.main([*agent("--resume", library=library, ask=None), name, str(path), "--quiet"]) == 2
        assert "which is being read" in capsys.readouterr().err
    assert video.read_bytes() == Path(CLIP).read_bytes() and "mine" in subtitles.read_text()


def test_no_run_to_resume(library, tmp_path):
    refused(ivlite(*agent("--resume", library=library, ask=None), cwd=tmp_path), 2, "no run")


def process(library, *more, **options):
    command = [
        sys.executable,
        "-m",
        "ivlite",
        *agent("--video", CLIP, library=library),
        "--json",
        "--rounds",
        "5",
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def steps(library):
    """How many steps of the only run are finished."""
    if not library.exists():
        return 0
    with Library.open(library) as found:
        runs = found.runs()
        return len(found.run(runs[0].id).steps) if runs else 0


def stopped_after(library, count, number):
    """Starts the command, and sends it a signal once so many steps are finished; returns (exit code, standard output)."""
    running = process(library)
    while running.poll() is None and steps(library) < count:
        time.sleep(0.01)
    running.send_signal(number)
    out, _ = running.communicate(timeout=120)
    return running.returncode, out


def test_a_killed_run_goes_on_and_gives_the_same_answer(tmp_path):
    whole, _ = process(tmp_path / "whole.sqlite").communicate(timeout=120)
    total = steps(tmp_path / "whole.sqlite")
    for count in sorted({1, total // 2, total - 1}):
        library = tmp_path / f"killed{count}.sqlite"
        code, _ = stopped_after(library, count, signal.SIGKILL)
        again = ivlite(*agent("--resume", library=library, ask=None), "--json", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert essence(json.loads(again.stdout)) == essence(json.loads(whole)), (count, code)


def test_ctrl_c_prints_what_was_found_and_the_run_goes_on(tmp_path):
    library = tmp_path / "library.sqlite"
    code, out = stopped_after(library, 2, signal.SIGINT)
    data = json.loads(out)
    assert data["evidence"] and (code, data["finish_reason"]) in ((130, "interrupted"), (0, "finish"), (0, "stalled"))
    again = ivlite(*agent("--resume", library=library, ask=None), "--json", cwd=tmp_path)
    assert again.returncode == 0 and json.loads(again.stdout)["claims"]


def test_standard_input_may_ask(tmp_path, library):
    done = ivlite(*agent("--video", CLIP, library=library, ask="-"), cwd=tmp_path, stdin=None, input="What moves?")
    assert done.returncode == 0 and "Confidence" in done.stdout
    assert os.path.getsize(library) > 0
