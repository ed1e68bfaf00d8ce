"""Who is served next: requests of several clients, and the seconds that each client had."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ivlite.engine.feed import Feed
from ivlite.engine.held import Held
from ivlite.engine.step import Step
from ivlite.engine.stream import Stream

CREDIT = 5.0  # seconds that a client who comes new is ahead of those who were there


class Request:
    """One answer of an Engine. step: what it wants next, while it decodes. seconds: what its prefill has taken.

    need: bytes of the cache of prompt and answer. large: there was no room for it; passed: how many later ones were begun
    since. holds: what its cache will hold when its prefill has ended.
    """

    def __init__(self, stream: Stream, client: str, row: int, changed: threading.Condition | None) -> None:
        self.stream, self.client, self.number = stream, client, 0
        self.feed, self.need = Feed(changed), stream.most * row
        self.step: Step | None = None
        self.seconds, self.passed, self.large = 0.0, 0, False
        self.holds = Held.of(stream.prompt)
        self._alike: dict[int, int] = {}

    def alike(self, other: "Request") -> int:
        """The tokens with which both prompts begin, as far as that is known without reading large files."""
        if other.number not in self._alike:
            self._alike[other.number] = other.holds.shared(self.stream.prompt, reading=False)
        return self._alike[other.number]

    @property
    def gone(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self.stream.over or bool(self.stream.stop)

    @property
    def session(self) -> Any:
        return getattr(self.stream.holder, "session", None)


class Serving(threading.local):
    """The client for whom a thread works; called with one, a context manager in which it works for that one."""

    client = ""

    @contextmanager
    def __call__(self, client: str) -> Iterator[None]:
        before, self.client = self.client, client
        try:
            yield
        finally:
            self.client = before


class Clients:
    """The seconds of computing that each client had: who had the fewest goes first.

    One who comes new, or comes back, is CREDIT behind those who are there: a short question need not wait for a film.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._active: dict[str, int] = {}
        self._floor = 0.0
        self._lock = threading.Lock()

    def enter(self, client: str) -> None:
        with self._lock:
            self._rise()
            least = self._floor - CREDIT
            self.seconds = {name: had for name, had in self.seconds.items() if had > least or name in self._active}
            if client not in self._active:
                self.seconds[client] = max(self.seconds.get(client, least), least)
            self._active[client] = self._active.get(client, 0) + 1

    def had(self, client: str) -> float:
        """What counts as the seconds of a client: of one who comes new, those it would begin with."""
        with self._lock:
            least = self._floor - CREDIT
            had = self.seconds.get(client, least)
            return had if client in self._active else max(had, least)

    def leave(self, client: str) -> None:
        with self._lock:
            self._active[client] -= 1
            if not self._active[client]:
                del self._active[client]

    def spend(self, client: str, seconds: float) -> None:
        with self._lock:
            self.seconds[client] = self.seconds.get(client, 0.0) + seconds
            self._rise()

    def _rise(self) -> None:
        self._floor = max(self._floor, min((self.seconds[name] for name in self._active), default=0.0))
