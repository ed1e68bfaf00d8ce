"""The Kullback-Leibler divergence between the next-token distributions of two models, over the likeliest tokens."""

import numpy as np

REST = 1e-6  # least probability of all other tokens together: below it is rounding error


def kl_of_likeliest(reference, other, rest=True):
    """KL(reference || other) in nats per row, float64 (n,); both are log-probabilities (n, top) of the same tokens.

    rest: all other tokens count as one more token, so the result is a lower bound of the true divergence. False where
    `top` is the whole vocabulary.
    """
    p, q = (x.astype(np.float64) for x in (reference, other))
    out = (np.exp(p) * (p - q)).sum(1)
    if rest:
        left, right = (np.maximum(1 - np.exp(x).sum(1), REST) for x in (p, q))
        out += left * np.log(left / right)
    return np.maximum(out, 0)
