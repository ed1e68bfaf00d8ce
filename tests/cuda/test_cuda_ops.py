"""The CUDA operations against the CPU's: the interface of `ivlite.ops`, over the emulated card."""

import weakref

import numpy as np
import pytest
from emulated_memory import EmulatedMemory

from ivlite import ops
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import DeviceError, OutOfMemoryError
from ivlite.ops import cuda

FLOATS = ("f32", "f16", "bf16")
FORMATS = (*FLOATS, "q8_0", "q6_k", "q5_k", "q4_k", "q4_0")
# Largest root mean square of the difference in that of the expected values, of few rows and of many. The same int8 rows; floats in
# another order; operands in bf16 or half.
FEW = 1e-4
MANY = {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-3}
ROUNDED = 6e-3


@pytest.fixture
def card(emulated_module):
    return cuda.Ops(EmulatedMemory(emulated_module), threads=1)


@pytest.fixture
def cpu():
    return ops.get("cpu", 1)


@pytest.fixture
def both(card, cpu, plainly):
    """both(call): call(o) with the card, and with the CPU's plain kernels, as numpy arrays."""

    def run(call):
        return card.numpy(call(card)), plainly(lambda: cpu.numpy(call(cpu)))

    return run


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def off(got, expected):
    assert got.shape == expected.shape
    return np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean())


def few_limit(fmt):
    return 1e-5 if fmt in FLOATS else FEW


@pytest.mark.parametrize("tokens", [1, 4, 5, 16, 17, 70])
@pytest.mark.parametrize("fmt", FORMATS)
def test_linear(both, card, rng, fmt, tokens):
    """Rows with margins, a bias, sums that are added to, and activations."""
    cols, rows = (512, 48) if fmt.endswith("k") else (96, 48)
    wide, m, b, y = normal(rng, tokens, cols + 4), normal(rng, rows, cols), normal(rng, rows), normal(rng, tokens, rows)
    for given in (
        {},
        {"bias": b},
        {"bias": b, "into": y},
        {"bias": b, "activation": "gelu_erf"},
        {"activation": "silu_mul"},
    ):

        def call(o, given=given):
            w = o.weight(fmt, o.encode(fmt, m), m.shape)
            arrays = {name: v if isinstance(v, str) else o.array(v.copy()) for name, v in given.items()}
            return o.linear(o.array(wide)[:, :cols], w, **arrays)

        got, expected = both(call)
        if tokens > cuda.FEW and fmt not in FLOATS:  # there activations are in bf16, and not in int8
            exact = ops.get("cpu").decode(fmt, ops.get("cpu").encode(fmt, m), m.size).reshape(m.shape)
            expected = both(lambda o, exact=exact, given=given: float_linear(o, wide[:, :cols], exact, given))[1]
        limit = few_limit(fmt) if tokens <= cuda.FEW else MANY.get(fmt, ROUNDED)
        assert off(got, expected) < limit, given


def float_linear(o, x, m, given):
    arrays = {name: v if isinstance(v, str) else o.array(v.copy()) for name, v in given.items()}
    return o.linear(o.array(np.ascontiguousarray(x)), o.weight("f32", o.encode("f32", m), m.shape), **arrays)


@pytest.mark.parametrize(
    "formats", [("q4_k", "q6_k"), ("q8_0", "q8_0"), ("f32", "f32"), ("f16", "f16"), ("bf16", "q8_0")]
)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_mlp(both, rng, formats, tokens):
    up, down = formats
    x, m, n, y = normal(rng, tokens, 256), normal(rng, 512, 256), normal(rng, 33, 256), normal(rng, tokens, 33)

    def call(o):
        weights = (o.weight(f, o.encode(f, w), w.shape) for f, w in ((up, m), (down, n)))
        return o.mlp(o.array(x), (next(weights), None), "silu_mul", (next(weights), None), o.array(y.copy()))

    got, expected = both(call)
    exact = set(formats) <= {"f32"}
    assert off(got, expected) < (1e-5 if exact else 2e-3 if tokens <= cuda.FEW else 0.03)


