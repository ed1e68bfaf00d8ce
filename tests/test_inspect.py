"""`ivlite inspect` of files that are not trusted, of files of other programs, and of types and values it does not know."""

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from test_gguf import build, pair, record, refused, text

from ivlite import cli
from ivlite.cli import inspect
from ivlite.gguf import GGUFFile
from ivlite.gguf.config import Config
from ivlite.gguf.writer import GGUFWriter
from ivlite.models.internvideo3 import TensorSpec, tensor_names
from ivlite.quantize import quantize, recipe_file, recipes


@pytest.fixture(scope="module")
def model(wide, tmp_path_factory):
    """A q4_k_m file whose tower is q6_k, so that tensors are promoted; tests do not change it."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    quantize(wide, path, type="q4_k_m", vision="q6_k")
    return path


def changed(model, path, metadata):
    """A copy of a model file with other metadata."""
    with GGUFFile(model) as file:
        head = {key: file.stored(key) for key in file.metadata} | metadata
        with GGUFWriter(path, head, [(t.name, t.shape, t.format) for t in file.tensors.values()]) as out:
            for name in file.tensors:
                out.write(file.read(name))
    return path


def shown(path, capsys, *options):
    """The facts that --json prints."""
    assert cli.main(["inspect", str(path), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


# ------------------------------------------------------------------------------------------------ recipes


def rows(*patterns):
    return json.dumps({"name": "own", "rows": [[pattern, "all", "q8_0"] for pattern in patterns]})


HOSTILE = {
    "a pattern without end": rows("(([a-z._]|[0-9])+)+!", "."),
    "a pattern that takes a minute to compile": rows("(?:" * 40 + "a" + "){2,300}" * 40, "."),
    "no pattern": rows("(", "."),
    "many rows": rows(*["never"] * 30_000),
    "many layers": json.dumps({"name": "q8_0", "rows": [[".", ",".join(["0-1023"] * 100_000), "q8_0"]]}),
    "a long text": json.dumps({"name": "own", "rows": [["a" * (2 << 20), "all", "q8_0"]]}),
    "no recipe": "[1]", "nested": "[" * 100_000, "no JSON": "rows", "a number": 5, "wrong rows": '{"name": "x", "rows": [5]}',
    "notes of no tensor": '{"name": "x", "rows": [], "notes": {"a": "b"}}', "notes that are no texts": '{"name": "x", "rows": [], "notes": {"output.weight": [1], "blk.0.ffn_up.weight": null}}',
    "notes in a list": '{"name": "x", "rows": [], "notes": ["a"]}',
    "a name that is a list": '{"name": [1], "rows": []}', "no rows": '{"name": "x"}',
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE)
def test_no_recipe_of_a_file_hangs(model, tmp_path, fault):
    """Nor is it run at all: what the file says of itself ends in the output."""
    path = changed(model, tmp_path / "evil.gguf", {"ivlite.recipe": HOSTILE[fault]})
    run = [sys.executable, "-m", "ivlite", "inspect", str(path), "--json"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "config" in facts and not facts.get("notes")


@pytest.mark.parametrize("settings", [
    {"type": "q4_k_m"}, {"type": "q6_k", "vision": "f16"}, {"type": "Q5_K_M", "vision": "Q4_0"}, {"type": "bf16", "vision": "q4_k"},
])  # fmt: skip
def test_the_tables_of_the_types_tell_what_was_promoted(wide, tmp_path, capsys, settings):
    path = tmp_path / "m.gguf"
    done = quantize(wide, path, **settings)
    expected = {p.name: p.note for p in done.plans if p.note}
    facts = shown(path, capsys)
    assert (facts["recipe"], facts["notes"]) == (settings["type"].lower(), expected)
    assert expected or settings["type"] != "q4_k_m"


def test_a_recipe_of_ones_own_is_stored_with_its_notes(wide, tmp_path, capsys):
    done = quantize(wide, tmp_path / "m.gguf", type="q4_k_m", tensor_types=["ffn_down=q6_k"])
    facts = shown(tmp_path / "m.gguf", capsys)
    assert facts["recipe"] == "q4_k_m" and facts["notes"] == {p.name: p.note for p in done.plans if p.note} != {}


def test_of_a_recipe_without_notes_the_shapes_tell_what_was_padded(wide, tmp_path, capsys):
    """As older versions stored those of one's own."""
    quantize(wide, tmp_path / "m.gguf", type="q4_k_m")
    changed(tmp_path / "m.gguf", tmp_path / "old.gguf", {"ivlite.recipe": rows("ffn_down", ".")})
    facts = shown(tmp_path / "old.gguf", capsys)
    assert (facts["recipe"], facts["notes"]) == ("own", {})
    specs = [TensorSpec("", name, (8, columns)) for name, columns in (("a", 4304), ("b", 64), ("c", 64))]
    tensors = {"a": np.empty((8, 4320)), "b": np.empty((8, 64))}
    assert inspect.padded(specs, tensors) == {"a": "padded from 4304"}


