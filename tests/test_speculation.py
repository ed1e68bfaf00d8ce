"""Prompt-lookup speculation: the same answers and the same cache as without, and no cost where it does not pay."""

import time

import numpy as np
import pytest
from session_fakes import alone

import ivlite
from ivlite import _C
from ivlite.engine import speculate
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.engine.speculate import COPIES, REPEATED, SOLID, Chances, Costs, Decoder, Lookup
from ivlite.errors import Stopped
from ivlite.evaluate.synthetic import random_model, text_prompt
from ivlite.ops import CACHE_KINDS
from ivlite.stop import Stop, using


@pytest.fixture(scope="module")
def model():
    """A random model whose tokens differ: those of synthetic models share one embedding."""
    model = random_model("tiny", "q4_k_m", threads=2, context=4096)
    source = model.network.source
    info = source.tensors["token_embd.weight"]
    values = np.random.default_rng(5).standard_normal(info.shape, np.float32)
    table = _C.encode(info.format, values.reshape(-1)).reshape(info.shape[0], -1)
    source.read_rows = lambda name, rows: table[rows]
    return model


@pytest.fixture
def eager(monkeypatch):
    """Everything that can be drafted is: calls of many tokens seem to cost no more than one."""
    monkeypatch.setattr(Costs, "of", lambda self, tokens: 1.0)
    monkeypatch.setattr(Chances, "of", lambda self, strength: 0.9)


