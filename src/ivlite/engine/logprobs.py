"""Log-probabilities of an answer's tokens, as the model gives them: before temperature, penalties and grammars."""

from typing import Any

import numpy as np

from ivlite.engine.reply import TokenLogprob

MOST = 20  # alternatives of a token


class Watched:
    """A sampler whose tokens are noted. most: alternatives of each. noted: the list that grows by one entry a token."""

    def __init__(self, sampler: Any, most: int, noted: list[TokenLogprob]) -> None:
        self.sampler, self.most, self.noted = sampler, most, noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)  # greedy, forced

    def __call__(self, logits: Any) -> int:
        """One token id from float32 logits (vocab,)."""
        row = np.asarray(logits)
        token = self.sampler(row)
        self.noted.append(noted(row, token, self.most))
        return int(token)


def noted(logits: np.ndarray, token: int, most: int) -> TokenLogprob:
    """The entry of a token. logits: float32 (vocab,)."""
    below = logits.astype(np.float64)
    below -= below.max()
    below -= np.log(np.exp(below).sum())
    top = np.argpartition(below, -most)[-most:] if 0 < most < len(below) else np.arange(min(most, len(below)))
    top = top[np.lexsort((top, -below[top]))]
    return TokenLogprob(token, float(below[token]), [(int(i), float(below[i])) for i in top])
