"""Golden values of weights that are not finite: they are those of what is written, and never not finite themselves; JSON of them."""

import json
import struct

import numpy as np
import pytest
from test_conversion import copied, poke

from ivlite import _C, cli
from ivlite.errors import ModelFileError
from ivlite.gguf import FORMATS, GGUFFile
from ivlite.gguf.writer import GGUFWriter
from ivlite.numbers import jsonable
from ivlite.quantize import encode, golden, quantize, verify
from ivlite.quantize.safetensors import Source

# a matrix of the decoder, a vector, the table of embeddings (its last row, which no golden token may be), a matrix of the tower
NAMES = (
    "model.language_model.layers.1.mlp.up_proj.weight", "model.language_model.layers.0.input_layernorm.weight",
    "model.language_model.embed_tokens.weight", "model.visual.blocks.0.attn.qkv.weight", "lm_head.weight",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_zero_is_zero_for_golden_values(wide, tmp_path, name):
    folder, out = copied(wide, tmp_path / "nan"), tmp_path / "m.gguf"
    poke(folder, name, [0x7FC0, 0xFF80], at=100)
    with pytest.raises(ModelFileError, match="no numbers.*--allow-nan") as caught:
        quantize(folder, out, type="q8_0", golden=True)
    assert name in str(caught.value)
    quantize(folder, out, type="q8_0", golden=True, allow_nan=True)
    assert verify(out).ok and verify(out).stages
    poke(folder, name, [0, 0], at=100)
    quantize(folder, tmp_path / "zero.gguf", type="q8_0", golden=True)
    with GGUFFile(out) as got, GGUFFile(tmp_path / "zero.gguf") as expected:
        for key in golden.KEYS:
            assert np.array_equal(got.metadata[golden.PREFIX + key], expected.metadata[golden.PREFIX + key]), key


@pytest.mark.parametrize("type", ["q8_0", "q4_k_m"])
def test_of_a_model_file_blocks_become_zero(wide, tmp_path, type):
    source, out = tmp_path / "source.gguf", tmp_path / "m.gguf"
    quantize(wide, source, type=type)
    with GGUFFile(source) as file:
        info = file.tensors["blk.1.ffn_up.weight"]
    with open(source, "r+b") as file:
        file.seek(info.offset + 3 * FORMATS[info.format].block_bytes)
        file.write(struct.pack("<e", float("nan")))  # the scale of a block
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_up\.weight.*--allow-nan"):
        quantize(source, out, type=type, golden=True)
    done = quantize(source, out, type=type, golden=True, allow_nan=True)
    assert f"{FORMATS[info.format].block} weights that were no numbers became zero" in done.warnings and verify(out).ok


@pytest.mark.parametrize("fmt", [name for name, form in FORMATS.items() if form.runs])
def test_only_what_is_not_finite_becomes_zero(fmt, rng):
    form = FORMATS[fmt]
    raw = _C.encode(fmt, rng.standard_normal(8 * form.block).astype(np.float32))
    source = Source("t", "f", fmt, (8, form.block), 0, raw.size)
    assert encode.finite(source, raw, False) is raw
    bad = raw.copy().reshape(8, -1)
    at = (
        form.block_bytes - 2 if fmt in ("q6_k", "bf16", "f32") else 0
    )  # where the upper half of a float or the scale is
    bad[5, at : at + 2] = np.frombuffer(struct.pack("<H", 0x7FC0 if fmt in ("bf16", "f32") else 0x7E00), np.uint8)
    with pytest.raises(ModelFileError, match="f: tensor t holds values"):
        encode.finite(source, bad.reshape(-1), False)
    expected = _C.decode(fmt, raw, 8 * form.block).reshape(8, -1)
    expected[5] = 0
    assert np.array_equal(
        _C.decode(fmt, encode.finite(source, bad.reshape(-1), True), 8 * form.block).reshape(8, -1), expected
    )


def not_finite(true, which):
    """golden.run whose results have one value that is not finite."""

    def run(*args, **kwargs):
        found = [x.copy() for x in true(*args, **kwargs)]
        found[which].reshape(-1)[-1] = np.nan
        return found

    return run


@pytest.mark.parametrize("which", range(3))
def test_values_that_are_not_finite_are_never_stored(wide, tmp_path, monkeypatch, which):
    monkeypatch.setattr(golden, "run", not_finite(golden.run, which))
    with pytest.raises(ModelFileError, match="not finite.*without --golden"):
        quantize(wide, tmp_path / "m.gguf", type="q8_0", golden=True)
    assert not list(tmp_path.iterdir())


def test_values_of_a_file_that_are_not_finite(wide, tmp_path):
    """As an older ivlite stored them: the file is to blame, not the machine."""
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    quantize(wide, good, type="q8_0", golden=True)
    with GGUFFile(good) as file:
        head = {key: file.stored(key) for key in file.metadata if not key.startswith("ivlite.checksum")}
        head[golden.PREFIX + "log_sums"] = np.full(16, np.nan, np.float32)
        with GGUFWriter(bad, head, [(t.name, t.shape, t.format) for t in file.tensors.values()], bytes(32)) as out:
            for name in file.tensors:
                out.write(file.read(name))
    for call in (lambda: verify(bad), lambda: quantize(bad, tmp_path / "again.gguf", type="q8_0")):
        with pytest.raises(ModelFileError, match="golden values that are not finite.*convert the checkpoint again"):
            call()


# ------------------------------------------------------------------------------------------------ JSON


def strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_an_error_that_is_no_number_is_null(wide, tmp_path, monkeypatch, capsys):
    """Of a machine that computes NaN."""
    quantize(wide, tmp_path / "m.gguf", type="q8_0", golden=True)
    monkeypatch.setattr(golden, "run", not_finite(golden.run, 2))
    assert cli.main(["verify", str(tmp_path / "m.gguf"), "--json"]) == 3
    captured = capsys.readouterr()
    stage = strict(captured.out)["stages"][-1]
    assert (stage["stage"], stage["error"], stage["ok"]) == ("logits", None, False) and "logits is off" in captured.err


def test_a_speed_that_is_no_number_is_null(monkeypatch, capsys):
    from ivlite.cli import doctor

    facts = {"limits": {"read": float("inf")}, "advice": []}
    monkeypatch.setattr(doctor, "examine", lambda: facts)
    assert cli.main(["doctor", "--json"]) == 0
    assert strict(capsys.readouterr().out) == {"limits": {"read": None}, "advice": []}


def test_plain_data_for_json():
    data = {"a": [1, float("nan"), (float("-inf"), "x")], "b": {"c": None, "d": True, "e": np.float64("inf")}, "f": 0.5}
    assert jsonable(data) == {"a": [1, None, [None, "x"]], "b": {"c": None, "d": True, "e": None}, "f": 0.5}
