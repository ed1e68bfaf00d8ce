"""Log-probabilities of an answer's tokens: the model's own, whatever decides what is drawn."""

import numpy as np
import pytest

import ivlite
from ivlite.engine.logprobs import noted
from ivlite.errors import UsageError
from ivlite.gguf import SHIPPED

ASKED = [{"role": "user", "content": "Please introduce yourself."}]


@pytest.fixture(scope="module")
def demo():
    if not SHIPPED["demo"].is_file():
        pytest.skip("the demo model is not in the package")
    return ivlite.load("demo", context=1024)


def test_an_entry(rng):
    logits = rng.normal(0, 3, 50).astype(np.float32)
    logits[7] = logits[9]  # of equal ones the first is the likelier
    entry = noted(logits, 4, 5)
    wanted = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    assert entry.logprob == pytest.approx(wanted[4], abs=1e-6)
    assert [token for token, _ in entry.top] == list(np.lexsort((np.arange(50), -logits))[:5])
    assert [value for _, value in entry.top] == pytest.approx(np.sort(wanted)[::-1][:5], abs=1e-6)
    assert noted(logits, 4, 0).top == [] and len(noted(logits[:3], 1, 20).top) == 3


def test_they_are_the_logits_of_a_pass_over_all_tokens(demo):
    reply = demo.chat(ASKED, temperature=0, logprobs=2)
    assert len(reply.logprobs) == len(reply.token_ids) > 3
    prompt = demo.prepare([*ASKED, {"role": "assistant", "content": reply.text}], continue_final_message=True)
    count = len(reply.token_ids)
    assert prompt.token_ids[-count:] == reply.token_ids
    logits = demo.logits(prompt)[-count - 1 : -1]
    for row, token, entry in zip(logits, reply.token_ids, reply.logprobs, strict=True):
        expected = noted(row, token, 2)
        assert entry.token == token and entry.logprob == pytest.approx(expected.logprob, abs=0.05)
        assert [t for t, _ in entry.top[:1]] == [token]


def test_what_is_drawn_does_not_change(demo):
    for more in (
        {"temperature": 0},
        {"temperature": 1.5, "seed": 4},
        {"response_format": {"type": "choice", "choices": ["yes", "no"]}},
    ):
        plain, noted = (demo.chat(ASKED, max_new_tokens=20, logprobs=n, **more) for n in (None, 0))
        assert plain.token_ids == noted.token_ids and plain.logprobs == []
        assert [entry.token for entry in noted.logprobs] == noted.token_ids
        assert all(entry.logprob <= 0 and entry.top == [] for entry in noted.logprobs)


@pytest.mark.parametrize("wrong", [-1, 21, 1.5, "2", True])
def test_wrong_numbers(demo, wrong):
    with pytest.raises(UsageError, match="logprobs"):
        demo.chat(ASKED, logprobs=wrong)
