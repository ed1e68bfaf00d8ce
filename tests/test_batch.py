"""Several answers together: each is the one that it gives alone, whatever the others do."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

import ivlite
from ivlite.engine import batch, clients, step
from ivlite.engine.feed import BUFFERED, Feed, joined
from ivlite.engine.reply import Delta
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.engine.step import Step, run_together
from ivlite.engine.turns import Turn, Turns
from ivlite.errors import ModelFileError, UsageError
from ivlite.evaluate.synthetic import random_model, text_prompt
from ivlite.gguf import SHIPPED
from ivlite.stop import Stop, checkpoint, in_turn, using, waiting

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
WORDS = "apple bridge candle donkey engine forest garden hammer island jungle kettle ladder".split()
SETTINGS = (
    {"temperature": 0.0}, {"temperature": 1.0, "seed": 1}, {"temperature": 0.8, "top_k": 20, "seed": 2},
    {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.2}, {"temperature": 1.5, "seed": 4, "stop": ["e"]},
    {"temperature": 1.0, "seed": 5, "max_new_tokens": 1}, {"temperature": 0.0, "response_format": {"type": "json_object"}},
    {"temperature": 1.0, "seed": 6, "response_format": {"type": "regex", "pattern": "(ab|cd){6}x"}},
)  # fmt: skip


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo", threads=2, context=2048) as model:
        yield model


def question(n):
    return [{"role": "user", "content": f"{WORDS[n % 12]} {n}: what do you see, and how many?"}]


def asked(model, n, **more):
    return model.stream(question(n), **({"max_new_tokens": 24} | SETTINGS[n % len(SETTINGS)] | more))


def alone(model, n, **more):
    model.caches.clear()
    with asked(model, n, **more) as stream:
        text = "".join(delta.text for delta in stream)
    assert text == stream.reply.text
    return what(stream.reply)


def what(reply):
    return reply.text, reply.thinking, tuple(reply.token_ids), reply.finish_reason


@pytest.mark.parametrize("number", [1, 2, 8, 17])
def test_each_answer_is_the_one_alone(demo, number):
    expected = [alone(demo, n) for n in range(number)]
    demo.caches.clear()
    streams, texts = [asked(demo, n) for n in range(number)], [""] * number
    for i, delta in ivlite.together(streams):
        texts[i] += delta.text
    assert [what(stream.reply) for stream in streams] == expected
    assert texts == [text for text, *_ in expected]
    assert all(stream.over for stream in streams)


def test_they_go_through_the_network_together(demo, monkeypatch):
    passes, run = [], demo.network.steps
    monkeypatch.setattr(demo.network, "steps", lambda parts: passes.append(len(parts)) or run(parts))
    streams = [asked(demo, 8 * n, max_new_tokens=6) for n in range(5)]
    for _ in ivlite.together(streams):
        pass
    assert max(passes) == 5 and sum(passes) <= 5 * 5


def test_one_ends_in_the_middle(demo):
    """Closed, stopped and failed ones leave the others as they are."""
    numbers = [0, 3, 9, 7, 8, 11]
    expected = [alone(demo, n) for n in numbers]
    demo.caches.clear()
    stop = Stop()
    streams = [asked(demo, n, **({"stop": stop} if n == 3 else {})) for n in numbers]
    seen = dict.fromkeys(range(6), 0)
    for i, _ in ivlite.together(streams):
        seen[i] += 1
        if i == 0 and seen[i] == 2:
            streams[0].close()
        if i == 1 and seen[i] == 3:
            stop.set("enough")
    assert streams[0].reply.finish_reason == "closed" and streams[1].reply.finish_reason == "enough"
    for stream, (text, _, ids, _) in zip(streams[:2], expected, strict=False):
        assert text.startswith(stream.reply.text) and ids[: len(stream.reply.token_ids)] == tuple(
            stream.reply.token_ids
        )
        assert 0 < len(stream.reply.token_ids) < len(ids)
    assert [what(stream.reply) for stream in streams[2:]] == expected[2:]


class Broken(Sampler):
    def __call__(self, logits):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 4:
            raise ZeroDivisionError("broken sampler")
        return super().__call__(logits)


def test_an_error_of_one_reaches_only_that_one(demo, monkeypatch):
    expected = [alone(demo, n) for n in (0, 3)]
    demo.caches.clear()
    streams = [asked(demo, 0), asked(demo, 3)]
    with monkeypatch.context() as patch:
        patch.setattr(demo.grammars, "sampler", lambda *_: Broken(SamplingParams()))
        streams.insert(1, asked(demo, 0))
    with pytest.raises(ZeroDivisionError):
        for _ in ivlite.together(streams):
            pass
    assert [what(streams[0].reply), what(streams[2].reply)] == expected
    assert len(streams[1].reply.token_ids) == 3


def test_a_pass_that_fails_is_run_one_by_one(demo, monkeypatch):
    """So that whose fault it is gets the exception: here of one whose cache cannot grow."""
    expected = [alone(demo, n) for n in (0, 3)]
    demo.caches.clear()
    run, lengths = demo.network.steps, []

    def failing(parts):
        if len(parts) > 1:
            lengths.append(len(parts))
            for _, _, cache in parts[:-1]:  # as after an exception in the middle of a layer
                cache.append(
                    0, *(np.zeros((1, n), np.float32) for n in (sizes.kv_lora_rank[0], sizes.qk_rope_head_dim))
                )
            raise MemoryError
        return run(parts)

    sizes = demo.config.text
    monkeypatch.setattr(demo.network, "steps", failing)
    streams = [asked(demo, n) for n in (0, 3)]
    for _ in ivlite.together(streams):
        pass
    assert [what(stream.reply) for stream in streams] == expected and len(lengths) > 3


def test_rows_that_are_not_finite_are_an_error_of_their_own(demo):
    runners = [demo.runner(64) for _ in range(2)]
    for n, runner in enumerate(runners):
        runner.extend(text_prompt([5 + n, 7, 9]))
    steps = [Step(runner, [11], 1) for runner in runners]
    run_together(steps)
    steps[0].logits = steps[0].logits.copy()
    steps[0].logits[0, 3] = np.nan
    with pytest.raises(ModelFileError, match="not finite"):
        steps[0].run()
    assert np.isfinite(steps[1].run()).all()


def test_guesses_are_left_out_and_forced_tokens_shared(demo):
    runners = [demo.runner(64) for _ in range(4)]
    for n, runner in enumerate(runners):
        runner.extend(text_prompt([5 + n, 7, 9]))
    wanted = [([11], 1), ([11, 12, 13], 1), ([11, 12, 13], 3), (list(range(20, 32)), 12)]
    steps = [Step(runner, tokens, sure) for runner, (tokens, sure) in zip(runners, wanted, strict=True)]
    run_together(steps)
    assert [len(s.tokens) for s in steps] == [1, 1, 3, step.ROWS // 4] == [len(s.logits) for s in steps]
    for s in steps:
        assert s.runner.cache.length == s.runner.held.length == 3 + len(s.tokens) and s.runner.meter.shared
        again = demo.runner(64)
        again.extend(text_prompt([*s.runner.held.token_ids[:3]]))
        assert np.array_equal(again.steps(s.tokens), s.run()) and s.seconds is None


def test_passes_hold_what_keeps_its_bits():
    steps = [SimpleNamespace(tokens=[0] * n) for n in (3, 3, 1, 9, 2, 1)]
    sizes = lambda most: [[len(s.tokens) for s in some] for some in step._passes(steps, most)]  # noqa: E731
    assert sizes(7) == [[3, 3, 1], [9], [2, 1]] and sizes(1) == [[3], [3], [1], [9], [2], [1]]
    assert sizes(100) == [[3, 3, 1, 9, 2, 1]]


def test_a_random_schedule_of_runners(demo):
    """Arrivals, ends and depths at random, over every kind of cache, against each alone."""
    rng = np.random.default_rng(7)
    model = random_model("tiny", "q4_k_m", threads=2, context=4096)
    vocab = model.config.text.vocab_size
    for kind in ("q8", "q4"):
        model.kv = kind
        plans = [(rng.integers(0, vocab, rng.integers(2, 300)).tolist(), int(rng.integers(1, 30))) for _ in range(12)]
        sampler = lambda n: Sampler(SamplingParams(temperature=1.0, seed=n))  # noqa: E731
        expected = [
            list(model.runner(512).answer(text_prompt(ids), sampler(n), (), limit))
            for n, (ids, limit) in enumerate(plans)
        ]
        arrive, running, found = rng.integers(0, 25, len(plans)), {}, [[] for _ in plans]
        for now in range(60):
            for n in np.flatnonzero(arrive == now):
                ids, limit = plans[n]
                running[n] = model.runner(512).answering(text_prompt(ids), sampler(n), (), limit)
            steps = {}
            for n, items in list(running.items()):
                while not isinstance(item := next(items, None), Step) and item is not None:
                    found[n].append(item)
                if item is None:
                    del running[n]
                else:
                    steps[n] = item
            if steps:
                run_together(list(steps.values()))
        assert not running and found == expected


# ------------------------------------------------------------------------------------------------ who goes first


def turn(turns, key, urgent=False, stop=None, spent=None):
    spent = [] if spent is None else spent
    return Turn(turns, lambda seconds: (key, seconds), spent.append, Stop() if stop is None else stop, urgent)


def test_the_order_of_turns():
    turns = Turns()
    low, mid, high, steps = turn(turns, 1), turn(turns, 2), turn(turns, 3), turn(turns, 0, urgent=True)
    turns.length = 0.2
    turns.waiting = [high, steps, low]
    assert turns.best(mid, 0.1) is low and turns.best(mid, 0.3) is steps
    turns.waiting = [high, steps]
    assert turns.best(mid, 0.1) is None and turns.best(mid, 0.2) is steps
    turns.waiting = [high]
    assert turns.best(mid, 9.0) is None and turns.best(high, 0.01) is None
    turns.waiting = [mid, steps, low]
    assert turns.next(urgent=True) is low and turns.next(urgent=False) is steps
    turns.waiting = [steps]
    assert turns.next(urgent=True) is steps
    turns.waiting = []
    assert turns.next(urgent=True) is None is turns.best(mid, 9.0)


def test_one_thread_at_a_time_and_everyone_in_the_end():
    turns, inside, order, spent = Turns(), [], [], []

    def work(key):
        with in_turn(turn(turns, key, urgent=key == 0, spent=spent)):
            for _ in range(40):
                inside.append(key)
                assert len(inside) == 1
                order.append(key)
                inside.remove(key)
                checkpoint()
                if key == 2:
                    with waiting():
                        with turns.changed:
                            assert turns.owner is None or turns.owner.key(0)[0] != 2 or turns.away is not None
                    inside.append(key)
                    assert len(inside) == 1
                    inside.remove(key)

    threads = [threading.Thread(target=work, args=(key,)) for key in (3, 2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(order) == sorted(40 * [0, 1, 2, 3]) and turns.owner is None and not turns.waiting
    assert all(seconds >= 0 for seconds in spent)


def test_a_short_wait_keeps_the_turn_and_a_long_one_lends_it(monkeypatch):
    """Whoever looks into the store four times must not have to wait for four pieces of a long prefill."""
    turns, spent, entered, back = Turns(), [], threading.Event(), threading.Event()
    monkeypatch.setattr("ivlite.engine.turns.LENT", 3600.0)

    def other():
        with in_turn(turn(turns, 2, spent=spent)):
            entered.set()
            assert back.wait(60)

    thread = threading.Thread(target=other)
    mine = turn(turns, 1, spent=spent)
    with in_turn(mine):
        thread.start()
        for _ in range(4):
            with waiting():
                assert not entered.wait(0.05)
            assert turns.owner is mine
        monkeypatch.setattr("ivlite.engine.turns.LENT", 0.01)
        with waiting():
            assert entered.wait(60)  # who came long before
            assert turns.owner is not mine and len(spent) == 1
            back.set()
        assert turns.owner is mine and len(spent) == 2
    thread.join(60)
    assert turns.owner is None and not turns.waiting


def test_whoever_comes_while_the_turn_is_lent_goes_on():
    turns, went_on = Turns(), threading.Event()

    def other():
        with in_turn(turn(turns, 2)):
            went_on.set()

    with in_turn(turn(turns, 1)), waiting():
        thread = threading.Thread(target=other)
        thread.start()
        assert went_on.wait(60)
    thread.join(60)
    assert turns.owner is None and not turns.waiting


def test_a_stop_ends_waiting_for_a_turn():
    turns, stop = Turns(), Stop()
    owner, other = turn(turns, 1), turn(turns, 2, stop=stop)
    owner.take()
    stop.set()
    other.take()  # returns without it
    assert turns.owner is owner and not turns.waiting
    other.offer()
    other.give()
    assert turns.owner is owner
    owner.give()
    assert turns.owner is None
    with using(stop), pytest.raises(ivlite.Stopped), in_turn(other):
        checkpoint()
    assert turns.owner is None


def test_seconds_of_clients(monkeypatch):
    monkeypatch.setattr(clients, "CREDIT", 5.0)
    had = clients.Clients()
    had.enter("film")
    had.spend("film", 100.0)
    had.enter("question")  # comes new: it is ahead, but not by all that the other had
    assert had.seconds["question"] == pytest.approx(had.seconds["film"] - 5)
    had.spend("question", 7.0)
    assert had.seconds["question"] > had.seconds["film"]
    had.leave("question")
    had.enter("question")  # what it had is not forgotten
    assert had.seconds["question"] == pytest.approx(had.seconds["film"] + 2)
    had.enter("question")
    had.leave("question")
    had.spend("question", 1.0)
    for n in range(1000):
        had.enter(str(n))
        had.leave(str(n))
    had.spend("film", 1000.0)
    had.leave("question")
    had.enter("another")
    assert set(had.seconds) == {"film", "another"}
    assert had.seconds["another"] == pytest.approx(had.seconds["film"] - 5)


# ------------------------------------------------------------------------------------------------ on the way to a consumer


def test_a_slow_consumer_gets_longer_deltas():
    feed = Feed()
    for n in range(10 * BUFFERED):
        feed.put(Delta(f"{n} ", thinking=n % (2 * BUFFERED) == 3))
    feed.end()
    deltas = []
    with pytest.raises(StopIteration):
        while True:
            deltas.append(feed.get())
    assert BUFFERED <= len(deltas) < BUFFERED + 12
    assert "".join(d.text for d in deltas) == "".join(f"{n} " for n in range(10 * BUFFERED))
    assert "".join(d.text for d in deltas if d.thinking).split() == ["3", "515", "1027", "1539", "2051"]


def test_what_cannot_be_joined():
    call = Delta("", call=SimpleNamespace(id="1"))
    assert joined(Delta("a"), Delta("b")) == Delta("ab") and joined(Delta("a", True), Delta("b", True)) == Delta(
        "ab", True
    )
    assert (
        joined(Delta("a"), Delta("b", True))
        is joined(Delta("a"), call)
        is joined(call, Delta("b"))
        is joined(call, call)
        is None
    )


def test_an_error_comes_after_what_was_said():
    feed = Feed()
    feed.put(Delta("a"))
    feed.error = UsageError("broken")
    feed.end()
    assert feed.ready and feed.get() == Delta("a")
    with pytest.raises(UsageError, match="broken"):
        feed.get()
    with pytest.raises(StopIteration):
        feed.get()


def test_the_number_of_answers_is_checked(demo):
    for wrong in (0, 1.5, -3, "8"):
        with pytest.raises(UsageError, match="most"):
            batch.Engine(demo, most=wrong)
    with pytest.raises(UsageError, match="memory"):
        batch.Engine(demo, memory=0)
