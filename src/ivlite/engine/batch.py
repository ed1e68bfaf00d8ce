"""Several answers of one model together: one pass over the weights for the next token of each.

`together` runs some streams in the calling thread. An `Engine` runs what comes in a thread of its own, with prefills in between.
"""

import atexit
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from ivlite.engine.clients import Clients, Request, Serving
from ivlite.engine.reply import Delta
from ivlite.engine.step import Step, run_together
from ivlite.engine.stream import Stream
from ivlite.engine.turns import Turn, Turns
from ivlite.errors import OutOfMemoryError, Stopped, UsageError, shown
from ivlite.machine import MARGIN, gigabytes
from ivlite.numbers import whole
from ivlite.stop import Stop, in_turn, using

MOST = 8  # answers that run together
LONG, PREFILLS = (
    2048,
    2,
)  # tokens from which on a prefill is long, and how many of these are under way: each takes memory
PASSED = 64  # how many others may go before a request that waits for memory
SAME = 256  # tokens that another prompt must share at least, so that waiting for its rows pays


def together(streams: Sequence[Stream]) -> Iterator[tuple[int, Delta]]:
    """Runs several streams of one model in this thread; yields (index, Delta) as they come, and closes all at the end.

    Prefills run one after another, then one pass over the weights gives the next token of each. Every answer is the one
    that its stream alone gives. An exception of one is raised when the others have ended. An open Engine runs them instead.
    """
    if streams and (engine := streams[0].engine()) is not None:
        yield from engine.together(streams)
        return
    steps: dict[int, Step] = {}
    errors: list[BaseException] = []
    with ExitStack() as closing:
        for stream in streams:
            closing.enter_context(stream)
        due = list(range(len(streams)))
        while due:
            for i in due:
                try:
                    while not isinstance(item := streams[i].advance(), Step):
                        yield i, item
                    steps[i] = item
                except StopIteration:
                    pass
                except Exception as error:
                    errors.append(error)
            due = list(steps)
            run_steps([(streams[i], steps.pop(i)) for i in due])
    if errors:
        raise errors[0]


def run_steps(pairs: Sequence[tuple[Stream, Step]], stop: Stop | None = None) -> int:
    """Runs the Steps of streams in one pass, and returns how many it ran.

    It leaves out those that have ended or are stopped, and one that is alone: a stream that goes on runs its step itself,
    with its guesses. So it does after an exception, which then comes to the one that it belongs to.
    """
    with ExitStack() as held:
        for stream, _ in pairs:
            held.enter_context(stream.held())
        steps = [step for stream, step in pairs if not stream.over and not stream.stop]
        if len(steps) < 2:
            return len(steps)
        try:
            with using(stop):
                run_together(steps)
        except Stopped:
            pass
        except Exception as error:
            del error
        return len(steps)


_open: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """Ends what engines still do: a daemon thread that comes back to an interpreter that is gone may crash the process."""
    for engine in tuple(_open):
        engine._close(2.0)


