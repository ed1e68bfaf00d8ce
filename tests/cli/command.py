"""The command as a process of its own, and what a refusal looks like: shared by the tests of this folder."""

import subprocess
import sys


def ivlite(*args, cwd, **options):
    """Runs the command in a process of its own, outside the source tree; returns the finished process."""
    command = [sys.executable, "-m", "ivlite", *map(str, args)]
    options = {
        "capture_output": True,
        "text": True,
        "timeout": 300,
        "stdin": subprocess.DEVNULL,
    } | options
    return subprocess.run(command, cwd=cwd, **options)


def refused(result, code, *words):
    """Asserts that a run failed with that code and one sentence that holds the words."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("ivlite: error: ")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0], result.stderr
    for word in words:
        assert str(word) in errors[0], errors[0]


def start(toy, **options):
    command = [sys.executable, "-m", "ivlite", "run", "model.gguf", "Go on.", "--temperature", "0"]
    command += ["--max-new-tokens", "8000", "--context", "8192"]
    return subprocess.Popen(command, cwd=toy, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
