"""Whole models on the emulated card: the golden checkpoints and the demo model, within the bounds of the CPU. Where there is a card
that can be used, on that too.
"""

import gc
import json
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from device import ON_A_CARD
from emulated_memory import EmulatedMemory

import ivlite
from ivlite import ops
from ivlite.errors import OutOfMemoryError, UsageError
from ivlite.evaluate.synthetic import random_model
from ivlite.gguf import SHIPPED
from ivlite.ops import cards, cuda

sys.path.insert(0, str(Path(__file__).parents[1]))
import test_golden
from test_golden import converted, golden, messages_of, worst  # noqa: F401  a fixture

# Largest |logit - golden| in standard deviations: those of the CPU. Products of many rows round activations to 11 bits, as an f16
# cache rounds its rows.
LIMIT = test_golden.LIMIT


class Card:
    """memory: of the model that was loaded on "cuda" last; limit: bytes of the emulated card."""

    memory, limit = None, None


@pytest.fixture
def emulated_card(monkeypatch, emulated_module):
    """A Card: during the test it is the emulated one that models are loaded on."""
    module, plain, card = emulated_module, ops.get, Card()

    def get(name, threads=None, number=0):
        if name != "cuda":
            return plain(name, threads)
        cards.check(number)
        card.memory = EmulatedMemory(module, card.limit)
        return cuda.Ops(card.memory, threads)

    monkeypatch.setattr(ops, "get", get)
    monkeypatch.setattr(cards, "count", lambda: 1)
    monkeypatch.setattr(cards, "refusal", lambda number=0: "" if number == 0 else f"there is no card {number}")
    return card


