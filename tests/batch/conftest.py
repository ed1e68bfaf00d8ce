"""A folder of videos for a batch, and the command in this process."""

import os
import shutil
from pathlib import Path

import pytest
from batch_runs import CLIP, run

from ivlite.gguf import SHIPPED


@pytest.fixture(autouse=True)
def demo():
    if not SHIPPED["demo"].is_file():
        pytest.skip("the demo model is not in the package")


@pytest.fixture
def films(tmp_path, monkeypatch):
    """A folder, which is the working folder, with videos/: six names that a shell would trip over, and different contents."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, name in enumerate(
        [b"a b.mp4", b"b\n1.mp4", b"c\xff.mp4", b"d%s.mp4", "e\u00fc.MP4".encode(), b"f'$x.mp4"]
    ):
        path = os.path.join(os.fsencode(folder), name)
        shutil.copy(CLIP, path)
        with open(path, "ab") as file:
            file.write(b"\0\0\0\x09free" + bytes([number]))
    (folder / "notes.txt").write_text("no video")
    monkeypatch.chdir(tmp_path)
    return Path(tmp_path)


@pytest.fixture
def batch(films, capsys, monkeypatch):
    """batch(argument, ..., stdin=bytes) runs the command; returns its exit code, what it printed, and the records of out.jsonl."""
    return lambda *args, **more: run(capsys, monkeypatch, *args, **more)
