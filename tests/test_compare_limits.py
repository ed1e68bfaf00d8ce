"""Judging against a reference, one function at a time, from numbers whose answers are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.evaluate import compare
from ivlite.prompt import Prompt


def prompt(tokens, spans=(), media=0):
    return Prompt(token_ids=list(range(tokens)), positions=np.tile(np.arange(tokens), (3, 1)) * 2, next_position=2 * tokens + 5,
                  grid_thw=None, timestamps=[], frames=[], media=[None] * media, spans=list(spans))  # fmt: skip


def test_tokens_of_media_and_their_marks_are_not_counted():
    assert compare.counted(prompt(5), 7).tolist() == [0, 1, 2, 3, 4, 5, 6]
    # a picture at 4 and 5 (its start at 3, what comes before it judges nothing), a video in two pairs from 9 to 13
    made = prompt(16, [(0, 4, 2), (1, 9, 1), (1, 11, 2)], 2)
    assert compare.counted(made, 16).tolist() == [0, 1, 6, 13, 14, 15]
    assert compare.counted(prompt(4, [(0, 1, 2)], 1), 4).tolist() == [3]


def test_an_answer_stands_at_the_positions_after_the_prompt():
    made = compare.followed(prompt(3), [70, 71])
    assert made.token_ids == [0, 1, 2, 70, 71] and made.next_position == 13
    assert made.positions.tolist() == [[0, 2, 4, 11, 12]] * 3


def test_log_probabilities():
    logits = np.log(np.array([[1, 2, 5], [8, 1, 1]], np.float32)) + np.float32([[90], [-90]])
    assert np.allclose(compare.log_probabilities(logits), np.log([[0.125, 0.25, 0.625], [0.8, 0.1, 0.1]]), atol=1e-5)


def test_the_likeliest_come_first_and_ties_by_id():
    ids, values = compare.likeliest(np.array([[-3, -1, -2, -1, -9]], np.float32), 3)
    assert ids.tolist() == [[1, 3, 2]] and values.tolist() == [[-1, -1, -2]] and ids.dtype == np.int32
    ids, _ = compare.likeliest(np.array([[-3, -1]], np.float32), 256)
    assert ids.tolist() == [[1, 0]]


def test_the_loss_is_that_of_the_token_that_follows():
    logp = np.array([[-1, -2, -3], [-4, -5, -6], [-7, -8, -9]], np.float32)
    got = compare.losses(logp, np.array([0, 2, 1, 0]), np.array([0, 1, 3]))
    assert got[:2].tolist() == [3, 5] and math.isnan(got[2])


def test_the_divergence_is_that_of_the_likeliest_and_the_rest():
    p, q = np.array([0.5, 0.25, 0.125, 0.125]), np.array([0.25, 0.25, 0.25, 0.25])
    exact = (p * np.log(p / q)).sum()
    ids = np.array([[0, 1, 2, 3]])
    assert compare.divergence(np.log(p)[None], np.log(q)[None], ids) == pytest.approx([exact])
    part = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert compare.divergence(np.log(p[:1])[None], np.log(q)[None], ids[:, :1]) == pytest.approx([part])
    assert compare.divergence(np.log(q)[None], np.log(q)[None], ids) == [0]
    sure = np.log(np.array([[1 - 1e-9]]))  # less than a millionth is rounding
    assert compare.divergence(sure, np.log(np.array([[1 - 1e-6, 1e-6]])), ids[:, :1]) == pytest.approx([1e-6], rel=1e-2)


def test_scores_add_up():
    one = compare.Scores(
        1, 1, 0, [np.array([0.0, 1])], [np.array([1.0])], [np.array([True, True])], [np.array([1.0])], [np.array([2.0])]
    )
    two = compare.Scores(
        1, 0, 0, [np.array([5.0])], [np.zeros(0)], [np.array([False])], [np.array([3.0])], [np.array([2.0])]
    )
    one.add(two)
    made = one.summary()
    assert (made["prompts"], made["tokens"], made["answers"], made["flips"]) == (2, 3, 1, 0)
    assert made["mean_kl"] == 2 and made["answer_kl"] == 1 and made["top1"] == pytest.approx(2 / 3)
    assert made["p99_kl"] == pytest.approx(1 + 4 * 0.98) and made["perplexity"] == made[
        "reference_perplexity"
    ] == pytest.approx(math.e**2)
    empty = compare.Scores(
        1, 0, 0, [np.array([5.0])], [np.zeros(0)], [np.array([False])], [np.zeros(0)], [np.array([800.0])]
    ).summary()
    assert empty["answer_kl"] is None and empty["perplexity"] is None and empty["reference_perplexity"] == math.exp(700)


def test_answers_end_with_the_context():
    model = SimpleNamespace(context=5)
    assert compare.greedy(model, prompt(5), 10) == [] and compare.greedy(model, prompt(4), 0) == []


class Told:
    """A model that says given logits: token t is followed by `after[t]`."""

    context = 64

    def __init__(self, after):
        self.after = after
        self.config = SimpleNamespace(tokens=SimpleNamespace(eos=()))

    def prepare(self, messages):
        return prompt(4)

    def each_logits(self, made, progress=None):
        rows = np.full((len(made.token_ids), 10), -5, np.float32)
        for i, token in enumerate(made.token_ids):
            rows[i, self.after.get(token, 0)] = 5
        yield 0, rows[:3]
        yield 3, rows[3:]


def test_an_answer_is_flipped_where_the_model_would_have_said_another():
    """Prompt 0 1 2 3, answer 7 8; the last token of the prompt foretells the answer's first."""
    sample = SimpleNamespace(messages=[{"role": "user"}], key="k", kind="text", label="l")
    tokens = np.array([0, 1, 2, 3, 7, 8], np.int32)
    likely = {0: 1, 1: 2, 2: 3, 3: 7, 7: 8, 8: 9}
    said = Told(likely).each_logits(SimpleNamespace(token_ids=tokens.tolist()))
    logp = compare.log_probabilities(np.vstack([rows for _, rows in said]))
    ids, top = compare.likeliest(logp, 10)
    reference = compare.Record("k", "text", 4, tokens, ids, top, compare.losses(logp, tokens, np.arange(6)))
    assert reference.answer == [7, 8]
    same = compare.score(Told(likely), sample, reference)
    assert (same.prompts, same.answers, same.flips) == (1, 1, 0) and same.kl[0].max() == 0
    assert len(same.kl[0]) == 6 and len(same.answer_kl[0]) == 3 and len(same.loss[0]) == 3
    assert np.allclose(same.loss[0], same.reference_loss[0]) and same.loss[0].max() < 0.01
    for token, flips in ((1, 0), (2, 0), (3, 1), (7, 1), (8, 1)):
        assert compare.score(Told(likely | {token: 5}), sample, reference).flips == flips
    no_answer = compare.Record("k", "text", 4, tokens[:4], ids[:4], top[:4], reference.loss[:4])
    made = compare.score(Told(likely | {3: 5}), sample, no_answer)
    assert (made.answers, made.flips, len(made.answer_kl[0]), len(made.loss[0])) == (0, 0, 0, 3)
    with pytest.raises(compare.UsageError, match="different tokens"):
        compare.score(Told(likely), sample, compare.Record("k", "text", 3, tokens, ids, top, reference.loss))
