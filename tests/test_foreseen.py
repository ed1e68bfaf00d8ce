"""What is held is planned as held: nothing is decoded, encoded or computed again, and the plan says so before it is asked."""

import numpy as np
import pytest
from session_fakes import clip, written
from test_budget import packed

import ivlite
from ivlite import files
from ivlite.media import medium as identity
from ivlite.plan.speeds import Speeds
from ivlite.session.file import SessionFile
from ivlite.session.store import Store

SPEEDS = Speeds(token=1e-2, seen=1e-6, expanded=1e-5, step=0.1, step_seen=1e-6, patch=1e-3, patch_seen=1e-7, byte=1e-9)
GREEDY = {"temperature": 0, "max_new_tokens": 4}


pytestmark = pytest.mark.usefixtures("instant")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "_digests", {})
    monkeypatch.setattr(files, "_table", [])


@pytest.fixture
def video(tmp_path):
    return str(written(tmp_path / "clip.avi"))


def loaded(**more):
    model = ivlite.load("demo", **more)
    model._planning()._speeds = SPEEDS
    return model


def asked(video, text="What moves?"):
    return [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}]


def agreed(reply):
    """The Plan of a reply, after a look that it foresaw what was kept."""
    made = reply.plan
    assert made.held == reply.usage["cached_tokens"]
    return made


def test_a_second_question_to_a_model(video):
    model = loaded()
    first = agreed(model.chat(asked(video), **GREEDY))
    assert first.held == 0 and first.seconds["vision"] > 0 and "already" not in first.line()
    second = agreed(model.chat(asked(video, "Which colour is it?"), **GREEDY))
    assert second.held > second.vision_tokens > 0
    assert second.seconds["decode"] == second.seconds["vision"] == 0
    left = second.prompt_tokens - second.held
    assert (
        second.seconds["prefill"] == pytest.approx(SPEEDS.prefill(left, second.held)) and second.wait < first.wait / 2
    )
    assert f"({second.held} of the {second.prompt_tokens} prompt tokens are computed already)" in second.line()
    again = agreed(model.chat(asked(video), **GREEDY))
    assert again.held >= second.held
    assert model.plan(asked(video, "Where?")).held == second.held


def test_the_same_question_again_waits_for_nothing(video):
    model = loaded()
    model.chat(asked(video), **GREEDY)
    again = agreed(model.chat(asked(video), **GREEDY))
    assert again.held == again.prompt_tokens and again.wait == 0


def test_another_clip_is_not_held(video, tmp_path):
    model = loaded()
    model.chat(asked(video), **GREEDY)
    (tmp_path / "other").mkdir()
    other = str(written(tmp_path / "other" / "clip.avi", shade=120))
    made = agreed(model.chat(asked(other), **GREEDY))
    assert made.held < 16 and made.seconds["vision"] > 0


@pytest.mark.parametrize("again, left", [(16, 0.5), (512, 1)])
def test_of_two_videos_the_second_is_still_to_do(video, tmp_path, monkeypatch, again, left):
    """And the first, where its rows are so few that they are computed again: its chunk ended there, and now goes on."""
    monkeypatch.setattr("ivlite.engine.runner.AGAIN", again)
    model, other = loaded(), str(written(tmp_path / "b.avi", shade=90))
    model.chat(asked(video), **GREEDY)
    one, text = asked(video)[0]["content"]
    both = [{"role": "user", "content": [one, {"type": "video", "video": other}, text]}]
    fresh, made = loaded().plan(both), agreed(model.chat(both, **GREEDY))
    assert (made.held > 16) is (again == 16) and made.seconds["vision"] == pytest.approx(fresh.seconds["vision"] * left)


def test_settings_that_take_more_are_not_held(tmp_path):
    """Other frames are other pixels: what a larger budget would take is not said to be quick."""
    model, long = loaded(), str(packed(tmp_path / "long.mp4", 60, 1))
    model.chat(asked(long), **GREEDY)
    question = asked(long, "Which colour is it?")
    made = model.plan(question)
    assert made.held > 0 and made.nearest and all(setting.wait is None for setting in made.nearest)
    limited = model.plan(question, max_wait=1000)
    (more,) = limited.nearest
    alone = loaded().plan(question, budget=more.settings["budget"])
    assert more.wait == pytest.approx(alone.wait, rel=0.2, abs=0.2)


