"""The ARM instruction sets, cross-compiled and emulated: every kernel against the plain one, in compare_isas.cpp."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = [tool for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64", "cmake", "make") if not shutil.which(tool)]


@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_every_kernel_is_the_plain_one():
    env = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)} | os.environ
    done = subprocess.run(["make", "-C", ROOT, "test-arm"], capture_output=True, text=True, env=env)
    report = done.stdout.splitlines()
    assert done.returncode == 0, "\n".join(report[-80:]) + done.stderr[-2000:]
    assert {line.split()[0] for line in report if line.endswith("ok")} == {"neon", "i8mm", "any"}  # any: encoders
