"""Values that many parts share: numbers, exit codes, sizes of random models, what is said where nothing is stated."""

import dataclasses
import errno
import inspect
import math
import signal
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite import errors, files, interrupt, machine
from ivlite.errors import UsageError, sentence, shown
from ivlite.evaluate import synthetic
from ivlite.gguf import writer
from ivlite.numbers import number, scalar, whole
from ivlite.stop import Stop

# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("check, good, bad", [
    (lambda v: whole("n", v), (1, 1 << 40), (0, (1 << 40) + 1)), (lambda v: whole("n", v, 5, 7), (5, 7), (4, 8)), (lambda v: number("n", v, 5), (5, 1e12), (4.999, 1.0001e12)),
    (lambda v: number("n", v, 5, 7), (5, 7), (4.999, 7.001)), (lambda v: number("n", v, 5, 7, above=True), (5.001, 7), (5, 7.001)), (lambda v: number("n", v, 5, above=True), (5.001, 1e12), (5,)),
])  # fmt: skip
def test_ranges_at_their_limits(check, good, bad):
    for value in good:
        assert check(value) == value
    for value in bad:
        with pytest.raises(UsageError, match=f"^n is {value!r}; it must be a (whole )?number"):
            check(value)


@pytest.mark.parametrize(
    "low, high, above, limit",
    [
        (0, None, False, "of at least 0"),
        (0, None, True, "above 0"),
        (1, 2, False, "from 1 to 2"),
        (1, 2, True, "above 1 and at most 2"),
    ],
)
def test_words_for_a_range(low, high, above, limit):
    with pytest.raises(UsageError) as caught:
        number("x", -9, low, high, above)
    assert str(caught.value) == f"x is -9; it must be a number {limit}"


def test_decimals_with_many_digits():
    from decimal import Decimal

    assert scalar(Decimal("1E+399")) == 10**399 and scalar(Decimal("1E-399")) * 10**399 == 1
    assert scalar(Decimal("1E+400")) == math.inf and scalar(Decimal("1E-400")) == 0.0


@pytest.mark.parametrize("most", [20, 80, 500])
@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 1000, 10_000])
def test_sentences_lose_their_middle(most, extra):
    text = "".join(chr(97 + i % 26) for i in range(most + extra))
    got = sentence(text, most)
    if extra <= 0:
        assert got == text
    else:
        head, tail = got.split(" ... ")
        assert len(got) == most and len(tail) == most // 3 and text.startswith(head) and text.endswith(tail)
    assert len(shown("x" * 200)) == 80 and shown("x" * 78) == repr("x" * 78) and len(shown("x" * 79)) == 80


def test_values_are_shown_three_levels_deep():
    assert shown([[[1]]]) == "[[[1]]]" and shown([[[[1]]]]) == "[[[[...]]]]"
    assert len(shown("a" * 80, 200)) == 82 and "..." in shown(["a" * 81], 200) and "..." not in shown(["a" * 78], 200)


# ------------------------------------------------------------------------------------------------ how commands end


def test_exit_codes():
    expected = {
        "IvliteError": 1, "UsageError": 2, "ModelFileError": 3, "SessionFileError": 3, "MediaError": 4, "OutOfMemoryError": 5, "DiskError": 6, "ContextError": 7,
        "DeviceError": 8, "AddressError": 8, "Stopped": 130,
    }  # fmt: skip
    assert {name: getattr(errors, name).exit_code for name in expected} == expected
    ends = {number: (reason, code) for number, (_, reason, code) in interrupt.SIGNALS.items()}
    assert ends == {
        number: (word, 128 + number)
        for number, word in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up"))
    }
    assert interrupt.CODES == {"interrupted": 130, "terminated": 143, "hung up": 129}
    assert [errors.Stopped.because(word).word for word in ("interrupted", "terminated", "hung up", "deadline")] == [
        "interrupted",
        "terminated",
        "hung up",
        "stopped (deadline)",
    ]


