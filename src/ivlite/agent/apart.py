"""Questions that are asked apart: of some frames alone, in a conversation of their own, of which only the answers stay.

Each group of questions begins with an empty cache, so an answer does not depend on what was asked before: a run that is
resumed asks the same and gets the same.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np

from ivlite.agent import say
from ivlite.agent.case import Case
from ivlite.engine import batch
from ivlite.errors import ContextError, Stopped

ENDS = ("stop", "length", "repetition", "tool_calls")  # of a reply that was not stopped
SHARE = 0.5  # of the room, for the frames of one question
MOST = 16384  # vision tokens of one question


class Apart:
    """A conversation beside the main one; a context manager that frees it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.session = case.model.session()
        self.session.keeps = False  # its rows are used once, and take gigabytes for a long video

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def ask(self, parts: Sequence[dict[str, Any]], text: str, *, max_new_tokens: int = 64, **settings: Any) -> Any:
        """The Reply to a question about some media. Raises Stopped, MediaError, ContextError."""
        stream = self._stream(parts, text, max_new_tokens=max_new_tokens, **self.case.settings | settings)
        return finished(stream, self.case, apart=True)

    def odds(self, parts: Sequence[dict[str, Any]], text: str) -> float:
        """p(Yes) / (p(Yes) + p(No)) as the first token of the answer, read from the logits behind the question."""
        stream = self._stream(parts, text, max_new_tokens=1, temperature=0)
        finished(stream, self.case, apart=True)
        return odds(self.session, stream, self.case.model.tokenizer)

    def _stream(self, parts: Sequence[dict[str, Any]], text: str, **settings: Any) -> Any:
        messages = [{"role": "user", "content": [*self.case.resolved(parts), {"type": "text", "text": text}]}]
        return self.session.stream(messages, **settings)


def odds(session: Any, stream: Any, tokenizer: Any) -> float:
    """p(Yes) / (p(Yes) + p(No)) as the first token of an answer: of a session's stream that was read to its end."""
    logits = session.runner.held.logits(len(stream.prompt.token_ids))
    yes, no = (float(logits[tokenizer.encode(word)[0]]) for word in (say.YES, say.NO))
    return float(1 / (1 + np.exp(np.clip(no - yes, -60, 60))))


def together(
    case: Case, questions: Sequence[tuple[Sequence[dict[str, Any]], str]], *, max_new_tokens: int
) -> list[Any]:
    """The Replies to several questions about media, each apart from the others; their tokens are decoded together.

    Raises Stopped, MediaError, ContextError.
    """
    with ExitStack() as held:
        sides = [held.enter_context(Apart(case)) for _ in questions]
        streams = [
            side._stream(parts, text, max_new_tokens=max_new_tokens, **case.settings)
            for side, (parts, text) in zip(sides, questions, strict=True)
        ]
        for _ in batch.together(streams):
            pass
        return [counted(stream.reply, case, apart=True) for stream in streams]


def finished(stream: Any, case: Case, apart: bool = False) -> Any:
    """The Reply of a stream that is read to its end, counted. Raises Stopped where it was stopped."""
    with stream:
        for _ in stream:
            pass
    return counted(stream.reply, case, apart)


def counted(reply: Any, case: Case, apart: bool = False) -> Any:
    """A Reply, counted, its warnings noted. Raises Stopped where it was stopped."""
    case.spent.reply(reply, apart)
    for sentence in reply.warnings:
        if sentence not in case.remarks:
            case.remarks.append(sentence)
    if reply.finish_reason not in ENDS:
        raise Stopped.because(reply.finish_reason)
    return reply


def room(case: Case, pair_tokens: int) -> int:
    """The most frames of one question apart: what half of the room for tokens holds. Raises ContextError for less than a pair."""
    tokens = min(MOST, int(case.model.room() * SHARE))
    if tokens < pair_tokens:
        raise ContextError(
            f"a frame pair has {pair_tokens} tokens, and half of the context has {tokens}: raise the context"
        )
    return tokens // pair_tokens * int(case.model.config.vision.temporal_patch_size)
