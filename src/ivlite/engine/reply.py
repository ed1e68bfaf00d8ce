"""The output of a call: Deltas of text as they are generated, and the Reply they add up to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

USAGE = (
    "prompt_tokens", "vision_tokens", "new_tokens", "cached_tokens", "stored_tokens", "draft_tokens", "accepted_tokens", "frames",
)  # fmt: skip
THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Delta:
    """A piece of generated text; `thinking` marks text of a leading <think> ... </think>, not part of the answer."""

    text: str
    thinking: bool = False


@dataclass
class Reply:
    """An answer, complete or partial.

    finish_reason: "stop" (an end-of-sequence token or a stop string), "length" (max_new_tokens or the context is used
    up), "repetition" (the answer of temperature 0 repeats itself without end), the reason of the Stop that ended it
    ("interrupted", "deadline", "closed", ...), "" while it is generated.
    usage: prompt_tokens, vision_tokens, new_tokens, cached_tokens (those of the prompt that were not computed again),
    stored_tokens (those of them that were read from the store), draft_tokens and accepted_tokens (guessed and checked
    together, and those of them that came), frames. timings: seconds of load, decode (reading frames), vision, prefill,
    generate, total. warnings: sentences about media and the store. plan: the Plan that was followed, with what happened in
    its `took`; None where there was none.
    """

    text: str = ""
    thinking: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    plan: Any = None

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
    """Turns decoded text into deltas: separates a leading <think> block, and ends before the first stop string.

    thinking: the prompt already opened that block. push(text) and flush() return deltas; `stopped`: a stop string came.
    """

    def __init__(self, stop: Sequence[str] = (), thinking: bool = False) -> None:
        self.stop = [s for s in stop if s]
        self.stopped = False
        self.end: int | None = None  # characters before the stop string that came
        self.pushed = 0
        self.buffer = ""
        self.state = "open" if thinking else "start"  # start -> open -> thinking -> after -> answer

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
        if self.state == "answer" and not self.stopped:
            deltas += self._answer(final)
        return [d for d in deltas if d.text]

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
        found = [at for at in (self.buffer.find(s) for s in self.stop) if at >= 0]
        if found:
            self.stopped = True
            self.end = self.pushed - len(self.buffer) + min(found)
            text, self.buffer = self.buffer[: min(found)], ""
            return [Delta(text)]
        keep = 0 if final else held_back(self.buffer, self.stop)
        text, self.buffer = self.buffer[: len(self.buffer) - keep], self.buffer[len(self.buffer) - keep :]
        return [Delta(text)]
