"""Tables of the code beside those of the documentation: ranges of settings, tolerances, sizes of models."""

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import ivlite
from ivlite.evaluate import synthetic
from ivlite.gguf import config
from ivlite.quantize import golden

DOCS = Path(__file__).parents[1] / "docs"
PARTS = [f for f in dataclasses.fields(config.Config) if f.name != "name"]
# What travels between rooms: not changed under another's feet, and a key where one is needed.
FROZEN = """
    Choice Config Format GenerationConfig ImageConfig Origin Piece Plan Recipe Report Row Sample SamplingParams Settings Source Stage Summary TensorInfo TensorSpec TextConfig Timeline TokenIds VideoConfig VisionConfig
""".split()


def rows(file, heading):
    """The rows of the first table after a heading of a document, as lists of stripped cells, without its head."""
    text = (DOCS / file).read_text().split(f"\n## {heading}", 1)[1]
    table = re.search(r"(\|.*\n)+", text)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def value(cell):
    """A number of a table: "2^17", "1e-6", "true"."""
    if cell in ("true", "false", "True", "False"):
        return cell.lower() == "true"
    base, _, power = cell.partition("^")
    return int(base) ** int(power) if power else float(cell)


def known_ranges():
    """key -> (kind, fewest and most values, least, most, default) as the documentation has it."""
    kinds, out = {"whole": int, "number": float, "bool": bool, "text": str}, {}
    for key, kind, count, low, high, default in rows("gguf_keys.md", "Ranges"):
        length = None if count == "1" else tuple(map(int, (count.split(" to ") * 2)[:2]))
        bounds = (value(low), value(high)) if low else (None, None)
        missing = dataclasses.MISSING if not default else default if kind == "text" else value(default)
        out[key.strip("`")] = (kinds[kind], length, *bounds, missing)
    return out


def test_ranges_are_those_of_the_documentation():
    code = {}
    for part in PARTS:
        for f in dataclasses.fields(part.type):
            m = f.metadata
            code[m["key"]] = (m["kind"], m["length"], m["low"], m["high"], f.default)
    assert code == known_ranges()


def at_its_limits(f):
    """(values that a field takes, values that it refuses), each beside the other."""
    kind, low, high, length = (f.metadata[k] for k in ("kind", "low", "high", "length"))
    if kind is str:
        return ["none"], [5, None]
    if kind is bool:
        return [True, False], [0, 1, None, "true"]
    if kind is int:
        good, bad = [low, high], [low - 1, high + 1, True, 1.0, None, "1"]
    else:
        good, bad = (
            [float(low), float(high), max(1, int(low)) if high >= 1 else high],
            [low - abs(low) / 8 - 1e-9, high * 1.125, True, None, float("nan")],
        )
    if length:
        counts = [n for n in (length[0] - 1, length[1] + 1) if n >= 0]
        bad = [(v,) * max(length[0], 1) for v in bad] + [good[0]] + [(good[0],) * n for n in counts]
        good = [(v,) * n for v in good for n in length]
    return good, bad


@pytest.mark.parametrize("f", [f for p in PARTS for f in dataclasses.fields(p.type)], ids=lambda f: f.metadata["key"])
def test_settings_at_their_limits(f):
    good, bad = at_its_limits(f)
    for v in good:
        config._check(v, f, "a file")
    for v in bad:
        with pytest.raises(ivlite.IvliteError, match="a file"):
            config._check(v, f, "a file")


def test_the_8b_model_is_that_of_the_documentation():
    text = {}
    for heading in ("Text", "Vision"):
        text |= {key.strip("`"): cell for key, _, cell, _ in rows("gguf_keys.md", heading)}
    made = synthetic.config("8b").to_metadata()
    for key, cell in text.items():
        got = made[f"internvideo3.{key}"]
        if "times" in cell:
            number, times = re.findall(r"\d+", cell)
            assert got == [int(number)] * int(times), key
        elif "," in cell:
            assert got == [int(n) for n in cell.split(",")], key
        else:
            assert got == value(cell), key


def test_tolerances_are_those_of_the_documentation():
    text = (DOCS / "numerics.md").read_text()
    head, stages, logits = (
        [cell.strip() for cell in re.search(rf"^\| {first} \|.*$", text, re.M)[0].strip("|").split("|")][1:]
        for first in ("weights", "vision stages", "logits")
    )
    limits = [[float(cell.split()[0]) for cell in line] for line in (stages, logits)]
    assert golden.LIMITS == dict(zip(head, zip(*limits, strict=True), strict=True))


def modules():
    for found in pkgutil.walk_packages(ivlite.__path__, "ivlite."):
        if not found.name.endswith(("__main__", "reference", "cuda_memory")):  # the last two need torch
            try:
                yield importlib.import_module(found.name)
            except ModuleNotFoundError as error:  # of an extra that is not installed
                if error.name.startswith("ivlite"):
                    raise


def test_values_are_frozen():
    for module in modules():
        for name in FROZEN:
            made = vars(module).get(name)
            assert made is None or made.__dataclass_params__.frozen, f"{module.__name__}.{name} can be changed"


# The types of the safetensors format and their sizes, as its documentation lists them.
SAFETENSORS = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4,
               "F32": 4, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip


def test_types_of_safetensors():
    from ivlite.quantize import safetensors

    assert safetensors.DTYPES == SAFETENSORS
