"""JSON schemas as llguidance is to read them: nothing that it reads wrongly, nothing that leads models to write without end."""

from collections.abc import Iterator
from typing import Any

from ivlite.errors import UsageError, shown

# JSON as json.dumps writes it: where any white space may stand between values, small models write it without end
COMPACT = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
# Where a JSON schema holds others: in a dict by name, in a list, as they are.
NAMED = ("properties", "patternProperties", "$defs", "definitions")
LISTED, SINGLE = ("allOf", "anyOf", "oneOf", "prefixItems"), ("items", "additionalProperties", "additionalItems")
OTHERS = ("$ref", "anyOf", "oneOf", "patternProperties", "unevaluatedProperties")  # what may allow more properties
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
LARGEST = 1 << 53  # of whole numbers that every program reads alike
OPTIONAL = 4000  # properties of one object that may be left out: what follows one is any of those after it, and 3,900 are read for 3.6 s
PART = 1024  # of an interval, by which a bound that is no part of it is moved into it


def readable(schema: dict[str, Any], close: bool = False) -> dict[str, Any]:
    """A JSON schema whose every value follows the given one. close: objects have the stated properties alone, unless the schema says
    otherwise or joins schemas. Raises UsageError for one that nests too deeply, and for what is no schema.
    """
    if not isinstance(schema, dict):
        raise UsageError(f"the JSON schema is {shown(schema)}; it must be a dict")
    try:
        return {**sized(known(schema, close and not joins(schema))), **COMPACT}
    except RecursionError:
        raise UsageError("the JSON schema nests too deeply") from None


def held(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas that a JSON schema holds."""
    for key in NAMED:
        yield from schema[key].values() if isinstance(schema.get(key), dict) else ()
    for key in LISTED:
        yield from schema[key] if isinstance(schema.get(key), list) else ()
    yield from (schema[key] for key in SINGLE if key in schema)


def joins(schema: Any) -> bool:
    """Whether the properties of an object are stated in several schemas, here or in one that this holds."""
    if not isinstance(schema, dict):
        return False
    apart = any(key in schema for key in ("$ref", "anyOf", "oneOf")) and (
        "properties" in schema or "required" in schema
    )
    return apart or "allOf" in schema or any(map(joins, held(schema)))


def known(schema: Any, close: bool) -> Any:
    """A JSON schema without formats that are not of JSON schema, which mean nothing, and with other bounds where it matters."""
    if not isinstance(schema, dict):
        return schema
    out = {key: value for key, value in schema.items() if key != "format" or value in FORMATS}
    for key in NAMED:
        if isinstance(schema.get(key), dict):
            out[key] = {name: known(inner, close) for name, inner in schema[key].items()}
    for key in LISTED:
        if isinstance(schema.get(key), list):
            out[key] = [known(inner, close) for inner in schema[key]]
    out |= {key: known(schema[key], close) for key in SINGLE if key in schema}
    named, wanted = schema.get("properties"), schema.get("required")
    if isinstance(named, dict):
        needed = {name for name in wanted if isinstance(name, str)} if isinstance(wanted, list) else set()
        left = len(named.keys() - needed)
        if left > OPTIONAL:
            raise UsageError(
                f'the JSON schema has an object with {left:,} properties that are not "required"; {OPTIONAL:,} are the most'
            )
    if close and isinstance(schema.get("properties"), dict) and not any(key in schema for key in OTHERS):
        out.setdefault("additionalProperties", False)
    if schema.get("type") != "integer":
        bounds(out)
    return out


def sized(value: Any, literal: bool = False, named: bool = False) -> Any:
    """A schema, or a part of one, whose numbers llguidance reads as they are: whole numbers beyond LARGEST are rounded, and
    -9223372036854775807 ends the process. Bounds that are wider are made narrower: what follows them follows the given ones.

    literal: of const and enum. named: a dict of schemas by name, whose keys mean nothing. Raises UsageError.
    """
    if isinstance(value, list):
        return [sized(item, literal) for item in value]
    if literal and isinstance(value, int) and abs(value) > LARGEST:
        raise UsageError(f"the JSON schema has the number {shown(value, 40)}, which is beyond 2^53: give it as a text")
    if not isinstance(value, dict):
        return value
    plain = literal or named
    out = {
        key: sized(item, literal or (not named and key in ("const", "enum")), not plain and key in NAMED)
        for key, item in value.items()
    }
    for name in () if plain else BOUNDS:
        bound, over = out.get(name), name.endswith("aximum")
        if isinstance(bound, int | float) and abs(bound) > LARGEST:
            if (bound > 0) != over:
                raise UsageError(f"the JSON schema has {name} {shown(bound, 40)}, which is beyond 2^53")
            out[name] = LARGEST if over else -LARGEST
    return out


def bounds(schema: dict[str, Any]) -> None:
    """Moves bounds of a number that llguidance does not keep: it takes 6 for a number above 6 and below 6.5.

    So it does wherever a whole number that is left out is less than 1 from the other bound.
    """
    given: dict[str, float] = {}
    for name in BOUNDS:
        value = schema.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 50:
            given[name] = value
    low = max((value for name, value in given.items() if name.endswith("inimum")), default=None)
    high = min((value for name, value in given.items() if name.endswith("aximum")), default=None)
    if low is None or high is None or not 0 < high - low < 1:
        return
    for name, bound, other in (("exclusiveMinimum", low, high), ("exclusiveMaximum", high, low)):
        if given.get(name) == bound and bound == int(bound):
            del schema[name]
            schema[name.removeprefix("exclusive").lower()] = bound + (other - bound) / PART
