"""Limits and values of plans: what each number of a plan is made of, and what happens one step to either side of a limit."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_budget import listed
from test_plan import SPEEDS, ask
from test_speeds_limits import MORE, choice

import ivlite
from ivlite import ops
from ivlite.evaluate import synthetic
from ivlite.media import frames
from ivlite.plan import Plan, nearest, planner, work
from ivlite.plan import memory as needs
from ivlite.prompt import layout


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
    exact = needed.replace("5.00 GB", "5,000,000,000 bytes").format(
        "4,999,999,999 bytes are "
    )  # else they would read alike
    for most, words in ((5_000_000_000, ""), (4_999_999_999, exact)):
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
    short = {stage: 0.03 for stage in ("scan", "decode", "vision", "prefill")}
    assert (
        problem(planning, wait=0.1, seconds=short)
        == "the first token comes after 0.12 s and the wait is to be 0.1 s at most"
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
    (dict(problem="it takes too long"), True, "ask for less"), (dict(room=10, problem="it is too long"), False, "shorten the text"),
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