@pytest.fixture(params=["emulated", *([] if cards.refusal() else ON_A_CARD)])
def card(request, monkeypatch):
    """The emulated Card, and the first one of the machine where it can be used."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated_card")
    plain, card = ops.get, Card()

    def get(name, threads=None, number=0):
        found = plain(name, threads, number)
        card.memory = getattr(found, "memory", None)
        return found

    monkeypatch.setattr(ops, "get", get)
    return card


@pytest.mark.parametrize("case", test_golden.CASES[1:])
@pytest.mark.parametrize("name", test_golden.NAMES)
def test_vision(card, converted, name, case):  # noqa: F811
    model = ivlite.load(converted(name, "f32"), device="cuda")
    merged, deepstack = model.encode_vision(model.prepare(messages_of(case)))
    expected = golden(name, case)
    assert worst(merged, expected["vision"]) < 1e-4 and worst(deepstack, expected["deepstack"]) < 1e-4


@pytest.mark.parametrize("type", ["f32", "bf16"])
@pytest.mark.parametrize("case", test_golden.CASES)
@pytest.mark.parametrize("name", test_golden.NAMES)
def test_logits(card, converted, name, case, type):  # noqa: F811
    model = ivlite.load(converted(name, type), device="cuda", kv="f32")
    expected = golden(name, case)
    logits = model.logits(model.prepare(messages_of(case)))
    assert worst(logits[expected["rows"]], expected["logits"]) < LIMIT[type]


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("name", test_golden.NAMES)
def test_chunks_and_forms_agree(card, converted, monkeypatch, name, expand):  # noqa: F811
    monkeypatch.setattr("ivlite.engine.runner.CHUNK", 7)
    model = ivlite.load(converted(name, "f32"), device="cuda", kv="f32")
    for layer in model.network.layers:
        layer.expand_from = 0 if expand else 10**9
    expected = golden(name, "mixed")
    logits = model.logits(model.prepare(messages_of("mixed")))
    assert worst(logits[expected["rows"]], expected["logits"]) < LIMIT["f32"]


@pytest.mark.parametrize("name", test_golden.NAMES)
def test_greedy(card, converted, name):  # noqa: F811
    """Every step after the second of its number of tokens is a replay."""
    model = ivlite.load(converted(name, "f32"), device="cuda", kv="f32")
    expected = golden(name, "text")["greedy"].tolist()
    stops = [i for i, token in enumerate(expected) if token in model.config.tokens.eos]
    reply = model.chat(messages_of("text"), max_new_tokens=len(expected), temperature=0)
    assert reply.token_ids == expected[: stops[0] if stops else None]


@pytest.mark.parametrize("kv", ["f32", "f16", "q8", "q4"])
@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_divergence(card, converted, type, kv):  # noqa: F811
    """Quantized weights and caches, token by token through recorded steps: as near to the golden logits as the CPU is."""
    expected, kl = golden("plain", "text"), {}
    for device in ("cpu", "cuda"):
        model = ivlite.load(converted("plain", type), device=device, kv=kv)
        runner, logits = model.runner(), []
        ids = model.prepare(messages_of("text")).token_ids
        for token in ids:
            logits.append(np.asarray(runner.step(token)))
        kl[device] = test_golden.mean_kl(expected["logits"], np.stack(logits)[expected["rows"]])
        if device == "cuda":
            assert runner.cache.recorded[1].replay is not None
    assert kl["cuda"] < max(1.5 * kl["cpu"], 1e-3)


def test_a_replay_depends_on_memory_of_the_card_alone(emulated_card, converted):  # noqa: F811
    """A recorded step equals one that is computed, at every length, after rows were cut off, and with several rows."""
    model = ivlite.load(converted("variant", "q8_0"), device="cuda", kv="q8")
    recorded, eager, random = model.runner(2048), model.runner(2048), np.random.default_rng(1)
    for count in (1, 3, 1, 1, 3, 3, 1, 2, 2, 2):
        tokens = random.integers(0, model.config.text.vocab_size, count).tolist()
        eager.cache.recorded.clear()
        launches = emulated_card.memory.kernels.count
        a, b = (np.asarray(r.steps(tokens)) for r in (recorded, eager))
        assert np.array_equal(a, b) and emulated_card.memory.kernels.count > launches
        if count == 2:
            for runner in (recorded, eager):
                runner.truncate(runner.held.length - 1)
    assert {n: step.replay is not None for n, step in recorded.cache.recorded.items()} == {1: True, 3: True, 2: True}
    before = dict(recorded.cache.recorded)
    recorded.cache.reserve(5000)
    for _ in range(3):
        assert np.array_equal(np.asarray(recorded.step(5)), np.asarray(eager.step(5)))
    assert recorded.cache.recorded[1] is not before[1], "a larger cache is split in other ways"


def test_a_step_is_recorded_once_for_all_caches_of_a_shape(card, converted):  # noqa: F811
    """Sessions of a bucket replay one recording, each over its own rows, when arrays move too; none is kept by it."""
    model = ivlite.load(converted("plain", "q8_0"), device="cuda", kv="q8")
    random, captures, plain = np.random.default_rng(3), [], card.memory.capture
    card.memory.capture = lambda *args: captures.append(1) or plain(*args)
    shared, alone = [model.runner(room) for room in (300, 700, 1024)], [model.runner(1024) for _ in range(3)]
    for turn in range(6):
        for mine, other in zip(shared, alone, strict=True):
            token = int(random.integers(0, model.config.text.vocab_size))
            model.network.recorded, kept = {}, model.network.recorded
            expected = np.asarray(other.step(token))  # computed, since nothing is recorded
            model.network.recorded = kept
            assert np.array_equal(np.asarray(mine.step(token)), expected)
        shared[turn % 3].cache.reserve(shared[turn % 3].cache.capacity + 1 if turn < 3 and turn != 2 else 0)
    assert len(captures) == 1 and len({id(r.cache.recorded[1]) for r in shared}) == 1
    for mine, other in zip(shared, alone, strict=True):
        assert np.array_equal(mine.cache.dump(0, 6), other.cache.dump(0, 6))
    gone = weakref.ref(shared[0].cache)
    shared.clear()
    del mine
    gc.collect()
    assert gone() is None


def test_logits_outlive_steps_over_other_caches(card, converted):  # noqa: F811
    """Two answers side by side: what one is about to draw from is not what the other's step leaves."""
    from ivlite.engine.sampling import Sampler, SamplingParams

    model = ivlite.load(converted("plain", "q8_0"), device="cuda", kv="q8")
    runners, given = [model.runner(100) for _ in range(3)], [None] * 3
    params = SamplingParams(temperature=0.8, seed=4)
    for turn in range(4):
        for i, runner in enumerate(runners):
            given[i] = runner.step(5 + 7 * i + turn)
        rows = [np.asarray(logits).copy() for logits in given]
        assert len({row.tobytes() for row in rows}) == 3
        for logits, row in zip(given, rows, strict=True):
            assert np.array_equal(np.asarray(logits), row)
            assert Sampler(params)(logits) == Sampler(params)(row)


