"""Which format each tensor gets. A recipe is a table that a person can read; adding a type is one entry of TYPES.

A row is (pattern, layers, format), and the first row that fits a tensor decides. The pattern is a regular expression
that is searched in the tensor's GGUF name; layers says in which decoder layers or vision blocks the row holds:

    all                            everywhere, and in tensors that are in no layer
    first 4, last 1/8, every 3     any of these: the first four, the last eighth (one at least), every third
    0-3, 17                        numbers from 0 on
"""

import math
import re
from dataclasses import dataclass, replace

from ivlite.errors import UsageError

# What quantize writes, the best first, and the number that GGUF gives a file made mostly of it in general.file_type.
WRITTEN = {"f32": 0, "bf16": 32, "f16": 1, "q8_0": 7, "q6_k": 18, "q5_k": 17, "q4_k": 15, "q4_0": 2}
FLOATS = ("f32", "bf16", "f16")
SEARCHING = ("q6_k", "q5_k", "q4_k", "q4_0")  # their encoders weigh errors by the importance of a column
MOST_PADDING = 0.02  # of a row: 4304 columns become 4320, and 896 do not become 1024
NEXT_BETTER = ("q8_0", "bf16")  # for rows that a format's blocks do not divide


@dataclass(frozen=True)
class Row:
    """One line of a recipe."""

    pattern: str
    layers: str
    format: str


@dataclass(frozen=True)
class Recipe:
    """rows: the table. file_type: general.file_type, as llama.cpp numbers it; None for that of most weights.

    own: how many of the first rows a person wrote, each of which must fit a tensor.
    """

    name: str
    rows: tuple[Row, ...]
    file_type: int | None = None
    help: str = ""
    own: int = 0


@dataclass(frozen=True)
class Choice:
    """What becomes of one tensor: format, stored shape, and where that is not the row's word for word, a note."""

    spec: object
    format: str
    shape: tuple[int, ...]
    note: str = ""


# ------------------------------------------------------------------------------------------------ the tables

EDGES = "first 1/8, last 1/8"
MORE = (
    "first 1/8, last 1/8, every 3"  # nearly half of the layers: where Q4_K_M and Q5_K_M of llama.cpp spend bits as well
)


def _table(name, file_type, help, *rows):
    return Recipe(name, tuple(Row(*row) for row in rows), file_type, help)


# The latent projections multiply each other, and the first one's output is what the cache keeps: q8_0 throughout. The
# tower takes little space and text in pictures breaks first: q8_0 as well. The head decides between near-equal tokens.
DELICATE = (("attn_kv_[ab]", "all", "q8_0"), (r"^v\.", "all", "q8_0"))
TABLES = (r"^(token_embd|output)\.", "all")

