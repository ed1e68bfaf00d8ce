"""An answer being written: token ids of the engine become deltas of text, and the reply grows."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

from ivlite.engine.meter import Meter
from ivlite.engine.reply import Delta, Reply, TextFilter
from ivlite.errors import Stopped
from ivlite.prompt import Prompt
from ivlite.stop import Stop, Work


class Stream(Work[Delta]):
    """Iterate for Deltas, read `.reply` at any time, from any thread.

    When its Stop is set the stream ends as if the answer had: nothing is raised, and the reply's finish_reason is the
    reason. close(), from any thread, stops it, too, and frees its cache; `with model.stream(...) as stream` closes it.

    tokens: a generator of ids that returns why it ends. text: what turns ids into text (push, flush). began: the
    perf_counter at which the call came. opened: seconds of opening the media.
    """

    def __init__(self, prompt: Prompt, tokens: Generator[int, None, str], text: Any, strings: Sequence[str], stop: Stop,
                 meter: Meter, *, began: float, load_seconds: float) -> None:  # fmt: skip
        self.prompt, self._seconds = prompt, meter.seconds
        self._began, self._load_seconds = began, load_seconds
        self._opened = time.perf_counter() - began
        self._reply = Reply(usage=usage(prompt))
        # No method of this object: its frame would tie object and generator together, for the garbage collector to find.
        super().__init__(deltas(tokens, text, TextFilter(strings, prompt.thinks), self._reply, stop), stop)

    def close(self) -> None:
        super().close()
        self._reply.finish_reason = self._reply.finish_reason or self.stop.reason or "closed"  # if it was never begun

    @property
    def reply(self) -> Reply:
        """The Reply so far."""
        reply, seconds = self._reply, dict(self._seconds)
        seconds["decode"] += self._opened  # opening the files and scanning their packet times
        reply.timings = {"load": self._load_seconds, **seconds, "total": time.perf_counter() - self._began}
        reply.usage["new_tokens"] = len(reply.token_ids)
        reply.warnings = list(self.prompt.warnings) + [w for m in self.prompt.media for w in m.warnings]
        return reply


def usage(prompt: Prompt) -> dict[str, int]:
    """The counts of a Prompt, before the first token of an answer."""
    return {
        "prompt_tokens": len(prompt.token_ids),
        "vision_tokens": sum(count for _, _, count in prompt.spans),
        "new_tokens": 0,
        "frames": sum(len(m.frames) if m.kind == "video" else 1 for m in prompt.media),
    }


def deltas(tokens: Generator[int, None, str], text: Any, cut: TextFilter, reply: Reply, stop: Stop) -> Iterator[Delta]:
    """Yields the Deltas of token ids, adding each to the reply, until the ids, a stop string or the Stop end them."""
    reason: Any = None
    try:
        while reason is None and not cut.stopped:
            try:
                token = next(tokens)
            except StopIteration as end:
                reason = end.value
            except Stopped:
                reason = stop.reason or "deadline"
            else:
                reply.token_ids.append(token)
                yield from added(reply, cut.push(text.push(token)))
        tokens.close()  # and with it goes the cache
        if not cut.stopped:
            yield from added(reply, cut.push(text.flush()) + cut.flush())
        reply.finish_reason = "stop" if cut.stopped else reason
    except GeneratorExit:  # closed half way
        for _ in added(reply, cut.push(text.flush()) + cut.flush()):
            pass
        reply.finish_reason = stop.reason or "closed"
        raise


def added(reply: Reply, deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Yields the deltas, each after it was added to the reply."""
    for delta in deltas:
        if delta.thinking:
            reply.thinking += delta.text
        else:
            reply.text += delta.text
        yield delta
