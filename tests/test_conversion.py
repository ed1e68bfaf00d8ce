"""Converting safely: what is refused, what an interruption leaves, how it goes on, and that nothing is lost."""

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

from ivlite import _C
from ivlite.errors import DiskError, ModelFileError, UsageError
from ivlite.gguf import GGUFFile
from ivlite.gguf.writer import GGUFWriter
from ivlite.output import MAGIC, marked, partial_path
from ivlite.quantize import convert, encode, golden, quantize


def copied(source, target):
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def poke(folder, name, values, at=0):
    """Writes bfloat16 bits over the first weights of a tensor, from number `at` on."""
    with open(folder / "model.safetensors", "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        start = json.loads(file.read(length))[name]["data_offsets"][0]
        file.seek(8 + length + start + 2 * at)
        file.write(np.array(values, "<u2").tobytes())


def interrupted(source, out, after=0.5, **settings):
    """Ctrl-C once that share of the source is converted."""

    def stop(stage, done, total):
        if stage == "convert" and done >= after * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, out, progress=stop, **settings)


# ------------------------------------------------------------------------------------------------ interruptions


def test_ctrl_c_keeps_the_older_file_and_what_is_done(wide, tmp_path):
    out, whole = tmp_path / "m.gguf", tmp_path / "whole.gguf"
    quantize(wide, whole, type="q4_k_m")
    out.write_bytes(b"older")
    interrupted(wide, out, type="q4_k_m")
    assert out.read_bytes() == b"older" and partial_path(out).exists()
    done = quantize(wide, out, type="q4_k_m", resume=True)
    assert 20 < done.resumed < done.tensors and out.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "whole.gguf"]


def test_without_resume_an_unfinished_file_is_replaced(wide, tmp_path):
    out = tmp_path / "m.gguf"
    interrupted(wide, out, type="q8_0")
    assert quantize(wide, out, type="q8_0").resumed == 0 and os.listdir(tmp_path) == ["m.gguf"]


def test_resume_without_an_unfinished_file_begins(wide, tmp_path):
    assert quantize(wide, tmp_path / "m.gguf", type="q8_0", resume=True).resumed == 0


@pytest.mark.parametrize("change", [
    {"type": "q8_0"}, {"vision": "bf16"}, {"tensor_types": ["ffn=q8_0"]}, {"golden": True}, {"allow_nan": True},
])  # fmt: skip
def test_other_settings_do_not_go_on(wide, tmp_path, change):
    out = tmp_path / "m.gguf"
    interrupted(wide, out, type="q4_0")
    done = quantize(wide, out, resume=True, **({"type": "q4_0"} | change))
    assert done.resumed == 0 and "began anew" in done.warnings[0]


def test_another_source_does_not_go_on(wide, tmp_path):
    out, folder = tmp_path / "m.gguf", copied(wide, tmp_path / "checkpoint")
    interrupted(folder, out)
    poke(folder, "lm_head.weight", [0x3F80])
    assert quantize(folder, out, resume=True).resumed == 0


def test_a_source_changed_with_its_times_set_back_does_not_go_on(wide, tmp_path):
    """Size and time of modification are the same: `cp -p` and archives keep them."""
    out, folder = tmp_path / "m.gguf", copied(wide, tmp_path / "checkpoint")
    interrupted(folder, out)
    before = os.stat(folder / "model.safetensors")
    poke(folder, "lm_head.weight", [0x3F80])
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(folder / "model.safetensors").st_mtime_ns == before.st_mtime_ns
    done = quantize(folder, out, resume=True)
    assert done.resumed == 0 and "began anew" in done.warnings[-1]


def test_a_source_that_is_written_to_meanwhile(wide, tmp_path):
    folder = copied(wide, tmp_path / "checkpoint")

    def change(stage, done, total):
        if not changed:
            changed.append(poke(folder, "lm_head.weight", [0x3F80]))

    changed = []
    with pytest.raises(ModelFileError, match="was changed while it was in use"):
        quantize(folder, tmp_path / "m.gguf", progress=change)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_damage_in_an_unfinished_file_is_found(wide, tmp_path):
    """As after a power cut, which may lose what was written last."""
    out, whole = tmp_path / "m.gguf", tmp_path / "whole.gguf"
    quantize(wide, whole)
    interrupted(wide, out)
    with open(partial_path(out), "r+b") as file, GGUFFile(whole) as model:
        file.seek(model.tensors["token_embd.weight"].offset + 5)
        file.write(b"\0\0\0\0")
    before = GGUFFile(partial_path(out)).metadata["ivlite.checksum.tensors"]
    done = quantize(wide, out, resume=True)
    assert done.resumed == sum(1 for s in before if s) - 1 and out.read_bytes() == whole.read_bytes()


