"""Plans at the border of the context and of the memory: what does not fit is refused with the numbers, and with what fits."""

import re

import pytest
from test_budget import listed
from test_plan import SPEEDS, ask

import ivlite
from ivlite.errors import ContextError, OutOfMemoryError
from ivlite.machine import MARGIN


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """What is kept of a machine's speed lies apart from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def demo():
    model = ivlite.load("demo")
    model._planning()._speeds = SPEEDS
    return model


def test_a_megabyte_of_text_is_refused_with_both_counts(demo):
    with pytest.raises(ContextError, match=r"[\d,]{6,} tokens .*the context holds 8,192.*shorten the text") as refusal:
        demo.chat([{"role": "user", "content": "word " * 200_000}])
    assert refusal.value.exit_code == 7


@pytest.mark.parametrize(
    "text", ["word " * 4_000_000, "a" * 20_000_000, " " * 20_000_000, "1" * 20_000_000], ids=lambda t: t[:4]
)
def test_a_text_that_never_fits_is_not_counted_to_its_end(demo, text, monkeypatch):
    read, before = [], demo.tokenizer._piece
    monkeypatch.setattr(demo.tokenizer, "_piece", lambda piece: read.append(len(piece)) or before(piece))
    with pytest.raises(ContextError, match=r"more than 1,048,576 tokens .*the context holds 8,192: shorten the text"):
        demo.plan([{"role": "user", "content": text}])
    assert sum(read) < len(text) // 2


def test_many_short_texts_are_not_counted_to_their_end(demo, monkeypatch):
    monkeypatch.setattr("ivlite.prompt.layout.COUNTED", 1)
    messages = [{"role": role, "content": "a"} for role in ("user", "assistant")] * 3000
    with pytest.raises(
        ContextError, match="more than 16,384 tokens of text and the context holds 8,192: shorten the text"
    ):
        demo.plan(messages)


def test_tokens_of_media_are_no_text(demo, monkeypatch):
    monkeypatch.setattr("ivlite.prompt.layout.COUNTED", 1)
    monkeypatch.setattr("ivlite.prompt.layout.Builder.most", 60)
    assert demo.plan(ask(listed(400, fps=2, max_frames=300))).prompt_tokens > 300


def test_what_is_stated_and_does_not_fit_is_refused_with_what_does(demo):
    with pytest.raises(ContextError, match=r"[\d,]+ tokens .*holds 8,192: use --max-frames \d+") as refusal:
        demo.chat(ask(listed(4000, fps=2, max_frames=3000)))
    most = int(re.search(r"--max-frames (\d+)", str(refusal.value))[1])
    built = demo.prepare(ask(listed(4000, fps=2, max_frames=most)))
    assert built.plan.fits and 8192 - 256 - 40 < len(built.token_ids) <= 8192 - 256
    small = ivlite.load("demo", context=512)
    with pytest.raises(ContextError, match=r"--context \d+"):
        small.chat(ask(listed(400, fps=2, max_frames=200)))


def test_an_answer_that_uses_the_context_up_keeps_its_text():
    model = ivlite.load("demo", context=100)
    reply = model.chat([{"role": "user", "content": "Please introduce yourself."}], temperature=0, max_new_tokens=None)
    used = reply.usage["prompt_tokens"] + reply.usage["new_tokens"]
    assert reply.finish_reason == "length" or used < 100
    tight = ivlite.load("demo", context=reply.usage["prompt_tokens"] + 5)
    cut = tight.chat([{"role": "user", "content": "Please introduce yourself."}], temperature=0, max_new_tokens=500)
    assert cut.finish_reason == "length" and cut.usage["new_tokens"] in (5, 6)
    assert cut.text and reply.text.startswith(cut.text)


def test_memory_that_is_short_thins_what_is_open(monkeypatch):
    """Without a stated context, the free memory is the room; a stated context is kept."""
    model, stated = ivlite.load("demo"), ivlite.load("demo", context=4000)
    for module in ("ivlite.model", "ivlite.plan.planner", "ivlite.session.pool"):
        monkeypatch.setattr(f"{module}.available_memory", lambda: MARGIN + 1500 * 980)
    assert model.room() == 1500 and stated.room() == 4000
    built = model.prepare(ask(listed(3000, fps=2)), budget=3000, max_new_tokens=100)
    assert built.plan.fits and built.choices[0].by == "context" and len(built.token_ids) <= 1400
    assert len(stated.prepare(ask(listed(3000, fps=2)), budget=3000, max_new_tokens=100).token_ids) > 3000
    with pytest.raises(OutOfMemoryError, match="--max-frames"):
        model.chat(ask(listed(3000, fps=2, max_frames=600)))
