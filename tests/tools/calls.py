"""Samples answers with tools at temperature 1 from a model of random weights, and checks every call. Prints a line for each thousand.

python tests/tools/calls.py 10000          # how many answers; the suite takes fewer
"""

import json
import re
import sys
from collections import Counter

import numpy as np

import ivlite
from ivlite.evaluate.synthetic import random_model

WORDS = [
    "a",
    "b c",
    'say "no"',
    "naïve",
    "日本",
    "<tool_call>",
    "</tool_call>",
    "back\\slash",
    "line\nbreak",
    "x" * 500,
    "$ref",
]
PATTERNS = ["[a-c]{2,4}", r"^v\d+$", "^(left|right) at [0-9]{1,2} s$"]
SPAN = {
    "type": "object",
    "properties": {"start": {"type": "number"}, "end": {"type": "number"}},
    "required": ["start", "end"],
}


def leaf(rng):
    """A random JSON schema of a simple value."""
    low = int(rng.integers(-50, 50))
    return [
        {"type": "string", "maxLength": int(rng.integers(1, 30))},
        {"type": "string", "minLength": 2, "maxLength": 8},
        {"type": "string", "pattern": PATTERNS[rng.integers(len(PATTERNS))]},
        {"type": "integer"}, {"type": "integer", "minimum": low, "maximum": low + int(rng.integers(0, 2000))},
        {"type": "number"}, {"type": "number", "exclusiveMinimum": low, "maximum": low + 0.75},
        {"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"], "maxLength": 9}, {"const": {"k": [1, None, "é"]}},
        {"enum": [*rng.choice(WORDS, 3).tolist(), 3, None]}, {"$ref": "#/$defs/span"}, {"type": "string", "format": "date"},
    ][rng.integers(14)]  # fmt: skip


def value(rng, depth):
    """A random JSON schema, nested up to `depth` levels."""
    kind = rng.integers(6) if depth else 5
    if kind == 0:
        return {"type": "array", "items": value(rng, depth - 1), "minItems": int(rng.integers(3)), "maxItems": 3}
    if kind == 1:
        return {"anyOf": [value(rng, depth - 1), value(rng, depth - 1)]}
    return members(rng, depth - 1) if kind == 2 else leaf(rng)


def members(rng, depth):
    """A random JSON schema of an object."""
    names = rng.choice(WORDS, rng.integers(0, 5), replace=False).tolist()
    required = [name for name in names if rng.random() < 0.6]
    return {"type": "object", "properties": {name: value(rng, depth) for name in names}, "required": required}


def tool(rng, number):
    """A random tool, in the form of one client or another."""
    name = f"{WORDS[rng.integers(len(WORDS))]}_{number}"
    schema = members(rng, int(rng.integers(3))) | {"$defs": {"span": SPAN}}
    if rng.random() < 0.5:
        return {"type": "function", "function": {"name": name, "description": "It does.", "parameters": schema}}
    return {"name": name, "input_schema": schema}


TYPES = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


def typed(data, name):
    if name in ("integer", "number"):
        return isinstance(data, int if name == "integer" else int | float) and not isinstance(data, bool)
    return isinstance(data, TYPES[name])


def same(a, b):
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def matches(data, schema, root):
    """Whether JSON data follows a schema of the kinds above."""
    s = root["$defs"]["span"] if "$ref" in schema else schema
    kinds = [s["type"]] if isinstance(s.get("type"), str) else s.get("type", [])
    good = not kinds or any(typed(data, kind) for kind in kinds)
    good = good and ("anyOf" not in s or any(matches(data, one, root) for one in s["anyOf"]))
    good = good and ("enum" not in s or any(same(data, one) for one in s["enum"]))
    good = good and ("const" not in s or same(data, s["const"]))
    if isinstance(data, str):
        good = good and s.get("minLength", 0) <= len(data) <= s.get("maxLength", 1 << 60)
        good = good and ("pattern" not in s or re.search(s["pattern"], data) is not None)
        return good and (s.get("format") != "date" or re.fullmatch(r"\d{4}-\d\d-\d\d", data) is not None)
    if isinstance(data, int | float) and not isinstance(data, bool):
        return (
            good
            and s.get("minimum", data) <= data <= s.get("maximum", data)
            and data > s.get("exclusiveMinimum", -1e999)
        )
    if isinstance(data, list):
        good = good and s.get("minItems", 0) <= len(data) <= s.get("maxItems", 1 << 60)
        return good and all(matches(item, s.get("items", {}), root) for item in data)
    if isinstance(data, dict) and "properties" in s:
        good = good and set(s["required"]) <= set(data) <= set(s["properties"])
        return good and all(matches(item, s["properties"][name], root) for name, item in data.items())
    return good