def test_steps_of_several_caches_are_taken_one_by_one(card, converted):  # noqa: F811
    """What an engine asks of a network: on a card each gets its own recorded step, and its own logits."""
    model = ivlite.load(converted("plain", "q8_0"), device="cuda", kv="q8")
    together, alone = ([model.network.cache(100, "q8") for _ in range(3)] for _ in range(2))
    for turn in range(3):
        parts = [([5 + i + turn], np.full((3, 1), turn), cache) for i, cache in enumerate(together)]
        found = model.network.steps(parts)
        for (ids, positions, _), cache, logits in zip(parts, alone, found, strict=True):
            assert np.array_equal(np.asarray(logits), np.asarray(model.network.step(ids, positions, cache)))


@pytest.mark.parametrize("type", ["q4_0", "f16", "f32"])
@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_launches_of_a_step(emulated_card, type, count):
    """A layer of few tokens is 9: what is rounded is rounded by the kernel before."""
    model = random_model("tiny", type, device="cuda", kv="f32" if type == "f32" else "q8")
    runner, launches = model.runner(64), emulated_card.memory.module.emulator.launches
    for _ in range(3):
        before = launches()
        runner.steps([3] * count)
    # embedding; the first norm and rounding; norm, rounding of quantized weights, and product of the head; 2 of the choice of a token
    rest = 1 + (count <= 4) + 1 + (type == "q4_0") + 1 + 2
    each = 9 if count <= 4 else 13 if type == "q4_0" else 11
    assert launches() - before == each * len(model.network.layers) + rest


def test_a_replayed_step_does_nothing_for_each_layer(emulated_card, monkeypatch):
    """Between two replays the card waits."""
    model = random_model("tiny", "q4_0", device="cuda", kv="q8")
    runner, memory, asked = model.runner(64), emulated_card.memory, []
    for _ in range(3):
        runner.step(3)
    plain = memory.pointer
    monkeypatch.setattr(memory, "pointer", lambda x: asked.append(1) or plain(x))
    monkeypatch.setattr(memory, "empty", None)
    runner.step(3)
    assert not asked


def test_requests_leave_no_memory_behind(emulated_card, converted):  # noqa: F811
    model = ivlite.load(converted("plain", "q8_0"), device="cuda", kv="q8", context=256)
    used, blocks = [], []
    for i in range(12):
        reply = model.chat(messages_of(("text", "mixed")[i % 2]), max_new_tokens=3, temperature=(i % 3) * 0.4)
        assert len(reply.token_ids) == 3 or reply.finish_reason == "stop"
        gc.collect()
        used.append(emulated_card.memory.used), blocks.append(emulated_card.memory.blocks)
    assert used[-1] == used[-5] == used[-9] and blocks[-1] == blocks[-5] == blocks[-9]
    del model
    gc.collect()
    assert emulated_card.memory.used == 0 and emulated_card.memory.blocks == 0


def test_a_row_has_the_same_bits_alone_and_with_others(card, converted):  # noqa: F811
    """What speculation relies on (`same_rows`)."""
    model = ivlite.load(converted("plain", "q4_0"), device="cuda", kv="q8")
    count = min(16, model.network.same_rows)
    tokens = np.random.default_rng(2).integers(0, model.config.text.vocab_size, count).tolist()
    together, alone = model.runner(256), model.runner(256)
    found = np.asarray(together.steps(tokens))
    assert count > 4
    for i, token in enumerate(tokens):
        assert np.array_equal(np.asarray(alone.step(token)), found[i])
    assert np.array_equal(together.cache.dump(0, count), alone.cache.dump(0, count))


def test_sampled_answers_are_those_of_numpy(card, converted):  # noqa: F811
    """Tokens are drawn on the card, from logits that stay there; the same logits, drawn from by numpy, give the same."""
    from ivlite.engine.sampling import Sampler, SamplingParams

    model = ivlite.load(converted("plain", "f32"), device="cuda", kv="f32")
    prompt = model.prepare(messages_of("text"))
    params = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, seed=11)
    mine, theirs = Sampler(params, prompt.token_ids), Sampler(params, prompt.token_ids)
    runner = model.runner(len(prompt.token_ids) + 20)
    logits = runner.prefill(prompt)
    for _ in range(12):
        token = mine(logits)
        assert token == theirs(np.asarray(logits))
        logits = runner.step(token)


