"""Builds and loads the CUDA kernels compiled for the host: _emulated_fast, and _emulated_checked, which finds faults."""

import fcntl
import functools
import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Unavailable(Exception):
    """Why the kernels cannot be compiled here."""


def build_folder():
    return ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"


@functools.cache
def load(name):
    """The module of that name; built anew where a source has changed."""
    folder = build_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}") from None
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file
        build(folder, name)
    path = folder / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def emulated(name):
    """The module of that name, for a test, which is skipped where it cannot be built."""
    try:
        return load(name)
    except Unavailable as why:
        pytest.skip(f"CUDA kernels are not tested: {why}")


def build(folder, name):
    cmake, ninja = tool("cmake"), tool("ninja")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise Unavailable("no C++ compiler is here")
    try:
        import pybind11
    except ImportError:
        raise Unavailable("the package pybind11 is not here: pip install '.[test]'") from None
    if not (folder / "build.ninja").exists():
        command([
            cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", "-DIVLITE_EMULATE_CUDA=ON", f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ])  # fmt: skip
    command([ninja, "-C", folder, name])


def tool(name):
    """The program, of this environment or of the system."""
    found = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not here: pip install '.[test]'")
    return found


def command(words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, (
        f"the CUDA kernels do not compile for the host:\n{done.stdout[-8000:]}{done.stderr[-4000:]}"
    )
