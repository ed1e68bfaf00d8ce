"""Cancellation: a Stop that any thread may set, and that all long work checks.

Work belongs to a Stop through its thread: within `with using(stop):`, `checkpoint()` and the kernels raise Stopped once
the Stop is set. Only code that starts work, or moves it to another thread, passes a Stop.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

from ivlite.errors import Stopped, UsageError, shown

T = TypeVar("T")


class _Local(threading.local):
    """The Stop of each thread, and its turn among threads that compute one at a time (engine.turns).

    A default of the class is found several times faster than by asking for what is missing.
    """

    stop: "Stop | None" = None
    turn: Any = None


_thread = _Local()


class Stop:
    """A cancellation flag: work under this Stop ends at its next check and keeps its result so far.

    set(reason) stops now, after(seconds) later. `reason` is None until then; afterwards it is the first reason given, or
    "deadline". A Stop is true once it is set. parents: Stops that set this one as well.

    Every method may be called from any thread and from a signal handler: none waits for a lock.
    """

    def __init__(self, *parents: "Stop") -> None:
        self._reason: str | None = None
        self._deadline: float | None = None
        self._children: dict[int, weakref.ref[Stop]] = {}  # id -> weak reference
        for parent in parents:
            parent._adopt(self)

    def set(self, reason: str = "interrupted") -> None:
        """Stops all work under this Stop, present and future. reason: a word for `Reply.finish_reason`."""
        if not isinstance(reason, str) or not reason:
            raise UsageError(f"the reason of a stop is {shown(reason)}; it must be a word")
        if self._reason is not None:
            return
        self._reason = reason
        if flag := self.__dict__.get("_flag"):
            flag.set()
        for child in self._living():
            child.set(reason)

    def after(self, seconds: float) -> None:
        """Sets a deadline `seconds` from now; of several deadlines the earliest counts."""
        from ivlite.numbers import number  # imports fractions and decimal, which --help does not need

        self._until(time.monotonic() + number("seconds", seconds, 0, 1e9))

    @property
    def reason(self) -> str | None:
        """The reason of the stop, or None if the Stop is not set."""
        if self._reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.set("deadline")
        return self._reason

    def is_set(self) -> bool:
        return self.reason is not None

    __bool__ = is_set

    def check(self) -> None:
        """Raises Stopped if the Stop is set."""
        if (reason := self.reason) is not None:
            raise Stopped.because(reason)

    @property
    def flag(self) -> Any:
        """The `_C.StopFlag` that kernels check; created at first use."""
        if "_flag" not in self.__dict__:
            from ivlite import _C

            flag = self.__dict__.setdefault("_flag", _C.StopFlag())  # atomic: all threads get the same flag
            if self._deadline is not None:
                flag.after(max(0.0, self._deadline - time.monotonic()))
            if self._reason is not None:
                flag.set()
        return self.__dict__["_flag"]

    def _until(self, moment: float) -> None:
        if self._deadline is not None and self._deadline <= moment:
            return
        self._deadline = moment
        if flag := self.__dict__.get("_flag"):
            flag.after(max(0.0, moment - time.monotonic()))
        for child in self._living():
            child._until(moment)

    def _living(self) -> list["Stop"]:
        return [child for ref in tuple(self._children.values()) if (child := ref()) is not None]

    def _adopt(self, child: "Stop") -> None:
        key, children = id(child), self._children
        children[key] = weakref.ref(child, lambda _: children.pop(key, None))
        if self._deadline is not None:
            child._until(self._deadline)
        if self._reason is not None:
            child.set(self._reason)


def checked(stop: Stop | None) -> Stop | None:
    """Returns `stop`, a Stop or None. Raises UsageError for anything else."""
    if stop is not None and not isinstance(stop, Stop):
        raise UsageError(f"stop is a {type(stop).__name__}; it must be an ivlite.Stop")
    return stop


def current() -> Stop | None:
    """The Stop of this thread, or None."""
    return _thread.stop


def within(*stops: Stop | None) -> Stop:
    """A new Stop whose parents are `stops` (None is skipped) and the Stop of this thread."""
    return Stop(*(s for s in (current(), *map(checked, stops)) if s is not None))


def checkpoint() -> None:
    """Raises Stopped if the Stop of this thread is set. Other threads that wait for their turn may have it first."""
    stop = _thread.stop
    if _thread.turn is not None:
        _thread.turn.offer()
    if stop is not None and (stop._reason is not None or stop._deadline is not None):  # its lines run for every layer
        stop.check()


@contextmanager
def using(stop: Stop | None) -> Iterator[Stop | None]:
    """Makes `stop` (or None) the Stop of this thread, for Python code and kernels."""
    from ivlite import _C

    before = current()
    kernels = _C.use_stop(None if stop is None else stop.flag)
    _thread.stop = stop
    try:
        yield stop
    except Stopped as error:  # a kernel raises it without the reason
        if stop is not None:
            error.reason = stop.reason or "deadline"
            error.args = Stopped.because(error.reason).args
        raise
    finally:
        _thread.stop = before
        _C.use_stop(kernels)


@contextmanager
def in_turn(turn: Any) -> Iterator[None]:
    """Takes a turn (engine.turns.Turn) for this thread, and gives it back."""
    turn.take()
    _thread.turn = turn
    try:
        yield
    finally:
        _thread.turn = None
        turn.give()


@contextmanager
def waiting() -> Iterator[None]:
    """Around waits for files and decoders: if they are long, another thread has this one's turn to compute meanwhile."""
    turn = _thread.turn
    if turn is None:
        yield
        return
    turn.lend()
    _thread.turn = None
    try:
        yield
    finally:
        _thread.turn = turn
        turn.back()


def bound(function: Callable[..., T]) -> Callable[..., T]:
    """Wraps `function` for another thread: there it runs under this thread's Stop."""
    stop = current()

    def run(*args: Any) -> T:
        with using(stop):
            return function(*args)

    return run


class Work(Generic[T]):
    """Iterates over a generator under a Stop. One thread iterates at a time; any thread may close it.

    close() cancels the item in progress and closes the generator, which frees what it holds.
    """

    def __init__(self, items: Any, stop: Stop) -> None:
        self._items, self.stop = items, stop
        self._turn = threading.RLock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._turn, using(self.stop):
            return next(self._items)

    @property
    def over(self) -> bool:
        """Whether there are no more items."""
        return self._items.gi_frame is None

    def held(self) -> Any:
        """A context in which no other thread goes on with the work or closes it."""
        return self._turn

    def close(self) -> None:
        """Ends the work and waits for its end; does not wait when called by the work itself or by a signal handler."""
        self.stop.set("closed")
        with self._turn:
            if not self._items.gi_running:
                self._items.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
