"""Answers that follow a JSON schema, a regular expression, choices or a grammar, token by token."""

import collections
import json
import re
from fractions import Fraction

import numpy as np
import pytest

import ivlite
from ivlite.cli import main
from ivlite.engine import calls
from ivlite.engine import grammar as grammars
from ivlite.engine.grammar import Constrained, Rules, Vocabulary, grammar
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import UsageError
from ivlite.prompt import plain_tools

ASK = [{"role": "user", "content": "Which shapes move, and where to?"}]
KEYS = {
    "shape": {"enum": ["circle", "square", "cross"]},
    "left": {"type": "boolean"},
    "count": {"type": "integer", "minimum": 0, "maximum": 99},
}
SCHEMA = {"type": "object", "properties": KEYS, "required": list(KEYS), "additionalProperties": False}
LIST = {"type": "array", "items": {"$ref": "#/$defs/one"}, "minItems": 1, "maxItems": 2, "$defs": {"one": SCHEMA}}


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo") as model:
        yield model


def sound(item):
    assert list(item) == list(KEYS) and item["shape"] in KEYS["shape"]["enum"]
    assert isinstance(item["left"], bool) and 0 <= item["count"] <= 99
    return True


@pytest.mark.parametrize("temperature", [0, 1.0, 50.0])
def test_answers_follow_the_schema_however_wild_the_sampling(demo, temperature):
    texts = set()
    for seed in range(1 if temperature == 0 else 25):
        wanted = {"type": "json_schema", "json_schema": {"name": "shapes", "schema": SCHEMA, "strict": True}}
        reply = demo.chat(ASK, response_format=wanted, temperature=temperature, seed=seed, top_p=1.0, top_k=0)
        assert reply.finish_reason == "stop" and sound(json.loads(reply.text))
        texts.add(reply.text)
    assert len(texts) > 5 or temperature == 0


FORMS = [
    ({"type": "json_schema", "schema": SCHEMA}, lambda text: sound(json.loads(text))),
    (SCHEMA, lambda text: sound(json.loads(text))),
    (type("Shapes", (), {"model_json_schema": staticmethod(lambda: SCHEMA)}), lambda text: sound(json.loads(text))),
    (LIST, lambda text: all(map(sound, json.loads(text)))),
    ({"type": "regex", "pattern": r"\d{2}:[0-5]\d( am| pm)"}, lambda text: re.fullmatch(r"\d\d:[0-5]\d [ap]m", text)),
    (
        {"type": "choice", "choices": ["yes", "no (never)", "a|b", "naïve, 3 s"]},
        lambda text: text in ("yes", "no (never)", "a|b", "naïve, 3 s"),
    ),
    (
        {"type": "grammar", "grammar": 'start: ("left" | "right") " at " /[0-9]{1,3}/ " s"'},
        lambda text: re.fullmatch(r"(left|right) at \d+ s", text),
    ),
    ({"type": "json_object", "schema": SCHEMA}, lambda text: sound(json.loads(text))),
]


@pytest.mark.parametrize("wanted, follows", FORMS)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_every_form_is_followed(demo, wanted, follows, penalty):
    for seed in range(3):
        reply = demo.chat(
            ASK, response_format=wanted, temperature=2.0, seed=seed, repetition_penalty=penalty, max_new_tokens=300
        )
        assert reply.finish_reason == "stop" and follows(reply.text), reply.text


@pytest.mark.parametrize(
    "other", ["two\nlines\tand\r", "a\\ b\\n", "".join(map(chr, range(32, 127))), "[x](y){2}^$|.*+?", "é — 日本"]
)
def test_choices_are_texts_and_no_patterns(demo, other):
    wanted = {"type": "choice", "choices": [other]}
    assert demo.chat(ASK, response_format=wanted, max_new_tokens=None).text == other


