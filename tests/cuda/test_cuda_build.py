"""IVLITE_CUDA of the build: what AUTO, ON and OFF come to, and what is said where they cannot be had."""

import os
import re
import shutil
import subprocess

import emulation
import pytest


@pytest.fixture
def configured(tmp_path):
    """configured(option, *programs): (which bindings the build leaves out, output), with those programs alone to be found.

    A build with kernels ends where it would start nvcc.
    """
    try:
        cmake = emulation.tool("cmake")
    except emulation.Unavailable as why:
        pytest.skip(str(why))

    def run(option, *programs):
        for program in programs:
            (tmp_path / program).write_text("#!/bin/sh\necho release 12.4\n")
            (tmp_path / program).chmod(0o755)
        script = tmp_path / "script.cmake"
        script.write_text(
            "set(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH OFF)\n"
            f'include("{emulation.ROOT}/cmake/cuda.cmake")\nmessage("without ${{without}}")\n'
        )
        environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_HOME", "CUDAARCHS")}
        done = subprocess.run(
            [cmake, f"-DIVLITE_CUDA={option}", f"-DCMAKE_PREFIX_PATH={tmp_path}/none", "-P", script],
            capture_output=True, text=True, env=environment | {"PATH": str(tmp_path)},
        )  # fmt: skip
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("programs", [(), ("nvcc",), ("nvidia-smi",), ("nvcc", "nvidia-smi")])
def test_off(configured, programs):
    assert configured("OFF", *programs) == (0, "without cuda\n")


def test_auto_without_a_driver(configured):
    """A laptop's install is as it was, whatever compilers are there."""
    assert configured("AUTO", "nvcc") == (0, "without cuda\n")


def test_auto_with_compiler_and_driver(configured):
    code, text = configured("AUTO", "nvcc", "nvidia-smi")
    assert code and "enable_language" in text


def test_on(configured):
    code, text = configured("on", "nvcc")
    assert code and "enable_language" in text


def test_what_is_no_choice(configured):
    code, text = configured("maybe")
    assert code and "IVLITE_CUDA is AUTO, ON or OFF, not MAYBE" in text


def test_vocabulary_compiles_for_cards(tmp_path):
    """Every word of it, for the first cards and for Hopper; nothing is spilled."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not here")
    root = emulation.ROOT
    done = subprocess.run(
        [nvcc, "-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "-Xptxas", "-v", f"-I{root}/csrc",
         f"-I{root}/csrc/kernels/cuda/device", "-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=sm_90",
         "-c", root / "tests/cuda/cases.cu", "-o", tmp_path / "cases.o"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr and done.stderr.count("Compiling entry function") >= 20
    assert not re.search(r"[1-9]\d* bytes spill", done.stderr)
