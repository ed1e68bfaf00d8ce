"""The agent: a model that looks at parts of videos until its answer holds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Self

from ivlite.agent.answer import Answer, Answered, Event
from ivlite.agent.budget import Budget
from ivlite.agent.case import Case, NoTexts, Texts
from ivlite.agent.context import Context
from ivlite.agent.film import Film
from ivlite.agent.looks import frames_in_time
from ivlite.agent.loop import Loop
from ivlite.agent.memory import Memory, checked, facts, place
from ivlite.agent.record import Record
from ivlite.agent.tools import TOOLS, Tool, named
from ivlite.errors import UsageError, shown
from ivlite.library import Library
from ivlite.prompt import plain_tools
from ivlite.session import said
from ivlite.stop import Stop, Work, within

MOST = 16  # videos of one conversation
QUESTION = 8192  # characters of a question


class Agent:
    """Answers questions about videos in one conversation that only grows; a context manager that frees it.

    model: an ivlite.Model. videos: sources as messages take them; the first is "v1". tools: names, aliases, or `Tool`s of the
    caller's; None for all of the table. extra: more of them, such as those of a `servers.Server`. budget: of each question.
    library: an ivlite.library.Library that has the texts of the videos, and keeps notes and runs; texts: another place of
    texts. ask_user: asks the person, where one is there. temperature, seed: of the model's replies; 0 is greedy. verify: claims
    are verified before they are returned. progress(stage, done, total): as `Model.stream` takes it. record: the steps of an
    earlier process, and where new ones go. Raises UsageError, MediaError.
    """

    def __init__(self, model: Any, videos: Iterable[Any], *, tools: Iterable[str | Tool] | None = None,
                 extra: Iterable[Tool] = (), budget: Budget | None = None, library: Library | None = None,
                 texts: Texts | None = None, ask_user: Callable[[str], str] | None = None, temperature: float = 0.0,
                 seed: int = 0, verify: bool = True, progress: Any = None, record: Record | None = None) -> None:  # fmt: skip
        sources = said.given("videos", videos)
        if not 1 <= len(sources) <= MOST:
            raise UsageError(f"an agent needs 1 to {MOST} videos, and there are {len(sources)}")
        self.model, self.budget, self.verify = model, budget or Budget(), verify
        films = [Film(f"v{n}", source, model.config) for n, source in enumerate(sources, 1)]
        self.case = Case(model, films, texts or NoTexts(), ask_user)
        self.memory = None if library is None else Memory(library, films, self.case.remarks.append)
        if self.memory is not None and texts is None:
            self.case.texts = self.memory
        self.case.settings = {"temperature": temperature, "seed": seed, "top_p": 1.0, "top_k": 0, "progress": progress}
        own = chosen(tools, ask_user is not None)
        self.tools = {tool.name: tool for tool in distinct([*own, *extra])}
        self._drop_unreadable()
        signatures = [tool.signature for tool in self.tools.values()]
        self.context = Context(self.case, signatures, self.case.remarks.append)
        self.record, self._asked = record, False
        self._first: tuple[str, Budget] | None = None  # the question of a run without steps
        self._facts = {
            "temperature": temperature,
            "seed": seed,
            "verify": verify,
            "tools": [t.name for t in own if not t.external],
        }
        self._facts["extra"] = [t.name for t in self.tools.values() if t.external]

    def _drop_unreadable(self) -> None:
        """Drops tools of others whose schemas no grammar can follow: calls of the rest go on being made."""
        for tool in [tool for tool in self.tools.values() if tool.external]:
            try:
                self.model.grammars.check(plain_tools([tool.signature]))
            except UsageError as error:
                del self.tools[tool.name]
                self.case.remarks.append(f"the tool {tool.name} is not used: {error}")

    @classmethod
    def resume(cls, model: Any, library: Library, run: str | None = None, **more: Any) -> Self:
        """The Agent of a run that was killed or has ended; None: of the run used last. more: further arguments of Agent.

        `pending` is the question that it goes on with. Raises UsageError (there is no such run; model or videos are others),
        MediaError.
        """
        found = library.run(run)
        if not isinstance(found.data.get("videos"), list):
            raise UsageError(f"run {found.id} is not one of the agent")
        given = {name: found.data["settings"][name] for name in ("temperature", "seed", "verify", "tools")}
        if missing := set(found.data["settings"]["extra"]) - {tool.name for tool in more.get("extra", ())}:
            raise UsageError(f"run {found.id} had the tool {min(missing)} of another program: name its server again")
        agent = cls(model, [place(library, video) for video in found.data["videos"]], library=library, **given | more)
        try:
            checked(found, model, list(agent.case.films.values()))
            if agent.memory is not None:
                agent.record = agent.memory.resume(found)
            if not found.steps:  # killed before the first one
                agent._first = found.question, Budget(**found.data["settings"]["budget"])
        except BaseException:
            agent.close()
            raise
        return agent

    @property
    def run(self) -> str:
        """The id of the run in the library; "" before the first question, and where no library keeps it."""
        return self.memory.run if self.memory is not None and self.memory.library.kept else ""

    @property
    def pending(self) -> tuple[str, Budget] | None:
        """The next question of a run that is resumed, and its budget; None where it has answered all."""
        data = None if self.record is None else self.record.upcoming("question")
        return self._first if data is None else (data["question"], Budget(**data["budget"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the conversation. Later questions raise UsageError."""
        self.context.close()

    def ask(self, question: str | None = None, *, budget: Budget | None = None, stop: Stop | None = None) -> Answer:
        """The Answer to a question, or to a question that follows: what was seen and said before stays.

        None: the `pending` question of a run that is resumed. A Stop ends the work: the answer is then what was found so far,
        and its finish_reason the Stop's reason. Raises UsageError (the question), MediaError (a video), ContextError,
        OutOfMemoryError.
        """
        answer = Answer("")
        with self.stream(question, budget=budget, stop=stop) as events:
            for event in events:
                if isinstance(event, Answered):
                    answer = event.answer
        return answer

    def stream(
        self, question: str | None = None, *, budget: Budget | None = None, stop: Stop | None = None
    ) -> Work[Event]:
        """The events of answering a question, as they happen; the last one is Answered. Takes the arguments of `ask`."""
        if pending := self.pending:
            if question is not None and question.strip() != pending[0]:
                raise UsageError(f"the run that is resumed has a question to answer first: {shown(pending[0])}")
            question, budget = pending
        if not isinstance(question, str) or not question.strip() or len(question) > QUESTION:
            raise UsageError(f"the question is {shown(question)}; it must be a text of at most {QUESTION:,} characters")
        stopped = within(stop)
        return Work(self._events(question.strip(), budget or self.budget), stopped)

    def _events(self, question: str, budget: Budget) -> Iterator[Event]:
        first, self._asked, self._first = not self._asked, True, None
        if budget.frames is None:  # the number is recorded: a run that is resumed has the same
            budget = replace(budget, frames=frames_in_time(self.case))
        record = self.record = self.record or self._begun(question, budget)
        loop = Loop(self.case, self.context, record, self.tools, verifying=self.verify, run=self.run)
        yield from loop.events(question, budget, first)

    def _begun(self, question: str, budget: Budget) -> Record:
        """The Record of a new run."""
        if self.memory is None:
            return Record()
        settings = self._facts | {"budget": asdict(budget)}
        return self.memory.begin(question, facts(self.model, list(self.case.films.values()), **settings))


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
        if tool.name != "ask_user" or interactive or tools is not None:
            out.append(tool)
    return out if any(tool.name == "finish" for tool in out) else [*out, named("finish")]


def distinct(tools: Sequence[Tool]) -> Sequence[Tool]:
    """The tools. Raises UsageError where two have one name."""
    names = [tool.name for tool in tools]
    if twice := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise UsageError(f"there are two tools with the name {shown(twice)}")
    return tools
