"""What a question is said to cost: frames, tokens, memory, seconds; limits; what is kept of a machine's speed."""

import io
import json
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made_videos import numbered
from test_budget import listed, packed

import ivlite
from ivlite import plan, prompt
from ivlite.cli import answer
from ivlite.cli.plan import lines
from ivlite.cli.progress import Progress
from ivlite.engine.vision import SEEN
from ivlite.errors import UsageError
from ivlite.evaluate import synthetic
from ivlite.media import lanes, pace, video
from ivlite.plan import measure, store
from ivlite.plan.speeds import Speeds, fitted

SPEEDS = Speeds(token=1e-2, seen=1e-6, expanded=1e-5, step=0.1, step_seen=1e-6, patch=1e-3, patch_seen=1e-7, byte=1e-9)


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory, monkeypatch):
    """A folder for what is kept, apart from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def demo():
    model = ivlite.load("demo")
    model._planning()._speeds = SPEEDS
    return model


def ask(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What happens?"}]}]


# ------------------------------------------------------------------------------------------------ the cost


def test_seconds_follow_from_speeds():
    assert SPEEDS.prefill(100) == pytest.approx(100 * 1e-2 + 1e-6 * 5050 + 1e-5 * 100)
    whole = SPEEDS.prefill(6000)
    assert whole == pytest.approx(SPEEDS.prefill(2048) + SPEEDS.prefill(2048, 2048) + SPEEDS.prefill(1904, 4096))
    assert SPEEDS.prefill(100, 5000) > SPEEDS.prefill(100)
    assert SPEEDS.generate(1, 50) == 0 and SPEEDS.generate(11, 1000) == pytest.approx(10 * (0.1 + 1e-6 * 1005))
    assert SPEEDS.vision(3, 100) == pytest.approx(3 * (100 * 1e-3 + 1e-7 * 100 * 100))
    assert replace(SPEEDS, each=2.0).prefill(5000) == pytest.approx(SPEEDS.prefill(5000) + 6)
    twice = replace(SPEEDS, ratios={"prefill": 2.0})
    assert twice.prefill(6000) == pytest.approx(2 * whole) and twice.vision(1, 9) == SPEEDS.vision(1, 9)


def test_coefficients_are_found_and_none_is_negative():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows, true = rng.uniform(1, 1000, (3, 3)), rng.uniform(0, 1, 3) * rng.integers(0, 2, 3)
        took = rows @ true
        if (took > 0).all():
            assert fitted(rows, took) == pytest.approx(true, abs=1e-6)
            assert min(fitted(rows, took * rng.uniform(0.7, 1.4, 3))) >= 0


def test_real_runs_correct_the_speeds():
    speeds, planned = SPEEDS, {"decode": 1.0, "vision": 2.0, "prefill": 10.0, "generate": 0.01}
    for _ in range(6):  # what is planned follows the ratio
        before = {stage: value * speeds.ratio(stage) for stage, value in planned.items()}
        speeds = speeds.corrected(before, {"decode": 1.0, "vision": 1.0, "prefill": 15.0, "generate": 0.02})
    assert speeds.ratio("prefill") == pytest.approx(1.5, rel=0.03) and speeds.ratio("vision") == pytest.approx(
        0.5, rel=0.03
    )
    assert speeds.ratio("decode") == 1 and "generate" not in speeds.ratios  # too short to say anything
    disturbed = speeds.corrected(planned, {"prefill": 1e5, "vision": 0.0, "decode": 1.0})
    assert disturbed.ratio("prefill") == speeds.ratio("prefill") and disturbed.ratio("vision") == speeds.ratio("vision")


# ------------------------------------------------------------------------------------------------ plans


def test_a_plan_counts_what_the_prompt_has(demo):
    messages = ask(listed(40, fps=2), {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)})
    made, built = demo.plan(messages, max_new_tokens=50), demo.prepare(messages)
    assert (made.prompt_tokens, made.images, made.fits) == (len(built.token_ids), 1, True)
    assert made.vision_tokens == sum(count for _, _, count in built.spans)
    assert made.cache_bytes == (made.prompt_tokens + 50) * 980 and made.weight_bytes >= 6_500_000
    assert made.peak_memory > made.weight_bytes + made.cache_bytes
    assert made.seconds["prefill"] == pytest.approx(SPEEDS.prefill(made.prompt_tokens))
    assert made.wait == pytest.approx(sum(s for stage, s in made.seconds.items() if stage != "generate"))
    data = json.loads(json.dumps(made.as_data(), allow_nan=False))
    assert data["videos"][0]["frames"] == 16 and data["wait"] == round(made.wait, 3)


def test_the_line_says_what_was_left_open(demo):
    line = demo.plan(ask(listed(600, fps=2))).line()
    assert line.startswith("16 of 600 possible frames, one every 20.0 s: 32 tokens, about ")
    assert "; --budget 2k takes them all" in line
    all_of_them = demo.plan(ask(listed(600, fps=2)), budget=1200)
    assert all_of_them.videos[0].frames == 600 and "possible" not in all_of_them.line()
    many = demo.plan(ask(listed(6000, fps=2))).line()
    taken = int(many.rsplit("takes ", 1)[1].replace(",", ""))
    budget = many.rsplit("--budget ", 1)[1].split(" ")[0]
    budget = int(budget[:-1]) * 1024 if budget.endswith("k") else int(budget)
    more = demo.plan(ask(listed(6000, fps=2)), budget=budget)
    assert more.fits and more.videos[0].frames == taken and more.videos[0].by == "budget"
    two = demo.plan(ask(listed(2, fps=2), listed(700, fps=2))).line()
    assert two.startswith("18 frames (<2 frames>: 2 of 2, <700 frames>: 16 of 700 possible): 36 tokens, about ")
    assert demo.plan(ask()).line().startswith(f"{demo.plan(ask()).prompt_tokens} tokens, about ")


@pytest.mark.parametrize(
    "more", [{"max_wait": 8.0}, {"memory": 115_000_000}, {"max_wait": 20.0, "memory": 115_000_000}]
)
def test_limits_are_kept_by_thinning_what_is_open(demo, instant, more):
    free = demo.plan(ask(listed(3000, fps=2), listed(900, fps=2)), budget=5000)
    made = demo.plan(ask(listed(3000, fps=2), listed(900, fps=2)), budget=5000, **more)
    assert made.fits and made.prompt_tokens < free.prompt_tokens and made.videos[0].by == "limit"
    assert made.wait <= more.get("max_wait", math.inf) and made.peak_memory <= more.get("memory", math.inf)
    near = [made.wait / more[name] if name == "max_wait" else made.peak_memory / more[name] for name in more]
    assert max(near) > 0.95 and made.videos[0].frames > 2 * made.videos[1].frames


def test_limits_that_cannot_be_kept_are_refused_with_the_numbers(demo, instant):
    made = demo.plan(ask(listed(3000, fps=2)), max_wait=0.001)
    assert not made.fits and "and the wait is to be 0.001 s at most" in made.problem and not made.nearest
    stated = demo.plan(ask(listed(3000, fps=2, max_frames=600)), max_wait=8.0)
    assert not stated.fits and stated.videos[0].frames == 600 and "the first token comes after" in stated.problem
    (fewer, *_) = stated.nearest
    again = demo.plan(ask(listed(3000, fps=2, **fewer.settings)), max_wait=8.0)
    assert 6 < again.wait < 9 and fewer.flag == f"--max-frames {fewer.settings['max_frames']}"
    small = demo.plan(ask(listed(30)), memory=10_000_000)
    assert not small.fits and "of memory are needed" in small.problem and "10 MB are stated" in small.problem


def test_what_is_stated_beyond_the_context_names_what_fits():
    model = ivlite.load("demo", context=1000)
    frames = [np.zeros((96, 96, 3), np.uint8)] * 400  # 9 tokens, or fewer
    video = {"type": "video", "video": frames, "fps": 2, "max_frames": 150, "max_pixels": 96 * 96}
    made = model.plan(ask(video), max_new_tokens=100)
    assert (
        not made.fits and f"{made.prompt_tokens:,} tokens" in made.problem and "the context holds 1,000" in made.problem
    )
    assert {next(iter(s.settings)) for s in made.nearest} == {"max_frames", "max_pixels"}
    for setting in made.nearest:
        again = model.plan(ask(video | setting.settings), max_new_tokens=100)
        assert again.fits and again.prompt_tokens + 100 <= 1000 and abs(again.prompt_tokens - setting.tokens) < 20


def test_an_estimate_refuses_nothing(tmp_path):
    """A clock that jumps makes a file seem longer than it is, and plans to seem too large."""
    moments = [40 * n + 12_000 * (n >= 100) for n in range(200)]
    path = numbered(tmp_path / "a.ts", 200, times=moments, options={"bf": "0"}, size=(480, 640), gop=1)
    video = {"type": "video", "video": str(path), "fps": 25, "max_frames": 5000, "max_pixels": 1024}
    limits = dict(max_new_tokens=10)
    guess = ivlite.load("demo").plan(ask(video), **limits)
    need = ivlite.load("demo").prepare(ask(video))
    assert guess.videos[0].estimated and guess.prompt_tokens > 1.5 * len(need.token_ids)
    made = ivlite.load("demo", context=len(need.token_ids) + 100).plan(ask(video), **limits)
    assert made.fits and not made.videos[0].estimated and made.prompt_tokens == len(need.token_ids)
    small = ivlite.load("demo").plan(ask(video), budget=made.videos[0].tokens, **limits)
    assert small.fits and small.prompt_tokens == made.prompt_tokens
    told = "\n".join(lines(guess)), "\n".join(lines(made))
    assert "(as stated, estimated)" in told[0] and "estimated" not in told[1]


def changed(parts, setting):
    """Parts of a message with a setting of a plan, as a flag states it for all videos."""
    return [
        part | {name: min(value, part.get(name, value)) for name, value in setting.settings.items()} for part in parts
    ]


@pytest.mark.parametrize("answer, budget", [(50, None), (50, 3000), (9999, None)])
def test_flags_that_are_named_fit_with_videos_that_were_open(demo, tmp_path, answer, budget):
    """--max-frames states the number of all videos: one that was thinned to the file's most gets more frames than before."""
    files = [str(numbered(tmp_path / f"{n}.mkv", 400, rate=20)) for n in range(3)]
    parts = [{"type": "video", "video": file} for file in files] + [listed(900, fps=2, max_frames=900)]
    settings = {"max_new_tokens": answer, "budget": budget}
    few = [part | {"max_frames": 30} for part in parts]
    settings["memory"] = demo.plan(ask(*few), **settings).peak_memory + 20_000
    made = demo.plan(ask(*parts), **settings)
    assert not made.fits
    fewer = next(s for s in made.nearest if "max_frames" in s.settings)
    got = demo.plan(ask(*changed(parts, fewer)), **settings)
    assert got.fits and sum(video.frames for video in got.videos) == fewer.frames >= 4 * 28
    assert got.prompt_tokens == pytest.approx(fewer.tokens, rel=0.05)  # time marks have more or fewer digits


