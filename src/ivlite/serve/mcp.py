"""The MCP server: its tools and its list of videos for programs that speak the Model Context Protocol, over stdio or HTTP."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import mcp_types as types
from mcp.server import Server
from mcp.shared.exceptions import MCPError

from ivlite._version import __version__
from ivlite.errors import Stopped
from ivlite.library import KINDS
from ivlite.serve.mcp_calls import Course, Desk
from ivlite.serve.mcp_tools import BY_NAME, TOOLS, Result, Tool, run
from ivlite.serve.roots import uri_of
from ivlite.serve.wire import Refused, refusal
from ivlite.serve.work import Work
from ivlite.stop import Stop, using

EVERY = 0.5  # seconds between two words about how far a call is
LISTED, PAGE, SEARCHED = 10_000, 200, 5.0  # videos that are listed, and on a page; seconds to find them
NAMED, WAIT = 20, 1.0  # videos that the instructions name; seconds to find them
TEXTS = 500  # lines of what is known of a video

INSTRUCTIONS = """\
Answers questions about the videos in a folder of this machine, with a video model that runs here. Times are seconds. ask_video \
answers a question (agent: in several steps, with evidence); ground finds when something is seen; search_video finds words that are \
said or written in subtitles and descriptions; get_frames shows frames; index_video prepares a video for searches."""

logging.getLogger("mcp").addHandler(logging.NullHandler())  # tracebacks of what clients send


def server(desk: Desk) -> Server[Any]:
    """The MCP server of a Desk."""
    known = desk.roots.videos(NAMED + 1, WAIT)
    names = ", ".join(desk.roots.name(path) for path in known[:NAMED]) + (", and more" if len(known) > NAMED else "")
    told = f"{INSTRUCTIONS} The videos: {names}." if known else f"{INSTRUCTIONS} There is no video in the folder yet."

    async def tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[described(tool) for tool in TOOLS])

    async def call(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in BY_NAME:
            raise MCPError(code=types.INVALID_PARAMS, message=f"there is no tool {params.name[:80]!r}")
        return await Calling(desk, BY_NAME[params.name], params.arguments or {}, context).result()

    async def resources(context: Any, params: Any) -> types.ListResourcesResult:
        return await asyncio.to_thread(stopped(desk, videos), desk, params.cursor if params else None)

    async def resource(context: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        return await asyncio.to_thread(stopped(desk, about), desk, params.uri)

    return Server(
        "ivlite", version=__version__, title="Videos, with ivlite", instructions=told, on_list_tools=tools, on_call_tool=call,
        on_list_resources=resources, on_read_resource=resource,
    )  # fmt: skip


def described(tool: Tool) -> types.Tool:
    hints = types.ToolAnnotations(
        title=tool.title, read_only_hint=tool.reads, destructive_hint=False, idempotent_hint=True, open_world_hint=False
    )
    return types.Tool(
        name=tool.name, title=tool.title, description=tool.description, input_schema=tool.schema, output_schema=tool.output,
        annotations=hints,
    )  # fmt: skip


class Calling:
    """One call: its tool runs in a thread, while the client is told how far it is. It ends soon after it is cancelled."""

    def __init__(self, desk: Desk, tool: Tool, arguments: dict[str, Any], context: Any) -> None:
        self.desk, self.tool, self.arguments, self.context = desk, tool, arguments, context
        self.id, self._last = f"call-{secrets.token_hex(4)}", 0.0

    async def result(self) -> types.CallToolResult:
        stop = Stop(self.desk.stop)
        course, work = Course(stop), Work(self._opened, stop)
        self.course = course
        try:
            work.start(lambda: None)
            await self._told(0.0)
            while not work.done:
                await work.pieces(EVERY)
                await self._told()
            return self._made(work)
        finally:  # cancelled, too
            stop.set("left")

    @contextlib.contextmanager
    def _opened(self, work: Work) -> Iterator[tuple[()]]:
        with self.desk.admitted(), self.desk.engine.serving(self.client):
            work.reply = run(self.tool, self.desk, self.course, self.arguments)
            yield ()

    @property
    def client(self) -> str:
        """Whose turns are counted together: those of one connection."""
        headers = getattr(self.context.request, "headers", None)
        return f"mcp {headers.get('mcp-session-id', '') if headers is not None else ''}"

    async def _told(self, least: float = 0.01) -> None:
        """Tells what is being done, if the client wants to know it: seconds, which grow with every word."""
        so_far, in_all, text = self.course.told()
        if so_far >= self._last + least:
            self._last = so_far
            await self.context.session.report_progress(so_far, in_all, valid(text))

    def _made(self, work: Work) -> types.CallToolResult:
        if work.error is None:
            return content(work.reply)
        refused = refusal(work.error)
        if not (isinstance(work.error, Stopped) and work.stop.reason == "left"):
            detail = f" ({type(refused.detail).__name__}: {refused.detail})" if refused.detail else ""
            self.desk.log(f"{self.id} {self.tool.name}: {refused.message}{detail}")
        text = refused.message.replace("by this request_id", f"by {self.id}")
        return types.CallToolResult(content=[types.TextContent(text=valid(text))], is_error=True)


def content(result: Result) -> types.CallToolResult:
    pictures = [types.ImageContent(data=data, mime_type="image/jpeg") for data in result.jpegs()]
    return types.CallToolResult(
        content=[types.TextContent(text=valid(result.text)), *pictures], structured_content=valid(result.data)
    )


def valid(data: Any) -> Any:
    """Data whose texts are UTF-8: names of files may be none."""
    if isinstance(data, dict):
        return {name: valid(value) for name, value in data.items()}
    if isinstance(data, list):
        return [valid(item) for item in data]
    return data.encode("utf-8", "replace").decode() if isinstance(data, str) else data


# ------------------------------------------------------------------------------------------------ resources


def stopped(desk: Desk, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that ends when the server does."""

    def run(*args: Any) -> Any:
        with using(desk.stop):
            return function(*args)

    return run


def videos(desk: Desk, cursor: str | None) -> types.ListResourcesResult:
    """A page of the videos in the folders."""
    first = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() and len(cursor) < 9 else 0
    if cursor and not first:
        raise MCPError(code=types.INVALID_PARAMS, message="the cursor is none of this server")
    paths = desk.roots.videos(LISTED, SEARCHED)
    page = [
        types.Resource(
            uri=uri_of(path), name=desk.roots.name(path), mime_type="application/json", description="a video"
        )
        for path in paths[first : first + PAGE]
    ]
    more = str(first + PAGE) if first + PAGE < len(paths) else None
    return types.ListResourcesResult(resources=page, next_cursor=more)


def about(desk: Desk, uri: str) -> types.ReadResourceResult:
    """What is known of a video, as JSON: its texts in order of time, the first of them."""
    try:
        path = desk.path(uri)
    except Refused as refused:
        raise MCPError(code=types.INVALID_PARAMS, message=valid(refused.message)) from None
    video = next((video for video in desk.library.current() if os.path.realpath(video.path) == path), None)
    data: dict[str, Any] = {
        "video": desk.roots.name(path),
        "bytes": os.path.getsize(path),
        "indexed": video is not None,
    }
    if video is not None:
        texts = desk.library.texts(video.id, KINDS, most=TEXTS)
        data |= {
            "duration": round(video.duration, 3), "texts": desk.library.count(video.id),
            "first_texts": [{"start": t.start, "end": t.end, "kind": t.kind, "text": t.text} for t in texts],
        }  # fmt: skip
    text = types.TextResourceContents(uri=uri, mime_type="application/json", text=json.dumps(data))
    return types.ReadResourceResult(contents=[text])
