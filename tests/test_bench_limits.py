"""What `ivlite bench` counts and prints, against sums by hand and a clock of the test's own."""

from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.cli import bench, probe
from ivlite.errors import UsageError
from ivlite.evaluate import synthetic

# tiny: hidden 128, layers 4, heads 4, rank 96, rope = nope = v 32, ffn 384, vocabulary 448; vision: depth 4, hidden 96, ffn 160, three DeepStack layers
LAYER = 128 * 4 * 64 + 128 * (96 + 32) + 4 * 64 * 96 + 4 * 32 * 128 + 3 * 128 * 384
BLOCK = 96 * 3 * 96 + 96 * 96 + 2 * 96 * 160
MERGER = 384 * 384 + 384 * 128


@pytest.fixture(scope="module")
def tiny():
    return synthetic.random_model("tiny", "q8_0", threads=1, context=256)


@pytest.mark.parametrize("before, prompt", [(0, 1), (0, 10), (100, 10), (7, 1)])
def test_operations_of_a_prompt(tiny, before, prompt):
    seen = sum(before + i + 1 for i in range(prompt))
    assert bench.prefill_ops(tiny, before, prompt) == 2 * (4 * LAYER * prompt + 448 * 128 + 4 * 4 * 96 * seen)


@pytest.mark.parametrize("patches", [4, 16, 64])
def test_operations_of_a_frame_pair(tiny, patches):
    tower = 4 * BLOCK + 96 * 3 * 2 * 16 * 16
    assert bench.vision_ops(tiny, patches) == 2 * (
        tower * patches + 2 * patches * patches * 96 * 4 + 4 * MERGER * patches // 4
    )


def test_bytes_of_a_token(tiny):
    weights = (4 * LAYER + 448 * 128) * 34 // 32
    for cached in (0, 1, 1000):
        assert bench.decode_bytes(tiny, cached) == weights + cached * 4 * (96 + 4 + 64)
    assert bench.head(tiny).name == "output.weight" and len(bench.matrices(tiny, "blk.0.", "blk.1.")) == 2 * len(
        bench.matrices(tiny, "blk.3.")
    )


def test_rates_of_a_stage():
    assert bench.computed(10, 4.0, 80, 40.0) == {
        "count": 10,
        "seconds": 4.0,
        "per_second": 2.5,
        "ops": 80,
        "ops_per_second": 20.0,
        "share": 0.5,
    }
    assert bench.computed(10, 4.0, 80, 0)["share"] is None
    assert bench.read([1.0, 4.0, 2.0], 100, [50.0, 25.0, 100.0]) == {
        "count": 3,
        "seconds": 7.0,
        "per_second": 0.5,
        "bytes": 100,
        "bytes_per_second": 50.0,
        "share": 1.0,
    }


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    return made


def test_limits_are_probed_beside_what_is_measured(clock, monkeypatch):
    peaks, reads = [(100, 7), (50, 9), (80, 1)], [10.0, 30.0, 20.0, 5.0]
    monkeypatch.setattr(probe, "peaks", lambda pool: peaks.pop(0))
    monkeypatch.setattr(probe, "read", lambda pool: reads.pop(0))
    limits = bench.Limits("pool")

    def spend(seconds):
        clock.now += seconds

    assert limits.timed(lambda: spend(2.5)) == (2.5, 75.0) and limits.peak() == 80
    took, at = limits.steps(lambda i: spend((0.06, 0.06, 0.01, 0.08, 0.02)[i]), 5)
    assert took == pytest.approx([0.06, 0.06, 0.01, 0.08, 0.02]) and at == [10, 10, 30, 30, 30] and len(reads) == 2
    assert limits.best() == {"read": 30.0, "int8": 100, "matrix": 9}
    assert limits.steps(lambda i: spend(0.11), 2)[1] == [20, 5]
    empty = bench.Limits("pool")
    empty.peaks = [(1, 2)]
    assert empty.best()["read"] == 0


