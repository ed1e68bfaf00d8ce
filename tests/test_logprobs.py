"""Log-probabilities of an answer's tokens: the model's own, whatever decides what is drawn."""

from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.engine.logprobs import noted
from ivlite.errors import ContextError, Stopped, UsageError
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


SEEN = [{"role": "user", "content": [
    {"type": "video", "video": str(Path(__file__).parents[1] / "examples" / "clip.mp4")},
    {"type": "text", "text": "What happens?"}]}]  # fmt: skip


@pytest.mark.parametrize("asked", [ASKED, SEEN])
def test_a_text_has_those_of_an_answer_that_is_the_same(demo, asked):
    reply = demo.chat(asked, temperature=0, logprobs=3)
    assert reply.finish_reason == "stop"
    entries = demo.logprobs(asked, reply.text, top=3)
    assert entries == reply.logprobs[: len(entries)] and len(entries) in (len(reply.logprobs), len(reply.logprobs) - 1)
    assert all(entry.top[0][0] == entry.token for entry in entries)
    other = demo.logprobs(asked, "No circle at all.", top=1)
    assert sum(e.logprob for e in other) < sum(e.logprob for e in entries) - 1
    assert not all(entry.top[0][0] == entry.token for entry in other)
    alone = ivlite.load("demo", context=1024)
    with ivlite.Engine(alone):
        assert alone.logprobs(asked, reply.text, top=3) == entries


def test_texts_about_one_video_share_it(demo):
    demo.caches.clear()
    seen = []
    for text in ("Red.", "Blue.", "A yellow circle moves."):
        demo.logprobs(SEEN, text, progress=lambda stage, done, total: seen.append(stage))
    assert seen.count("prefill") >= 1 and "vision" not in seen[seen.index("generate") :]


def test_texts_without_tokens_and_control_tokens(demo):
    assert demo.logprobs(ASKED, "") == []
    entries = demo.logprobs(ASKED, "<|im_end|>")
    assert demo.tokenizer.decode([e.token for e in entries], skip_special=False) == "<|im_end|>"
    assert not {e.token for e in entries} & set(demo.config.tokens.eos)


def test_texts_that_cannot_be_told(demo):
    with pytest.raises(ContextError, match="context"):
        demo.logprobs(ASKED, "no " * 1200)
    with pytest.raises(UsageError, match="top"):
        demo.logprobs(ASKED, "x", top=21)
    stop = ivlite.Stop()
    stop.set("deadline")
    with pytest.raises(Stopped, match="deadline"):
        demo.logprobs(ASKED, "x", stop=stop)
    with pytest.raises(Stopped), ivlite.load("demo", context=1024) as model:
        model.logprobs(SEEN, "x", progress=lambda *_: model.close())


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
