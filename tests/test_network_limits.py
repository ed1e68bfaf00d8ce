"""The model's and the runner's small decisions: which form of attention, which batches, which pieces, what a cache costs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import ivlite
from ivlite import loading as api
from ivlite.engine import runner, vision
from ivlite.engine.meter import Meter
from ivlite.errors import ContextError, ModelFileError, OutOfMemoryError, UsageError
from ivlite.evaluate import synthetic
from ivlite.gguf.loading import Loader
from ivlite.gguf.streaming import StreamingLoader
from ivlite.media.medium import Medium, marks
from ivlite.models import internvideo3


@pytest.fixture(scope="module")
def tiny():
    return synthetic.random_model("tiny", "q8_0", threads=1, context=256)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    "kv, per_token", [("f32", 4 * (96 + 32)), ("bf16", 2 * (96 + 32)), ("q8", 96 + 4 + 2 * 32), ("q4", 48 + 3 + 8 + 32)]
)
def test_bytes_of_a_cache(tiny, kv, per_token):
    assert api.cache_bytes_per_token(tiny.config.text, kv) == 4 * per_token
    cache = tiny.network.cache(256, kv)
    assert cache.nbytes == 256 * 4 * per_token and cache.capacity == 256


@pytest.mark.parametrize("kv", ["q8", "q4"])
def test_the_last_tokens_of_the_longest_context(tiny, kv, rng):
    """After 257 copies of 1,020 rows attention finds what it finds after one: the end of a cache of 262,144 tokens."""
    network, copies = tiny.network, 257
    once, often = network.cache(1024, kv), network.cache(1024, kv)
    synthetic.fill(once, tiny.config, 1020, rng)
    for i in range(copies):
        often.reserve(min(2 * often.capacity, 262_144) if often.length + 1020 > often.capacity else 0)
        often.restore(1020 * i, once.dump(0, 1020))
    often.reserve(262_144)
    logits = [[], []]
    for cache, out in zip((once, often), logits, strict=True):
        for token in range(4):
            x = network.forward(network.embed([token]), np.full((3, 1), 262_140 + token), cache)
            out.append(network.logits(x)[0])
    assert often.length == often.capacity == 262_144
    assert np.abs(np.subtract(*logits)).max() < 0.1 * np.std(logits)
    with pytest.raises(ValueError, match="full"):
        network.forward(network.embed([7]), np.full((3, 1), 262_144), often)


def test_the_largest_context_that_fits_is_named(tiny, monkeypatch):
    text, per_token = tiny.config.text, 4 * (96 + 4 + 64)

    def check(free, context, weights=10**9):
        monkeypatch.setattr(api, "available_memory", lambda: free)
        api.check_memory(weights, text, context, "q8", ("do otherwise",))

    exact = 10**9 + 1000 * per_token + api.MARGIN
    check(exact, 1000)
    check(None, 10**9)
    for free, context, words in (
        (exact - 1, 1000, "--context 768 or less"), (10**9 + 512 * per_token + api.MARGIN, 1000, "--context 512 or less"),
        (10**9 + 511 * per_token + api.MARGIN, 1000, "--context 256 or less"), (10**9 + 256 * per_token + api.MARGIN, 1000, "--context 256 or less"),
        (10**9 + 255 * per_token + api.MARGIN, 1000, "do otherwise"), (10, 1000, "do otherwise"),
    ):  # fmt: skip
        with pytest.raises(OutOfMemoryError, match=words):
            check(free, context)


# ------------------------------------------------------------------------------------------------ the network


def test_many_queries_expand_and_few_absorb(tiny):
    """Multiplications per query and cached token: absorbed 2 rank, expanded nope + v, and rank (nope + v) once per token."""
    layer = tiny.network.layers[0]
    assert layer.expand_from == 96 * 64 / (2 * 96 - 64) and layer.scale == pytest.approx(64**-0.5)
    load = Loader(synthetic.RandomSource(tiny.config, "q8_0"), tiny.network.ops)
    for rank, expected in ((32, math.inf), (33, 33 * 64 / 2)):
        text = SimpleNamespace(**{**vars(tiny.config.text), "kv_lora_rank": (rank,) * 4})
        made = object.__new__(internvideo3.Layer)
        made._load_kv_b = made._load_mlp = lambda *args: None
        made._fused = lambda: None
        source = SimpleNamespace(
            ops=load.ops, norm=lambda n: (None, None), linear=lambda *a: None, vector=lambda n: None
        )
        made.__init__(source, text, 0)
        assert made.expand_from == expected


def test_positions_of_patches_stand_in_blocks(tiny):
    tower = tiny.network.vision
    embedding, cos, sin = tower._grid_constants(4, 6, 2)
    assert embedding.shape == (48, 96) and cos.shape == sin.shape == (48, 12)
    rows, cols = [0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]
    inverse = 10000.0 ** (-np.arange(6) / 6)
    expected = np.concatenate([np.outer(rows, inverse), np.outer(cols, inverse)], 1)
    assert np.allclose(cos[:8], np.cos(expected), atol=1e-6) and np.allclose(sin[:8], np.sin(expected), atol=1e-6)
    assert np.array_equal(cos[:24], cos[24:]) and np.array_equal(embedding[:24], embedding[24:])
    assert tower._grid_constants(4, 6, 2)[0] is embedding and tower._grid_constants(4, 6, 1)[0] is not embedding


@pytest.mark.parametrize("n", [1, 2, 3, 5, 48])
def test_places_between_corners(n):
    got = internvideo3.vision._linspace32(7, n)
    assert (
        got.dtype == np.float32 and np.allclose(got, np.linspace(0, 7, n), atol=1e-6) and got[-1] == (7 if n > 1 else 0)
    )


def test_a_head_that_is_the_embedding_table(tiny):
    from dataclasses import replace

    text = replace(tiny.config.text, tie_word_embeddings=True, latent_norm=True, attention_bias=False)
    cfg = replace(tiny.config, text=text)
    specs = {s.gguf: s for s in internvideo3.tensor_names(cfg)}
    assert "output.weight" not in specs and specs["blk.0.attn_kv_a_norm.weight"].shape == (96,)
    assert (
        "blk.0.attn_q.bias" not in specs
        and "v.blk.0.attn_qkv.bias" in specs
        and not any(s.optional for s in specs.values())
    )
    network = internvideo3.Network(cfg, synthetic.RandomSource(cfg, "f32"), tiny.network.ops)
    assert network.layers[0].latent_norm is not None and network.head.weight.rows == 448
    x = network.embed([3, 4])
    assert x.shape == (2, 128) and network.logits(x).shape == (2, 448)


def test_deepstack_features_are_added_after_their_layers(tiny):
    network, calls = tiny.network, []
    layers, network.layers = network.layers, [lambda x, *_: calls.append(x.copy()) or x for _ in range(3)]
    for i, layer in enumerate(network.layers):
        layer.index = i
    try:
        one = np.ones((2, 128), np.float32)
        cache = SimpleNamespace(advance=lambda n: calls.append(n))
        out = network.forward(np.zeros((4, 128), np.float32), np.zeros((3, 4), np.int64), cache, [(1, [one, 10 * one])])
    finally:
        network.layers = layers
    assert [c[:, 0].tolist() for c in calls[:3]] == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 11, 11, 0]]
    assert out[:, 0].tolist() == [0, 11, 11, 0] and calls[3] == 4


# ------------------------------------------------------------------------------------------------ loading


class Source:
    """A source of one matrix whose row i holds i."""

    def __init__(self, rows, columns):
        self.data = np.repeat(np.arange(rows, dtype=np.float32)[:, None], columns, 1)
        info = SimpleNamespace(name="m", shape=(rows, columns), format="f32", nbytes=self.data.nbytes)
        self.tensors, self.reads = {"m": info}, []

    def read(self, name, first=0, count=None):
        self.reads.append((first, count))
        return self.data[first : None if count is None else first + count].reshape(-1).view(np.uint8)


def test_matrices_are_read_in_chunks_of_whole_panels(tiny):
    source, seen = Source(1000, 16384), []
    load = Loader(source, tiny.network.ops, lambda *progress: seen.append(progress))
    assert sum(len(p) for p in load.chunks("m")) == 1000 and source.reads == [
        (i * 128, min(128, 1000 - i * 128)) for i in range(8)
    ]
    assert seen[-1] == ("load", 65536000, 65536000) and seen[0] == ("load", 128 * 65536, 65536000)
    wide = Source(3, 1 << 22)
    assert [len(p) for p in Loader(wide, tiny.network.ops).chunks("m")] == [1, 1, 1]


def test_a_head_in_chunks_is_the_head(tiny, monkeypatch):
    source = Source(150, 32)
    whole, sliced = (
        Loader(source, tiny.network.ops).head("m", 150, 32),
        StreamingLoader(source, tiny.network.ops).head("m", 150, 32),
    )
    x = np.ones((2, 32), np.float32)
    source.reads.clear()
    assert np.array_equal(whole(x), sliced(x)) and source.reads == [(0, 150)]
    monkeypatch.setattr("ivlite.gguf.streaming.HEAD_ROWS", 64)
    source.reads.clear()
    assert np.array_equal(whole(x), sliced(x)) and source.reads == [(0, 64), (64, 64), (128, 22)]


def test_the_table_is_not_loaded_beside_a_head(tiny):
    tensors = {
        n: SimpleNamespace(nbytes=b, format=f)
        for n, b, f in (("token_embd.weight", 5, "f32"), ("output.weight", 7, "q8_0"))
    }
    assert Loader(SimpleNamespace(tensors=tensors), None).total == 7
    assert Loader(SimpleNamespace(tensors={"token_embd.weight": tensors["token_embd.weight"]}), None).total == 5
    load = Loader(SimpleNamespace(tensors=tensors), None)
    assert (
        load.exact("token_embd.weight")
        and not load.exact("output.weight")
        and load.has("output.weight")
        and not load.has("x")
    )


# ------------------------------------------------------------------------------------------------ running


def prompt(count, **more):
    from ivlite.evaluate.synthetic import text_prompt

    made = text_prompt(range(count))
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_a_prompt_may_fill_the_context_and_not_more(tiny):
    assert len(tiny.logits(prompt(256))) == 256
    with pytest.raises(ContextError, match="257 tokens and the context holds 256"):
        tiny.logits(prompt(257))
    run = tiny.runner(8)
    with pytest.raises(ContextError):
        run.prefill(prompt(9))
    run.prefill(prompt(8, next_position=5))
    assert run.cache.length == 8 and run.held.next == 5


def test_token_ids_are_of_the_vocabulary(tiny):
    run = tiny.runner(8)
    for ids in ([0, 448], [-1, 3]):
        with pytest.raises(UsageError, match="vocabulary of 448"):
            run.prefill(prompt(2, token_ids=ids))
    run.prefill(prompt(2, token_ids=[0, 447]))


def test_answers_end_at_their_limit_and_at_the_context(tiny):
    def tokens(capacity, limit, eos=()):
        run, made = tiny.runner(capacity), []
        generated = run.answer(prompt(4), lambda row: len(made) + 10, eos, limit)
        while True:
            try:
                made.append(next(generated))
            except StopIteration as end:
                return made, end.value, run.cache.length

    assert tokens(16, 1) == ([10], "length", 4) and tokens(16, 3) == ([10, 11, 12], "length", 6)
    assert tokens(6, 9) == ([10, 11, 12], "length", 6) and tokens(16, 9, (12,)) == ([10, 11], "stop", 6)
    assert tokens(4, 9) == ([10], "length", 4) and tokens(16, 9, (10,)) == ([], "stop", 4)


def test_a_token_stands_behind_the_prompt(tiny, monkeypatch):
    """At the position that the prompt says, which images make smaller than its number."""
    run, seen, network = tiny.runner(8), [], tiny.network
    forward = network.forward
    monkeypatch.setattr(
        network, "forward", lambda x, positions, *rest: seen.append(positions.tolist()) or forward(x, positions, *rest)
    )
    run.prefill(prompt(4, next_position=3))
    run.step(1)
    run.step(1)
    assert seen[1:] == [[[3]] * 3, [[4]] * 3]


def test_logits_come_in_rows(tiny):
    parts = [(first, len(rows)) for first, rows in tiny.each_logits(prompt(150))]
    assert parts == [(0, 64), (64, 64), (128, 22)]
    assert [first for first, _ in tiny.runner(150).each_logits(prompt(150), 100)] == [0, 100]


def test_numbers_that_are_none():
    fine = np.array([0, -5, 1e30], np.float32)
    assert runner.finite(fine) is fine
    for bad in (np.nan, np.inf):
        for at in range(3):
            row = fine.copy()
            row[at] = bad
            with pytest.raises(ModelFileError, match="not finite"):
                runner.finite(row)


class Pairs(Medium):
    def __init__(self, frames, size, kind="video"):
        super().__init__(kind, "m", size, range(frames), np.arange(frames), frames, patch_size=16, temporal=2)

    def pictures(self, first=0):
        for i in self.frames[first:]:
            yield np.full((*self.size, 3), i, np.uint8)


def test_small_pairs_go_through_the_tower_together(tiny):
    seen, batches = [], []
    tower = SimpleNamespace(vision=lambda pairs, *_: batches.append(pairs) or (np.zeros((len(pairs), 1), np.float32), []),
                            config=tiny.config, ops=tiny.network.ops)  # fmt: skip
    media = [Pairs(9, (512, 512)), Pairs(1, (64, 64), "image")]  # 1,024 patches: two pairs at a time
    made = list(vision.encoded(tower, media, Meter(lambda *progress: seen.append(progress))))
    assert sum(len(features) for features, _ in made) == 6 and [len(b) for b in batches] == [2, 2, 1, 1]
    assert [p[0, 0, 0, 0] for b in batches[:3] for p in b] == [0, 2, 4, 6, 8] and batches[2][0][1, 0, 0, 0] == 8
    assert [p for p in seen if p[0] == "vision"] == [("vision", n, 6) for n in (2, 4, 5, 6)]
    assert [p for p in seen if p[0] == "decode"] == [("decode", n, 11) for n in (2, 4, 6, 8, 10, 11)]


def test_features_are_taken_as_they_are_wanted(tiny):
    feed = vision.Features(tiny.network, [], Meter())
    feed.batches = iter([(np.arange(4), [np.arange(4) * 10]), (np.arange(4, 6), [np.arange(4, 6) * 10])])
    taken = [feed.take(n) for n in (3, 3, 9)]
    assert [t[0].tolist() for t in taken] == [[0, 1, 2], [3], [4, 5]] and taken[1][1][0].tolist() == [30]


@pytest.mark.parametrize(
    "times, temporal, expected",
    [([0, 1, 2, 3], 2, [0.5, 2.5]), ([0, 1, 2], 2, [0.5, 2]), ([5], 2, [5]), ([1, 2, 6], 3, [3.5]), ([], 2, [])],
)
def test_time_marks_of_pairs(times, temporal, expected):
    assert marks(times, temporal) == expected


def test_the_sizes_of_random_models():
    big, small, toy = (synthetic.config(size) for size in ("8b", "4b", "tiny"))
    assert big.text.mrope_section == small.text.mrope_section == (24, 20, 20) and toy.text.mrope_section == (6, 5, 5)
    # Qwen3-VL-4B's: its decoder and its tower
    assert (small.text.hidden_size, small.text.intermediate_size, small.text.num_layers) == (2560, 9728, 36)
    tower = small.vision
    assert (tower.depth, tower.hidden_size, tower.num_heads, tower.intermediate_size, tower.deepstack_indexes) == (
        24,
        1024,
        16,
        4096,
        (5, 11, 17),
    )
    for size, made in (("8b", big), ("4b", small), ("tiny", toy)):
        made.check("memory")
        assert made.name == f"random-{size}" and (made.video.fps, made.video.min_frames, made.video.max_frames) == (
            1,
            4,
            768,
        )
        assert made.video.min_pixels == made.video.max_pixels == 131072 and (
            made.image.min_pixels,
            made.image.max_pixels,
        ) == (65536, 16777216)
    assert synthetic.config("demo").text == ivlite.load("demo", context=64).config.text
