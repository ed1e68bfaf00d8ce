"""Rows that are kept, read from a store, or computed after a stop have the bits of a prefill of their own."""

from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.engine import runner
from ivlite.engine.vision import encoded
from ivlite.gguf import SHIPPED
from ivlite.session.store import Store
from ivlite.stop import Stop

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
CLIP = {"type": "video", "video": str(Path(__file__).parents[1] / "examples" / "clip.mp4")}
GREEDY = {"temperature": 0, "max_new_tokens": 4}
RNG = np.random.default_rng(1)
IMAGE = {"type": "image", "image": RNG.integers(0, 255, (192, 256, 3), dtype=np.uint8), "max_pixels": 200000}
SMALL = {
    "type": "video",
    "video": RNG.integers(0, 255, (322, 64, 64, 3), dtype=np.uint8),
    "nframes": 322,
}  # 161 frame pairs of 16 patches
WORDS = " ".join(f"The circle number {i} is red." for i in range(40))


def loaded(**more):
    return ivlite.load("demo", context=4096, threads=1, **more)


def user(*parts):
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": parts}]


def asked(model, messages, **more):
    """(Reply, logits at the end of the prompt) of Model.chat."""
    reply = model.chat(messages, **GREEDY | more)
    return reply, model._pool._idle[-1].held.logits(reply.usage["prompt_tokens"]).copy()


def told(session, way, *what, **more):
    """The same of a call of a session."""
    with getattr(session, way)(*what, **GREEDY | more) as stream:
        for _ in stream:
            pass
    return stream.reply, session.runner.held.logits(stream.reply.usage["prompt_tokens"]).copy()


def fresh(messages):
    with loaded() as model:
        return asked(model, messages)[1]


# ------------------------------------------------------------------------------------------------ the store


def test_rows_of_a_cache_and_of_the_store_are_not_mixed(tmp_path):
    """What follows rows of an entry was computed after the entry's own rows, not after those that the cache had."""
    before = user(IMAGE, WORDS + " What happens?")
    first, second = (user(IMAGE, WORDS, CLIP, text) for text in ("What happens?", "Which colours are there?"))
    with loaded(store=Store(tmp_path, worth=0)) as model:
        model.chat(first, **GREEDY)
    with loaded(store=Store(tmp_path, worth=1e9)) as model:
        model.chat(before, **GREEDY)
        reply, found = asked(model, second)
    assert reply.usage["stored_tokens"] == reply.usage["cached_tokens"] > reply.usage["vision_tokens"]
    assert (found == fresh(second)).all()


def test_a_session_keeps_its_rows_beside_a_store(tmp_path):
    """What the store has of a conversation comes behind the rows of the turns before, which stay: so a rollback is a branch."""
    first, second = (
        [IMAGE, {"type": "text", "text": WORDS + " What happens?"}],
        [CLIP, {"type": "text", "text": "What happens here?"}],
    )
    with loaded() as model:
        answer = model.chat(user(*first), **GREEDY).text
    said = [*user(*first), {"role": "assistant", "content": answer}, *user(*second)]
    with loaded(store=Store(tmp_path, worth=0)) as model:
        model.chat(said, **GREEDY)
    with loaded(store=Store(tmp_path, worth=1e9)) as model, model.session() as session:
        told(session, "ask", user(*first))
        rows = session._turns[-1].rows
        mark, branch, before = session.mark(), session.branch(), session.runner.cache.dump(0, rows)
        reply, _ = told(session, "ask", user(*second))
        assert reply.usage["stored_tokens"] > 0 and (session.runner.cache.dump(0, rows) == before).all()
        session.rollback(mark)
        assert (told(session, "ask", "And how many?")[1] == told(branch, "ask", "And how many?")[1]).all()