def test_text_is_free_where_nothing_is_asked(demo):
    free = demo.chat(ASK, max_new_tokens=8).text
    assert demo.chat(ASK, max_new_tokens=8, response_format={"type": "text"}).text == free
    assert demo.chat(ASK, max_new_tokens=8, response_format=None).text == free


def test_forced_tokens_run_together_and_change_nothing(demo, monkeypatch):
    """Names of keys, quotes and braces are known: they run in one call with the token before them."""
    steps, texts, run = [], [], ivlite.engine.runner.Runner.steps
    monkeypatch.setattr(
        ivlite.engine.runner.Runner, "steps", lambda self, tokens: (steps.append(len(tokens)), run(self, tokens))[1]
    )
    for forced in (True, False):
        if not forced:
            monkeypatch.setattr(Constrained, "forced", lambda self: [])
        for temperature in (0, 1.0):
            reply = demo.chat(ASK, response_format=SCHEMA, temperature=temperature, seed=5)
            assert sound(json.loads(reply.text))
            texts.append(reply.text)
            if forced:
                assert max(steps) > 2 and sum(steps) >= len(reply.token_ids) and len(steps) < len(reply.token_ids) / 2
                assert reply.usage["accepted_tokens"] > 2
            steps.clear()
    assert texts[0] == texts[2]  # sampled ones draw other numbers: a token that is forced takes none


def test_an_answer_that_is_too_short_for_its_schema_says_so(demo):
    whole = demo.chat(ASK, response_format=SCHEMA, temperature=0)
    for limit in (1, 3, 7):
        reply = demo.chat(ASK, response_format=SCHEMA, temperature=0, max_new_tokens=limit)
        assert reply.finish_reason == "length" and len(reply.token_ids) == limit and whole.text.startswith(reply.text)


def asked(session, **settings):
    with session.ask("Which shape moves?", **settings) as stream:
        for _ in stream:
            pass
    return stream.reply


def test_in_a_session_what_was_forced_is_said(demo):
    with demo.session() as session:
        first = asked(session, response_format=SCHEMA)
        again = asked(session, response_format={"type": "choice", "choices": ["it moves left", "it stays"]})
        assert sound(json.loads(first.text)) and again.text in ("it moves left", "it stays")
        assert again.usage["cached_tokens"] > first.usage["prompt_tokens"]
        assert first.text in str(session.messages)


BAD = [
    3, "json", [], {"type": "json_schema"}, {"type": "json_schema", "json_schema": 3}, {"type": "regex"}, {"type": "regex", "pattern": "("},
    {"type": "regex", "pattern": ""}, {"type": "choice"}, {"type": "choice", "choices": []}, {"type": "choice", "choices": ["a", ""]},
    {"type": "choice", "choices": "ab"}, {"type": "grammar", "grammar": "start: foo"}, {"type": "grammar"}, {"type": "thing"},
    {"type": "object", "properties": 3}, {"$ref": "http://example.org/schema"}, {"$ref": "file:///etc/passwd"}, {"type": ["object", 3]},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}, {"enum": [object()]}, {"type": "json_schema", "schema": {"a": {1, 2}}},
    {"const": 1 << 63}, {"type": "xml"}, {"$ref": "#"}, {"type": "grammar", "grammar": "start: start"},
    {"enum": ["x" * (1 << 20)]}, {"type": "regex", "pattern": "(a{1000}){1000}{1000}"}, {"minLength": 5, "maxLength": 2, "type": "string"},
]  # fmt: skip


@pytest.mark.parametrize("wanted", BAD, ids=lambda wanted: str(wanted).split(" at 0x")[0][:60])
def test_what_cannot_be_followed_is_refused_in_one_sentence(demo, wanted):
    with pytest.raises(UsageError) as refused:
        demo.chat(ASK, response_format=wanted, max_new_tokens=4)
    assert len(str(refused.value)) <= 500 and "\n" not in str(refused.value)