def repeating(seed, tokens=120):
    """Token ids in which blocks come back, some with a change."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(10, 400, 20).tolist()
    while len(ids) < tokens:
        first = rng.integers(0, len(ids) - 8)
        ids += ids[first : first + rng.integers(3, 15)] + rng.integers(10, 400, 1).tolist()
    return ids


class Answer:
    """An answer of at most `limit` tokens to token ids, `rows` checked at once at most, taken until `closed_after` tokens."""

    def __init__(self, model, ids, limit, rows, eos=(), kv="q8", closed_after=None, room=0, **params):
        rows, speculate.ROWS = speculate.ROWS, rows
        try:
            runner = ivlite.engine.runner.Runner(model.network, len(ids) + limit + room, kv)
            tokens = runner.answer(text_prompt(ids), Sampler(SamplingParams(**params), ids), eos, limit)
            self.ids, self.reason = [], None
            while closed_after is None or len(self.ids) < closed_after:
                try:
                    self.ids.append(next(tokens))
                except StopIteration as end:
                    self.reason = end.value
                    break
            tokens.close()
        finally:
            speculate.ROWS = rows
        self.runner, self.meter = runner, runner.meter

    @property
    def state(self):
        cache, held = self.runner.cache, self.runner.held
        return self.ids, self.reason, held.token_ids, held.next, cache.length, cache.dump(0, cache.length).tobytes()


def same(model, ids, limit, **settings):
    """Both answers after checking that they are equal."""
    plain, drafted = (Answer(model, ids, limit, rows, **settings) for rows in (1, 16))
    assert drafted.state == plain.state
    assert plain.meter.drafted == 0
    return plain, drafted


@pytest.mark.parametrize("kv", CACHE_KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_answer_and_the_cache_are_the_same(eager, model, seed, kv):
    _, drafted = same(model, repeating(seed), 150, kv=kv)
    assert drafted.meter.drafted > drafted.meter.accepted > 30  # some come and some do not


@pytest.mark.parametrize("seed", range(3))
def test_a_long_cache_in_parts(eager, model, seed):
    _, drafted = same(model, repeating(seed, 1500), 60)
    assert drafted.meter.accepted


@pytest.mark.parametrize("penalty", [1.02, 1.3, 0.9])
def test_a_repetition_penalty(eager, model, penalty):
    _, drafted = same(model, repeating(5), 120, repetition_penalty=penalty)
    assert drafted.meter.drafted


def test_every_limit_and_every_end(eager, model):
    """max_new_tokens, a token that ends the answer, and closing, at every place of drafts."""
    ids, longest = repeating(1), 40
    whole = Answer(model, ids, longest, 1).ids
    for n in range(1, longest + 1):
        plain, _ = same(model, ids, n)
        assert (plain.ids, plain.reason, plain.runner.cache.length) == (whole[:n], "length", len(ids) + n - 1)
        plain, _ = same(model, ids, longest, closed_after=n, room=9)
        assert plain.runner.cache.length == len(ids) + n - 1
    for token in set(whole):
        plain, _ = same(model, ids, longest, eos=(token,))
        assert plain.reason == "stop" and plain.runner.cache.length == len(ids) + whole.index(token)


def test_the_end_of_the_context(eager, model):
    ids = repeating(2)
    plain, _ = same(model, ids, 50, room=-20)
    assert (
        plain.reason == "length" and len(plain.ids) == 31 and plain.runner.cache.length == plain.runner.cache.capacity
    )


def test_a_stop_between_accepted_tokens(eager, model):
    ids, stop = repeating(3), Stop()
    expected = Answer(model, ids, 100, 1).ids
    runner = model.runner()
    got = []
    with pytest.raises(Stopped), using(stop):
        for token in runner.answer(text_prompt(ids), Sampler(SamplingParams(), ids), (), 100):
            got.append(token)
            if runner.meter.accepted > 5:
                stop.set()
    assert got == expected[: len(got)] and len(got) < 100
    assert runner.cache.length == runner.held.length == len(ids) + len(got) - 1


def test_an_answer_goes_on_after_another(eager, model):
    """Rows of drafts that did not come are not taken for those of the next prompt."""
    ids, more = repeating(4), repeating(6)
    results = []
    for rows in (1, 16):
        first = Answer(model, ids, 60, rows, room=400)
        runner = first.runner
        second = text_prompt(ids + first.ids + more)
        logits = runner.extend(second)
        results.append(
            (first.ids, runner.meter.cached, logits.tobytes(), runner.cache.dump(0, runner.cache.length).tobytes())
        )
    assert results[0] == results[1]


def test_sampled_answers_are_not_drafted(model):
    answers = [Answer(model, repeating(1), 80, rows, temperature=0.7, seed=3) for rows in (1, 16)]
    assert answers[0].state == answers[1].state and answers[1].meter.drafted == 0


def test_an_observed_model_is_not_drafted(model):
    from ivlite import ops

    seen = []
    assert ops.observed(model.network.ops, lambda names, x: seen.append(len(x))).same_rows == 1
    assert model.network.same_rows == min(model.network.ops.same_rows, 47)  # absorbed attention, up to 48 tokens


# ------------------------------------------------------------------------------------------------ lookup


@pytest.mark.parametrize("seed", range(5))
def test_the_place_that_is_found(seed):
    """The guess follows a real match: the newest place of the longest of three, two and one tokens, or one that goes on, also
    after a token that differs."""
    rng = np.random.default_rng(seed)
    given = rng.integers(0, 8, 40).tolist()
    look = Lookup(given)
    for _ in range(300):
        at = look.at
        guess, strength = look.guess(1)[0] if at >= 0 else None, look.strength
        token = guess if guess is not None and rng.random() < 0.6 else int(rng.integers(0, 8))
        hit = look.add(token)
        ids = look.ids
        assert hit == (None if guess is None else token == guess)
        if hit:
            assert look.at == at + 1
        elif look.length == 0 and strength > SOLID:
            assert look.at == at + 1 and not any(ids[i - 3 : i] == ids[-3:] for i in range(3, len(ids)))
        else:
            for length in (3, 2, 1):
                places = [i for i in range(length, len(ids)) if ids[i - length : i] == ids[-length:]]
                if places:
                    assert (look.at, look.length) == (places[-1], length)
                    break
            else:
                assert (look.at, look.length) == (-1, 0)
        if look.at >= 0:
            assert look.length == 0 or ids[look.at - look.length : look.at] == ids[-look.length :]
            period = len(ids) - look.at
            assert look.guess(20) == [(ids[look.at :] * 20)[i] for i in range(20)] and period > 0


def test_short_texts():
    look = Lookup([])
    assert look.add(5) is None and look.at == -1
    assert look.add(5) is None and look.guess(3) == [5, 5, 5]
    assert look.add(5) is True and look.add(6) is False and look.at == -1


def counted():
    for i in range(5000):
        yield from (100 + i // 1000, 100 + i // 100 % 10, 100 + i // 10 % 10, 100 + i % 10, 50, 51, 52, 53, 54, 55)


@pytest.mark.parametrize(
    "text",
    [
        list(counted())[: 5 * REPEATED],  # a list of equal items with numbers
        [*range(100)] * (COPIES - 2) + [7] + [*range(100)] * (COPIES - 2),  # a long text, many times
        [3] * (REPEATED - 2) + [4] + [3] * (REPEATED - 2),
        ([1] * 40 + [2] * 40) * 3 + list(range(500)) * 2,
    ],
)
def test_what_is_no_endless_repetition(text):
    look = Lookup([1, 2, 3])
    for token in text:
        look.add(token)
        assert not look.endless


@pytest.mark.parametrize("period", [1, 2, 7, 64, 200])
def test_an_endless_repetition(period):
    block = [*range(1000, 1000 + period)]
    look = Lookup(block * 100)  # what the prompt repeats does not count
    needed = max(REPEATED, COPIES * period)
    for i in range(needed):
        assert not look.endless, i
        look.add(block[i % period])
    assert look.endless


def test_an_endless_answer_ends(model):
    class Always:
        greedy = True

        def __call__(self, logits):
            return 7

    runner = model.runner()
    tokens = runner.answer(text_prompt([1, 2, 3]), Always(), (), 4000)
    made = []
    while True:
        try:
            made.append(next(tokens))
        except StopIteration as end:
            assert end.value == "repetition"
            break
    assert made == [7] * REPEATED and runner.cache.length == 3 + REPEATED - 1


# ------------------------------------------------------------------------------------------------ costs


class Machine:
    """A runner whose calls take the seconds of `cost(tokens)` on its own clock; of the text, `texts` is what comes."""

    def __init__(self, cost):
        self.cost, self.now, self.calls = cost, 0.0, []
        self.network, self.cache, self.meter = self, self, ivlite.engine.meter.Meter()
        self.same_rows, self.length, self.capacity = 16, 0, 1 << 30

    def steps(self, tokens):
        self.now += self.cost(len(tokens))
        self.calls.append(len(tokens))
        self.length += len(tokens)
        return [None] * len(tokens)

    def truncate(self, length):
        self.length = length


def seconds(monkeypatch, cost, given, answer):
    machine = Machine(cost)
    monkeypatch.setattr(time, "perf_counter", lambda: machine.now)
    decoder = Decoder(machine, text_prompt(given), True)
    for i, token in enumerate(answer):
        alone(decoder.next(token, len(answer) - i))
    decoder.settle()
    assert machine.length == len(answer)
    return machine.now, machine


@pytest.mark.parametrize("slope", [0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("vocabulary", [3, 40, 1000, 100000])
def test_nothing_is_lost_where_nothing_repeats(monkeypatch, slope, vocabulary):
    rng = np.random.default_rng(vocabulary)
    given, answer = rng.integers(0, vocabulary, 500).tolist(), rng.integers(0, vocabulary, 1000).tolist()
    took, _ = seconds(monkeypatch, lambda n: 1 + slope * (n - 1), given, answer)
    assert took < 1.02 * len(answer)


def records(count, seed):
    """Token ids like records of JSON: 30 tokens that are the same in each, and 6 values."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        for i in range(6):
            yield from range(1000 + 5 * i, 1005 + 5 * i)
            yield int(rng.integers(0, 500))


