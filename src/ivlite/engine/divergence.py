"""How far one model's next tokens are from another's: the Kullback-Leibler divergence over the likeliest tokens."""

import numpy as np

REST = 1e-6  # of probability: less is rounding


def kl_of_likeliest(reference, other, rest=True):
    """KL in nats of each row, float64 (n,), of log-probabilities (n, top) of the same tokens.

    rest: all other tokens count as one more, so that the result is at most the true divergence; False where `top` is
    the whole vocabulary.
    """
    p, q = (x.astype(np.float64) for x in (reference, other))
    out = (np.exp(p) * (p - q)).sum(1)
    if rest:
        left, right = (np.maximum(1 - np.exp(x).sum(1), REST) for x in (p, q))
        out += left * np.log(left / right)
    return np.maximum(out, 0)
