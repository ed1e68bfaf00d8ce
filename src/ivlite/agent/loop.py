"""One question: look, call tools, read what they give, until the answer holds or the budget is used up."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ivlite.agent import allowed, finish, looks, say
from ivlite.agent.act import Dropped, called
from ivlite.agent.answer import Answer, Answered, Call, Claim, Event, Remark, Result, Said, Thought
from ivlite.agent.budget import Budget, Spent
from ivlite.agent.case import Case, Found
from ivlite.agent.context import Context, hidden
from ivlite.agent.film import NothingLeft, Wrong
from ivlite.agent.record import Record
from ivlite.agent.route import direct
from ivlite.agent.tools import Tool
from ivlite.agent.verify import confirmed
from ivlite.errors import ContextError, Stopped

REPLY = 3072  # new tokens of one reply, at most
LEAST = 384  # of the one that must answer
REPAIRS = 2  # calls that make no sense, after which only the answer is asked for
STALE = 2  # rounds in a row without anything new, likewise
DUE = {"rounds": "budget", "tokens": "budget", "time": "budget", "stalled": "stalled", "repairs": "repairs", "direct": "finish",
       "context": "budget"}  # fmt: skip


class Loop:
    """The work on one question. tools: by name. verifying: claims are verified at the end. run: the id of the run."""

    def __init__(self, case: Case, context: Context, record: Record, tools: dict[str, Tool], *, verifying: bool = True,
                 run: str = "") -> None:  # fmt: skip
        self.case, self.context, self.record, self.tools = case, context, record, tools
        self.verifying, self.run = verifying, run
        self.steps: list[Event] = []
        self.question, self.answer = "", Answer("")
        self.due = ""  # why only the answer is asked for now

    @property
    def spent(self) -> Spent:
        return self.case.spent

    def events(self, question: str, budget: Budget, first: bool) -> Iterator[Event]:
        """The events of the run; the last one is Answered. first: the videos were not shown yet."""
        self.case.spent, self.question = Spent(budget), question
        yield from self._remarks()  # about the videos
        try:
            for event in self._work(question, first):
                self.steps.append(event)
                yield event
                yield from self._remarks()
            answer = replace(self.answer, steps=tuple(self.steps))
        except Stopped as stopped:
            more: dict[str, Any] = {"steps": tuple(self.steps), "finish_reason": stopped.reason, "run": self.run}
            answer = finish.nothing(self.case, hidden(self.context.waiting), **more)
        yield Answered(answer)

    def _remarks(self) -> Iterator[Event]:
        for sentence in self.case.remarks[self.case.remarked :]:
            self.steps.append(Remark(sentence))
            yield self.steps[-1]
        self.case.remarked = len(self.case.remarks)

    def _work(self, question: str, first: bool) -> Iterator[Event]:
        yield from self._opening(question, first)
        given: Mapping[str, Any] | None = None
        while given is None:
            last = self.due == "repairs"
            given = yield from self._round()
            if last:
                break
        yield from self._end(given)

    # -------------------------------------------------------------------------------------------- the opening

    def _opening(self, question: str, first: bool) -> Iterator[Event]:
        """What the first reply follows: the videos at a glance, the question, and lines of text that match it."""
        data = self.record.known("question")
        if data is None:
            mark = self.case.mark()
            data = self._opened(question, first) | {"question": question, "budget": asdict(self.spent.budget)}
            self.record.add("question", data | self.case.since(mark))
        else:
            self.case.restore(data)
        self.due = "direct" if data["direct"] else ""
        self.context.say(*data["messages"])
        for call in data["calls"]:
            self.spent.calls += 1
            yield Call(self.spent.calls, call["name"], call["arguments"])
            yield Result(self.spent.calls, call["text"], tuple(self.case.by_id(id) for id in call["ids"]))

    def _opened(self, question: str, first: bool) -> dict[str, Any]:
        films, calls, shown = list(self.case.films.values()), [], list[dict[str, Any]]()
        for film in films if first else ():
            arguments = {"video": film.handle} if self.case.several else {}
            try:
                found = looks.overview(self.case, arguments)
            except NothingLeft:  # more videos than the frames of the budget: the model knows at least that it is there
                shown.append({"type": "text", "text": say.unseen(film.handle, film.duration) + "\n"})
                continue
            self.case.answered("overview", arguments, found.evidence)
            calls.append(done("overview", arguments, found))
            shown += [{"type": "text", "text": found.text}, *found.parts, {"type": "text", "text": "\n"}]
        messages: list[dict[str, Any]] = [{"role": "system", "content": say.SYSTEM}] if first else []
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        at_once = first and direct(question, films)
        if "search_text" in self.tools and not at_once:
            for film in films:
                messages += self._lines(film.handle, question, calls) if self.case.texts.count(film) else []
        return {"messages": messages, "calls": calls, "direct": at_once}

    def _lines(self, handle: str, question: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages of a search for the words of the question, which the program begins with."""
        arguments = ({"video": handle} if self.case.several else {}) | {"query": question[: allowed.LONGEST["query"]]}
        found, _ = called(self.case, self.tools["search_text"], arguments)
        calls.append(done("search_text", arguments, found))
        call = {"type": "function", "function": {"name": "search_text", "arguments": say.compact(arguments)}}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}, result_message(found.text)]

    # -------------------------------------------------------------------------------------------- a round

    def _round(self) -> Generator[Event, None, Mapping[str, Any] | None]:
        """One reply and its calls; returns the arguments of the answer, or None."""
        self.spent.rounds += 1
        self.due = self.due or self.spent.exhausted
        data = self._reply()
        if thought := " ".join(part.strip() for part in (data["thinking"], data["text"]) if part.strip()):
            yield Thought(thought)
        if not data["calls"]:
            self._repair("that was no call: call one tool")
        fresh = False
        for call in data["calls"]:
            tool, arguments = self._tool(call["name"]), call["arguments"]
            if tool is not None and not tool.external:  # what others mean by a start is theirs
                arguments = self.case.timed(arguments)
            if call["name"] == "finish" and tool is not None:
                if not (wrong := self._sound(arguments)):
                    return arguments
                self._repair(wrong)
                continue
            self.spent.calls += 1
            yield Call(self.spent.calls, call["name"], arguments)
            result = self._result(call["name"], tool, arguments)
            fresh = fresh or not result["known"]
            evidence = tuple(self.case.by_id(id) for id in result["ids"])
            yield Result(self.spent.calls, result["text"], evidence)
            self.context.say(result_message(result["text"], result["parts"]))
        self.spent.stale = 0 if fresh else self.spent.stale + 1
        if self.spent.stale >= STALE:
            self.due = self.due or "stalled"
        return None

    def _tool(self, name: str) -> Tool | None:
        """The tool of a call, where it may be called now."""
        return self.tools.get(name) if not self.due or name == "finish" else None

    def _reply(self) -> dict[str, Any]:
        """A reply of the model as plain data: of this step, or of an earlier process."""
        self.context.remind(say.again(self.question))
        data = self.record.known("reply")
        if data is not None:
            self.context.told(data)
            self.case.restore(data)
            self.due = data["due"]
            return data
        mark = self.case.mark()
        try:
            data = self._asked()
        except ContextError:
            if self.due:
                raise
            self.due = "context"
            data = self._asked()
        return self.record.add("reply", data | {"due": self.due} | self.case.since(mark))

    def _asked(self) -> dict[str, Any]:
        budget = self.spent.budget
        limit = min(REPLY, budget.new_tokens - self.spent.new_tokens, self.context.ready())
        limit = max(limit, LEAST if self.due else 64)
        tools = [self.tools["finish"]] if self.due else list(self.tools.values())
        thinking = 0 if self.due in ("tokens", "time", "repairs") else budget.thinking
        return self.context.ask(
            limit, tool_choice=allowed.choice(self.case, tools, limit - thinking), parallel_tool_calls=False,
            enable_thinking=thinking > 0, thinking_budget=thinking or None, **self.case.settings,
        )  # fmt: skip

    def _sound(self, arguments: Mapping[str, Any]) -> str:
        """What is wrong with an answer, or ""."""
        try:
            finish.checked(self.case, arguments)
        except Wrong as wrong:
            return str(wrong)
        return ""

    def _repair(self, sentence: str) -> None:
        """Tells the model what was wrong."""
        self.spent.repairs += 1
        self.context.say(result_message(say.error(sentence)))
        if self.spent.repairs > REPAIRS:
            self.due = "repairs"

    def _result(self, name: str, tool: Tool | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """What a call gives, as plain data: of this step, or of an earlier process."""
        data = self.record.known("result")
        if data is not None:
            self.case.restore(data)
        else:
            mark = self.case.mark()
            data = self._acted(name, tool, arguments)
            self.record.add("result", data | self.case.since(mark))
        if data["wrong"]:
            self.spent.repairs += 1
            self.due = "repairs" if self.spent.repairs > REPAIRS else self.due
        return data

    def _acted(self, name: str, tool: Tool | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if tool is None:
            known = "only finish can be called now" if self.due else f"the tools are {', '.join(self.tools)}"
            return done(name, arguments, Found(say.error(known), known=True)) | {"wrong": True}
        try:
            found, wrong = called(self.case, tool, arguments)
        except Dropped as dropped:
            self.tools.pop(name, None)
            self.case.remarks.append(f"the tool {name} is not used any more: {dropped}")
            found, wrong = Found(say.error("this tool is gone"), known=True), ""
        return done(name, arguments, found) | {"wrong": bool(wrong)}

    # -------------------------------------------------------------------------------------------- the end

    def _end(self, given: Mapping[str, Any] | None) -> Iterator[Event]:
        claims = []
        for claim in finish.claims_of(self.case, given or {}):
            claims.append(self._verified(claim))
            yield Said(claims[-1])
        more: dict[str, Any] = {"steps": (), "run": self.run, "finish_reason": DUE.get(self.due, "finish")}
        if given is None or not claims:
            self.answer = finish.nothing(self.case, **more)
        else:
            self.answer = finish.answer(self.case, given, claims, **more)
        if self.record.known("answer") is None:
            self.record.add("answer", self.answer.as_dict())

    def _verified(self, claim: Claim) -> Claim:
        data = self.record.known("claim")
        if data is not None:
            self.case.restore(data)
            return Claim(**data["claim"] | {"evidence": tuple(data["claim"]["evidence"])})
        mark = self.case.mark()
        made = confirmed(self.case, claim) if self.verifying else claim
        self.record.add("claim", {"claim": asdict(made)} | self.case.since(mark))
        return made


def done(name: str, arguments: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """A call that was answered, as plain data."""
    ids = [e.id for e in found.evidence]
    return {
        "name": name,
        "arguments": dict(arguments),
        "text": found.text,
        "parts": found.parts,
        "ids": ids,
        "known": found.known,
    }


def result_message(text: str, parts: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The message of a result."""
    return {"role": "tool", "content": [{"type": "text", "text": text}, *map(dict, parts)]}
