"""What a person gets: pieces of text as they come, and the reply they add up to."""

from dataclasses import dataclass, field

THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Piece:
    """Some text of an answer; `thinking` marks text of a leading <think> ... </think>, which is no part of the answer."""

    text: str
    thinking: bool = False


@dataclass
class Reply:
    """An answer, whole or as far as it has come.

    finish_reason: "stop" (the model ended, or a stop string came), "length" (max_new_tokens or the context is used up),
    "" while it is being written or when it was interrupted. usage: prompt_tokens, vision_tokens, new_tokens, frames.
    timings: seconds of load, decode (reading frames), vision, prefill, generate, total. warnings: sentences about media.
    """

    text: str = ""
    thinking: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def held_back(text, marks):
    """Length of the longest end of `text` that may be the beginning of one of `marks`."""
    longest = max((len(m) for m in marks), default=0) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(m.startswith(text[-n:]) for m in marks):
            return n
    return 0


class TextFilter:
    """Cuts decoded text into pieces: a leading <think> block apart, and nothing from the first stop string on.

    thinking: the prompt has opened that block. push(text) and flush() return pieces; `stopped` says that a stop string was met.
    """

    def __init__(self, stop=(), thinking=False):
        self.stop = [s for s in stop if s]
        self.stopped = False
        self.buffer = ""
        self.state = "open" if thinking else "start"  # start -> open -> thinking -> after -> answer

    def push(self, text):
        self.buffer += text
        return self._pieces(final=False)

    def flush(self):
        return self._pieces(final=True)

    def _pieces(self, final):
        pieces = []
        if self.state == "start":
            self._start(final)
        if self.state == "open":  # line breaks after <think> are layout
            self.buffer = self.buffer.lstrip("\n")
            if self.buffer:
                self.state = "thinking"
        if self.state == "thinking":
            pieces += self._thinking(final)
        if self.state == "after":  # the blank lines between </think> and the answer belong to neither
            self.buffer = self.buffer.lstrip()
            if self.buffer:
                self.state = "answer"
        if self.state == "answer" and not self.stopped:
            pieces += self._answer(final)
        return [p for p in pieces if p.text]

    def _start(self, final):
        text = self.buffer.lstrip()
        if text.startswith(THINK_START):
            self.state, self.buffer = "open", text[len(THINK_START) :]
        elif final or not THINK_START.startswith(text):
            self.state = "answer"

    def _thinking(self, final):
        inside, mark, rest = self.buffer.partition(THINK_END)
        if mark:
            self.state, self.buffer = "after", rest
            return [Piece(inside.rstrip("\n"), thinking=True)]
        keep = 0 if final else held_back(inside, [THINK_END, "\n" + THINK_END])
        self.buffer = inside[len(inside) - keep :]
        return [Piece(inside[: len(inside) - keep], thinking=True)]

    def _answer(self, final):
        found = [at for at in (self.buffer.find(s) for s in self.stop) if at >= 0]
        if found:
            self.stopped = True
            text, self.buffer = self.buffer[: min(found)], ""
            return [Piece(text)]
        keep = 0 if final else held_back(self.buffer, self.stop)
        text, self.buffer = self.buffer[: len(self.buffer) - keep], self.buffer[len(self.buffer) - keep :]
        return [Piece(text)]