@pytest.mark.parametrize("fmt", ["f32", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_linear_heads(both, rng, fmt, tokens):
    x, m = normal(rng, tokens, 3, 100), normal(rng, 3, 40, 64)
    got, expected = both(
        lambda o: o.linear_heads(o.array(x)[:, :, 36:], o.weight(fmt, o.encode(fmt, m.reshape(-1, 64)), m.shape))
    )
    assert off(got, expected) < few_limit(fmt)


@pytest.mark.parametrize("fmt", ["q6_k", "q8_0", "q4_0"])
def test_linear_heads_of_many_tokens(both, rng, fmt):
    """Heads of whole tiles: one product on tensor cores, of activations in bf16."""
    x, m = normal(rng, 20, 3, 100), normal(rng, 3, 128, 64)
    got, expected = both(
        lambda o: o.linear_heads(o.array(x)[:, :, 36:], o.weight(fmt, o.encode(fmt, m.reshape(-1, 64)), m.shape))
    )
    assert off(got, expected) < 2 * ROUNDED


def test_a_weight_comes_in_chunks(card, cpu, rng):
    m = normal(rng, 70, 64)
    blocks = card.encode("q8_0", m).reshape(70, -1)
    whole, parts = (
        card.weight("q8_0", blocks.reshape(-1), m.shape),
        card.weight("q8_0", [blocks[:32], blocks[32:]], m.shape),
    )
    assert np.array_equal(whole.memory, parts.memory) and whole.nbytes >= blocks.nbytes
    for wrong in ([blocks[:32]], [blocks, blocks[:1]]):
        with pytest.raises(ValueError, match="rows is given"):
            card.weight("q8_0", wrong, m.shape)


def test_packing_holds_one_chunk_of_the_file(card, rng):
    """In the machine's memory and on the card, whatever the size of the weight."""
    blocks, alive = card.encode("q8_0", normal(rng, 640, 64)).reshape(640, -1), []

    def chunks():
        for first in range(0, 640, 32):
            assert sum(chunk() is not None for chunk in alive) <= 1, "no more than the one that was packed last"
            assert card.memory.used - before <= weight + blocks[:64].nbytes
            chunk = blocks[first : first + 32].copy()
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk

    before, weight = card.memory.used, card.memory.kernels.device_weight_bytes(card.codes["q8_0"], 1, 640, 64)
    card.weight("q8_0", chunks(), (640, 64))
    assert len(alive) == 20


def test_embedding(card, cpu, rng):
    m, ids = normal(rng, 30, 64), [3, 29, 3, 0]
    for fmt in ("f32", "q8_0", "q4_0"):
        data = card.encode(fmt, m)
        expected = cpu.decode(fmt, data, m.size).reshape(m.shape)[ids]
        assert np.array_equal(card.numpy(card.embedding(card.weight(fmt, data, m.shape), ids)), expected)


def test_norms_rope_activations(both, rng):
    x, w, b, angles = normal(rng, 5, 24), normal(rng, 24), normal(rng, 24), normal(rng, 5, 4)
    for call in (
        lambda o: o.rms_norm(o.array(x), o.array(w), 1e-6),
        lambda o: o.rms_norm(o.array(x)[:, 4:], o.array(w)[4:], 1e-6),
        lambda o: o.layer_norm(o.array(x), o.array(w), o.array(b), 1e-6),
        lambda o: o.rope(o.array(x).reshape(5, 3, 8), o.array(np.cos(angles)), o.array(np.sin(angles)), True),
        lambda o: o.rope(o.array(x).reshape(5, 3, 8), o.array(np.cos(angles)), o.array(np.sin(angles)), False),
        lambda o: o.silu_mul(o.array(x)),
        lambda o: o.concat([o.array(x), o.array(x[:, :7])]),
        lambda o: o.concat([o.array(x), o.array(x[:2])], axis=0),
    ):
        got, expected = both(call)
        assert np.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("d", [12, 72])
def test_patchify_and_attention(both, rng, exact, d):
    frames = rng.integers(0, 256, (2, 64, 96, 3), np.uint8)
    got, expected = both(lambda o: o.patchify(frames, 16, 2, (0.5, 0.4, 0.3), (0.5, 0.2, 0.1)))
    assert np.array_equal(got, expected)
    qkv = normal(rng, 60, 3, 2, d)

    def call(o):
        x = o.array(qkv)
        return o.attention(x[:, 0], x[:, 1], x[:, 2], d**-0.5, 30, exact)

    got, expected = both(call)
    assert off(got, expected) < (1e-5 if exact else 5e-3)


def turns(rng, heads, rank, rope, nope):
    return [
        (normal(rng, n, rank), normal(rng, n, rope), normal(rng, n, heads, rank), normal(rng, n, heads, rope), normal(rng, n, heads, nope))
        for n in (40, 3)
    ]  # fmt: skip


def queries(o, *parts):
    return lambda first, last: [o.array(part[first:last]) for part in parts]


@pytest.mark.parametrize("fmt", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("kind", ["f32", "bf16", "q8", "q4"])
def test_latent_attention_in_two_turns(both, card, rng, kind, fmt):
    heads, rank, rope, nope, v = 3, 64, 8, 12, 10
    kv_b = normal(rng, heads, nope + v, rank) / np.float32(rank**0.5)
    given = turns(rng, heads, rank, rope, nope)

    def call(o, which):
        cache, out = o.cache([rank, rank], rope, 64, kind), []
        w = o.weight(fmt, o.encode(fmt, kv_b.reshape(-1, rank)), kv_b.shape)
        for latent, keys, ql, qr, qn in given:
            for layer in (0, 1):
                cache.append(layer, o.array(latent * np.float32(layer + 1)), o.array(keys))
                if which == "absorbed":
                    out.append(o.absorbed_attention(o.array(ql), o.array(qr), cache, layer, 0.2).reshape(-1, rank))
                else:
                    out.append(o.expanded_attention(queries(o, qn, qr), len(qn), cache, layer, w, 0.2).reshape(-1, v))
            cache.advance(len(latent))
        assert cache.length == 43
        return o.concat(out, axis=0)

    limit = {"f32": 1e-5, "bf16": 5e-3}.get(kind, 0.02)
    assert off(*both(lambda o: call(o, "absorbed"))) < limit
    got, expected = both(lambda o: call(o, "expanded"))
    assert off(got, expected) < (1e-5 if kind == fmt == "f32" else 0.02)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8", "q4"])
def test_rows_of_a_cache_go_from_device_to_device(card, cpu, rng, kind):
    """What one dumps, the other restores and dumps again, byte for byte; and reads as the same numbers."""
    latent, keys = normal(rng, 11, 48), normal(rng, 11, 40)
    caches = []
    for o in (card, cpu):
        cache = o.cache([48, 32], 40, 16, kind)
        cache.append(0, o.array(latent), o.array(keys))
        cache.append(1, o.array(latent[:, :32]), o.array(keys))
        cache.advance(11)
        caches.append(cache)
    mine, theirs = caches
    assert np.array_equal(mine.dump(0, 11), theirs.dump(0, 11)) and mine.token_bytes == theirs.token_bytes
    for o, data in ((card, theirs.dump(2, 9)), (cpu, mine.dump(2, 9))):
        again = o.cache([48, 32], 40, 8, kind)
        again.restore(0, data)
        assert again.length == 7 and np.array_equal(again.dump(0, 7), data)
        again.reserve(20)
        assert again.capacity == 20 and np.array_equal(again.dump(0, 7), data)
        again.truncate(3)
        assert again.length == 3 and np.array_equal(again.dump(0, 3), again.dump(0, 3))
    for x, y in zip(mine.read(0, 1, 10), theirs.read(0, 1, 10), strict=True):
        assert np.allclose(x, y, atol=1e-6)


def test_a_cache_refuses_what_the_cpu_refuses(card, rng):
    cache = card.cache([8], 4, 4, "q8")
    rows, keys = card.array(normal(rng, 3, 8)), card.array(normal(rng, 3, 4))
    cache.append(0, rows, keys)
    for wrong in (
        lambda: cache.advance(2), lambda: cache.append(1, rows, keys), lambda: cache.append(0, keys, keys),
        lambda: cache.truncate(1), lambda: cache.dump(0, 1), lambda: cache.restore(1, np.zeros(16, np.uint8)),
        lambda: cache.restore(0, np.zeros(7, np.uint8)), lambda: cache.restore(0, np.zeros(5 * cache.token_bytes, np.uint8)),
        lambda: cache.read(0, 0, 4), lambda: card.cache([8], 4, 0, "q8"),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            wrong()
    cache.advance(3)
    with pytest.raises(ValueError, match="full"):
        cache.append(0, rows, keys)
    assert cache.length == 3 and cache.nbytes == 4 * cache.token_bytes


def test_what_a_card_refuses_is_one_sentence(card, rng):
    """Memory that is not there, and an error of the driver: the operations go on afterwards."""
    memory = EmulatedMemory(card.memory.module, limit=1 << 20)
    small = cuda.Ops(memory, threads=1)
    before = memory.used
    with pytest.raises(OutOfMemoryError, match="are needed"):
        small.linear(
            small.array(normal(rng, 300, 64)),
            small.weight("f32", small.encode("f32", normal(rng, 1000, 64)), (1000, 64)),
        )
    assert memory.used == before
    assert small.numpy(small.silu_mul(small.array(normal(rng, 3, 8)))).shape == (3, 4)

    class Lost:
        Error = memory.kernels.Error

        def silu_mul(self, *args):
            raise self.Error(719, "cudaErrorLaunchFailure", "unspecified launch failure")

        def gelu_erf(self, *args):
            raise self.Error(2, "cudaErrorMemoryAllocation", "out of memory")

    x = small.array(normal(rng, 3, 8))
    memory.kernels = Lost()
    memory.launch = lambda kernel, *args: getattr(memory.kernels, kernel)(*args)
    with pytest.raises(DeviceError, match="emulated card: silu_mul: unspecified launch failure"):
        small.silu_mul(x)
    with pytest.raises(OutOfMemoryError, match="emulated card has"):
        small.activate("gelu_erf", x)


def test_a_row_on_the_card_draws_what_the_cpu_draws(card, rng):
    from ivlite.ops.cuda_step import Logits

    logits = 3 * normal(rng, 2, 500)
    there = Logits(card, card.array(logits), card.numpy(card.likeliest(card.array(logits))))
    assert len(there) == 2 and there.finite and np.array_equal(np.asarray(there), logits)
    assert np.array_equal(np.asarray(there[1]), logits[1])
    for settings in ({"temperature": 0}, {"temperature": 0, "repetition_penalty": 1.3},
                     {"temperature": 0.8, "top_k": 30, "repetition_penalty": 1.3}):  # fmt: skip
        params = SamplingParams(seed=5, **settings)
        mine, theirs = Sampler(params, [1, 2]), Sampler(params, [1, 2])
        for i in (0, 1, 0, 1):
            assert mine(there[i]) == theirs(logits[i])
