"""Model.chat and stream go on from the cache that begins like their prompt; two clips of one name stay two clips."""

import threading
import weakref
from pathlib import Path

import av
import numpy as np
import pytest

import ivlite
from ivlite.engine import runner
from ivlite.engine.held import Span
from ivlite.engine.meter import Meter
from ivlite.errors import Stopped, UsageError
from ivlite.evaluate import synthetic
from ivlite.gguf import SHIPPED
from ivlite.media.medium import Medium
from ivlite.media.video import VideoFile
from ivlite.session import pool as pooling
from ivlite.session.pool import Pool
from ivlite.session.store import Store
from ivlite.stop import Stop, using

needs_demo = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
CLIP = str(Path(__file__).parents[1] / "examples" / "clip.mp4")
GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture
def model():
    with ivlite.load("demo", context=2048) as model:
        yield model


def question(text, video=CLIP):
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}]


def clip(path, colour, shape, size=96, count=16):
    """A clip in the demo model's world: a shape that moves right. Raw frames, so every file has the same length."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("rawvideo", rate=4)
        stream.height, stream.width, stream.pix_fmt = size, size, "rgb24"
        for i in range(count):
            picture = np.full((size, size, 3), 128, np.uint8)
            at = 8 + 3 * i
            picture[30 : 30 + shape, at : at + 20] = colour
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return str(path)


# ------------------------------------------------------------------------------------------------ answers


@needs_demo
def test_the_same_prompt_has_the_same_bits_and_computes_nothing(model, monkeypatch):
    first = model.chat(question("What happens?"), **GREEDY)
    kept = model._pool._idle[-1].held.ends[-1][1].copy()
    monkeypatch.setattr(VideoFile, "pictures", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(model.network, "vision", lambda *_: pytest.fail("encoded"))
    second = model.chat(question("What happens?"), **GREEDY)
    assert (second.token_ids, second.text) == (first.token_ids, first.text)
    assert first.usage["cached_tokens"] == 0 and second.usage["cached_tokens"] == second.usage["prompt_tokens"]
    assert (model._pool._idle[-1].held.ends[-1][1] == kept).all()
    third = model.chat(question("What colours are there?"), **GREEDY)  # nor for another question about it
    assert third.usage["cached_tokens"] > 100 and third.timings["vision"] == 0


@needs_demo
def test_the_second_question_is_that_of_a_fresh_model(model):
    model.chat(question("What happens?"), **GREEDY)
    with ivlite.load("demo", context=2048) as fresh:
        for text in ("What colours are there?", "How many shapes are there?"):
            assert model.chat(question(text), **GREEDY).text == fresh.chat(question(text), **GREEDY).text
            fresh._pool.clear()


@needs_demo
@pytest.mark.parametrize("many", [1, 4])
def test_a_second_question_has_the_bits_of_a_first_one(model, tmp_path, many):
    """Whatever was asked of the same media before, however much of its words is shared; kept in memory or in a store."""
    media = [clip(tmp_path / f"{n}.avi", (20 * n, 60, 200), 10 + n) for n in range(many)]

    def asked(text):
        parts = [{"type": "video", "video": path} for path in media]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    def bits(model, text):
        reply = model.chat(asked(text), **GREEDY)
        return model._pool._idle[-1].held.logits(reply.usage["prompt_tokens"]).copy(), reply

    words = "Look at all of the film and say. " * 10  # more tokens than those whose bits depend on no others
    texts = [words + text for text in ("Is there a square here?", "Is there a square there?", "Is there?", "")]
    expected = []
    for text in texts:
        with ivlite.load("demo", context=2048) as fresh:
            expected.append(bits(fresh, text)[0])
    for text, one in zip(texts, expected, strict=True):
        logits, reply = bits(model, text)
        assert (logits == one).all()
    assert reply.usage["cached_tokens"] > reply.usage["vision_tokens"] and reply.timings["vision"] == 0


OTHERS = {
    "a shorter part": lambda ask: [ask("What happens?", end=3.0)],
    "a longer part": lambda ask: [ask("What happens?", end=6.5)],
    "another rate": lambda ask: [ask("What happens?", fps=1.0)],
    "two videos": lambda ask: [{"role": "user", "content": [*ask("")["content"], *ask("What happens?")["content"]]}],
    "a conversation": lambda ask: [ask("What?"), {"role": "assistant", "content": "A circle."}, ask("And here?")],
    "a part, then all": lambda ask: [
        ask("What?", end=2.0),
        {"role": "assistant", "content": "A circle."},
        ask("And here?"),
    ],
}


@needs_demo
@pytest.mark.parametrize("way", ["pool", "store", "session"])
@pytest.mark.parametrize("other", OTHERS)
def test_other_parts_of_a_video_change_no_bits(tmp_path, monkeypatch, other, way):
    """What was computed in one chunk with more of a video, less of it or another video has other bits: it is computed again."""
    monkeypatch.setattr("ivlite.session.store.LEAST", 16)

    def ask(text, **part):
        return {"role": "user", "content": [{"type": "video", "video": CLIP, **part}, {"type": "text", "text": text}]}

    def logits(model, messages):
        if way == "session":
            session = model.session()
            with session.stream(messages, **GREEDY) as stream:
                for _ in stream:
                    pass
            return session._runner.held.logits(stream.reply.usage["prompt_tokens"])
        tokens = model.chat(messages, **GREEDY).usage["prompt_tokens"]
        return model._pool._idle[-1].held.logits(tokens)

    wanted = [ask("What shape is the red thing?", end=5.0)]
    with ivlite.load("demo", context=2048) as fresh:
        expected = logits(fresh, wanted).copy()
    store = None if way == "pool" else Store(tmp_path, worth=0)
    for messages in (OTHERS[other](ask), wanted):
        with ivlite.load("demo", context=2048, store=store) as model:
            if way == "pool":
                model.chat(OTHERS[other](ask), **GREEDY)
            found = logits(model, messages)
    assert (found == expected).all()


@needs_demo
@pytest.mark.parametrize("words, chunk, kept", [(60, 2048, True), (60, 256, True), (20, 2048, False), (20, 64, True)])
def test_long_words_in_common_are_kept(model, monkeypatch, words, chunk, kept):
    """Where they are many tokens, or whole chunks of them: these have the bits of a prefill of their own."""
    monkeypatch.setattr(runner, "CHUNK", chunk)
    long = "Look at all of the film and say what it is. " * words
    first = model.chat(question(long + "A"), **GREEDY)
    second = model.chat(question(long + "What happens?"), **GREEDY)
    cut = model.prepare(question("A")).cut
    assert (second.usage["cached_tokens"] > cut) is kept and second.usage["cached_tokens"] >= cut
    assert first.usage["prompt_tokens"] - cut > (512 if words == 60 else 200)


@needs_demo
def test_a_conversation_that_goes_on_keeps_its_rows(model):
    first = model.chat(question("What happens?"), **GREEDY)
    said = [
        *question("What happens?"),
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Which colour?"},
    ]
    second = model.chat(said, **GREEDY)
    assert second.usage["cached_tokens"] >= first.usage["prompt_tokens"] + len(first.token_ids) - 1


@needs_demo
@pytest.mark.parametrize("way", ["chat", "session.stream", "session.ask", "frames"])
def test_another_clip_of_the_same_name_has_its_own_answer(model, tmp_path, way):
    path, session = tmp_path / "a.avi", model.session()

    def asked():
        if way == "frames":
            with av.open(str(path)) as file:
                frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
            return model.chat(question("What happens?", np.stack(frames)), **GREEDY)
        if way == "chat":
            return model.chat(question("What happens?", str(path)), **GREEDY)
        if way == "session.ask":
            stream = session.ask("What happens?", [path], **GREEDY)
        else:
            stream = session.stream(question("What happens?", str(path)), **GREEDY)
        with stream:
            for _ in stream:
                pass
        session.undo()
        return stream.reply

    logits = []
    for colour in ((220, 30, 30), (30, 60, 220)):
        clip(path, colour, 20)
        reply = asked()
        held = (model._pool._idle[-1] if "session" not in way else session._runner).held
        logits.append(held.ends[-1][1])
        assert reply.timings["vision"] > 0 and reply.usage["cached_tokens"] < 20
        model._pool.clear() if colour == (30, 60, 220) else None
    with ivlite.load("demo", context=2048) as fresh:
        assert reply.text == fresh.chat(question("What happens?", str(path)), **GREEDY).text
    assert np.abs(logits[0] - logits[1]).max() > 0


@needs_demo
def test_pixels_that_change_in_place_are_another_video(model):
    frames = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    first = model.chat(question("What?", frames), **GREEDY)
    frames[-1] = 0
    second = model.chat(question("What?", frames), **GREEDY)
    third = model.chat(question("What?", frames), **GREEDY)
    assert first.usage["cached_tokens"] == 0 and second.usage["cached_tokens"] < second.usage["prompt_tokens"]
    assert third.usage["cached_tokens"] == third.usage["prompt_tokens"]


@needs_demo
def test_a_video_that_changes_while_it_is_read_is_not_reused(model, tmp_path):
    path = clip(tmp_path / "a.avi", (200, 0, 0), 20)

    def progress(stage, done, total):
        if stage == "vision" and done == total:
            clip(tmp_path / "a.avi", (0, 200, 0), 20)

    model.chat(question("What?", path), progress=progress, **GREEDY)
    assert model.chat(question("What?", path), **GREEDY).usage["cached_tokens"] < 20


@needs_demo
def test_concurrent_calls_share_no_cache(model):
    """Four threads, four questions about one video: each gets what it gets alone."""
    questions = [f"{q}" for q in ("What happens?", "What colours are there?", "How many shapes are there?", "Which?")]
    alone = [model.chat(question(q), **GREEDY).text for q in questions]
    got = {}

    def work(q):
        got[q] = [model.chat(question(q), **GREEDY).text for _ in range(3)]

    threads = [threading.Thread(target=work, args=(q,)) for q in questions]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert got == {q: [text] * 3 for q, text in zip(questions, alone, strict=True)}
    assert len(model._pool._idle) <= pooling.COUNT


@needs_demo
def test_a_stopped_prefill_goes_on(model, monkeypatch):
    monkeypatch.setattr("ivlite.engine.runner.CHUNK", 32)
    stop = Stop()
    progress = lambda stage, done, _: stage == "prefill" and done >= 64 and stop.set()  # noqa: E731
    assert model.chat(question("What happens?"), stop=stop, progress=progress, **GREEDY).text == ""
    reply = model.chat(question("What happens?"), **GREEDY)
    assert reply.usage["cached_tokens"] == 64
    model._pool.clear()
    assert model.chat(question("What happens?"), **GREEDY).token_ids == reply.token_ids


@needs_demo
def test_a_closed_model_holds_nothing():
    model = ivlite.load("demo", context=512)
    model.chat(question("What happens?"), **GREEDY)
    runner = weakref.ref(model._pool._idle[0])
    model.close()
    assert runner() is None


@needs_demo
def test_a_cache_that_waits_holds_nothing_of_its_call():
    class Mine:
        pass

    with ivlite.load("demo", context=512) as model:
        mine = Mine()
        gone = weakref.ref(mine)
        model.chat(question("What happens?"), progress=lambda *_, mine=mine: None, **GREEDY)
        del mine
        assert gone() is None and model._pool.nbytes


# ------------------------------------------------------------------------------------------------ the pool


@pytest.fixture(scope="module")
def tiny():
    return synthetic.random_model("tiny", "q8_0", threads=1, context=4096)


@pytest.fixture
def pool(tiny):
    return Pool(tiny.network, "q8")


def used(pool, ids, capacity=None):
    """The Runner of a call with these ids, given back. cached: the tokens that it held already."""
    prompt = synthetic.text_prompt(ids)
    runner = pool.take(prompt, capacity or len(ids) + 1)
    runner.meter = Meter()
    runner.extend(prompt)
    runner.cached = runner.meter.cached
    pool.give(runner)
    return runner


BASE = list(range(100))


def test_the_longest_prefix_wins(pool):
    a = used(pool, BASE[:40] + [1] * 160)
    b = used(pool, BASE[:80] + [2] * 20)
    assert a is not b
    c = used(pool, BASE[:80] + [3] * 30)
    assert c is b and c.cached == 80 and len(pool._idle) == 2


def test_a_short_prefix_is_not_worth_it(pool):
    a = used(pool, BASE)
    assert used(pool, BASE[: pooling.LEAST - 1] + [7] * 9) is not a
    assert used(pool, BASE[: pooling.LEAST] + [8] * 9) is not None and len(pool._idle) <= 3


def test_a_large_cache_is_copied_and_not_destroyed(pool, monkeypatch):
    monkeypatch.setattr(pooling, "DEAR", 30)
    large = used(pool, BASE)
    other = used(pool, BASE[:20] + [5] * 10)
    assert other is not large and other.cached == 20 and large.held.token_ids == BASE
    assert (other.cache.dump(0, 20) == large.cache.dump(0, 20)).all()
    again = used(pool, BASE)
    assert again is large and again.cached == 100
    monkeypatch.setattr(pooling, "available_memory", lambda: 0)  # where memory is short there is one cache
    assert used(pool, BASE[:20] + [6] * 10) is other or len(pool._idle) == 1


def test_few_are_kept_the_last_used(pool, monkeypatch):
    runners = [used(pool, [n] * 50) for n in range(pooling.COUNT + 2)]
    assert pool._idle == runners[2:]
    used(pool, [2] * 50)
    assert pool._idle[-1] is runners[2]
    monkeypatch.setattr(pooling, "MOST", 120 * runners[0].cache.token_bytes)
    last = used(pool, [99] * 50)
    assert pool._idle == [runners[2], last] and pool.nbytes <= pooling.MOST
    assert used(pool, [98] * 500) in pool._idle and len(pool._idle) == 1  # larger than all may be together


def test_memory_that_is_short_is_given_back(pool, monkeypatch):
    for n in range(3):
        used(pool, [n] * 50)
    row = pool._idle[0].cache.token_bytes
    free = iter([0, 0, 1 << 40])
    monkeypatch.setattr(pooling, "available_memory", lambda: next(free, 1 << 40))
    kept = pool._idle[-1]
    used(pool, [77] * 50)
    assert pool._idle[0] is kept and len(pool._idle) == 2 and row > 0


def test_what_is_taken_belongs_to_one_call(pool):
    prompt = synthetic.text_prompt(BASE)
    used(pool, BASE)
    first, second = pool.take(prompt, 101), pool.take(prompt, 101)
    assert first is not second and not pool._idle


def test_a_pool_that_is_closed_keeps_nothing(pool):
    prompt = synthetic.text_prompt(BASE)
    used(pool, BASE)
    out = pool.take(prompt, 101)
    pool.close()
    pool.give(out)
    assert pool._idle == [] and pool.nbytes == 0


@pytest.mark.parametrize("call", ["foreseen", "take"])
def test_a_pool_that_is_closed_while_a_call_begins(tiny, tmp_path, call):
    """Another thread has closed the model after the call's last look at its Stop."""
    pool = Pool(tiny.network, "q8", Store(tmp_path))
    arguments = {"foreseen": (synthetic.text_prompt(BASE),), "take": (synthetic.text_prompt(BASE), 101)}[call]
    pool.close()
    with pytest.raises(UsageError, match="the model is closed"):
        getattr(pool, call)(*arguments)
    stop = Stop()
    stop.set("closed")
    with using(stop), pytest.raises(Stopped, match="closed"):
        getattr(pool, call)(*arguments)