def test_a_session_goes_from_the_cpu_to_the_card(card, converted, tmp_path):  # noqa: F811
    """And back: rows have the same bytes in both, and none is computed again. That of an answer's last token is yet to be."""
    path, lengths = converted("plain", "q8_0"), []
    for device in ("cpu", "cuda", "cpu"):
        with ivlite.load(path, device=device) as model, model.session(tmp_path / "s.ivs") as session:
            with session.ask("one", max_new_tokens=3, temperature=0) as stream:
                list(stream)
            assert stream.reply.usage["cached_tokens"] == (lengths[-1] - 1 if lengths else 0)
            session.save()
            lengths.append(session.tokens)


def test_layers_one_at_a_time(card, converted):  # noqa: F811
    """load="mmap": nothing is recorded, since weights come and go."""
    path = converted("plain", "q8_0")
    whole, streamed = (ivlite.load(path, device="cuda", load=load) for load in ("repack", "mmap"))
    a, b = (m.chat(messages_of("text"), max_new_tokens=3, temperature=0).token_ids for m in (whole, streamed))
    assert a == b


@pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
def test_the_demo_model_answers(card):
    model = ivlite.load("demo", device="cuda", context=512)
    reply = model.chat([{"role": "user", "content": "Please introduce yourself."}], temperature=0, max_new_tokens=24)
    assert reply.text.startswith("I am the demo model of ivlite.")
    from ivlite.cli.answer import closing_line

    assert model.device == f"cuda:0 ({card.memory.name})" and closing_line(reply, device=model.device).endswith(
        f" | {model.device}]"
    )


@pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
def test_what_a_grammar_allows_is_drawn(card):
    """Tokens are drawn on the card; where the grammar does not allow one, by numpy from those that it does."""
    model = ivlite.load("demo", device="cuda", context=256)
    wanted = {"type": "regex", "pattern": "[0-9]{3} (yes|no)"}
    for settings in ({"temperature": 0}, {"temperature": 1.5, "seed": 3, "repetition_penalty": 1.2}):
        reply = model.chat([{"role": "user", "content": "Say something."}], response_format=wanted, **settings)
        assert re.fullmatch(wanted["pattern"], reply.text) and reply.finish_reason == "stop"


# ------------------------------------------------------------------------------------------------ which device


def test_auto_takes_the_card(emulated_card, converted):  # noqa: F811
    model = ivlite.load(converted("plain", "q8_0"))
    assert model.network.ops.name == "cuda" and not model.remarks


def test_auto_leaves_a_card_that_is_too_small(emulated_card, converted):  # noqa: F811
    emulated_card.limit = 1 << 20
    path = converted("plain", "q8_0")
    model = ivlite.load(path)
    assert model.network.ops.name == "cpu" and "are free on cuda:0" in model.remarks[0]
    reply = model.chat(messages_of("text"), max_new_tokens=1)
    assert reply.warnings == [next(w for w in reply.warnings if w.startswith("the CPU computes: the model needs"))]
    assert not model.chat(messages_of("text"), max_new_tokens=1).warnings, "it is said once"
    with pytest.raises(
        OutOfMemoryError, match=r"the model needs .* are free on cuda:0 \(emulated card\): .*--device cpu"
    ):
        ivlite.load(path, device="cuda")


def test_auto_leaves_a_card_that_cannot_be_used(emulated_card, converted, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cards, "refusal", lambda number=0: "Old has compute capability 7.5")
    model = ivlite.load(converted("plain", "q8_0"))
    assert model.device == "cpu" and model.remarks == ["the CPU computes: Old has compute capability 7.5"]
    for device in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match="device cuda cannot be used: Old has"):
            ivlite.load(converted("plain", "q8_0"), device=device)


