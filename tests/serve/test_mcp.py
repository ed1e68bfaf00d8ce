"""The MCP server with the official client: its tools, what they refuse, how they are stopped, and who waits for whom."""

import asyncio
import base64
import io
import json
import os
import threading
import time
from contextlib import asynccontextmanager

import pytest
from PIL import Image
from serve_asking import CLIP, TOLD, WHAT

mcp = pytest.importorskip("mcp")

SRT = "1\n00:00:01,000 --> 00:00:02,000\na red lighthouse\n\n2\n00:00:05,000 --> 00:00:06,000\nthe end\n"
NAMES = {"index_video", "ask_video", "search_video", "get_frames", "ground"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two folders of videos and what lies beside them."""
    top = tmp_path_factory.mktemp("mcp")
    one, two, other = top / "one", top / "two", top / "other"
    for folder in (one, one / "sub", two, other):
        folder.mkdir()
    for path in (one / "clip.mp4", one / "sub" / "same.mp4", two / "second.mp4", other / "secret.mp4"):
        path.write_bytes(CLIP.read_bytes())
    (one / "clip.en.srt").write_text(SRT)
    (other / "words.srt").write_text(SRT.replace("lighthouse", "password"))
    (one / "clip.de.srt").symlink_to(other / "words.srt")
    (one / "link.mp4").symlink_to(other / "secret.mp4")
    (one / "inside.mp4").symlink_to(one / "clip.mp4")
    (one / "folder").symlink_to(other)
    (one / "loop.mp4").symlink_to(one / "loop.mp4")
    (one / "text.mp4").write_text("only words\n" * 100)
    (one / "empty.mp4").write_bytes(b"")
    data = CLIP.read_bytes()
    (one / "damaged.mp4").write_bytes(data[: len(data) // 3])
    (one / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{other / 'secret.mp4'}'\n")
    os.mkfifo(one / "pipe.mp4")
    return one, two


@pytest.fixture(scope="module")
def desk(demo, roots, tmp_path_factory):
    from ivlite.engine.batch import Engine
    from ivlite.library import Library
    from ivlite.serve.mcp_calls import Desk
    from ivlite.serve.roots import Roots

    path = tmp_path_factory.mktemp("library") / "library.sqlite"
    with Library.open(path) as library, Engine(demo) as engine:
        made = Desk(engine, "demo", Roots([folder.resolve() for folder in roots]), library)
        made.lines = []
        made.log = made.lines.append
        yield made
        made.close()
        assert made.open == 0


@asynccontextmanager
async def connected(desk):
    from ivlite.serve.mcp import server

    async with mcp.Client(server(desk)) as client:
        yield client


@pytest.fixture
def call(desk):
    """call(tool, arguments...) is its result."""

    def made(tool, **arguments):
        async def talk():
            async with connected(desk) as client:
                return await client.call_tool(tool, arguments)

        return asyncio.run(talk())

    return made


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.01)


def text(result):
    return "\n".join(part.text for part in result.content if part.type == "text")


# ------------------------------------------------------------------------------------------------ what there is


def test_the_tools(desk):
    async def talk():
        async with connected(desk) as client:
            return (await client.list_tools()).tools, client.server_capabilities

    tools, capabilities = asyncio.run(talk())
    assert {tool.name for tool in tools} == NAMES and capabilities.tools and capabilities.resources
    for tool in tools:
        schema = tool.input_schema
        assert (
            schema["type"] == "object"
            and schema["additionalProperties"] is False
            and tool.output_schema["type"] == "object"
        )
        assert set(schema["required"]) <= schema["properties"].keys() and len(tool.description) > 80 and tool.title
        assert all("description" in argument for argument in schema["properties"].values())
        hints = tool.annotations
        assert hints.read_only_hint is (tool.name != "index_video") and hints.destructive_hint is False
        assert hints.open_world_hint is False and hints.idempotent_hint is True


def test_the_videos_are_resources(desk, roots):
    async def talk():
        async with connected(desk) as client:
            listed = (await client.list_resources()).resources
            read = await client.read_resource(next(r.uri for r in listed if r.name == "clip.mp4"))
            for uri in (
                f"file://{roots[0].parent}/other/secret.mp4",
                "file:///etc/passwd",
                "http://x",
                "clip\0.mp4",
                "",
            ):
                with pytest.raises(mcp.MCPError, match="may read"):
                    await client.read_resource(uri)
            with pytest.raises(mcp.MCPError, match="cursor"):
                await client.list_resources(cursor="x")
            return listed, json.loads(read.contents[0].text)

    listed, data = asyncio.run(talk())
    names = {resource.name for resource in listed}
    assert {"clip.mp4", "sub/same.mp4", "second.mp4"} <= names and not {"link.mp4", "loop.mp4", "pipe.mp4"} & names
    assert data["video"] == "clip.mp4" and data["bytes"] == CLIP.stat().st_size


# ------------------------------------------------------------------------------------------------ calls


def test_a_question(call, roots):
    for name in ("clip.mp4", "./sub/same.mp4", "second.mp4", "inside.mp4", str(roots[1] / "second.mp4"),
                 (roots[0] / "clip.mp4").as_uri()):  # fmt: skip
        done = call("ask_video", video=name, question=WHAT)
        assert not done.is_error and text(done) == TOLD, (name, done)
        data = done.structured_content
        assert data["answer"] == TOLD and data["claims"] == [] and data["confidence"] is None
        (look,), (evidence,) = data["looked_at"], data["evidence"]
        assert evidence["video"] == look["video"] and 0 <= look["start"] < look["end"] <= 9 and look["frames"] > 4
    part = call("ask_video", video="clip.mp4", question=WHAT, start=4.8, end=8.5).structured_content
    assert part["looked_at"][0]["start"] >= 4.8 and part["answer"] != TOLD
    both = call("ask_video", video="clip.mp4", others=["second.mp4"], question=WHAT, max_frames=4).structured_content
    assert [look["video"] for look in both["looked_at"]] == ["clip.mp4", "second.mp4"]
    assert both["looked_at"][0]["frames"] == 4


def test_the_agent(call):
    done = call("ask_video", video="clip.mp4", question=WHAT, agent=True, max_frames=64, max_tokens=400)
    data = done.structured_content
    assert not done.is_error and data["confidence"] in ("low", "mid", "high") and data["evidence"]
    assert {evidence["video"] for evidence in data["evidence"]} == {"clip.mp4"} and data["answer"].split("[")[
        0
    ] in text(done)
    refused = call("ask_video", video="clip.mp4", question=WHAT, agent=True, start=1)
    assert refused.is_error and "question" in text(refused)


def test_an_index_and_a_search(call, desk):
    for video in desk.library.videos():
        desk.library.forget(video.id)
    assert not call("search_video", query="lighthouse").structured_content["found"]  # nothing is indexed
    found = call("search_video", query="lighthouse", video="clip.mp4").structured_content["found"]
    (hit,) = found
    assert hit == {
        "video": "clip.mp4",
        "start": 1,
        "end": 2,
        "kind": "subtitle",
        "text": "a red lighthouse",
        "score": 1,
    }
    assert not call("search_video", query="password", video="clip.mp4").structured_content[
        "found"
    ]  # its file lies elsewhere
    texts = call("index_video", video="clip.mp4", captions=False).structured_content
    assert (texts["subtitles"], texts["described"], texts["complete"]) == (2, 0, True)
    assert call("search_video", query="red").structured_content["not_described"] == 1
    done = call("index_video", video="clip.mp4")
    data = done.structured_content
    assert data["segments"] == data["described"] == data["new"] > 0 and "described" in text(done)
    again = call("index_video", video="clip.mp4").structured_content
    assert again["described"] == data["described"] and again["new"] == 0
    hits = call("search_video", query="circle cross", kinds=["caption"], limit=5).structured_content["found"]
    assert hits and {hit["kind"] for hit in hits} == {"caption"}


def test_only_videos_of_the_folders_are_searched(call, desk, roots):
    other = roots[0].parent / "other" / "elsewhere.mp4"
    other.write_bytes(CLIP.read_bytes() + b"\0" * 8)
    id = desk.library.add_video(other, duration=9)
    from ivlite.media.cues import Cue

    desk.library.add_texts(id, "subtitle", [Cue(1, 2, "a hidden treasure")], "x")
    assert not call("search_video", query="treasure").structured_content["found"]


def test_frames(call):
    done = call("get_frames", video="clip.mp4", times=[1, 0, 7.5])
    pictures = [part for part in done.content if part.type == "image"]
    data = done.structured_content
    assert all(abs(f["time"] - t) < 0.1 for f, t in zip(data["frames"], [1, 0, 7.5], strict=True))
    for picture, facts in zip(pictures, data["frames"], strict=True):
        with Image.open(io.BytesIO(base64.b64decode(picture.data))) as image:
            assert image.format == "JPEG" and image.size == (facts["width"], facts["height"]) == (320, 240)
        assert picture.mime_type == "image/jpeg"
    few = call("get_frames", video="clip.mp4", start=2, end=4, count=3, size=64).structured_content["frames"]
    assert len(few) == 3 and all(2 <= f["time"] <= 4 and f["width"] == 64 for f in few)
    assert len(call("get_frames", video="clip.mp4").structured_content["frames"]) == 8


def test_where_something_is_seen(call):
    done = call("ground", video="clip.mp4", query="a yellow circle")
    data = done.structured_content
    assert not done.is_error and data["searched"]["frames"] > 0 and data["video"] == "clip.mp4"
    for span in data["spans"]:
        assert 0 <= span["start"] <= span["end"] <= 8.8 and 0 <= span["score"] <= 1
    part = call("ground", video="clip.mp4", query="a yellow circle", start=1, end=3, max_frames=8).structured_content
    assert part["searched"]["start"] >= 0.9 and part["searched"]["end"] <= 3


# ------------------------------------------------------------------------------------------------ what is refused

OUTSIDE = ["link.mp4", "../other/secret.mp4", "folder/secret.mp4", "/etc/passwd", "file:///etc/passwd", "loop.mp4", "pipe.mp4", "sub",
           ".", "nothing.mp4", "../other/nothing.mp4", "/etc/nothing", "clip.mp4\0", "\0", "file://host/clip.mp4", "file:",
           "file:clip.mp4", "http://127.0.0.1/clip.mp4", "data:video/mp4;base64,AAAA", "~/clip.mp4", "x" * 4000, "a/" * 2000, "\n",
           "file:///%00", "concat:clip.mp4|clip.mp4", "file://[", "ü" * 300]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_files_elsewhere(call, name):
    """One sentence, whether or not there is such a file."""
    done = call("get_frames", video=name)
    assert done.is_error and done.structured_content is None and len(text(done)) <= 500
    if name.strip():
        assert text(done).endswith(text(call("get_frames", video="no such.mp4")).partition(" that this server")[2]), (
            text(done)
        )


def test_links_of_roots(desk, roots):
    """A root is where its links lead; what leaves it is not in it."""
    assert desk.roots.find("inside.mp4") == str((roots[0] / "clip.mp4").resolve())
    assert desk.roots.find(f"{roots[0]}/../one/clip.mp4") == str((roots[0] / "clip.mp4").resolve())
    assert desk.roots.find("link.mp4") is None and desk.roots.find("") is None


@pytest.mark.parametrize("name", ["text.mp4", "empty.mp4", "damaged.mp4", "list.mp4"])
@pytest.mark.parametrize("tool", sorted(NAMES))
def test_files_that_are_no_videos(call, desk, name, tool):
    more = {"ask_video": {"question": WHAT}, "ground": {"query": "x"}, "search_video": {"query": "x"}}.get(tool, {})
    done = call(tool, video=name, **more)
    assert done.is_error and "cannot be used" in text(done) and len(desk.lines[-1]) < 700
    assert desk.open == 0


WRONG = [
    ("ask_video", {}), ("ask_video", {"video": "clip.mp4"}), ("ask_video", {"video": 3, "question": WHAT}),
    ("ask_video", {"video": "clip.mp4", "question": ""}), ("ask_video", {"video": "clip.mp4", "question": "x" * 9000}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "agent": "yes"}), ("ask_video", {"video": "clip.mp4", "question": WHAT, "other": 1}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "start": -1}), ("ask_video", {"video": "clip.mp4", "question": WHAT, "start": 1e300}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "start": 5, "end": 5}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "start": 99}), ("ask_video", {"video": "clip.mp4", "question": WHAT, "start": "1"}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "max_frames": 10**400}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "max_tokens": True}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "others": []}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "others": ["clip.mp4"] * 16}),
    ("ask_video", {"video": "clip.mp4", "question": WHAT, "others": [["clip.mp4"]]}),
    ("ask_video", {"video": ["clip.mp4"], "question": {"a": 1}}), ("ask_video", {"video": "clip.mp4", "question": WHAT, "max_seconds": 0}),
    ("get_frames", {"video": "clip.mp4", "times": [99]}), ("get_frames", {"video": "clip.mp4", "times": []}),
    ("get_frames", {"video": "clip.mp4", "times": [0.1] * 17}), ("get_frames", {"video": "clip.mp4", "times": [1], "count": 2}),
    ("get_frames", {"video": "clip.mp4", "times": [-1]}), ("get_frames", {"video": "clip.mp4", "size": 10**9}),
    ("get_frames", {"video": "clip.mp4", "count": 17}), ("get_frames", {"video": "clip.mp4", "count": 1.5}),
    ("get_frames", {"video": "clip.mp4", "start": 9, "end": 10}), ("search_video", {"query": " "}), ("search_video", {"query": 5}),
    ("search_video", {"query": "x", "kinds": ["smell"]}), ("search_video", {"query": "x", "limit": 0}),
    ("ground", {"video": "clip.mp4", "query": None}), ("ground", {"video": "clip.mp4", "query": "x", "start": 50}),
    ("index_video", {"video": "clip.mp4", "captions": 1}), ("index_video", {"video": None}),
]  # fmt: skip


@pytest.mark.parametrize("tool, arguments", WRONG, ids=range(len(WRONG)))
def test_arguments_that_are_wrong(call, tool, arguments):
    done = call(tool, **arguments)
    said = text(done)
    assert (
        done.is_error and 0 < len(said) <= 500 and "\n" not in said and "Traceback" not in said and "defect" not in said
    ), said
    assert "the server failed" not in said, said


def test_a_tool_that_there_is_not(desk):
    async def talk():
        async with connected(desk) as client:
            with pytest.raises(mcp.MCPError, match="there is no tool 'rm'"):
                await client.call_tool("rm", {})
            assert not (await client.call_tool("search_video", {"query": "x"})).is_error

    asyncio.run(talk())


def test_null_is_nothing(call):
    assert text(call("ask_video", video="clip.mp4", question=WHAT, start=None, agent=None, others=None)) == TOLD


# ------------------------------------------------------------------------------------------------ progress, and ends


class Slow:
    """A tool that goes on until its call is stopped."""

    def __init__(self):
        self.begun, self.ended = threading.Event(), threading.Event()

    def run(self, desk, course, given):
        from ivlite.stop import checkpoint

        course.progress("vision", 3, 40)
        self.begun.set()
        try:
            while True:
                checkpoint()
                time.sleep(0.005)
        finally:
            self.ended.set()


@pytest.fixture
def slow(monkeypatch):
    """ground, until it is stopped."""
    from dataclasses import replace

    from ivlite.serve import mcp as served

    made = Slow()
    monkeypatch.setitem(served.BY_NAME, "ground", replace(served.BY_NAME["ground"], run=made.run))
    return made


GROUND = {"video": "clip.mp4", "query": "x"}


def test_progress_and_a_cancellation(desk, slow):
    """The client is told how far it is; what it cancels ends, and leaves its place."""
    told = []

    async def hear(done, total, message):
        told.append((done, total, message))

    async def talk():
        async with connected(desk) as client:
            task = asyncio.create_task(client.call_tool("ground", GROUND, progress_callback=hear))
            while len(told) < 3:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, slow.ended.is_set)
            return await client.call_tool("ask_video", {"video": "clip.mp4", "question": WHAT})

    assert text(asyncio.run(talk())) == TOLD
    until(lambda: desk.open == 0)
    times = [done for done, _, _ in told]
    assert times == sorted(set(times)) and any(message.endswith("vision 3 of 40 frame pairs") for _, _, message in told)


def test_a_time_limit(call, desk, monkeypatch):
    """What is done by then is kept, and told."""
    from ivlite.library import captions

    (desk.roots.folders[1] / "third.mp4").write_bytes(CLIP.read_bytes() + b"\0" * 16)

    def endless(self, source, spans):
        from ivlite.stop import checkpoint

        yield 0, "a first part"
        while True:
            checkpoint()
            time.sleep(0.005)

    monkeypatch.setattr(captions.Captions, "captions", endless)
    data = call("index_video", video="third.mp4", max_seconds=2).structured_content
    assert data["complete"] is False and data["described"] == 1 < data["segments"]


def test_too_many_calls(desk, slow, monkeypatch):
    from ivlite.serve import mcp_calls

    monkeypatch.setattr(mcp_calls, "MOST", 1)

    async def talk():
        async with connected(desk) as client:
            task = asyncio.create_task(client.call_tool("ground", GROUND))
            await asyncio.to_thread(slow.begun.wait)
            refused = await client.call_tool("search_video", {"query": "x"})
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return refused

    assert "try again later" in text(asyncio.run(talk()))


def test_calls_at_once(desk):
    """They share the engine, and each gets its own answer."""
    parts = [(0, 4), (5, 8.5)] * 3

    async def talk():
        async with connected(desk) as client:
            calls = [
                client.call_tool("ask_video", {"video": "clip.mp4", "question": WHAT, "start": a, "end": b})
                for a, b in parts
            ]
            return await asyncio.gather(*calls)

    answers = [text(done) for done in asyncio.run(talk())]
    assert len(set(answers)) == 2 and answers[0::2] == answers[:1] * 3 and answers[1::2] == answers[1:2] * 3


# ------------------------------------------------------------------------------------------------ over HTTP


@pytest.fixture
def url(desk):
    """The server over HTTP, in a thread of this process."""
    from ivlite.serve import listen, mcp_listen
    from ivlite.serve.mcp import server
    from ivlite.stop import Stop

    stop, listening = Stop(), listen.bound("127.0.0.1", 0)
    thread = threading.Thread(target=mcp_listen.over_http, args=(server(desk), desk, listening, stop))
    thread.start()
    yield listen.address(listening)
    stop.set("the test has ended")
    thread.join(60)
    assert not thread.is_alive()
    listening.close()
    desk.stop = type(desk.stop)()  # the server has set it


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_two_clients_over_http(url, desk, slow, mode):
    async def talk():
        async with mcp.Client(f"{url}/mcp", mode=mode) as one, mcp.Client(f"{url}/mcp", mode=mode) as two:
            assert {tool.name for tool in (await one.list_tools()).tools} == NAMES
            task = asyncio.create_task(one.call_tool("ground", GROUND))
            await asyncio.to_thread(slow.begun.wait)
            answer = await two.call_tool("ask_video", {"video": "clip.mp4", "question": WHAT})
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(until, slow.ended.is_set)
            return text(answer)

    assert asyncio.run(talk()) == TOLD


def test_pages_of_the_web_are_refused(url):
    httpx = pytest.importorskip("httpx")
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"accept": "application/json, text/event-stream"}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert client.post("/mcp", json=body, headers=accept | headers).status_code == 403
        assert client.post("/mcp", content="x", headers=accept | {"content-type": "text/plain"}).status_code == 415
        assert (
            client.post(
                "/mcp", content=b"[" * 100_000, headers=accept | {"content-type": "application/json"}
            ).status_code
            == 400
        )
        assert client.post("/mcp", json={"x": "y" * (5 << 20)}, headers=accept).status_code in (400, 413)