class Slow(Medium):
    """Keys that cannot be had because the call was stopped."""

    def __init__(self):
        super().__init__("image", "m", (64, 64), [0], [0], None, patch_size=16, temporal=2)

    def pictures(self, first=0):
        yield np.zeros((64, 64, 3), np.uint8)

    def pair_keys(self):
        raise Stopped.because("enough")


def test_a_stop_while_digests_are_made_loses_no_cache(pool):
    used(pool, BASE)
    prompt = synthetic.text_prompt(BASE)
    prompt.media, prompt.spans = [Slow()], [(0, 0, 4)]
    pool._idle[0].held.spans = [Span(0, 4, key=bytes(16))]
    with pytest.raises(Stopped):
        pool.take(prompt, 101)
    assert len(pool._idle) == 1


# ------------------------------------------------------------------------------------------------ rounding


@pytest.fixture(scope="module", params=[("f32", "f32", 2e-3), ("f32", "f16", 2e-2), ("f32", "q8", 0.1), ("q8_0", "q8", 0.3)],
                ids=lambda p: f"{p[0]} weights, {p[1]} cache")  # fmt: skip
def rounded(request):
    """A tiny random model, a kind of cache, and how far logits may be apart: docs/numerics.md."""
    weights, kv, limit = request.param
    return synthetic.random_model("tiny", weights, threads=1, context=1024), kv, limit


