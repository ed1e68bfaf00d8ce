"""Each instruction set's object exports its init function and nothing else: a shared inline function compiled with
different flags would be one symbol, and the linker might keep the copy that this processor cannot run."""

import shutil
import subprocess
from pathlib import Path

import pytest

OBJECTS = sorted(Path(__file__).parents[1].glob("build/*/CMakeFiles/ivlite_core.dir/csrc/kernels/cpu/*.o"))


@pytest.mark.skipif(not OBJECTS or not shutil.which("nm"), reason="needs the objects of a build, and nm")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_one_symbol(path):
    listing = subprocess.run(
        ["nm", "--defined-only", "--extern-only", path], capture_output=True, text=True, check=True
    )
    symbols = [line.split()[-1] for line in listing.stdout.splitlines()]
    init = f"init_{path.name.split('.')[0]}"
    assert len(symbols) == 1 and init in symbols[0], symbols
