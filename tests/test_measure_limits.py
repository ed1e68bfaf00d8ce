"""What is measured of a machine whose speed is known: layers that take the seconds of a formula, on a clock of their own."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite import ops
from ivlite.evaluate import synthetic
from ivlite.models import internvideo3
from ivlite.plan import measure
from ivlite.plan.speeds import Speeds

TEXT = dict(
    num_layers=6, num_heads=4, kv_lora_rank=(24,) * 6, qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=20,
    hidden_size=48, intermediate_size=160, context_length=100_000, vocab_size=1000,
)  # fmt: skip
VISION = dict(
    hidden_size=32, num_heads=4, depth=5, deepstack_indexes=(1, 2), patch_size=4, in_channels=3, temporal_patch_size=2
)
# Multiplications of a token, counted by hand: keys and values of a latent; queries, latent and rotary key, output, three of the MLP.
EXPANDED = 4 * (12 + 20) * 24
TOKEN = 48 * 4 * (12 + 8) + 48 * (24 + 8) + 4 * 20 * 48 + 3 * 48 * 160
SHARE = EXPANDED / TOKEN


class Cache:
    def __init__(self, ranks, rope, capacity, kv):
        assert (ranks, rope, kv) == (TEXT["kv_lora_rank"], 8, "q8")
        self.length, self.capacity, self.rows = 0, capacity, None

    def append(self, layer, latents, keys):
        assert latents.shape[1] == 24 and keys.shape[1] == 8 and len(latents) == len(keys)
        self.rows = len(latents)

    def advance(self, count):
        assert count == self.rows and self.length + count <= self.capacity
        self.length += count


class Machine:
    """Seconds: of a layer's token, of an older one that it sees, of a step and what that sees; of the parts of the tower."""

    text, seen, step, step_seen = 2e-3, 1e-6, 3e-2, 1e-6
    head, patch, patch_seen, merger, embed = 0.02, 1e-4, 2e-7, 3e-4, 4e-5

    def __init__(self, monkeypatch, expand_from=40.0):
        self.now, self.expand_from, self.calls, self.blocks = 0.0, expand_from, [], set()
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)
        self.ops = SimpleNamespace(array=lambda x: x, cache=Cache)
        self.config = SimpleNamespace(
            text=SimpleNamespace(**TEXT), vision=SimpleNamespace(**VISION), video=SimpleNamespace(max_pixels=64 * 4 * 4)
        )

    def layer(self, index, slower=1.0):
        def call(x, cos, sin, cache):
            n, depth = len(x), cache.length
            assert x.shape == (n, 48) and cos.shape == sin.shape == (n, 4) and x.dtype == np.float32
            self.calls.append((n, depth))
            if n > self.expand_from:
                took = slower * self.text * (n + SHARE * (n + depth)) + self.seen * n * ((n + 1) / 2 + depth)
            else:
                took = n * (slower * self.step + self.step_seen * depth)
            self.now += took

        call.expand_from, call.index = self.expand_from, index
        return call

    def sample(self, layers, **more):
        def block(x, cos, sin, patches):
            self.blocks.add((len(x), patches))
            assert x.shape[1] == 32 and cos.shape == sin.shape == (len(x), 4) and len(x) % patches == 0
            self.now += self.patch * len(x) + self.patch_seen * len(x) * patches

        def spend(name, columns):
            def call(x):
                assert x.shape[1] == columns
                self.now += getattr(self, name) * len(x)

            return call

        return measure.Sample(
            self.config,
            self.ops,
            layers,
            block,
            spend("merger", 32),
            spend("embed", 3 * 2 * 16),
            spend("head", 48),
            **more,
        )


