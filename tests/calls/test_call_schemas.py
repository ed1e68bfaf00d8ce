"""JSON schemas of tools: hard ones are followed, hostile ones are refused in a sentence."""

import json
import threading

import numpy as np
import pytest
from call_tools import ASK, TOOLS, ZOOM, of, rules

import ivlite
from ivlite.engine import grammar as grammars
from ivlite.engine.grammar import Constrained, Vocabulary
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import UsageError
from ivlite.stop import using


def chain(links, link):
    """A JSON schema of so many references, each of which leads to the next."""
    named = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(links)}
    return {
        "properties": {"x": {"$ref": "#/$defs/d0"}},
        "required": ["x"],
        "$defs": named | {f"d{links}": {"type": "null"}},
    }


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


HOSTILE = {
    "loop": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "inner loop": of(x={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "endless": {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    "nested 120": nested(120), "nested 900": nested(900), "long chain": chain(8000, lambda ref: {"items": ref}),
    "no such reference": of(x={"$ref": "#/$defs/none"}), "web": of(x={"$ref": "http://example.org/s"}), "file": of(x={"$ref": "file:///etc/passwd"}),
    "too many": of(**{f"p{i}": {"type": "string"} for i in range(30000)}), "pattern": of(x={"type": "string", "pattern": "("}),
    "look-ahead": of(x={"type": "string", "pattern": "(?=a)b"}), "unsatisfiable": of(x={"type": "integer", "minimum": 5, "maximum": 2}),
    "no value": of(x={"enum": []}), "properties": {"type": "object", "properties": 3}, "required": {"type": "object", "required": 3},
    "type": of(x={"type": "strnig"}), "large number": of(x={"type": "integer", "minimum": 10**400}),
    "large constant": of(x={"const": 10**400}), "not": of(x={"not": {"type": "string"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_schemas_that_no_arguments_can_follow_are_refused_in_one_sentence(vocabulary, kind):
    with pytest.raises(UsageError) as refused:
        vocabulary.following(rules(ZOOM, {"name": "bad", "parameters": HOSTILE[kind]}, tool_choice="required"))
    assert len(str(refused.value)) <= 500 and "\n" not in str(refused.value)
    assert "'bad'" in str(refused.value) or kind == "nested 900"


HARD = {
    "chain": chain(1000, lambda ref: ref), "arrays": chain(3000, lambda ref: {"type": "array", "items": ref, "maxItems": 1}),
    "objects": chain(900, lambda ref: {"type": "object", "properties": {"a": ref}}), "nested": nested(40),
    "enum": of(x={"enum": [f"value {i}" for i in range(20000)]}), "pattern": of(x={"type": "string", "pattern": "^(a+)+$", "maxLength": 4}),
    "recursive": {"type": "object", "properties": {"v": {"type": "boolean"}, "next": {"$ref": "#"}}, "required": ["v"]},
    "inherited": {"allOf": [{"$ref": "#/$defs/base"}, of(b={"type": "null"})], "$defs": {"base": of(a={"type": "null"})}},
    "beside": of(a={"type": "null"}) | {"anyOf": [of(b={"type": "null"}), of(c={"type": "null", "format": "none"})]},
    "unknown words": of(x={"type": "boolean", "format": "of its own", "frobnicate": 3, "default": None}), "empty": {}, "null": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", HARD)
def test_hard_schemas_are_followed(vocabulary, kind):
    follows = rules({"name": "f", "parameters": HARD[kind]}, tool_choice="required", parallel_tool_calls=False)
    sampler = Constrained(Sampler(SamplingParams(temperature=1.0)), vocabulary, vocabulary.following(follows), False)
    random, tokens = np.random.default_rng(3), []
    while len(tokens) < 300 and not set(tokens) & set(vocabulary.eos):
        tokens.append(sampler(random.standard_normal(len(vocabulary.tokens), np.float32)))
    text = b"".join(vocabulary.tokens[token] for token in tokens).decode(errors="replace")
    assert text.startswith('<tool_call>\n{"name": "f", "arguments": {')
    if kind in ("empty", "null"):
        assert '"arguments": {}}' in text
    if kind in ("inherited", "beside"):
        assert '"a": null' in text and ('"b": null' in text or '"c": null' in text)
    if kind == "enum":
        assert json.loads(text[12:].partition("\n")[0])["arguments"]["x"] in HARD[kind]["properties"]["x"]["enum"]


def test_reading_a_grammar_ends_with_the_stop(vocabulary):
    """A schema of some thousand properties takes seconds; the thread that reads it is left to itself."""
    stop, wide = ivlite.Stop(), of(**{f"p{i}": {"type": "string"} for i in range(8000)})
    stop.set()
    with using(stop), pytest.raises(ivlite.Stopped):
        vocabulary.following(rules({"name": "wide", "parameters": wide}))


def test_grammars_are_read_where_the_system_allows_no_thread(vocabulary, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    before = threading.stack_size()
    vocabulary.following(rules({"name": "alone", "parameters": of(x={"type": "null"})}))
    with pytest.raises(UsageError, match="'alone'"):
        vocabulary.following(rules({"name": "alone", "parameters": of(x={"type": "nil"})}))
    assert threading.stack_size() == before


def test_large_grammars_are_not_kept_for_long(demo):
    few = Vocabulary(demo.tokenizer, demo.config.text.vocab_size, demo.config.tokens.eos)
    for n in range(8):
        few.following(rules({"name": f"f{n}", "parameters": of(x={"enum": ["y" * 60000, "z" * 60000]})}))
    assert 2 <= len(few._read) <= 8 and sum(map(len, few._read)) <= grammars.LARGEST


def test_grammars_are_read_once(vocabulary, monkeypatch):
    follows = rules(*TOOLS)
    vocabulary.following(follows)
    monkeypatch.setattr("ivlite.engine.grammar.deeply", None)
    vocabulary.following(follows)


@pytest.mark.parametrize(
    "low, high", [(6, 6.75), (0, 0.25), (1.0, 1.01), (-6.75, -6), (-0.25, 0), (-1, 0), (5, 6), (6.5, 6.75), (-3, 4)]
)
@pytest.mark.parametrize("open_low", [True, False])
@pytest.mark.parametrize("open_high", [True, False])
def test_numbers_stay_within_their_bounds(vocabulary, low, high, open_low, open_high):
    """Every short decimal near the bounds, against Python's comparison."""
    bounds = {"exclusiveMinimum" if open_low else "minimum": low, "exclusiveMaximum" if open_high else "maximum": high}
    matcher = vocabulary.matcher("json_schema", {"type": "number", **bounds})
    digits = {c: vocabulary.encode(c)[0] for c in "-0123456789."}
    inside = 0
    for at in (low, high, (low + high) / 2):
        for off in (0, 0.01, -0.01, 0.1, -0.1, 1, -1):
            for text in {f"{at + off:.{n}f}" for n in range(4)}:
                copy, ids = matcher.deep_copy(), [digits[c] for c in text]
                taken = copy.try_consume_tokens(ids) == len(ids) and copy.is_accepting()
                inside += taken
                value = float(text)
                assert not taken or (
                    (low < value or (low == value and not open_low))
                    and (value < high or (value == high and not open_high))
                ), text
    assert inside


@pytest.mark.parametrize(
    "name", ['say "hi"', "日本語 é", "x" * 500, "a\\b\n", "</tool_call>", "<tool_call>", '"}', "<|im_end|>"]
)
def test_names_of_every_kind(demo, name):
    tools = [{"name": name, "parameters": of(ok={"type": "boolean"})}, ZOOM]
    choice = {"type": "function", "function": {"name": name}}
    settings = {"tools": tools, "temperature": 0, "parallel_tool_calls": False, "max_new_tokens": 900}
    reply = demo.chat(ASK, tool_choice=choice, **settings)
    (call,) = reply.tool_calls
    assert call.name == name and isinstance(call.arguments["ok"], bool) and reply.finish_reason == "tool_calls"
    said = {"role": "assistant", "content": "", "tool_calls": [{"name": call.name, "arguments": call.text}]}
    again = demo.prepare([*ASK, said, {"role": "tool", "content": "done"}], tools=tools).token_ids
    first = demo.prepare(ASK, tools=tools).token_ids
    text = demo.tokenizer.decode(again[len(first) :], skip_special=False)
    assert text.startswith(demo.tokenizer.decode(reply.token_ids) + "<|im_end|>")  # the turn is laid out as it was said
