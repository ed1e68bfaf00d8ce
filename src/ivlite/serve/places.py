"""Work of which only some may run at once: each keeps a conversation in memory, or would do what another does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ivlite.stop import Stop, waiting

LOOK = 0.05  # seconds between two looks at a Stop


class Places:
    """So many places. The lowest rank is next, such as the seconds that a client had; of equal ones, who came first."""

    def __init__(self, most: int = 1) -> None:
        self._free, self._line = most, dict[object, Callable[[], float]]()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, stop: Stop, rank: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
        """Context manager of work that has a place. Raises Stopped while it waits."""
        self._wait(stop, rank)
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()

    def _wait(self, stop: Stop, rank: Callable[[], float]) -> None:
        mine = object()
        with waiting(), self._changed:
            self._line[mine] = rank
            try:
                while not (self._free and self._next() is mine):
                    self._changed.wait(LOOK)
                    stop.check()
                self._free -= 1
            finally:
                del self._line[mine]
                self._changed.notify_all()

    def _next(self) -> object:
        return min(self._line, key=lambda one: self._line[one]())
