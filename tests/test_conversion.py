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
from ivlite.quantize import encode, golden, quantize


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
