"""Work of which only some may run at once: each keeps a conversation in memory, or would do what another does."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from ivlite.stop import Stop, waiting

LOOK = 0.05  # seconds between two looks at a Stop


class Places:
    """So many places; who came first is first."""

    def __init__(self, most: int = 1) -> None:
        self._free, self._line = most, deque[object]()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, stop: Stop) -> Iterator[None]:
        """Context manager of work that has a place. Raises Stopped while it waits."""
        mine = object()
        with self._changed:
            self._line.append(mine)
        try:
            with waiting(), self._changed:
                while not (self._free and self._line[0] is mine):
                    self._changed.wait(LOOK)
                    stop.check()
                self._free -= 1
        finally:
            with self._changed:
                self._line.remove(mine)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
