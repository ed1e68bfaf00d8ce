"""What the tests of both harnesses share: a clip made for them, and a server of its folder."""

import importlib
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import ivlite
from ivlite.gguf import SHIPPED

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """The file of a clip: a yellow circle moves right, then a red cross moves left."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples" / "demo_model"))
        importlib.import_module("evaluate").clip(path)
    return path


@pytest.fixture(scope="module")
def demo():
    if not SHIPPED["demo"].is_file():
        pytest.skip("the demo model is not in the package")
    with ivlite.load("demo", context=2048) as model:
        yield model


@contextmanager
def servers(root):
    command = [sys.executable, "-m", "ivlite", "serve", "demo", "--context", "2048", "--port", "0", "--quiet"]
    process = subprocess.Popen([*command, "--media-root", str(root)], stdout=subprocess.PIPE, text=True)
    try:
        yield re.fullmatch(r"demo at (http://.*/v1)\n", process.stdout.readline())[1]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(demo, clip):
    """That of `ivlite serve` in a process of its own."""
    pytest.importorskip("starlette")
    with servers(clip.parent) as found:
        yield found
