"""Quantization recipes: tables that choose the format of each tensor. A new type is one entry of TYPES.

A row is (pattern, layers, format); the first row that matches a tensor applies. The pattern is a regular expression,
searched in the tensor's GGUF name. layers limits the row to some decoder layers or vision blocks:

    all                            all layers, and tensors outside layers
    first 4, last 1/8, every 3     any of these: the first four, the last eighth (at least one), every third
    0-3, 17                        indexes, from 0
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ivlite.errors import UsageError, shown
from ivlite.stop import checkpoint

# The target formats, best first, with GGUF's general.file_type for files that consist mostly of one.
WRITTEN = {"f32": 0, "bf16": 32, "f16": 1, "q8_0": 7, "q6_k": 18, "q5_k": 17, "q4_k": 15, "q4_0": 2}
FLOATS = ("f32", "bf16", "f16")
SEARCHING = ("q6_k", "q5_k", "q4_k", "q4_0")  # their quantizers minimize errors weighted by column importance
MOST_PADDING = 0.02  # of a row: 4304 columns are padded to 4320, but not 896 to 1024
NEXT_BETTER = ("q8_0", "bf16")  # fallbacks for rows that are not whole blocks of a format


@dataclass(frozen=True)
class Row:
    """One line of a recipe."""

    pattern: str
    layers: str
    format: str


@dataclass(frozen=True)
class Recipe:
    """rows: the table. file_type: general.file_type as in llama.cpp; None for that of most weights.

    own: the number of rows at the beginning that the user wrote; each must match a tensor.
    """

    name: str
    rows: tuple[Row, ...]
    file_type: int | None = None
    help: str = ""
    own: int = 0


@dataclass(frozen=True)
class Choice:
    """The decision for one tensor: format, stored shape, and a note if they differ from the row."""

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


# The latent projections multiply each other, and the cache stores the output of the first: always q8_0. The vision tower
# is small, and reading text in pictures suffers first: q8_0, too. The head decides between nearly equal tokens.
TOWER = r"^v\."
DELICATE = (("attn_kv_[ab]", "all", "q8_0"), (TOWER, "all", "q8_0"))
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
    """The Recipe of a --type. Raises UsageError for an unknown name."""
    found = TYPES.get(type.lower()) if isinstance(type, str) else None
    if found is None:
        raise UsageError(f"there is no type {shown(type, 40)}; there are {', '.join(TYPES)}")
    return found


def adjusted(recipe, tensor_types=(), vision=None):
    """A Recipe with further rows before its own: one per "REGEX=TYPE" in order, then `vision` for the whole tower."""
    rows = [_override(text) for text in tensor_types]
    rows += [row(TOWER, "all", vision)] if vision not in (None, "") else []
    return replace(recipe, rows=(*rows, *recipe.rows), own=len(rows) + recipe.own) if rows else recipe


def made_of(name, rows):
    """The Recipe of the type `name`, of any format for the vision tower, that has these rows; None if there is none."""
    base = TYPES.get(name)
    made = [adjusted(base, (), vision) for vision in (None, *WRITTEN)] if base else []
    return next((recipe for recipe in made if recipe.rows == rows), None)


def listed_types(given):
    """The "REGEX=FORMAT" texts of one or of several, as a tuple. Raises UsageError for anything else."""
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise UsageError(f"tensor_types has {shown(wrong[0])}; they are texts, as 'ffn_down=q6_k'")
    return texts


def _override(text):
    pattern, found, fmt = text.rpartition("=")
    if not found or not pattern:
        raise UsageError(f"--tensor-type {text!r:.80} is not REGEX=TYPE, as in 'ffn_down=q6_k'")
    return row(pattern, "all", fmt)


def row(pattern, layers, fmt):
    """A Row from user input, formats in upper or lower case. Raises UsageError for an invalid one."""
    if not isinstance(fmt, str) or fmt.lower() not in WRITTEN:
        raise UsageError(f"there is no format {shown(fmt, 40)} for tensors; there are {', '.join(WRITTEN)}")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"{pattern!r:.80} is not a regular expression: {error!s:.100}") from None
    _layers(layers, 1)
    return Row(pattern, layers, fmt.lower())


def check_used(specs, rows):
    """Raises UsageError for a row that selects no tensor with a choice of format: most likely a typing error."""
    names = [spec.gguf for spec in specs if spec.kind != "vector"]
    counts = _counts(specs)
    for row in rows:
        checkpoint()
        search = re.compile(row.pattern).search
        fitting = [name for name in names if search(name)]
        if not fitting:
            raise UsageError(
                f"the rule {row.pattern!r:.80} = {row.format} fits no tensor of this model; --dry-run shows their names"
            )
        chosen = {stack: _layers(row.layers, count) for stack, count in counts.items()}
        if row.layers != "all" and not any(layer in chosen.get(stack, ()) for stack, layer in map(_place, fitting)):
            raise UsageError(
                f"the rule {row.pattern!r:.80} = {row.format} names the layers {row.layers!r:.80}, and none of the tensors "
                f"that it fits is in one; layers count from 0, and --dry-run shows them"
            )


def _layers(text, count):
    """The indexes below `count` of a row's layers, as a set; None for all."""
    if text == "all":
        return None
    out = set()
    for term in text.split(","):
        some = re.fullmatch(r"\s*(?:(first|last|every) (\d+)(?:/([1-9]\d*))?|(\d+)(?:-(\d+))?)\s*", term)
        if not some or len(term) > 40 or (some[1] == "every" and (some[3] or int(some[2]) == 0)) or _reversed(some):
            raise UsageError(f"layers {text!r:.80} are none of: all, first 4, last 1/8, every 3, 0-3")
        out |= set(_term(some, count))
    return out


