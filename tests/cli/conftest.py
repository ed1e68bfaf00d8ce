"""A toy model with a clip and a picture, for the tests of the command line."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from command import ivlite

EXAMPLES = Path(__file__).parents[2] / "examples"


def never_ends(folder):
    """Zeroes the head's rows of the end tokens, so that a greedy answer goes on to its limit."""
    ids = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    with open(folder / "model.safetensors", "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        head = json.loads(file.read(length))["lm_head.weight"]
        row = 2 * head["shape"][1]
        for i in ids:
            file.seek(8 + length + head["data_offsets"][0] + i * row)
            file.write(bytes(row))


@pytest.fixture(scope="module")
def toy(toy_module, tmp_path_factory):
    """A folder with checkpoint/, model.gguf (q8_0) and clip.mp4; a greedy answer of the model has no end."""
    folder = tmp_path_factory.mktemp("toy")
    toy_module.write_checkpoint(folder / "checkpoint")
    never_ends(folder / "checkpoint")
    toy_module.write_clip(folder / "clip.mp4", seconds=3)
    done = ivlite("quantize", "checkpoint", "-o", "model.gguf", "--type", "q8_0", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def picture(toy):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(toy / "picture.png")
    return toy / "picture.png"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with clip.mp4, and a home of its own."""
    shutil.copy(EXAMPLES / "clip.mp4", tmp_path / "clip.mp4")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path
