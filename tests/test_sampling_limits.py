"""Sampling at its limits: what each setting takes at most, ties, and what is left of the tokens."""

import numpy as np
import pytest

from ivlite.engine.reply import TextFilter, held_back
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import UsageError

LIMITS = {
    "temperature": (0, 100), "top_k": (0, 2**31), "top_p": (0, 1), "min_p": (0, 1), "repetition_penalty": (0.01, 100),
    "seed": (0, 2**64 - 1),
}  # fmt: skip


class Fixed:
    """A generator whose draws are known."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


def drawn(value, logits, **params):
    sampler = Sampler(SamplingParams(temperature=1, **params))
    sampler.random = Fixed(value)
    return sampler(np.asarray(logits, np.float32))


@pytest.mark.parametrize("name", LIMITS)
def test_the_range_of_each_setting(name):
    low, high = LIMITS[name]
    assert getattr(SamplingParams(**{name: low}), name) == low and getattr(SamplingParams(**{name: high}), name) == high
    for beyond in (low - 1, high + 1):
        with pytest.raises(UsageError, match=name):
            SamplingParams(**{name: beyond})


def test_defaults_are_greedy_and_keep_everything():
    p = SamplingParams()
    assert (p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, p.seed) == (0, 0, 1, 0, 1, 0)
    assert Sampler(p, [1]).seen is None and Sampler(SamplingParams(repetition_penalty=1.1), [1]).seen == {1}


def test_the_draw_is_a_place_on_the_cumulated_weights():
    logits = np.log([0.125, 0.5, 0.25, 0.125])  # by likelihood 1, 2, 0, 3: a tie goes to the lower id
    for value, token in ((0, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 0), (0.87, 0), (0.88, 3), (1 - 1e-12, 3)):
        assert drawn(value, logits) == token
        assert drawn(value, logits, top_k=4) == token and drawn(value, logits, top_k=5) == token
    assert drawn(1.0, logits) == 3  # beyond the last weight there is no token
    assert [drawn(v, logits, top_k=1) for v in (0, 0.999)] == [1, 1]
    logits = np.log([0.1, 0.5, 0.25, 0.15])
    assert [drawn(v, logits, top_k=3) for v in (0.55, 0.56, 0.83, 0.84, 0.999)] == [1, 2, 2, 3, 3]


def test_top_p_keeps_tokens_until_it_is_reached():
    logits = np.log([0.5, 0.25, 0.125, 0.125])
    last = lambda **more: drawn(0.9999999, logits, **more)  # noqa: E731
    assert [last(top_p=p) for p in (0, 0.3, 0.6, 0.76, 0.9, 1)] == [0, 0, 1, 2, 3, 3]
    assert [last(min_p=p) for p in (0, 0.2, 0.3, 0.6, 1)] == [3, 3, 1, 0, 0]


def test_a_penalty_divides_and_multiplies():
    sampler = Sampler(SamplingParams(repetition_penalty=2), [0, 1, 7, 9])
    logits = np.array([4, -1, 0, 3, 5], np.float32)
    assert (
        sampler._penalised(logits).tolist() == [2, -2, 0, 3, 5] and logits[0] == 4
    )  # ids beyond the vocabulary are none
    assert sampler(logits) == 4 and sampler.seen == {0, 1, 4, 7, 9}


def test_text_is_held_back_only_as_far_as_a_mark_may_begin():
    assert [held_back(text, ["stop", "st"]) for text in ("", "s", "xst", "xsto", "xstop", "x")] == [0, 1, 2, 3, 0, 0]
    assert held_back("abc", []) == 0 and held_back("a", ["a"]) == 0


def test_a_filter_begins_as_an_answer():
    made = TextFilter()
    assert [(p.text, p.thinking) for p in (*made.push("plain"), *made.flush())] == [("plain", False)]
    opened = TextFilter(thinking=True)
    assert [(p.text, p.thinking) for p in (*opened.push("\n\nhm</think>\n\n yes"), *opened.flush())] == [
        ("hm", True),
        ("yes", False),
    ]
    assert not made.stopped and TextFilter(["", "x"]).stop == ["x"]