def test_an_unfinished_header_begins_anew(wide, tmp_path):
    out, whole = tmp_path / "m.gguf", tmp_path / "whole.gguf"
    quantize(wide, whole)
    interrupted(wide, out)
    with open(partial_path(out), "r+b") as file:
        file.write(bytes(1000))
    assert quantize(wide, out, resume=True).resumed == 0
    assert out.read_bytes() == whole.read_bytes()


def test_golden_values_are_not_made_twice(wide, tmp_path, monkeypatch):
    out, whole = tmp_path / "m.gguf", tmp_path / "whole.gguf"
    quantize(wide, whole, golden=True)
    interrupted(wide, out, golden=True)
    monkeypatch.setattr(golden, "run", None)
    assert quantize(wide, out, golden=True, resume=True).resumed > 0
    assert out.read_bytes() == whole.read_bytes()


def test_killed_at_any_moment(wide, tmp_path):
    """SIGKILL after more and more progress; then --resume: the same bytes as without."""
    whole, out = tmp_path / "whole.gguf", tmp_path / "m.gguf"
    quantize(wide, whole, type="q8_0")
    program = (
        "import sys, time\nfrom ivlite.quantize import quantize, encode\nencode.SLICE = 4096\n"
        "quantize(*sys.argv[1:3], type='q8_0', resume=True, progress=lambda *a: (print('.', flush=True), time.sleep(0.002)))"
    )
    for kill in range(4):
        # not in the source tree, where Python would find ivlite without its compiled module
        child = subprocess.Popen([sys.executable, "-c", program, wide, out], stdout=subprocess.PIPE, cwd=tmp_path)
        for _ in range(10 + 25 * kill):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert not out.exists() and partial_path(out).exists()
    done = quantize(wide, out, type="q8_0", resume=True)
    assert done.resumed > 0 and out.read_bytes() == whole.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "whole.gguf"]


def test_an_error_leaves_nothing(wide, tmp_path):
    folder, out = copied(wide, tmp_path / "checkpoint"), tmp_path / "m.gguf"
    poke(folder, "model.visual.merger.linear_fc2.weight", [0x7FC0])
    with pytest.raises(ModelFileError):
        quantize(folder, out)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_the_command_says_how_to_go_on(wide, tmp_path, monkeypatch, capfd):
    from ivlite import cli

    def stop(encoder, plans, writer, progress):
        writer.write(np.zeros(writer.sizes[0], np.uint8))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "stream", stop)
        assert cli.main(["quantize", str(wide), "-o", str(tmp_path / "m.gguf")]) == 130
    assert "--resume" in capfd.readouterr().err
    assert cli.main(["quantize", str(wide), "-o", str(tmp_path / "m.gguf"), "--resume"]) == 0
    assert "1 of them from before" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ places and disks


def test_the_output_may_not_be_a_file_of_the_checkpoint(wide, tmp_path):
    folder = copied(wide, tmp_path / "checkpoint")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    (tmp_path / "link.gguf").symlink_to(folder / "model.safetensors")
    os.link(folder / "model.safetensors", tmp_path / "hard.gguf")
    for out in (folder / "model.safetensors", folder / "x.bin", tmp_path / "link.gguf", tmp_path / "hard.gguf"):
        with pytest.raises(UsageError, match="another name"):
            quantize(folder, out)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_the_output_may_not_be_the_model_file_itself(wide, tmp_path):
    model = tmp_path / "m.gguf"
    quantize(wide, model, type="q8_0")
    (tmp_path / "link.gguf").symlink_to(model)
    os.link(model, tmp_path / "hard.gguf")
    before = model.read_bytes()
    for out in ("m.gguf", "link.gguf", "hard.gguf"):
        with pytest.raises(UsageError, match="another name"):
            quantize(model, tmp_path / out, type="q4_0")
    assert model.read_bytes() == before and len(os.listdir(tmp_path)) == 3