@pytest.mark.parametrize("context, most", [(500, 5), (1000, 1), (2000, 1), (4096, 1)])
def test_what_is_named_for_a_long_video_fits_to_the_token(tmp_path, context, most):
    """Its time marks get longer: some frames of all of it take more tokens than as many of its beginning."""
    model = ivlite.load("demo", context=context)
    model._planning()._speeds = SPEEDS
    part = {"type": "video", "video": str(packed(tmp_path / "a.mkv", 24 * 60, 1))}
    for stated in ({"fps": 1}, {}):
        made = model.plan(ask(part | stated), max_new_tokens=most)
        named = [s for s in made.nearest if "max_pixels" not in s.settings]
        assert made.fits is not bool(stated) and named
        for setting in named:
            got = model.plan(ask(part | setting.settings) if stated else ask(part), max_new_tokens=most,
                             budget=setting.settings.get("budget"))  # fmt: skip
            assert got.fits and got.videos[0].frames == setting.frames and got.prompt_tokens == setting.tokens


def test_plans_of_a_day_are_made_at_once(demo, tmp_path):
    path = packed(tmp_path / "a.mkv", 24 * 60, 1)
    made = demo.plan(ask({"type": "video", "video": str(path)}))
    assert made.videos[0].estimated and made.videos[0].frames == 16 and made.seconds["scan"] > 0
    built = demo.prepare(ask({"type": "video", "video": str(path)}))
    assert not built.choices[0].estimated and built.choices[0].frames == 16


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif"])
@pytest.mark.parametrize("count", [1, 2, 30, 400])
def test_decoding_is_timed_on_a_moment_of_it(demo, tmp_path, name, count):
    if name == "a.gif" and count > 30:
        pytest.skip("all frames of an animated image are decoded")
    codec = dict(codec="gif", pix_fmt="rgb8", rate=10) if name == "a.gif" else dict(codec="mpeg4")
    part = {"type": "video", "video": str(numbered(tmp_path / name, count, **codec))}
    for more in ({}, {"fps": 25}, {"fps": 0.5}, {"nframes": min(2, count)}):
        made = demo.plan(ask(part | more), max_new_tokens=5)
        assert 0 < made.seconds["decode"] < math.inf and made.fits
        assert made.videos[0].frames == len(demo.prepare(ask(part | more)).frames[0])


