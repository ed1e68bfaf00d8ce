"""How much is drafted: chances, costs and the choice between them, number by number."""

import time
from types import SimpleNamespace

import pytest
from session_fakes import alone

from ivlite.engine import meter
from ivlite.engine.speculate import COPIES, REPEATED, Chances, Costs, Decoder, Lookup, text
from ivlite.evaluate.synthetic import text_prompt


def test_chances_of_a_match_by_its_strength():
    before = [0.4, 0.15, 0.3, 0.5, 0.7, 0.7, 0.7, 0.7, *[0.8] * 8, 0.9]
    chances = Chances()
    assert [chances.of(n) for n in range(17)] == before and chances.of(17) == chances.of(10**6) == 0.9
    chances.note(5, True)  # as the fifth of a class
    assert (
        chances.of(4) == chances.of(7) == pytest.approx(0.7 + 0.3 / 5) and chances.of(3) == 0.5 and chances.of(8) == 0.8
    )
    chances.note(7, False)
    assert chances.of(4) == pytest.approx(0.76 - 0.76 / 6)
    for _ in range(1000):
        chances.note(99, False)
    rate = chances.of(16)
    chances.note(16, True)  # the last thirty or so count
    assert rate < 1e-9 and chances.of(16) == pytest.approx(1 / 32, rel=1e-3)
    assert Chances().of(16) == 0.9


def test_costs_follow_measurements():
    costs = Costs()
    costs.note(1, 8.0)
    for seconds, one in ((4.0, 7.0), (7.0, 7.0), (1000.0, 7 + 7 / 4), (14.75, 8.75 + 6 / 4)):
        costs.note(1, seconds)
        assert costs.one == pytest.approx(one)
    costs.one = 2.0
    costs.note(4, 6.0)
    assert costs.of(4) == 3.0 and costs.of(1) == 1.0
    costs.note(4, 14.0)
    assert costs.of(4) == 4.0
    costs.note(4, 1000.0)
    assert costs.of(4) == 5.0  # at most twice as much as one by one
    costs.forget()
    assert costs.of(4) == pytest.approx(1 + 0.99 * 4) and costs.of(7) == pytest.approx(1 + 0.99 * 4 * 2)
    costs.note(7, 2.0)
    assert costs.of(7) == 1.0 and costs.of(5) == costs.of(9) == pytest.approx(4.96)  # never less for more
    assert costs.of(2) == pytest.approx(1 + 3.96 / 3)
    empty = Costs()
    assert [empty.of(n) for n in (1, 2, 16)] == [1.0, 1.2, 4.0]


class Runner:
    """Of the calls, the numbers of tokens; each takes `each` seconds on its own clock."""

    def __init__(self, monkeypatch, same_rows=16, capacity=1 << 30, each=1.0):
        self.network, self.cache, self.meter = self, self, meter.Meter()
        self.same_rows, self.length, self.capacity, self.calls, self.now, self.each = (
            same_rows,
            0,
            capacity,
            [],
            0.0,
            each,
        )
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def steps(self, tokens):
        self.calls.append(list(tokens))
        self.length += len(tokens)
        self.now += self.each
        return [f"after {t}" for t in tokens]

    def truncate(self, length):
        self.length = length


@pytest.mark.parametrize(
    "same_rows, left, capacity, drafted",
    [
        (16, 99, 99, 15),
        (9, 99, 99, 8),
        (40, 99, 99, 15),
        (16, 5, 99, 4),
        (16, 99, 7, 4),
        (16, 1, 99, 0),
        (1, 99, 99, 0),
    ],
)
def test_drafts_end_with_rows_answer_and_cache(monkeypatch, same_rows, left, capacity, drafted):
    monkeypatch.setattr(Chances, "of", lambda self, strength: 0.99)
    monkeypatch.setattr(Costs, "of", lambda self, tokens: 1.0)
    runner = Runner(monkeypatch, same_rows, capacity)
    decoder = Decoder(runner, text_prompt([7] * 50), True)
    runner.length = decoder.length = 2
    decoder.costs.one = 1.0
    assert alone(decoder.next(7, left)) == "after 7" and runner.calls == [[7] * (1 + drafted)]
    assert runner.meter.drafted == drafted and runner.meter.accepted == 0
    for n in range(1, drafted + 1):
        assert alone(decoder.next(7, left - n)) == "after 7"
        assert len(runner.calls) == 1 and runner.meter.accepted == n
    assert decoder.length == 2 + 1 + drafted == runner.length
    decoder.settle()
    assert runner.length == 3 + drafted


