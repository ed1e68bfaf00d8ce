"""Weights loaded before the model runs, or each part when its turn comes: the same answers, less memory."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.errors import ModelFileError, OutOfMemoryError, UsageError
from ivlite.gguf import SHIPPED, GGUFFile, MappedFile
from ivlite.quantize import quantize

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = [{"role": "user", "content": "Which way does the red cross move?"}]
VIDEO = {"type": "video", "video": str(EXAMPLES / "clip.mp4")}


@pytest.fixture(scope="module")
def middling(tmp_path_factory):
    """A model file of 90 MB, most of it in 8 text layers."""
    spec = importlib.util.spec_from_file_location("middling_checkpoint", EXAMPLES / "tiny_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TEXT |= {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
    module.VISION |= {"out_hidden_size": 512}
    folder = tmp_path_factory.mktemp("middling")
    module.write_checkpoint(folder / "checkpoint")
    quantize(folder / "checkpoint", folder / "model.gguf", "f32")
    return folder / "model.gguf"


@pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
def test_the_demo_model_answers_the_same():
    messages = [{"role": "user", "content": [VIDEO, *({"type": "text", "text": m["content"]} for m in TEXT)]}]
    replies = [ivlite.load("demo", load=load).chat(messages, temperature=0) for load in ("repack", "mmap")]
    assert replies[0].token_ids == replies[1].token_ids and replies[1].text == "The red cross moves left."


@pytest.mark.parametrize("vit", ["file", "fp32"])
@pytest.mark.parametrize("type", ["f32", "q4_k_m"])
def test_every_bit_is_the_same(wide, tmp_path, monkeypatch, type, vit):
    monkeypatch.setattr("ivlite.gguf.loading.HEAD_ROWS", 64)
    quantize(wide, tmp_path / "model.gguf", type)
    messages = [{"role": "user", "content": [VIDEO | {"nframes": 4}, {"type": "text", "text": "What?"}]}]
    models = [ivlite.load(tmp_path / "model.gguf", load=load, vit=vit) for load in ("repack", "mmap")]
    for of in (lambda m: m.logits(m.prepare(messages)), lambda m: m.encode_vision(m.prepare(messages))[1]):
        whole, layered = map(of, models)
        assert np.array_equal(whole, layered)


def test_it_takes_less_memory(middling):
    peaks = {}
    for load in ("repack", "mmap"):
        ask = ["run", middling, "Hi", "--load", load, "--max-new-tokens", "4", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "ivlite", *ask], cwd=middling.parent, capture_output=True, check=True
        )
        peaks[load] = json.loads(done.stdout)["peak_memory"]
    assert peaks["mmap"] < peaks["repack"] - 0.6 * middling.stat().st_size


def test_it_needs_less_memory_free(middling, monkeypatch):
    monkeypatch.setattr("ivlite.model.available_memory", lambda: (512 << 20) + (60 << 20))
    with pytest.raises(OutOfMemoryError, match="--load mmap"):
        ivlite.load(middling, context=64)
    ivlite.load(middling, context=64, load="mmap")


def test_mapped_tensors_hold_the_same_bytes(middling):
    with GGUFFile(middling) as plain, MappedFile(middling) as mapped:
        for name in plain.tensors:
            assert np.array_equal(plain.read(name), mapped.read(name)), name
        rows = np.arange(3, 8)
        for file in (plain, mapped):
            assert np.array_equal(file.read("output.weight", 3, 5), plain.read_rows("output.weight", rows).reshape(-1))


def test_a_file_that_shrinks_is_an_error(middling, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(middling.read_bytes())
    model = ivlite.load(path, load="mmap")
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(ModelFileError, match="became shorter"):
        model.chat(TEXT, max_new_tokens=1)


def test_settings_are_checked(middling):
    with pytest.raises(UsageError, match="load is 'swap'"):
        ivlite.load(middling, load="swap")
    with pytest.raises(UsageError, match="observe"):
        ivlite.load(middling, load="mmap", observe=print)