def finite(text):
    """A float of a JSON number: one beyond the range, as 9E999, is the largest."""
    return max(-sys.float_info.max, min(float(text), sys.float_info.max))


def blocks(said):
    """The JSON of each whole block of a call in what was said, read from its first character to its last."""
    decoder, at = json.JSONDecoder(parse_float=finite), said.find('<tool_call>\n{"name": ')
    while at >= 0:
        try:
            data, end = decoder.raw_decode(said, at + len("<tool_call>\n"))
        except ValueError:  # cut short
            return
        if not said.startswith("\n</tool_call>", end):
            return
        yield data
        end += len("\n</tool_call>")
        at = next((end + n for n in (0, 1) if said.startswith("<tool_call>", end + n)), -1)
        assert at >= 0 or said[end:] in ("", "\n")


def check(model, reply, tools, choice, parallel):
    """Raises AssertionError for an answer that is not what was asked for."""
    schemas = {}
    for one in tools:
        inner = one.get("function", one)
        schemas[inner["name"]] = inner.get("parameters", inner.get("input_schema"))
    if isinstance(choice, dict):
        schemas = {choice["function"]["name"]: schemas[choice["function"]["name"]]}
    for call in reply.tool_calls:
        assert json.loads(call.text) == call.arguments
        assert matches(call.arguments, schemas[call.name], schemas[call.name]), (call, schemas[call.name])
    called = reply.finish_reason == "tool_calls"
    assert reply.finish_reason in ("stop", "tool_calls", "length") and called <= bool(reply.tool_calls)
    assert not called or (not reply.unfinished and (parallel or len(reply.tool_calls) == 1))
    assert len({call.id for call in reply.tool_calls}) == len(reply.tool_calls)
    if choice not in ("auto", "none"):
        assert reply.text == "" and reply.finish_reason != "stop"
    assert choice != "none" or not (reply.tool_calls or reply.unfinished)
    # The tokens say the same, read in another way: text, and blocks that are JSON.
    said = model.tokenizer.decode(reply.token_ids).partition("</think>")[2] if reply.thinking else None
    said = model.tokenizer.decode(reply.token_ids) if said is None else said
    read = list(blocks(said))
    assert [(c["name"], c["arguments"]) for c in read] == [(c.name, c.arguments) for c in reply.tool_calls], said


def answers(count, seed=0, tokens=100):
    """Samples so many answers and checks each; returns a Counter of how they ended, and of calls."""
    rng, seen = np.random.default_rng(seed), Counter()
    with (
        ivlite.load("demo") as demo,
        random_model("demo", "q8_0", context=32768, seed=seed, threads=1, tokenizer=demo.tokenizer) as model,
    ):
        for number in range(count):
            if number % 20 == 0:
                tools = [tool(rng, n) for n in range(rng.integers(1, 6))]
                names = [one.get("function", one)["name"] for one in tools]
            named = {"type": "function", "function": {"name": names[rng.integers(len(names))]}}
            choice = ["required", "required", "required", "auto", "none", named][rng.integers(6)]
            parallel, thinks = bool(rng.random() < 0.7), bool(rng.random() < 0.3)
            reply = model.chat(
                [{"role": "user", "content": f"Question {number % 20}"}], tools=tools, tool_choice=choice, parallel_tool_calls=parallel,
                temperature=1.0, top_p=1.0, top_k=0, seed=number, max_new_tokens=tokens, enable_thinking=thinks,
                thinking_budget=int(rng.integers(12)) if thinks else None,
            )  # fmt: skip
            check(model, reply, tools, choice, parallel)
            seen[reply.finish_reason] += 1
            seen["calls"] += len(reply.tool_calls)
            seen["tokens"] += len(reply.token_ids)
            if (number + 1) % 1000 == 0:
                print(f"{number + 1:,} answers: {dict(seen)}", flush=True)
    return seen


if __name__ == "__main__":
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    found = answers(total)
    print(
        f"{total:,} answers at temperature 1: every one of {found['calls']:,} calls parses and matches its schema; {dict(found)}"
    )