def test_memory_that_runs_out_ends_one_request(emulated_card, converted):  # noqa: F811
    model = ivlite.load(converted("plain", "q8_0"), device="cuda", context=256)
    assert len(model.chat(messages_of("text"), max_new_tokens=2, temperature=0).token_ids) == 2
    emulated_card.memory.limit = emulated_card.memory.used + 1000
    with pytest.raises(OutOfMemoryError, match="are needed"):
        model.chat(messages_of("mixed"), max_new_tokens=2)
    emulated_card.memory.limit = None
    assert len(model.chat(messages_of("text"), max_new_tokens=2, temperature=0).token_ids) == 2


def test_a_cache_that_finds_no_memory_to_grow_is_as_it_was(emulated_card, converted):  # noqa: F811
    """Though some of its layers have moved by then."""
    model = ivlite.load(converted("plain", "q8_0"), device="cuda", kv="q8")
    runner, other, memory = model.runner(100), model.runner(100), emulated_card.memory
    for r in (runner, other):
        r.steps([1, 2, 3])
    memory.limit = memory.used + sum(runner.cache.row_bytes[0]) * 5000
    with pytest.raises(OutOfMemoryError):
        runner.cache.reserve(5000)
    memory.limit = None
    assert runner.cache.capacity == 100 and runner.cache.layers[0][0].size > other.cache.layers[0][0].size
    anything = [memory.empty(100 * n, "uint8") for n in runner.cache.row_bytes[0] * 2 if n]  # where the old layer was
    for layer in range(len(model.network.layers)):
        for mine, theirs in zip(runner.cache.read(layer, 0, 3), other.cache.read(layer, 0, 3), strict=True):
            assert np.array_equal(mine, theirs)
    for tokens in ([4], [5, 6], [7], [8]):
        assert np.array_equal(np.asarray(runner.steps(tokens)), np.asarray(other.steps(tokens)))
    runner.cache.reserve(200)
    assert np.array_equal(runner.cache.dump(0, 8), other.cache.dump(0, 8)) and anything


def test_a_step_that_finds_no_memory_for_its_recording_is_computed_without(card, converted):  # noqa: F811
    """And recorded when there is some."""
    model = ivlite.load(converted("plain", "q8_0"), device="cuda", kv="q8")
    runner, eager, plain, tried = model.runner(100), model.runner(100), card.memory.capture, []

    def capture(*args):
        tried.append(1)
        if len(tried) <= 2:
            raise OutOfMemoryError("none is left")
        return plain(*args)

    card.memory.capture = capture
    for token in (3, 4, 5, 6, 7):
        logits = np.asarray(runner.step(token))
        model.network.recorded, kept = {}, model.network.recorded
        assert np.array_equal(logits, np.asarray(eager.step(token)))
        model.network.recorded = kept
    assert len(tried) == 3 and runner.cache.recorded[1].replay is not None


def test_bench_measures_the_card(emulated_card, monkeypatch, capsys):
    """Copies, products, and a step kernel by kernel: plain data, and lines that say them."""
    from ivlite import cli
    from ivlite.cli import bench
    from ivlite.ops import cuda_probe

    monkeypatch.setattr(cuda_probe, "STEPS", 1)
    monkeypatch.setattr(cuda_probe, "COPIED", 1 << 16)
    monkeypatch.setattr(bench, "QUESTION", 4)
    monkeypatch.setattr("ivlite.plan.measure.LEAST", 0.0)
    monkeypatch.setattr("ivlite.plan.measure.MANY", 32)
    monkeypatch.setattr("ivlite.plan.measure.DEPTH", 64)
    arguments = "bench --random tiny --type q8_0 --device cuda --prompt 4 --new 3 --depth 0,20 --vision 64x64x2 --json"
    assert cli.main(arguments.split()) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["device"] == "cuda:0 (emulated card)" and min(facts["limits"].values()) > 0
    for decode in facts["decode"]:
        step, parts = decode["card"], decode["card"]["parts"]
        assert step["launches"] == sum(part["launches"] for part in parts.values())
        assert step["launches"] == 4 * 9 + 7 and parts["absorbed_attention"]["launches"] == 4 * 2
        assert step["seconds"] > 0 and step["gap_seconds"] >= 0
    text = list(bench.lines(facts))
    assert text[1] == "cuda:0 (emulated card)" and "copies " in text[2] and "(mma.sync)" in text[2]
    assert any(line.startswith("  a token: ") and " launches, " in line for line in text)
