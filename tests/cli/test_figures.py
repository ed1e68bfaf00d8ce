"""The figures that bench, doctor, eval, verify, inspect and quantize print, from data of which the answer is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.cli import bench, calibrate, doctor, inspect, probe, verify
from ivlite.cli import eval as judge
from ivlite.errors import sentence, shown
from ivlite.evaluate import synthetic
from ivlite.quantize import cli as quantize
from ivlite.quantize.golden import Stage

# ------------------------------------------------------------------------------------------------ bench


@pytest.fixture(scope="module")
def tiny():
    return synthetic.random_model("tiny", "q8_0", threads=1, context=64)


def test_bytes_and_operations_are_those_of_the_shapes(tiny):
    """Counted here from the configuration, by hand: 4 layers, 4 heads of 32, rank 96, width 128, MLP 384."""
    q, kv_a, kv_b, out, mlp = 4 * 64 * 128, (96 + 32) * 128, 4 * 64 * 96, 128 * 128, 3 * 384 * 128
    layers, head = 4 * (q + kv_a + kv_b + out + mlp), 448 * 128
    assert sum(math.prod(t.shape) for t in bench.matrices(tiny, "blk.")) == layers
    assert bench.decode_bytes(tiny, 10) == (layers + head) * 34 // 32 + 10 * 4 * (96 + 4 + 32 * 2)
    assert bench.prefill_ops(tiny, 0, 1) == 2 * (layers + head + 4 * (32 + 32 + 32) * 4)
    assert bench.prefill_ops(tiny, 5, 3) - 2 * (3 * layers + head) == 2 * 4 * 96 * 4 * (6 + 7 + 8)
    tower, merger = 4 * (4 * 96 * 96 + 2 * 96 * 160) + 2 * 3 * 16 * 16 * 96, 4 * ((4 * 96) ** 2 + 4 * 96 * 128)
    assert bench.vision_ops(tiny, 8) == 2 * (tower * 8 + 2 * 8 * 8 * 96 * 4 + merger * 2)


def test_a_pair_has_the_usual_size(tiny):
    assert synthetic.usual_pair(tiny.config) == (352, 352, 2)
    assert synthetic.usual_pair(synthetic.config("8b")) == (352, 352, 2)


def test_text_of_a_prompt():
    made = synthetic.text_prompt([5, 6, 7])
    assert made.token_ids == [5, 6, 7] and made.next_position == 3 and not made.media and not made.spans
    assert made.positions.tolist() == [[0, 1, 2]] * 3 and made.grid_thw.shape == (0, 3)


def test_a_cache_is_filled_to_its_depth(tiny):
    runner = tiny.runner(64)
    synthetic.fill(runner.cache, tiny.config, 50, np.random.default_rng(0))
    assert runner.cache.length == 50


def test_rates_of_stages():
    made = bench.computed(10, 4.0, 100.0, 50.0)
    assert made == {"count": 10, "seconds": 4.0, "per_second": 2.5, "ops": 100.0, "ops_per_second": 25.0, "share": 0.5}
    assert bench.computed(1, 1.0, 1.0, 0)["share"] is None
    made = bench.read([1.0, 2.0, 30.0], 60, [60.0, 60.0, 2.0])
    assert made == {"count": 3, "seconds": 33.0, "per_second": 0.5, "bytes": 60, "bytes_per_second": 30.0, "share": 1.0}


def test_limits_are_probed_beside_what_they_limit(monkeypatch):
    peaks = iter([(10.0, 1.0), (30.0, 5.0), (20.0, 3.0)])
    reads = iter([7.0, 9.0, 8.0])
    monkeypatch.setattr(probe, "peaks", lambda pool: next(peaks))
    monkeypatch.setattr(probe, "read", lambda pool: next(reads))
    limits = bench.Limits(None)
    seconds, rate = limits.timed(lambda: None)
    assert 0 <= seconds < 1 and rate == 20.0 and limits.peak() == 20.0
    now = iter(np.arange(0, 100, 0.0625))  # each look at the clock is a sixteenth of a second later
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    took, beside = limits.steps(lambda i: None, 3)
    assert took == [0.0625] * 3 and beside == [7.0, 9.0, 8.0]
    assert limits.best() == {"read": 9.0, "int8": 30.0, "matrix": 5.0}


def test_the_report_of_bench():
    stage = {"count": 1000, "seconds": 2.0, "per_second": 500.0, "depth": 4096, "planned": 1.5}
    facts = {
        "model": "m", "weights": 5e9, "kv": "q8", "load_seconds": 1.25, "peak_memory": 6e9,
        "machine": {"cpu": "C", "threads": 2, "isa": "avx2"}, "limits": {"read": 35.06e9, "int8": 1.2e12, "matrix": 0},
        "prefill": [stage | {"ops_per_second": 1.5e9, "share": None}],
        "decode": [stage | {"bytes_per_second": 30e9, "share": 0.855}],
        "question": [stage | {"ops_per_second": 1e9, "share": 0.25, "first": 61.0, "planned": 2.5}],
        "vision": stage | {"count": 1, "ops_per_second": 2e9, "share": 0.5, "size": [64, 32]},
    }  # fmt: skip
    text = list(bench.lines(facts))
    assert text[0] == "m, 5.00 GB of weights, q8 cache, ready in 1.2 s" and text[1] == "C, 2 threads, avx2"
    assert text[2] == "probed here, at best: memory 35.1 GB/s, int8 1200 GOPS"
    assert text[5].split() == "prefill 1,000 tokens after 4,096 2.000 1.500 500.00 tokens 1.5 GOPS -".split()
    assert text[6].split() == "decode 1,000 tokens after 4,096 2.000 1.500 500.00 tokens 30.0 GB/s 86 %".split()
    assert text[7].split() == "second question after 4,096 2.000 2.500 500.00 tokens 1.0 GOPS 25 %".split()
    assert text[8].split() == "vision, a pair of 64x32 2.000 1.500 500.00 pairs 2.0 GOPS 50 %".split()
    assert text[-1] == "peak memory 6.00 GB" and len({len(line) for line in text[4:9]}) == 1
    assert text[-2] == "planned seconds are 0.75 to 1.25 of those measured"
    assert text[-3].startswith("a second question after 4,096 tokens takes 2.00 s") and "30 x less" in text[-3]
    facts["vision"]["count"], facts["prefill"][0]["depth"], facts["limits"]["matrix"] = 2, 0, 3e12
    text = list(bench.lines(facts))
    assert text[2].endswith(", matrix unit 3000 GOPS") and text[5].startswith("prefill 1,000 tokens   ")
    assert text[8].startswith("vision, 2 pairs of 64x32 ")


# ------------------------------------------------------------------------------------------------ doctor

CUDA = {"built": False, "driver": None, "cards": [], "problem": "no kernels"}
CARD = {
    "name": "NVIDIA L4",
    "capability": "8.9",
    "memory": 24 << 30,
    "multiprocessors": 58,
    "kernels": True,
    "problem": None,
}
OLD = CARD | {"name": "Tesla V100", "capability": "7.0", "kernels": False, "problem": "too old"}
WELL = {
    "ivlite": "1", "python": "3", "system": "S", "cpu": "C", "threads": 2, "isa": "avx2", "isas": ["ref", "avx2"],
    "physical_cores": 2, "affinity": 4, "cpu_quota": None, "memory_total": 16e9, "memory_available": 8e9,
    "huge_pages": "madvise", "limits": {"read": 35.06e9, "int8": 1.2e12}, "cuda": CUDA, "packages": {"numpy": "2"}, "wanting": [],
    "ffmpeg": {}, "advice": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, None), ({"physical_cores": None}, None), ({"memory_available": None}, None), ({"cpu_quota": 2.0}, None),
        ({"cpu_quota": 2.5, "threads": 2}, None), ({"huge_pages": None}, None),
        ({"isas": ["ref"], "isa": "ref"}, "neither AVX2"), ({"isa": "ref"}, "unset it"),
        ({"cpu_quota": 1.5}, "1.5 processors and ivlite takes 2 threads: set IVLITE_NUM_THREADS=1"),
        ({"cpu_quota": 0.5}, "IVLITE_NUM_THREADS=1"), ({"threads": 3}, "3 threads on 2 usable cores"),
        ({"huge_pages": "never"}, "huge pages are off"), ({"memory_available": 7.96e9}, "8.0 GB of memory are free"),
        ({"wanting": ["the package av is missing: pip install av"]}, "pip install av"),
        ({"cuda": CUDA | {"built": True, "problem": "there is no NVIDIA driver here"}}, None),
        ({"cuda": CUDA | {"driver": "550.54"}}, "the card cannot be used: no kernels"),
        ({"cuda": CUDA | {"built": True, "driver": "13.0", "cards": [CARD], "problem": None}}, None),
        ({"cuda": CUDA | {"built": True, "driver": "13.0", "cards": [OLD], "problem": "too old"}}, "the card cannot be used: too old"),
        ({"cuda": CUDA | {"built": True, "driver": "13.0", "cards": [CARD, OLD], "problem": None}}, "cuda:1 cannot be used: too old"),
    ],
)  # fmt: skip
def test_advice(change, words):
    found = list(doctor.advice(WELL | change))
    assert len(found) == (words is not None) and all(words in sentence for sentence in found)


def test_the_report_of_doctor():
    text = list(doctor.lines(WELL))
    assert "cores         2 physical, 4 logical usable, container limit: none" in text
    assert "probed        reads memory at 35.1 GB/s, int8 1200 GOPS" in text
    assert "memory        16.00 GB, 8.00 GB free, huge pages: madvise" in text and text[-1] == "nothing is wrong"
    assert "FFmpeg        unknown" in text and "packages      numpy 2" in text
    worse = WELL | {"cpu_quota": 1.5, "physical_cores": None, "memory_total": None, "packages": {"av": None}, "advice": ["do it"],
                    "ffmpeg": {"a": 1}}  # fmt: skip
    text = list(doctor.lines(worse))
    assert "cores         unknown physical, 4 logical usable, container limit: 1.5 processors" in text
    assert text[-2:] == ["", "advice: do it"] and "packages      av missing" in text and "FFmpeg        a 1" in text


# ------------------------------------------------------------------------------------------------ eval


@pytest.mark.parametrize(
    "value, text", [(None, "-"), (9999.9994, "9999.999"), (10000, "1e+04"), (123456, "1.23e+05"), (1.5, "1.500")]
)
def test_perplexities(value, text):
    assert judge._number(value) == text


def test_the_table_of_eval():
    scores = {"prompts": 1234, "tokens": 5678, "mean_kl": 0.0123456, "p99_kl": 0.45678, "answer_kl": None, "top1": 0.98765,
              "perplexity": 12.3456, "reference_perplexity": None, "flips": 1, "answers": 4}  # fmt: skip
    result = {"file": "m.gguf", "bits_per_weight": 4.5, "kinds": {"text": scores, "all": scores | {"answer_kl": 0.5}}}
    args = SimpleNamespace(save_reference=None, against="ref")
    text = list(judge._lines(args, [result]))
    assert text[0] == "m.gguf: 4.50 bits per weight, against ref" and len(text) == 4
    assert text[2].split() == [
        "text",
        "1,234",
        "5,678",
        "0.01235",
        "0.4568",
        "-",
        "98.77",
        "%",
        "12.346",
        "-",
        "1",
        "of",
        "4",
    ]
    assert text[3].split()[5] == "0.50000" and len(text[1]) == len(text[2]) == 6 + 9 * 12
    assert list(judge._lines(args, [])) == ["ref: the reference is ready"]
    assert list(judge._lines(SimpleNamespace(save_reference="out", against="ref"), [])) == [
        "out: the reference is ready"
    ]


# ------------------------------------------------------------------------------------------------ verify, inspect


def test_the_report_of_verify():
    stages = [Stage("vision", 0.01, 0.06), Stage("logits", 0.5, 0.25)]
    report = SimpleNamespace(path="m", nbytes=2e9, tensors=7, damaged=[], stages=stages, ok=False)
    text = list(verify.lines(report))
    assert text[0] == "m: 2.00 GB, 7 tensors, as they were written"
    assert text[3].split() == ["vision", "0.01", "0.06", "ok"] and text[4].split() == ["logits", "0.5", "0.25", "OFF"]
    assert verify.facts(report)["stages"][1] == {"stage": "logits", "error": 0.5, "limit": 0.25, "ok": False}
    bare = SimpleNamespace(path="m", nbytes=2e9, tensors=7, damaged=["a", "b"], stages=[])
    assert list(verify.lines(bare)) == ["m: 2.00 GB, 7 tensors, 2 damaged"]
    bare.damaged = []
    assert "no golden activations" in list(verify.lines(bare))[1]
    assert Stage("x", 0.25, 0.25).ok and not Stage("x", math.nan, 0.25).ok


@pytest.mark.parametrize(
    "value, shown",
    [
        (list(range(16)), list(range(16))), (list(range(17)), "17 values: 0, 1, 2, 3, 4, 5, ..."),
        ("x" * 96, "x" * 96), ("x" * 1097, "x" * 96 + "... (1,097 characters)"), (b"\xff", "\ufffd"), (1.5, 1.5),
        (math.inf, "inf"), (np.float32(0.5), 0.5), (np.arange(3), [0, 1, 2]), (("a" * 200,) * 17, "17 values: " + ("'" + "a" * 200)[:96] + ", ..."),
    ],
)  # fmt: skip
def test_long_values_are_shortened(value, shown):
    assert inspect.shortened(value) == shown


@pytest.mark.parametrize(
    "name, group",
    [
        ("token_embd.weight", "embeddings"), ("output.weight", "head"), ("output_norm.weight", "text norms"),
        ("blk.0.attn_q.weight", "text attention"), ("blk.0.ffn_up.weight", "text mlp"), ("v.patch_embd.weight", "vision embeddings"),
        ("v.blk.0.attn_qkv.weight", "vision blocks"), ("v.merger.0.weight", "mergers"), ("rope", "other"),
    ],
)  # fmt: skip
def test_groups_of_tensors(name, group):
    assert inspect.group(name) == group


def test_remarks_count_alike_tensors():
    notes = {"a": "padded", "b": "promoted", "c": "padded"}
    assert list(inspect.remarks(notes)) == ["  2 tensors padded (a, ...)", "  1 tensor promoted (b)"]
    assert (inspect.shown(0.5), inspect.shown(7), inspect.shown(1e-6)) == ("0.5", 7, "1e-06")


# ------------------------------------------------------------------------------------------------ quantize


@pytest.mark.parametrize(
    "numbers, text",
    [([0, 1, 2, 5], "0-2,5"), ([3], "3"), ([7, 5, 6, 1], "1,5-7"), ([0, 2, 4], "0,2,4"), ([None], ""), ([0, 1], "0-1")],
)
def test_ranges_of_layers(numbers, text):
    assert quantize.ranges(numbers) == text


@pytest.mark.parametrize(
    "name, layer",
    [
        ("blk.3.ffn_up.weight", ("blk.*.ffn_up.weight", 3)),
        ("output.weight", ("output.weight", None)),
        ("v.blk.10.a.2.b", ("v.blk.*.a.2.b", 10)),
    ],
)
def test_layers_of_names(name, layer):
    assert quantize.layer_of(name) == layer


def test_the_plan_of_a_conversion():
    def plan(name, fmt="q8_0", shape=(64, 32), note=""):
        return SimpleNamespace(name=name, format=fmt, shape=shape, rows=shape[0], columns=shape[1], note=note)

    plans = [
        plan("blk.0.a.weight"),
        plan("blk.1.a.weight"),
        plan("blk.2.a.weight", "f16"),
        plan("out", "f32", (4, 30), "padded"),
    ]
    done = SimpleNamespace(
        plans=plans, nbytes=3e9, parameters=4e9, type="q8_0", tensors=4, source_bytes=16e9, path="o", resumed=0
    )
    text = list(quantize.plan_lines(done))
    assert text[1].split() == ["blk.*.a.weight", "0-1", "q8_0", "64x32", "5", "KB", "8.50"]
    assert text[2].split() == ["blk.*.a.weight", "2", "f16", "64x32", "5", "KB", "16.00"]
    assert text[3].split() == ["out", "f32", "4x30", "1", "KB", "32.00", "padded"]
    assert text[4] == "q8_0: 3.00 GB, 6.00 bits per weight, 4 tensors, from 16.00 GB"
    assert quantize.closing(done) == "o: 3.00 GB, type q8_0, 6.00 bits per weight, from 16.00 GB in 4 tensors"
    done.resumed = 2
    assert quantize.closing(done).endswith("4 tensors, 2 of them from before")


# ------------------------------------------------------------------------------------------------ calibrate, messages


@pytest.mark.parametrize(
    "interrupted, given, end",
    [
        (False, 2, "2 prompts, 1,234 tokens"),
        (False, 3, "; 1 of the 3 given are not in it"),
        (True, 3, "; the same command again continues"),
    ],
)
def test_the_last_line_of_calibrate(interrupted, given, end):
    stats = SimpleNamespace(prompts=["a", "b"], rows={"x": 1, "y": 2, "z": 3}, tokens=1234)
    args = SimpleNamespace(output="s.gguf", restart=False)
    text = calibrate._closing(args, stats, [SimpleNamespace(key=key) for key in "abc"[:given]], interrupted)
    assert text.startswith("s.gguf: 3 layers over 2 prompts, 1,234 tokens") and text.endswith(end)


def test_what_is_shown_of_a_value():
    assert len(shown("x" * 500)) == 80 and len(shown(["x" * 70] * 9)) == 80
    assert len(sentence("y" * 900)) == 500 and sentence("y" * 500) == "y" * 500


def test_cuda_line():
    """Card, driver, compute capability and memory, and whether this build has kernels for it."""
    assert doctor.cuda_line(CUDA) == "no kernels in this build, no driver"
    found = CUDA | {"built": True, "driver": "13.0", "cards": [CARD, OLD]}
    assert doctor.cuda_line(found) == (
        "kernels in this build, driver 13.0; NVIDIA L4 (8.9, 58 multiprocessors, 25.77 GB); "
        "Tesla V100 (7.0, 58 multiprocessors, 25.77 GB, not usable)"
    )
