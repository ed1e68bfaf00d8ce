"""Calls of MCP tools in the making: what they share, the thread of each, and how far it is."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ivlite.agent.film import Film
from ivlite.engine.batch import Engine
from ivlite.library import Library
from ivlite.media.apart import Apart, Decoders
from ivlite.serve.places import Places
from ivlite.serve.roots import Roots
from ivlite.serve.wire import Refused
from ivlite.stages import Stages
from ivlite.stop import Stop

MOST = 64  # calls that run or wait
NAMED, SEARCHED = 8, 2.0  # videos that an error names; seconds to find them
PATIENCE = 5.0  # seconds that calls have to end


class Desk:
    """What the calls of all clients share: the engine of a model, the folders, the library, the processes that decode."""

    def __init__(self, engine: Engine, name: str, roots: Roots, library: Library, *,
                 log: Callable[[str], object] = lambda line: None, decoders: Decoders | None = None) -> None:  # fmt: skip
        self.engine, self.model, self.name, self.roots, self.library, self.log = (
            engine,
            engine.model,
            name,
            roots,
            library,
            log,
        )
        self.decoders = decoders or Decoders()
        self.stop = Stop()  # of all calls
        self.agents, self.indexes = Places(), Places()
        self.open = 0
        self._changed = threading.Condition()

    def close(self) -> None:
        """Stops all calls, and waits for their end."""
        self.stop.set("the server is closing")
        with self._changed:
            self._changed.wait_for(lambda: not self.open, PATIENCE)
        self.decoders.close()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Context manager of a call. Raises Refused where there are too many."""
        with self._changed:
            if self.open >= MOST:
                raise Refused(429, f"{self.open} calls run or wait: try again later", code="busy")
            self.open += 1
        try:
            yield
        finally:
            with self._changed:
                self.open -= 1
                self._changed.notify_all()

    def agent(self, stop: Stop) -> Any:
        """Context manager of an agent's work, for the client of this thread: one at a time."""
        client = self.engine.serving.client
        return self.agents.taken(stop, lambda: self.engine.had(client))

    def path(self, name: str) -> str:
        """The path of a video by its name. Raises Refused, with one text whether or not there is such a file elsewhere."""
        if (path := self.roots.find(name)) is not None:
            return path
        known = self.roots.videos(NAMED + 1, SEARCHED)
        names = ", ".join(self.roots.name(path)[:40] for path in known[:NAMED])
        more = " and more" if len(known) > NAMED else ""
        told = f"there are {names}{more}" if known else "there are none in its folders"
        raise Refused(
            400, f"there is no video of the name {name[:60]!r} that this server may read: {told}", param="video"
        )

    def source(self, path: str) -> Apart:
        """A video that another process decodes."""

        def allowed(file: str) -> bool:
            return self.roots.allowed(file) is not None

        return Apart(path, self.roots.name(path), self.decoders, allowed, lambda: allowed(path))

    def film(self, name: str, handle: str = "v1") -> Film:
        """A video by its name. Raises Refused, MediaError."""
        return Film(handle, self.source(self.path(name)), self.model.config)


class Course:
    """How far a call is; its tool says so from any thread. stop: ends the call."""

    def __init__(self, stop: Stop) -> None:
        self.stop, self.began, self.step = stop, time.monotonic(), ""
        self._stages, self._lock = Stages(), threading.Lock()

    def progress(self, stage: str, done: int, total: int) -> None:
        """The model's progress function."""
        with self._lock:
            self._stages.note(stage, done, total, self._stages.clock())

    def begin(self, step: str, plan: Any = None) -> None:
        """Another step begins, such as a call of the agent."""
        with self._lock:
            self.step = step
            self._stages.restart()
            if plan is not None:
                self._stages.expect(plan)

    def told(self) -> tuple[float, float | None, str]:
        """(seconds so far, seconds in all if anything tells, what is being done)."""
        with self._lock:
            now = self._stages.clock()
            line, left = self._stages.line(now), self._stages.remaining(now)
        so_far = round(time.monotonic() - self.began, 2)
        text = ": ".join(part for part in (self.step, line) if part)
        return so_far, None if left is None else round(so_far + left, 2), text or "waiting"
