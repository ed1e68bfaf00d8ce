"""Limits and values of plans: what each number of a plan is made of, and what happens one step to either side of a limit."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_budget import listed
from test_plan import SPEEDS, ask

import ivlite
from ivlite import ops
from ivlite.cli.progress import Progress
from ivlite.cli.progress import seconds as spelled
from ivlite.evaluate import synthetic
from ivlite.machine import gigabytes
from ivlite.media import frames
from ivlite.plan import Plan, Setting, nearest, planner, spaced, store, work
from ivlite.plan import memory as needs
from ivlite.plan.speeds import STAGES, Speeds, fitted
from ivlite.prompt import Choice, layout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # what would be measured takes a known time
        patch.setattr(layout, "time", SimpleNamespace(perf_counter=lambda: 0.0))
        patch.setattr(
            frames.FrameListProbe, "cost", lambda self, chosen, size, measuring=True: (0.0, 1e-3 * len(chosen))
        )
        with ivlite.load("demo") as model:
            model._planning()._speeds = SPEEDS
            yield model


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
    (line(choice(frames=100)), "100 frames, one every 2.0 s: 1,234 tokens"),
    (line(choice(possible=1, frames=1, interval=0.0)), "1 frame: 1,234 tokens"),
    (line(choice(possible=2, frames=1, interval=0.0)), "1 of 2 possible frames: 1,234 tokens"),
    (line(choice(frames=99)), "99 of 100 possible frames, one every 2.0 s: 1,234 tokens"),
    (line(choice(possible=2000, frames=1999, interval=0.999)), "1,999 of 2,000 possible frames, one every 1 s: 1,234 tokens"),
    (line(choice("a"), choice("b", frames=100)), "150 frames (a: 50 of 100, b: 100 of 100 possible): 1,234 tokens"),
    (line(*map(choice, "abcd")), "200 frames (a: 50 of 100, b: 50 of 100, c: 50 of 100, d: 50 of 100 possible): 1,234 tokens"),
    (line(*map(choice, "abcdef")),
     "300 frames (a: 50 of 100, b: 50 of 100, c: 50 of 100, d: 50 of 100 and 2 more videos possible): 1,234 tokens"),
    (line(choice(planned=0)), "50 of 100 possible frames, one every 2.0 s (a.mp4 was planned with 0, by what it declares): 1,234 tokens"),
    (line(choice("a"), choice("b", planned=1000), choice("c", planned=2), choice("d", planned=3)),
     "200 frames (a: 50 of 100, b: 50 of 100, c: 50 of 100, d: 50 of 100 possible)"
     " (b was planned with 1,000; c was planned with 2, by what it declares): 1,234 tokens"),
    (line(choice(), nearest=(MORE,)), "50 of 100 possible frames, one every 2.0 s: 1,234 tokens; --budget 32k takes 80"),
    (line(choice(), nearest=(replace(MORE, frames=50), replace(MORE, frames=100))),
     "50 of 100 possible frames, one every 2.0 s: 1,234 tokens; --budget 32k takes them all"),
    (line(choice(), nearest=(replace(MORE, frames=50),)), "50 of 100 possible frames, one every 2.0 s: 1,234 tokens"),
    (line(choice(), nearest=(replace(MORE, frames=51),)), "50 of 100 possible frames, one every 2.0 s: 1,234 tokens; --budget 32k takes 51"),
    (line(choice(possible=2000), nearest=(replace(MORE, frames=1100),)),
     "50 of 2,000 possible frames, one every 2.0 s: 1,234 tokens; --budget 32k takes 1,100"),
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


# ------------------------------------------------------------------------------------------------ memory and room


def test_bytes_of_a_process(demo):
    planning, text, vision = demo._planning(), demo.config.text, demo.config.vision
    peak = planning.peak
    queries = text.num_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
    each = queries + text.num_heads * text.v_head_dim + 128 + text.qk_rope_head_dim  # and a rank of 128
    together = text.hidden_size + 2 * queries  # of at most 512 tokens
    assert peak(0, 0) == (90 << 20) + planning.weights + 32 * text.vocab_size
    assert peak(0, 0, 0, 77) == peak(0, 0) + 77
    assert peak(1, 10) - peak(1, 9) == planning.token_bytes == 980
    assert peak(2, 9) - peak(1, 9) == peak(512, 9) - peak(511, 9) == 4 * (text.hidden_size + each + together)
    assert peak(513, 9) - peak(512, 9) == peak(2048, 9) - peak(2047, 9) == 4 * (text.hidden_size + each)
    assert peak(2048, 9) == peak(2049, 9) == peak(6144, 9) < peak(6145, 9) < peak(8192, 9) == peak(9999, 9)
    assert peak(8192, 9) - peak(2048, 9) == 2048 * 4 * (text.hidden_size + each)  # a chunk of twice as many
    wide = 4 * vision.out_hidden_size * (1 + len(vision.deepstack_indexes))
    most = (128 << 20) // wide
    assert peak(0, 0, most + 1) - peak(0, 0, most) == (128 << 20) - most * wide and peak(0, 0, 1 << 30) == peak(
        0, 0, most + 1
    )


def test_bytes_of_the_stage_that_takes_most():
    """The tower, the part of a chunk that has features for the first layers, or the whole chunk."""
    config = synthetic.config("8b")
    text, vision = config.text, config.vision
    whole = needs.activations(config, 100_000, 90_000)
    batch, states = 512 * 4 * 4096 * 4, 4 * 4096
    assert needs.layer(text, 4096) == 4 * (4096 * (8192 + 4096 + 896 + 128) + 512 * (4096 + 2 * 8192))
    assert whole == 4096 * states + batch + needs.layer(
        text, 4096
    )  # features of 2048 tokens, and their layers, are less
    part = needs.activations(config, 2048, 2048)
    assert part == 2048 * states + batch + 2048 * 3 * states + needs.layer(text, 2048)
    tower = needs.activations(replace(config, vision=replace(vision, hidden_size=100_000)), 2048, 2048)
    assert tower == 2048 * states + batch + 2048 * 3 * states + 2048 * 4 * (8 * 100_000 + vision.intermediate_size)
    assert needs.kept(config, 3) == 3 * 4 * 4096 * 4 and needs.kept(config, 1 << 20) == 128 << 20
    assert needs.activations(config, 0) == 0 < needs.activations(config, 1) < needs.activations(config, 2)


def test_the_room_of_a_memory(demo, monkeypatch):
    planning = demo._planning()
    base = planning.peak(1, 0)
    for memory, room in (
        (base + 980 * 1000, 1000),
        (base + 980 * 1000 - 1, 999),
        (base - 1, 0),
        (0, 0),
        (1 << 50, 8192),
    ):
        assert planning.room(memory) == room
        monkeypatch.setattr(planner, "available_memory", lambda memory=memory: memory)
        assert planning.room() == room
    monkeypatch.setattr(planner, "available_memory", lambda: None)
    assert planning.room() == 8192


def test_weights_in_memory():
    cfg = synthetic.config("tiny")
    source = synthetic.RandomSource(cfg, "q8_0")
    sizes = {name: t.nbytes for name, t in source.tensors.items()}
    held, streamed = (
        planner.Planner.of(source, cfg, "q8", ops.get("cpu", 1), load=load) for load in ("repack", "mmap")
    )
    transposed = 4 * 96 * 4 * 32 * 34 // 32  # W_UK of four layers as q8_0
    assert held.weights == sum(sizes.values()) - sizes["token_embd.weight"] + transposed
    layers = [
        sum(n for name, n in sizes.items() if name.startswith(prefix))
        for prefix in ("blk.0.", "blk.3.", "v.blk.0.", "v.blk.3.")
    ]
    assert streamed.weights == 2 * max(layers) and not streamed.loaded and not held.loaded
    tied = {name: t for name, t in source.tensors.items() if name != "output.weight"}
    planned = planner.Planner(cfg, tied, "q8", 10, 1, None)
    assert planned.weights == sum(sizes.values()) - sizes["output.weight"] + transposed and planned.loaded
    timed = planner.Planner.of(source, cfg, "q8", ops.get("cpu", 1), seconds=3.0)
    assert timed._byte == 3.0 / sum(sizes.values()) and held._byte is None
    assert planner.Planner.of(source, cfg, "q8", ops.get("cpu", 1), load="mmap", seconds=3.0)._byte is None
    others = [planner.Planner.of(source, cfg, "q8", ops.get("cpu", 1), vit=vit).name for vit in ("file", "fp32")]
    assert len({*others, streamed.name}) == 3 and held.name == others[0]


def test_loading_is_a_stage_where_it_is_yet_to_come(demo):
    planning = demo._planning()
    draft = ivlite.prompt.draft(ask(), demo.tokenizer, demo.config)
    later = planner.Planner(demo.config, planning.tensors, "q8", 980, 1, None, loaded=False)
    later._speeds = replace(SPEEDS, byte=1e-6)
    made = later.plan(draft, draft.lay(), 5, 100)
    size = sum(t.nbytes for t in planning.tensors.values())
    assert made.seconds["load"] == pytest.approx(planner.OPENED + 1e-6 * size) and made.wait > made.seconds["load"]
    assert "load" not in planning.plan(draft, draft.lay(), 5, 100).seconds


def test_answers_between_one_token_and_the_room(demo):
    planning, draft = demo._planning(), ivlite.prompt.draft(ask(), demo.tokenizer, demo.config)
    laid = draft.lay()
    tokens = len(laid.token_ids)
    for answer, room, got in (
        (5, 1000, 5),
        (5, tokens + 5, 5),
        (5, tokens + 4, 4),
        (5, tokens + 1, 1),
        (5, tokens, 1),
        (5, 1, 1),
    ):
        made = planning.plan(draft, laid, answer, room)
        assert (made.max_new_tokens, made.cache_bytes) == (got, (tokens + got) * 980)
        assert made.fits == (room > tokens)
    assert planning.ask(draft, None, 1000, None).max_new_tokens == 1000 - tokens
    assert planning.ask(draft, None, 0, None).max_new_tokens == 1


# ------------------------------------------------------------------------------------------------ what cannot be followed


def problem(planning, loaded=True, context=1000, free=None, **more):
    made = Plan(
        (),
        0,
        900,
        600,
        1,
        1000,
        123_000_000,
        4_560_000_000,
        5_000_000_000,
        {"prefill": 7.0, "scan": 0.05, "decode": 0.04},
    )
    limits = {"wait": more.pop("wait", None), "memory": more.pop("memory", None)}
    planning = planner.Planner(planning.config, planning.tensors, "q8", 980, 1, None, loaded=loaded)
    planning.context = context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "available_memory", lambda: free)
        return planning.problem(replace(made, **more), **limits)


def test_why_a_plan_cannot_be_followed(demo):
    planning = demo._planning()
    assert problem(planning) == problem(planning, prompt_tokens=999) == ""
    long = "the prompt has 1,000 tokens (600 of vision, 400 of text and marks) and the {} holds 1,000"
    assert problem(planning, prompt_tokens=1000) == long.format("context")
    assert problem(planning, prompt_tokens=1000, context=1001) == long.format("free memory")
    assert problem(planning, prompt_tokens=1000, context=1000, loaded=False) == long.format("context")
    needed = "5.00 GB of memory are needed (4.56 GB of weights, 123 MB of cache) and {}"
    assert problem(planning, prompt_tokens=1000, context=1001, loaded=False, free=10**10) == needed.format(
        "10.00 GB are free"
    )
    assert problem(planning, prompt_tokens=1000, context=1001, loaded=False, free=None) == ""
    for most, words in ((5_000_000_000, ""), (4_999_999_999, needed.format("5.00 GB are "))):
        assert problem(planning, memory=most) == (words and words + "stated")
        assert problem(planning, loaded=False, free=most) == (words and words + "free")
        assert problem(planning, loaded=True, free=most) == ""
    assert problem(planning, loaded=False, free=1, memory=5_000_000_000) == ""
    late = "the first token comes after 7.1 s (prefill 7.0 s, scan 0.1 s) and the wait is to be {} s at most"
    assert problem(planning, wait=7.0) == late.format("7") and problem(planning, wait=0.001) == late.format("0.001")
    assert (
        problem(planning, wait=7.09) == problem(planning, wait=7.1) == problem(planning, wait=1.0, seconds=None) == ""
    )
    assert problem(planning, wait=1.0, seconds={"prefill": 2.0, "generate": 9.0}) == (
        "the first token comes after 2.0 s (prefill 2.0 s) and the wait is to be 1 s at most"
    )


@pytest.mark.parametrize("made, stated, advice", [
    (dict(), True, "shorten the text"), (dict(videos=(choice(),)), True, "give fewer videos"),
    (dict(nearest=(MORE,)), True, "use --budget 32k"),
    (dict(nearest=(MORE, replace(MORE, flag="--max-frames 3"))), True, "use --budget 32k or --max-frames 3"),
    (dict(room=10), False, "shorten the text"), (dict(room=11), True, "shorten the text"),
    (dict(room=10), True, "use --context 256"), (dict(room=10, max_new_tokens=246), True, "use --context 256"),
    (dict(room=10, max_new_tokens=247), True, "use --context 512"),
    (dict(room=10, prompt_tokens=8191), True, "use --context 8192"), (dict(room=10, prompt_tokens=8192), True, "shorten the text"),
    (dict(room=10, prompt_tokens=7936, max_new_tokens=257), True, "use --context 8192"),  # the longest that there is
    (dict(room=10, nearest=(MORE,)), True, "use --budget 32k or --context 256"),
])  # fmt: skip
def test_what_to_do_about_it(demo, made, stated, advice):
    plan = replace(Plan((), 0, 10, 0, 1, 5000, 1, 1, 1, None), **made)
    assert demo._planning().advice(plan, stated) == advice


@pytest.mark.parametrize("cached, counts", [(40, True), (50, True), (30, True), (51, False), (29, False)])
def test_a_run_that_reused_what_was_planned_counts(demo, tmp_path, monkeypatch, cached, counts):
    """One twentieth of the prompt more or less, and its generated tokens are planned again by their number."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    planning = planner.Planner(demo.config, demo._planning().tensors, "q8", 980, 1, None)
    planning._speeds = SPEEDS
    made = Plan((), 0, 200, 0, 1, 1000, 1, 1, 1, {"prefill": 1.0, "generate": 0.0}, held=40)
    planning.record(made, {"prefill": 4.0, "generate": 4 * SPEEDS.generate(50, 200)}, cached, 50)
    ratios = {"prefill": pytest.approx(2.0), "generate": pytest.approx(2.0)} if counts else {}
    assert planning.speeds().ratios == ratios
    planning.record(replace(made, seconds=None), {"prefill": 4.0}, 40, 50)
    assert planning.speeds().ratios == ratios


