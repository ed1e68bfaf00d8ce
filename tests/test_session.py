"""Sessions: the same answers as without them, less work, and no trace of what was undone, stopped or failed."""

import gc
import random
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.engine import runner as running
from ivlite.errors import ContextError, MediaError, OutOfMemoryError, Stopped, UsageError
from ivlite.gguf import SHIPPED
from ivlite.session import Session
from ivlite.session.state import SessionState
from ivlite.stop import Stop

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
CLIP = str(Path(__file__).parents[1] / "examples" / "clip.mp4")
GREEDY = {"temperature": 0, "max_new_tokens": 12}
CLOSE = 0.3  # standard deviations of the logits: docs/numerics.md, how a prompt is split
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def model():
    with ivlite.load("demo", context=2048) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session() as session:
        yield session


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(running, "CHUNK", 32)


def said(stream):
    with stream:
        return "".join(delta.text for delta in stream)


def ask(session, text, videos=(), **more):
    return said(session.ask(text, videos, **GREEDY | more))


def last_logits(session):
    """The logits at the end of the last question."""
    return session._runner.held.ends[-1][1]


def alone(model, session):
    """The same logits from a cache of their own, the prompt in one go."""
    prompt = session._past
    rows = session._runner.held.ends[-1][0]
    tokens = prompt.token_ids[:rows]
    fresh = model.runner(rows)
    media = model.prepare(session.messages[:-1]).media
    cut = ivlite.session.cut(prompt, ivlite.session.Turn((), rows, rows, len(media)))
    cut.media = media
    assert cut.token_ids == tokens
    return fresh.prefill(cut)


def difference(a, b):
    return np.abs(a - b).max() / b.std()


# ------------------------------------------------------------------------------------------------ the same answers


def test_a_follow_up_is_what_one_conversation_says(model, session):
    first = ask(session, "What happens?", [CLIP])
    stream = session.ask("What colours are there?", **GREEDY)
    second, usage = said(stream), stream.reply.usage
    video = {"type": "video", "video": CLIP}
    whole = [
        {"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What colours are there?"},
    ]
    with ivlite.load("demo", context=2048) as other:
        reply = other.chat(whole, **GREEDY)
    assert reply.text == second and reply.usage["cached_tokens"] == 0
    assert session.messages == [*whole, {"role": "assistant", "content": second}]
    assert usage["prompt_tokens"] == reply.usage["prompt_tokens"] and usage["frames"] == 16
    assert usage["cached_tokens"] > 0.8 * usage["prompt_tokens"]
    assert session.tokens == usage["prompt_tokens"] + usage["new_tokens"] and session.capacity == 2048
    assert 0 < session.nbytes <= session.tokens * session._runner.cache.token_bytes
    assert difference(last_logits(session), alone(model, session)) < CLOSE


@pytest.mark.parametrize("chunk", [7, 32, 4096])
def test_however_it_is_cut(model, session, monkeypatch, chunk):
    monkeypatch.setattr(running, "CHUNK", chunk)
    ask(session, "What happens?", [CLIP])
    ask(session, "And then?", [CLIP])
    twin = session.branch()
    for one in (session, twin):
        ask(one, "Who is it?")
        assert difference(last_logits(one), alone(model, one)) < CLOSE
    assert (last_logits(session) == last_logits(twin)).all()


def test_a_whole_conversation_computes_what_differs(model, session):
    messages = [{"role": "user", "content": [{"type": "video", "video": CLIP}, "What happens?"]}]
    first = session.stream(messages, **GREEDY)
    messages += [{"role": "assistant", "content": said(first)}, {"role": "user", "content": "Who?"}]
    second = session.stream(messages, **GREEDY)
    text = said(second)
    assert second.reply.usage["cached_tokens"] >= first.reply.usage["prompt_tokens"]
    assert second.reply.timings["vision"] == 0 and session.messages[-1]["content"] == text
    again = session.stream(messages, **GREEDY)  # the answer is not part of the messages
    assert said(again) == text and again.reply.usage["cached_tokens"] == again.reply.usage["prompt_tokens"]
    messages[0]["content"][1] = "What is it?"
    assert 20 < (other := session.stream(messages, **GREEDY)).reply.usage["prompt_tokens"]
    said(other)
    assert (
        other.reply.usage["cached_tokens"] < first.reply.usage["prompt_tokens"] and other.reply.timings["vision"] == 0
    )
    assert len(session.messages) == 4