@pytest.mark.parametrize("slope, least", [(0.02, 3.5), (0.1, 2.4), (0.3, 1.3), (1.0, 0.98)])
def test_what_repeats_is_faster_where_calls_of_many_are_cheap(monkeypatch, slope, least):
    answer = list(records(40, 1))
    took, machine = seconds(monkeypatch, lambda n: 1 + slope * (n - 1), list(records(1, 2)), answer)
    assert len(answer) / took > least
    assert (max(machine.calls) > 1) or slope == 1


def test_it_adapts_when_the_text_changes(monkeypatch):
    rng = np.random.default_rng(0)
    parts = [list(records(20, 1)), rng.integers(0, 40, 800).tolist(), list(records(20, 3))]
    took, _ = seconds(monkeypatch, lambda n: 1 + 0.1 * (n - 1), [], sum(parts, []))
    assert took < 0.5 * (len(parts[0]) + len(parts[2])) + 1.04 * len(parts[1])


def test_costs_between_and_beyond_measurements():
    costs = Costs()
    costs.note(1, 2.0)
    assert costs.of(1) == 1.0 and costs.of(6) == pytest.approx(1 + 5 * Costs.SLOPE)
    costs.note(5, 4.0)
    assert costs.of(5) == 2.0 and costs.of(3) == pytest.approx(1.5) and costs.of(9) == pytest.approx(3.0)
    costs.note(5, 400.0)  # a pause of the machine
    assert costs.of(5) == pytest.approx(4.0)
    costs.note(9, 1.0)
    assert costs.of(16) >= costs.of(9) == 0.5