# ------------------------------------------------------------------------------------------------ the nearest that fits


@pytest.mark.parametrize("low, high", [(0, 0), (1, 1), (1, 2), (3, 10), (0, 1000)])
def test_the_last_number_that_holds(low, high):
    for most in range(low - 1, high + 2):
        asked = []
        got = nearest.last(low, high, lambda n, most=most, asked=asked: asked.append(n) or n <= most)
        assert got == (None if most < low else min(most, high)) and all(low <= n <= high for n in asked)


VIDEOS = [
    (listed(3000, fps=2, max_frames=600),),
    (listed(3000, fps=2, max_frames=601), listed(500, fps=2, max_frames=33)),
    (listed(3000, fps=2, max_frames=400), {"type": "image", "image": np.zeros((480, 320, 3), np.uint8)}, listed(5, fps=2, max_frames=5)),
]  # fmt: skip


@pytest.mark.parametrize("parts", VIDEOS)
@pytest.mark.parametrize("limits", [{"max_wait": 6.0}, {"memory": 125_000_000}])
def test_the_nearest_settings_fit_and_the_next_do_not(demo, parts, limits):
    made = demo.plan(ask(*parts), **limits)
    assert not made.fits
    fewer = next(s for s in made.nearest if "max_frames" in s.settings)
    assert fewer.flag == f"--max-frames {fewer.settings['max_frames']}"

    def again(change):
        most = fewer.settings["max_frames"] + change
        changed = [p | {"max_frames": min(most, p["max_frames"])} if p["type"] == "video" else p for p in parts]
        return demo.plan(ask(*changed), **limits)

    got = again(0)
    assert sum(v.frames for v in got.videos) == fewer.frames
    assert fewer.tokens == pytest.approx(got.prompt_tokens, rel=0.02)
    assert fewer.wait == pytest.approx(got.wait, rel=0.02)
    assert again(-12).fits and not again(16).fits  # time marks have more or fewer digits


