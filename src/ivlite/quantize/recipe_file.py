"""Reads recipes from TOML or JSON files, and stores them as JSON in the metadata of model files."""

import json
import tomllib
from pathlib import Path

from ivlite.errors import UsageError
from ivlite.files import expanded, opened, reason
from ivlite.quantize.recipes import Recipe, named, row

KEYS = {"name", "base", "file_type", "rows"}
LIMIT = 1 << 20  # bytes


def read(path):
    """The Recipe in a .toml or .json file: name, rows, and a `base` type whose rows follow them.

    Raises UsageError for a file that cannot be read or is not a recipe.
    """
    path = Path(expanded(path))
    try:
        with opened(path) as file:
            text = file.read(LIMIT + 1).decode("utf-8-sig")
        data = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise UsageError(f"the recipe {path} is not {kind} ({error!s:.100}); correct it") from None
    return parsed(data, path, path.stem)


def parsed(data, path, name):
    """The Recipe in parsed TOML or JSON; `path` names it in errors."""
    strange = sorted(set(data) - KEYS) if isinstance(data, dict) else None
    if strange is None or strange:
        raise UsageError(f"the recipe {path} {f'has the key {strange[0]!r:.40}' if strange else 'is no table'}; "
                         f"a recipe has {', '.join(sorted(KEYS))}")  # fmt: skip
    base = named(data["base"]) if "base" in data else None
    name = data.get("name", name)
    rows = data.get("rows", [])
    plain = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row) for row in rows
    )
    if not plain or not (rows or base):
        raise UsageError(f"the recipe {path} needs rows of three texts, as in ['ffn_down', 'first 4', 'q6_k']")
    if not isinstance(name, str) or len(name) > 200:
        raise UsageError(f"the recipe {path} has the name {name!r:.40}; it is a text of up to 200 characters")
    rows = tuple(row(*texts) for texts in rows)
    number = data.get("file_type", base.file_type if base else None)
    if number is not None and (type(number) is not int or not 0 <= number < 1 << 32):
        raise UsageError(f"the recipe {path} has file_type {number!r:.40}; it is a whole number")
    return Recipe(name, rows + (base.rows if base else ()), number, own=len(rows))


def text(recipe):
    """A Recipe as one line of JSON, for the metadata of a model file."""
    rows = [[row.pattern, row.layers, row.format] for row in recipe.rows]
    return json.dumps({"name": recipe.name, "rows": rows})


def from_text(line):
    """The Recipe of a line written by `text`. Raises UsageError."""
    try:
        return parsed(json.loads(line), "in the model file", "")
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"the recipe in the model file is damaged ({error!s:.100})") from None
