"""Sampling: its parameters, and the choice of the next token from a row of logits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.random import default_rng  # imported here: numpy loads it lazily, which would delay the first token

from ivlite.numbers import number, whole

LIMITS: dict[str, tuple[Callable[..., float], float, float]] = {
    "temperature": (number, 0, 100),
    "top_k": (whole, 0, 2**31),
    "top_p": (number, 0, 1),
    "min_p": (number, 0, 1),
    "repetition_penalty": (number, 0.01, 100),
    "seed": (whole, 0, 2**64 - 1),
}
LARGEST = -3.4e38, 3.4e38  # the range of float32


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn, applied in the order repetition penalty, temperature, top-k, top-p, min-p.

    temperature 0 takes the most likely token. top_k 0 and top_p 1 keep everything. min_p drops tokens less likely
    than min_p times the most likely one. repetition_penalty divides positive and multiplies negative logits of tokens
    in the prompt or the answer. Raises UsageError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (check, low, high) in LIMITS.items():
            object.__setattr__(self, name, check(name, getattr(self, name), low, high))

    @classmethod
    def over(cls, defaults: object, **given: Any) -> "SamplingParams":
        """A model file's generation defaults, overridden by the arguments that are not None."""
        known = {f.name for f in fields(cls)}
        base = {name: getattr(defaults, name) for name in known if hasattr(defaults, name)}
        return replace(cls(**base), **{k: v for k, v in given.items() if v is not None})


class Sampler:
    """Draws one token per call; the same seed and logits give the same tokens."""

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int] = ()) -> None:
        self.params = params
        self.random = default_rng(params.seed)
        self.seen = set(prompt_ids) if params.repetition_penalty != 1 else None
        self._marked: Any = None  # the same on a card

    @property
    def greedy(self) -> bool:
        """Whether it takes the most likely token, which depends on the text alone."""
        return self.params.temperature == 0

    def __call__(self, logits: Any) -> int:
        """One token id from float32 logits (vocab,), numpy or a row that stays on a card (`ops.cuda_step.CardRow`)."""
        return self.took(self.drawn(logits))

    def drawn(self, logits: Any) -> int:
        """The same for a token that may not be taken: `took` notes it if it is."""
        return self._chosen(logits) if isinstance(logits, np.ndarray) else self._chosen_there(logits)

    def took(self, token: int) -> int:
        """Notes a token of the answer, for the penalty of repetition; returns it."""
        if self.seen is not None:
            self.seen.add(token)
        return token

    def _chosen(self, logits: np.ndarray) -> int:
        self._marked = None
        if self.seen:
            logits = self._penalised(logits)
        return int(np.argmax(logits)) if self.params.temperature == 0 else self._draw(logits)

    def _chosen_there(self, row: Any) -> int:
        if self.seen is not None and self._marked is None:
            self._marked = row.marked(self.seen)
        return row.draw(self.params, self._marked, 0.0 if self.params.temperature == 0 else self.random.random())

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        ids = np.fromiter(self.seen or (), np.int64)
        ids = ids[ids < len(logits)]
        at, penalty = logits[ids].astype(np.float64), self.params.repetition_penalty
        logits[ids] = np.clip(np.where(at > 0, at / penalty, at * penalty), *LARGEST)
        return logits

    def _draw(self, logits: np.ndarray) -> int:
        p = self.params
        keep = len(logits) if p.top_k == 0 else min(p.top_k, len(logits))
        ids = np.argpartition(logits, -keep)[-keep:] if keep < len(logits) else np.arange(len(logits))
        ids = ids[np.lexsort((ids, -logits[ids]))]  # most likely first, ties by id
        below = logits[ids].astype(np.float64)
        below -= below[0]
        with np.errstate(over="ignore"):  # with a temperature near 0 only the likeliest token is left
            weights = np.exp(below / p.temperature)
        weights /= weights.sum()
        # The token that crosses top_p stays, and the first one always does.
        count = max(1, int(np.searchsorted(np.cumsum(weights), p.top_p)) + 1) if p.top_p < 1 else len(ids)
        weights = weights[:count]
        weights = weights[(weights > 0) & (weights >= p.min_p * weights[0])]
        at = np.searchsorted(np.cumsum(weights), self.random.random() * weights.sum(), side="right")
        return int(ids[min(at, len(weights) - 1)])


class Told:
    """A sampler whose tokens are known: those of an answer that was given before. They are gone through together."""

    greedy = False

    def __init__(self, ids: Iterable[int], end: int) -> None:
        self._left = [*ids, end]

    def __call__(self, logits: Any) -> int:
        return self._left.pop(0)

    def forced(self) -> list[int]:
        """The tokens that follow, without the end of the answer."""
        return self._left[:-1]
