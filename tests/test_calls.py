"""Tool calls: they always parse and match their schemas, and are told apart from the text of an answer."""

import importlib.util
import json
import threading
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.cli import main
from ivlite.engine import grammar as grammars
from ivlite.engine.calls import ToolCall
from ivlite.engine.grammar import Constrained, Rules, Vocabulary
from ivlite.engine.reply import TextFilter
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import UsageError
from ivlite.evaluate.synthetic import random_model
from ivlite.gguf.tokenizer import Tokenizer
from ivlite.prompt import plain_tools
from ivlite.stop import using

ASK = [{"role": "user", "content": "Which shapes move, and where to?"}]
ZOOM = {
    "type": "function",
    "function": {
        "name": "zoom",
        "parameters": {
            "type": "object",
            "properties": {"start": {"type": "number", "minimum": 0, "maximum": 99}, "end": {"type": "integer"}},
            "required": ["start", "end"],
        },
    },
}
NOTE = {
    "name": "note",
    "input_schema": {
        "type": "object",
        "properties": {"kind": {"enum": ["é", 'a "quoted" one']}, "sure": {"type": "boolean"}},
        "required": ["kind"],
    },
}
TOOLS = [ZOOM, NOTE]


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo") as model:
        yield model


def sound(call):
    assert call.arguments == json.loads(call.text)
    if call.name == "zoom":
        assert list(call.arguments) == ["start", "end"] and 0 <= call.arguments["start"] <= 99
        return isinstance(call.arguments["end"], int)
    assert call.name == "note" and call.arguments["kind"] in ("é", 'a "quoted" one')
    return isinstance(call.arguments.get("sure", False), bool) and len(call.arguments) <= 2


@pytest.mark.parametrize("temperature", [0, 1.0, 50.0])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "note"}}])
def test_calls_that_are_demanded_match_their_schemas(demo, temperature, choice):
    names = set()
    for seed in range(1 if temperature == 0 else 12):
        settings = {"temperature": temperature, "seed": seed, "max_new_tokens": 400, "top_p": 1.0, "top_k": 0}
        reply = demo.chat(ASK, tools=TOOLS, tool_choice=choice, **settings)
        assert reply.text == "" and (reply.tool_calls or reply.finish_reason == "length")
        assert reply.finish_reason == "length" or (reply.finish_reason == "tool_calls" and not reply.unfinished)
        assert all(map(sound, reply.tool_calls)) and len({call.id for call in reply.tool_calls}) == len(
            reply.tool_calls
        )
        names |= {call.name for call in reply.tool_calls}
    assert names == {"note"} if choice != "required" else len(names) == 2 or temperature < 50


@pytest.mark.parametrize("many", [True, False])
def test_an_answer_may_end_after_a_call_and_after_a_line_break(demo, vocabulary, many):
    matcher = vocabulary.following(rules(NOTE, tool_choice="required", parallel_tool_calls=many))
    text = '<tool_call>\n{"name": "note", "arguments": {"kind": "é"}}\n</tool_call>'
    ids = demo.tokenizer.encode(text, ("<tool_call>", "</tool_call>"))
    assert matcher.consume_tokens(ids) and matcher.is_accepting()
    assert matcher.consume_tokens(demo.tokenizer.encode("\n")) and matcher.is_accepting()
    assert matcher.validate_tokens(ids[:2]) == (2 if many else 0) and not matcher.validate_tokens([ids[1]])


def test_the_stream_yields_whole_calls(demo):
    with demo.stream(ASK, tools=TOOLS, tool_choice="required", temperature=0) as stream:
        deltas = list(stream)
    assert [d.call for d in deltas] == stream.reply.tool_calls and not any(d.text for d in deltas)


# ------------------------------------------------------------------------------------------------ text and calls


def cut(text, size, **settings):
    """(texts, calls, the filter) of a text that comes in parts of `size` characters."""
    made = TextFilter(calls="c", **settings)
    deltas = [d for i in range(0, len(text), size) for d in made.push(text[i : i + size])] + made.flush()
    return "".join(d.text for d in deltas if not d.thinking), [d.call for d in deltas if d.call], made