def test_media_at_any_turn(session):
    picture = np.full((64, 64, 3), 200, np.uint8)
    ask(session, "Hello.")
    assert said(session.ask("And this?", images=[picture], **GREEDY)) is not None
    assert said(session.ask("And these?", videos=CLIP, images=[picture, picture], **GREEDY)) is not None
    part = {"type": "video", "video": CLIP, "nframes": 4}
    stream = session.ask("And this part?", [part], **GREEDY)
    said(stream)
    assert stream.reply.usage["frames"] == 1 + 16 + 2 + 4
    assert [m.kind for m in stream.prompt.media] == ["image", "video", "image", "image", "video"]


def test_a_list_of_messages_goes_on(session):
    ask(session, "Look.", tools=[TOOL])
    before = session.tokens
    said(session.ask([{"role": "tool", "content": "It is red."}, {"role": "user", "content": "So?"}], **GREEDY))
    text = session._model.tokenizer.decode(session._past.token_ids[before:], skip_special=False)
    assert text.startswith("<|im_end|>\n<|im_start|>user\n<tool_response>\nIt is red.\n</tool_response><|im_end|>\n")
    assert [m["role"] for m in session.messages] == ["user", "assistant", "tool", "user", "assistant"]
    ask(session, "More.", tools=[TOOL])  # the same tools
    with pytest.raises(UsageError, match="tools"):
        session.ask("More.", tools=[TOOL, TOOL])
    for role in ("system", "assistant"):
        with pytest.raises(UsageError, match=role):
            session.ask([{"role": role, "content": "x"}])
    with pytest.raises(UsageError, match="videos and images"):
        session.ask([{"role": "user", "content": "x"}], videos=[CLIP])


def test_continue_final_message(session):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer"}]
    text = said(session.stream(messages, continue_final_message=True, **GREEDY))
    assert session.messages[-1] == {"role": "assistant", "content": "The answer" + text} and len(session.messages) == 2
    ask(session, "So?")
    assert len(session.messages) == 4


@pytest.mark.parametrize("stop", ["y", "w c", "circle", ".", "A"])
def test_a_stop_string_ends_the_turn_where_it_ends_the_text(session, stop):
    text = ask(session, "What happens?", [CLIP], stop=stop, max_new_tokens=30)
    tokens = session.tokens
    ask(session, "And?")
    decoded = session._model.tokenizer.decode(session._past.token_ids, skip_special=False)
    assert f"<|im_start|>assistant\n{text}<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>" in decoded
    assert session.tokens > tokens


def test_thinking_stays_in_the_cache(model, session, monkeypatch):
    """Whatever the model thinks is before the next question, and the published form leaves it out."""
    ids = iter(model.tokenizer.encode("<think>\nred\n</think>\n\nblue", ["<think>", "</think>"]))
    monkeypatch.setattr("ivlite.model.Sampler", lambda *_: lambda logits: next(ids, model.config.tokens.im_end))
    first = session.ask("Hi", **GREEDY | {"max_new_tokens": 200})
    assert said(first) == "red" + "blue" and first.reply.thinking == "red"
    assert session.messages[-1] == {"role": "assistant", "content": "blue", "thinking": "red"}
    second = session.ask("So?", **GREEDY)
    said(second)
    decoded = model.tokenizer.decode(second.prompt.token_ids, skip_special=False)
    assert "red\n</think>\n\nblue<|im_end|>" in decoded
    assert second.reply.usage["cached_tokens"] >= session._turns[0].rows
    third = session.stream([*session.messages[:3]], **GREEDY)
    said(third)
    assert "red" not in model.tokenizer.decode(third.prompt.token_ids, skip_special=False)


# ------------------------------------------------------------------------------------------------ marks


