"""Encoders write the same bytes in every build: GCC 12 with sanitizers once compiled them to something else."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"
SANITIZERS = {"none": [], "undefined": ["-fsanitize=undefined"], "both": ["-fsanitize=address,undefined"]}


@pytest.mark.skipif(not shutil.which("g++"), reason="no compiler")
@pytest.mark.parametrize("sanitizers", SANITIZERS)
def test_same_bytes(tmp_path, sanitizers):
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", f"-I{SOURCES}", *SANITIZERS[sanitizers]]
    program = tmp_path / "encoders"
    built = subprocess.run(
        ["g++", *flags, HERE / "compare_encoders.cpp", SOURCES / "formats/formats.cpp", "-o", program],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("no sanitizer runtime")
    assert built.returncode == 0, built.stderr[-2000:]
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr[-2000:]
