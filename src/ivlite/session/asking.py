"""One call of a session: what it takes from the cache, and what it puts back."""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from ivlite.engine.meter import Meter
from ivlite.engine.reply import Reply
from ivlite.engine.runner import Runner
from ivlite.engine.step import Step
from ivlite.engine.stream import Stream
from ivlite.errors import Stopped
from ivlite.prompt import Prompt
from ivlite.stop import using

if TYPE_CHECKING:
    from ivlite.session import Session, Turn


class Asking:
    """One call of a session: what `Model` asks of whoever provides the cache."""

    def __init__(self, session: "Session") -> None:
        self.session, self.stop = session, session._closing
        self.messages: list[Any] = []
        # those that the messages follow; None: they are the whole conversation
        self.turns: tuple[Turn, ...] | None = ()
        self.past: Prompt | None = None  # of these turns
        self.tools: list[str] = []
        self.runner: Any = None
        self.prompt: Any = None
        self.continued = self.done = self.complete = False
        self.stream: Callable[[], Stream | None] = lambda: None
        self.made = 0

    @property
    def tail(self) -> str:
        """Text of the answer before whose tokens are still to be added."""
        return self.turns[-1].tail if self.turns else ""

    @property
    def base(self) -> int:
        """The rows of a cache that the answer before has left."""
        turns = self.session._turns if self.turns is None else self.turns
        return turns[-1].rows if turns else 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the next prompt need not take."""
        return self.session.nbytes

    def answer(self, prompt: Prompt, sampler: Any, eos: Any, limit: int, meter: Meter) -> Generator[Any, None, str]:
        """Yields the tokens of the answer, and its Steps; see Runner.answering. Puts back what an error took from the session."""
        session = self.session
        self.prompt, self.runner = prompt, session._ready(len(prompt.token_ids) + limit, meter)
        lost = Lost(session, self.runner, prompt, self.base)
        tokens = self.runner.answering(prompt, sampler, eos, limit, self.base)
        try:
            while True:
                try:
                    token = next(tokens)
                except StopIteration as end:
                    self.complete = True
                    return str(end.value)
                self.made += not isinstance(token, Step)
                yield token
        except (Stopped, GeneratorExit):
            tokens.close()  # tokens that were only drafted leave the cache
            if not self.made:  # what is computed of the prompt stays, for the next time
                lost.put_back()
            raise
        except BaseException:
            lost.put_back(all_of_it=True)
            raise

    def foreseen(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt that answer would not run."""
        session, runner = self.session, self.session._runner
        mine = 0 if runner is None else runner.foreseen(prompt, self.base)
        return int(session._model._pool.stored(prompt, mine, self.base if mine >= self.base else 0))

    def ended(self, reply: Reply | None, end: int | None) -> None:
        """The stream is over: reply is None after an error. end: characters of text before a stop string."""
        if self.done:
            return
        try:
            if reply is not None and (self.made or self.complete):
                with using(None):  # the Stop may be set
                    self.session._add(self, reply, end)
        finally:
            if self.session._closing:
                self.session._runner = None
            if self.runner is not None:
                self.runner.meter = Meter()  # the call's own has its progress function, which may hold anything
            self.runner = self.prompt = None
            self.done = True


class Lost:
    """The rows of a conversation that a prompt will overwrite, kept until it has an answer.

    Where memory is short they are not kept; the turns that need them are then lost as well.
    """

    def __init__(self, session: "Session", runner: Runner, prompt: Prompt, base: int) -> None:
        rows = session._turns[-1].rows if session._turns else 0
        self._session, self._runner, self._rows = session, runner, rows
        self._shared = min(rows, runner.foreseen(prompt, base, reading=True)) if rows else 0
        if self._shared < base and runner.keeper:  # another conversation: all rows may come from the store
            self._shared = 0
        kept = self._shared < rows and session._model.free(rows - self._shared)
        self._data = runner.cache.dump(self._shared, rows) if kept else None
        self._held = runner.held.copy(rows)
        self._held.lows = {file: min(low, rows) for file, low in runner.held.lows.items()}

    def put_back(self, all_of_it: bool = False) -> None:
        """Restores the rows; all_of_it: and forgets those that came after."""
        if self._data is not None:
            with using(None):  # the Stop may be set
                self._runner.truncate(min(self._shared, self._runner.held.length))
                self._runner.cache.restore(self._shared, self._data)
            self._runner.held = self._held
        elif self._shared < self._rows:
            turns = self._session._turns
            self._session._back(tuple(turn for turn in turns if turn.rows <= self._shared))
        elif all_of_it:
            self._runner.truncate(min(self._rows, self._runner.held.length))
