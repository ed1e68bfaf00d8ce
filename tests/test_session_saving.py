"""Sessions and their files: what is asked after opening one gets the answer that the session would have given."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from session_fakes import clip, written

import ivlite
from ivlite.errors import ContextError, DiskError, MediaError, OvertakenError, SessionFileError, UsageError
from ivlite.ops import CACHE_KINDS

GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def model():
    with ivlite.load("demo") as model:
        yield model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.ivs"


def answer(stream):
    for _ in stream:
        pass
    assert stream.reply.finish_reason in ("stop", "length")
    return stream.reply


def facts(session):
    held = session.runner.held
    rows = session.runner.cache.dump(0, session.state().rows).tobytes()
    return session.state().messages, session.tokens, held.token_ids[: session.state().rows], rows


def test_a_session_goes_on_from_its_file(model, path, tmp_path):
    video = written(tmp_path / "clip.avi")
    session = model.session(path)
    assert not path.exists() and session.path == str(path)
    answer(session.ask("What moves?", videos=[{"type": "video", "video": str(video), "nframes": 8}], **GREEDY))
    session.save()
    video.unlink()  # it was seen: it is not needed again
    for turn in range(3):
        again = model.session(path)
        assert facts(again) == facts(session)
        expected = answer(session.ask(f"And in turn {turn}?", **GREEDY))
        reply = answer(again.ask(f"And in turn {turn}?", **GREEDY))
        assert (
            reply.token_ids == expected.token_ids
            and reply.usage["cached_tokens"] == expected.usage["cached_tokens"] > 0
        )
        size, inode = path.stat().st_size, path.stat().st_ino
        again.save()
        assert path.stat().st_ino == inode or path.stat().st_size < 2 * size
        assert facts(model.session(path)) == facts(session)


@pytest.mark.parametrize("kv", CACHE_KINDS)
def test_every_kind_of_cache(path, kv):
    """Opened by another model, as in another process."""
    with ivlite.load("demo", kv=kv) as model, model.session(path) as session:
        answer(session.ask("What moves?", videos=[clip()], **GREEDY))
        session.save()
        expected = facts(session)
        after = answer(session.ask("Why?", **GREEDY)).token_ids
    with ivlite.load("demo", kv=kv) as other, other.session(path) as session:
        assert facts(session) == expected
        assert answer(session.ask("Why?", **GREEDY)).token_ids == after


def test_rollback_undo_and_branch_are_saved(model, path, tmp_path):
    session = model.session(path)
    for question in ("One?", "Two?", "Three?"):
        answer(session.ask(question, **GREEDY))
        session.save()
    session.undo()
    session.save()
    assert facts(model.session(path)) == facts(session) and len(session.messages) == 4
    answer(session.ask("Another?", **GREEDY))
    session.save()
    assert facts(model.session(path)) == facts(session)
    twin = session.branch()
    with pytest.raises(UsageError, match="no file"):
        twin.save()
    twin.save(tmp_path / "twin.ivs")
    assert facts(model.session(tmp_path / "twin.ivs")) == facts(session)
    assert twin.path == str(tmp_path / "twin.ivs") and session.path == str(path)
    for _ in range(3):
        session.undo()
    session.save()
    assert model.session(path).messages == []


def test_undo_after_opening_is_undo_before_it(model, path):
    session = model.session(path)
    stopped = answer(session.ask("What can you do?", stop=["clips"], **GREEDY))
    assert session._turns[0].tail, stopped.text  # the stop string cuts a token
    answer(session.ask("And then?", **GREEDY))
    session.save()
    opened = model.session(path)
    for each in (session, opened):
        each.undo()
    after = [answer(each.ask("And then?", **GREEDY)).token_ids for each in (session, opened)]
    assert after[0] == after[1] and session._past.token_ids == opened._past.token_ids


def test_who_replaces_nothing_is_told(model, path):
    first, second = model.session(path), model.session(path)
    for session in (first, second):
        answer(session.ask("What?", **GREEDY))
    first.save(replace=False)
    saved = path.read_bytes()
    with pytest.raises(OvertakenError, match="another process"):
        second.save(replace=False)
    assert path.read_bytes() == saved
    first.save(replace=False)  # its own
    second.save()
    with pytest.raises(OvertakenError):
        first.save(replace=False)


def test_an_empty_session(model, path):
    model.session(path).save()
    session = model.session(path)
    assert session.messages == [] and session.tokens == 0
    answer(session.ask("What?", **GREEDY))
    session.save()
    assert len(model.session(path).messages) == 2


def test_images_tools_and_several_videos(model, path):
    session = model.session(path)
    picture = np.full((64, 96, 3), 90, np.uint8)
    answer(session.ask("What?", videos=[clip(), clip(40)], images=[picture], **GREEDY))
    answer(session.ask("And here?", images=[picture[:32]], **GREEDY))
    session.save()
    again = model.session(path)
    assert facts(again) == facts(session)
    assert answer(again.ask("So?", **GREEDY)).token_ids == answer(session.ask("So?", **GREEDY)).token_ids


def test_odd_values_of_messages(model, path):
    """Numbers of other libraries, tuples and paths are saved as JSON has them."""
    from decimal import Decimal
    from fractions import Fraction

    session = model.session(path)
    for number in (np.float32(2), np.int64(3), Fraction(5, 2), Decimal("1.5")):
        video = {"type": "video", "video": tuple(clip()), "fps": number}
        answer(session.ask([{"role": "user", "content": ({"type": "text", "text": "What?"}, video)}], **GREEDY))
    session.save()
    again = model.session(path)
    assert again.tokens == session.tokens
    fps = [
        part["fps"] for m in again.messages if m["role"] == "user" for part in m["content"] if part["type"] == "video"
    ]
    assert fps == [2, 3, 2.5, 1.5]


def test_what_a_session_refuses(model, path):
    session = model.session(path)
    answer(session.ask("What moves?", videos=[clip()], **GREEDY))
    session.save()
    with ivlite.load("demo", kv="f32") as other, pytest.raises(SessionFileError, match="kv=q8"):
        other.session(path)
    with ivlite.load("demo", vit="fp32") as other, pytest.raises(SessionFileError, match="other weights"):
        other.session(path)
    with ivlite.load("demo", context=20) as other, pytest.raises(ContextError, match="tokens and the context holds 20"):
        other.session(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 7])
    with pytest.raises(SessionFileError, match="damaged"):
        model.session(path)
    for at in range(12288, len(data), len(data) // 40):  # rows are checked as they are restored
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(SessionFileError, match="damaged"):
            model.session(path)
    path.write_text("notes")
    with pytest.raises(SessionFileError, match="not a session file"):
        model.session(path)
    with pytest.raises(DiskError, match="no folder"):
        session.save(path.parent / "none" / "a.ivs")
    for place, error in (
        (path.parent / "none" / "a.ivs", DiskError), (path.parent, SessionFileError), ("a\0b", SessionFileError),
        (path / "a.ivs", SessionFileError), ("x" * 300, SessionFileError), ("/dev/null", SessionFileError),
    ):  # fmt: skip
        with pytest.raises(error):
            model.session(place)
    link = path.parent / "link.ivs"
    link.symlink_to(path.parent / "later.ivs")
    model.session(link).save()
    assert link.is_symlink() and model.session(path.parent / "later.ivs").messages == []
    with pytest.raises(UsageError, match="no session file"):
        session.save(path)
    assert path.read_text() == "notes"
    os.unlink(path)
    session.save()
    assert facts(model.session(path)) == facts(session)


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [10**9] * 5}, {"rows": 3}, {"turns": [(1, 1, 1, 1)]}, {"turns": []}, {"media": []}, {"tail": "x" * 9},
        {"messages": [{"role": "user"}]}, {"messages": [{"role": "x", "content": "y"}]}, {"tools": ["{"]}, {"ends": []},
    ],
)  # fmt: skip
def test_contents_that_contradict_each_other(model, path, change):
    """A file with right checksums whose parts do not fit: refused, or used without harm."""
    from ivlite.session import saving

    session = model.session(path)
    answer(session.ask("What moves?", videos=[clip()], **GREEDY))
    state = session.state()
    for name, value in change.items():
        setattr(state, name, value)
    if "token_ids" in change:
        state.positions, state.rows = state.positions[:, :5], 5
    saving.save(session, model, state, None)
    try:
        again = model.session(path)
        answer(again.ask("Why?", **GREEDY))
    except (SessionFileError, UsageError) as error:
        assert len(str(error)) <= 500


# ------------------------------------------------------------------------------------------------ the working folder


SOURCES = {
    "path": lambda name: name,
    "dot": lambda name: f"./{name}",
    "Path": Path,
    "bytes": os.fsencode,
    "home": lambda name: f"~/{name}",
    "uri": lambda name: f"file://{os.path.abspath(name)}",
    "open": lambda name: open(name, "rb"),
}


@pytest.mark.parametrize("form", SOURCES)
@pytest.mark.parametrize("saved", [False, True])
def test_a_path_means_the_file_it_meant(model, path, tmp_path, monkeypatch, form, saved):
    """Also after a change of the working folder to one that has another file of that name."""
    written(tmp_path / "clip.avi")
    (tmp_path / "sub").mkdir()
    written(tmp_path / "sub" / "clip.avi", shade=200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    session = model.session(path)
    answer(
        session.ask("What moves?", videos=[{"type": "video", "video": SOURCES[form]("clip.avi"), "fps": 2}], **GREEDY)
    )
    assert session.messages[0]["content"][0] == {"type": "video", "video": str(tmp_path / "clip.avi"), "fps": 2}
    keys = session.state().keys
    if saved:
        session.save()
        session = model.session(path)
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("HOME", str(tmp_path / "sub"))
    answer(session.again(**GREEDY | {"seed": 3}))
    assert session.state().keys == keys


def test_frames_that_are_files_stay_those_files(model, tmp_path, monkeypatch):
    from PIL import Image

    for name, shade in (("a.png", 9), ("b.png", 90)):
        Image.new("L", (64, 64), shade).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    session = model.session()
    answer(
        session.ask(
            "What?", videos=[["a.png", "b.png"], [{"t": 0, "image": "a.png"}, {"t": 1, "image": "b.png"}]], **GREEDY
        )
    )
    monkeypatch.chdir("/")
    keys = session.state().keys
    answer(session.again(**GREEDY))
    assert session.state().keys == keys


def test_what_names_no_file_is_refused_by_the_name_that_it_has(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("none.mp4", "./none.mp4", "http://a.b/c.mp4", ""):
        with pytest.raises(MediaError, match="path" if not name else re.escape(name)) as refused:
            model.session().ask("What?", videos=[name])
        assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("name", ["x.ivs", "./x.ivs", Path("x.ivs"), "~/x.ivs"])
def test_a_session_keeps_its_file(model, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    session = model.session(name)
    session.save()
    monkeypatch.chdir("sub")
    monkeypatch.setenv("HOME", str(tmp_path / "sub"))
    answer(session.ask("What?", **GREEDY))
    session.save()
    session.save(tmp_path / "x.ivs")
    assert os.listdir("sub" if os.path.isdir("sub") else ".") == [] and session.path == str(tmp_path / "x.ivs")
    assert len(model.session(tmp_path / "x.ivs").messages) == 2


def test_what_was_in_memory_is_said_to_be_missing(model, path):
    picture = np.full((64, 96, 3), 90, np.uint8)
    for media, name in (({"videos": [clip()]}, "video <12 frames>"), ({"images": [picture]}, "image <96x64>")):
        session = model.session()
        answer(session.ask("What?", **media, **GREEDY))
        answer(session.again(**GREEDY))  # here it is still there
        session.save(path)
        opened = model.session(path)
        with pytest.raises(MediaError, match=f"{name} was handed over in memory and is not in the session's file"):
            opened.again(**GREEDY)
        answer(opened.ask("And?", **GREEDY))


# ------------------------------------------------------------------------------------------------ messages of any form

VIDEO = {"type": "video", "video": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "content",
    [
        ["text"], [None], [7], [{}], [{"type": "video"}], [{"type": ["video"]}], [{"type": "video", "video": 7}], [{"type": "sound", "sound": "a"}],
        [{"type": "text"}], [{"type": "text", "text": None}], [{"type": "text", "text": "no video"}], [VIDEO, VIDEO], "no video", {}, None,
    ],
)  # fmt: skip
def test_a_question_of_another_form_is_damage(model, path, content):
    damaged(model, path, 0, {"role": "user", "content": content})


@pytest.mark.parametrize(
    "more",
    [
        {"tool_calls": None}, {"tool_calls": {}}, {"tool_calls": "f"}, {"tool_calls": [None]}, {"tool_calls": ["f"]}, {"tool_calls": [{}]},
        {"tool_calls": [{"function": "f"}]}, {"tool_calls": [CALL | {"id": 7}]}, {"tool_calls": [CALL | {"more": 1}]},
        {"tool_calls": [{"function": {"name": "f"}}]}, {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "user"}, {"role": "system"}, {"role": ["assistant"]}, {"thinking": 7}, {"images": []}, {"content": [7]}, {"content": [VIDEO]},
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_damage(model, path, more):
    damaged(model, path, 1, {"role": "assistant", "content": "x"} | more)


def test_tools_of_another_form_are_damage(model, path):
    damaged(model, path, 1, {"role": "assistant", "content": "x"}, tools=["[" * 100_000])


def damaged(model, path, index, message, **more):
    """Asserts that a session whose message of that index is another one is refused when it is opened."""
    from ivlite.session import saving

    session = model.session(path)
    answer(session.ask("What moves?", videos=[clip()], **GREEDY))
    state = session.state()
    saving.save(session, model, state, None)
    model.session(path)
    state.messages[index] = message
    for name, value in more.items():
        setattr(state, name, value)
    saving.save(session, model, state, None)
    with pytest.raises(SessionFileError, match="is damaged: the session's messages"):
        model.session(path)


def test_calls_are_opened_again(model, path):
    """What is checked is what a session says."""
    from ivlite.session import saving

    session = model.session(path)
    answer(session.ask("What moves?", videos=[clip()], **GREEDY))
    state = session.state()
    state.messages[1] = {
        "role": "assistant",
        "content": "",
        "tool_calls": [CALL | {"id": "1"}, CALL],
        "thinking": "Hm.",
    }
    saving.save(session, model, state, None)
    opened = model.session(path)
    assert opened.messages[1] == state.messages[1]
    answer(opened.ask([{"role": "tool", "content": "3"}], **GREEDY))
