"""Recipes: which format each tensor of the real model gets, and every way to ask for another."""

import json
import math
import time

import pytest

from ivlite.errors import Stopped, UsageError
from ivlite.evaluate.synthetic import config
from ivlite.gguf.writer import nbytes
from ivlite.models.internvideo3 import TensorSpec, tensor_names
from ivlite.quantize import recipe_file
from ivlite.quantize.recipes import (
    FLOATS,
    TYPES,
    Recipe,
    Row,
    adjusted,
    check_used,
    file_type,
    listed_types,
    named,
    plan,
)
from ivlite.stop import Stop, using

SPECS = tensor_names(config("8b"))


def chosen(recipe):
    return {choice.spec.gguf: choice for choice in plan(SPECS, recipe)}


def formats(recipe, name):
    """The formats of a tensor "blk.*.name" over the layers, shortly: "2 q6_k, 34 q4_k"."""
    found = [c.format for n, c in chosen(recipe).items() if n.startswith("blk.") and n.endswith(f".{name}.weight")]
    return ", ".join(f"{found.count(f)} {f}" for f in dict.fromkeys(sorted(found, reverse=True)))


def bits(recipe):
    choices = chosen(recipe).values()
    return 8 * sum(nbytes(c.shape, c.format) for c in choices) / sum(math.prod(c.spec.shape) for c in choices)


@pytest.mark.parametrize("type", TYPES)
def test_what_loses_most_from_few_bits_is_promoted(type):
    choices = chosen(named(type))
    best = {"f32": "f32", "f16": "f16", "bf16": "bf16"}.get(type, "q8_0")
    for name in ("blk.0.attn_kv_a", "blk.20.attn_kv_b", "v.blk.13.attn_qkv", "v.merger.fc1", "v.deepstack.2.fc2"):
        assert choices[f"{name}.weight"].format == best
    assert choices["output.weight"].format in (best, "q6_k")
    assert choices["v.position_embd.weight"].format in FLOATS and choices["blk.0.attn_norm.weight"].format == "f32"
    assert file_type(named(type), choices.values()) == named(type).file_type


def test_the_recipes_layer_by_layer():
    assert formats(named("q4_k_m"), "ffn_down") == "17 q6_k, 19 q4_k"
    assert formats(named("q4_k_m"), "attn_output") == "8 q6_k, 28 q5_k"
    assert formats(named("q4_k_m"), "ffn_up") == formats(named("q4_k_m"), "attn_q") == "2 q5_k, 34 q4_k"
    assert formats(named("q4_k_s"), "ffn_down") == "8 q5_k, 28 q4_k"
    assert formats(named("q5_k_m"), "ffn_down") == "17 q6_k, 19 q5_k"
    assert formats(named("q4_0"), "ffn_down") == "36 q4_0"