TYPES = {
    recipe.name: recipe
    for recipe in (
        _table("f32", 0, "as exact as the checkpoint, 4 bytes per weight", (".", "all", "f32")),
        _table("f16", 1, "2 bytes per weight; refuses weights beyond 65504", (".", "all", "f16")),
        _table("bf16", 32, "the checkpoint's own precision, 2 bytes per weight", (".", "all", "bf16")),
        _table("q8_0", 7, "hardly distinguishable from bf16", (".", "all", "q8_0")),
        _table(
            "q6_k", 18, "close to q8_0 at three quarters of its size",
            *DELICATE,
            (".", "all", "q6_k"),
        ),
        _table(
            "q5_k_m", 17, "between q6_k and q4_k_m",
            *DELICATE,
            (*TABLES, "q6_k"),
            ("ffn_down", MORE, "q6_k"),
            ("attn_output", EDGES, "q6_k"),
            (r"^blk\.", "first 1, last 1", "q6_k"),
            (".", "all", "q5_k"),
        ),
        _table(
            "q4_k_m", 15, "the smallest loss at some 5 bits per weight",
            *DELICATE,
            (*TABLES, "q6_k"),
            ("ffn_down", MORE, "q6_k"),
            ("attn_output", EDGES, "q6_k"),
            ("attn_output", "all", "q5_k"),
            (r"^blk\.", "first 1, last 1", "q5_k"),
            (".", "all", "q4_k"),
        ),
        _table(
            "q4_k_s", 14, "smaller than q4_k_m, with a little more loss",
            *DELICATE,
            (*TABLES, "q6_k"),
            ("ffn_down|attn_output", EDGES, "q5_k"),
            (".", "all", "q4_k"),
        ),
        _table(
            "q4_0", 2, "4.5 bits per weight in the decoder, 8.5 elsewhere",
            *DELICATE,
            (*TABLES, "q8_0"),
            (".", "all", "q4_0"),
        ),
    )
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ making one


def named(type):
    """The Recipe of a --type. Raises UsageError for a name that TYPES has not."""
    found = TYPES.get(type.lower()) if isinstance(type, str) else None
    if found is None:
        raise UsageError(f"there is no type {type!r:.40}; there are {', '.join(TYPES)}")
    return found


def adjusted(recipe, tensor_types=(), vision=None):
    """A Recipe with rows before its own: one for each "REGEX=TYPE" in order, then `vision` for the whole tower."""
    rows = [_override(text) for text in tensor_types]
    rows += [row(r"^v\.", "all", vision)] if vision else []
    return replace(recipe, rows=(*rows, *recipe.rows), own=len(rows) + recipe.own) if rows else recipe


def _override(text):
    pattern, found, fmt = text.rpartition("=")
    if not found or not pattern:
        raise UsageError(f"--tensor-type {text!r:.80} is not REGEX=TYPE, as in 'ffn_down=q6_k'")
    return row(pattern, "all", fmt)


def row(pattern, layers, fmt):
    """The Row that somebody wrote, formats in upper or lower case. Raises UsageError for one no tensor could follow."""
    if fmt.lower() not in WRITTEN:
        raise UsageError(f"there is no format {fmt!r:.40} for tensors; there are {', '.join(WRITTEN)}")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{pattern!r:.80} is not a regular expression: {error!s:.100}") from None
    _layers(layers, 1)
    return Row(pattern, layers, fmt.lower())


def check_used(specs, rows):
    """Raises UsageError for a row that fits none of the tensors that can have a format: a typing error, most likely."""
    names = [spec.gguf for spec in specs if spec.kind != "vector"]
    for row in rows:
        if not any(re.search(row.pattern, name) for name in names):
            raise UsageError(
                f"the rule {row.pattern!r:.80} = {row.format} fits no tensor of this model; --dry-run shows their names"
            )


def _layers(text, count):
    """The numbers below `count` that a row's layers name, as a set; None for all."""
    if text == "all":
        return None
    out = set()
    for term in text.split(","):
        some = re.fullmatch(r"\s*(?:(first|last|every) (\d+)(?:/([1-9]\d*))?|(\d+)(?:-(\d+))?)\s*", term)
        if not some or len(term) > 40 or (some[1] == "every" and (some[3] or int(some[2]) == 0)):
            raise UsageError(f"layers {text!r:.80} are none of: all, first 4, last 1/8, every 3, 0-3")
        out |= set(_term(some, count))
    return out


def _term(match, count):
    word, n, share, low, high = match.groups()
    if word == "every":
        return range(int(n) - 1, count, int(n))
    if word:
        n = max(1, count * int(n) // int(share)) if share else int(n)
        return range(min(n, count)) if word == "first" else range(max(0, count - n), count)
    return range(int(low), min(int(high or low) + 1, count))


# ------------------------------------------------------------------------------------------------ following one


def plan(specs, recipe):
    """A Choice for every TensorSpec, in their order. Raises UsageError for a tensor that no row fits."""
    places = [_place(spec.gguf) for spec in specs]
    counts = {}
    for stack, layer in places:
        if stack:
            counts[stack] = max(counts.get(stack, 0), layer + 1)
    return [_choose(spec, _format(spec, place, counts, recipe)) for spec, place in zip(specs, places, strict=True)]


def _place(name):
    """("blk" or "v.blk", layer) of a tensor's name; (None, 0) of one that is in no layer."""
    found = re.match(r"((?:v\.)?blk)\.(\d+)\.", name)
    return (found[1], int(found[2])) if found else (None, 0)


def _format(spec, place, counts, recipe):
    """The format of the first row that fits."""
    if spec.kind == "vector":
        return "f32"
    stack, layer = place
    for row in recipe.rows:
        if re.search(row.pattern, spec.gguf):
            layers = _layers(row.layers, counts[stack] if stack else 0)
            if layers is None or (stack and layer in layers):
                return row.format
    raise UsageError(f"the recipe {recipe.name!r:.60} has no row for {spec.gguf}; end it with ['.', 'all', 'q8_0']")


def _choose(spec, wanted):
    """The wanted format where the tensor can have it, else the next better one; rows padded to whole blocks."""
    columns = spec.shape[-1]
    if spec.kind == "float_matrix" and wanted not in FLOATS:
        return Choice(spec, "bf16", spec.shape, "kept in floats")
    for fmt in (wanted, *NEXT_BETTER):
        stored = -(-columns // block(fmt)) * block(fmt)
        if stored <= columns * (1 + MOST_PADDING):
            notes = [f"promoted from {wanted}: rows of {columns}"] if fmt != wanted else []
            notes += [f"padded from {columns}"] if stored != columns else []
            return Choice(spec, fmt, (*spec.shape[:-1], stored), ", ".join(notes))
    raise AssertionError(f"bf16 fits every row, and {spec} got nothing")


def block(fmt):
    """Weights in a block of a format."""
    from ivlite.gguf import FORMATS  # here, because --help reads TYPES and must not wait for numpy

    return FORMATS[fmt].block


def file_type(recipe, choices):
    """general.file_type: the recipe's own, else that of the format that most weights have."""
    if recipe.file_type is not None:
        return recipe.file_type
    sizes = {}
    for choice in choices:
        sizes[choice.format] = sizes.get(choice.format, 0) + math.prod(choice.shape)
    return WRITTEN[max(sizes, key=sizes.get)]