def test_rollback_leaves_no_trace(model, session, small_chunks):
    ask(session, "What happens?", [CLIP])
    twin = session.branch()  # which never hears of what follows
    for anything in (
        lambda: ask(session, "What colours are there? Which of them moves, and where does it end up?"),
        lambda: ask(session, "What colours are there?", [CLIP, CLIP]),
        lambda: (ask(session, "Why?"), ask(session, "What colours?", [CLIP])),
        lambda: next(session.ask("What colours are there? " * 20, [CLIP], **GREEDY)),
    ):
        mark = session.mark()
        anything()
        session.rollback(mark)
        assert session.messages == twin.messages and session.tokens == twin.tokens
    for question, videos in (("What colours are there?", ()), ("What colours are there? " * 9, [CLIP])):
        mine, its = session.mark(), twin.mark()
        assert ask(session, question, videos) == ask(twin, question, videos)
        assert (last_logits(session) == last_logits(twin)).all()
        assert session.state().token_ids == twin.state().token_ids
        session.rollback(mine)
        twin.rollback(its)


def test_regeneration_computes_nothing_again(session):
    text = ask(session, "What happens?", [CLIP])
    before = last_logits(session)
    session.undo()
    assert session.messages == [] and session.tokens == 0
    stream = session.ask("What happens?", [CLIP], **GREEDY)
    assert said(stream) == text and (last_logits(session) == before).all()
    assert stream.reply.usage["cached_tokens"] == stream.reply.usage["prompt_tokens"]
    with pytest.raises(UsageError, match="no turn"):
        session.undo(), session.undo()


def test_marks_are_of_their_conversation(model, session):
    ask(session, "One.")
    first = session.mark()
    ask(session, "Two.")
    second = session.mark()
    twin = session.branch()
    session.rollback(first)
    ask(session, "Three.")
    for mark in (second, None, 5):
        with pytest.raises(UsageError, match="mark"):
            session.rollback(mark)
    twin.rollback(first)  # it has that turn, too
    assert twin.tokens == first.turns[-1].tokens and len(session.messages) == 4


def test_marks_survive_a_conversation_that_begins_alike(session):
    first = said(session.stream([{"role": "user", "content": "One."}], **GREEDY))
    mark = session.mark()
    more = [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two."},
    ]
    said(session.stream(more, **GREEDY))
    assert len(session.messages) == 4
    session.rollback(mark)
    assert session.messages == [*more[:1], {"role": "assistant", "content": first}]
    said(session.stream([{"role": "user", "content": "Another."}], **GREEDY))
    with pytest.raises(UsageError, match="mark"):
        session.rollback(mark)


def test_branches_are_apart(session):
    ask(session, "One.")
    twin = session.branch()
    a, b = ask(session, "Name a colour."), ask(twin, "Name a shape.")
    assert session.messages[:2] == twin.messages[:2] and session.messages[-1]["content"] == a
    assert twin.messages[-1]["content"] == b and session.messages != twin.messages
    twin.close()
    ask(session, "Go on.")


# ------------------------------------------------------------------------------------------------ stopped and failed


def test_a_stopped_answer_is_kept_as_far_as_it_came(session):
    stop = Stop()
    stream = session.ask("What happens?", [CLIP], stop=stop, **GREEDY)
    text = next(stream).text + next(stream).text
    stop.set()
    text += "".join(delta.text for delta in stream)
    assert session.messages[-1]["content"] == text and stream.reply.finish_reason == "interrupted"
    ask(session, "Go on.")
    session.undo(), session.undo()
    assert session.messages == []
    stream = session.ask("What happens?", [CLIP], **GREEDY)
    next(stream)
    stream.close()  # a stream closed half way, and one that is dropped
    assert len(session.messages) == 2
    next(session.ask("And?", **GREEDY))
    assert len(session.messages) == 4


def test_before_the_first_token_there_is_no_turn(session, small_chunks):
    ask(session, "One.")
    before = session.state()
    session.ask("Two.", **GREEDY).close()
    session.ask("Two.", **GREEDY)
    assert session.messages == before.messages
    stop = Stop()
    progress = lambda stage, done, total: stage == "prefill" and done > 64 and stop.set()  # noqa: E731
    assert said(session.ask("What happens?", [CLIP], stop=stop, progress=progress, **GREEDY)) == ""
    assert session.messages == before.messages and session.tokens == len(before.token_ids)
    again = session.ask("What happens?", [CLIP], **GREEDY)  # goes on where it was stopped
    said(again)
    assert again.reply.usage["cached_tokens"] > len(before.token_ids) + 32