def test_sizes_are_in_order():
    sizes = [bits(named(type)) for type in ("f32", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q4_0")]
    assert sizes[:1] == [32] and sizes[1] == pytest.approx(16, abs=0.01)
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True) and sizes[-1] < 5.5 and 4.9 < sizes[5] < 5.6


def test_rows_that_a_format_does_not_divide():
    def one(columns, fmt, kind="matrix"):
        recipe = adjusted(named("q8_0"), [f".={fmt}"])
        (choice,) = plan([TensorSpec("", "x.weight", (8, columns), kind)], recipe)
        return choice.format, choice.shape[1], choice.note

    assert one(4304, "q8_0") == ("q8_0", 4320, "padded from 4304")
    assert one(896, "q4_k") == ("q8_0", 896, "promoted from q4_k: rows of 896")
    assert one(4304, "q4_k") == ("q4_k", 4352, "padded from 4304")
    assert one(1152, "q6_k") == ("q8_0", 1152, "promoted from q6_k: rows of 1152")
    assert one(48, "q4_0") == ("bf16", 48, "promoted from q4_0: rows of 48")
    assert one(48, "f16") == ("f16", 48, "")
    assert one(1536, "q8_0", "float_matrix") == ("bf16", 1536, "kept in floats")


def test_adjustments_go_before_the_recipe():
    recipe = adjusted(named("q4_0"), ["ffn_down=q6_k", "blk.3.=q8_0", "blk.3.ffn_up=f16"], vision="bf16")
    choices = chosen(recipe)
    assert choices["blk.3.ffn_down.weight"].format == "q6_k"  # the first that fits
    assert choices["blk.3.ffn_up.weight"].format == choices["blk.3.attn_q.weight"].format == "q8_0"
    assert choices["blk.4.ffn_up.weight"].format == "q4_0"
    assert choices["v.blk.0.ffn_up.weight"].format == "bf16"
    assert choices["blk.3.attn_norm.weight"].format == "f32"


@pytest.mark.parametrize(("layers", "expected"), [
    ("all", range(36)), ("first 2", [0, 1]), ("last 1/8", range(32, 36)), ("first 1/100", [0]), ("every 12", [11, 23, 35]),
    ("0-2, 34", [0, 1, 2, 34]), ("30-99", range(30, 36)), ("first 99", range(36)), ("first 1, last 1", [0, 35]),
])  # fmt: skip
def test_layers(layers, expected):
    rows = [["ffn_up", layers, "q6_k"], [".", "all", "q8_0"]]
    recipe = recipe_file.parsed({"rows": rows}, "r", "r")
    found = [i for i in range(36) if chosen(recipe)[f"blk.{i}.ffn_up.weight"].format == "q6_k"]
    assert found == list(expected)


def test_layers_of_the_tower_are_its_own():
    recipe = recipe_file.parsed({"base": "q8_0", "rows": [["ffn_up", "last 1", "f16"]]}, "r", "r")
    found = [name for name, c in chosen(recipe).items() if c.format == "f16"]
    assert found == ["blk.35.ffn_up.weight", "v.blk.26.ffn_up.weight"]


@pytest.mark.parametrize(("pattern", "layers"), [
    ("ffn_down", "36-40"), ("^blk.*attn_output", "99"), ("^v.*ffn_up", "27"), ("ffn_up", "first 0"), ("^output", "0-3"), ("ffn_down", "every 40"),
    (r"blk\.3\.", "0-2, 4"),
])  # fmt: skip
def test_layers_that_a_row_does_not_reach(pattern, layers):
    with pytest.raises(UsageError, match="names the layers .*--dry-run shows them"):
        check_used(SPECS, [Row(pattern, layers, "f32")])


@pytest.mark.parametrize(("pattern", "layers"), [
    ("ffn_down", "35-40"), ("ffn_up", "27"), ("^v.*ffn_up", "26"), ("ffn_up", "0, 99"), ("^output", "all"), (".", "last 1"), (r"blk\.3\.", "3"),
])  # fmt: skip
def test_layers_that_a_row_reaches(pattern, layers):
    check_used(SPECS, [Row(pattern, layers, "f32")])


def test_many_rows_are_read_once_and_can_be_stopped():
    """Python keeps 512 compiled patterns; a plan compiled each of more again, for every tensor."""
    rows = [Row(f"blk.{i}.attn_[a-z]+_nowhere", "all", "q8_0") for i in range(1000)]
    recipe, start = Recipe("many", (*rows, Row(".", "all", "q8_0"))), time.process_time()
    assert len(plan(SPECS, recipe)) == len(SPECS) and time.process_time() - start < 15  # about 1 s
    stop = Stop()
    stop.set("interrupted")
    for call in (lambda: plan(SPECS, recipe), lambda: check_used(SPECS, recipe.rows)):
        with using(stop), pytest.raises(Stopped):
            call()


# ------------------------------------------------------------------------------------------------ files


def test_files(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "q4_k_m"\nrows = [["ffn_down", "first 4", "q8_0"]]\n')
    (tmp_path / "mine.json").write_text(json.dumps({"base": "q4_k_m", "rows": [["ffn_down", "first 4", "q8_0"]]}))
    for name in ("mine.toml", "mine.json"):
        recipe = recipe_file.read(tmp_path / name)
        assert (recipe.name, recipe.file_type) == ("mine", 15)
        assert recipe.rows == (Row("ffn_down", "first 4", "q8_0"), *named("q4_k_m").rows)
        assert recipe_file.from_text(recipe_file.text(recipe))[0].rows == recipe.rows


def test_the_type_of_a_recipe_without_one_is_that_of_most_weights():
    recipe = recipe_file.parsed({"rows": [["ffn", "all", "q6_k"], [".", "all", "bf16"]]}, "r", "r")
    assert file_type(recipe, plan(SPECS, recipe)) == 18


@pytest.mark.parametrize(("text", "word"), [
    ("rows = 5", "three texts"), ("", "three texts"), ("rows = [['a', 'all']]", "three texts"), ("rows = [", "TOML"),
    ("rows = [['a', 'all', 'q3_k']]", "q3_k"), ("rows = [['(', 'all', 'q8_0']]", "regular expression"),
    ("rows = [['a', 'some', 'q8_0']]", "some"), ("rows = [['a', 'every 0', 'q8_0']]", "every 0"),
    ("rows = [['a', '3-0', 'q8_0']]", "3-0"), ("rows = [['a', '0-3, 2-1', 'q8_0']]", "2-1"), (f"rows = {[['a', 'all', 'q8_0']] * 4097}", "4,097 rows"),
    ("rows = [['a', 'first 1/0', 'q8_0']]", "1/0"), ("base = 'q9'", "q9"), ("speed = 1", "speed"),
    ("base = 'q8_0'\nfile_type = -1", "-1"),
])  # fmt: skip
def test_files_that_are_no_recipes(tmp_path, text, word):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        recipe_file.read(path)
    assert word in str(caught.value)


def test_other_faults(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            recipe_file.read(path)
    (tmp_path / "r.json").write_text("[1]")
    with pytest.raises(UsageError, match="no table"):
        recipe_file.read(tmp_path / "r.json")
    with pytest.raises(UsageError, match="q4_0"):
        named("int4")
    for text in ("ffn_down", "=q8_0", "ffn_down=q9_0"):
        with pytest.raises(UsageError):
            adjusted(named("q8_0"), [text])
    with pytest.raises(UsageError, match="no row for"):
        plan(SPECS, recipe_file.parsed({"rows": [["ffn", "all", "q8_0"]]}, "r", "r"))


@pytest.mark.parametrize("name, text", [("r.toml", 'base = "q4_k_m"\nrows = [["ffn_down", "first 4", "q8_0"]]'),
                                        ("r.json", '{"base": "q4_k_m", "rows": [["ffn_down", "first 4", "q8_0"]]}')])  # fmt: skip
def test_files_with_a_byte_order_mark(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert recipe_file.read(tmp_path / name).rows == (Row("ffn_down", "first 4", "q8_0"), *named("q4_k_m").rows)


def test_settings_of_a_wrong_kind(tmp_path):
    from ivlite.quantize import quantize

    rules = [Row("ffn", "all", "q8_0"), Row("attn", "all", "q6_k")]
    for given, count in (("ffn=q8_0", 1), (["ffn=q8_0"], 1), (iter(["ffn=q8_0", "attn=q6_k"]), 2), ((), 0)):
        assert adjusted(named("q4_0"), listed_types(given)).rows[:count] == tuple(rules[:count])
    for given in (5, None, [5], b"ffn=q8_0", [None], {3: 4}):
        with pytest.raises(UsageError, match="tensor_types has .*; they are texts"):
            quantize(tmp_path, tmp_path / "x.gguf", tensor_types=given)
    for vision in (5, 0, False, [], b"q8_0", "int3"):
        with pytest.raises(UsageError, match="there is no format .* for tensors"):
            adjusted(named("q4_0"), (), vision)
    assert adjusted(named("q4_0"), (), None) == adjusted(named("q4_0"), (), "") == named("q4_0")