@pytest.mark.parametrize("number, reading, writing", [
    (errno.EMFILE, "close other files", "close other files"), (errno.EIO, "check the disk", "check the disk"), (errno.ENOENT, "check the path", "elsewhere"), (errno.EACCES, "check its permissions", "check its permissions or write"),
    (errno.ENOMEM, "close other programs", "elsewhere"), (errno.ENOSPC, "elsewhere", "free some space"), (errno.EROFS, "elsewhere", "check its permissions or write"), (errno.EDQUOT, "elsewhere", "free some space"),
])  # fmt: skip
def test_what_to_do_about_an_error(number, reading, writing):
    for table, words in ((files.READING, reading), (files.WRITING, writing)):
        said, advice = files.reason(OSError(number, "The words"), table, "elsewhere").split("; ")
        assert said == "The words" and advice.startswith(words)
    assert (
        files.reason(ValueError("v")) == "v; check the path"
        and files.reason(ValueError()) == "ValueError; check the path"
    )
    assert len(files.reason(OSError(5, "w" * 500))) < 260


# ------------------------------------------------------------------------------------------------ the machine


def test_peak_memory_where_there_is_no_proc(monkeypatch):
    monkeypatch.setattr(machine, "_listed", lambda *args: None)
    monkeypatch.setattr(machine.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=1000))
    for platform, size in (("linux", 1_024_000), ("darwin", 1000), ("freebsd14", 1_024_000)):
        monkeypatch.setattr(machine.sys, "platform", platform)
        assert machine.peak_memory() == size


def test_listings_of_the_kernel(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:   2000 kB\nMemAvailable:     7 kB\nMem: 1 kB\n")
    assert (
        machine._listed(tmp_path / "meminfo", "MemAvailable") == 7 * 1024
        and machine._listed(tmp_path / "meminfo", "Swap") is None
    )
    folder = tmp_path / "mount" / "a:b"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("1000")
    (folder / "memory.current").write_text("300")
    (tmp_path / "listing").write_text("0::/a:b\n")  # colons belong to the path
    assert machine.group_memory(tmp_path / "listing", tmp_path / "mount") == 700
    (folder / "memory.max").write_text(str((1 << 60) - 1))
    assert machine.group_memory(tmp_path / "listing", tmp_path / "mount") == (1 << 60) - 301
    (folder / "memory.max").write_text(str(1 << 60))
    assert machine.group_memory(tmp_path / "listing", tmp_path / "mount") is None


@pytest.mark.parametrize(
    "limit, pages, left",
    [
        (1000 * 4096, "600 1 2", 400 * 4096),
        (600 * 4096, "600 1", 0),
        (5 * 4096, "600 1", 0),
        (machine.resource.RLIM_INFINITY, "600 1", None),
        (5, "", None),
    ],
)
def test_address_space_that_is_left(monkeypatch, limit, pages, left):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (limit, limit))
    monkeypatch.setattr(machine.resource, "getpagesize", lambda: 4096)
    monkeypatch.setattr(machine, "_text", lambda path: pages)
    assert machine._address_space_left() == left


@pytest.mark.parametrize(
    "known, least", [((5, 3, 9), 3), ((None, 3, None), 3), ((None, None, None), None), ((0, 1, 2), 0)]
)
def test_the_tightest_limit_counts(monkeypatch, known, least):
    for name, value in zip(("_listed", "group_memory", "_address_space_left"), known, strict=True):
        monkeypatch.setattr(machine, name, lambda *args, value=value: value)
    assert machine.available_memory() == least


# ------------------------------------------------------------------------------------------------ random models

# hidden, layers, heads, rank, head dimension, ffn, vocabulary; depth, hidden, heads, ffn, positions, DeepStack layers
SHAPES = {
    "8b": "4096 36 32 896 128 12288 151936 27 1152 16 4304 2304 8,16,24", "4b": "2560 36 32 896 128 9728 151936 24 1024 16 4096 2304 5,11,17",
    "tiny": "128 4 4 96 32 384 448 4 96 4 160 64 0,1,2",
}  # fmt: skip


