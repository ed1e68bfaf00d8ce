"""A batch on this machine: threads that open files ahead, and an Engine in which their answers share each pass over the weights."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ivlite.batch.answering import Answerer, Line
from ivlite.batch.task import Task
from ivlite.stop import Stop, checkpoint, current, using

AHEAD = 2  # inputs whose files are opened while others are answered; their frames are decoded when their turn comes
LOOK = 0.1  # seconds between two looks at the Stop
Work = Iterable[tuple[int, Task]]


def answers(
    answerer: Answerer, work: Work, tick: Callable[[], object] = lambda: None
) -> Iterator[tuple[int, Task, Line]]:
    """Yields (index, Task, Line) as they are answered, in any order. Raises Stopped, and what ends a whole batch.

    work: is taken from as places become free, so it may have any length. tick() is called ten times a second. Closing the
    iterator stops what is under way.
    """
    stop = Stop(*(s for s in (current(),) if s is not None))
    taking, out = Taking(work), queue.Queue[Any](maxsize=64)
    threads = [
        threading.Thread(target=_work, args=(answerer, taking, out, stop), name="ivlite-batch", daemon=True)
        for _ in range(answerer.engine.most + AHEAD)
    ]
    running = started(threads)
    try:
        while running:
            checkpoint()
            tick()
            try:
                item = out.get(timeout=LOOK)
            except queue.Empty:
                continue
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stop.set("closed")
        drained(threads, out)


def started(threads: list[threading.Thread]) -> int:
    """Starts as many threads as the system allows, one at least; returns how many."""
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError:
            if not number:
                raise
            return number
    return len(threads)


def drained(threads: list[threading.Thread], out: "queue.Queue[Any]") -> None:
    """Waits for threads that end, and forgets what they still say."""
    for thread in threads:
        while thread.ident is not None and thread.is_alive():
            try:
                out.get(timeout=0.02)
            except queue.Empty:
                pass


class Taking:
    """Hands out work to threads."""

    def __init__(self, work: Work) -> None:
        self._work, self._lock = iter(work), threading.Lock()

    def next(self) -> tuple[int, Task] | None:
        with self._lock:
            return next(self._work, None)


def _work(answerer: Answerer, taking: Taking, out: "queue.Queue[Any]", stop: Stop) -> None:
    """The body of a thread: one input after another; None at its end."""
    try:
        with using(stop):
            while not stop and (item := taking.next()) is not None:
                index, task = item
                out.put((index, task, answerer.line(task)))
    except BaseException as error:
        out.put(error)
    out.put(None)