def test_images_take_their_part_of_the_wait(demo, monkeypatch):
    monkeypatch.setattr(demo._planning(), "_speeds", replace(SPEEDS, patch=1e-2))
    images = [{"type": "image", "image": np.zeros((96, 64, 3), np.uint8)}] * 8

    def made(most):
        return demo.plan(ask(listed(900, fps=2, max_frames=most), *images), max_wait=12.0)

    (fewer, *_) = made(400).nearest
    got = made(fewer.settings["max_frames"])
    assert got.wait == pytest.approx(fewer.wait, rel=0.02) and got.seconds["vision"] > 3


def test_smaller_frames_that_fit(demo):
    def video(pixels):
        return {
            "type": "video",
            "video": [np.zeros((192, 192, 3), np.uint8)] * 100,
            "fps": 2,
            "max_frames": 60,
            "max_pixels": pixels,
        }

    for wait in (6.0, 10.0, 15.0):
        made = demo.plan(ask(video(192 * 192)), max_wait=wait)
        smaller = next(s for s in made.nearest if "max_pixels" in s.settings)
        assert smaller.flag == f"--max-pixels {smaller.settings['max_pixels']}" and smaller.frames == 60
        got = demo.plan(ask(video(smaller.settings["max_pixels"])), max_wait=wait)
        assert (
            got.fits
            and smaller.wait == pytest.approx(got.wait, rel=0.02)
            and smaller.tokens == pytest.approx(got.prompt_tokens, rel=0.02)
        )
        factor = 32 * 32
        steps = (smaller.settings["max_pixels"] + k * factor for k in range(1, 20))
        larger = next(
            plan
            for plan in (demo.plan(ask(video(p)), max_wait=wait) for p in steps)
            if plan.prompt_tokens > got.prompt_tokens
        )
        assert not larger.fits


