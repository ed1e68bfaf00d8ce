"""What a person gets: text as it comes, delta by delta, and the reply that the deltas add up to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Delta:
    """Some text of an answer; `thinking` marks text of a leading <think> ... </think>, which is no part of the answer."""

    text: str
    thinking: bool = False


@dataclass
class Reply:
    """An answer, whole or as far as it has come.

    finish_reason: "stop" (the model ended, or a stop string came), "length" (max_new_tokens or the context is used up),
    the reason of the Stop that ended it ("interrupted", "deadline", "closed", ...), "" while it is being written.
    usage: prompt_tokens, vision_tokens, new_tokens, frames. timings: seconds of load, decode (reading frames), vision,
    prefill, generate, total. warnings: sentences about media.
    """

    text: str = ""
    thinking: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def empty(cls, reason: str) -> "Reply":
        """The reply of a call that was stopped before it had read its prompt."""
        usage = dict.fromkeys(("prompt_tokens", "vision_tokens", "new_tokens", "frames"), 0)
        timings = dict.fromkeys(("load", "decode", "vision", "prefill", "generate", "total"), 0.0)
        return cls(finish_reason=reason, usage=usage, timings=timings)


def held_back(text: str, marks: Sequence[str]) -> int:
    """Length of the longest end of `text` that may be the beginning of one of `marks`."""
    longest = max((len(m) for m in marks), default=0) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(m.startswith(text[-n:]) for m in marks):
            return n
    return 0


class TextFilter:
    """Cuts decoded text into deltas: a leading <think> block apart, and nothing from the first stop string on.

    thinking: the prompt has opened that block. push(text) and flush() return deltas; `stopped`: a stop string was met.
    """

    def __init__(self, stop: Sequence[str] = (), thinking: bool = False) -> None:
        self.stop = [s for s in stop if s]
        self.stopped = False
        self.buffer = ""
        self.state = "open" if thinking else "start"  # start -> open -> thinking -> after -> answer

    def push(self, text: str) -> list[Delta]:
        """The deltas that more text of the answer makes certain."""
        self.buffer += text
        return self._deltas(final=False)

    def flush(self) -> list[Delta]:
        """The deltas of what was held back, at the end."""
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
        if self.state == "after":  # the blank lines between </think> and the answer belong to neither
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
            text, self.buffer = self.buffer[: min(found)], ""
            return [Delta(text)]
        keep = 0 if final else held_back(self.buffer, self.stop)
        text, self.buffer = self.buffer[: len(self.buffer) - keep], self.buffer[len(self.buffer) - keep :]
        return [Delta(text)]
