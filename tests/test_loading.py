"""Weights loaded before the model runs, or each part when its turn comes: the same answers, less memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.errors import ModelFileError, OutOfMemoryError, UsageError
from ivlite.gguf import SHIPPED
from ivlite.quantize import quantize

EXAMPLES = Path(__file__).parents[1] / "examples"
TEXT = [{"role": "user", "content": "Which way does the red cross move?"}]
VIDEO = {"type": "video", "video": str(EXAMPLES / "clip.mp4")}


@pytest.fixture(scope="module")
def middling(toy_module, tmp_path_factory):
    """A model file of 90 MB, most of it in 8 text layers."""
    toy_module.TEXT |= {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
    toy_module.VISION |= {"out_hidden_size": 512}
    folder = tmp_path_factory.mktemp("middling")
    toy_module.write_checkpoint(folder / "checkpoint")
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
    monkeypatch.setattr("ivlite.gguf.streaming.HEAD_ROWS", 64)
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
    monkeypatch.setattr("ivlite.loading.available_memory", lambda: (512 << 20) + (60 << 20))
    with pytest.raises(OutOfMemoryError, match="--load mmap"):
        ivlite.load(middling, context=64)
    ivlite.load(middling, context=64, load="mmap")


@pytest.mark.parametrize("load", ["repack", "mmap"])
@pytest.mark.parametrize("change", ["cut", "written over", "cut to nothing and written anew"])
def test_a_file_that_changes_while_it_is_used(middling, tmp_path, load, change):
    """No signal, no answer out of two files: an error. A model of one layer at a time reads the file for every token."""
    path, data = tmp_path / "model.gguf", middling.read_bytes()
    path.write_bytes(data)
    model = ivlite.load(path, load=load)
    model.chat(TEXT, max_new_tokens=1)
    if change == "cut":
        os.truncate(path, len(data) // 2)
    elif change == "written over":
        with open(path, "r+b") as file:
            file.seek(len(data) // 2)
            file.write(bytes(1000))
    else:
        path.write_bytes(data[::-1])
    with pytest.raises(ModelFileError, match="became shorter|was changed") as caught:
        model.chat([{"role": "user", "content": "And now?"}], max_new_tokens=1)  # TEXT again would compute nothing
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_while_an_answer_is_written(middling, tmp_path):
    """In a process of its own, which a signal would end."""
    path = tmp_path / "model.gguf"
    path.write_bytes(middling.read_bytes())
    program = (
        "import os, sys, threading, ivlite\n"
        "model = ivlite.load(sys.argv[1], load='mmap')\n"
        "threading.Timer(0.4, os.truncate, (sys.argv[1], 100_000)).start()\n"
        "try:\n"
        "    while True: model.chat([{'role': 'user', 'content': 'hi ' * 50}], max_new_tokens=4)\n"
        "except ivlite.errors.ModelFileError as error: print(error)\n"
    )
    run = [sys.executable, "-c", program, path]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and "model.gguf" in done.stdout, done.stderr


def test_nothing_is_mapped(middling):
    """The system says so: no mapping of the model's file in this process."""
    model = ivlite.load(middling, load="mmap")
    model.chat(TEXT, max_new_tokens=1)
    assert str(middling) not in Path("/proc/self/maps").read_text()


def test_settings_are_checked(middling):
    with pytest.raises(UsageError, match="load is 'swap'"):
        ivlite.load(middling, load="swap")
    with pytest.raises(UsageError, match="observe"):
        ivlite.load(middling, load="mmap", observe=print)


LATE = [
    ({"fps": "x"}, "fps is 'x'"), ({"fps": float("nan")}, "fps is nan"), ({"fps": 0}, "fps is 0"), ({"fps": 10**400}, "fps"), ({"fps": True}, "fps"),
    ({"max_frames": -1}, "max_frames is -1"), ({"min_frames": 1.5}, "min_frames is 1.5"), ({"max_pixels": b"5"}, "max_pixels"),
    ({"min_pixels": 10, "max_pixels": 5}, r"min_pixels \(10\) is above max_pixels \(5\)"), ({"min_frames": 9, "max_frames": 2}, "above max_frames"),
]  # fmt: skip


@pytest.mark.parametrize("wrong, words", LATE, ids=lambda v: str(v)[:30])
def test_limits_of_media_are_checked_before_the_file_is_opened(wrong, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        ivlite.load(tmp_path / "none.gguf", **wrong)


def test_limits_of_media_of_any_library_are_taken(wide, tmp_path):
    quantize(wide, tmp_path / "m.gguf", "q8_0")
    with ivlite.load(tmp_path / "m.gguf", fps=np.float32(0.5), max_frames=np.int64(8), min_pixels=2048.0) as model:
        assert model.media_limits.given() == {"fps": 0.5, "max_frames": 8, "min_pixels": 2048}
        assert {type(value) for value in model.media_limits.given().values()} == {int, float}


@pytest.mark.parametrize("model", [None, "demo", 5, object()], ids=lambda model: type(model).__name__)
def test_an_engine_needs_a_model(model):
    with pytest.raises(UsageError, match="^model is .*; it must be a model that ivlite.load has returned"):
        ivlite.Engine(model)