BUDGETS = [  # frames of 4 tokens a pair in 1,000 frames; the budget that is named for what fits
    (1000, {}, 2000, "2k"), (500, {}, 1000, "1000"), (512, {}, 1024, "1k"), (513, {}, 1028, "2k"), (1100, {}, 2200, "3k"),
]  # fmt: skip


@pytest.mark.parametrize("count, more, tokens, flag", BUDGETS)
def test_a_budget_that_takes_all(demo, count, more, tokens, flag):
    made = demo.plan(ask(listed(count, fps=2, **more)), max_new_tokens=5)
    (setting,) = made.nearest
    assert made.videos[0].frames < count == setting.frames and setting.flag == f"--budget {flag}"
    assert setting.settings["budget"] >= tokens
    got = demo.plan(ask(listed(count, fps=2, **more)), max_new_tokens=5, **setting.settings)
    assert (
        got.videos[0].frames == count
        and got.vision_tokens == tokens
        and got.prompt_tokens == pytest.approx(setting.tokens, rel=0.02)
    )


def test_nothing_is_advised_where_nothing_is_left_out(demo):
    for part in (
        listed(10, fps=2),
        listed(500, fps=2, max_frames=400),
        {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)},
    ):
        assert demo.plan(ask(part), max_new_tokens=5).nearest == ()


