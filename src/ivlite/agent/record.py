"""The steps of a run, one after the other: what was done is never done again when the run is resumed."""

from collections.abc import Callable, Iterable
from typing import Any

from ivlite.errors import UsageError

Step = tuple[str, dict[str, Any]]  # kind, plain data
FORM = 2  # of the steps


class Record:
    """steps: those of an earlier process, which come first. write(number, kind, data): keeps a step that is finished; a failure
    of it is told to `warn`, once, and the run goes on.
    """

    def __init__(self, steps: Iterable[Step] = (), write: Callable[[int, str, dict[str, Any]], object] | None = None,
                 warn: Callable[[str], object] = lambda sentence: None) -> None:  # fmt: skip
        self._left = list(steps)[::-1]
        self._write, self._warn = write, warn
        self.count = 0

    def upcoming(self, kind: str) -> dict[str, Any] | None:
        """The next step, where it is known and of that kind; it stays the next one."""
        return self._left[-1][1] if self._left and self._left[-1][0] == kind else None

    def known(self, kind: str) -> dict[str, Any] | None:
        """The next step, where it is known. Raises UsageError where it is of another kind: of another version."""
        if not self._left:
            return None
        found, data = self._left.pop()
        if found != kind:
            raise UsageError(f"the run cannot be resumed: its step {self.count} is {found!r}, not {kind!r}; ask again")
        self.count += 1
        return data

    def add(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """Keeps a step that is finished."""
        number, self.count = self.count, self.count + 1
        if self._write is not None:
            try:
                self._write(number, kind, data)
            except (
                OSError,
                UsageError,
            ) as error:  # UsageError: the library was damaged, and begins anew without the run
                self._write = None
                self._warn(f"the run is not stored ({error}): it cannot be resumed")
        return data
