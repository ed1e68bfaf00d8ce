"""Limits and values of speeds, of the line that says a plan, and of the time left: one step to either side of each limit."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_plan import SPEEDS

import ivlite
from ivlite import ops
from ivlite.cli.progress import Progress
from ivlite.cli.progress import seconds as spelled
from ivlite.machine import gigabytes
from ivlite.plan import Plan, Setting, spaced, store
from ivlite.plan.speeds import STAGES, Speeds, fitted
from ivlite.prompt import Choice

# ------------------------------------------------------------------------------------------------ speeds


def test_what_a_chunk_costs_on_either_side_of_expanding():
    speeds = replace(SPEEDS, few=40, each=0.5)
    for n, depth in ((40, 1000), (41, 1000), (2048, 0), (1, 5000)):
        older = 1e-6 * n * depth if n <= 40 else 1e-6 * n * depth + 1e-5 * depth
        own = n * 1e-2 + 1e-6 * n * (n + 1) / 2 + 1e-5 * n + 0.5
        assert speeds.prefill(n, depth) == pytest.approx(own + older)
    dear = replace(speeds, step_seen=1e-3)
    assert dear.prefill(40, 100) - speeds.prefill(40, 100) == pytest.approx((1e-3 - 1e-6) * 40 * 100)
    assert dear.prefill(41, 100) == speeds.prefill(41, 100)
    assert dear.prefill(2049, 0) == pytest.approx(dear.prefill(2048) + dear.prefill(1, 2048))
    assert speeds.prefill(0, 10) == 0


def test_the_share_of_prefill_that_does_not_grow():
    for tokens, depth in ((1, 0), (100, 0), (6000, 3000)):
        assert SPEEDS.linear(tokens, depth) == pytest.approx(tokens * 1e-2 / SPEEDS.prefill(tokens, depth))
    assert replace(SPEEDS, ratios={"prefill": 3.0}).linear(6000) == pytest.approx(SPEEDS.linear(6000))
    assert replace(SPEEDS, seen=0.0, expanded=0.0, each=-1e-3).linear(1) == 1.0 and SPEEDS.linear(0) == 0.0


def test_generated_tokens_see_the_ones_before():
    one_by_one = sum(0.1 + 1e-6 * (1000 + i + 0.5) for i in range(10))
    assert SPEEDS.generate(11, 1000) == pytest.approx(one_by_one)
    assert SPEEDS.generate(2, 7) == pytest.approx(0.1 + 1e-6 * 7.5)
    assert SPEEDS.generate(0, 5) == SPEEDS.generate(1, 5) == 0
    assert replace(SPEEDS, each=1.0).generate(3, 0) == pytest.approx(SPEEDS.generate(3, 0) + 2)
    assert replace(SPEEDS, ratios={"generate": 4.0}).generate(3, 0) == pytest.approx(4 * SPEEDS.generate(3, 0))


def test_what_is_said_where_nothing_was_measured():
    bare = Speeds(*[1.0] * 7)
    assert (bare.each, bare.byte, bare.few, bare.ratios) == (0.0, 0.0, 1, {})
    assert all(bare.ratio(stage) == 1.0 for stage in STAGES)
    plan = Plan((), 0, 5, 0, 1, 10, 1, 1, 1, None)
    assert (plan.fits, plan.problem, plan.nearest, plan.held, plan.linear, plan.took) == (True, "", (), 0, 1.0, None)
    assert plan.wait is None and plan.as_data()["wait"] is None and plan.line() == "5 tokens"


@pytest.mark.parametrize("planned, took, ratio", [
    (1.0, 4.0, 2.0), (4.0, 1.0, 0.5), (1.0, 1.0, 1.0),
    (1.0, 7.99, math.sqrt(7.99)), (1.0, 8.01, None), (7.99, 1.0, math.sqrt(1 / 7.99)), (8.01, 1.0, None),  # disturbed
    (0.1, 0.2, math.sqrt(2)), (0.1, 0.19, None), (0.2, 0.1, math.sqrt(0.5)), (0.19, 0.1, None),  # too short to say much
    (0.0, 5.0, None), (5.0, 0.0, None),
])  # fmt: skip
@pytest.mark.parametrize("stage", STAGES)
def test_what_a_run_corrects(stage, planned, took, ratio):
    found = SPEEDS.corrected({stage: planned}, {stage: took})
    assert found.ratios == ({} if ratio is None else {stage: pytest.approx(ratio)})
    again = replace(SPEEDS, ratios={stage: 3.0}).corrected({stage: planned}, {stage: took})
    assert again.ratio(stage) == pytest.approx(3.0 * (ratio or 1.0))


def test_numbers_of_a_file_on_either_side_of_their_limits():
    good = SPEEDS.as_data()
    assert Speeds.from_data(good) == SPEEDS and good["ratios"] == {}
    for value, sound in ((0, True), (999_999.0, True), (1e6, False), (-1e-9, False)):
        assert (Speeds.from_data(good | {"seen": value}) is not None) == sound
        assert (Speeds.from_data(good | {"token": value}) is not None) == (sound and value > 0)
        assert (Speeds.from_data(good | {"step": value}) is not None) == (sound and value > 0)
    for value, sound in ((0.01, True), (0.0099, False), (100, True), (100.1, False), (True, False), (None, False)):
        found = Speeds.from_data(good | {"ratios": {"vision": value}})
        assert (found is not None and found.ratios == {"vision": value}) == sound
    assert Speeds.from_data(good | {"ratios": {"unknown": 5}}).ratios == {}
    for name in set(good) - {"ratios"}:
        assert Speeds.from_data({k: v for k, v in good.items() if k != name}) is None
    for data in (None, [], good | {"ratios": None}, good | {"ratios": []}):
        assert Speeds.from_data(data) is None


@pytest.mark.parametrize("rows, took, found", [
    ([(1, 1), (1, 4)], [3, 9], [1, 2]), ([(1, 1), (1, 4)], [4, 1], None), ([(2, 8), (2, 2)], [8, 8], [4, 0]),
    ([(1, 10), (1, 20)], [1, 2], [0, 0.1]),
])  # fmt: skip
def test_two_measurements_and_two_coefficients(rows, took, found):
    got = fitted(rows, took)
    assert min(got) >= 0 and (found is None or got == pytest.approx(found, abs=1e-9))
    if found is None:  # the nearest with one of them, relative to what was measured
        errors = [sum((np.dot(row, pair) / t - 1) ** 2 for row, t in zip(rows, took, strict=True)) for pair in (got, [1.6, 0], [0, 1])]  # fmt: skip
        assert errors[0] == min(errors)


def test_a_kept_file_is_read_up_to_its_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store.save("a", SPEEDS)
    path = tmp_path / "ivlite" / "speeds" / "a.json"
    text = path.read_text()
    assert (
        '"version": 1' in text and path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    )
    path.write_text(text.ljust(1 << 16))
    assert store.load("a") == SPEEDS
    path.write_text(text[:-1].ljust(1 << 16) + "}")
    assert store.load("a") is None
    store.save("a", replace(SPEEDS, few=7))
    assert store.load("a").few == 7 and len(list(path.parent.iterdir())) == 1


def test_the_name_of_speeds_is_that_of_model_machine_and_settings(monkeypatch):
    def tensors(**more):
        made = {"a": ("q8_0", (4, 32)), "b": ("f32", (4,))} | more
        return {name: SimpleNamespace(name=name, format=f, shape=s) for name, (f, s) in made.items()}

    first = store.key(tensors(), 2, "q8", "mmap")
    assert len(first) == 32 and first == store.key(dict(reversed(tensors().items())), 2, "q8", "mmap")
    others = [(tensors(), 3, "q8", "mmap"), (tensors(), 2, "q4", "mmap"), (tensors(), 2, "q8", "repack"),
              (tensors(a=("q4_0", (4, 32))), 2, "q8", "mmap"), (tensors(a=("q8_0", (8, 32))), 2, "q8", "mmap"),
              (tensors(c=("f32", (1,))), 2, "q8", "mmap")]  # fmt: skip
    names = {store.key(*other) for other in others}
    monkeypatch.setattr(ops, "machine", lambda: ("another", "avx2"))
    assert len(names | {first, store.key(tensors(), 2, "q8", "mmap")}) == 8


# ------------------------------------------------------------------------------------------------ the line


def choice(name="a.mp4", possible=100, frames=50, **more):
    return Choice(
        **dict(name=name, seconds=100.0, possible=possible, frames=frames, interval=2.04, size=(64, 64), tokens=200)
        | more
    )


def line(*videos, seconds=None, **more):
    plan = Plan(tuple(videos), 0, 1500, 1234, 1, 10, 1, 1, 1, seconds)
    return replace(plan, **more).line()


MORE = Setting("--budget 32k", {"budget": 32768}, 80, 9999)
LINES = [
    (line(choice(frames=100)), "100 frames, one every 2.0 s: 200 tokens"),
    (line(choice(possible=1, frames=1, interval=0.0)), "1 frame: 200 tokens"),
    (line(choice(possible=2, frames=1, interval=0.0)), "1 of 2 possible frames: 200 tokens"),
    (line(choice(frames=99)), "99 of 100 possible frames, one every 2.0 s: 200 tokens"),
    (line(choice(possible=2000, frames=1999, interval=0.999)), "1,999 of 2,000 possible frames, one every 1 s: 200 tokens"),
    (line(choice("a"), choice("b", frames=100)), "150 frames (a: 50 of 100, b: 100 of 100 possible): 400 tokens"),
    (line(*map(choice, "abcd")), "200 frames (a: 50 of 100, b: 50 of 100, c: 50 of 100, d: 50 of 100 possible): 800 tokens"),
    (line(*map(choice, "abcdef")),
     "300 frames (a: 50 of 100, b: 50 of 100, c: 50 of 100, d: 50 of 100 and 2 more videos possible): 1,200 tokens"),
    (line(choice(planned=0)), "50 of 100 possible frames, one every 2.0 s (a.mp4 was planned with 0, by what it declares): 200 tokens"),
    (line(choice("a"), choice("b", planned=1000), choice("c", planned=2), choice("d", planned=3)),
     "200 frames (a: 50 of 100, b: 50 of 100, c: 50 of 100, d: 50 of 100 possible)"
     " (b was planned with 1,000; c was planned with 2, by what it declares): 800 tokens"),
    (line(choice(), nearest=(MORE,)), "50 of 100 possible frames, one every 2.0 s: 200 tokens; --budget 32k takes 80"),
    (line(choice(), nearest=(replace(MORE, frames=50), replace(MORE, frames=100))),
     "50 of 100 possible frames, one every 2.0 s: 200 tokens; --budget 32k takes them all"),
    (line(choice(), nearest=(replace(MORE, frames=50),)), "50 of 100 possible frames, one every 2.0 s: 200 tokens"),
    (line(choice(), nearest=(replace(MORE, frames=51),)), "50 of 100 possible frames, one every 2.0 s: 200 tokens; --budget 32k takes 51"),
    (line(choice(possible=2000), nearest=(replace(MORE, frames=1100),)),
     "50 of 2,000 possible frames, one every 2.0 s: 200 tokens; --budget 32k takes 1,100"),
    (line(seconds={"prefill": 3.0, "generate": 100.0}), "1,500 tokens, about 3 s"),
    (line(seconds={"load": 1.0, "scan": 2.0, "decode": 4.0, "vision": 8.0, "prefill": 16.0, "generate": 9.0}), "1,500 tokens, about 31 s"),
    (line(seconds={"prefill": 3.0}, held=63), "1,500 tokens, about 3 s"),
    (line(seconds={"prefill": 3.0}, held=64), "1,500 tokens, about 3 s (64 of the 1,500 prompt tokens are computed already)"),
    (line(seconds={"prefill": 3.0}, held=1400), "1,500 tokens, about 3 s (1,400 of the 1,500 prompt tokens are computed already)"),
    (line(held=1400), "1,500 tokens"),
]  # fmt: skip


@pytest.mark.parametrize("got, said", LINES)
def test_the_sentence_about_what_was_left_open(got, said):
    assert got == said


def test_words_for_seconds():
    about = [(0.0, "1 s"), (0.99, "1 s"), (1.0, "1 s"), (1.6, "2 s"), (89.9, "90 s"), (90, "2 min"), (91, "2 min"), (149, "2 min"),
             (5369, "89 min"), (5371, "1 h 30 min"), (7200, "2 h 0 min"), (7290, "2 h 2 min")]  # fmt: skip
    for value, words in about:
        assert ivlite.plan.about(value) == words
    for value, words in (
        (0.25, "0.25 s"),
        (0.999, "1 s"),
        (1.0, "1.0 s"),
        (1.04, "1.0 s"),
        (14.06, "14.1 s"),
        (0.0333, "0.033 s"),
    ):
        assert spaced(value) == words
    for value, words in (
        (0, "0 s"),
        (0.5, "1 s"),
        (59.4, "59 s"),
        (59.5, "1:00"),
        (125, "2:05"),
        (3599.4, "59:59"),
        (3600, "1:00:00"),
        (3725, "1:02:05"),
    ):
        assert spelled(value) == words
    for value, words in (
        (999_400_000, "999 MB"),
        (10**9, "1.00 GB"),
        (5_314_000_000, "5.31 GB"),
        (340_000_000, "340 MB"),
        (500_000, "0 MB"),
        (499_999, "500 KB"),
        (1, "1 KB"),
        (0, "0 MB"),
    ):
        assert gigabytes(value) == words


def test_a_plan_as_data_has_three_decimals():
    plan = Plan((choice(),), 0, 5, 0, 1, 10, 1, 1, 1, {"prefill": 1.23456, "generate": 2.0004, "scan": 0.1})
    assert (
        plan.as_data()["seconds"] == {"prefill": 1.235, "generate": 2.0, "scan": 0.1}
        and plan.as_data()["wait"] == 1.335
    )
    happened = plan.happened({"new_tokens": 3}, {"open": 0.12345})
    assert happened.took == {"seconds": {"open": 0.123}, "new_tokens": 3} and replace(happened, took=None) == plan


# ------------------------------------------------------------------------------------------------ the time left


@pytest.mark.parametrize("stages, elapsed, left", [
    ({"prefill": (50, 100)}, 50.0, 62.5 * 74 / 81.5),  # half of the tokens: (0.2 + 0.8 / 2) / 2 = 0.3 of 100, and 27.5 of 120 are left
    ({"decode": (1, 1), "vision": (5, 10)}, 30.0, None), ({"vision": (0, 10), "prefill": (0, 0)}, 3.0, None),
])  # fmt: skip
def test_the_time_left_is_what_is_planned_at_the_pace_so_far(stages, elapsed, left):
    progress = Progress(False)
    progress.expect(
        Plan((), 0, 1, 1, 1, 1, 1, 1, 1, {"decode": 4.0, "vision": 20.0, "prefill": 100.0, "generate": 7.0}, linear=0.2)
    )
    progress.stages = stages
    share = {name: done / max(1, total) for name, (done, total) in stages.items()}
    half = share.get("prefill", 0.0)
    done = 4 * share.get("decode", 0) + 20 * share.get("vision", 0) + 100 * half * (0.2 + 0.8 * half)
    assert progress.left(elapsed) == pytest.approx((124 - done) * (elapsed + 0.2 * 124) / (done + 0.2 * 124))


def test_a_plan_without_work_is_not_followed():
    progress = Progress(False)
    for seconds in (None, {}, {"generate": 5.0, "scan": 3.0}):
        progress.expect(Plan((), 0, 1, 1, 1, 1, 1, 1, 1, seconds))
        assert progress.expected is None