@pytest.mark.parametrize("wanted, told", [
    ({"type": "xml"}, "there are text, json_object, json_schema, regex, choice, grammar, and"), ({"const": 10**30}, r"beyond 2\^53"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to itself"),
])  # fmt: skip
def test_refusals_say_what_is_wrong(demo, wanted, told):
    with pytest.raises(UsageError, match=told):
        demo.chat(ASK, response_format=wanted, max_new_tokens=4)


LOW = -9223372036854775807


@pytest.mark.parametrize("wanted", [
    {"const": LOW}, {"$ref": "#/x/y", "x": {"y": {"const": LOW}}}, {"type": "integer", "minimum": LOW, "maximum": LOW},
    {"type": "integer", "minimum": -1e19, "maximum": -1e19}, {"anyOf": [{"enum": [{"a": [LOW]}]}]}, {"type": "number", "exclusiveMinimum": 1e18},
    {"$ref": "#/x", "x": {"type": "integer", "minimum": LOW, "maximum": LOW}}, {"const": (1 << 53) + 1},
    {"type": "grammar", "grammar": 'start: %json {"const": -9223372036854775807}'},
    {"type": "grammar", "grammar": 'start: %json {"type": "integer", "minimum": -1e19, "maximum": -1e19}'},
])  # fmt: skip
def test_numbers_that_would_be_rounded_or_end_the_process_are_refused(demo, wanted):
    with pytest.raises(UsageError, match=r"2\^53|15 digits"):
        demo.chat(ASK, response_format=wanted, max_new_tokens=4)


@pytest.mark.parametrize(
    "least, most", [(-(1 << 63), (1 << 63) - 1), (LOW, 5), (0, 1e30), (-1e300, 1e300), (-(1 << 53), 1 << 53)]
)
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_bounds_that_are_wider_than_numbers_are_made_narrower(demo, kind, least, most):
    wanted = {
        "type": "object",
        "properties": {"a": {"type": kind, "minimum": least, "maximum": most}},
        "required": ["a"],
    }
    text = demo.chat(ASK, response_format=closed(wanted), max_new_tokens=64, temperature=1.0).text
    assert text.startswith('{"a": ')


def closed(schema):
    return schema | {"additionalProperties": False}


@pytest.mark.parametrize("number", [1 << 53, -(1 << 53), 0.1, -1e19])
def test_numbers_are_kept(demo, number):
    reply = demo.chat(ASK, response_format={"enum": [{"a": [number]}]}, max_new_tokens=64)
    assert json.loads(reply.text) == {"a": [number]}


def test_properties_may_be_named_as_what_schemas_are_made_of(demo):
    whole = {"type": "integer", "minimum": -(2**60), "maximum": 2**60}
    names = ["const", "enum", "minimum", "properties"]
    wanted = {
        "type": "object",
        "properties": dict.fromkeys(names, whole),
        "required": names,
        "additionalProperties": False,
    }
    answer = json.loads(demo.chat(ASK, response_format=wanted, temperature=2.0, seed=1, max_new_tokens=None).text)
    assert sorted(answer) == sorted(names) and all(abs(value) <= 2**53 for value in answer.values())


def test_a_thousand_properties_that_may_be_left_out(demo):
    wanted = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1200)}, "required": ["p7", "p1100"],
              "additionalProperties": False}  # fmt: skip
    answer = json.loads(demo.chat(ASK, response_format=wanted, temperature=2.0, seed=3, max_new_tokens=None).text)
    assert {"p7", "p1100"} <= set(answer) <= set(wanted["properties"])
    wanted["properties"] = {f"p{i}": {} for i in range(4003)}
    wanted["required"] += [f"q{i}" for i in range(99)] + ["p7"] * 99  # neither counts
    with pytest.raises(UsageError, match=r'4,001 properties that are not "required"; 4,000 are the most'):
        demo.chat(ASK, response_format={"anyOf": [{"type": "null"}, wanted]})


