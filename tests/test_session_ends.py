"""Sessions of several threads, at their end, as plain data, and where memory is short."""

import gc
import random
import threading
import weakref

import numpy as np
import pytest
from test_session import CLIP, CLOSE, GREEDY, alone, ask, difference, last_logits, said

import ivlite
from ivlite.errors import ContextError, MediaError, OutOfMemoryError, Stopped, UsageError
from ivlite.gguf import SHIPPED
from ivlite.session import Session
from ivlite.session.state import SessionState
from ivlite.stop import Stop

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")


@pytest.fixture(scope="module")
def model():
    with ivlite.load("demo", context=2048) as model:
        yield model


@pytest.fixture
def session(model):
    with model.session() as session:
        yield session


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
