"""The choice of a token on a card, against the Sampler of the engine: the same seed, the same tokens."""

import numpy as np
import pytest

from ivlite.engine.sampling import Sampler, SamplingParams

TOKEN = np.dtype([("key", "<u4"), ("id", "<i4"), ("bad", "<i4")])


class Card:
    """One row of logits on a device, with what `Sampler` asks of a row that stays there."""

    def __init__(self, device, logits):
        self.device, self.vocab = device, len(logits)
        self.logits = device.array(logits)
        self.work = [device.empty(n, np.uint32).pointer for n in (self.vocab, 2048, 4096)]
        self.found, self.parts = device.empty(1, TOKEN), device.empty(64, TOKEN)

    def marked(self, ids):
        bits = np.zeros(-(-self.vocab // 32) * 32, np.uint8)
        bits[[i for i in ids if i < self.vocab]] = 1
        return self.device.array(np.packbits(bits, bitorder="little"))

    def draw(self, params, marked, uniform):
        seen = 0 if marked is None else marked.pointer
        row = (
            self.found.pointer,
            self.parts.pointer,
            (self.logits.pointer, self.vocab),
            self.vocab,
            seen,
            params.repetition_penalty,
        )
        if params.temperature == 0:
            self.device.cuda.sample_greedy(*row, 1, 0)
        else:
            self.device.cuda.sample_draw(
                *row, self.work, params.temperature, params.top_k, params.top_p, params.min_p, uniform, 0
            )
        found = self.found.numpy()[0]
        assert not found["bad"]
        return int(found["id"])


SETTINGS = [
    {"temperature": 0.0}, {"temperature": 0.0, "repetition_penalty": 1.5}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.0, "top_k": 1}, {"temperature": 1.3, "top_p": 0.8}, {"temperature": 0.8, "top_p": 0.0},
    {"temperature": 1.0, "min_p": 0.1}, {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    {"temperature": 100.0, "top_p": 0.999}, {"temperature": 1e-6}, {"temperature": 2.0, "repetition_penalty": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("vocab", [1, 33, 448, 5000])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_tokens_as_on_the_cpu(device, rng, vocab, settings):
    logits = (4 * rng.standard_normal(vocab)).astype(np.float32)
    params, prompt = SamplingParams(seed=7, **settings), [0, vocab // 2, vocab + 9]
    there, here, row = Sampler(params, prompt), Sampler(params, prompt), Card(device, logits)
    assert [there(row) for _ in range(12)] == [here(logits) for _ in range(12)]


@pytest.mark.parametrize("settings", [{"top_k": 40}, {"top_p": 0.5}, {"min_p": 0.5}, {}])
def test_equal_logits_are_taken_by_their_ids(device, settings):
    """Thousands of ties: sets are cut within them, and the draw falls among them."""
    logits = np.zeros(5000, np.float32)
    logits[::2] = -0.0
    logits[100] = 1
    params = SamplingParams(seed=3, temperature=1.0, **settings)
    there, here, row = Sampler(params), Sampler(params), Card(device, logits)
    mine = [there(row) for _ in range(16)]
    if settings.get("top_k"):  # which of many equal logits numpy keeps is not defined; the smallest ids are kept here
        assert set(mine) <= {100, *range(39)} and len(set(mine)) > 5
    else:
        assert mine == [here(logits) for _ in range(16)]


def test_infinite_logits(device):
    """Minus infinity is a token that never comes; NaN, plus infinity and nothing but minus infinity are errors."""
    logits = np.full(100, -np.inf, np.float32)
    logits[[3, 50]] = 1, 0
    params = SamplingParams(seed=1, temperature=1.0)
    there, here, row = Sampler(params), Sampler(params), Card(device, logits)
    assert [there(row) for _ in range(20)] == [here(logits) for _ in range(20)]
    for at, value in ((3, np.nan), (99, np.inf), (slice(None), -np.inf)):
        wrong = logits.copy()
        wrong[at] = value
        for temperature in (0.0, 1.0):
            with pytest.raises(AssertionError):
                Card(device, wrong).draw(SamplingParams(temperature=temperature), None, 0.5)


def test_the_largest_uniform_takes_a_token_that_is_kept(device, rng):
    logits = rng.standard_normal(300).astype(np.float32)
    row = Card(device, logits)
    order = np.lexsort((np.arange(300), -logits))
    for k in (1, 7, 300):
        last = row.draw(SamplingParams(temperature=1.0, top_k=k), None, np.nextafter(1.0, 0))
        assert last in order[:k].tolist()
    assert row.draw(SamplingParams(temperature=1.0), None, 0.0) == order[0]


def test_the_likeliest_of_several_rows(device, rng):
    logits = rng.standard_normal((5, 700)).astype(np.float32)
    logits[2, [10, 400]] = 9
    logits[4, 5] = np.nan
    rows, found, parts = device.array(logits), device.empty(5, TOKEN), device.empty(5 * 64, TOKEN)
    device.cuda.sample_greedy(found.pointer, parts.pointer, (rows.pointer, 700), 700, 0, 1.0, 5, 0)
    found = found.numpy()
    assert found["id"][:4].tolist() == logits[:4].argmax(1).tolist() and found["bad"].tolist() == [0, 0, 0, 0, 1]


def test_no_kernel_races_or_leaves_its_memory(checked, rng):
    """Under the emulator that looks at every access, with every cut."""
    logits = (3 * rng.standard_normal(1000)).astype(np.float32)
    row = Card(checked, logits)
    for settings in (
        {"temperature": 0.0},
        {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ):
        params = SamplingParams(seed=2, **settings)
        there, here = Sampler(params, [5]), Sampler(params, [5])
        assert [there(row) for _ in range(2)] == [here(logits) for _ in range(2)]