def test_a_disturbed_measurement_does_not_end_drafting(monkeypatch):
    paused = []

    def cost(tokens):
        if tokens > 1 and not paused:
            paused.append(tokens)
            return 500.0
        return 1 + 0.1 * (tokens - 1)

    answer = list(records(40, 1))
    took, _ = seconds(monkeypatch, cost, list(records(1, 2)), answer)
    assert paused and took - 500 < 0.6 * len(answer)


# ------------------------------------------------------------------------------------------------ answers


def test_a_chat_with_and_without(eager, monkeypatch):
    question = [{"role": "user", "content": "Repeat: one two three one two three one two three one two three"}]
    results = []
    for rows in (1, 16):
        monkeypatch.setattr(speculate, "ROWS", rows)
        with ivlite.load("demo", threads=2) as demo:
            replies = [demo.chat(question, max_new_tokens=n, temperature=0) for n in (1, 30, 200)]
            words = replies[-1].text.split()
            replies += [demo.chat(question, max_new_tokens=200, temperature=0, stop=word) for word in set(words[:6])]
        results.append([(r.text, r.token_ids, r.finish_reason) for r in replies])
    assert results[0] == results[1]
    assert replies[2].usage["draft_tokens"] >= replies[2].usage["accepted_tokens"]


def test_a_session_with_and_without(eager, monkeypatch):
    """Turns that end at a limit, at a stop string and by closing leave the same rows, and the next goes on from them."""
    results, drafted = [], 0
    for rows in (1, 16):
        monkeypatch.setattr(speculate, "ROWS", rows)
        with ivlite.load("demo", threads=2) as demo, demo.session() as session:
            seen = []
            for i, settings in enumerate(({}, {"stop": "e"}, {"max_new_tokens": 12}, {})):
                stream = session.ask("Repeat: a b c d a b c d a b c d. " * (1 + i % 2), temperature=0, **settings)
                for count, _ in enumerate(stream):
                    if i == 2 and count == 4:
                        break
                stream.close()
                drafted += stream.reply.usage["draft_tokens"]
                cache = session._runner.cache
                seen.append(
                    (stream.reply.token_ids, session.tokens, cache.length, cache.dump(0, cache.length).tobytes())
                )
        results.append(seen)
    assert results[0] == results[1] and drafted
