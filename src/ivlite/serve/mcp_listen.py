"""How MCP clients reach the server: over standard input and output, or over HTTP on this machine."""

import asyncio
import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
from mcp.server import Server
from mcp.server.stdio import stdio_server

from ivlite.serve import listen
from ivlite.serve.guard import Guard
from ivlite.serve.mcp_calls import Desk
from ivlite.stop import Stop

LONGEST = 4 << 20  # bytes of a message
PIECE = 1 << 16  # bytes that are read at once
LOOK = 0.1  # seconds between two looks at the Stop


class Pipe:
    """A descriptor that is read or written in a daemon thread: a client that neither sends nor takes anything holds up no exit."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self._calls = descriptor, queue.SimpleQueue[Any]()
        threading.Thread(target=self._run, name="ivlite-mcp", daemon=True).start()

    def _run(self) -> None:
        while True:
            function, loop, future = self._calls.get()
            try:
                done, failed = function(), None
            except Exception as error:
                done, failed = None, error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, future, done, failed)

    async def do(self, function: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._calls.put((function, loop, future))
        return await future


def settle(future: "asyncio.Future[Any]", done: Any, failed: Exception | None) -> None:
    if future.done():
        return
    if failed is None:
        future.set_result(done)
    else:
        future.set_exception(failed)


class Incoming(Pipe):
    """The messages of the client, a line each."""

    _rest = b""

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if (line := await self.do(self._line)) is None:
            raise StopAsyncIteration
        return str(line)

    def _line(self) -> str | None:
        """The next line, None at the end; one that is too long is read to its end, and is no message."""
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            try:
                piece = os.read(self.descriptor, PIECE)
            except OSError:
                piece = b""
            if not piece:
                return None
            size += len(piece)
            if size > LONGEST:  # what came before is of no use
                parts.clear()
            parts.append(piece)
        last, _, self._rest = parts.pop().partition(b"\n")
        return b"".join([*parts, last]).decode("utf-8", "replace") if size - len(self._rest) <= LONGEST else "too long"


class Outgoing(Pipe):
    """The messages to the client. gone: it reads no more."""

    gone = False

    async def write(self, text: str) -> None:
        try:
            await self.do(lambda: self._all(memoryview(text.encode("utf-8", "replace"))))
        except OSError:
            self.gone = True
            raise anyio.ClosedResourceError from None

    def _all(self, rest: memoryview) -> None:
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    async def flush(self) -> None:
        """Nothing is held back."""


@contextlib.contextmanager
def wires() -> Iterator[tuple[int, int]]:
    """(input, output) of the client. Meanwhile what anything else prints goes to standard error, and nothing else reads."""
    sys.stdout.flush()
    kept = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(nothing, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # there is no standard error
            os.dup2(nothing, 1)
        yield os.dup(kept[0]), os.dup(kept[1])  # not closed: a thread may be about to use them
    finally:
        for descriptor, number in zip(kept, (0, 1), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(nothing)


def over_stdio(server: Server[Any], stop: Stop) -> None:
    """Serves the client at the other end of standard input and output: until it closes them, or the Stop is set."""
    with wires() as (read, write):
        asyncio.run(conversation(server, Incoming(read), Outgoing(write), stop))


async def conversation(server: Server[Any], read: Incoming, write: Outgoing, stop: Stop) -> None:
    async def watch() -> None:
        while not stop and not write.gone:
            await asyncio.sleep(LOOK)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        async with stdio_server(read, write) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
        group.cancel_scope.cancel()


def over_http(server: Server[Any], desk: Desk, listening: socket.socket, stop: Stop) -> None:
    """Serves clients of this machine over HTTP at /mcp, until the Stop is set."""
    app = server.streamable_http_app(max_request_body_size=LONGEST)

    async def serve() -> None:
        async with server.session_manager.run():
            await listen.Server(Guard(app, loopback=True, key=None), desk, stop).serve(sockets=[listening])

    listen.quiet()
    asyncio.run(serve())
