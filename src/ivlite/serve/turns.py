"""Requests take turns: one answer at a time, clients one after the other."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ivlite.stop import Stop

LOOK = 0.05  # seconds between two looks at a Stop


class Turns:
    """A fair lock: of the clients that wait, the one whose last turn is longest ago; its own requests in their order."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[object]] = {}  # by client, the next one first
        self._taken = False
        self._free = threading.Condition()

    @contextmanager
    def turn(self, client: str, stop: Stop) -> Iterator[None]:
        """Waits for a turn and holds it. Raises Stopped once the Stop is set."""
        ticket = object()
        with self._free:
            self._waiting.setdefault(client, deque()).append(ticket)
            try:
                while self._taken or self._next() is not ticket:
                    stop.check()
                    self._free.wait(LOOK)
                stop.check()
                self._taken = True
            finally:
                self._leave(client, ticket)
        try:
            yield
        finally:
            with self._free:
                self._taken = False
                self._free.notify_all()

    def _next(self) -> object:
        return next(iter(self._waiting.values()))[0]

    def _leave(self, client: str, ticket: object) -> None:
        line = self._waiting.pop(client)
        line.remove(ticket)
        if line:
            self._waiting[client] = line  # behind the others
        self._free.notify_all()
