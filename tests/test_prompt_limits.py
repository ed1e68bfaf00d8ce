"""Shares of budgets, rooms and what is left out of prompts: number by number."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from test_budget import FRAME, Clip, listed, wish
from test_prompt import setup, text, user

from ivlite import prompt
from ivlite.errors import ContextError
from ivlite.prompt import budget, layout
from ivlite.prompt.budget import BUDGET, Choice, check_budget, differing, parted, reason
from ivlite.prompt.dedupe import remarks, without
from ivlite.prompt.layout import Prompt


@pytest.fixture(scope="module")
def plain():
    return setup("plain")


# ------------------------------------------------------------------------------------------------ shares


@pytest.mark.parametrize("total, lengths, bounds, parts", [
    (100, [1, 1], [(0, 100), (0, 100)], [50, 50]), (100, [1, 3], [(0, 100), (0, 100)], [25, 75]), (100, [1, 3], [(0, 100), (0, 60)], [40, 60]), (100, [1, 3], [(30, 100), (0, 100)], [30, 70]),
    (100, [1, 1], [(0, 20), (0, 30)], [20, 30]), (10, [1, 1], [(8, 100), (8, 100)], [8, 8]), (0, [1], [(0, 5)], [0]), (50, [1], [(0, 50)], [50]), (49, [2], [(0, 50)], [49]), (7, [], [], []),
])  # fmt: skip
def test_parts_in_proportion(total, lengths, bounds, parts):
    assert parted(total, lengths, bounds) == pytest.approx(parts, abs=1e-9)


def test_parts_are_within_bounds_and_sum_to_the_total():
    rng = random.Random(3)
    for _ in range(200):
        count = rng.randint(1, 5)
        lengths = [rng.choice([0.001, 1, 60, 9000]) for _ in range(count)]
        bounds = [tuple(sorted((rng.randint(0, 50), rng.randint(0, 500)))) for _ in range(count)]
        total = rng.randint(0, 1500)
        parts = parted(total, lengths, bounds)
        low, high = sum(b[0] for b in bounds), sum(b[1] for b in bounds)
        assert all(lo - 1e-9 <= p <= hi + 1e-9 for p, (lo, hi) in zip(parts, bounds, strict=True))
        assert sum(parts) == pytest.approx(min(max(total, low), high), abs=1e-6)
        rates = [p / n for p, n, (lo, hi) in zip(parts, lengths, bounds, strict=True) if lo < p < hi]
        assert not rates or max(rates) == pytest.approx(min(rates))


def test_what_a_video_wishes():
    video = wish(100)
    assert (video.pair, video.factor, video.possible, video.open, video.least) == (120, 32, 100, True, 2)
    assert [video.tokens(n) for n in (0, 1, 2, 3, 4)] == [0, 120, 120, 240, 240]
    assert wish(5000).most(False) == 768 and wish(5000).most(True) == 5000 and wish(100).most(False) == 100
    assert (
        wish(5000, ("max_frames",), max_frames=9).most(True) == 9
        and not wish(9, ("fps",)).open
        and not wish(9, ("nframes",)).open
    )
    assert (
        wish(9, ("min_frames",), min_frames=7).least == 7
        and wish(9, min_frames=7).least == 2
        and wish(9, ("min_frames",), min_frames=1).least == 2
    )
    every = budget.Video(
        Clip(9, every=True),
        "m",
        {"fps": 1.0, "min_frames": 4, "max_frames": 768, "nframes": None},
        ("fps",),
        (64, 64),
        {"patch_size": 16, "temporal": 2},
        2,
    )
    assert every.open and every.possible == 225 and every.pair == 4


def test_how_frames_were_chosen():
    video = wish(100)
    medium = SimpleNamespace(frames=[0, 500, 2000])
    got = video.choice(medium, "budget", 7)
    assert got == Choice("of 100 s", 100.0, 100, 3, 40.0, (320, 384), 240, (), "budget", False, 7)
    assert (
        video.choice(SimpleNamespace(frames=[5]), "", None).interval == 0.0
        and video.choice(SimpleNamespace(frames=list(range(150))), "", None).possible == 150
    )
    assert video.choice(SimpleNamespace(frames=[0, 1]), "", None).interval == 0.04
    bare = Choice("a", 1.0, 1, 1, 0.0, (1, 1), 1)
    assert (bare.stated, bare.by, bare.estimated, bare.planned) == ((), "", False, None)
    assert (
        differing(bare, None) is bare
        and differing(bare, 1) is bare
        and differing(bare, 2).planned == 2
        and differing(bare, 0).planned == 0
    )


@pytest.mark.parametrize(
    "frames, grid, timestamps, interval, tokens",
    [
        ([0, 1, 6, 7], 2, [0.5, 6.5], 3.0, 20),
        ([0, 1], 1, [0.5], 0.0, 10),
        ([0, 1, 4, 5, 8, 9], 3, [0.5, 4.5, 8.5], 2.0, 30),
    ],
)
def test_how_frames_were_chosen_after_repeats(frames, grid, timestamps, interval, tokens):
    before = Choice("a", 10.0, 10, 10, 1.0, (64, 64), 50)
    medium = SimpleNamespace(frames=frames, timestamps=timestamps, temporal=2, grid=(grid, 2, 2))
    after = before.of(medium)
    assert (after.frames, after.interval, after.tokens, after.by) == (len(frames), interval, tokens, "repeats")
    assert before.of(SimpleNamespace(frames=list(range(10)))) is before


@pytest.mark.parametrize("video, frames, lifted, narrowed, said", [
    (wish(100, ("fps",)), 100, False, "context", "stated"), (wish(100), 100, False, "context", ""), (wish(100), 99, False, "", "budget"), (wish(100), 99, False, "limit", "limit"),
    (wish(5000), 768, False, "", "model"), (wish(5000), 767, False, "", "budget"), (wish(5000), 768, True, "", "budget"), (wish(5000), 5000, True, "", ""), (wish(5000), 767, True, "context", "context"),
])  # fmt: skip
def test_what_limited_the_frames(video, frames, lifted, narrowed, said):
    assert reason(video, frames, lifted, narrowed) == said


def test_a_budget_that_is_exceeded_by_one():
    videos = [wish(100), wish(100)]
    check_budget(videos, [3, 2], 360)
    with pytest.raises(ContextError) as refusal:
        check_budget(videos, [3, 2], 359)
    assert str(refusal.value) == (
        "the budget is 359 vision tokens and one frame pair of each video is 360 (5 frames in 3 pairs): raise the budget to 360, or state fewer frames (fps, max_frames) or smaller ones (max_pixels)"
    )
    with pytest.raises(ContextError, match="the videos as stated are 12,000 .200 frames in 100 pairs"):
        check_budget([wish(100, ("fps",)), wish(100)], [100, 100], 11_999)


@pytest.mark.parametrize("budget, frames", [(239, [2]), (240, [4]), (359, [4]), (360, [6]), (1, [2]), (120, [2])])
def test_pairs_that_fit_a_budget(budget, frames):
    assert prompt.budget.share([wish(100)], budget) == frames


# ------------------------------------------------------------------------------------------------ rooms


@pytest.mark.parametrize("room", [300, 301, 307, 1000, 4001])
@pytest.mark.parametrize("answer", [1, 40, 10_000])
def test_a_room_is_used_up_but_for_an_eighth(plain, room, answer):
    """Text and answer take whole eighths of the room, at most half of it, and frames the rest."""
    built = prompt.build([user(listed(2000), text("Which?" * 3))], *plain, budget=9999, room=room, answer=answer)
    (choice,) = built.choices
    keep, video = min(answer, room // 2), len(built.token_ids)
    first, (_, last, count) = built.spans[0][1], built.spans[-1]
    rest = video - (last + count - first) + keep
    step = max(1, room // 8)
    kept = max(rest, min(-(-rest // step) * step, room // 2))
    assert choice.by == "context" and len(built.token_ids) + keep <= room
    assert kept + (last + count - first) <= room < kept + (last + count - first) + 2 * 25  # a pair more would not fit


def test_rooms_that_are_exactly_enough(plain):
    few = prompt.build([user(listed(10), text("?"))], *plain)
    size = len(few.token_ids)
    for room, frames in ((size + 5, 10), (size + 4, 8)):
        got = prompt.build([user(listed(10), text("?"))], *plain, room=room, answer=5)
        assert (got.choices[0].frames == 10) == (frames == 10), room
    alone = prompt.build([user(text("?"))], *plain, room=1, answer=5)
    assert alone.choices == []


def test_fewer_vision_tokens_than_the_budget_allows(plain):
    draft = prompt.draft([user(listed(60), text("?"))], *plain)
    for most, frames, by in ((None, 60, ""), (120, 60, ""), (119, 58, "limit"), (10, 4, "limit"), (1, 2, "limit")):
        (choice,) = draft.lay(most=most).choices
        assert (choice.frames, choice.by) == (frames, by)
    (choice,) = draft.lay(budget=100).choices
    assert (choice.frames, choice.by) == (50, "budget")


def test_texts_whose_ids_are_remembered(plain):
    draft = prompt.draft(
        [
            user(listed(4), text("a" * 5000)),
        ],
        *plain,
    )
    draft.lay()
    assert len(draft.encoded) == 1
    short = prompt.draft([user(text("a" * 3000), listed(4))], *plain)
    short.lay()
    assert short.encoded == {}
    builder = layout.Builder(plain[0], plain[1], {}, False, {})
    for length, kept in ((4095, 0), (4096, 1)):
        builder.text("b" * length)
        builder.token()
        assert len(builder.encoded) == kept


# ------------------------------------------------------------------------------------------------ what is left out


def bare(spans, count, media):
    return Prompt(
        token_ids=list(range(100, 100 + count)), positions=np.arange(3 * count).reshape(3, count), next_position=count, grid_thw=np.zeros((len(media), 3), np.int64),
        timestamps=[], frames=[], media=media, spans=spans, warnings=["before"],
    )  # fmt: skip


class Some:
    def __init__(self, pairs, start=0):
        self.numbers, self.frames, self.timestamps, self.grid = (
            pairs,
            [f for p in pairs for f in (2 * p, 2 * p + 1)],
            [p + 0.5 for p in pairs],
            (len(pairs), 2, 2),
        )

    def only(self, pairs):
        return Some([self.numbers[p] for p in pairs])


def test_pairs_that_are_left_out_with_their_marks():
    """Two videos of three pairs: tokens 3 to 6 are the first pair, its end is 7, 8 and 9 are the next one's mark and border."""
    spans = [(0, 3, 4), (0, 10, 4), (0, 17, 4), (1, 26, 4), (1, 33, 4), (1, 40, 4)]
    made = bare(spans, 48, [Some([0, 1, 2]), Some([0, 1, 2])])
    got = without(made, [[0, 2], [0]], ["note"])
    gone = {*range(8, 15), *range(31, 45)}
    stay = [n for n in range(48) if n not in gone]
    assert got.token_ids == [100 + n for n in stay] and got.positions.tolist() == made.positions[:, stay].tolist()
    assert (
        got.spans == [(0, 3, 4), (0, 10, 4), (1, 19, 4)]
        and got.warnings == ["before", "note"]
        and got.next_position == 48
    )
    assert (
        got.frames == [[0, 1, 4, 5], [0, 1]]
        and got.timestamps == [[0.5, 2.5], [0.5]]
        and got.grid_thw.tolist() == [[2, 2, 2], [1, 2, 2]]
    )


def test_words_for_what_was_left_out():
    medium = SimpleNamespace(grid=(9, 2, 2), source="a.mp4")
    assert list(remarks(medium, 9)) == []
    assert list(remarks(medium, 8)) == [
        "1 of 9 frame pairs of video a.mp4 shows nearly what the one before shows: left out (dedupe)"
    ]
    assert list(remarks(medium, 1)) == [
        "8 of 9 frame pairs of video a.mp4 show nearly what the one before shows: left out (dedupe)"
    ]


def test_progress_and_numbers_of_a_dedupe(plain):
    frames = [FRAME, FRAME, FRAME + 90, FRAME + 90, FRAME + 92, FRAME + 92, FRAME]
    built = prompt.build([user({"type": "video", "video": frames, "fps": 1}, text("?"))], *plain)
    told = []
    few = prompt.deduped(built, lambda *args: told.append(args))
    assert told == [("dedupe", n, 8) for n in (2, 4, 6, 8)]
    assert few.frames == [[0, 1, 2, 3, 6]] and few.warnings[-1].startswith("1 of 4 frame pairs")
    assert prompt.deduped(few) is few and BUDGET == 16384