@pytest.mark.parametrize("follows", [True, False])
def test_what_fails_leaves_no_trace(model, session, tmp_path, follows, monkeypatch):
    ask(session, "What happens?", [CLIP])
    twin, before = session.branch(), session.state()
    missing = [{"type": "text", "text": "See."}, {"type": "video", "video": str(tmp_path / "none.mp4")}]
    damaged = tmp_path / "a.mp4"
    damaged.write_bytes(b"no video")

    def call(*content, **more):
        messages = [{"role": "user", "content": [*content, "What?"]}]
        return said(session.ask(messages, **GREEDY | more) if follows else session.stream(messages, **GREEDY | more))

    with pytest.raises(MediaError):
        call(*missing)
    with pytest.raises(MediaError):
        call({"type": "video", "video": str(damaged)})
    with pytest.raises(ContextError):
        call("word " * 3000)
    with pytest.raises(UsageError):
        call(temperature=-1)
    with pytest.raises(TypeError, match="max_tokens"):
        call(max_tokens=3)
    with pytest.raises(ZeroDivisionError):
        call(progress=lambda *_: 1 / 0)
    pictures = ivlite.media.medium.Medium.pairs

    def failing(self, first=0):
        yield from list(pictures(self, first))[:1]
        raise MediaError("the disk is gone")

    with monkeypatch.context() as patch, pytest.raises(MediaError, match="disk"):
        patch.setattr(ivlite.media.medium.Medium, "pairs", failing)
        call({"type": "video", "video": CLIP, "nframes": 6})
    after = session.state()
    assert (after.messages, after.token_ids, after.rows) == (before.messages, before.token_ids, before.rows)
    assert ask(session, "And now?") == ask(twin, "And now?")
    assert (last_logits(session) == last_logits(twin)).all()


def test_a_stop_at_any_moment(model):
    """Whenever it comes: the session is what it was, or has one more turn, and goes on as a twin of it does."""
    pick = random.Random(3)
    stages = ("decode", "vision", "prefill", "generate")
    with model.session() as session:
        ask(session, "Hello.")
        for _ in range(12):
            before, stop, count = session.messages, Stop(), [pick.randrange(1, 12)]
            stage = pick.choice(stages)

            def progress(name, *_, stop=stop, count=count, stage=stage):
                count[0] -= name == stage
                if count[0] == 0:
                    stop.set()

            settings = {**GREEDY, "stop": stop, "progress": progress}
            if pick.random() < 0.5:
                said(session.ask("What happens?", [CLIP], **settings))
            else:
                said(
                    session.stream([{"role": "user", "content": [{"type": "video", "video": CLIP}, "So?"]}], **settings)
                )
            if session.messages != before:
                assert session.messages[-1]["role"] == "assistant"
            held = session._runner.held
            assert held.length == session._runner.cache.length
            assert held.token_ids[: session._turns[-1].rows] == session._past.token_ids[: session._turns[-1].rows]
            twin = session.branch()
            assert ask(session, "And?") == ask(twin, "And?") and session.state().token_ids == twin.state().token_ids
            session.undo()


# ------------------------------------------------------------------------------------------------ threads, ends


