"""The turns of a session."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ivlite.prompt import Prompt

QUESTION = ("add_vision_id", "budget", "continue_final_message", "dedupe")  # settings of a question, not of its answer


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer, or a whole conversation given at once.

    tokens, media: how many the conversation has at its end. rows: how many of the tokens the cache held then. tail: text
    of the answer whose tokens are still to be added (a stop string cut the last one). asked: those of QUESTION that were
    given. begun: the message that the answer continues, if it continues one. A session file has neither of these two.
    """

    messages: tuple[Mapping[str, Any], ...]
    tokens: int
    rows: int
    media: int
    tail: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)
    begun: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class Mark:
    """A point in a session that it can go back to."""

    turns: tuple[Turn, ...]


def cut(past: Prompt, turn: Turn) -> Prompt:
    """The Prompt up to the end of a turn."""
    n, m = turn.tokens, turn.media
    return replace(
        past, token_ids=past.token_ids[:n], positions=past.positions[:, :n],
        next_position=int(past.positions[:, n - 1].max()) + 1, grid_thw=past.grid_thw[:m],
        timestamps=past.timestamps[:m], frames=past.frames[:m], media=past.media[:m],
        spans=[span for span in past.spans if span[1] < n],
    )  # fmt: skip