@pytest.mark.parametrize("damage", [False, True])
def test_an_error_puts_back_rows_that_the_store_replaced(tmp_path, monkeypatch, damage):
    other = user(IMAGE, WORDS, CLIP, "What happens?")
    with loaded(store=Store(tmp_path, worth=0)) as model:
        model.chat(other, **GREEDY)
    with loaded(store=Store(tmp_path, worth=1e9)) as model, model.session() as session:
        told(session, "ask", user(IMAGE, WORDS + " What happens?"))
        rows = session._turns[-1].rows
        before = session.runner.cache.dump(0, rows)
        if damage:
            for path in tmp_path.glob("*.ivs"):
                data = bytearray(path.read_bytes())
                data[3 * 4096 + 5] ^= 1  # of the first block of rows
                path.write_bytes(data)
        monkeypatch.setattr(runner.Runner, "_run", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            told(session, "stream", [*other, {"role": "assistant", "content": "Yes."}, *user("And now?")])
        assert session.runner.held.length == rows and (session.runner.cache.dump(0, rows) == before).all()


def test_a_prompt_that_keeps_nothing_of_a_cache_leaves_it_to_others():
    part, whole = CLIP | {"fps": 2, "end": 5}, CLIP | {"fps": 2}
    with loaded() as model:
        cached = [
            asked(model, user(video, text))[0].usage["cached_tokens"]
            for text in ("What?", "And?")
            for video in (part, whole)
        ]
    assert cached[:2] == [0, 0] and min(cached[2:]) > 60


# ------------------------------------------------------------------------------------------------ sessions


def test_another_conversation_in_a_session_is_a_prefill_of_its_own():
    part, whole = (
        user(CLIP | {"fps": 2, "end": 5}, "What happens?"),
        user(CLIP | {"fps": 2}, "Which colours are there?"),
    )
    with loaded() as model, model.session() as session:
        told(session, "stream", part)
        assert (told(session, "stream", whole)[1] == fresh(whole)).all()


# ------------------------------------------------------------------------------------------------ vision


@pytest.mark.parametrize("first", [0, 1, 127, 128, 130, 150, 160])
def test_features_do_not_depend_on_the_first_pair_that_is_wanted(first):
    """A batch that is cut at its front computes in the formats of the whole one."""
    with loaded() as model:
        prompt = model.prepare(user(SMALL, "What?"))
        rows = []
        for firsts in ([0], [first]):
            model.network.seen._features.clear()
            rows.append(
                [
                    model.network.ops.numpy(merged)
                    for merged, _ in encoded(model.network, prompt.media, runner.Meter(), firsts)
                ]
            )
    every, some = (np.concatenate(parts) for parts in rows)
    assert len(some) == (161 - first) * 4 and (every[-len(some) :] == some).all()


@pytest.mark.parametrize("seen", [True, False])
def test_a_prefill_that_was_stopped_within_a_video_goes_on_to_the_same_bits(monkeypatch, seen):
    question = user(SMALL, "What happens?")
    with loaded() as model:
        stop, record = Stop(), runner.Runner._record

        def recorded(self, *what):
            record(self, *what)
            stop.set("enough")

        with monkeypatch.context() as patch:
            patch.setattr(runner.Runner, "_record", recorded)
            assert not model.chat(question, stop=stop, **GREEDY).token_ids
        if not seen:
            model.network.seen._features.clear()
        reply, found = asked(model, question)
        cut = model.prepare(question).cut
    assert reply.usage["cached_tokens"] == 2048 < cut and (found == fresh(question)).all()


def test_a_video_with_another_medium_behind_goes_on_to_the_same_bits():
    both = user(SMALL, IMAGE, "What happens?")
    with loaded() as model:
        model.chat(user(SMALL, "What happens?"), **GREEDY)
        reply, found = asked(model, both)
        cut = model.prepare(user(SMALL, "What?")).cut
    assert reply.usage["cached_tokens"] == 2048 < cut and (found == fresh(both)).all()


def test_the_same_prompt_at_once_is_computed_once():
    """The second call copies what the first, which still answers, has of the prompt: all of it, the logits at its end as well."""
    with loaded() as model, ivlite.Engine(model) as engine:
        first = engine.stream(user(CLIP, "What happens?"), temperature=0)
        next(first)
        second = engine.stream(user(CLIP, "What happens?"), **GREEDY)
        for stream in (first, second):
            list(stream)
        usage = second.reply.usage
    assert usage["cached_tokens"] == usage["prompt_tokens"] and first.reply.text.startswith(second.reply.text)
