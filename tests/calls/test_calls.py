"""Tool calls: they always parse and match their schemas, and are told apart from the text of an answer."""

import importlib.util
import json
from pathlib import Path

import pytest
from call_tools import ASK, NOTE, TOOLS, ZOOM, of, rules, sound

import ivlite
from ivlite.engine.calls import ToolCall
from ivlite.engine.grammar import Vocabulary
from ivlite.engine.reply import TextFilter
from ivlite.errors import UsageError
from ivlite.evaluate.synthetic import random_model
from ivlite.gguf.tokenizer import Tokenizer


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
    spec = importlib.util.spec_from_file_location("calls_tool", Path(__file__).parents[1] / "tools" / "calls.py")
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
