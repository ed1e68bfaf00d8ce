"""Conversions of model files, names, and the plan of a conversion."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_conversion import copied, interrupted

from ivlite import _C
from ivlite.errors import ModelFileError, UsageError
from ivlite.gguf import GGUFFile
from ivlite.gguf.writer import GGUFWriter
from ivlite.output import partial_path
from ivlite.quantize import convert, quantize

# ------------------------------------------------------------------------------------------------ model files


def test_a_model_file_gives_what_its_checkpoint_gives(wide, tmp_path):
    quantize(wide, tmp_path / "bf16.gguf", type="bf16", golden=True)
    for type in ("q4_k_m", "q8_0"):
        quantize(wide, tmp_path / "direct.gguf", type=type, golden=True)
        done = quantize(tmp_path / "bf16.gguf", tmp_path / "again.gguf", type=type)
        assert not done.warnings
        assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()


def test_what_is_in_its_format_already_is_copied(wide, tmp_path):
    quantize(wide, tmp_path / "a.gguf", type="q8_0")
    done = quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="q8_0")
    assert not done.warnings and (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    done = quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="q4_k_s")
    assert "already" in done.warnings[0]
    with GGUFFile(tmp_path / "a.gguf") as a, GGUFFile(tmp_path / "b.gguf") as b:
        name = "blk.2.ffn_up.weight"
        x = _C.decode("q8_0", a.read(name), 512 * 256)
        assert np.array_equal(b.read(name), _C.encode("q4_k", x))


def test_padded_rows_are_padded_anew(tmp_path, wide):
    """q6_k pads to 256s, q8_0 to 32s: the zeros of one are not weights of the other."""
    folder = copied(wide, tmp_path / "checkpoint")
    settings = json.loads((folder / "config.json").read_text())
    settings["text_config"]["intermediate_size"] = 510
    (folder / "config.json").write_text(json.dumps(settings))
    narrow(folder / "model.safetensors")
    quantize(folder, tmp_path / "a.gguf", type="q8_0")
    quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", type="bf16")
    with GGUFFile(tmp_path / "a.gguf") as a, GGUFFile(tmp_path / "b.gguf") as b:
        name = "blk.0.ffn_down.weight"
        assert (a.tensors[name].shape, b.tensors[name].shape) == ((256, 512), (256, 510))
        x = _C.decode("q8_0", a.read(name), 256 * 512).reshape(256, 512)[:, :510]
        got = _C.decode("bf16", b.read(name), 256 * 510).reshape(256, 510)
        assert np.abs(got - x).max() < np.abs(x).max() / 250


def narrow(path):
    """An MLP of 510 instead of 512 in a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, out, blobs = json.loads(data[8 : 8 + length]), {}, b""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        a, b = (8 + length + at for at in entry["data_offsets"])
        x = np.frombuffer(data[a:b], "<u2").reshape(entry["shape"])
        if "language_model" in name and ".mlp." in name:
            x = x[:, :510] if "down" in name else x[:510]
        raw = np.ascontiguousarray(x).tobytes()
        out[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [len(blobs), len(blobs) + len(raw)]}
        blobs += raw
    text = json.dumps(out).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blobs)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"<html>")
    with pytest.raises(ModelFileError, match="web page"):
        quantize(tmp_path / "x.gguf", tmp_path / "y.gguf")


def test_metadata_of_others_stays(wide, tmp_path):
    """Whoever made a file, its license and what other programs noted in it, with the types it has there."""
    plain, more = tmp_path / "plain.gguf", tmp_path / "more.gguf"
    quantize(wide, plain, type="bf16")
    others = {
        "general.author": "somebody", "general.tags": ["video", "text"], "general.license": "apache-2.0",
        "other.small": np.uint8(7), "other.half": np.float32(0.5), "other.flags": np.array([True, False]),
        "other.long": np.arange(5, dtype=np.int64), "ivlite.calibration.tokens": 9,
    }  # fmt: skip
    with GGUFFile(plain) as file:
        metadata = {k: file.stored(k) for k in file.metadata if not k.startswith("ivlite.checksum")}
        tensors = [(t.name, t.shape, t.format) for t in file.tensors.values()]
        with GGUFWriter(more, metadata | others, tensors, bytes(32)) as out:
            for name in file.tensors:
                out.write(file.read(name))
    quantize(more, tmp_path / "q8.gguf", type="Q8_0")
    with GGUFFile(tmp_path / "q8.gguf") as file, GGUFFile(more) as before:
        for key, value in others.items():
            got = file.stored(key)
            assert np.array_equal(got, value) and getattr(got, "dtype", None) == getattr(
                before.stored(key), "dtype", None
            )
        assert file.metadata["general.file_type"] == 7 and file.metadata["ivlite.recipe"] != metadata["ivlite.recipe"]
        assert len(file.metadata["ivlite.checksum.tensors"]) == len(file.tensors)


