"""Parses untrusted JSON: objects only, without repeated keys, in memory of at most a few times the text."""

import json

from ivlite.errors import ModelFileError

AGAIN = "download it again"
# Values in one text: each takes up to 100 bytes of memory, however short it is. The largest tokenizers (262,144 tokens
# and 580,000 merges of two) have 2 million, the largest safetensors headers one million.
VALUES_LIMIT = 1 << 22


def parse(text, path, again=AGAIN):
    """A JSON object as a dict. Raises ModelFileError for anything else, and for repeated keys."""
    if sum(map(text.count, "[{,")) > VALUES_LIMIT:  # counts commas within strings as well, which are few
        raise ModelFileError(f"{path} holds more than {VALUES_LIMIT:,} values: it is no file of a model; {again}")
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelFileError(f"{path} is not valid JSON ({reason:.100}); {again}") from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} is not a JSON object; {again}")
    return value


def _once(pairs):
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key appears twice")
    return out
