"""Another answer to the last question: the question stays what it was."""

import json

import numpy as np
import pytest
from test_session import CLIP, GREEDY, TOOL, ask, said

import ivlite
from ivlite.cli import main
from ivlite.errors import UsageError
from ivlite.gguf import SHIPPED

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
OTHER = {"type": "function", "function": {"name": "g", "parameters": {}}}
BEGUN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am "}]


@pytest.fixture(scope="module")
def model():
    with ivlite.load("demo", context=4096) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session() as session:
        yield session


def asked(stream):
    """The tokens of the question of a stream, which is read to its end."""
    said(stream)
    return stream.prompt.token_ids


def undone(session):
    ask(session, "And then?")
    session.undo()
    return session


def reopened(session):
    session.save(session.path or session.folder / "a.ivs")
    return session._model.session(session.path)


@pytest.mark.parametrize(
    "since", [lambda s: s, undone, lambda s: s.branch(), reopened], ids=["", "undo", "branch", "file"]
)
@pytest.mark.parametrize("turns", [1, 2])
def test_the_tools_stay(session, tmp_path, since, turns):
    session.folder = tmp_path
    before = asked(session.ask("What?", tools=[TOOL], tool_choice="required", **GREEDY))
    for _ in range(turns - 1):
        before = asked(session.ask("And?", tool_choice="required", **GREEDY))
    session = since(session)
    assert asked(session.again(tool_choice="required", **GREEDY)) == before
    assert asked(session.again(tools=None, **GREEDY)) == before
    assert [json.loads(tool) for tool in session.state().tools] == [TOOL]
    assert asked(session.again(tools=(tool for tool in [TOOL]), **GREEDY)) == before


def test_the_first_question_may_have_other_tools(session):
    asked(session.ask("What?", tools=[TOOL], **GREEDY))
    for tools in ([OTHER, TOOL], []):
        expected = session._model.prepare([{"role": "user", "content": "What?"}], tools=tools).token_ids
        assert asked(session.again(tools=tools, **GREEDY)) == expected
        assert [json.loads(tool) for tool in session.state().tools] == tools
    ask(session, "And?")
    with pytest.raises(UsageError, match="tools belong to the first question"):
        session.again(tools=[OTHER])


@pytest.mark.parametrize("first", [True, False], ids=["first question", "follow-up"])
def test_the_beginning_of_an_answer_stays(session, first):
    if not first:
        ask(session, "Hello.")
    stream = session.ask(BEGUN, continue_final_message=True, **GREEDY)
    before, text = asked(stream), stream.reply.text
    assert asked(session.again(**GREEDY)) == before and session.messages[-1]["content"] == "I am " + text
    twin = session.branch()
    other = said(twin.again(temperature=3, seed=2, max_new_tokens=12))
    assert other != text and twin.messages[-1]["content"] == "I am " + other
    assert asked(twin.again(**GREEDY)) == before  # and once more
    with pytest.raises(UsageError, match="contradict"):
        session.again(enable_thinking=True)
    plain = said(session.again(continue_final_message=False, **GREEDY))
    assert session.messages[-1]["content"] == plain and len(asked(session.again(**GREEDY))) < len(before)
    with pytest.raises(UsageError, match="continue_final_message needs"):
        session.again(continue_final_message=True)


def test_the_whole_conversation_may_have_begun_the_answer(session):
    before = asked(session.stream(BEGUN, continue_final_message=True, tools=[TOOL], **GREEDY))
    assert asked(session.again(**GREEDY)) == before


@pytest.mark.parametrize("given, other", [
    ({"budget": 200}, {"budget": None}),
    ({"dedupe": True}, {"dedupe": False}),
    ({"add_vision_id": True}, {"add_vision_id": False}),
])  # fmt: skip
@pytest.mark.parametrize("first", [True, False], ids=["first question", "follow-up"])
def test_the_question_sees_what_it_saw(session, first, given, other):
    if not first:
        ask(session, "Hello.")
    videos = [CLIP, [np.full((64, 64, 3), 90, np.uint8)] * 8]
    plain = asked(session.ask("What happens?", videos, **GREEDY))
    session.undo()
    before = asked(session.ask("What happens?", videos, **given, **GREEDY))
    assert before != plain
    assert asked(session.again(**GREEDY)) == before == asked(session.branch().again(**GREEDY))
    assert asked(session.again(**other, **GREEDY)) == plain == asked(session.again(**GREEDY))


def test_settings_of_the_answer_are_those_of_the_call(session):
    said(
        session.ask(
            "Hi",
            **GREEDY | {"max_new_tokens": 3, "stop": "e", "response_format": {"type": "choice", "choices": ["red"]}},
        )
    )
    assert session.messages[-1]["content"] == "r"
    twin = session._model.session()
    assert said(session.again(**GREEDY)) == ask(twin, "Hi")


def test_in_a_chat_the_tools_stay_where_they_are_not_given_again(tmp_path, capsys, monkeypatch):
    kept, source = str(tmp_path / "a.ivs"), tmp_path / "lines"
    for lines, more in (("What?\n", ["--tools", json.dumps([TOOL])]), ("/regen 5\n", [])):
        source.write_text(lines)
        with source.open() as file:
            monkeypatch.setattr("sys.stdin", file)
            assert main(["chat", "demo", "--session", kept, "--max-new-tokens", "4", "--quiet", *more]) == 0
    with ivlite.load("demo") as model, model.session(kept) as session:
        assert [json.loads(tool) for tool in session.state().tools] == [TOOL]
        assert "<tools>" in model.tokenizer.decode(session.state().token_ids, skip_special=False)
