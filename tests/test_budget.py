"""How many frames videos get: what is stated is kept, what is left open shares a budget of vision tokens."""

import random
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from made_videos import bits, numbered
from test_prompt import setup, text, user

import ivlite
from ivlite import media, prompt
from ivlite.errors import ContextError, UsageError
from ivlite.media import timeline, video
from ivlite.media.probe import Probe
from ivlite.prompt.budget import BUDGET, UNLIMITED, Video, share

SHAPE = {"patch_size": 16, "temporal": 2}
FILE = {"fps": 1.0, "min_frames": 4, "max_frames": 768}
FRAME = np.zeros((64, 64, 3), np.uint8)  # 4 vision tokens


class Clip(Probe):
    """A Probe of `seconds` at a constant rate, without a file."""

    def __init__(self, seconds, rate=25.0, **more):
        times = timeline.Timeline(np.arange(round(seconds * rate)) / rate, None, np.zeros(1, np.int64), rate, 1 / rate)
        super().__init__(f"of {seconds} s", (480, 640), times, **more)


def wish(seconds, stated=(), size=(320, 384), **more):
    limits = FILE | {"nframes": None} | ({"max_frames": UNLIMITED} if "fps" in stated else {}) | more
    rate = more.pop("rate", 25.0)
    limits.pop("rate", None)
    return Video(Clip(seconds, rate), "message 0", limits, stated, size, SHAPE, 2)


def tokens(videos, frames):
    return sum(v.tokens(n) for v, n in zip(videos, frames, strict=True))


@pytest.fixture(scope="module")
def plain():
    tokenizer, config = setup("plain")
    return tokenizer, config


@pytest.fixture(scope="module")
def demo():
    return ivlite.load("demo")


# ------------------------------------------------------------------------------------------------ sharing