HALF = "\ud800"  # of a surrogate pair: it has no UTF-8 form
HALVES = [
    {"type": "regex", "pattern": HALF}, {"type": "choice", "choices": ["a", HALF]}, {"type": "grammar", "grammar": f'start: "{HALF}"'},
    {"type": "json_schema", "schema": {"enum": [HALF]}}, {"type": "object", "properties": {HALF: {}}}, {"enum": [f"a{HALF}"]},
]  # fmt: skip


@pytest.mark.parametrize("wanted", HALVES, ids=lambda wanted: ascii(wanted)[:40])
def test_halves_of_characters_are_refused(wanted):
    with pytest.raises(UsageError, match="^response_format: the text is not valid Unicode .*half of a surrogate pair"):
        grammar(wanted)


def test_two_halves_are_a_character(demo):
    assert demo.chat(ASK, response_format={"type": "choice", "choices": ["\ud83d\ude00"]}).text == "\U0001f600"


def test_values_of_other_libraries_are_taken():
    class Table(collections.UserDict):
        """A Mapping that is no dict."""

    digits = {"type": "integer", "minimum": np.int64(3), "maximum": Fraction(9), "multipleOf": np.float32(1.5)}
    plain = {"type": "integer", "minimum": 3, "maximum": 9.0, "multipleOf": 1.5}
    other = Table(type="object", properties=Table(a=digits), required=("a",))
    schema = {"type": "object", "properties": {"a": plain}, "required": ["a"]}
    assert grammar(other) == ("json_schema", schema)
    assert grammar(Table(type="json_schema", json_schema=Table(schema=other))) == ("json_schema", schema)
    assert grammar(Table(type="regex", pattern=np.str_("a+"))) == ("regex", "a+")
    tool = json.loads(plain_tools([Table(type="function", function=Table(name="f", parameters=other))])[0])
    assert tool["function"]["parameters"] == schema
    some = Table(type="allowed_tools", allowed_tools={"mode": "auto", "tools": [Table(name="f", parameters=other)]})
    (called,) = Rules.of([json.dumps(tool)], None, some, None).calls.functions
    assert called[0] == "f" and called[1]["properties"]["a"]["minimum"] == 3
    for wanted in ({"enum": [object()]}, {"const": float("nan")}, {"enum": [{1, 2}]}, {"enum": [b"a"]}):
        with pytest.raises(UsageError, match="^response_format: .*is not JSON data"):
            grammar(wanted)


def test_calls_that_nothing_is_said_of_may_be_many():
    tools = ['{"name": "f"}']
    assert calls.allowed(tools, "auto", None) == calls.allowed(tools, "auto", True)
    with pytest.raises(UsageError, match="parallel_tool_calls is 0"):
        calls.allowed(tools, "auto", 0)


def test_a_schema_that_nests_too_deeply_is_refused(demo):
    deep = {"type": "string"}
    for _ in range(20_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError):
        demo.chat(ASK, response_format=deep, max_new_tokens=4)


class Spelled:
    """A tokenizer of single bytes, <think>, </think> and an end."""

    special = {"<end>": 258}
    added = {"<think>": 256, "</think>": 257, "<end>": 258}

    def bytes_of(self, i, skip_special=True):
        return bytes([i]) if i < 256 else next((t.encode() for t, n in self.added.items() if n == i), b"")

    def encode(self, text, allowed=()):
        return list(text.encode())


@pytest.fixture(scope="module")
def spelled():
    return Vocabulary(Spelled(), 260, [258])


def drawn(spelled, likely, pattern, thinks=False, most=40):
    """Tokens of a Constrained sampler whose logits want the bytes of `likely`, one after another."""
    sampler = Constrained(Sampler(SamplingParams()), spelled, spelled.matcher("regex", pattern), thinks)
    out = []
    for i in range(most):
        logits = np.zeros(260, np.float32)
        logits[likely[i] if i < len(likely) else 258] = 1
        out.append(sampler(logits))
        if out[-1] == 258:
            break
    return out


