"""One answer in the making: a thread that follows the model's stream, and what an endpoint hears of it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ivlite.stop import Stop, using

Open = Callable[["Work"], Any]  # -> a context manager of an iterator of pieces, which sets `reply` at its end


class Portion:
    """Text of an answer, of one kind. tokens: how many the answer had at its end."""

    def __init__(self, delta: Any, tokens: int) -> None:
        self.text, self.thinking, self.call = delta.text, delta.thinking, delta.call
        self.tokens = tokens

    def joined(self, other: "Portion") -> bool:
        """Whether another piece became part of this one."""
        if self.call or other.call or self.thinking != other.thinking:
            return False
        self.text += other.text
        self.tokens = other.tokens
        return True


def portions(work: "Work", stream: Any) -> Iterator[Portion]:
    """The pieces of a Stream of the model."""
    for delta in stream:
        yield Portion(delta, len(stream.reply.token_ids))
    work.reply = stream.reply


class Work:
    """The answer to one request. Its thread never waits for the client: pieces that nobody has taken yet are joined.

    open(work): begins, in the work's thread and under its Stop. stop: ends it, at any moment. reply: what it came to.
    """

    def __init__(self, open: Open, stop: Stop) -> None:
        self.stop, self._open = stop, open
        self.stream: Any = None
        self.reply: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.stage = "waiting"
        self.stages: dict[str, tuple[int, int]] = {}  # done and total of those of the pass that runs, in order
        self.began = time.monotonic()
        self._pieces: list[Any] = []
        self._lock = threading.Lock()
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()

    def start(self, ended: Callable[[], object]) -> None:
        """Begins in a thread of its own; ended() is called in the event loop. Raises RuntimeError without threads."""
        self._ended = ended
        threading.Thread(target=self._run, name="ivlite-request", daemon=True).start()

    def _run(self) -> None:
        try:
            with using(self.stop):
                self.stop.check()
                with self._open(self) as pieces:
                    for piece in pieces:
                        self._add(piece)
        except BaseException as error:
            self.error = error
        self._tell(self._finish)

    def _finish(self) -> None:
        """In the event loop, so that whoever sees it done sees it counted, too."""
        self.done = True
        self._ended()

    def _add(self, piece: Any) -> None:
        with self._lock:
            if not (self._pieces and self._pieces[-1].joined(piece)):
                self._pieces.append(piece)
        self._tell(None)

    def progress(self, stage: str, done: int, total: int) -> None:
        """The model's progress function. A stage that begins again is of another pass."""
        before = self.stages if done >= self.stages.get(stage, (0, 0))[0] else {}
        self.stage, self.stages = stage, before | {stage: (done, total)}

    def _tell(self, then: Callable[[], object] | None) -> None:
        def told() -> None:
            if then is not None:
                then()
            self._news.set()

        try:
            self._loop.call_soon_threadsafe(told)
        except RuntimeError:  # the loop has ended, and the process will
            pass

    async def pieces(self, patience: float) -> list[Any]:
        """The pieces since the last call, after at most `patience` seconds; [] where there are none, and at the end."""
        try:
            async with asyncio.timeout(patience):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        with self._lock:
            taken, self._pieces = self._pieces, []
        if self.done:
            self._news.set()
        return taken