def test_a_session(video):
    model = loaded()
    with model.session() as session:
        for number, (text, videos) in enumerate((("What moves?", [video]), ("Which colour?", []), ("And then?", []))):
            with session.ask(text, videos, **GREEDY) as stream:
                for _ in stream:
                    pass
            made = agreed(stream.reply)
            assert (made.held > 0) == (number > 0) and (made.seconds["vision"] > 0) == (number == 0)
        session.undo()
        with session.ask("And then?", **GREEDY) as stream:
            for _ in stream:
                pass
        agreed(stream.reply)


def test_the_store_is_looked_into_without_reading_rows(video, tmp_path, monkeypatch):
    store = Store(tmp_path / "sessions", worth=0.0, limit=10**9)
    loaded(store=store).chat(asked(video), **GREEDY)
    later = loaded(store=store)
    with monkeypatch.context() as patch:
        patch.setattr(SessionFile, "restore", lambda *_: pytest.fail("rows are read"))
        planned = later.plan(asked(video, "Which colour is it?"))
    reply = later.chat(asked(video, "Which colour is it?"), **GREEDY)
    made = agreed(reply)
    assert reply.usage["stored_tokens"] > made.vision_tokens and planned.held == made.held
    assert made.seconds["decode"] == made.seconds["vision"] == 0
    written(tmp_path / "clip.avi", shade=130)
    assert agreed(later.chat(asked(video), **GREEDY)).held < made.vision_tokens


def test_large_files_are_not_read_for_a_plan(video, tmp_path, monkeypatch):
    """Their digest, if it is not remembered, is found while they are decoded."""
    model = loaded()
    model.chat(asked(video), **GREEDY)
    monkeypatch.setattr(identity, "LARGE", 1)
    monkeypatch.setattr(files, "_digests", {})
    copy = tmp_path / "copy.avi"
    copy.write_bytes(open(video, "rb").read())
    with monkeypatch.context() as patch:
        patch.setattr(files, "content_digest", lambda *_: pytest.fail("read"))
        assert model.plan(asked(str(copy))).held < 16


def test_pixels_in_memory_are_not_looked_at_for_a_plan(monkeypatch):
    model = loaded()
    pictures = [{"type": "video", "video": clip(), "fps": 2}, {"type": "text", "text": "What moves?"}]
    model.chat([{"role": "user", "content": pictures}], **GREEDY)
    fresh = [{"type": "video", "video": clip(), "fps": 2}, {"type": "text", "text": "What moves?"}]
    monkeypatch.setattr(identity.Medium, "pairs", lambda *_: pytest.fail("decoded"))
    assert 0 <= model.plan([{"role": "user", "content": fresh}]).held < 40


def test_a_digest_that_another_process_kept_is_remembered(video, tmp_path, monkeypatch):
    """The plan of a new process finds a large file in the store without reading it."""
    files.keep_digests(tmp_path)
    mark = files.signature(video)
    assert not files.has_digest(mark)
    monkeypatch.setattr(files.time, "time_ns", lambda: mark[4] + 10 * files.RACY)
    files.content_digest(video)
    monkeypatch.setattr(files, "_digests", {})
    assert files.has_digest(mark) and not files.has_digest((*mark[:4], mark[4] + 1))
    files.keep_digests(None)


def test_what_is_left_of_a_pair_is_counted(video):
    prompt = loaded().prepare(asked(video))
    (_, first, count), *_ = prompt.spans
    assert prompt.firsts(0) == prompt.firsts(first + count - 1) == [0]
    assert prompt.firsts(first + count) == [1] and prompt.firsts(len(prompt.token_ids)) == [len(prompt.spans)]
    assert np.sum(prompt.grid_thw[:, 0]) == len(prompt.spans)
