"""Reads recipes from TOML or JSON files, and stores them as JSON in the metadata of model files."""

import json
import tomllib
from pathlib import Path

from ivlite.errors import UsageError
from ivlite.files import expanded, opened, reason
from ivlite.quantize.recipes import Recipe, Row, made_of, named, row

KEYS = {"name", "base", "file_type", "rows"}
LIMIT = 1 << 20  # bytes
ROWS = 4096  # a row for each tensor of the largest known models, four times


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
    if not _plain(rows) or not (rows or base):
        raise UsageError(f"the recipe {path} needs rows of three texts, as in ['ffn_down', 'first 4', 'q6_k']")
    if len(rows) > ROWS:
        raise UsageError(f"the recipe {path} has {len(rows):,} rows; write at most {ROWS:,}")
    if not isinstance(name, str) or len(name) > 200:
        raise UsageError(f"the recipe {path} has the name {name!r:.40}; it is a text of up to 200 characters")
    rows = tuple(row(*texts) for texts in rows)
    number = data.get("file_type", base.file_type if base else None)
    if number is not None and (type(number) is not int or not 0 <= number < 1 << 32):
        raise UsageError(f"the recipe {path} has file_type {number!r:.40}; it is a whole number")
    return Recipe(name, rows + (base.rows if base else ()), number, own=len(rows))


def _plain(rows):
    """Whether rows are a list of lists of three texts."""
    return isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 3 and all(isinstance(text, str) for text in row) for row in rows
    )


def text(recipe, choices=()):
    """A Recipe as one line of JSON, for the metadata of a model file; unless it is a type's table, with the notes of Choices."""
    data = {"name": recipe.name, "rows": [[row.pattern, row.layers, row.format] for row in recipe.rows]}
    if made_of(recipe.name, recipe.rows) is None:
        data["notes"] = {choice.spec.gguf: choice.note for choice in choices if choice.note}
    return json.dumps(data)


def from_text(line):
    """(Recipe, notes by tensors) of a line written by `text`, None in place of notes that it lacks; None for any other value.

    A model file is not trusted: its patterns may take forever, so they are not even compiled, and never to be searched.
    """
    try:
        data = json.loads(line) if isinstance(line, str) and len(line) <= LIMIT else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str) or not _plain(data.get("rows")):
        return None
    notes = data.get("notes") if isinstance(data.get("notes"), dict) else None
    return Recipe(data["name"][:200], tuple(Row(*texts) for texts in data["rows"])), notes