def test_the_likeliest_of_the_allowed_tokens_is_taken(spelled):
    assert drawn(spelled, b"b9", "[bc][0-9]") == [*b"b9", 258]
    assert drawn(spelled, b"zz", "[bc]x") in ([*b"bx", 258], [*b"cx", 258])
    assert drawn(spelled, b"bbbbbb", "b{2,4}") == [*b"bbbb", 258]


def test_thinking_is_free_and_the_answer_is_not(spelled):
    """The end of an answer is no way out of thinking, and the mark of its end may come in pieces."""
    whole = drawn(spelled, [*b"hm", 258, *b"ok", 257, *b"zz"], "yes", thinks=True)
    at = whole.index(257)
    assert bytes(t for t in whole[:2]) == b"hm" and 258 not in whole[:at] and whole[at + 1 :] == [*b"yes", 258]
    pieces = drawn(spelled, [*b"hm</think>", *b"zz"], "yes", thinks=True)
    assert bytes(pieces[:-1]) == b"hm</think>yes"


def test_control_tokens_are_no_text(spelled):
    likely = [*b'"a', 256, 257, *b'"']
    assert not {256, 257} & set(drawn(spelled, likely, '"[^"]{1,6}"'))


def test_a_vocabulary_without_the_needed_bytes_is_told(demo):
    class Poor(Spelled):
        def bytes_of(self, i, skip_special=True):
            return b"" if i == ord("q") else super().bytes_of(i)

    poor = Vocabulary(Poor(), 260, [258])
    with pytest.raises(UsageError, match="the answer cannot go on as its grammar wants"):
        drawn(poor, b"xq", "[xz][q]y")
    with pytest.raises(UsageError, match="cannot be used"):
        drawn(poor, b"xq", "x[q]y")


@pytest.mark.parametrize("schema", ["x", 5, [], True, 0.5])
def test_what_is_no_schema(demo, schema):
    for asked in (
        {"type": "json_schema", "json_schema": {"schema": schema}},
        {"type": "json_object", "schema": schema},
    ):
        with pytest.raises(UsageError, match="it must be a dict"):
            demo.chat(ASK, response_format=asked, max_new_tokens=1)


def test_a_grammar_is_read_once_and_the_vocabulary_is_made_once(demo, monkeypatch):
    demo.chat(ASK, response_format=SCHEMA, max_new_tokens=2)
    monkeypatch.setattr("ivlite.engine.grammar.Vocabulary", None)
    demo.chat(ASK, response_format={"type": "choice", "choices": ["a", "b"]}, max_new_tokens=2)
    assert grammar({"type": "json_object"}) == ("json_schema", {"type": "object"})
    assert grammars.LARGEST == 1 << 20


# ------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_takes_a_file_or_json(tmp_path, capsys):
    file = tmp_path / "a schema.json"
    file.write_text(json.dumps(SCHEMA))
    for given in (str(file), json.dumps(SCHEMA)):
        assert main(["run", "demo", "Which shape?", "--schema", given, "--quiet"]) == 0
        assert sound(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", "not JSON"),
        ("[1]", "No such file"),
        ("/no/such", "No such file"),
        ("", "empty"),
        ("{" * 100_000, "not JSON"),
        ("/dev/zero", "regular"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused_before_the_model_is_loaded(text, told, capsys):
    assert main(["run", "/no/such/model", "Which?", "--schema", text]) == 2
    assert told in capsys.readouterr().err


def test_a_schema_file_that_is_no_object_or_too_long_is_refused(tmp_path, capsys):
    for name, data in (("a", "[1]"), ("b", " " * (1 << 20) + "{}"), ("c", b"\xff\xfe{")):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        assert main(["run", "demo", "Which?", "--schema", str(tmp_path / name)]) == 2
        assert "the schema" in capsys.readouterr().err
