"""The output of a call: Deltas of text as they are generated, and the Reply they add up to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ivlite.engine import calls
from ivlite.engine.calls import ToolCall

USAGE = (
    "prompt_tokens", "vision_tokens", "new_tokens", "cached_tokens", "stored_tokens", "draft_tokens", "accepted_tokens", "frames",
)  # fmt: skip
THINK_START, THINK_END = "<think>", "</think>"


class TokenLogprob(NamedTuple):
    """A token of an answer. top: the likeliest tokens in its place and their log-probabilities, the likeliest first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Delta:
    """A piece of generated text; `thinking` marks text of a leading <think> ... </think>, not part of the answer.

    call: a tool call, whole, which is no text; None in a piece of text.
    """

    text: str
    thinking: bool = False
    call: ToolCall | None = None


@dataclass
class Reply:
    """An answer, complete or partial.

    finish_reason: "stop" (an end-of-sequence token or a stop string), "tool_calls" (the answer ends with calls of tools),
    "length" (max_new_tokens or the context is used up), "repetition" (the answer of temperature 0 repeats itself without
    end), the reason of the Stop that ended it ("interrupted", "deadline", "closed", ...), "" while it is generated.
    tool_calls: the calls that are complete. unfinished: the text of one that max_new_tokens or a Stop cut short, else "".
    usage: prompt_tokens, vision_tokens, new_tokens, cached_tokens (those of the prompt that were not computed again),
    stored_tokens (those of them that were read from the store), draft_tokens and accepted_tokens (guessed and checked
    together, and those of them that came), frames. timings: seconds of load, decode (opening media, reading
    frames), vision, prefill and generate; total: of the whole call, with planning and grammars. warnings: sentences about
    media and the store. plan: the Plan that was followed, with what happened in its `took`; None where there was none.
    logprobs: an entry for each of token_ids, where they were asked for. thought: how many of token_ids were of the thinking.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    unfinished: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    plan: Any = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    thought: int = 0

    @classmethod
    def empty(cls, reason: str) -> "Reply":
        """The reply of a call that was stopped before its prompt was built."""
        usage = dict.fromkeys(USAGE, 0)
        timings = dict.fromkeys(("load", "decode", "vision", "prefill", "generate", "total"), 0.0)
        return cls(finish_reason=reason, usage=usage, timings=timings)


def held_back(text: str, marks: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of one of `marks`."""
    longest = max((len(m) for m in marks), default=0) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(m.startswith(text[-n:]) for m in marks):
            return n
    return 0


class TextFilter:
    """Turns decoded text into deltas: separates a leading <think> block and calls, and ends before the first stop string.

    thinking: the prompt already opened that block. calls: what the ids of calls begin with; None where there are no tools and
    nothing is a call. push(text) and flush() return deltas; `stopped`: a stop string came; `unfinished`: of an incomplete call.
    """

    def __init__(self, stop: Sequence[str] = (), thinking: bool = False, calls: str | None = None) -> None:
        self.stop = [s for s in stop if s]
        self.calls, self.called = calls, 0
        self.stopped = False
        self.end: int | None = None  # characters before the stop string that came
        self.pushed = 0
        self.buffer = self.unfinished = ""
        self.looked = 0  # characters of the buffer in which no call ends
        # start -> open -> thinking -> after -> answer <-> call
        self.state = "open" if thinking else "start"

    def push(self, text: str) -> list[Delta]:
        """Adds generated text; returns the deltas that later text cannot change."""
        self.buffer += text
        self.pushed += len(text)
        return self._deltas(final=False)

    def flush(self) -> list[Delta]:
        """The deltas of the text held back, at the end."""
        return self._deltas(final=True)

    def _deltas(self, final: bool) -> list[Delta]:
        deltas: list[Delta] = []
        if self.state == "start":
            self._start(final)
        if self.state == "open":  # line breaks after <think> are layout
            self.buffer = self.buffer.lstrip("\n")
            if self.buffer:
                self.state = "thinking"
        if self.state == "thinking":
            deltas += self._thinking(final)
        if self.state == "after":  # blank lines between </think> and the answer belong to neither
            self.buffer = self.buffer.lstrip()
            if self.buffer:
                self.state = "answer"
        while self.state in ("answer", "call") and not self.stopped:
            before = self.state
            deltas += self._answer(final) if before == "answer" else self._call(final)
            if self.state == before:
                break
        return [d for d in deltas if d.text or d.call]

    def _start(self, final: bool) -> None:
        text = self.buffer.lstrip()
        if text.startswith(THINK_START):
            self.state, self.buffer = "open", text[len(THINK_START) :]
        elif final or not THINK_START.startswith(text):
            self.state = "answer"

    def _thinking(self, final: bool) -> list[Delta]:
        inside, mark, rest = self.buffer.partition(THINK_END)
        if mark:
            self.state, self.buffer = "after", rest
            return [Delta(inside.rstrip("\n"), thinking=True)]
        keep = 0 if final else held_back(inside, [THINK_END, "\n" + THINK_END])
        self.buffer = inside[len(inside) - keep :]
        return [Delta(inside[: len(inside) - keep], thinking=True)]

    def _answer(self, final: bool) -> list[Delta]:
        called = -1 if self.calls is None else self.buffer.find(calls.BEGIN)
        found = [at for at in (self.buffer.find(s) for s in self.stop) if at >= 0]
        if found and (called < 0 or min(found) <= called):
            self.stopped = True
            self.end = self.pushed - len(self.buffer) + min(found)
            text, self.buffer = self.buffer[: min(found)], ""
            return [Delta(text)]
        if called >= 0:
            text, self.buffer, self.state = self.buffer[:called], self.buffer[called:], "call"
            return [Delta(text.removesuffix("\n"))]  # the template breaks the line before a call
        marks = self.stop if self.calls is None else [*self.stop, calls.BEGIN, "\n" + calls.BEGIN]
        if final and self.called:  # a line break at the end
            self.buffer = self.buffer.removeprefix("\n")
        keep = 0 if final else held_back(self.buffer, marks)
        text, self.buffer = self.buffer[: len(self.buffer) - keep], self.buffer[len(self.buffer) - keep :]
        return [Delta(text)]

    def _call(self, final: bool) -> list[Delta]:
        """The call with which the buffer begins, if it is complete. A text within it may hold the mark of its end."""
        while (at := self.buffer.find(calls.END, self.looked)) >= 0:
            call = calls.parsed(self.buffer[len(calls.BEGIN) : at], f"{self.calls}{self.called}")
            if call is not None:
                self.state, self.buffer, self.looked = "answer", self.buffer[at + len(calls.END) :], 0
                self.called += 1
                return [Delta("", call=call)]
            self.looked = at + 1
        self.looked = max(self.looked, len(self.buffer) - len(calls.END) + 1)
        if final:
            self.unfinished, self.buffer = self.buffer, ""
        return []