# ------------------------------------------------------------------------------------------------ what is still to do


class Pairs:
    def __init__(self, kind, grid, size):
        self.kind, self.grid, self.size = kind, grid, size

    def memory(self, decoded):
        return self.size if decoded else self.size // 10


def test_what_is_left_of_a_prompt():
    media = [Pairs("video", (3, 4, 6), 1000), Pairs("image", (1, 2, 2), 70), Pairs("video", (2, 2, 8), 900)]
    firsts = {0: [0, 0, 0], 20: [2, 1, 0], 99: [3, 1, 2]}
    laid = SimpleNamespace(media=media, firsts=firsts.get)
    for held, pairs in ((0, (3, 1, 2)), (20, (1, 0, 2)), (99, (0, 0, 0))):
        expected = sum(SPEEDS.vision(n, p) for n, p in zip(pairs, (24, 4, 16), strict=True))
        assert work.vision_seconds(SPEEDS, laid, held) == pytest.approx(expected)
    assert [work.decoding(laid, held) for held in (0, 20, 99)] == [1000, 1000, 100]
    firsts[20] = [3, 0, 1]
    assert work.decoding(laid, 20) == 900
    assert work.decoding(SimpleNamespace(media=[], firsts=lambda held: []), 0) == 0
    assert work.before(SimpleNamespace(after=None)) == 0
    assert work.before(SimpleNamespace(after=(SimpleNamespace(token_ids=[1, 2, 3]), "tail"))) == 3