class Opened:
    """A video whose decoders open a file for `opening` seconds each and decode a picture in `each`, by a clock of its own."""

    def __init__(self, clock, frames, count, opening, each):
        self.clock, self.frames, self.opened, self.decoded = clock, frames, (opening, each, count), False

    def decoders(self):
        return self.opened[2], 1, 0

    def pictures(self):
        (opening, each, count), self.decoded = self.opened, True
        for n in range(len(self.frames)):
            if n % count == 0:  # they work side by side
                self.clock.now += each + (opening if n == 0 else 0)
            yield None


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("wanted", [1, 2, 5, 16, 200])
@pytest.mark.parametrize("opening", [0.0, 0.6])
def test_files_are_opened_once_by_each_decoder(monkeypatch, count, wanted, opening):
    """The index of a day is read once, however many frames are wanted: sixteen of them took 5 s by the plan, and 0.8."""
    clock = Clock()
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock.now)
    chosen, opened = np.arange(wanted) * 1000, []

    def video(some):
        opened.append(Opened(clock, some, count, opening, 0.01))
        return opened[-1]

    timed = pace.Pace(video, 0, 10**6, np.arange(0, 10**6, 100), 64 * 64)
    said, before = timed.seconds(chosen, (64, 64)), clock.now
    for _ in Opened(clock, chosen, count, opening, 0.01).pictures():
        pass
    if wanted > 1:
        assert said == pytest.approx(clock.now - before, rel=0.3) and sum(o.decoded for o in opened) == 1
    assert timed.seconds(chosen, (64, 64)) == said and sum(o.decoded for o in opened) <= 2  # measured once