ONE = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>\\"", "b": [1, 2.5]}}\n</tool_call>'


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_calls_are_no_text(size):
    text, calls, made = cut(f"Let me look.\n{ONE}\n{ONE}", size)
    assert text == "Let me look." and not made.unfinished
    arguments = {"a": '</tool_call>"', "b": [1, 2.5]}
    assert calls == [ToolCall("c0", "f", arguments, calls[0].text), ToolCall("c1", "f", arguments, calls[0].text)]
    assert cut(f"{ONE}\n", size)[0] == "" and len(cut(f"{ONE}\n", size)[1]) == 1
    assert cut(ONE[:-9], size)[0] == "" and cut(ONE[:-9], size)[2].unfinished == ONE[:-9]
    assert cut("a < b <tool", size)[0] == "a < b <tool"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_in_thinking_are_thoughts(size):
    text, calls, _ = cut(f"Hm {ONE}</think>\n\n{ONE}", size, thinking=True)
    assert text == "" and len(calls) == 1


# ------------------------------------------------------------------------------------------------ what is refused

BAD = [
    ({"tools": [{"name": ""}]}, "has no"), ({"tools": [{"description": "x"}]}, "has no"), ({"tools": TOOLS, "tool_choice": "any"}, "must be"),
    ({"tools": [ZOOM, ZOOM]}, "two functions"), ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "zoom, note"),
    ({"tool_choice": "required"}, "no tools"), ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"), ({"thinking_budget": -1}, "budget"),
    ({"tools": [{"name": "f", "parameters": {"type": "string"}}]}, "an object"), ({"tools": [{"name": "f", "parameters": 3}]}, "an object"),
    ({"tools": TOOLS, "tool_choice": {"function": {"name": 3}}}, "must be"), ({"tools": TOOLS, "tool_choice": 3}, "must be"),
]  # fmt: skip


@pytest.mark.parametrize("settings, told", BAD)
def test_what_cannot_be_done_is_one_sentence(demo, settings, told):
    with pytest.raises(UsageError, match=told) as refused:
        demo.chat(ASK, max_new_tokens=4, **settings)
    assert len(str(refused.value)) <= 500 and "\n" not in str(refused.value)


def functions(*schemas):
    return [{"type": "function", "function": {"name": n, **more}} for n, more in schemas]


NARROW = {"type": "object", "properties": {"end": {"enum": [3, 7]}}, "required": ["end"]}


def test_some_of_the_tools_with_narrower_arguments(demo):
    tools = functions(
        ("see", {"parameters": {"type": "object", "properties": {"end": {"type": "number"}}}}), ("stop", {})
    )
    only = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": functions(("see", {"parameters": NARROW}))},
    }
    for seed in range(8):
        reply = demo.chat(ASK, tools=tools, tool_choice=only, temperature=2.0, seed=seed, max_new_tokens=400)
        assert {c.name for c in reply.tool_calls} == {"see"} and all(
            c.arguments["end"] in (3, 7) for c in reply.tool_calls
        )
    either = only | {"mode": "required", "tools": functions(("stop", {}))}
    del either["allowed_tools"]
    assert {c.name for c in demo.chat(ASK, tools=tools, tool_choice=either).tool_calls} == {"stop"}


@pytest.mark.parametrize("given", [None, [], "see", functions(("look", {})), [{"function": {}}]])
def test_tools_that_are_not_there_cannot_be_allowed(demo, given):
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": given}}
    with pytest.raises(ivlite.IvliteError):
        demo.chat(ASK, tools=functions(("see", {})), tool_choice=choice)


# ------------------------------------------------------------------------------------------------ hostile schemas


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


def of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