@pytest.mark.parametrize("size, batches, shown, patches", [
    ((64, 32, 8), [[4]], [64, 32], 8), ((79, 47, 7), [[4]], [64, 32], 8), ((1, 1, 1), [[1]], [32, 32], 4), ((1024, 512, 5), [[1], [1], [1]], [1024, 512], 2048), ((512, 512, 5), [[2], [1]], [512, 512], 1024),
])  # fmt: skip
def test_frames_are_encoded_in_batches(tiny, clock, size, batches, shown, patches):
    calls = []

    def vision(batch, mean, std):
        assert batch[0].shape == (2, shown[1], shown[0], 3) and (mean, std) == ((0.5,) * 3,) * 2
        calls.append([len(batch)])
        clock.now += 0.5

    model = SimpleNamespace(config=tiny.config, network=SimpleNamespace(vision=vision, source=tiny.network.source))
    limits = bench.Limits(None)
    limits.peak = lambda: 1e9
    plan = SimpleNamespace(vision=lambda pairs, patches: (pairs, patches))
    got = bench.vision_stage(model, size, np.random.default_rng(0), limits, plan)
    pairs = -(-size[2] // 2)
    assert calls == batches * 2 and got["seconds"] == 0.5 * len(batches) and got["count"] == pairs
    assert (got["size"], got["patches"], got["planned"]) == (shown, patches, (pairs, patches)) and got[
        "ops"
    ] == pairs * bench.vision_ops(tiny, patches)


class Plan:
    def prefill(self, tokens, depth=0):
        return ("prefill", tokens, depth)

    def generate(self, tokens, depth):
        return ("generate", tokens, depth)


def test_stages_of_text_at_every_depth(tiny, monkeypatch):
    made = []

    class Runner:
        def __init__(self):
            self.cache, self.did = SimpleNamespace(), []
            made.append(self)

        def prefill(self, prompt):
            self.did.append(("prefill", prompt.token_ids))

        def step(self, token):
            self.did.append(("step", token))

    monkeypatch.setattr(synthetic, "fill", lambda cache, config, depth, *_: setattr(cache, "depth", depth))
    model = SimpleNamespace(config=tiny.config, network=tiny.network, runner=Runner, kv="q8")
    limits = SimpleNamespace(
        timed=lambda run: (run(), 4.0)[1:] + (10.0,),
        steps=lambda step, count: ([step(i) or 2.0 for i in range(count)], [5.0] * count),
    )
    stages = {"prefill": [], "decode": [], "question": []}
    bench.text_stages(model, SimpleNamespace(depth=(0, 100), prompt=3, new=5), [7, 8, 9], None, limits, Plan(), stages)
    for runner, depth, prefill, decode, question in zip(
        made, (0, 100), stages["prefill"], stages["decode"], stages["question"], strict=True
    ):
        asked = [7, 8, 9] * 8
        assert runner.cache.depth == depth
        assert runner.did == [("prefill", [7, 8, 9]), *(("step", t) for t in (7, 8, 9, 7, 8)), ("prefill", asked)]
        assert prefill == bench.computed(3, 4.0, bench.prefill_ops(tiny, depth, 3), 10.0) | {
            "depth": depth,
            "planned": ("prefill", 3, depth),
        }
        assert decode == bench.read([2.0] * 5, bench.decode_bytes(tiny, depth + 3 + 2), [5.0] * 5) | {
            "depth": depth + 3,
            "planned": ("generate", 6, depth + 3),
        }
        assert question == bench.computed(24, 4.0, bench.prefill_ops(tiny, depth + 8, 24), 10.0) | {
            "depth": depth + 8, "planned": ("prefill", 24, depth + 8), "first": ("prefill", depth + 8, 0),
        }  # fmt: skip


def stage(seconds, planned, count=10, depth=0, **more):
    return (
        dict(
            count=count,
            seconds=seconds,
            per_second=count / seconds,
            ops=1,
            ops_per_second=2.5e11,
            share=0.456,
            depth=depth,
            planned=planned,
        )
        | more
    )


def test_what_is_printed():
    step = stage(4.0, 2.0, 8, 512) | {"bytes": 1, "bytes_per_second": 3.25e10}
    del step["ops_per_second"], step["ops"]
    facts = dict(
        model="tiny", weights=5_310_000_000, kv="q8", load_seconds=1.26, machine={"cpu": "A", "threads": 3, "isa": "avx2"}, limits={"read": 4.04e10, "int8": 5.5e11, "matrix": 0},
        prefill=[stage(2.0, 1.0, 1512), stage(8.0, 8.4, 1512, 4096)], decode=[step], question=[stage(0.5, 0.6, 24, 5000, first=40.2)], vision=None, peak_memory=6_040_000_000,
    )  # fmt: skip
    text = list(bench.lines(facts))
    assert text[0] == "tiny, 5.31 GB of weights, q8 cache, ready in 1.3 s" and text[1] == "A, 3 threads, avx2"
    assert text[2] == "probed here, at best: memory 40.4 GB/s, int8 550 GOPS" and text[3] == ""
    assert text[4].split() == ["seconds", "planned", "per", "second", "reached", "of", "the", "probe"]
    table = [line.split() for line in text[5:9]]
    assert table[0][:4] == ["prefill", "1,512", "tokens", "2.000"] and table[1][:5] == [
        "prefill",
        "1,512",
        "tokens",
        "after",
        "4,096",
    ]
    assert table[2][:5] == ["decode", "8", "tokens", "after", "512"] and table[3][:4] == [
        "second",
        "question",
        "after",
        "5,000",
    ]
    assert "250" in text[5] and "32.5" in text[7] and all("46 %" in line for line in text[5:9])
    assert text[9:] == [
        "", "prefill after 4,096 tokens is 0.25 of the speed after 0",
        "a second question after 5,000 tokens takes 0.50 s to its first token, 80 x less than these do by plan (40 s)",
        "planned seconds are 0.50 to 1.20 of those measured", "peak memory 6.04 GB",
    ]  # fmt: skip
    facts["limits"]["matrix"], facts["vision"] = 1.2345e12, stage(3.0, 9.0, 1, size=[320, 352])
    seen = list(bench.lines(facts))
    assert (
        seen[2].endswith("int8 550 GOPS, matrix unit 1234 GOPS")
        and seen[9].startswith("vision, a pair of 320x352")
        and "0.50 to 3.00" in seen[-2]
    )
    facts["vision"]["count"] = 4
    assert list(bench.lines(facts))[9].startswith("vision, 4 pairs of 320x352")


def test_a_bench_wants_one_model():
    args = dict(file=None, random=None, type=None)
    for change in ({}, {"file": "a", "random": "8b"}, {"file": "a", "type": "q4_0"}):
        with pytest.raises(UsageError):
            bench.run(SimpleNamespace(**args | change))
