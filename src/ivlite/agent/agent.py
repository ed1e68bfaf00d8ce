"""The agent: a model that looks at parts of videos until its answer holds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from ivlite.agent.answer import Answer, Answered, Event
from ivlite.agent.budget import Budget
from ivlite.agent.case import Case, NoTexts, Texts
from ivlite.agent.context import Context
from ivlite.agent.film import Film
from ivlite.agent.loop import Loop
from ivlite.agent.record import Record
from ivlite.agent.tools import TOOLS, Tool, named
from ivlite.errors import UsageError, shown
from ivlite.stop import Stop, Work, using, within

MOST = 16  # videos of one conversation
QUESTION = 8192  # characters of a question


class Agent:
    """Answers questions about videos in one conversation that only grows; a context manager that frees it.

    model: an ivlite.Model. videos: sources as messages take them; the first is "v1". tools: names, aliases, or `Tool`s of the
    caller's; None for all of the table. budget: of each question. texts: where lines of text come from. ask_user: asks the
    person, where one is there. temperature, seed: of the model's replies; 0 is greedy. verify: claims are verified before they
    are returned. progress(stage, done, total): as `Model.stream` takes it. record: the steps of an earlier process, and where
    new ones go. Raises UsageError, MediaError.
    """

    def __init__(self, model: Any, videos: Iterable[Any], *, tools: Iterable[str | Tool] | None = None,
                 budget: Budget | None = None, texts: Texts | None = None, ask_user: Callable[[str], str] | None = None,
                 temperature: float = 0.0, seed: int = 0, verify: bool = True, progress: Any = None,
                 record: Record | None = None, run: str = "") -> None:  # fmt: skip
        sources = [videos] if isinstance(videos, str | bytes) or not isinstance(videos, Iterable) else list(videos)
        if not 1 <= len(sources) <= MOST:
            raise UsageError(f"an agent needs 1 to {MOST} videos, and there are {len(sources)}")
        self.model, self.budget, self.verify = model, budget or Budget(), verify
        self.record, self.run = record or Record(), run
        films = [Film(f"v{n}", source, model.config) for n, source in enumerate(sources, 1)]
        self.case = Case(model, films, texts or NoTexts(), ask_user)
        self.case.settings = {"temperature": temperature, "seed": seed, "top_p": 1.0, "top_k": 0, "progress": progress}
        self.tools = {tool.name: tool for tool in chosen(tools, ask_user is not None)}
        signatures = [tool.signature for tool in self.tools.values()]
        self.context = Context(self.case, signatures, self.case.remarks.append)
        self._asked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the conversation. Later questions raise UsageError."""
        self.context.close()

    def ask(self, question: str, *, budget: Budget | None = None, stop: Stop | None = None) -> Answer:
        """The Answer to a question, or to a question that follows: what was seen and said before stays.

        A Stop ends the work: the answer is then what was found so far, and its finish_reason the Stop's reason. Raises
        UsageError (the question), MediaError (a video), ContextError, OutOfMemoryError.
        """
        answer = Answer("")
        with self.stream(question, budget=budget, stop=stop) as events:
            for event in events:
                if isinstance(event, Answered):
                    answer = event.answer
        return answer

    def stream(self, question: str, *, budget: Budget | None = None, stop: Stop | None = None) -> Work[Event]:
        """The events of answering a question, as they happen; the last one is Answered. Takes the arguments of `ask`."""
        if not isinstance(question, str) or not question.strip() or len(question) > QUESTION:
            raise UsageError(f"the question is {shown(question)}; it must be a text of at most {QUESTION:,} characters")
        stopped = within(stop)
        return Work(self._events(question.strip(), budget or self.budget, stopped), stopped)

    def _events(self, question: str, budget: Budget, stop: Stop) -> Iterator[Event]:
        first, self._asked = not self._asked, True
        loop = Loop(self.case, self.context, self.record, self.tools, verifying=self.verify, run=self.run)
        with using(stop):
            yield from loop.events(question, budget, first)


def chosen(tools: Iterable[str | Tool] | None, interactive: bool) -> Sequence[Tool]:
    """The tools of a run. Raises UsageError."""
    out = []
    for tool in TOOLS if tools is None else [tools] if isinstance(tools, str | Tool) else tools:
        if isinstance(tool, str):
            try:
                tool = named(tool)
            except KeyError:
                raise UsageError(
                    f"there is no tool {shown(tool)}; there are {', '.join(t.name for t in TOOLS)}"
                ) from None
        if not isinstance(tool, Tool):
            raise UsageError(f"a tool is {shown(tool)}; it must be a name or an ivlite.agent.Tool")
        if tool.name != "ask_user" or interactive:
            out.append(tool)
    names = [tool.name for tool in out]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise UsageError(f"there are two tools with the name {shown(twice)}")
    return out if "finish" in names else [*out, named("finish")]
