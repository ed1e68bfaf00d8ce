"""Sessions: the same answers as without them, less work, and no trace of what was undone, stopped or failed."""

import random
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.engine import runner as running
from ivlite.errors import ContextError, MediaError, UsageError
from ivlite.gguf import SHIPPED
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
    monkeypatch.setattr(
        "ivlite.engine.settings.Sampler", lambda *_: lambda logits: next(ids, model.config.tokens.im_end)
    )
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


@pytest.mark.parametrize("first", [True, False], ids=["first question", "follow-up"])
def test_another_answer_takes_the_place_of_the_last(model, session, first):
    twin = model.session()
    for each in (session, twin):
        if not first:
            ask(each, "What happens?", [CLIP])
        ask(each, "Which colours?", [CLIP] if first else (), temperature=3, seed=1)
    new = said(session.again(**GREEDY | {"temperature": 3, "seed": 2}))
    twin.undo()
    assert new == ask(twin, "Which colours?", [CLIP] if first else (), temperature=3, seed=2)
    assert session.messages == twin.messages and session.tokens == twin.tokens
    for each in (session, twin):
        ask(each, "And then?")
    assert np.array_equal(last_logits(session), last_logits(twin))
    twin.close()


@pytest.mark.parametrize("how", ["file", "stop", "setting"])
def test_an_answer_stays_until_there_is_another(model, tmp_path, monkeypatch, how):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(Path(CLIP).read_bytes())
    session, twin = model.session(), model.session()
    for each in (session, twin):
        ask(each, "What happens?", [str(clip)])
    before, settings, stop = session.messages, dict(GREEDY), Stop()
    if how == "file":
        clip.write_bytes(b"no video")
    elif how == "setting":
        settings["response_format"] = {"type": "regex", "pattern": "("}
    else:
        settings |= {"temperature": 3, "stop": stop, "enable_thinking": True}  # another end of the prompt
        monkeypatch.setattr(running.Runner, "_through", lambda *a: stop.set() or ivlite.stop.checkpoint())
    try:
        said(session.again(**settings))
    except (MediaError, UsageError):
        assert how != "stop"
    monkeypatch.undo()
    assert session.messages == before and session.tokens == twin.tokens
    for each in (session, twin):
        ask(each, "And then?")
    assert np.array_equal(last_logits(session), last_logits(twin))
    session.close()
    twin.close()
    with model.session() as empty, pytest.raises(UsageError, match="no question"):
        empty.again()


def test_a_stop_where_only_the_logits_are_gone(model, session, monkeypatch):
    """The last token of a prompt that is held runs again; the row after it comes back."""
    ask(session, "What happens?", [CLIP])
    before, tokens = session.messages, session.tokens
    session._runner.held._ends.clear()
    stop = Stop()
    monkeypatch.setattr(running.Runner, "_through", lambda *a: stop.set() or ivlite.stop.checkpoint())
    said(session.stream(before[:1], stop=stop, **GREEDY))
    monkeypatch.undo()
    assert session.messages == before and session.tokens == tokens
    assert session._runner.held.length == session._turns[-1].rows == session._runner.cache.length


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


@pytest.mark.parametrize("limit", [4, 60])
def test_a_told_answer_leaves_the_session_as_giving_it_did(model, limit):
    question = {"type": "video", "video": CLIP}, {"type": "text", "text": "What happens?"}
    asked, told = model.session(), model.session()
    stream = asked.ask([{"role": "user", "content": list(question)}], temperature=0, max_new_tokens=limit)
    first = said(stream)
    ids = stream.reply.token_ids
    again = told.ask([{"role": "user", "content": list(question)}], told=ids, temperature=1.5, max_new_tokens=limit)
    assert said(again) == first and again.reply.token_ids == ids
    for one, other in zip(*(session.runner.held.ends for session in (asked, told)), strict=True):
        assert one[0] == other[0] and np.array_equal(one[1], other[1])
    length = asked.runner.cache.length
    assert told.runner.cache.length == length
    assert np.array_equal(asked.runner.cache.dump(0, length), told.runner.cache.dump(0, length))
    assert said(asked.ask("And then?", **GREEDY)) == said(told.ask("And then?", **GREEDY))


def test_none_is_no_question(session):
    ask(session, "What happens?", [CLIP])
    before = session.messages
    for call in (session.ask, session.stream, session.plan):
        with pytest.raises(UsageError, match=r"messages|None"):
            call(None)
    with pytest.raises(UsageError, match="None"):
        session.ask(None, [CLIP])
    assert session.messages == before and ask(session, "And?")


def test_the_plan_of_a_question_counts_its_own_videos(session):
    picture = np.full((64, 64, 3), 90, np.uint8)
    first = session.ask("What?", [CLIP], [picture], **GREEDY)
    made = first.prompt.plan
    assert f": {made.videos[0].tokens:,} tokens" in made.line() and made.vision_tokens > made.videos[0].tokens
    said(first)
    later = session.plan("And here?", [{"type": "video", "video": [picture] * 6, "fps": 2}])
    assert later.line().startswith(f"6 frames, one every 0.5 s: {later.videos[0].tokens:,} tokens")
    assert later.vision_tokens > 4 * later.videos[0].tokens