@pytest.mark.parametrize("cuts", [[1], [150], [299], [40, 80, 200], list(range(10, 300, 29))])
def test_however_a_prompt_comes_into_the_cache(rounded, cuts):
    model, kv, limit = rounded
    ids = np.random.default_rng(2).integers(0, 440, 300).tolist()
    once = Pool(model.network, kv).take(synthetic.text_prompt(ids), 300).prefill(synthetic.text_prompt(ids))
    runner = Pool(model.network, kv).take(synthetic.text_prompt(ids), 300)
    for cut in [*cuts, 300]:
        logits = runner.extend(synthetic.text_prompt(ids[:cut]))
    twin = runner.copy(200, 300)
    copied = twin.extend(synthetic.text_prompt(ids))
    for found in (logits, copied):
        assert np.abs(found - once).max() / once.std() < limit
    assert runner.held.token_ids == twin.held.token_ids == ids and twin.meter.cached in (200, 300)


def test_positions_count(tiny, pool):
    """The same tokens elsewhere, as dedupe lays them out, are other rows."""
    runner = used(pool, BASE)
    prompt = synthetic.text_prompt(BASE)
    prompt.positions = prompt.positions.copy()
    prompt.positions[:, 60:] += 7
    assert runner.held.shared(prompt) == 60
    prompt.next_position += 7
    runner.extend(prompt)
    assert runner.held.next == prompt.next_position and runner.meter.cached == 60
    runner.step(1)
    assert runner.held.positions[:, -1].tolist() == [len(BASE) + 7] * 3
    runner.truncate(60)
    assert runner.held.next == 60  # and nothing of the 7 is left


@needs_demo
def test_a_short_answer_after_a_long_one(tmp_path):
    """A block of the store has more rows than the second call's cache was made for."""
    words = "Look at all of the film. " * 20
    with ivlite.load("demo", context=2048, store=Store(tmp_path, worth=0)) as model:
        model.chat(question(words + "What happens?"), **GREEDY)
        model._pool.clear()
        reply = model.chat(question("What happens?"), temperature=0, max_new_tokens=1)
    assert reply.finish_reason == "length" and reply.usage["cached_tokens"] > 100 and reply.timings["vision"] == 0
