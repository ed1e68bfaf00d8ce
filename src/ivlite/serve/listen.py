"""Listens: sockets, the loop, and the end of the server."""

import asyncio
import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ivlite.errors import AddressError
from ivlite.stop import Stop

GRACE = 3.0  # seconds that answers have to end once the server shall
LOOK = 0.1  # seconds between two looks at the Stop
BACKLOG = 128  # also how many are accepted at once
IDLE = 60  # seconds for which a connection without requests stays open
HEADERS = 64 << 10  # bytes
ASKED = 20  # seconds within which the headers of a request come, from the first byte of a connection or of a request
CONNECTIONS = 1024  # or half of the files that the process may have open


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address and does not listen yet. Raises AddressError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    except (OSError, UnicodeError) as error:
        raise AddressError(f"--host {host} is no address of this machine ({words(error)})") from None
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier server may be closing
        made.bind(address)
        made.listen(BACKLOG)  # here: of two that bind, the second fails only now
        return made
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            advice = "another program listens there; use another --port, or --port 0 for any that is free"
        elif error.errno in (errno.EACCES, errno.EPERM):
            advice = "this user may not; use a --port above 1023, or --port 0 for any that is free"
        else:
            advice = "use another --host, or --port 0 for any port that is free"
        raise AddressError(f"cannot listen at {host} port {port} ({words(error)}): {advice}") from None


def words(error: Exception) -> str:
    return getattr(error, "strerror", None) or os.strerror(getattr(error, "errno", 0) or errno.EINVAL)


def address(listening: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Connection(H11Protocol):
    """A connection. One that does not ask is closed: after ASKED seconds, and when there are too many, the oldest first.

    Without that, clients that begin requests and never end their headers keep everybody else out.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.since = self.loop.time()
        self._late: asyncio.TimerHandle | None = None
        self._expect()
        if len(self.connections) >= most_connections():
            idle = [one for one in self.connections if isinstance(one, Connection) and one is not self and one.idle]
            if idle:
                min(idle, key=lambda one: one.since).transport.abort()

    @property
    def asks(self) -> bool:
        """Whether a request has come whose answer has not ended."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def idle(self) -> bool:
        return not self.asks and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.asks:
            self._forget()
        else:
            self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.asks and self.conn.trailing_data[0]:  # the next request began before this answer had ended
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(ASKED, self._close)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if not self.asks:
            self.transport.abort()


def most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, files // 2)


class Server(uvicorn.Server):
    """Ends when a Stop is set: first it takes no more connections, then answers have GRACE seconds, then they are stopped.

    service: what has the Stop of all answers.
    """

    def __init__(self, app: Any, service: Any, stop: Stop) -> None:
        super().__init__(uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", http=Connection, loop="asyncio", server_header=False,
            timeout_keep_alive=IDLE, h11_max_incomplete_event_size=HEADERS, limit_concurrency=most_connections() + BACKLOG, backlog=BACKLOG,
            timeout_graceful_shutdown=GRACE + 2, proxy_headers=False,
        ))  # fmt: skip
        self.service, self.wanted = service, stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they set the Stop

    async def main_loop(self) -> None:
        while not self.wanted and not self.should_exit:
            await asyncio.sleep(LOOK)
            await self.on_tick(0)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(GRACE, self.service.stop.set, "the server is closing")
        await super().shutdown(sockets)
        self.service.stop.set("the server is closing")


def quiet() -> None:
    """What uvicorn says is said by the service, in one line."""
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [logging.NullHandler()], False


def run(app: Any, service: Any, listening: socket.socket, stop: Stop) -> None:
    """Serves until the Stop is set, and until what runs then has ended."""
    quiet()
    try:
        asyncio.run(Server(app, service, stop).serve(sockets=[listening]))
    finally:
        listening.close()
