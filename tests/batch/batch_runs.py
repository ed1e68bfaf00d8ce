"""What tests of the batch share."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from ivlite import cli

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"
ASKED = ("--prompt", "What happens?", "--temperature", "0")
TOLD = "A yellow circle moves right, then a red cross moves left."
COMMAND = [sys.executable, "-m", "ivlite", "batch", "demo"]
PATIENCE = 300  # seconds until a test that hangs fails


def run(capsys, monkeypatch, *args, stdin=b"", out="out.jsonl"):
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        with open(file.fileno(), closefd=False) as text:
            monkeypatch.setattr(sys, "stdin", text)
            capsys.readouterr()
            code = cli.main(["batch", "demo", *map(str, args), "-o", str(out)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return SimpleNamespace(code=code, out=printed.out, err=printed.err, records=records(out))


def records(path="out.jsonl"):
    """The lines of an output as data; it has no other content."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    assert lines.pop() == b""
    return [json.loads(line) for line in lines]


def count(path):
    try:
        with open(path, "rb") as file:
            return file.read().count(b"\n")
    except FileNotFoundError:
        return 0


def until(condition, process):
    """Waits until something is so, or a process has ended."""
    began = time.monotonic()
    while not condition() and process.poll() is None:
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.005)


def started(*args, **options):
    """The command as a process."""
    return subprocess.Popen([*COMMAND, *map(str, args)], stdout=-1, stderr=-1, stdin=subprocess.DEVNULL, **options)
