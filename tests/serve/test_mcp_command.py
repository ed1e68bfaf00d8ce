"""`ivlite mcp` as a process, with the official client: the conversation, and how it begins and ends."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from serve_asking import CLIP, TOLD, WHAT

from ivlite.gguf import SHIPPED

mcp = pytest.importorskip("mcp")
pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "ivlite", "mcp", "demo", "--context", "2048"]
HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.mp4").write_bytes(CLIP.read_bytes())
    return tmp_path / "videos"


@contextmanager
def started(*arguments, **more):
    """The process, as a client starts it; afterwards, neither it nor a process of its own is left."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], **pipes, **more)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def say(process, *messages):
    for message in messages:
        process.stdin.write((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n")
    process.stdin.flush()


def hear(process):
    return json.loads(process.stdout.readline())


def children(pid):
    """The processes that a process has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.02)


def call(number, tool, **arguments):
    params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": number}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def answer(process, number):
    """The response to a request, and what came before it."""
    before = []
    while (message := hear(process)).get("id") != number:
        before.append(message)
    return message, before


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_the_official_client(folder, tmp_path, mode):
    from mcp import StdioServerParameters, stdio_client

    told, library = [], tmp_path / "library.sqlite"

    async def hear(done, total, message):
        told.append((done, message))

    async def talk():
        more = ["--root", str(folder), "--library", str(library)]
        server = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], *more], env={**os.environ})
        async with mcp.Client(stdio_client(server), mode=mode) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            done = await client.call_tool("ask_video", {"video": "clip.mp4", "question": WHAT}, progress_callback=hear)
            index = await client.call_tool("index_video", {"video": "clip.mp4"})
            found = await client.call_tool("search_video", {"query": "circle"})
            frames = await client.call_tool("get_frames", {"video": "clip.mp4", "count": 2})
            seen = await client.call_tool("ground", {"video": "clip.mp4", "query": "a yellow circle", "max_frames": 16})
            task = asyncio.create_task(
                client.call_tool(
                    "ask_video", {"video": "clip.mp4", "question": WHAT, "agent": True}, progress_callback=hear
                )
            )
            before = len(told)
            while len(told) == before:  # the first word comes when the call begins
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            again = await client.call_tool("ask_video", {"video": "clip.mp4", "question": WHAT})
            return names, done, index, found, frames, seen, again

    names, done, index, found, frames, seen, again = asyncio.run(talk())
    assert len(names) == 5 and done.content[0].text == again.content[0].text == TOLD and told
    assert index.structured_content["described"] and found.structured_content["found"] and not seen.is_error
    assert [part.type for part in frames.content] == ["text", "image", "image"] and library.is_file()


def test_the_end_of_input(folder):
    """Exit code 0, also in the middle of a call; no process is left. What is no message, or too long, ends nothing."""
    with started("--root", folder) as process:
        say(process, HELLO)
        assert hear(process)["result"]["serverInfo"]["name"] == "ivlite"
        say(
            process,
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
            b"nonsense",
            b"\xff\xfe",
            b"[" * 100_000,
            b"x" * (5 << 20),
        )
        say(process, {"jsonrpc": "2.0", "id": 2, "method": "ping"})
        assert answer(process, 2)[0]["result"] == {}
        say(process, call(3, "ask_video", video="clip.mp4", question=WHAT))
        done, progress = answer(process, 3)
        assert done["result"]["content"][0]["text"] == TOLD
        assert progress and {message["params"]["progressToken"] for message in progress} == {3}
        assert (mine := children(process.pid))
        say(process, call(4, "ask_video", video="clip.mp4", question=WHAT, agent=True))
        assert hear(process)["method"] == "notifications/progress"
        process.stdin.close()
        process.stdin = None
        assert process.wait(60) == 0
        until(lambda: not any(map(alive, mine)))
        assert b"Traceback" not in process.stderr.read()


def test_the_guide(tmp_path):
    """Its program, word for word; its configurations are JSON whose command lines are right."""
    from ivlite.cli import parser

    text = (ROOT / "docs" / "guides" / "mcp.md").read_text()
    configurations, programs = (re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S) for kind in ("json", "py"))
    assert len(configurations) == 2 and programs
    for configuration in configurations:
        (servers,) = json.loads(configuration).values()
        assert servers["videos"]["command"] == "ivlite" and parser().parse_args(servers["videos"]["args"]).root
    (tmp_path / "ivlite").write_text(f'#!/bin/sh\nexec {sys.executable} -m ivlite "$@"\n')
    (tmp_path / "ivlite").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for code in programs:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, env=env
        )
        assert done.stdout.startswith(TOLD) and len(done.stdout.splitlines()) == 2, done


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals(folder, number, code):
    """While a call runs, and with its input open."""
    with started("--root", folder) as process:
        say(process, HELLO)
        hear(process)
        say(process, call(2, "ask_video", video="clip.mp4", question=WHAT, agent=True))
        assert hear(process)["method"] == "notifications/progress"
        mine = children(process.pid)
        process.send_signal(number)
        assert process.wait(60) == code
        until(lambda: not any(map(alive, mine)))
        assert b"Traceback" not in process.stderr.read()


def test_a_client_that_is_killed(folder, tmp_path):
    """Its pipes break: the server ends, and so do those who decode for it."""
    code = """
import json, subprocess, sys
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
for message in json.loads(sys.argv[1]):
    server.stdin.write(json.dumps(message).encode() + b"\\n")
    server.stdin.flush()
    while "id" not in (said := json.loads(server.stdout.readline())) and "progressToken" not in said.get("params", ()):
        pass
print(server.pid, flush=True)
server.wait()
"""
    asked = [HELLO, call(2, "ask_video", video="clip.mp4", question=WHAT, agent=True)]
    client = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(asked), *COMMAND, "--root", str(folder)], stdout=subprocess.PIPE
    )
    pid = int(client.stdout.readline())
    mine = [pid, *children(pid)]
    client.kill()
    client.communicate()
    until(lambda: not any(map(alive, mine)))


def test_two_servers_share_a_library(folder, tmp_path):
    more = ("--root", folder, "--library", tmp_path / "library.sqlite")
    with started(*more) as one, started(*more) as two:
        for process in (one, two):
            say(process, HELLO)
            hear(process)
            say(process, call(2, "index_video", video="clip.mp4"))
        counts = [answer(process, 2)[0]["result"]["structuredContent"]["segments"] for process in (one, two)]
        assert counts[0] == counts[1] > 0


def test_http(folder):
    with started("--root", folder, "--transport", "http", "--port", "0") as process:
        url = re.fullmatch(r"demo at (http://127\.0\.0\.1:\d+/mcp)\n", process.stdout.readline().decode())[1]

        async def talk():
            async with mcp.Client(url) as client:
                return await client.call_tool("ask_video", {"video": "clip.mp4", "question": WHAT})

        assert asyncio.run(talk()).content[0].text == TOLD
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("model, arguments, code, word", [
    ("demo", [], 2, "--root"), ("demo", ["--root", "/nothing/here"], 2, "no folder"), ("demo", ["--root", __file__], 2, "no folder"),
    ("/nothing.gguf", ["--root", "/tmp"], 3, "nothing.gguf"), (__file__, ["--root", "/tmp"], 3, "test_mcp_command"),
    ("demo", ["--root", "/tmp", "--port", "1"], 2, "--transport"), ("demo", ["--root", "/tmp", "--transport", "smoke"], 2, "smoke"),
    ("demo", ["--root", "/tmp", "--quiet", "--verbose"], 2, "contradict"), ("demo", ["--root", "/tmp", "--library", "/proc/x/y"], 6, "/proc"),
])  # fmt: skip
def test_before_the_conversation(model, arguments, code, word):
    """One sentence, and nothing on the protocol's side."""
    command = [*COMMAND[:4], model, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == code and done.stdout == "" and len(errors) == 1 and word in done.stderr, done


def test_without_its_package(tmp_path):
    (tmp_path / "mcp.py").write_text("raise ImportError('gone', name='mcp')")
    done = subprocess.run(
        [*COMMAND, "--root", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2 and "pip install 'ivlite[mcp]'" in done.stderr and done.stderr.count("\n") == 1


def test_help_loads_nothing():
    code = "import sys, ivlite.cli; ivlite.cli.main(['mcp', '--help']); assert not {'mcp', 'starlette', 'numpy'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--root" in done.stdout, done.stderr
