"""`ivlite verify`: damage anywhere is found and named, golden activations come out again; and calibration files."""

import json
import os
import shutil

import numpy as np
import pytest

from ivlite import _C, cli
from ivlite.errors import ModelFileError
from ivlite.gguf import GGUFFile
from ivlite.gguf import statistics as stats_file
from ivlite.gguf.config import Config
from ivlite.gguf.writer import GGUFWriter
from ivlite.models.internvideo3 import tensor_names
from ivlite.quantize import calibration, golden, quantize, verify
from ivlite.quantize.recipes import TYPES, named, plan

STAGES = ["vision", "DeepStack 0", "DeepStack 1", "DeepStack 2", "logits"]


@pytest.fixture(scope="module")
def model(wide, tmp_path_factory):
    """A q4_k_m file with golden values; tests do not change it."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    quantize(wide, path, type="q4_k_m", golden=True)
    return path


def spoilt(model, tmp_path, offset, value=b"\x5a"):
    """A copy of a file with other bytes at an offset."""
    path = tmp_path / "spoilt.gguf"
    shutil.copy(model, path)
    with open(path, "r+b") as file:
        file.seek(offset)
        before = file.read(len(value))
        file.seek(offset)
        file.write(value if value != before else bytes(b ^ 1 for b in value))
    return path


@pytest.mark.parametrize("type", TYPES)
def test_every_type_is_within_its_limits(wide, tmp_path, type):
    quantize(wide, tmp_path / "m.gguf", type=type, golden=True)
    report = verify(tmp_path / "m.gguf")
    assert report.ok and [s.name for s in report.stages] == STAGES
    exact = type in ("f32", "bf16")  # the checkpoint is bf16
    assert all((s.error == 0) == exact or (exact and s.error < 1e-6) or s.name == "logits" for s in report.stages)
    assert all(s.error <= s.limit / 2 for s in report.stages)


def test_any_byte_of_the_weights(model, tmp_path, rng):
    with GGUFFile(model) as file:
        tensors = list(file.tensors.values())
    for t in rng.choice(len(tensors), 8, replace=False):
        t = tensors[t]
        report = verify(spoilt(model, tmp_path, t.offset + int(rng.integers(t.nbytes))))
        assert report.damaged == (t.name,) and not report.ok and report.stages == ()


def test_any_byte_of_the_header(model, tmp_path, rng):
    with GGUFFile(model) as file:
        end = min(t.offset for t in file.tensors.values())
        whole = model.read_bytes()[:end]
    sums = whole.index(b"ivlite.checksum.tensors"), whole.index(b"ivlite.checksum.header") + 30
    for at in [*rng.integers(24, end, 40).tolist(), sums[0] + 60, sums[1] - 2]:
        path = spoilt(model, tmp_path, at)
        try:
            assert not verify(path).ok, at
        except ModelFileError as error:
            assert str(path) in str(error)


def test_a_shortened_file(model, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="incomplete"):
        verify(path)


def test_a_file_without_checksums(model, tmp_path):
    path = tmp_path / "m.gguf"
    with GGUFFile(model) as file:
        metadata = {k: v for k, v in file.metadata.items() if not k.startswith("ivlite.")}
        with GGUFWriter(path, metadata, [(t.name, t.shape, t.format) for t in file.tensors.values()]) as out:
            for name in file.tensors:
                out.write(file.read(name))
    with pytest.raises(ModelFileError, match="no checksums"):
        verify(path)


WRONG = {
    "vision": ("picture", lambda true: lambda h, w: true(h, w)[:, ::-1].copy()),
    "logits": ("mrope_positions", lambda true: lambda ids, *_: (np.tile(np.arange(len(ids))[::-1], (3, 1)), 0)),
}


@pytest.mark.parametrize("stage", WRONG)
def test_a_whole_file_that_computes_something_else(wide, tmp_path, monkeypatch, stage):
    """What golden values are for, which no checksum shows."""
    quantize(wide, tmp_path / "m.gguf", type="q8_0", golden=True)
    name, wrong = WRONG[stage]
    monkeypatch.setattr(golden, name, wrong(getattr(golden, name)))
    report = verify(tmp_path / "m.gguf")
    assert not report.ok and not report.damaged
    assert next(s.name for s in report.stages if not s.ok) == stage


@pytest.mark.parametrize(("key", "value"), [
    ("tokens", [1, 2, 3]), ("tokens", [1 << 31]), ("size", [64]), ("size", [64, 1 << 30]), ("vision", [0.5]),
    ("deepstack", []), ("top_ids", [9]), ("log_sums", "text"), ("top_ids", None),
])  # fmt: skip
def test_golden_values_that_make_no_sense(model, key, value):
    with GGUFFile(model) as file:
        config = Config.from_metadata(file.metadata, model)
        file.metadata[golden.PREFIX + key] = value
        if value is None:
            del file.metadata[golden.PREFIX + key]
        with pytest.raises(ModelFileError, match="golden"):
            golden.compare(config, file)


def test_golden_values_are_small(model):
    with GGUFFile(model) as file:
        values = [v for k, v in file.metadata.items() if k.startswith(golden.PREFIX)]
    assert len(values) == len(golden.KEYS) and sum(map(len, values)) < 4 * 6 * 256 + 16 * 2 * 64 + 200


def test_the_divergence_counts_the_rest_as_one(rng):
    x, y = rng.standard_normal((2, 5, 50))
    x -= np.log(np.exp(x).sum(1, keepdims=True))
    y -= np.log(np.exp(y).sum(1, keepdims=True))
    whole = np.mean(np.sum(np.exp(x) * (x - y), 1))
    assert golden.divergence(x, x) == pytest.approx(0, abs=1e-9)
    assert golden.divergence(x[:, :49], y[:, :49]) == pytest.approx(whole)
    assert 0 < golden.divergence(x[:, :20], y[:, :20]) < whole


# ------------------------------------------------------------------------------------------------ the command


def test_the_command(model, tmp_path, capsys):
    assert cli.main(["verify", str(model)]) == 0
    shown = capsys.readouterr().out
    assert "as they were written" in shown and "DeepStack 2" in shown and "OFF" not in shown
    assert cli.main(["verify", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] and [s["stage"] for s in facts["stages"]] == STAGES
    assert cli.main(["verify", str(model), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    with GGUFFile(model) as file:
        path = spoilt(model, tmp_path, file.tensors["output.weight"].offset)
    assert cli.main(["verify", str(path), "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out)["damaged"] == ["output.weight"] and "output.weight" in captured.err
    assert cli.main(["verify", str(tmp_path / "none.gguf")]) == 3


def test_inspect_shows_what_was_padded_or_promoted(tmp_path, capsys, wide):
    quantize(wide, tmp_path / "m.gguf", type="q4_k_m", vision="q6_k")
    assert cli.main(["inspect", str(tmp_path / "m.gguf"), "--tensors"]) == 0
    shown = capsys.readouterr().out
    assert "promoted from q6_k: rows of 64" in shown and "kept in floats" in shown
    line = next(line for line in shown.splitlines() if line.startswith("  v.blk.0.ffn_down.weight"))
    assert line.endswith("promoted from q6_k: rows of 160")
    assert cli.main(["inspect", str(tmp_path / "m.gguf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "q4_k_m"


# ------------------------------------------------------------------------------------------------ calibration


def statistics(path, vectors, metadata=None):
    """A statistics file of {weight name: values}."""
    head = {"general.architecture": stats_file.ARCHITECTURE, stats_file.TOKENS: 1000, stats_file.MODEL: "checkpoint"}
    head |= {stats_file.ROWS: [100] * len(vectors), stats_file.PROMPTS: ["key"]}
    vectors = {name: np.asarray(x, np.float32) for name, x in vectors.items()}
    tensors = [(f"{name}.importance", x.shape, "f32") for name, x in vectors.items()]
    with GGUFWriter(path, head | (metadata or {}), tensors) as out:
        for x in vectors.values():
            out.write(x)
    return path


@pytest.fixture
def specs(model):
    with GGUFFile(model) as file:
        return tensor_names(Config.from_metadata(file.metadata, model))


def linear(specs):
    return {s.gguf: s for s in specs if s.kind == "matrix" and s.gguf != "token_embd.weight"}


def test_importance_reaches_every_layer(wide, tmp_path, specs, rng):
    vectors = {name: rng.exponential(1, spec.shape[1]) ** 3 for name, spec in linear(specs).items()}
    stats = statistics(tmp_path / "stats.gguf", vectors)
    plain, done = tmp_path / "plain.gguf", tmp_path / "m.gguf"
    quantize(wide, plain, type="q4_k_m")
    assert quantize(wide, done, type="q4_k_m", calibration=stats).warnings == ()
    with GGUFFile(plain) as a, GGUFFile(done) as b, GGUFFile(stats) as s:
        assert (
            b.metadata["ivlite.calibration.tokens"] == 1000 and b.metadata["ivlite.calibration.model"] == "checkpoint"
        )
        for choice in plan(specs, named("q4_k_m")):
            name, weighted = choice.spec.gguf, choice.format.endswith("_k") and choice.spec.gguf in vectors
            assert np.array_equal(a.read(name), b.read(name)) != weighted, name
            if weighted:
                x = _C.decode(choice.format, a.read(name), choice.shape[0] * choice.shape[1]).reshape(choice.shape)
                y = _C.decode(choice.format, b.read(name), choice.shape[0] * choice.shape[1]).reshape(choice.shape)
                assert s.tensors[f"{name}.importance"].shape == (x.shape[1],) and not np.array_equal(x, y)


def test_layers_without_statistics_are_said_once(wide, tmp_path, specs):
    vectors = {name: np.ones(spec.shape[1]) for name, spec in linear(specs).items() if "ffn_up" not in name}
    vectors["blk.0.ffn_gate.weight"] = np.zeros(256)
    done = quantize(wide, tmp_path / "m.gguf", type="q4_k_m", calibration=statistics(tmp_path / "s", vectors))
    assert done.warnings == ("4 layers have no statistics and are encoded unweighted, blk.0.ffn_up.weight for one",)


def test_statistics_of_a_model_of_another_name_are_said(wide, tmp_path, specs):
    vectors = {name: np.ones(spec.shape[1]) for name, spec in linear(specs).items()}
    stats = statistics(tmp_path / "s", vectors, {stats_file.MODEL: "another"})
    (warning,) = quantize(wide, tmp_path / "m.gguf", type="q4_k_m", calibration=stats).warnings
    assert "'another'" in warning and "'checkpoint'" in warning


def test_statistics_without_effect_are_said_and_not_claimed(wide, tmp_path, specs):
    """Formats that weigh no errors, and tensors that are copied: the same bytes as without, and no metadata."""
    vectors = {name: np.ones(spec.shape[1]) for name, spec in linear(specs).items()}
    stats = statistics(tmp_path / "s", vectors, {stats_file.MODEL: "another"})
    plain, done = tmp_path / "plain.gguf", tmp_path / "m.gguf"
    quantize(wide, tmp_path / "q4.gguf", type="q4_0")
    for source, type in ((wide, "q8_0"), (wide, "bf16"), (tmp_path / "q4.gguf", "q4_0")):
        quantize(source, plain, type=type)
        (warning,) = quantize(source, done, type=type, calibration=stats).warnings
        assert "no effect" in warning and done.read_bytes() == plain.read_bytes()
    twice = quantize(tmp_path / "q4.gguf", done, type="q4_k_m", calibration=stats)  # these are encoded anew
    assert not any("no effect" in warning for warning in twice.warnings)
    with GGUFFile(done) as file:
        assert file.metadata["ivlite.calibration.model"] == "another"


@pytest.mark.parametrize(("vectors", "metadata", "word"), [
    ({"blk.0.ffn_up.weight": np.ones(255)}, {}, "256 columns"),
    ({"blk.9.ffn_up.weight": np.ones(256)}, {}, "no layer of this model"),
    ({"blk.0.ffn_up.weight": np.full(256, np.nan)}, {}, "no squares"),
    ({"blk.0.ffn_up.weight": np.full(256, -1)}, {}, "no squares"),
    ({}, {"general.architecture": "llama"}, "llama"),
    ({}, {stats_file.TOKENS: "many"}, "how many tokens"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_statistics_that_do_not_fit(wide, tmp_path, vectors, metadata, word):
    stats = statistics(tmp_path / "stats.gguf", vectors, metadata)
    with pytest.raises(ModelFileError) as caught:
        quantize(wide, tmp_path / "m.gguf", type="q4_k_m", calibration=stats)
    assert word in str(caught.value) and str(stats) in str(caught.value)
    assert os.listdir(tmp_path) == ["stats.gguf"]


@pytest.mark.parametrize("content", [None, "folder", b"", b"GGUF\x03\0\0\0" + bytes(30), b"no such thing"])
def test_what_is_no_file_of_statistics_says_how_they_are_made(wide, tmp_path, content):
    """Not how models are made."""
    path = tmp_path / "stats.gguf"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelFileError) as refusal:
        quantize(wide, tmp_path / "m.gguf", type="q4_k_m", calibration=path)
    assert "`ivlite calibrate`" in str(refusal.value) and "`ivlite quantize" not in str(refusal.value)


def test_rows_are_padded_with_importance_zero(wide, tmp_path, specs):
    stats = calibration.Calibration(statistics(tmp_path / "s", {"blk.0.ffn_up.weight": np.ones(256)}), specs)
    assert np.array_equal(stats.get("blk.0.ffn_up.weight", 512), np.repeat([1, 0], 256).astype(np.float32))
    assert stats.get("blk.1.ffn_up.weight", 256) is None


def test_other_statistics_do_not_resume(wide, tmp_path, specs):
    def stop(stage, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    files = [statistics(tmp_path / f"s{i}", {"blk.0.ffn_up.weight": np.arange(256) + i}) for i in range(2)]
    with pytest.raises(KeyboardInterrupt):
        quantize(wide, tmp_path / "m.gguf", type="q4_k_m", calibration=files[0], progress=stop)
    assert quantize(wide, tmp_path / "m.gguf", type="q4_k_m", calibration=files[1], resume=True).resumed == 0