class Engine:
    """Answers of one model that share the machine. A context manager that closes it; any thread may call any method.

    At each step one pass over the weights gives the next token of every answer that is being written; a piece of somebody's
    prefill comes between two steps. Clients have equal shares of the machine, and one client's requests come in order.
    Answers are what `Model.stream` gives, to the last bit where it reuses the same rows. As long as it is open it runs every answer
    of the model: those of `Model.chat`, `Model.stream`, sessions and `together` as well.

    most: the answers that run at once; others wait. memory: bytes of all caches: those of running answers as they will be at
    their end, of sessions, and of calls that have ended, which are dropped where it is needed; None: what is free now.
    What does not fit waits. `with engine.serving(client)`: this thread's requests, those of sessions and agents too, are a
    client's. Progress functions are called by the engine's threads: one that waits holds up all.
    """

    def __init__(self, model: Any, *, most: int = MOST, memory: int | None = None) -> None:
        if not callable(getattr(model, "free_memory", None)):
            raise UsageError(f"model is {shown(model)}; it must be a model that ivlite.load has returned")
        self.model, self.most = model, whole("most", most, 1, 1024)
        free = model.free_memory()
        default = None if free is None else max(0, free - MARGIN) + model.caches.nbytes
        self.memory = default if memory is None else whole("memory", memory, 1, 1 << 60)
        self._clients, self.serving, self._turns, self._stop = Clients(), Serving(), Turns(), Stop()
        self._decoding: list[Request] = []  # those of the step that is being run
        self._turn = Turn(self._turns, lambda seconds: (0.0,), self._spent, self._stop, urgent=True)
        self._changed = threading.Condition()
        self._queue: list[Request] = []
        self._running: list[Request] = []
        self._number, self._process = 0, os.getpid()
        self._threads: set[threading.Thread] = set()
        _open.add(self)
        model.engine = self
        model.caches.shared_by(2 * self.most, self.memory)
        model.begun(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a place."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """The number of answers in progress."""
        return len(self._running)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches that are promised or in use."""
        with self._changed:
            return self._taken() + int(self.model.caches.nbytes)

    def had(self, client: str) -> float:
        """The seconds of computing that a client had, which decide who is next: of one who comes new, those it would begin with."""
        return self._clients.had(client)

    # -------------------------------------------------------------------------------------------- requests

    def stream(self, messages: Sequence[Mapping[str, Any]], *, client: str | None = None, session: Any = None,
               **settings: Any) -> Stream:  # fmt: skip
        """A Stream of the answer to a conversation, of `Model.stream` or, with a session, of `Session.stream`.

        Files are opened in the calling thread. client: whose request it is; None: of whom `serving` says. Close a stream that
        nobody reads any more: it is answered to its end otherwise. Raises what these raise, and OutOfMemoryError for a request
        that never fits.
        """
        self._check_open()
        return self.add((self.model if session is None else session).stream(messages, **settings), client=client)

    def add(self, stream: Stream, *, client: str | None = None) -> Stream:
        """Runs a stream of the model or of a session that was just made, such as `session.ask(...)`; returns it."""
        self._request(stream, client, None)
        return stream

    def together(self, streams: Sequence[Stream], *, client: str | None = None) -> Iterator[tuple[int, Delta]]:
        """Runs several streams; yields (index, Delta) as they come, and closes all at the end. See `together`."""
        changed, errors = threading.Condition(), list[BaseException]()
        with ExitStack() as closing:
            for stream in streams:
                closing.enter_context(stream)
            feeds = {i: self._request(stream, client, changed).feed for i, stream in enumerate(streams)}
            while feeds:
                with changed:
                    changed.wait_for(lambda: any(feed.ready for feed in feeds.values()))
                for i in [i for i, feed in feeds.items() if feed.ready]:
                    try:
                        yield i, feeds[i].get()
                    except StopIteration:
                        del feeds[i]
                    except Exception as error:
                        errors.append(error)
                        del feeds[i]
        if errors:
            raise errors[0]

    def _request(self, stream: Stream, client: str | None, changed: threading.Condition | None) -> Request:
        client = self.serving.client if client is None else client
        request = Request(stream, client, self.model.token_nbytes, changed)
        try:
            self._check_open()
            if self.memory is not None and request.need > self.memory:
                raise OutOfMemoryError(self._refusal(request))
            stream.feed(request.feed)
            with self._changed:
                self._check_open()
                if not self._threads:
                    self._start(self._work)
                self._number += 1
                request.number = self._number
                self._clients.enter(client)
                self._queue.append(request)
                self._changed.notify_all()
        except BaseException:
            stream.close()
            raise
        return request

    def close(self) -> None:
        """Ends all answers, and waits for their end unless an answer's own progress function calls it."""
        self._close(None)

    def serves(self) -> bool:
        """Whether it runs what the calling thread asks of the model: not once it is closed, in a forked child, or for itself."""
        mine = threading.current_thread() in self._threads
        return not self._stop and os.getpid() == self._process and not mine

    def _close(self, seconds: float | None) -> None:
        if os.getpid() != self._process:
            return
        self._stop.set("closed")
        self.model.engine = None if self.model.engine is self else self.model.engine
        with self._changed:
            requests = [*self._queue, *self._running]
            self._changed.notify_all()
        for request in requests:
            request.stream.stop.set("closed")
        if threading.current_thread() in self._threads:
            return
        for thread in tuple(self._threads):
            thread.join(seconds)

    def _check_open(self) -> None:
        if self._stop or os.getpid() != self._process:
            raise UsageError("the engine is closed, or of another process: make another one")

    def _start(self, run: Any, *args: Any) -> None:
        """Runs a function in a thread. Raises OutOfMemoryError where the system allows none."""

        def body() -> None:
            try:
                run(*args)
            finally:
                self._threads.discard(thread)

        thread = threading.Thread(target=body, name="ivlite-engine", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.discard(thread)
            raise OutOfMemoryError("the system allows the engine no further thread") from error

    # -------------------------------------------------------------------------------------------- the worker

    def _work(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # a fault of the engine itself: nobody may wait for it
            self._stop.set("closed")
            for request in [*self._queue, *self._running]:
                self._end(request, error)

    def _serve(self) -> None:
        """Admits requests, and runs steps of those that decode."""
        while True:
            with self._changed:
                ended = self._admit()
                group = [request for request in self._running if request.step is not None]
                if not ended and not group:
                    if self._stop and not self._running and not self._queue:
                        return
                    self._changed.wait(0.1 if self._queue else None)  # nothing tells that a Stop was set
            for request, error in ended:
                self._end(request, error)
            if group:
                self._decode(group)

    def _decode(self, group: list[Request]) -> None:
        self._decoding = group
        with in_turn(self._turn):
            run_steps([(request.stream, request.step) for request in group if request.step is not None], self._stop)
            for request in group:
                request.step = None
                self._go_on(request)

    def _prefill(self, request: Request) -> None:
        clients, client = self._clients, request.client

        def key(seconds: float) -> tuple[float, float, int]:
            return clients.seconds.get(client, 0.0) + seconds, request.seconds + seconds, request.number

        def spend(seconds: float) -> None:
            request.seconds += seconds
            clients.spend(client, seconds)

        with in_turn(Turn(self._turns, key, spend, request.stream.stop)):
            self._go_on(request)
        with self._changed:
            self._changed.notify_all()

    def _go_on(self, request: Request) -> None:
        """Runs a request to its next step, or to its end."""
        try:
            while not isinstance(item := request.stream.advance(), Step):
                request.feed.put(item)
            request.step = item
        except StopIteration:
            self._end(request, None)
        except BaseException as error:
            self._end(request, error)

    def _end(self, request: Request, error: BaseException | None) -> None:
        with self._changed:
            for requests in (self._queue, self._running):
                if request in requests:
                    requests.remove(request)
                    self._clients.leave(request.client)
            self._changed.notify_all()
        request.feed.error = error
        request.stream.close()

    def _spent(self, seconds: float) -> None:
        """What a step took, of which each of those who decode has a part."""
        for request in self._decoding:
            self._clients.spend(request.client, seconds / len(self._decoding))

    # -------------------------------------------------------------------------------------------- admission, under the lock

    def _admit(self) -> list[tuple[Request, BaseException | None]]:
        """Starts what may start. Returns requests that end without, each with its error or None."""
        ended: list[tuple[Request, BaseException | None]] = [(r, None) for r in self._queue if r.gone]

        def order(request: Request) -> tuple[bool, float, int]:
            return request.passed < PASSED, self._clients.seconds.get(request.client, 0.0), request.number

        for request in sorted(self._queue, key=order):
            if sum(not r.gone for r in self._running) >= self.most:
                break
            if request.gone or self._later(request):
                continue
            if not self._fits(request):
                if not self._running:
                    ended.append((request, OutOfMemoryError(self._refusal(request))))
                elif request.passed >= PASSED:
                    break
                request.large = True
                continue
            self._queue.remove(request)
            self._running.append(request)
            for other in self._queue:
                other.passed += other.large and other.number < request.number
            try:
                self._start(self._prefill, request)
            except OutOfMemoryError as error:
                ended.append((request, error))
        return ended

    def _later(self, request: Request) -> bool:
        """Whether a request is better begun when another's prefill has ended: it takes much memory too, or has the same rows."""
        prefills = [r for r in self._running if r.step is None and r not in self._decoding and not r.gone]
        tokens = len(request.stream.prompt.token_ids)
        if tokens >= LONG and sum(len(r.stream.prompt.token_ids) >= LONG for r in prefills) >= PREFILLS:
            return True
        return any(request.alike(other) >= max(SAME, tokens // 2) for other in prefills)

    def _taken(self) -> int:
        """Bytes promised to running answers, and those of other sessions."""
        sessions = {id(request.session) for request in tuple(self._running)}
        return sum(request.need for request in tuple(self._running)) + sum(
            session.nbytes for session in self.model.sessions if id(session) not in sessions
        )

    def _fits(self, request: Request) -> bool:
        """Whether there is memory for a request; drops caches of calls that have ended, where it takes that."""
        if self.memory is None:
            return True
        left = self.memory - self._taken() - request.need
        if request.session is not None:
            left += int(request.session.nbytes)
        return left >= 0 and bool(self.model.caches.trim(left, request.stream.prompt))

    def _refusal(self, request: Request) -> str:
        tokens, others = request.stream.most, self._taken()
        held = f", of which sessions hold {gigabytes(others)}" if others else ""
        return (
            f"{tokens:,} tokens of prompt and answer take {gigabytes(request.need)} of {self.model.kv} cache, and all caches together "
            f"may take {gigabytes(self.memory or 0)}{held}: ask for fewer max_new_tokens or frames, or close sessions"
        )