def test_a_plan_after_dedupe(demo):
    """All frames were decoded to find those that repeat, and what stays is decoded once more."""
    frames = [np.zeros((64, 64, 3), np.uint8)] * 6 + [np.full((64, 64, 3), 200, np.uint8)] * 2
    draft = ivlite.prompt.draft(ask({"type": "video", "video": frames, "fps": 1}), demo.tokenizer, demo.config)
    laid, planning = draft.lay(), demo._planning()
    few = ivlite.prompt.deduped(laid)
    made = replace(
        planning.plan(draft, laid, 50, 1000),
        seconds={"scan": 1.0, "decode": 8.0, "vision": 2.0, "prefill": 3.0, "generate": 4.0, "load": 5.0},
    )
    got = planning.without_repeats(made, draft, laid, few)
    tokens = len(few.token_ids)
    assert (got.prompt_tokens, got.vision_tokens, got.videos[0].frames, got.held) == (tokens, 8, 4, 0)
    assert got.seconds == {
        "scan": 9.0, "decode": 8.0 * 4 / 8, "vision": pytest.approx(SPEEDS.vision(2, 16)), "prefill": pytest.approx(SPEEDS.prefill(tokens)),
        "generate": pytest.approx(SPEEDS.generate(50, tokens)), "load": 5.0,
    }  # fmt: skip
    assert (
        got.cache_bytes == (tokens + 50) * 980
        and got.peak_memory == planning.peak(tokens, tokens + 50, 8)
        and got.linear == pytest.approx(SPEEDS.linear(tokens))
    )
    for room, answer in ((tokens + 50, 50), (tokens + 49, 49), (tokens - 5, 1)):
        assert planning.without_repeats(replace(made, room=room), draft, laid, few).max_new_tokens == answer
    half = planning.without_repeats(made, draft, laid, few, foreseen=lambda prompt: few.spans[0][1] + few.spans[0][2])
    assert (
        half.seconds["decode"] == 8.0 * 2 / 8
        and half.seconds["vision"] == pytest.approx(SPEEDS.vision(1, 16))
        and half.held > 0
    )
    assert half.seconds["prefill"] == pytest.approx(SPEEDS.prefill(tokens - half.held, half.held))
    assert planning.without_repeats(replace(made, seconds=None), draft, laid, few).seconds is None
