"""Times and progress of the stages of a run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ivlite.engine.reply import TokenLogprob

Progress = Callable[[str, int, int], object]  # stage, done, total
STAGES = ("decode", "vision", "prefill", "generate")


class Meter:
    """seconds: the time of each of STAGES so far. progress(stage, done, total) counts frames, frame pairs, tokens, tokens.

    cached: the tokens of the prompt that the cache already held. stored: those of them that were read from the store.
    drafted, accepted: tokens of an answer that were guessed and checked together, and those of them that came. warnings:
    sentences for the reply. logprobs: of the tokens of an answer, where they were asked for. shared: others computed
    meanwhile, so that the times say little about this machine. ended: the perf_counter at the end of the run, or None.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.cached = self.stored = self.drafted = self.accepted = 0
        self.warnings: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.shared = False
        self.ended: float | None = None
        self.progress = progress or (lambda stage, done, total: None)

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def end(self) -> None:
        """The run is over; only the first call counts."""
        self.ended = time.perf_counter() if self.ended is None else self.ended

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
