"""`ivlite inspect`, `doctor` and `bench`."""

import json
import os

import pytest
from command import ivlite, refused

from ivlite.cli import inspect, packages


def test_inspect_tells_types_sizes_and_defaults(toy):
    done = ivlite("inspect", "model.gguf", "--tensors", cwd=toy)
    assert done.returncode == 0, done.stderr
    for word in (
        "internvideo3",
        "text attention",
        "mergers",
        "q8_0",
        "bits per weight",
        "cache bytes",
        "blk.0.attn_kv_b",
    ):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 260  # the tokenizer is not poured out
    data = json.loads(ivlite("inspect", "model.gguf", "--json", cwd=toy).stdout)
    assert data["architecture"] == "internvideo3" and "problem" not in data
    assert sum(g["parameters"] for g in data["groups"].values()) == data["parameters"]
    assert data["config"]["text"]["kv_lora_rank"] == [64] * 4
    assert data["cache_bytes_per_token"]["f32"] == 4 * (64 + 32) * 4


def test_inspect_shows_a_file_of_another_architecture(toy):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(toy / "llama.gguf", "llama")
    writer.add_name("somebody's\x1b[31m model")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = ivlite("inspect", "llama.gguf", cwd=toy)
    assert done.returncode == 0, done.stderr
    assert "ivlite cannot run it" in done.stdout and "llama" in done.stdout and "\x1b" not in done.stdout


def test_inspect_of_what_is_no_gguf_is_code_3(toy):
    (toy / "page.gguf").write_text("<!doctype html>")
    refused(ivlite("inspect", "page.gguf", cwd=toy), 3, "page.gguf")
    refused(ivlite("inspect", "none.gguf", cwd=toy), 3, "none.gguf")


def test_long_metadata_is_shortened():
    assert inspect.shortened("x" * 1000) == "x" * inspect.SHOWN + "... (1,000 characters)"
    assert inspect.shortened(list(range(1000))).startswith("1000 values: 0, 1, 2")
    assert inspect.shortened([1, 2]) == [1, 2] and inspect.shortened(float("nan")) == "nan"
    assert inspect.shortened([1.5, float("inf"), "x" * 999]) == [1.5, "inf", inspect.shortened("x" * 999)]


def test_doctor(tmp_path):
    done = ivlite("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("processor", "instructions", "threads", "memory", "CUDA", "GB/s"):
        assert word in done.stdout
    data = json.loads(ivlite("doctor", "--json", cwd=tmp_path).stdout)
    assert data["isa"] in data["isas"] and data["threads"] >= 1
    assert 1e8 < data["limits"]["read"] < 1e13
    assert data["packages"]["numpy"] and data["ffmpeg"]
    assert isinstance(data["cuda"]["built"], bool) and (data["cuda"]["cards"] or data["cuda"]["problem"])


@pytest.fixture
def older(tmp_path):
    """An environment in which PyAV is an old one, by its metadata and by what it lacks."""
    (tmp_path / "av").mkdir()
    (tmp_path / "av/__init__.py").write_text("raise ImportError('cannot import name Discard')")
    (tmp_path / "av-15.1.0.dist-info").mkdir()
    (tmp_path / "av-15.1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: av\nVersion: 15.1.0\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def test_packages_that_are_too_old_are_named(older, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    said = "av 15.1.0 is too old, ivlite needs 17.1: pip install 'av>=17.1'"
    done = ivlite("run", "demo", "--quiet", "--video", "clip.mp4", "hi", cwd=tmp_path, env=older)
    refused(done, 2, said)
    done = ivlite("doctor", cwd=tmp_path, env=older)
    assert done.returncode == 0 and f"advice: {said}" in done.stdout and "FFmpeg        unknown" in done.stdout, (
        done.stderr
    )


def test_versions_are_compared_as_numbers(monkeypatch):
    here = {"a": "2.13.0+cpu", "b": "1.9", "c": "1.10.0rc1", "d": "3", "f": "0.2", "z": "1!1.0", "y": None}
    wanted = ["a>=2.13", "b>=1.10", "c>=1.10", "d>=3.0.0", "e>=1", "f>=0.3; extra == 'f'", "g>=1; extra == 'f'", "h",
              "z[x]<9,>=1.0", "y (>=2)"]  # fmt: skip
    monkeypatch.setattr(packages.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(packages, "version", here.get)
    found = packages.wanting()
    assert [sentence.split(" ")[0 if "old" in sentence else 2] for sentence in found] == ["b", "e", "f", "y"]
    monkeypatch.setattr(packages.metadata, "requires", lambda name: None)
    assert packages.wanting() == []


def test_bench_of_a_random_model(tmp_path):
    done = ivlite(
        "bench", "--random", "tiny", "--prompt", 40, "--new", 4, "--depth", "50,90", "--vision", "96x64x3", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "weights are random",
        "prefill 40 tokens after 50",
        "prefill 40 tokens after 90",
        "prefill after 90 tokens is",
        "decode 4 tokens after 130",
        "second question after 134",
        "a second question after 94 tokens takes",
        "planned seconds are",
        "vision, 2 pairs of 96x64",
        "GB/s",
        "GOPS",
    ):
        assert word in done.stdout
    args = ("bench", "--random", "demo", "--type", "f32", "--prompt", 8, "--new", 2, "--json")
    data = json.loads(ivlite(*args, cwd=tmp_path).stdout)
    assert data["synthetic"] is True and data["type"] == "f32" and data["model"] == "random-demo"
    assert all(stage["per_second"] > 0 and stage["bytes_per_second"] > 0 for stage in data["decode"])
    assert [(stage["depth"], stage["count"]) for stage in data["prefill"]] == [(0, 8)]
    assert [(stage["depth"], stage["count"]) for stage in data["question"]] == [(10, 24)]
    stages = [*data["prefill"], *data["decode"], *data["question"], data["vision"]]
    assert all(stage["planned"] > 0 for stage in stages) and data["question"][0]["first"] > 0


def test_bench_of_a_file(toy):
    done = ivlite("bench", "model.gguf", "--prompt", 16, "--new", 2, "--json", cwd=toy)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["synthetic"] is False