def test_a_disturbed_moment_does_not_make_frames_slower_to_decode_than_to_show(monkeypatch):
    """Another process took the core while frames far apart were timed: 380 s were planned for 13."""
    clock = Clock()
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock.now)

    def opened(some):
        return Opened(clock, some, 1, 0.0, 0.01 if some[1] - some[0] == 1 else 1.0)

    chosen = np.arange(0, 18_000, 45)
    said = pace.Pace(opened, 0, 18_000, np.zeros(1, np.int64), 1 << 21).seconds(chosen, (64, 64))
    assert said == pytest.approx(0.01 * 18_000, rel=0.05)


def test_opening_files_is_part_of_the_plan(demo, tmp_path, monkeypatch):
    """The index of a file of a day takes longer than the sixteen frames: 0.01 s were planned for 0.6."""
    read, began = video.indexed, time.perf_counter()
    monkeypatch.setattr(video, "indexed", lambda *args: (time.sleep(0.2), read(*args))[1])
    made = demo.plan(ask({"type": "video", "video": str(numbered(tmp_path / "a.mp4", 30))}))
    assert 0.2 <= made.seconds["scan"] < time.perf_counter() - began and made.wait > 0.2


# ------------------------------------------------------------------------------------------------ memory


def test_memory_of_features_files_and_decoders_is_counted(demo, monkeypatch):
    planner, vision = demo._planning(), demo.config.vision
    row = 4 * vision.out_hidden_size * (1 + len(vision.deepstack_indexes))
    assert planner.peak(100, 200, 64) - planner.peak(100, 200) > 64 * row
    assert planner.peak(100, 200, 1 << 30) - planner.peak(100, 200, 1 << 20) == SEEN - min(SEEN, row << 20) == 0
    assert planner.peak(100, 200, 0, 5 << 20) - planner.peak(100, 200) == 5 << 20
    monkeypatch.setattr(lanes, "processors", lambda: 2)

    def taken(frames, shape, wanted):
        times = SimpleNamespace(times=np.empty(frames), keys=np.arange(0, frames, 50), seekable=True)
        count, _, size = lanes.decoders(times, wanted, lanes.split(times, wanted), shape, (64, 64))
        return count, size / 1e6

    sparse, every = list(range(0, 400_000, 25_000)), list(range(200))
    assert taken(432_000, (64, 64), sparse) == (2, pytest.approx(2 * 432_000 * lanes.ENTRY * 1e-6, rel=0.1))
    assert taken(10_000_000, (64, 64), sparse) == (1, pytest.approx(10_000_000 * lanes.ENTRY * 1e-6, rel=0.1))
    assert taken(18_000, (1080, 1920), sparse[:1]) == (
        1,
        pytest.approx(18_000 * lanes.ENTRY * 1e-6 + 24 * 3.1, rel=0.1),
    )  # 10 of them are resized
    assert taken(18_000, (1080, 1920), every)[0] == 1