@pytest.mark.parametrize("depth", [100_000, 6000, 4098])
def test_known_speeds_are_found(monkeypatch, depth):
    machine = Machine(monkeypatch)
    machine.config.text.context_length = depth
    sample = machine.sample(
        [(machine.layer(2), 4.0), (machine.layer(5, slower=3.0), 2.0)], part=0.25, byte=7e-9, each=0.5
    )
    found = measure.speeds(sample, "q8")
    layers = 4 + 3 * 2  # of the first one's speed
    assert found.token == pytest.approx(layers * machine.text, rel=0.01)
    assert found.expanded == pytest.approx(SHARE * found.token)
    assert (
        0.9 < found.seen / (6 * machine.seen) < 1
    )  # the first layer's, in all; half is clamped, and 1.4 counts expanding
    assert found.step == pytest.approx(measure.REST + machine.head / 0.25 + layers * machine.step)
    assert found.step_seen == pytest.approx(6 * machine.step_seen)
    assert found.patch == pytest.approx(5 * machine.patch + 3 * machine.merger + machine.embed)
    assert found.patch_seen == pytest.approx(5 * machine.patch_seen)
    assert (found.byte, found.each, found.few, found.ratios) == (7e-9, 0.5, 40, {})
    deep = min(4096, depth // 2)
    prefill = [(41, 0), (512, 0), (512, deep), (41, 0), (512, 0)]
    assert machine.calls[:5] == prefill and set(machine.calls[5:]) == {(1, 0), (1, deep)}
    assert machine.blocks == {(2048, 64), (2048, 2048)}


def test_a_layer_that_never_expands(monkeypatch):
    machine = Machine(monkeypatch, expand_from=np.inf)
    found = measure.speeds(machine.sample([(machine.layer(0), 6.0)]), "q8")
    assert found.few == measure.CHUNK and found.step == pytest.approx(measure.REST + machine.head + 6 * machine.step)
    machine = Machine(monkeypatch, 3.7)
    assert measure.speeds(machine.sample([(machine.layer(0), 6.0)]), "q8").few == 3


def test_a_loaded_network_is_measured_by_whole_steps(monkeypatch):
    machine, made = Machine(monkeypatch), []

    class Runner:
        def __init__(self, network, room, kv):
            made.append((network, room, kv))
            self.cache = SimpleNamespace(truncate=lambda length: made.append(length))

        def step(self, token):
            machine.now += 0.2

    monkeypatch.setattr(measure, "Runner", Runner)
    step, _ = measure.step_seconds(machine.sample([(machine.layer(0), 6.0)], network="all"), "q8")
    assert step == pytest.approx(0.2) and made == [("all", 100_000, "q8"), 0, 0, 0, 0]


@pytest.mark.parametrize("longest, depth", [(1, 1), (2, 1), (5, 2), (8191, 4095), (8192, 4096), (8194, 4096)])
def test_depth_is_half_of_the_context_at_most(monkeypatch, longest, depth):
    machine = Machine(monkeypatch)
    machine.config.text.context_length = longest
    measure.prefill_seconds(machine.sample([(machine.layer(0), 6.0)]), "q8")
    assert [d for _, d in machine.calls] == [0, 0, depth]


@pytest.mark.parametrize("expand_from", [511.0, 512.0, np.inf])
def test_what_is_not_expanded_is_not_subtracted(monkeypatch, expand_from):
    """All that depth costs is attention where a chunk of the measured size does not expand."""
    machine = Machine(monkeypatch, expand_from)
    total, seen, _ = measure.prefill_seconds(machine.sample([(machine.layer(0), 1.0)]), "q8")
    warm = 64 if expand_from == np.inf else int(expand_from) + 1
    assert [n for n, _ in machine.calls] == [warm, 512, 512]
    if expand_from > 511:
        assert seen == pytest.approx(machine.step_seen)
    else:
        assert 0.85 < seen / machine.seen < 1


def test_measurements_that_contradict_each_other_leave_something(monkeypatch):
    """A first call that was disturbed: a token takes a quarter of it at least, attention half of what depth adds."""
    machine = Machine(monkeypatch)
    machine.text, machine.seen = 1e-6, 1e-5
    token, seen, _ = measure.prefill_seconds(machine.sample([(machine.layer(0), 1.0)]), "q8")
    flat = 1e-6 * 512 * (1 + SHARE) + 1e-5 * 512 * 513 / 2
    assert token == pytest.approx(flat / 4 / 512 / (1 + SHARE)) and seen == pytest.approx(1e-5, rel=0.2)
    machine = Machine(monkeypatch)
    machine.text, machine.seen = 1e-2, 1e-9
    _, seen, _ = measure.prefill_seconds(machine.sample([(machine.layer(0), 1.0)]), "q8")
    more = SHARE * 1e-2 * 4096 + 1e-9 * 512 * 4096
    assert seen == pytest.approx(more / 2 / 512 / 4096)


@pytest.mark.parametrize("pixels, usual", [(1, 16), (16 * 16, 16), (17 * 16, 17), (1024 * 16, 1024), (1 << 30, 1024)])
def test_frames_of_every_size_are_measured_as_usual_batches(monkeypatch, pixels, usual):
    machine = Machine(monkeypatch)
    machine.config.video.max_pixels = pixels
    patch, seen = measure.vision_seconds(machine.sample([]))
    rows = 2048 // usual * usual
    assert machine.blocks == {(rows, usual), (rows, rows)}
    assert patch == pytest.approx(5 * machine.patch + 3 * machine.merger + machine.embed)
    assert seen == pytest.approx(5 * machine.patch_seen)


@pytest.mark.parametrize("took, rounds, medians", [
    ([1.0, 0.25, 0.75, 9], 3, 0.5),  # three at least, the first of which is to warm up
    ([0.002, 0.001, 0.003, 0.004, 0.006, 9], 5, 0.0035),  # as many as take LEAST
])  # fmt: skip
def test_layers_take_turns(monkeypatch, took, rounds, medians):
    machine, order = Machine(monkeypatch), []

    def layer(number):
        left = list(took)

        def call(x, *_):
            assert x.shape == (1, 48)
            order.append(number)
            machine.now += left.pop(0)

        return call

    sample = machine.sample([(layer(0), 4.0), (layer(1), 2.0)])
    got = measure.by_turns(sample, measure.Text(sample, machine.layer(0), "q8"))
    assert got == [(pytest.approx(medians), 4.0), (pytest.approx(medians), 2.0)] and order == [0, 1] * rounds


def test_what_a_sample_says_where_nothing_is_known(monkeypatch):
    sample = Machine(monkeypatch).sample([])
    assert (sample.part, sample.byte, sample.each, sample.network) == (1.0, 0.0, 0.0, None)


@pytest.mark.parametrize("took, calls, mean", [
    ([1.0, 0.5, 9], 2, 0.5),  # the first one is to warm up
    ([0.02, 0.011, 9], 2, 0.011), ([0.01, 0.01, 0.011, 9], 2, 0.0105),  # as many as take LEAST
    ([0.02, 0.009, 0.013, 9], 2, 0.011), ([0.03, 9], 1, 0.03), ([5, 1, 2, 3, 9], 4, 2.0),
])  # fmt: skip
def test_calls_are_repeated_until_they_say_something(monkeypatch, took, calls, mean):
    machine, left = Machine(monkeypatch), list(took)
    given = np.zeros(3)

    def work(x):
        assert x is not given and not x.any()
        x += 1
        machine.now += left.pop(0)

    assert measure.timed(work, given, calls=calls) == pytest.approx(mean) and left == [9]


def test_layers_that_stand_for_others():
    def tensors(*formats):
        return {
            f"blk.{i}.{name}": SimpleNamespace(format=f)
            for i, fs in enumerate(formats)
            for name, f in zip(("a", "b"), fs, strict=True)
        }

    def config(*ranks):
        return SimpleNamespace(text=SimpleNamespace(kv_lora_rank=ranks, num_layers=len(ranks)))

    same = [("x", "y")] * 5
    assert measure.kinds(tensors(*same), config(*[8] * 5)) == [(2, 5)]
    assert measure.kinds(tensors(*same), config(8, 8, 8, 9, 9)) == [(1, 3), (4, 2)]
    mixed = tensors(("x", "y"), ("x", "z"), ("x", "y"), ("x", "z"), ("x", "z"), ("z", "z"))
    assert measure.kinds(mixed, config(*[8] * 6)) == [
        (3, 3 * 6 / 5),
        (2, 2 * 6 / 5),
    ]  # the third kind is left to the others
    eleven = tensors(*[("x", "y")] * 11)  # blk.1 is not a part of blk.10
    assert measure.kinds(eleven, config(*[8] * 11)) == [(5, 11)]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_model_file_is_measured_by_two_layers(monkeypatch, tied, streamed):
    cfg = synthetic.config("tiny")
    source, machine = synthetic.RandomSource(cfg, "q8_0"), Machine(monkeypatch)
    asked, read = [], source.read

    def slow(name, *rows):
        asked.append((name, *rows))
        data = read(name, *rows)
        machine.now += 2e-9 * len(data)
        return data

    source.read = slow
    if tied:
        cfg = replace(cfg, text=replace(cfg.text, tie_word_embeddings=True))
    sample = measure.of_source(source, cfg, internvideo3, ops.get("cpu", 1), streamed)
    assert ("token_embd.weight" if tied else "output.weight", 0, 448) in asked and sample.part == 1.0
    assert sum(count for _, count in sample.layers) == 4 and sample.byte == pytest.approx(2e-9)
    blocks = sum(t.nbytes for name, t in source.tensors.items() if name.startswith("blk."))
    assert sample.each == (pytest.approx(2e-9 * blocks) if streamed else 0.0)
    x = np.zeros((1, 128), np.float32)
    assert sample.head(x).shape == (1, 448) and sample.network is None
    patches = np.zeros((4, 3 * 2 * 16 * 16), np.float32)
    assert sample.embed(patches).shape == (4, 96) and sample.merger(np.zeros((4, 96), np.float32)).shape == (1, 128)


@pytest.mark.parametrize("vocabulary, rows", [(8192, 8192), (8193, 8192), (16384, 8192), (100, 100)])
def test_a_part_of_a_large_vocabulary_is_timed(vocabulary, rows):
    cfg = synthetic.config("tiny")
    cfg = replace(cfg, text=replace(cfg.text, vocab_size=vocabulary))
    sample = measure.of_source(synthetic.RandomSource(cfg, "q8_0"), cfg, internvideo3, ops.get("cpu", 1))
    assert sample.part == rows / vocabulary and sample.head(np.zeros((1, 128), np.float32)).shape == (1, rows)


def test_speeds_of_a_real_machine_are_sound():
    model = synthetic.random_model("tiny", "q8_0", threads=1, context=512)
    sample = measure.of_network(model.network)
    assert sample.layers[0][0] in model.network.layers and sum(count for _, count in sample.layers) == 4
    assert sample.merger is model.network.vision.mergers[-1] and sample.block is model.network.vision.blocks[0]
    assert Speeds.from_data(measure.speeds(sample, "q8").as_data()) is not None