@pytest.mark.parametrize("size", SHAPES)
def test_sizes_of_random_models(size):
    cfg = synthetic.config(size)
    t, v = cfg.text, cfg.vision
    got = (
        t.hidden_size,
        t.num_layers,
        t.num_heads,
        *set(t.kv_lora_rank),
        t.v_head_dim,
        t.intermediate_size,
        t.vocab_size,
        v.depth,
        v.hidden_size,
        v.num_heads,
        v.intermediate_size,
        v.num_position_embeddings,
    )
    assert [*map(str, got), ",".join(map(str, v.deepstack_indexes))] == SHAPES[size].split()
    assert (
        t.qk_nope_head_dim == t.qk_rope_head_dim == t.v_head_dim
        and len(t.kv_lora_rank) == t.num_layers
        and v.out_hidden_size == t.hidden_size
    )
    assert (
        sum(t.mrope_section) == t.qk_rope_head_dim // 2
        and math.isqrt(v.num_position_embeddings) ** 2 == v.num_position_embeddings
    )
    assert (
        t.rope_theta,
        t.rms_norm_eps,
        t.context_length,
        cfg.video.max_pixels,
        cfg.image.max_pixels,
        cfg.video.fps,
    ) == (5e6, 1e-6, 262144, 131072, 1 << 24, 1)
    ids = [value for f in dataclasses.fields(cfg.tokens) if isinstance(value := getattr(cfg.tokens, f.name), int)]
    assert len(set(ids)) == len(ids) == 6  # no token is two
    d, w = t.v_head_dim, v.hidden_size
    layer = (
        t.hidden_size * (t.num_heads * 3 * d + t.kv_lora_rank[0] + d + 3 * t.intermediate_size)
        + t.num_heads * 2 * d * t.kv_lora_rank[0]
    )
    mergers = (1 + len(v.deepstack_indexes)) * 4 * w * (4 * w + t.hidden_size)
    tower = (
        v.depth * w * (4 * w + 2 * v.intermediate_size) + w * (3 * 2 * 16 * 16 + v.num_position_embeddings) + mergers
    )
    matrices = [x for x in synthetic.RandomSource(cfg, "f32").tensors.values() if len(x.shape) > 1]
    assert sum(math.prod(x.shape) for x in matrices) == t.num_layers * layer + 2 * t.vocab_size * t.hidden_size + tower
    assert all(x.nbytes == 4 * math.prod(x.shape) for x in matrices)


def test_random_weights():
    source = synthetic.RandomSource(synthetic.config("tiny"), "q8_0")
    name, info = "blk.0.attn_q.weight", source.tensors["blk.0.attn_q.weight"]
    assert len(source.read(name)) == info.nbytes and len(source.read(name, 3, 5)) == 5 * info.nbytes // info.shape[0]
    values = synthetic.RandomSource(synthetic.config("tiny"), "f32").read(name).view(np.float32)
    assert values.std() == pytest.approx(1 / math.sqrt(info.shape[1]), rel=0.02) and abs(values.mean()) < 0.01
    assert source.read("output_norm.weight").view(np.float32).tolist() == [1.0] * 128
    assert source.read_rows("token_embd.weight", [5, 6, 7]).shape[0] == 3
    digests = {
        synthetic.RandomSource(synthetic.config("tiny"), t, seed).digest for t in ("q8_0", "f32") for seed in (0, 1)
    }
    assert len(digests) == 4


