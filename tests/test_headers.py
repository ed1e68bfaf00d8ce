"""Every C++ header compiles on its own, with the flags of an instruction set whose source includes it."""

import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc"
CPU = SOURCES / "kernels/cpu"
# emulate512.h replaces the intrinsics in one test build; those of a card are for nvcc alone
APART = {CPU / "vec" / "emulate512.h", *(SOURCES / "kernels/cuda/device").glob("*.h")}
HEADERS = sorted(h for h in SOURCES.rglob("*.h") if h not in APART)
ARM = ("neon", "i8mm")


@cache
def flags():
    """Of each instruction set, as CMakeLists.txt sets them."""
    found = {}
    for name, value in re.findall(
        r"^ *set\((\w+) (-m[^)]*|\$\{\w+\} -m[^)]*)\)", (ROOT / "CMakeLists.txt").read_text(), re.M
    ):
        for flag in value.split():
            known = re.fullmatch(r"\$\{(\w+)\}", flag)
            found.setdefault(name, []).extend(found[known[1]] if known else [flag])
    return {name: value for name, value in found.items() if (CPU / f"{name}.cpp").exists()}


@cache
def reached(path):
    """The files that a file includes, directly or not; of the vocabularies only the one that a source names itself."""
    out = set()
    for include in re.findall(r'#include "([^"]+)"', path.read_text()) if path != CPU / "vec/vec.h" else ():
        if (SOURCES / include).exists():
            out |= {SOURCES / include} | reached(SOURCES / include)
    return out


def compiler(name):
    """The compiler for an instruction set, or None; for None that of this machine."""
    arm = platform.machine() in ("aarch64", "arm64")
    if name is None or (name in ARM) == arm:
        return shutil.which("g++")
    return shutil.which("aarch64-linux-gnu-g++" if name in ARM else "x86_64-linux-gnu-g++")


def set_of(header):
    """An instruction set whose source includes the header, one with a compiler if there is one; None outside of them."""
    if not header.is_relative_to(CPU):
        return None
    names = [name for name in flags() if header in reached(CPU / f"{name}.cpp")]
    assert names, "no instruction set includes it"
    return max(names, key=lambda name: (compiler(name) is not None, name not in ARM))


def test_the_flags_are_those_of_the_build():
    assert set(flags()) == {p.stem for p in CPU.glob("*.cpp")}
    assert "-mavx512vnni" in flags()["amx"] and "-mfma" in flags()["amx"]


@pytest.mark.parametrize("header", HEADERS, ids=lambda h: h.relative_to(SOURCES).as_posix())
def test_compiles_alone(header, tmp_path):
    name = set_of(header)
    cxx = compiler(name)
    if not cxx:
        pytest.skip("no compiler")
    alone = tmp_path / "alone.cpp"
    alone.write_text(f'#include "{header.relative_to(SOURCES).as_posix()}"\n')
    own = [] if name is None else flags()[name]
    done = subprocess.run(
        [cxx, "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", *own, f"-I{SOURCES}", alone],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