def test_only_rows_of_a_type_are_that_type():
    for type, vision in (("q4_k_m", None), ("q8_0", "q6_k"), ("f32", "f16")):
        made = recipes.adjusted(recipes.named(type), (), vision)
        assert recipes.made_of(type, made.rows) == made and recipes.made_of("other", made.rows) is None
        assert (
            recipes.made_of(type, made.rows[1:]) != made and recipes.made_of(type, (*made.rows, made.rows[0])) is None
        )
        again, notes = recipe_file.from_text(recipe_file.text(made))
        assert recipes.made_of(again.name, again.rows) == made and notes is None


# ------------------------------------------------------------------------------------------------ files of others


def test_names_of_any_length_are_shortened(tmp_path, capsys):
    path = tmp_path / "long.gguf"
    path.write_bytes(build([pair(f"general.{key}", 8, text("x" * (1 << 20))) for key in ("architecture", "name")]))
    for value in (shown(path, capsys)[key] for key in ("architecture", "name")):
        assert value.endswith("... (1,048,576 characters)") and len(value) < 150


def test_every_type_of_ggml_is_shown(tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "types.gguf"
    kinds = list(gguf.GGMLQuantizationType)
    path.write_bytes(
        build(records=[record(f"t{k}", (768,), int(k), 8192 * i) for i, k in enumerate(kinds)], data=8192 * len(kinds))
    )
    listed = {t["name"]: t["format"] for t in shown(path, capsys, "--tensors")["tensor_list"]}
    assert listed == {f"t{k}": k.name.lower() for k in kinds}


@pytest.mark.parametrize(("kind", "words"), [
    (42, "newer than this ivlite; update ivlite"), (255, "newer than this ivlite"), (4, "given up"), (31, "given up"), (38, "given up"),
    (256, "is damaged"), (1 << 31, "is damaged"),
])  # fmt: skip
def test_types_that_are_unknown(tmp_path, kind, words):
    path = tmp_path / "types.gguf"
    path.write_bytes(build(records=[record(kind=kind)]))
    sentence = refused(path, f"type {kind}", words)
    assert ("damaged" in sentence) == (words == "is damaged")


# ------------------------------------------------------------------------------------------------ nested arrays


def array(kind, *values):
    """The bytes of an array without the type that stands before a value."""
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


NUMBERS = array(4, *(struct.pack("<I", n) for n in (7, 8, 9)))
TEXTS = array(8, text("a"), text("b"))


def plain(value):
    return (
        [plain(v) for v in value] if isinstance(value, list) else value.tolist() if hasattr(value, "tolist") else value
    )


def test_arrays_of_arrays(tmp_path, capsys):
    path = tmp_path / "nested.gguf"
    values = {
        "two": array(9, NUMBERS, TEXTS),
        "four": array(9, array(9, array(9, NUMBERS))),
        "none": array(9),
        "many": array(9, *[NUMBERS] * 20),
    }
    path.write_bytes(build([pair(key, 9, value) for key, value in values.items()], [record()]))
    expected = {"two": [[7, 8, 9], ["a", "b"]], "four": [[[[7, 8, 9]]]], "none": [], "many": [[7, 8, 9]] * 20}
    with GGUFFile(path) as file:
        assert {key: plain(value) for key, value in file.metadata.items()} == expected and list(file.tensors) == ["t"]
    found = shown(path, capsys)["metadata"]
    assert (found["two"], found["four"]) == (expected["two"], expected["four"])
    assert found["many"].startswith("20 values: [7, 8, 9], [7, 8, 9]")


def test_arrays_of_arrays_have_limits(tmp_path):
    """They are read to some depth and number, and never more than the file can hold."""
    path, deep = tmp_path / "nested.gguf", NUMBERS
    for _ in range(4):
        deep = array(9, deep)
    for value, words in (
        (deep, "nests arrays further than ivlite reads"), (array(9) * 2, ""), (array(9, *[array(0)] * 65_537), "65,536 arrays"),
        (struct.pack("<IQ", 9, 1 << 60), "claims"), (array(9, struct.pack("<IQ", 77, 1)), "value type 77"),
        (array(9, *[array(9, *[array(0)] * 300)] * 300), "65,536 arrays"),
    ):  # fmt: skip
        path.write_bytes(build([pair("k", 9, value)]))
        if words:
            assert ("is damaged" in refused(path, words)) == (words in ("claims", "value type 77"))
        else:
            GGUFFile(path).close()


def test_arrays_of_arrays_stay_when_a_file_is_converted(model, tmp_path):
    value = [np.array([1, 2], np.int16), ["a", ""], [np.array([0.5], np.float32)]]
    path = changed(model, tmp_path / "nested.gguf", {"other.nested": value})
    quantize(path, tmp_path / "again.gguf", type="q8_0")
    with GGUFFile(tmp_path / "again.gguf") as file:
        got = file.metadata["other.nested"]
        assert plain(got) == plain(value) and (got[0].dtype, got[2][0].dtype) == (np.int16, np.float32)
        assert len(tensor_names(Config.from_metadata(file.metadata, file.path))) == len(file.tensors)


def test_a_reader_that_stops_early_is_no_error(model):
    run = f"{sys.executable} -m ivlite inspect {model} --tensors | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", run], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == 0 and done.stderr == ""
