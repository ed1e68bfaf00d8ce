"""Tool calls: they always parse and match their schemas, and are told apart from the text of an answer."""

import json

import pytest

import ivlite
from ivlite.engine.calls import ToolCall
from ivlite.engine.reply import TextFilter
from ivlite.errors import UsageError

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