@pytest.mark.parametrize("tokens", [1, 2048, 2049, 5000])
def test_a_cache_of_random_rows(tokens):
    added, cfg = [], synthetic.config("tiny")
    cache = SimpleNamespace(
        append=lambda layer, latents, keys: added.append((layer, latents.shape, keys.shape)), advance=added.append
    )
    synthetic.fill(cache, cfg, tokens, np.random.default_rng(0))
    sizes = [n for n in added if isinstance(n, int)]
    assert sum(sizes) == tokens and max(sizes) <= 2048 and len(sizes) == -(-tokens // 2048)
    assert added[:5] == [*((layer, (sizes[0], 96), (sizes[0], 32)) for layer in range(4)), sizes[0]]
    assert synthetic.usual_pair(cfg) == (352, 352, 2)
    small = dataclasses.replace(cfg, video=dataclasses.replace(cfg.video, max_pixels=1000, min_pixels=1))
    assert synthetic.usual_pair(small) == (32, 32, 2)


def test_a_random_model_that_nobody_describes():
    given = {p.name: p.default for p in inspect.signature(synthetic.random_model).parameters.values()}
    expected = {"size": "8b", "type": "q4_k_m", "context": 8192, "kv": "q8", "seed": 0}
    assert {name: given[name] for name in expected} == expected


# ------------------------------------------------------------------------------------------------ files and stops


@pytest.mark.parametrize("value, kind, size", [
    (True, writer.BOOL, 1), (0, writer.U32, 4), ((1 << 32) - 1, writer.U32, 4), (1 << 32, writer.U64, 8), ((1 << 64) - 1, writer.U64, 8), (-1, writer.I64, 8), (-(1 << 63), writer.I64, 8), (0.5, writer.F64, 8), ("é", writer.STRING, 10),
])  # fmt: skip
def test_types_of_values_in_a_file(value, kind, size):
    data = writer._value(value)
    assert data[:4] == kind.to_bytes(4, "little") and len(data) == 4 + size
    many = writer._value([value, value, value])
    assert many[:16] == struct.pack("<IIQ", 9, kind, 3) and len(many) == 16 + 3 * size
    assert writer._value([])[:16] == struct.pack("<IIQ", 9, writer.U32, 0)


def test_a_list_has_the_widest_type_of_its_values():
    assert writer._value([1, 1 << 40])[4:8] == writer.U64.to_bytes(4, "little") and writer._value([1, -1])[
        4:8
    ] == writer.I64.to_bytes(4, "little")
    assert writer._value(np.float32(1.5)) == struct.pack("<If", 6, 1.5) and writer._value(
        np.array([1, 2], np.uint16)
    ) == struct.pack("<IIQHH", 9, 2, 2, 1, 2)
    numbers = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "u64": 10, "i64": 11, "f64": 12}
    assert (writer.U32, writer.U64, writer.I64, writer.F64, writer.BOOL, writer.STRING, writer.ARRAY) == (
        4,
        10,
        11,
        12,
        7,
        8,
        9,
    ) and len(writer.TYPED) == len(numbers) + 1


def test_places_of_tensors_and_checksums():
    metadata = writer.with_checksums({"a": 1}, 3)
    tensors = [("x", (2, 32), "q8_0"), ("y", (3,), "f32"), ("z", (1, 256), "q4_k")]
    start, size, places = writer.header(metadata, tensors)
    sizes = [writer.nbytes(shape, form) for _, shape, form in tensors]
    assert sizes == [68, 12, 144] and size == 96 + 32 + 160 and len(start) % 32 == 0
    assert start[:24] == b"GGUF" + struct.pack("<IQQ", 3, 3, 3)
    for key, skip in ((writer.TENSOR_SUMS, 16), (writer.HEADER_SUM, 4)):
        assert places[key] == start.index(key.encode()) + len(key) + skip
    offsets = [
        struct.unpack_from("<Q", start, start.index(struct.pack("<Q", 1) + name) + 9 + 4 + 8 * dims + 4)[0]
        for name, dims in ((b"x", 2), (b"y", 1), (b"z", 2))
    ]
    assert offsets == [0, 96, 128]


@pytest.mark.parametrize("seconds, fine", [(0, True), (1e9, True), (-0.001, False), (1.001e9, False)])
def test_deadlines(seconds, fine):
    stop = Stop()
    if fine:
        stop.after(seconds)
        assert stop.is_set() == (seconds == 0) and stop.reason == ("deadline" if seconds == 0 else None)
    else:
        with pytest.raises(UsageError, match="seconds is"):
            stop.after(seconds)