def test_what_did_not_come_is_removed(monkeypatch):
    monkeypatch.setattr(Chances, "of", lambda self, strength: 0.99)
    monkeypatch.setattr(Costs, "of", lambda self, tokens: 1.0)
    runner = Runner(monkeypatch)
    decoder = Decoder(runner, text_prompt([1, 2, 3, 4, 5, 1, 2]), True)
    assert alone(decoder.next(3, 3)) == "after 3" and runner.calls == [[3]]  # the cost of one is not known yet
    assert alone(decoder.next(4, 4)) == "after 4" and runner.calls[1] == [4, 5, 1, 2] and runner.length == 5
    assert alone(decoder.next(5, 9)) == "after 5" and alone(decoder.next(9, 9)) == "after 9"
    assert runner.calls[2][0] == 9 and decoder.length == 4 and runner.length == 3 + len(runner.calls[2])
    assert runner.meter.accepted == 1 and runner.meter.drafted == 3 + len(runner.calls[2]) - 1
    assert alone(decoder.next(8, 1)) == "after 8" and runner.length == decoder.length == 5 and runner.calls[3] == [8]
    plain = Decoder(Runner(monkeypatch), text_prompt([1, 2, 3]), False)
    assert (
        alone(plain.next(7, 5)) == "after 7"
        and plain.length == 1
        and plain.runner.calls == [[7]]
        and plain.lookup is None
    )


@pytest.mark.parametrize("chance, slope, count", [
    (0.9, 0.0, 15), (0.5, 0.0, 4), (0.049, 0.0, 0), (0.0505, 0.0, 1), (0.5, 0.4, 1), (0.5, 0.45, 0), (0.9, 0.5, 3), (0.9, 0.9, 0), (0.96, 0.9, 0), (0.96, 0.8, 2),
])  # fmt: skip
def test_as_many_as_bring_the_most_tokens_a_second(monkeypatch, chance, slope, count):
    """Of n guesses, each right with a chance, in a call that costs 1 + slope n: and 5 % more than without."""
    monkeypatch.setattr(Chances, "of", lambda self, strength: chance)
    monkeypatch.setattr(Costs, "of", lambda self, tokens: 1 + slope * (tokens - 1))
    decoder = Decoder(Runner(monkeypatch), text_prompt([7]), True)
    decoder.lookup = Lookup([7] * 9)
    decoder.lookup.add(7)
    assert decoder._count(15) == 0  # before one was measured
    decoder.costs.one = 1.0
    expected, rates = 1.0, [1.05]
    for n in range(1, 16):
        if chance**n < 0.05:
            break
        expected += chance**n
        rates.append(expected / (1 + slope * n))
    assert decoder._count(15) == rates.index(max(rates)) == count
    assert decoder._count(0) == 0 and decoder._count(1) == min(1, count) or count > 1
    decoder.lookup.at = -1
    assert decoder._count(15) == 0


@pytest.mark.parametrize("chance, forgotten", [(0.5, False), (0.52, True)])
def test_what_was_measured_is_forgotten_where_it_keeps_from_trying(monkeypatch, chance, forgotten):
    monkeypatch.setattr(Chances, "of", lambda self, strength: chance)
    decoder = Decoder(Runner(monkeypatch), text_prompt([7]), True)
    decoder.lookup = Lookup([7] * 9)
    decoder.lookup.add(7)
    decoder.costs.one, decoder.costs.measured = 1.0, {2: 9.0, 16: 90.0}
    assert decoder._count(15) == 0
    assert (decoder.costs.measured[2] < 9) == forgotten


def test_only_the_end_of_a_long_prompt_is_looked_up(monkeypatch):
    decoder = Decoder(Runner(monkeypatch), text_prompt([5, *range(10_000, 10_000 + (1 << 15))]), True)
    alone(decoder.next(5, 1))
    assert decoder.lookup.given == 1 << 15 and decoder.lookup.at == -1
    within = Decoder(Runner(monkeypatch), text_prompt([5, *range(10_000, 10_000 + (1 << 15) - 1)]), True)
    alone(within.next(5, 1))
    assert within.lookup.at == 1 and within.lookup.length == 1


def test_text_without_vision():
    prompt = SimpleNamespace(token_ids=list(range(20)), spans=[(0, 3, 4), (0, 7, 1), (1, 12, 5)])
    assert text(prompt) == [0, 1, 2, 8, 9, 10, 11, 17, 18, 19]
    assert text(SimpleNamespace(token_ids=[1, 2], spans=[])) == [1, 2]


def test_strength_after_right_guesses():
    look = Lookup([1, 2, 3, 1, 2])
    look.add(3)
    assert (look.at, look.strength, look.strength_after(0), look.strength_after(3)) == (3, 3, 3, 6)
    look.strength = 0
    assert (look.strength_after(0), look.strength_after(1), look.strength_after(3)) == (0, 5, 7)
    assert (REPEATED, COPIES) == (2048, 32)


def test_one_token_that_differs_does_not_end_a_long_match():
    """Beyond four tokens that were right the place stays, once; the second that differs ends it."""
    given = [*range(100, 120)]
    for right, stays in ((4, False), (5, True)):
        look = Lookup(given)
        for token in given[:right]:
            look.add(token)
        assert look.length == right
        look.add(999)
        assert (look.at == right + 1) == stays
        if stays:
            assert look.length == look.strength == 0 and look.guess(2) == given[right + 1 : right + 3]
            look.add(given[right + 1])
            assert (look.length, look.strength) == (1, 5)  # as before it differed
            look.add(997)
            look.add(998)
            assert look.at == -1
