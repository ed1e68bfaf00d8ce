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


@pytest.mark.parametrize("asked, advice", [
    (ASKED, r"shorten the text$"), (SEEN, r"shorten the text, or use fewer or smaller frames \(fps"),
])  # fmt: skip
def test_a_text_without_room_is_refused_before_anything_is_computed(demo, asked, advice, monkeypatch):
    monkeypatch.setattr(type(demo.caches), "answer", lambda *_: pytest.fail("it computes"))
    words = r"^the prompt has \d+ tokens, the text [\d,]+ and the context holds 1,024: raise the context \(up to [\d,]+\), or "
    with pytest.raises(ContextError, match=words + advice):
        demo.logprobs(asked, "no " * 1200)


def test_the_last_token_that_has_room(demo):
    prompt = len(demo.prepare(ASKED).token_ids)
    ids = demo.tokenizer.encode("no " * 1200)[: 1024 - prompt]
    text = demo.tokenizer.decode(ids)
    assert demo.tokenizer.encode(text) == ids and len(demo.logprobs(ASKED, text)) == len(ids)
    with pytest.raises(ContextError):
        demo.logprobs(ASKED, text + " no no")


def test_advice_for_a_prompt_without_frames_is_about_its_text(demo):
    long = [{"role": "user", "content": "no " * 1200}]
    for call in (lambda: demo.chat(long), lambda: demo.logits(demo.prepare(long)), lambda: demo.logprobs(long, "x")):
        with pytest.raises(ContextError) as caught:
            call()
        assert "frame" not in str(caught.value) and "1,024" in str(caught.value).replace("1024", "1,024")


@pytest.mark.parametrize("text", [5, None, b"yes", ["yes"], 1.5, True, np.int64(3)])
def test_texts_that_are_none(demo, text):
    with pytest.raises(UsageError, match="^text is .*; it must be a text"):
        demo.logprobs(ASKED, text)


def test_texts_with_halves_of_characters(demo):
    with pytest.raises(UsageError, match="text: .*half of a surrogate pair"):
        demo.logprobs(ASKED, "a\ud800")
    assert demo.logprobs(ASKED, "\ud83d\ude00") == demo.logprobs(ASKED, "\U0001f600")