# ------------------------------------------------------------------------------------------------ names


def added(folder, entries):
    """Adds (name, dtype, shape, bytes) to the safetensors file of a checkpoint."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for name, dtype, shape, raw in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_spare_buffers_are_left_out(wide, tmp_path):
    folder = copied(wide, tmp_path / "checkpoint")
    added(folder, [
        ("model.language_model.rotary_emb.inv_freq", "F32", [4], bytes(16)),
        ("model.visual.rotary_pos_emb.inv_freq", "F64", [2], bytes(16)),
        ("model.visual.embeddings.position_ids", "I64", [1, 3], bytes(24)),
        ("model.bn.num_batches_tracked", "I64", [], bytes(8)),
    ])  # fmt: skip
    done = quantize(folder, tmp_path / "m.gguf", type="q8_0")
    assert len(done.warnings) == 1 and "inv_freq" in done.warnings[0] and "and 1 more" in done.warnings[0]
    quantize(wide, tmp_path / "plain.gguf", type="q8_0")
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    added(folder, [("model.language_model.adapter.weight", "F32", [4], bytes(16))])
    with pytest.raises(ModelFileError, match="adapter.weight"):
        quantize(folder, tmp_path / "m.gguf", type="q8_0")


@pytest.mark.parametrize(("place", "expected"), [
    ("models--Open--Video-8B/snapshots/0123abcd", "Video-8B"), ("models--gpt2/snapshots/0123abcd", "gpt2"),
    ("plain", "plain"), ("0123456789abcdef0123", "from-config"),
])  # fmt: skip
def test_the_name_is_the_repositorys(wide, tmp_path, place, expected):
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    folder = copied(wide, tmp_path / place)
    settings = json.loads((folder / "config.json").read_text()) | {"_name_or_path": "somebody/from-config/"}
    (folder / "config.json").write_text(json.dumps(settings))
    quantize(folder, tmp_path / "m.gguf", type="q8_0")
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert file.metadata["general.name"] == expected


def test_types_in_upper_case(wide, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('base = "Q4_K_M"\nrows = [["ffn_down", "all", "Q8_0"]]')
    a = convert.dry_run(wide, convert.Settings("q4_k_m", None, "bf16", ("ffn_up=q6_k",))).plans
    b = convert.dry_run(wide, convert.Settings("Q4_K_M", None, "BF16", ("ffn_up=Q6_K",))).plans
    assert a == b
    done = convert.dry_run(wide, convert.Settings(recipe=recipe))
    assert {p.format for p in done.plans if "ffn_down" in p.name and p.name.startswith("blk")} == {"q8_0"}


@pytest.mark.parametrize("pattern", ["fnn_down", "^ffn", "blk.99.", "attn_norm"])
def test_a_rule_that_fits_no_tensor(wide, tmp_path, pattern):
    with pytest.raises(UsageError, match="fits no tensor"):
        quantize(wide, tmp_path / "m.gguf", tensor_types=[f"{pattern}=q8_0"])
    (tmp_path / "r.toml").write_text(f'base = "q8_0"\nrows = [["{pattern}", "all", "bf16"]]')
    with pytest.raises(UsageError, match="fits no tensor"):
        quantize(wide, tmp_path / "m.gguf", recipe=tmp_path / "r.toml")
    assert os.listdir(tmp_path) == ["r.toml"]


def test_outputs_that_are_read(wide, tmp_path):
    """Settings and statistics, by any name, and a source that is the output's own hidden file."""
    model, recipe = tmp_path / "m.gguf", tmp_path / "r.toml"
    quantize(wide, model, type="q8_0")
    recipe.write_text('base = "q8_0"')
    os.link(recipe, tmp_path / "hard")
    for out in (recipe, tmp_path / "hard"):
        with pytest.raises(UsageError, match="being read"):
            quantize(model, out, recipe=recipe)
    hidden = partial_path(tmp_path / "out.gguf")
    hidden.write_bytes(model.read_bytes())
    for resume in (False, True):
        with pytest.raises(UsageError, match="being read"):
            quantize(hidden, tmp_path / "out.gguf", type="q8_0", resume=resume)
    assert hidden.read_bytes() == model.read_bytes() and recipe.read_text() == 'base = "q8_0"'


