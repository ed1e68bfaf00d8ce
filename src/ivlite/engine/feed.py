"""Deltas on their way from one thread to another."""

import os
import threading
from collections import deque

from ivlite.engine.reply import Delta
from ivlite.errors import UsageError

BUFFERED = 256  # deltas that wait for their consumer, before they are joined


class Feed:
    """Deltas from an Engine to one consumer. One who is slow gets longer ones, and holds up nobody.

    changed: what is notified of each; feeds that are read together have the same. error: ends the answer, behind its deltas.
    """

    def __init__(self, changed: threading.Condition | None = None) -> None:
        self.changed = threading.Condition() if changed is None else changed
        self.error: BaseException | None = None
        self._deltas: deque[Delta] = deque()
        self._ended, self._process = False, os.getpid()

    def put(self, delta: Delta) -> None:
        with self.changed:
            both = joined(self._deltas[-1], delta) if len(self._deltas) >= BUFFERED else None
            if both is None:
                self._deltas.append(delta)
            else:
                self._deltas[-1] = both
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self._ended = True
            self.changed.notify_all()

    @property
    def ready(self) -> bool:
        """Whether `get` returns at once."""
        return bool(self._deltas) or self._ended

    def get(self) -> Delta:
        """The next Delta. Raises StopIteration, or the exception that has ended the answer."""
        if os.getpid() != self._process:
            raise UsageError("the engine belongs to the process that this one was forked from: make another one")
        with self.changed:
            while not self.ready:
                self.changed.wait()
            if self._deltas:
                return self._deltas.popleft()
            error, self.error = self.error, None
        raise error or StopIteration


def joined(a: Delta, b: Delta) -> Delta | None:
    """Two pieces of text as one; None where they are no text of the same kind."""
    plain = Delta(a.text, a.thinking) == a and Delta(b.text, b.thinking) == b and a.thinking == b.thinking
    return Delta(a.text + b.text, a.thinking) if plain else None
