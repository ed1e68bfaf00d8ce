"""Drawing tokens: each setting does what it says, and a seed repeats itself."""

import numpy as np
import pytest

from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import UsageError

LOGITS = np.log(np.array([0.05, 0.5, 0.25, 0.15, 0.05], np.float32))


def drawn(n=4000, logits=LOGITS, prompt=(), **params):
    """Relative frequency of each token over n draws."""
    sampler = Sampler(SamplingParams(**params), prompt)
    return np.bincount([sampler(logits) for _ in range(n)], minlength=len(logits)) / n


def test_temperature_zero_is_greedy():
    assert drawn(5, temperature=0)[1] == 1


def test_temperature_one_follows_the_distribution():
    assert np.allclose(drawn(temperature=1), np.exp(LOGITS), atol=0.03)


def test_low_temperature_sharpens():
    squared = np.exp(LOGITS) ** 2
    assert np.allclose(drawn(temperature=0.5), squared / squared.sum(), atol=0.03)


def test_top_k_keeps_the_most_likely():
    assert np.allclose(drawn(temperature=1, top_k=2), [0, 2 / 3, 1 / 3, 0, 0], atol=0.03)


def test_top_p_keeps_the_token_that_crosses_it():
    assert np.allclose(drawn(temperature=1, top_p=0.7), [0, 2 / 3, 1 / 3, 0, 0], atol=0.03)
    assert drawn(200, temperature=1, top_p=0.0)[1] == 1


def test_min_p_is_relative_to_the_best():
    assert np.allclose(drawn(temperature=1, min_p=0.4), [0, 2 / 3, 1 / 3, 0, 0], atol=0.03)


def test_repetition_penalty_counts_prompt_and_answer():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=1.5), prompt_ids=[])
    assert [sampler(logits) for _ in range(2)] == [0, 1]
    assert Sampler(SamplingParams(repetition_penalty=1.5), prompt_ids=[0])(logits) == 1


def test_same_seed_same_tokens():
    runs = [[Sampler(SamplingParams(temperature=1, seed=s))(LOGITS) for _ in range(1)] for s in range(40)]
    again = [[Sampler(SamplingParams(temperature=1, seed=s))(LOGITS) for _ in range(1)] for s in range(40)]
    assert runs == again and len({r[0] for r in runs}) > 1


def test_file_defaults_give_way_to_what_is_said():
    defaults = SamplingParams(temperature=0.7, top_k=20, top_p=0.8)
    params = SamplingParams.over(defaults, temperature=0, top_k=None)
    assert (params.temperature, params.top_k, params.top_p) == (0, 20, 0.8)


@pytest.mark.parametrize("name, value", [
    ("temperature", -1), ("temperature", float("nan")), ("temperature", "hot"), ("top_k", -1), ("top_k", 2.5),
    ("top_p", 1.1), ("min_p", -0.1), ("repetition_penalty", 0), ("seed", -1), ("seed", True),
])  # fmt: skip
def test_out_of_range(name, value):
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})