def _reversed(match):
    return match[5] is not None and int(match[5]) < int(match[4])


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
    """A Choice for every TensorSpec, in their order. Raises UsageError for a tensor that no row matches."""
    formats = _Formats(specs, recipe)
    return [_choose(spec, formats.of(spec)) for spec in specs]


def _counts(specs):
    """{stack: number of its layers}."""
    counts = {}
    for stack, layer in (_place(spec.gguf) for spec in specs):
        if stack:
            counts[stack] = max(counts.get(stack, 0), layer + 1)
    return counts


def _place(name):
    """("blk" or "v.blk", layer) of a tensor's name; (None, 0) outside layers."""
    found = re.match(r"((?:v\.)?blk)\.(\d+)\.", name)
    return (found[1], int(found[2])) if found else (None, 0)


class _Formats:
    """The formats that a recipe gives to tensors; patterns and layers of its rows are read once."""

    def __init__(self, specs, recipe):
        self.recipe, counts = recipe, _counts(specs)
        self.rows = [
            (
                re.compile(row.pattern).search,
                {stack: _layers(row.layers, count) for stack, count in counts.items()},
                row,
            )
            for row in recipe.rows
        ]

    def of(self, spec):
        """The format of the first row that matches."""
        checkpoint()
        if spec.kind == "vector":
            return "f32"
        stack, layer = _place(spec.gguf)
        for search, layers, row in self.rows:
            if (row.layers == "all" or (stack and layer in layers[stack])) and search(spec.gguf):
                return row.format
        raise UsageError(
            f"the recipe {self.recipe.name!r:.60} has no row for {spec.gguf}; end it with ['.', 'all', 'q8_0']"
        )


def _choose(spec, wanted):
    """The wanted format if the tensor can have it, else the next better one; pads rows to whole blocks."""
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
    """Weights per block of a format."""
    from ivlite.gguf import FORMATS  # imports numpy, which --help does not need

    return FORMATS[fmt].block


def file_type(recipe, choices):
    """general.file_type: that of the recipe, else that of the format of most weights."""
    if recipe.file_type is not None:
        return recipe.file_type
    sizes = {}
    for choice in choices:
        sizes[choice.format] = sizes.get(choice.format, 0) + math.prod(choice.shape)
    return WRITTEN[max(sizes, key=sizes.get)]
