"""What a question may cost, and what it has cost so far."""

import time
from dataclasses import dataclass, field
from typing import Any

from ivlite.numbers import number, whole
from ivlite.stop import Stop

THINKING, LOOKING = 0.75, 0.4  # shares of the time after which nothing new is begun, and that one look may take
CHECKS = 0.2  # share of the frames that is kept for verifying what is said in the end
FRAMES = 1024  # that are looked at where no number is stated, at least


@dataclass(frozen=True)
class Budget:
    """The most that a question may take. Raises UsageError for a value out of range.

    rounds: replies of the model, the last of which must be the answer. frames: frames that are looked at, those of overview,
    searches and verification included; None: 1,024, or as many as this machine sees in ten minutes. new_tokens: of all replies.
    thinking: tokens of thought before each call; 0 for none. seconds: until the answer, as planned from the speed of this
    machine; None for no limit. tool_seconds: of one call.
    """

    rounds: int = 12
    frames: int | None = None
    new_tokens: int = 8192
    thinking: int = 96
    seconds: float | None = None
    tool_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name, low in (("rounds", 1), ("frames", 2), ("new_tokens", 16), ("thinking", 0)):
            if getattr(self, name) is not None or name != "frames":
                whole(name, getattr(self, name), low)
        number("tool_seconds", self.tool_seconds, 0.01, 1e9)
        if self.seconds is not None:
            number("seconds", self.seconds, 0, 1e9, above=True)


@dataclass
class Spent:
    """What one question has cost. before: seconds of an earlier process, of a run that is resumed."""

    budget: Budget
    rounds: int = 0
    calls: int = 0
    frames: int = 0
    new_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    apart: int = 0  # questions that were asked apart
    repairs: int = 0
    stale: int = 0  # rounds in a row that brought nothing new
    before: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def reply(self, reply: Any, apart: bool = False) -> None:
        """Counts a reply of the model."""
        self.new_tokens += reply.usage["new_tokens"]
        self.prompt_tokens += reply.usage["prompt_tokens"] - reply.usage["cached_tokens"]
        self.cached_tokens += reply.usage["cached_tokens"]
        self.apart += apart

    def frames_left(self, checking: bool = False) -> int:
        """Frames that may still be looked at. checking: by the verification of the answer."""
        most = FRAMES if self.budget.frames is None else self.budget.frames
        return max(0, (most if checking else most - int(most * CHECKS)) - self.frames)

    def frames_for(self, wanted: int, checking: bool = False) -> int:
        """As many of the wanted frames as there are left, in pairs; 0 where there are none."""
        left = self.frames_left(checking)
        return wanted if wanted <= left else left // 2 * 2

    @property
    def exhausted(self) -> str:
        """What is used up, so that the answer is due: "rounds", "tokens", "time" or ""."""
        budget = self.budget
        if self.rounds >= budget.rounds - 1:
            return "rounds"
        if self.new_tokens >= budget.new_tokens:
            return "tokens"
        if budget.seconds is not None and self.seconds > THINKING * budget.seconds:
            return "time"
        return ""

    def wait(self) -> float | None:
        """Seconds that one look may take; None for no limit."""
        if self.budget.seconds is None:
            return None
        return max(0.1, LOOKING * (self.budget.seconds - self.seconds))

    def deadline(self) -> Stop:
        """A Stop for one call of a tool."""
        stop, left = Stop(), self.budget.tool_seconds
        if self.budget.seconds is not None:
            left = min(left, max(0.1, THINKING * self.budget.seconds - self.seconds))
        stop.after(left)
        return stop

    def as_data(self) -> dict[str, Any]:
        """The counts, as `Answer.usage` has them."""
        names = ("rounds", "calls", "frames", "new_tokens", "prompt_tokens", "cached_tokens", "apart", "repairs")
        return {name: getattr(self, name) for name in names} | {"seconds": round(self.seconds, 3)}