def test_two_processes_with_one_output(wide, tmp_path):
    out = tmp_path / "m.gguf"
    with open(partial_path(out), "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DiskError, match="another process"):
            quantize(wide, out)
        assert partial_path(out).exists() and not out.exists()
    quantize(wide, out)  # the lock ended with its owner
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_full_disk(wide, tmp_path, monkeypatch):
    put, calls = os.pwrite, []

    def full(fd, data, offset):
        calls.append(fd)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return put(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskError, match="No space left"):
            quantize(wide, tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(wide, tmp_path):
    folder = tmp_path / "fixed"
    folder.mkdir(mode=0o500)
    with pytest.raises(DiskError, match="Permission denied"):
        quantize(wide, folder / "m.gguf")


def test_names_of_any_length(wide, tmp_path):
    name = "ä" * 120 + ".gguf"
    interrupted(wide, tmp_path / name)
    assert quantize(wide, tmp_path / name, resume=True).resumed and os.listdir(tmp_path) == [name]


def test_space_that_is_written_already_counts(tmp_path, monkeypatch):
    """When going on, only the rest must fit."""
    tensors = [("a", (1 << 20,), "f32"), ("b", (1 << 20,), "f32")]
    mark = bytes(32)
    with pytest.raises(KeyboardInterrupt), GGUFWriter(tmp_path / "x", {}, tensors, mark) as out:
        out.write(np.ones(1 << 20, np.float32))
        raise KeyboardInterrupt
    os.sync()
    free = os.statvfs(tmp_path)
    few = (6 << 20) // free.f_frsize
    monkeypatch.setattr(
        os, "statvfs", lambda path: type("S", (), {"f_bavail": few, "f_frsize": free.f_frsize, "f_blocks": 9})
    )
    with pytest.raises(DiskError, match="are free"):
        GGUFWriter(tmp_path / "y", {}, tensors, mark)
    with GGUFWriter(tmp_path / "x", {}, tensors, mark, resume=True) as out:
        assert out.written == {0}
        out.write(np.ones(1 << 20, np.float32))
    assert os.listdir(tmp_path) == ["x"]


def test_the_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"data" + MAGIC + bytes(32))
    assert marked(tmp_path / "a", bytes(32)) and not marked(tmp_path / "a", b"1" * 32)
    (tmp_path / "b").write_bytes(b"")
    assert not marked(tmp_path / "b", bytes(32)) and not marked(tmp_path / "none", bytes(32))


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC1, 0x7F80, 0xFF80], ids=["nan", "-nan", "inf", "-inf"])
@pytest.mark.parametrize("type", ["bf16", "q4_k_m"])
def test_weights_that_are_no_numbers(wide, tmp_path, bits, type):
    folder, name = copied(wide, tmp_path / "checkpoint"), "model.language_model.layers.1.mlp.up_proj.weight"
    poke(folder, name, [bits], at=700)
    with pytest.raises(ModelFileError, match="--allow-nan") as caught:
        quantize(folder, tmp_path / "m.gguf", type=type)
    assert name in str(caught.value) and str(folder / "model.safetensors") in str(caught.value)
    done = quantize(folder, tmp_path / "m.gguf", type=type, allow_nan=True)
    assert done.warnings == ("1 weights that were no numbers became zero",)
    poke(folder, name, [0], at=700)
    quantize(folder, tmp_path / "zero.gguf", type=type)
    with GGUFFile(tmp_path / "m.gguf") as got, GGUFFile(tmp_path / "zero.gguf") as expected:
        for tensor in expected.tensors:
            assert np.array_equal(got.read(tensor), expected.read(tensor))


@pytest.mark.parametrize("fmt", ["bf16", "f16", "f32"])
def test_the_largest_magnitude_is_found_in_the_bits(fmt, rng):
    plan = encode.Plan(encode.Source("", "", fmt, (64,), 0, 0), "", 1, 64, fmt, (64,))
    for x in (rng.standard_normal(64), -np.abs(rng.standard_normal(64)), np.zeros(64), -np.zeros(64), [3, -7] * 32):
        raw = _C.encode(fmt, np.array(x, np.float32))
        assert encode.Encoder._largest(plan, raw) == np.abs(_C.decode(fmt, raw, 64)).max()
    for odd in (np.inf, -np.inf, np.nan):
        assert encode.Encoder._largest(plan, _C.encode(fmt, np.array([1, odd, -2], np.float32))) == np.inf


@pytest.mark.parametrize("fmt", encode.OVERFLOW)
def test_the_limits_of_the_formats(fmt, rng):
    """What is just below a format's limit comes back finite and right."""
    limit = encode.OVERFLOW[fmt]
    x = rng.uniform(-1, 1, 256)
    for flip in (1, -1):
        y = (flip * x * (limit * 0.999 / np.abs(x).max())).astype(np.float32)
        got = _C.decode(fmt, _C.encode(fmt, y), 256)
        assert np.isfinite(got).all() and np.abs(got - y).max() < 0.15 * limit


def test_weights_beyond_a_format(wide, tmp_path):
    folder = copied(wide, tmp_path / "checkpoint")
    poke(folder, "model.language_model.layers.1.mlp.up_proj.weight", [0x4B80])  # 2^24
    with pytest.raises(ModelFileError, match="beyond q4_k"):
        quantize(folder, tmp_path / "m.gguf", type="q4_k_m")
    quantize(folder, tmp_path / "m.gguf", type="bf16")


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


def test_a_home_that_is_empty_is_none(monkeypatch):
    import pwd

    from ivlite.files import expanded

    monkeypatch.setenv("HOME", "")
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert (expanded("~/x"), expanded("~"), expanded("x~"), expanded(b"~")) == (f"{home}/x", home, "x~", b"~")


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
