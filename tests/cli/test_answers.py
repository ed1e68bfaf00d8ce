"""`ivlite run` as a person meets it: answers, JSON, interruption, closed pipes."""

import json
import os
import signal
import subprocess
import sys

import pytest
from command import ivlite, refused, start
from PIL import Image

from ivlite import cli


def test_run_streams_an_answer_and_closes_with_figures(toy):
    done = ivlite(
        "run",
        "model.gguf",
        "--video",
        "clip.mp4",
        "--max-new-tokens",
        5,
        "--temperature",
        0,
        cwd=toy,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and done.stdout.strip()
    closing = done.stderr.splitlines()[-1]
    for word in (
        "4 frames",
        "prompt tokens",
        "vision",
        "5 new (the limit)",
        "prefill",
        "tokens/s",
        "peak",
    ):
        assert word in closing
    assert "\x1b" not in done.stderr


def test_json_is_one_object_and_quiet_is_silent(toy, picture):
    done = ivlite(
        "run", "model.gguf", "--image", picture.name, "--video", "clip.mp4", "What?", "--json", "--quiet", "--seed", 3,
        "--max-new-tokens", 6, "--fps", 2, cwd=toy,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    data = json.loads(done.stdout)
    assert len(data["token_ids"]) == data["usage"]["new_tokens"] <= 6
    assert data["usage"]["vision_tokens"] == sum(m["tokens"] for m in data["media"])
    assert [m["kind"] for m in data["media"]] == ["image", "video"]
    assert data["media"][1]["frames"] == 6 and len(data["media"][1]["timestamps"]) == 3
    assert {"load", "decode", "vision", "prefill", "generate", "total"} <= set(data["timings"])
    assert data["peak_memory"] > 1e7 and data["model"]["weights"] > 1e6 and data["warnings"] == []
    again = ivlite(
        "run", "model.gguf", "--image", picture.name, "--video", "clip.mp4", "What?", "--json", "--quiet", "--seed", 3,
        "--max-new-tokens", 6, "--fps", 2, cwd=toy,
    )  # fmt: skip
    assert json.loads(again.stdout)["token_ids"] == data["token_ids"]


def test_verbose_tells_what_a_video_became(toy):
    done = ivlite("run", "model.gguf", "--video", "clip.mp4", "--verbose", "--max-new-tokens", 1, cwd=toy)
    assert done.returncode == 0, done.stderr
    assert "ivlite: load" in done.stderr and "ivlite: prefill" in done.stderr
    assert "ivlite: note: video clip.mp4: 4 frames of" in done.stderr and "time marks" in done.stderr


def test_interrupt_keeps_what_there_is(toy):
    process = start(toy)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (first + out).endswith(b"\n") and b"Traceback" not in err
    assert b"new |" in err.splitlines()[-1] and b"8,000 new" not in err


def test_interrupt_with_json_prints_the_object(toy):
    command = [
        sys.executable,
        "-m",
        "ivlite",
        "run",
        "model.gguf",
        "--json",
        "--verbose",
        "--temperature",
        "0",
    ]
    command += ["--max-new-tokens", "8000"]
    process = subprocess.Popen(command, cwd=toy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "ivlite: prefill" not in (line := process.stderr.readline()):
        assert line, "the run ended before prefill"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["finish_reason"] == "interrupted"


def test_a_closed_pipe_is_silent(toy):
    process = start(toy)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert err == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_silent(toy, closed):
    command = f'"$0" -m ivlite run model.gguf Hi --max-new-tokens 2 {closed}'
    result = subprocess.run(["sh", "-c", command, sys.executable], cwd=toy, capture_output=True, text=True)
    assert result.returncode == 0 and "error" not in result.stderr


def test_interrupted_before_a_command_runs(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", interrupted)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "ivlite: interrupted\n"


def test_a_full_disk_is_code_6(toy):
    with open("/dev/full", "w") as full:
        done = ivlite(
            "run", "model.gguf", "--json", "--quiet", "--max-new-tokens", 2, cwd=toy,
            capture_output=False, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    refused(done, 6, "No space left")


@pytest.mark.parametrize("command, encoding", [("run", "utf-8"), ("plan", "latin-1"), ("inspect", "utf-8")])
def test_json_keeps_names_and_texts_that_the_output_cannot_show(toy, command, encoding):
    """A name that is no UTF-8 is escaped so that a program finds the file again; nothing becomes a question mark."""
    name = os.fsdecode(b"\xff \xe2\x82\xac.gguf") if command == "inspect" else os.fsdecode(b"\xff \xe2\x82\xac.png")
    if command == "inspect":
        os.link(toy / "model.gguf", toy / name)
        args = ("inspect", name)
    else:
        Image.new("RGB", (64, 64)).save(toy / name)
        args = (
            command,
            "model.gguf",
            "--video",
            name,
            "--json",
            *(("--max-new-tokens", 1) if command == "run" else ()),
        )
    try:
        env = {**os.environ, "PYTHONIOENCODING": encoding}
        done = ivlite(*args, *(("--json",) if command == "inspect" else ()), cwd=toy, text=False, env=env)
    finally:
        (toy / name).unlink()
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.decode(encoding).splitlines()
    data = json.loads(line)
    assert name in (data["file"] if command == "inspect" else data.get("plan", data)["videos"][0]["name"])
