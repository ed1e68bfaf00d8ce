"""Streaming of an answer: turns the engine's token ids into text deltas and adds them to the Reply."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from ivlite.engine.meter import Meter
from ivlite.engine.reply import USAGE, Delta, Reply, TextFilter
from ivlite.engine.step import Step
from ivlite.errors import Stopped
from ivlite.prompt import Prompt
from ivlite.stop import Stop, Work

Ended = Callable[[Reply | None, int | None], object]


class Stream(Work[Delta]):
    """Iterate over it for Deltas; read `.reply` at any time, from any thread.

    When its Stop is set, the stream ends like a finished answer: nothing is raised, and the reply's finish_reason is
    the Stop's reason. close() stops it from any thread and frees its cache; `with model.stream(...) as stream` closes it.

    tokens: a generator of ids that returns the finish reason. text: the detokenizer (push, flush). calls: whether the answer
    may have calls of tools. ended(reply, end) is called once: reply None after an error or without a start, end the
    characters before a stop string. began: the perf_counter at the start of the call. most: tokens of prompt and answer, at
    most. holder: who provides the cache, as `Model` knows it. engine(): the Engine that runs the model's answers, or None.
    """

    def __init__(self, prompt: Prompt, tokens: Generator[Any, None, str], text: Any, strings: Sequence[str], stop: Stop,
                 meter: Meter, ended: Ended = lambda reply, end: None, *, began: float, load_seconds: float,
                 calls: bool = False, most: int = 0, holder: Any = None, engine: Callable[[], Any] = lambda: None) -> None:  # fmt: skip
        self.prompt, self._meter, self.most, self.holder = prompt, meter, most, holder
        self.engine, self._feed = engine, None  # type: Callable[[], Any], Any
        self._began, self._load_seconds = began, load_seconds
        self._reply = Reply(usage=usage(prompt))
        # A function, not a method: a method's frame would form a reference cycle between this object and the generator.
        cut = TextFilter(strings, prompt.thinks, f"call_{len(prompt.token_ids)}_" if calls else None)

        def over(reply: Reply | None, end: int | None) -> None:
            meter.end()
            ended(reply, end)

        super().__init__(deltas(tokens, text, cut, self._reply, stop, over), stop)
        self._ended = over

    def __next__(self) -> Delta:
        if self._feed is None and (engine := self.engine()) is not None:
            engine.add(self)
        if self._feed is not None:
            return self._feed.get()
        while isinstance(item := super().__next__(), Step):
            pass  # it is run as the stream goes on
        return item

    def advance(self) -> Delta | Step:
        """The next Delta, or a Step that the next call runs if nobody has done so; for those that run several streams."""
        return super().__next__()

    def feed(self, feed: Any) -> None:
        """From now on somebody else advances the stream, and it takes its Deltas from a Feed (engine.batch)."""
        self._feed = feed

    def close(self) -> None:
        super().close()
        if not self._reply.finish_reason and not self._items.gi_running:
            self._ended(None, None)
        self._reply.finish_reason = self._reply.finish_reason or self.stop.reason or "closed"  # if it never started
        if self._feed is not None:
            self._feed.end()

    @property
    def reply(self) -> Reply:
        """The Reply so far."""
        reply, seconds, opened = self._reply, dict(self._meter.seconds), self.prompt.opened
        seconds["decode"] += opened
        total = (self._meter.ended or time.perf_counter()) - self._began
        reply.timings = {"load": self._load_seconds, **seconds, "total": total}
        reply.usage["new_tokens"] = len(reply.token_ids)
        reply.logprobs = self._meter.logprobs[: len(reply.token_ids)]
        cached = self._meter.cached
        reply.usage |= {"cached_tokens": cached, "stored_tokens": min(cached, self._meter.stored)}
        reply.usage |= {"draft_tokens": self._meter.drafted, "accepted_tokens": self._meter.accepted}
        reply.warnings = [
            *self.prompt.warnings,
            *(w for m in self.prompt.media for w in m.warnings),
            *self._meter.warnings,
        ]
        if self.prompt.plan is not None:
            reply.plan = self.prompt.plan.happened(reply.usage, {"scan": opened, **self._meter.seconds})
        return reply


def usage(prompt: Prompt) -> dict[str, int]:
    """The usage counts of a Prompt, before the first token of an answer."""
    return dict.fromkeys(USAGE, 0) | {
        "prompt_tokens": len(prompt.token_ids),
        "vision_tokens": sum(count for _, _, count in prompt.spans),
        "frames": sum(len(m.frames) if m.kind == "video" else 1 for m in prompt.media),
    }


def deltas(tokens: Generator[Any, None, str], text: Any, cut: TextFilter, reply: Reply, stop: Stop,
           ended: Ended) -> Iterator[Any]:  # fmt: skip
    """Yields the Deltas of token ids, and Steps between them, until the ids end, or a stop string or the Stop ends them.

    Each Delta is added to the reply.
    """
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
                if isinstance(token, Step):
                    yield token
                    continue
                reply.token_ids.append(token)
                yield from added(reply, cut.push(text.push(token)))
        tokens.close()  # frees the cache
        if not cut.stopped:
            yield from added(reply, cut.push(text.flush()) + cut.flush())
        called = reason == "stop" and reply.tool_calls
        reply.unfinished = cut.unfinished
        reply.finish_reason = "stop" if cut.stopped else "tool_calls" if called else reason
    except GeneratorExit:  # closed before the end
        for _ in added(reply, cut.push(text.flush()) + cut.flush()):
            pass
        reply.unfinished = cut.unfinished
        reply.finish_reason = stop.reason or "closed"
        raise
    finally:
        tokens.close()
        ended(reply if reply.finish_reason else None, cut.end)


def added(reply: Reply, deltas: Iterable[Delta]) -> Iterator[Delta]:
    """Adds each delta to the reply, then yields it."""
    for delta in deltas:
        if delta.call is not None:
            reply.tool_calls.append(delta.call)
        elif delta.thinking:
            reply.thinking += delta.text
            reply.thought = len(reply.token_ids)
        else:
            reply.text += delta.text
        yield delta