def test_memory_of_a_long_file_is_planned(demo, tmp_path):
    """Its index is in memory once for each decoder; where nothing is decoded, once."""
    short, long = (str(packed(tmp_path / f"{n}.mp4", n, 5)) for n in (200, 20_000))
    made = [demo.plan(ask({"type": "video", "video": path}), max_new_tokens=9) for path in (short, long)]
    more = made[1].peak_memory - made[0].peak_memory
    assert 19_000 * 90 < more < 20_000 * lanes.ENTRY * 9
    demo.chat(ask({"type": "video", "video": long}), max_new_tokens=1)
    held = demo.plan(ask({"type": "video", "video": long}), max_new_tokens=9)
    assert held.held > 0 and held.peak_memory <= made[1].peak_memory
    limited = demo.plan(ask({"type": "video", "video": long}), max_new_tokens=9, memory=made[1].peak_memory)
    assert limited.fits and limited.videos == made[1].videos


def test_a_long_file_takes_no_more_memory_than_planned(tmp_path):
    """200,000 frames beside 200, each in a process of its own whose most bytes are counted, which a tracer may have more of."""
    code = (
        "import sys, ivlite; from ivlite.machine import peak_memory\n"
        "with ivlite.load('demo') as model:\n"
        "    reply = model.chat([{'role': 'user', 'content': [{'type': 'video', 'video': sys.argv[1]}]}], max_new_tokens=2)\n"
        "print(reply.plan.peak_memory, peak_memory())"
    )
    found = []
    for count in (200, 200_000):
        path = str(packed(tmp_path / f"{count}.mp4", count, 50))
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        found.append(np.array(done.stdout.split(), np.int64))
    planned, taken = found[1] - found[0]
    assert planned / 2 < taken <= planned


@pytest.mark.parametrize(
    "name, value", [("budget", 0), ("max_wait", 0), ("max_wait", "2m"), ("memory", -1), ("memory", 1.5)]
)
def test_limits_that_are_none(demo, name, value):
    with pytest.raises(UsageError, match=name):
        demo.plan(ask(listed(4)), **{name: value})


# ------------------------------------------------------------------------------------------------ the machine


def test_the_speed_is_measured_once_and_kept(own_folder, monkeypatch):
    calls = []
    found = measure.speeds
    monkeypatch.setattr(measure, "speeds", lambda *args: calls.append(1) or found(*args))
    model = synthetic.random_model("tiny", "q8_0", threads=1)
    planner = model._planning()
    first = planner.speeds()
    assert calls == [1] and all(v >= 0 and math.isfinite(v) for n, v in vars(first).items() if n != "ratios")
    assert first.token > 0 and first.step > 0 and first.patch > 0
    again = synthetic.random_model("tiny", "q8_0", threads=1)._planning()
    assert again.speeds() == first and calls == [1] and again.name == planner.name
    assert synthetic.random_model("tiny", "q4_0", threads=1)._planning().name != planner.name
    assert synthetic.random_model("tiny", "q8_0", threads=1, kv="f16")._planning().name != planner.name


def test_another_build_of_the_kernels_is_measured_anew(monkeypatch, tmp_path):
    name = store.key({}, 1, "q8")
    assert name == store.key({}, 1, "q8")
    other = tmp_path / "other.so"
    other.write_bytes(b"another build")
    monkeypatch.setattr(ivlite._C, "__file__", str(other))
    assert store.key({}, 1, "q8") != name