def test_one_call_at_a_time(model, session):
    stream = session.ask("What happens?", [CLIP], **GREEDY)
    next(stream)
    calls = (
        lambda: session.ask("And?"), lambda: session.stream([{"role": "user", "content": "x"}]), session.state,
        lambda: session.rollback(session.mark()), session.branch,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(UsageError, match="answering"):
            call()
    said(stream)
    ask(session, "And?")
    with pytest.raises(MediaError) as kept:  # an error that somebody keeps does not hold the session
        session.ask("x", ["none.mp4"])
    ask(session, "And?")
    assert kept.value.__traceback__ is not None


def test_threads_of_one_session(model, session):
    """Each of them is answered, or told that another is."""
    told, done = [], []

    def work():
        for _ in range(5):
            try:
                done.append(ask(session, "Name a colour.", max_new_tokens=3))
            except UsageError as error:
                told.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert len(done) + len(told) == 20 and len(session.messages) == 2 * len(done) > 0
    assert all("answering" in text for text in told)


@pytest.mark.parametrize("whose", ["session", "model"])
def test_closing_while_another_thread_asks(whose):
    with ivlite.load("demo", context=2048) as model:
        session, begun, got = model.session(), threading.Event(), []

        def work():
            stream = session.ask("What happens?", [CLIP], temperature=0, max_new_tokens=None,
                                 progress=lambda stage, *_: stage == "generate" and begun.set())  # fmt: skip
            got.append(said(stream))
            got.append(stream.reply.finish_reason)

        thread = threading.Thread(target=work)
        thread.start()
        assert begun.wait(30)
        (session if whose == "session" else model).close()
        thread.join(30)
        assert got[1:] in (["closed"], ["stop"]) and session._runner is None
        with pytest.raises(UsageError, match="closed"):
            session.ask("And?")


def test_nothing_holds_a_session_that_is_dropped():
    gc.collect()
    gc.disable()
    try:
        with ivlite.load("demo", context=2048) as model:
            session = model.session()
            ask(session, "What happens?", [CLIP])
            twin = session.branch()
            half = session.ask("And?", progress=lambda *_, held=session: None, **GREEDY)
            next(half)
            said(twin.ask("And?", progress=lambda *_, held=twin: None, **GREEDY))
            gone = [weakref.ref(x) for x in (session, twin, session._runner)]
            del session, twin, half
            assert [ref() for ref in gone] == [None] * 3
    finally:
        gc.enable()


def test_a_full_context_says_so(model):
    with ivlite.load("demo", context=200) as model, model.session() as session:
        ask(session, "What happens?", [CLIP])
        before = session.messages
        with pytest.raises(ContextError, match="200"):
            ask(session, "word " * 100)
        assert session.messages == before
        stream = session.ask("Go on.", temperature=0, max_new_tokens=None)
        said(stream)
        assert session.tokens <= 200


def test_a_cache_grows_as_it_is_needed(session, monkeypatch):
    monkeypatch.setattr(ivlite.session, "STEP", 16)
    ask(session, "One.")
    small = session._runner.cache.capacity
    ask(session, "word " * 200)
    assert small < session._runner.cache.capacity <= session.capacity
    assert ask(session, "And?") is not None


# ------------------------------------------------------------------------------------------------ plain data


def moved(model, session):
    """The session of the state and the rows of another."""
    state = session.state()
    rows = session._runner.cache.dump(0, state.rows) if state.rows else None
    return Session.from_state(model, state, lambda cache: cache.restore(0, rows))


def test_a_state_is_a_session(model, session):
    picture = np.full((64, 64, 3), 90, np.uint8)
    ask(session, "What happens?", [CLIP])
    said(session.ask("And this?", images=[picture], stop="e", **GREEDY))
    twin = moved(model, session)
    state = twin.state()
    assert state.messages[2]["content"][0] == {"type": "image", "image": "<64x64>"}
    assert [len(t) for t in state.turns] == [4, 4] and len(state.keys) == len(state.spans)
    assert ask(session, "And now?") == ask(twin, "And now?")
    assert (last_logits(session) == last_logits(twin)).all()
    again = session.stream(session.messages[:1], **GREEDY)
    said(again)
    other = twin.stream(twin.messages[:1], **GREEDY)
    said(other)
    assert (
        again.reply.usage == other.reply.usage
        and other.reply.usage["cached_tokens"] == other.reply.usage["prompt_tokens"]
    )
    twin.undo()
    assert twin.messages == []
    assert moved(model, model.session()).tokens == 0 and model.session().state().turns == SessionState().turns == []


WRONG = {
    "tokens": [("token_ids", lambda s: [*s.token_ids[:-1], 1 << 30]), ("rows", lambda s: len(s.token_ids) + 1)],
    "positions": [("positions", lambda s: s.positions[:, 1:]), ("positions", lambda s: s.positions - 5)],
    "frame pairs": [("spans", lambda s: s.spans[::-1]), ("keys", lambda s: s.keys[1:]), ("keys", lambda s: ["k"] * len(s.keys))],
    "media": [("media", lambda s: [{**s.media[0], "grid": [1, 4, 4]}]), ("media", lambda s: [{}])],
    "turns": [("turns", lambda s: []), ("turns", lambda s: [(1, 2, 3)]), ("turns", lambda s: [(2, 5, 9, 1)])],
    "logits": [("ends", lambda s: [(1, np.zeros(3, np.float32))]), ("ends", lambda s: [(0, s.ends[0][1])])],
    "messages": [("messages", lambda s: [{"role": "user"}, *s.messages[1:]]), ("tail", lambda s: 5)],
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_states_that_contradict_themselves(model, session, what):
    ask(session, "What happens?", [CLIP])
    for name, wrong in WRONG[what]:
        state = session.state()
        setattr(state, name, wrong(state))
        with pytest.raises(UsageError, match=what):
            Session.from_state(model, state, lambda cache: None)


def test_a_stopped_digest_of_a_file_is_no_end(model, session):
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        session.ask("What happens?", [CLIP], stop=stop)
    ask(session, "What happens?", [CLIP])


# ------------------------------------------------------------------------------------------------ memory


def test_where_memory_is_short(model, session, monkeypatch):
    """No branch, nothing kept for an answer that fails: the turns whose rows are gone go with them."""
    said(model.stream([{"role": "user", "content": "What happens?"}], **GREEDY))
    ask(session, "Hello.")
    ask(session, "What happens?", [CLIP])
    assert model._pool.nbytes > 0
    monkeypatch.setattr("ivlite.session.pool.available_memory", lambda: 0)
    with pytest.raises(OutOfMemoryError, match="not free"):
        session.branch()
    assert model._pool.nbytes == 0
    hello = session.messages[:2]
    with pytest.raises(ZeroDivisionError):
        said(session.stream([*hello, {"role": "user", "content": "Another."}], progress=lambda *_: 1 / 0, **GREEDY))
    assert session.messages == hello or session.messages == []
    assert session._runner.held.length >= (session._turns[-1].rows if session._turns else 0)
    ask(session, "Go on.")
    assert difference(last_logits(session), alone(model, session)) < CLOSE


def test_large_files_are_not_read_for_a_follow_up(session, monkeypatch):
    """The frames of the question before are those of the session, whatever the digest of their file will be."""
    monkeypatch.setattr(ivlite.media.medium, "LARGE", 1)
    monkeypatch.setattr(ivlite.media.medium.Content, "begin", lambda self: None)
    monkeypatch.setattr(ivlite.files, "_digests", {})
    monkeypatch.setattr(ivlite.files, "_table", [])
    with monkeypatch.context() as patch:
        patch.setattr(ivlite.files, "content_digest", lambda *_: pytest.fail("read"))
        ask(session, "What happens?", [CLIP])
        stream = session.ask("What colours are there?", **GREEDY)
        said(stream)
        assert stream.reply.usage["cached_tokens"] > 100
    twin = session.branch()
    again = twin.stream(session.messages[:1], **GREEDY)  # here they are wanted
    said(again)
    assert again.reply.usage["cached_tokens"] > 100 and len(session.state().keys) == 8


def bytewise(tokenizer, text):
    """Tokens that end within characters, as a model may choose them."""
    single = {tokenizer.bytes_of(i): i for i in range(tokenizer.vocab_size) if len(tokenizer.bytes_of(i)) == 1}
    return [single[bytes([b])] for b in text.encode()]


def test_a_cut_answer_is_its_tokens_and_a_rest(model):
    """Wherever a stop string begins, within tokens and characters of several bytes as well."""
    pick, tokenizer = random.Random(4), model.tokenizer
    for _ in range(200):
        text = "".join(pick.choice("ab é漢🙂\n.word ") for _ in range(pick.randrange(1, 25)))
        ids = tokenizer.encode(text) if pick.random() < 0.5 else bytewise(tokenizer, text)
        assert ivlite.session.said.kept(tokenizer, ids, None) == (ids, "")
        for end in range(len(text) + 1):
            kept, tail = ivlite.session.said.kept(tokenizer, ids, end)
            assert ids[: len(kept)] == kept
            joined = b"".join(map(tokenizer.bytes_of, kept)) + tail.encode()
            assert joined == text[:end].encode()
    broken = [*bytewise(tokenizer, "a漢b")[:3], *tokenizer.encode(" stop it")]  # bytes that are no character
    text = tokenizer.decode(broken)
    kept, tail = ivlite.session.said.kept(tokenizer, broken, text.index("stop"))
    assert tokenizer.decode(kept) + tail == text[: text.index("stop")]
