"""Tools of MCP servers: opt in, never trusted, dropped with a note when they fail."""

import sys
from pathlib import Path

import pytest
from agent_scripts import Scripted, call, finish, results

from ivlite.agent import act as acts
from ivlite.agent import servers
from ivlite.agent.answer import Remark
from ivlite.agent.servers import Server, bounded
from ivlite.agent.tools import TOOLS
from ivlite.errors import UsageError

pytest.importorskip("mcp")
ASK = "When does it turn blue?"
SEARCH = call("web_search", query="blue squares")


def command(kind):
    return f"'{sys.executable}' '{Path(__file__).with_name('mcp_server.py')}' {kind}"


def asked(demo, clip, server, replies):
    with Scripted(demo, [clip], replies, tools=[*TOOLS, *server.tools], verify=False) as agent:
        return agent.ask(ASK)


def test_a_server_that_is_good(demo, clip):
    left_out = []
    with Server(command("good"), remark=left_out.append) as server:
        assert [tool.name for tool in server.tools] == ["web_search"]
        assert left_out == ["the tool delete_page is left out: it may change something, and nobody is there to agree"]
        answer = asked(demo, clip, server, [SEARCH, finish("Blue [E1].")])
    assert results(answer)[1] == {"data": "pages about blue squares"} and answer.text == "Blue [E1]."


def test_a_tool_that_may_change_something_needs_a_yes(demo, clip):
    said = []
    with Server(command("good"), confirm=lambda what: said.append(what) or len(said) > 1) as server:
        replies = [call("delete_page", name=n) for n in ("a", "b")]
        answer = asked(demo, clip, server, [*replies, finish("Blue [E1].")])
    assert "refused" in results(answer)[1]["data"] and results(answer)[2] == {"data": "deleted"}
    assert len(said) == 2 and "delete_page" in said[0]


@pytest.mark.parametrize("kind, why", [("dies", "server"), ("hangs", "no answer"), ("changes", "not what it was")])
def test_what_fails_is_dropped_and_the_run_goes_on(demo, clip, monkeypatch, kind, why):
    monkeypatch.setattr(acts, "WAITS", 3.0)
    first = [call("change")] if kind == "changes" else []
    with Server(command(kind)) as server:
        answer = asked(demo, clip, server, [*first, SEARCH, SEARCH, finish("Blue [E1].")])
    (note,) = (e.text for e in answer.steps if isinstance(e, Remark))
    assert "web_search is not used any more" in note and why in note
    assert results(answer)[1 + len(first)] == {"error": "this tool is gone"} and answer.text == "Blue [E1]."
    assert "the tools are" in results(answer)[2 + len(first)]["error"]


def test_megabytes_and_errors_are_data(demo, clip):
    with Server(command("megabytes")) as server:
        answer = asked(demo, clip, server, [SEARCH, finish("Blue [E1].")])
    assert results(answer)[1]["truncated"] >= 3_000_000 and len(results(answer)[1]["data"]) == acts.LONGEST
    with Server(command("raises")) as server:
        answer = asked(demo, clip, server, [SEARCH, finish("Blue [E1].")])
    assert "failed" in str(results(answer)[1]) and answer.text == "Blue [E1]."


@pytest.mark.parametrize("kind", ["junk", "silent", "ends"])
def test_what_is_no_server_is_refused(monkeypatch, kind):
    monkeypatch.setattr(servers, "STARTS", 3.0)
    with pytest.raises(UsageError):
        Server(command(kind))


@pytest.mark.parametrize("line", ["", "'open", "/nowhere/server --x"])
def test_commands_that_cannot_run(line):
    with pytest.raises(UsageError):
        Server(line)


def test_the_command_takes_servers(clip, capsys, tmp_path):
    from ivlite import cli

    given = [
        "agent",
        "demo",
        "--video",
        clip,
        "--mcp",
        command("good"),
        "--rounds",
        "2",
        "--library",
        str(tmp_path / "l.sqlite"),
    ]
    assert cli.main([*given, "When does it turn blue?"]) == 0
    assert "delete_page is left out" in capsys.readouterr().err
    assert cli.main(["agent", "demo", "--resume", "--library", str(tmp_path / "l.sqlite")]) == 2
    assert "name its server again" in capsys.readouterr().err


def test_schemas_have_an_end():
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "string"}},
                                               "c": {"type": "string", "enum": ["x"]}}}  # fmt: skip
    found = bounded(schema)["properties"]
    assert (
        found["a"]["maxLength"]
        and found["b"]["maxItems"]
        and found["b"]["items"]["maxLength"]
        and found["c"] == schema["properties"]["c"]
    )
