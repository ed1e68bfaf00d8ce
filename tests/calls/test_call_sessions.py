"""Tool calls in sessions, in their files, and on the command line."""

import json

import pytest
from call_tools import ASK, TOOLS

import ivlite
from ivlite.cli import main


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