HOSTILE = {
    "loop": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "inner loop": of(x={"$ref": "#/$defs/a"}) | {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "endless": {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
    "nested 120": nested(120), "nested 900": nested(900), "long chain": chain(8000, lambda ref: {"items": ref}),
    "no such reference": of(x={"$ref": "#/$defs/none"}), "web": of(x={"$ref": "http://example.org/s"}), "file": of(x={"$ref": "file:///etc/passwd"}),
    "too many": of(**{f"p{i}": {"type": "string"} for i in range(30000)}), "pattern": of(x={"type": "string", "pattern": "("}),
    "look-ahead": of(x={"type": "string", "pattern": "(?=a)b"}), "unsatisfiable": of(x={"type": "integer", "minimum": 5, "maximum": 2}),
    "no value": of(x={"enum": []}), "properties": {"type": "object", "properties": 3}, "required": {"type": "object", "required": 3},
    "type": of(x={"type": "strnig"}), "large number": of(x={"type": "integer", "maximum": 10**400}), "not": of(x={"not": {"type": "string"}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(demo):
    return Vocabulary(demo.tokenizer, demo.config.text.vocab_size, demo.config.tokens.eos)


def rules(*tools, **settings):
    return Rules.of(plain_tools(tools), **settings)


@pytest.mark.parametrize("kind", HOSTILE)
def test_schemas_that_no_arguments_can_follow_are_refused_in_one_sentence(vocabulary, kind):
    with pytest.raises(UsageError) as refused:
        vocabulary.following(rules(ZOOM, {"name": "bad", "parameters": HOSTILE[kind]}, tool_choice="required"))
    assert len(str(refused.value)) <= 500 and "\n" not in str(refused.value)
    assert "'bad'" in str(refused.value) or kind in ("too many", "nested 900")


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


# ------------------------------------------------------------------------------------------------ what else an answer has

LONG = {"name": "long", "parameters": of(text={"type": "string", "minLength": 300}, n={"type": "integer"})}


@pytest.mark.parametrize("limit", [1, 2, 9, 40])
def test_half_a_call_is_no_call(demo, limit):
    reply = demo.chat(ASK, tools=[LONG], tool_choice="required", temperature=1.0, max_new_tokens=limit)
    assert reply.finish_reason == "length" and not reply.tool_calls and reply.text == ""
    assert reply.unfinished == demo.tokenizer.decode(reply.token_ids).rstrip("\ufffd") or "\ufffd" in reply.unfinished
    assert reply.unfinished.startswith("<tool_call>")


def test_a_stop_within_a_call_leaves_no_call(demo):
    settings = {"tools": [LONG], "tool_choice": "required", "temperature": 1.0, "max_new_tokens": None}
    with demo.stream(
        ASK, **settings, progress=lambda stage, done, total: stage == "generate" and done > 25 and stream.stop.set()
    ) as stream:
        assert list(stream) == []
    assert stream.reply.finish_reason == "interrupted" and not stream.reply.tool_calls
    assert stream.reply.unfinished.startswith("<tool_call>") and not stream.reply.text


def test_text_comes_before_calls_and_stop_strings_end_it(demo):
    """The words of a text are the model's: here its choice is forced by a grammar that it follows."""
    wanted = {"type": "grammar", "grammar": 'start: "yes" | "no"'}
    seen = set()
    for seed in range(12):
        settings = {
            "tools": TOOLS,
            "response_format": wanted,
            "temperature": 50.0,
            "seed": seed,
            "top_p": 1.0,
            "top_k": 0,
        }
        reply = demo.chat(ASK, parallel_tool_calls=False, max_new_tokens=400, **settings)
        seen.add(reply.finish_reason)
        assert (reply.text in ("yes", "no")) == (reply.finish_reason == "stop") and all(map(sound, reply.tool_calls))
        assert demo.chat(ASK, tool_choice="none", **settings).text in ("yes", "no")
    assert "tool_calls" in seen and "stop" in seen


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_stop_strings_are_of_text_alone(size):
    assert cut(f"one END\n{ONE}", size, stop=["END"])[:2] == ("one ", [])
    text, calls, made = cut(f"one\n{ONE}", size, stop=["arguments", "</tool_call>", "}"])
    assert text == "one" and len(calls) == 1 and not made.stopped
    assert cut(f"one {ONE}", size, stop=["<tool_call>"])[:2] == ("one ", [])
    assert cut(f"one\n{ONE}", size, stop=["\n"])[:2] == ("one", [])


def test_without_tools_nothing_is_a_call(demo):
    wanted = {"type": "grammar", "grammar": 'start: "<tool_call>" "x"'}
    reply = demo.chat(ASK, response_format=wanted)
    assert reply.text == "<tool_call>x" and not reply.tool_calls and reply.finish_reason == "stop"


def test_control_tokens_in_what_users_write_stay_text(demo):
    messages = [{"role": "user", "content": '<tool_call>\n{"name": "zoom", "arguments": {}}\n</tool_call>'}]
    ids = demo.prepare(messages, tools=TOOLS).token_ids
    assert ids.count(demo.tokenizer.token_id("<tool_call>")) == 2  # of the instructions


# ------------------------------------------------------------------------------------------------ thinking


@pytest.mark.parametrize("budget", [0, 1, 5, 1000])
@pytest.mark.parametrize(
    "more",
    [{}, {"tools": TOOLS, "tool_choice": "required"}, {"response_format": {"type": "choice", "choices": ["ok"]}}],
)
def test_thinking_has_a_budget_and_the_answer_goes_on(demo, budget, more):
    tools = {"tools": more["tools"], "tool_choice": "none"} if "tools" in more else {}
    free = demo.chat(ASK, enable_thinking=True, temperature=0, max_new_tokens=400, **tools)
    reply = demo.chat(ASK, enable_thinking=True, thinking_budget=budget, temperature=0, max_new_tokens=400, **more)
    end = reply.token_ids.index(demo.tokenizer.token_id("</think>"))
    assert reply.finish_reason != "length" and reply.text + str(reply.tool_calls or "")
    if budget < 1000:
        assert free.thinking.startswith(reply.thinking) and budget <= end <= budget + 1
        assert demo.tokenizer.decode(reply.token_ids[: end + 2]).endswith(
            "\n</think>\n\n" if budget else "</think>\n\n"
        )
        assert reply.token_ids[:budget] == free.token_ids[:budget]
    else:
        assert reply.thinking == free.thinking


def test_a_model_that_opens_its_thinking_itself(demo, vocabulary):
    """Chat templates of hybrid models leave <think> to the model."""
    think, end = (demo.tokenizer.token_id(name) for name in ("<think>", "</think>"))
    hm, eos = demo.tokenizer.encode("hm")[0], demo.config.tokens.eos[0]
    follows = rules(ZOOM, tool_choice="required")

    def drawn(likely, **settings):
        sampler = Constrained(Sampler(SamplingParams()), vocabulary, vocabulary.following(follows), False, **settings)
        out = []
        for token in likely:
            logits = np.zeros(demo.config.text.vocab_size, np.float32)
            logits[token] = 9
            out.append(sampler(logits))
        return demo.tokenizer.decode(out)

    assert drawn([think, hm, eos, end, hm, hm], may_think=True).endswith("</think><tool_call>\n")
    assert drawn([hm, hm], may_think=True) == drawn([think, hm]) == "<tool_call>\n"
    closed = drawn([think, *[hm] * 7], may_think=True, budget=2)
    assert closed.startswith(f"<think>{demo.tokenizer.decode([hm] * 2)}\n</think>\n\n<tool_call>")


# ------------------------------------------------------------------------------------------------ sessions


def asked(session, text, **settings):
    with session.ask(text, **settings) as stream:
        for _ in stream:
            pass
    return stream.reply


def test_a_session_holds_its_calls_and_goes_on_from_its_file(demo, tmp_path):
    settings = {"temperature": 1.0, "max_new_tokens": 300}
    with demo.session() as session:
        first = asked(
            session, "Which shape?", tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=4, **settings
        )
        (call,) = first.tool_calls
        function = {"name": call.name, "arguments": call.text}
        said = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": call.id, "type": "function", "function": function}],
        }
        assert session.messages[-1] == said
        result = [{"role": "tool", "content": "It is red.", "tool_call_id": call.id}]
        asked(session, result, tool_choice="none", **settings)
        session.save(tmp_path / "a.ivs")
        with demo.session(tmp_path / "a.ivs") as other:
            assert other.messages == session.messages
            last = [asked(one, "And then?", tool_choice="required", seed=7, **settings) for one in (session, other)]
            assert last[0].token_ids == last[1].token_ids and last[0].tool_calls == last[1].tool_calls
            assert last[0].tool_calls and last[0].tool_calls[0].id != call.id
            assert session.messages == other.messages


def test_in_a_session_results_stand_in_the_order_of_their_calls(demo):
    calls = [{"id": id, "type": "function", "function": {"name": "zoom", "arguments": "{}"}} for id in "ab"]
    said = [*ASK, {"role": "assistant", "content": "", "tool_calls": calls}]
    results = [{"role": "tool", "tool_call_id": id, "content": f"It is {id}."} for id in "ba"]
    with demo.session() as session, demo.session() as other:
        with session.stream([*said, *results], max_new_tokens=2) as stream:
            list(stream)
        assert [m["content"] for m in session.messages[2:4]] == ["It is a.", "It is b."]
        for seed in range(30):
            settings = {"temperature": 50.0, "top_p": 1.0, "seed": seed, "max_new_tokens": 600}
            ids = [c.id for c in asked(other, "Which?", tools=TOOLS, tool_choice="required", **settings).tool_calls]
            if len(ids) > 1:
                break
            other.undo()
        back = [{"role": "tool", "tool_call_id": id, "content": id} for id in reversed(ids)]
        asked(other, back, tool_choice="none", max_new_tokens=2)
        assert len(ids) > 1 and [m["content"] for m in other.messages if m["role"] == "tool"] == ids


def test_a_call_that_was_cut_short_stays_in_its_session(demo):
    """As text: laid out again, it is the same tokens."""
    with demo.session() as session:
        reply = asked(session, "Which shape?", tools=TOOLS, tool_choice="required", temperature=0, max_new_tokens=9)
        assert reply.unfinished and session.messages[-1]["content"] == reply.unfinished
        count = session.tokens
        ids = demo.prepare([*session.messages, {"role": "user", "content": "x"}], tools=TOOLS).token_ids
        with session.stream(
            [*session.messages, {"role": "user", "content": "x"}], tools=TOOLS, max_new_tokens=1
        ) as stream:
            list(stream)
        assert stream.reply.usage["cached_tokens"] >= count - 1 and ids[count - 9 : count] == reply.token_ids


# ------------------------------------------------------------------------------------------------ other models


WRITTEN = '<tool_call>\n{"name": "note", "arguments": {"kind": "é"}}\n</tool_call>'
TEXTS = [  # an answer, whether it may end there
    ("Hello", True), (f"Hello\n{WRITTEN}", True), (f"Hello {WRITTEN}", True), (WRITTEN, True), (f"{WRITTEN}\n{WRITTEN}", True),
    (f"{WRITTEN}\n", True), ("a < b <tool_call", True), ("x<<tool_call>\n", False), ("", True), ("é\r\n\u2028<", True),
    (f"a\n{WRITTEN}\nb", None), ("a <tool_call> b", None), (f"{WRITTEN}{WRITTEN}", True), (WRITTEN[:-13], False),
]  # fmt: skip


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("text, ends", TEXTS)
def test_text_and_calls_in_every_order(demo, written, text, ends):
    """As tokens of their own, or written out where a model has none; None: what cannot be said."""
    data = json.loads(demo.network.source.metadata["tokenizer.huggingface.json"])
    if written:
        data["added_tokens"] = [row for row in data["added_tokens"] if "tool" not in row["content"]]
    tokenizer = Tokenizer(json.dumps(data))
    read = Vocabulary(tokenizer, demo.config.text.vocab_size, demo.config.tokens.eos)
    ids = tokenizer.encode(text, ("<tool_call>", "</tool_call>"))
    matcher = read.following(rules(NOTE))
    taken = matcher.try_consume_tokens(ids) == len(ids)
    assert taken == (ends is not None) and (not taken or matcher.is_accepting() == ends)


def test_a_model_without_tokens_for_calls_writes_them(demo):
    data = json.loads(demo.network.source.metadata["tokenizer.huggingface.json"])
    data["added_tokens"] = [row for row in data["added_tokens"] if "tool" not in row["content"]]
    plain = Tokenizer(json.dumps(data))
    assert "<tool_call>" not in plain.added
    with random_model("demo", "q8_0", context=2048, threads=1, tokenizer=plain) as model:
        for seed in range(6):
            settings = {"tools": TOOLS, "temperature": 1.0, "seed": seed, "max_new_tokens": 300}
            reply = model.chat(ASK, tool_choice="required", **settings)
            assert reply.tool_calls and all(map(sound, reply.tool_calls)) and reply.text == ""
            free = model.chat(ASK, **settings)
            assert "<tool_call>" not in free.text and all(map(sound, free.tool_calls))


def test_every_call_of_a_random_model_parses_and_matches():
    """A few hundred of the answers of tests/tools/calls.py."""
    spec = importlib.util.spec_from_file_location("calls_tool", Path(__file__).parent / "tools" / "calls.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seen = module.answers(40, seed=1, tokens=80)
    assert seen["calls"] > 5 and seen["tool_calls"] > 3


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_what_is_forced_within_a_call_runs_together(demo, temperature, monkeypatch):
    steps, run = [], ivlite.engine.runner.Runner.steps
    monkeypatch.setattr(
        ivlite.engine.runner.Runner, "steps", lambda self, tokens: (steps.append(len(tokens)), run(self, tokens))[1]
    )
    choice = {"type": "function", "function": {"name": "zoom"}}
    reply = demo.chat(ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, temperature=temperature)
    assert reply.tool_calls and reply.usage["accepted_tokens"] > len(reply.token_ids) / 2
    assert len(steps) < len(reply.token_ids) / 2


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_prints_calls_as_json(tmp_path, capsys):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS))
    for given in (str(file), json.dumps(TOOLS)):
        assert main(["run", "demo", "Which?", "--tools", given, "--tool-choice", "note", "--quiet"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines and all(line["name"] == "note" and line["arguments"]["kind"] for line in lines)
    assert main(["run", "demo", "Which?", "--tools", str(file), "--tool-choice", "required", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (
        data["finish_reason"] == "tool_calls"
        and data["text"] == ""
        and set(data["tool_calls"][0]) == {"id", "name", "arguments"}
    )
    assert (
        main(
            ["run", "demo", "Which?", "--tools", str(file), "--tool-choice", "zoom", "--max-new-tokens", "9", "--json"]
        )
        == 0
    )
    cut_short, told = capsys.readouterr()
    assert json.loads(cut_short)["unfinished"].startswith("<tool_call>") and "--max-new-tokens" in told
    assert main(["run", "demo", "Which?", "--think", "--thinking-budget", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["thinking"]


@pytest.mark.parametrize(
    "more, told",
    [
        (["--tools", "{}"], "list of tools"), (["--tools", "[3"], "not JSON"), (["--tools", "/no/such"], "No such file"),
        (["--tool-choice", "zoom"], "--tools"), (["--thinking-budget", "3"], "--think"),
    ],
)  # fmt: skip
def test_arguments_of_tools_are_checked_before_the_model_is_loaded(more, told, capsys):
    assert main(["run", "/no/such/model", "Which?", *more]) == 2
    assert told in capsys.readouterr().err


def test_in_a_chat_the_next_line_is_what_a_call_returns(tmp_path, capsys, monkeypatch):
    source = tmp_path / "lines"
    source.write_text("Which?\nIt is red.\n/undo\n")
    kept, given = str(tmp_path / "a.ivs"), ["--tools", json.dumps(TOOLS), "--tool-choice", "zoom"]
    with source.open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main(["chat", "demo", "--session", kept, *given, "--quiet"]) == 0
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["name"] for one in out] == ["zoom", "zoom"]
    with ivlite.load("demo") as model, model.session(kept) as session:
        assert [m["role"] for m in session.messages] == ["user", "assistant"]
        asked(session, [{"role": "tool", "content": "It is red."}], temperature=0)
        assert [m["role"] for m in session.messages] == ["user", "assistant", "tool", "assistant"]
