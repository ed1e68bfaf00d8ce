"""Builds the compiled module with CMake; everything else about the package is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "src/ivlite/_version.py").read_text()).group(1)


class CMakeBuild(build_ext):
    """Configures, builds and installs the module to where setuptools expects it."""

    def build_extension(self, extension):
        import pybind11

        target = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        configure = [
            "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DIVLITE_VERSION={VERSION}",
            f"-DIVLITE_CUDA={os.environ.get('IVLITE_CUDA', 'AUTO')}",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",  # the cached one left with pip's last build environment
        ]  # fmt: skip
        stripped = [] if self.inplace or self.editable_mode else ["--strip"]  # symbols are three quarters of the file
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
        for command in (
            configure,
            ["cmake", "--build", build, "-j", jobs],
            ["cmake", "--install", build, "--prefix", target, *stripped],
        ):
            subprocess.run([str(word) for word in command], check=True)


setup(ext_modules=[Extension("ivlite._C", [])], cmdclass={"build_ext": CMakeBuild})