def test_a_file_of_speeds_that_is_damaged_is_measured_again(own_folder):
    store.save("a", SPEEDS)
    (path,) = (own_folder / "ivlite" / store.FOLDER).iterdir()
    assert path.name == "a.json" and store.load("a") == SPEEDS and store.load("b") is None
    good = json.loads(path.read_text())
    for text in ("", "{", "[]", "null", '{"version": 1}', "[" * 10_000, path.read_text()[:-3]):
        path.write_text(text)
        assert store.load("a") is None
    for name in good["speeds"]:
        for value in (None, -1, "x", float("nan"), float("inf"), True, [1], 1e300):
            path.write_text(json.dumps({"version": 1, "speeds": good["speeds"] | {name: value}}))
            assert store.load("a") is None
    for ratio in (0, -1, 1e9, "x", None):
        path.write_text(json.dumps({"version": 1, "speeds": good["speeds"] | {"ratios": {"prefill": ratio}}}))
        assert store.load("a") is None
    path.write_text(json.dumps(good | {"version": 2}))
    assert store.load("a") is None


def test_without_a_folder_it_plans_as_well(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no such folder")
    store.save("a", SPEEDS)
    assert store.load("a") is None
    assert ivlite.load("demo").plan(ask(listed(4))).seconds is not None


def test_words_for_times():
    assert [plan.about(s) for s in (0.2, 12.4, 89, 240, 89 * 60, 5000, 90 * 60)] == [
        "1 s", "12 s", "89 s", "4 min", "89 min", "83 min", "1 h 30 min",
    ]  # fmt: skip
    assert prompt.BUDGET == 16384


# ------------------------------------------------------------------------------------------------ while it runs


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_time_left_follows_the_plan(demo):
    """Prefill gets slower as it goes on: half of the tokens are done long before half of the time."""
    made = replace(demo.plan(ask(listed(4))), seconds={"decode": 0.0, "vision": 20.0, "prefill": 100.0}, linear=0.2)
    clock, out = Clock(), io.StringIO()
    progress = Progress(True, out, clock)

    def left():
        clock.now += 0.2
        progress("prefill", *progress.stages["prefill"])
        return int(re.findall(r"(\d+):(\d+) left|(\d+) s left", out.getvalue())[-1][-1] or 0) or sum(
            int(n) * f for n, f in zip(re.findall(r"(\d+):(\d+) left", out.getvalue())[-1], (60, 1), strict=True)
        )

    progress.expect(made)
    progress("prefill", 0, 1000)
    clock.now = 50.6  # as planned: 10 of vision, 40.8 of prefill
    progress("vision", 5, 10)
    progress("prefill", 600, 1000)
    assert left() == pytest.approx(69, abs=2)  # the mean so far would say 32
    clock.now = 100.0  # at half of the pace
    assert left() > 110


def test_what_was_planned_is_told_beside_what_happened(demo):
    reply = demo.chat(ask(listed(8)), max_new_tokens=4, temperature=0)
    plan, took = reply.plan, reply.plan.took
    assert took["prompt_tokens"] == plan.prompt_tokens and took["new_tokens"] == len(reply.token_ids)
    assert {"scan", "decode", "vision", "prefill", "generate"} <= took["seconds"].keys()
    assert "planned" not in answer.closing_line(reply)
    long = replace(plan, seconds=plan.seconds | {"prefill": 61.0})
    took = {**took, "seconds": {"scan": 1, "decode": 2.0, "vision": 3.0, "prefill": 60.0, "generate": 9.0}}
    reply.plan = replace(long, took=took)
    assert re.search(r"planned 1:0\d and took 1:06 to the first token", answer.closing_line(reply))
    json.dumps(reply.plan.as_data(), allow_nan=False)


def test_a_run_corrects_what_is_kept(demo, own_folder):
    planner = demo._planning()
    planner._speeds = Speeds(*[1e-9] * 7)
    made = replace(demo.plan(ask(listed(4))), seconds={"vision": 1.0, "prefill": 2.0, "generate": 0.0, "decode": 0.0})
    planner.record(made, {"vision": 2.0, "prefill": 2.0, "generate": 0.0, "decode": 0.1}, 0, 5)
    assert (
        planner.speeds().ratio("vision") == pytest.approx(math.sqrt(2)) and store.load(planner.name) == planner.speeds()
    )
    planner.record(made, {"vision": 0.5, "prefill": 0.1, "generate": 0.0, "decode": 0.1}, made.prompt_tokens - 1, 5)
    assert planner.speeds().ratio("vision") == pytest.approx(math.sqrt(2))  # most was reused
