"""A step of an answer: the tokens that a runner runs next, alone or in one pass with those of others."""

import time

import numpy as np

from ivlite.errors import ModelFileError

ROWS = 16  # tokens of all steps of a pass, unless each has one only


class Step:
    """Tokens that a runner is to run. sure: how many of them are no guesses.

    seconds: what it took alone, with nothing beside it; None where that is not known.
    """

    def __init__(self, runner, tokens, sure):
        self.runner, self.tokens, self.sure = runner, tokens, sure
        self.logits = self.seconds = None

    def run(self):
        """float32 logits (n, vocab), row i those after token i; runs the tokens unless that was done. Raises ModelFileError."""
        if self.logits is None:
            began = time.perf_counter()
            self.logits = self.runner.steps(self.tokens)
            self.seconds = time.perf_counter() - began
        return self.logits if self.seconds is not None else finite(self.logits)


def run_together(steps):
    """Runs Steps of several runners of one network, whose logits are then there; guesses are left out.

    Each token gets the bits of a call of its own. After an exception none was run, or those of the passes that were complete.
    """
    share = max(1, ROWS // len(steps))
    for step in steps:
        step.tokens = step.tokens[: min(step.sure, share)]
    for some in _passes(steps, steps[0].runner.network.same_rows):
        _run(some)


def _passes(steps, most):
    """Lists of steps of at most `most` tokens, or of one step."""
    some, rows = [], 0
    for step in steps:
        if some and rows + len(step.tokens) > most:
            yield some
            some, rows = [], 0
        some.append(step)
        rows += len(step.tokens)
    yield some


def _run(steps):
    began = time.perf_counter()
    parts = [(step.tokens, step.runner.following(len(step.tokens)), step.runner.cache) for step in steps]
    try:
        found = steps[0].runner.network.steps(parts)
    except BaseException:
        for step in steps:
            step.runner.cache.truncate(step.runner.held.length)  # a cache may have the rows already
        raise
    seconds = time.perf_counter() - began
    for step, (tokens, positions, _), logits in zip(steps, parts, found, strict=True):
        step.runner.held.append(tokens, positions, int(positions[0, -1]) + 1)
        step.runner.meter.seconds["generate"] += seconds
        step.runner.meter.shared = len(steps) > 1 or step.runner.meter.shared
        step.logits = logits


def finite(logits):
    """Returns the logits. Raises ModelFileError if any is not finite: the answer would be noise."""
    known = getattr(logits, "finite", None)  # of those that stay on a card
    if not (np.isfinite(logits.max()) and not np.isnan(logits.min()) if known is None else known):
        raise ModelFileError("the model computed values that are not finite: its weights are damaged; convert it again")
    return logits