def test_an_hour_fits_the_budget_and_a_short_clip_is_left_alone():
    hour, clip = wish(3600), wish(10)
    assert (hour.pair, hour.possible, clip.possible) == (120, 3600, 10)
    assert share([hour], BUDGET) == [2 * (BUDGET // 120)] and share([clip], BUDGET) == [10]
    assert share([wish(24 * 3600, rate=2.0)], BUDGET) == [272]
    assert share([wish(1 / 25)], BUDGET) == [1]


def test_what_a_short_clip_does_not_need_is_left_to_the_others():
    clip, one, two = wish(2000, rate=0.01), wish(3600), wish(7200)
    frames = share([clip, one, two], BUDGET)
    assert frames[0] == 20 and abs(frames[2] - 2 * frames[1]) <= 4
    assert BUDGET - 120 < tokens([clip, one, two], frames) <= BUDGET
    assert share([two, clip, one], BUDGET) == [frames[2], frames[0], frames[1]]


def test_sharing_holds_for_anything():
    rng = random.Random(5)
    for _ in range(300):
        videos = [wish(rng.choice([0.04, 1, 7, 60, 600, 9000]), size=rng.choice([(320, 384), (64, 64), (640, 640)]))
                  for _ in range(rng.randint(1, 6))]  # fmt: skip
        budget = rng.choice([1, 100, 3000, BUDGET, 50000])
        frames = share(videos, budget)
        assert all(1 <= n <= v.most(False) for n, v in zip(frames, videos, strict=True))
        fewest = [min(v.most(False), 2) for v in videos]
        assert tokens(videos, frames) <= budget or frames == fewest
        thinned = [i for i, v in enumerate(videos) if 2 * fewest[i] < frames[i] < v.most(False)]
        if thinned:  # nothing that fits is left over, and rates differ by a pair at most
            assert budget - tokens(videos, frames) < max(v.pair for v in videos)
            low = max((videos[i].tokens(frames[i]) - videos[i].pair) / videos[i].probe.seconds for i in thinned)
            high = min((videos[i].tokens(frames[i]) + videos[i].pair) / videos[i].probe.seconds for i in thinned)
            assert low <= high


def test_stated_numbers_are_kept_and_the_rest_shares_what_is_left():
    stated, rest = wish(600, ("fps",), fps=2.0), wish(3600)
    assert share([stated, rest], BUDGET)[0] == 1200
    few = wish(3600, ("max_frames",), max_frames=30)
    frames = share([few, rest], BUDGET)
    assert frames[0] == 30 and BUDGET - 120 < tokens([few, rest], frames) <= BUDGET
    assert share([wish(7200, ("fps",))], BUDGET) == [7200]
    assert share([wish(3600, ("nframes",), nframes=999, max_frames=UNLIMITED)], BUDGET) == [999]
    assert share([wish(3600, ("max_frames",), max_frames=2000)], BUDGET) == [2000]
    assert share([wish(3600, ("min_frames",), min_frames=300)], 4000) == [300]


def test_a_stated_budget_replaces_the_files_most_frames():
    hour = wish(3600, size=(64, 64))
    assert share([hour], BUDGET) == [768] and share([hour], 50_000, lifted=True) == [3600]


# ------------------------------------------------------------------------------------------------ prompts


def listed(count, **more):
    return {"type": "video", "video": [FRAME] * count, **more}


def test_lists_of_frames_are_thinned_where_nothing_is_stated(plain):
    def built(*parts, **more):
        return prompt.build([user(*parts, text("?"))], *plain, **more)

    thin = built(listed(500, fps=2), budget=200)
    (choice,) = thin.choices
    assert (choice.frames, choice.possible, choice.tokens, choice.by) == (100, 500, 200, "budget")
    assert thin.frames[0][0] == 0 and thin.frames[0][-1] == 499 and len(thin.frames[0]) == 100
    assert max(np.diff(thin.frames[0])) - min(np.diff(thin.frames[0])) <= 1
    assert built(listed(50)).choices[0].by == "" and built(listed(500)).choices[0].by == "model"
    assert built(listed(500, max_frames=300)).choices[0].frames == 300
    assert built(listed(500, nframes=301), budget=5000).choices[0].frames == 301
    assert [c.frames for c in built(listed(4), listed(400), listed(400), budget=400).choices] == [2, 100, 98]


def test_a_budget_below_what_is_stated_is_refused_with_the_numbers(plain):
    with pytest.raises(ContextError, match="budget is 100 vision tokens.* 600 .300 frames in 150 pairs") as refusal:
        prompt.build([user(listed(500, max_frames=300))], *plain, budget=100)
    assert refusal.value.exit_code == 7
    with pytest.raises(ContextError, match="one frame pair of each video is 12"):
        prompt.build([user(*[listed(9)] * 3)], *plain, budget=11)


def test_prompt_and_answer_fit_the_room(plain):
    for room, count in ((400, 1), (400, 3), (1000, 2), (3000, 1), (120, 1)):
        built = prompt.build([user(*[listed(900)] * count, text("?"))], *plain, budget=9999, room=room, answer=50)
        assert len(built.token_ids) + 50 <= room < len(built.token_ids) + 50 + room // 8 + 40 * count
        assert {c.by for c in built.choices} <= {"context", "model"}
    tight = prompt.build([user(listed(900), text("word " * 100))], *plain, room=64, answer=500)
    assert tight.choices[0].frames == 2 and len(tight.token_ids) > 64  # for the model to refuse
    stated = prompt.build([user(listed(900, max_frames=200))], *plain, room=300)
    assert stated.choices[0].frames == 200


def test_a_small_context_is_never_exceeded_by_what_is_left_open(demo):
    small = ivlite.load("demo", context=300)
    for model in (demo, small):
        built = model.prepare([user(*[listed(400)] * 5, text("?"))], budget=100_000, max_new_tokens=100)
        assert model.context * 7 // 8 - 150 < len(built.token_ids) + 100 <= model.context
    reply = small.chat([user(listed(400), text("What happens?"))], budget=100_000, max_new_tokens=40, temperature=0)
    assert reply.finish_reason in ("stop", "length") and reply.text


def test_another_question_sees_the_same_frames(plain):
    """In a context that the video could fill, whatever their lengths: so that a cache can be used again."""
    for room in (400, 1000, 4000):
        few, many = (
            prompt.build([user(listed(900), text(words))], *plain, budget=9999, room=room, answer=50)
            for words in ("?", "Which?" + "x" * (room // 40))
        )
        assert few.frames == many.frames and len(few.token_ids) < len(many.token_ids) <= room - 50


@pytest.mark.parametrize("more, words", [
    ({"nframes": 20, "max_frames": 5}, "nframes (20) is above max_frames (5)"),
    ({"nframes": 2, "min_frames": 5}, "nframes (2) is below min_frames (5)"),
    ({"nframes": 5, "fps": 1}, "both fps and nframes"),
])  # fmt: skip
def test_numbers_of_frames_that_contradict_each_other(demo, tmp_path, more, words):
    video = {"type": "video", "video": str(numbered(tmp_path / "a.mkv", 40)), **more}
    with pytest.raises(UsageError, match=re.escape(words)):
        demo.prepare([{"role": "user", "content": [video]}])
    video |= {"nframes": 5, "min_frames": 5, "max_frames": 5, "fps": None}
    assert len(demo.prepare([{"role": "user", "content": [video]}]).frames[0]) == 5


def test_budgets_that_are_none(demo):
    for budget in (0, -1, 1.5, "32k", True):
        with pytest.raises(UsageError, match="budget"):
            demo.prepare([user(listed(4))], budget=budget)


# ------------------------------------------------------------------------------------------------ files


def packed(path, count, rate, codec="mpeg4", size=(48, 64), every=50):
    """A file of `count` frames whose pictures are few: the same packets again and again, without encoding them."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = 1
        first = []
        for i in range(4):
            first += stream.encode(av.VideoFrame.from_ndarray(bits(i, *size), format="rgb24"))
        first += stream.encode()
        data = [bytes(packet) for packet in first]
        for i in range(count):
            packet = av.Packet(data[i % len(data)])
            packet.stream, packet.pts, packet.dts, packet.duration = stream, i, i, 1
            packet.time_base, packet.is_keyframe = 1 / Fraction(rate), i % every < 4
            out.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
def test_a_probe_estimates_what_an_index_does_not_tell(tmp_path, name, monkeypatch):
    path = numbered(tmp_path / name, 150, codec="mpeg4")
    scanned = []
    monkeypatch.setattr(video, "scan", lambda *args, scan=video.scan: scanned.append(1) or scan(*args))
    probe = media.probe(path, fps=1)
    assert probe.estimated == (name != "a.mp4") and not scanned
    assert probe.shape == (48, 64) and probe.times.duration == pytest.approx(6, abs=0.1)
    limits = {"fps": 2, "min_frames": 1, "max_frames": 99}
    before = probe.chosen(2, **limits)
    probe.settle()
    assert len(scanned) == (name != "a.mp4") and not probe.estimated
    assert abs(len(probe.chosen(2, **limits)) - len(before)) <= 1
    opened = probe.open(probe.chosen(2, **limits), (32, 32), **SHAPE)
    assert opened.frames == media.open_video(path, **limits, min_pixels=1024, max_pixels=1024).frames


def test_what_the_file_shows_to_be_otherwise_is_told(tmp_path, plain):
    """A file that declares another length than it has: the prompt is of what is there, and says what was planned."""
    path = numbered(tmp_path / "a.mkv", 150, codec="mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    draft = prompt.draft([user({"type": "video", "video": str(path)})], *plain)
    planned = draft.lay()
    assert planned.choices[0].estimated and planned.choices[0].planned is None
    draft.settle()
    laid = draft.lay()
    assert (
        not laid.choices[0].estimated and laid.choices[0].planned == planned.choices[0].frames > laid.choices[0].frames
    )
    assert sum(len(list(m.pairs())) for m in laid.media) == laid.grid_thw[0, 0]


@pytest.mark.parametrize("count, rate", [(1, 25), (2, 25), (3, 1), (86_400 // 4, Fraction(1, 4))])
def test_the_demo_takes_anything_from_a_frame_to_a_day(tmp_path, demo, count, rate):
    path = packed(tmp_path / "a.mp4", count, rate)
    for budget in (None, 400):
        built = demo.prepare([user({"type": "video", "video": str(path)}, text("?"))], budget=budget)
        (choice,) = built.choices
        assert choice.frames == len(built.frames[0]) >= 1 and choice.tokens <= (budget or BUDGET)
        assert built.frames[0][0] == 0 and built.frames[0][-1] == (count - 1 if choice.frames > 1 else 0)
        assert choice.possible == max(min(4, count), int(count / Fraction(rate) * 2) if rate > 2 else count)


def test_the_room_of_a_conversation_holds_still(monkeypatch):
    """Memory comes and goes; frames that another question cannot find again cost minutes."""
    with ivlite.load("demo") as model:
        row = model.cache_nbytes // model.context

        def room(tokens):
            monkeypatch.setattr("ivlite.model.available_memory", lambda: (512 << 20) + tokens * row)
            return model.room()

        assert [room(n) for n in (1000, 1100, 900, 1000)] == [1000] * 4
        assert [room(n) for n in (1200, 1100, 500, 0, 10)] == [1200, 1200, 500, 0, 10]


@pytest.mark.parametrize("stated, frames, by", [
    ({"fps": 0.2}, 4, "least"),  # of 6 s it would be 1, and the file's min_frames is 4
    ({"fps": 0.2, "min_frames": 1}, 1, "stated"), ({"fps": 0.2, "max_frames": 1}, 1, "stated"),
    ({"fps": 1}, 6, "stated"), ({"nframes": 2}, 2, "stated"), ({}, 12, ""),
])  # fmt: skip
def test_more_frames_than_fps_asks_for_are_told(tmp_path, demo, stated, frames, by):
    path = numbered(tmp_path / "a.mp4", 150, codec="mpeg4")
    plan = demo.plan([user({"type": "video", "video": str(path), **stated})])
    assert (plan.videos[0].frames, plan.videos[0].by) == (frames, by)
    assert ("min_frames" in plan.line()) == (by == "least")