def test_home_and_the_models_of_the_package(wide, tmp_path, monkeypatch):
    from ivlite.quantize import verify

    (tmp_path / "demo").mkdir()  # a folder of that name hides nothing
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.toml").write_text('base = "q8_0"')
    quantize("demo", "~/out.gguf", recipe="~/r.toml")
    assert verify("~/out.gguf").ok and sorted(os.listdir(tmp_path)) == ["demo", "out.gguf", "r.toml"]
    (tmp_path / "demo").rmdir()
    copied(wide, tmp_path / "demo")  # but a checkpoint does
    assert quantize("demo", "~/out.gguf").tensors == len(convert.dry_run(wide, convert.Settings("q8_0")).plans)


def test_paths_of_bytes(wide, tmp_path, monkeypatch):
    import ivlite
    from ivlite.quantize import verify

    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text('base = "q8_0"')
    done = quantize(os.fsencode(wide), b"m.gguf", recipe=b"r.toml")
    assert done.path == Path("m.gguf") and verify(b"m.gguf").ok
    with ivlite.load(os.fsencode(tmp_path / "m.gguf")) as model:
        assert model.path == tmp_path / "m.gguf"
        session = model.session(b"talk.ivs")
        session.save()
        session.save(b"other.ivs")
        assert model.session(os.fsencode(tmp_path / "other.ivs")).messages == []
    for call in (
        lambda: ivlite.load(b"none.gguf"),
        lambda: verify(b"none.gguf"),
        lambda: quantize(b"none.gguf", "x.gguf"),
    ):
        with pytest.raises(ModelFileError, match=r"(^| )none\.gguf"):
            call()
    calls = [ivlite.load, verify, lambda path: quantize(path, "x.gguf"), lambda path: quantize(wide, path),
             lambda path: quantize(wide, "x.gguf", recipe=path), lambda path: quantize(wide, "x.gguf", calibration=path)]  # fmt: skip
    for call in calls:
        with pytest.raises(UsageError, match="the path is 5; it must be a text, bytes or a Path"):
            call(5)


def test_a_home_that_is_empty_is_none(monkeypatch):
    import pwd

    from ivlite.files import expanded

    monkeypatch.setenv("HOME", "")
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert (expanded("~/x"), expanded("~"), expanded("x~"), expanded(b"~")) == (f"{home}/x", home, "x~", home)


# ------------------------------------------------------------------------------------------------ the plan


def test_a_dry_run_writes_nothing_and_tells_the_size(wide, tmp_path):
    done = convert.dry_run(wide, convert.Settings(type="q4_k_m", tensor_types=("ffn_up=q6_k",)))
    written = quantize(wide, tmp_path / "m.gguf", type="q4_k_m", tensor_types=["ffn_up=q6_k"])
    assert done.nbytes == written.nbytes == (tmp_path / "m.gguf").stat().st_size
    run = [sys.executable, "-m", "ivlite", "quantize", wide, "--dry-run", "--type", "q4_k_m"]
    shown = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0 and os.listdir(tmp_path) == ["m.gguf"], shown.stderr
    assert "blk.*.ffn_down.weight" in shown.stdout and "bits per weight" in shown.stdout
    assert "promoted from" not in shown.stdout.split("v.patch")[0]


def test_progress_counts_what_is_left(wide, tmp_path):
    calls = []
    interrupted(wide, tmp_path / "m.gguf")
    quantize(wide, tmp_path / "m.gguf", resume=True, progress=lambda *args: calls.append(args))
    assert calls[-1][1] == calls[-1][2] < (wide / "model.safetensors").stat().st_size * 0.6
