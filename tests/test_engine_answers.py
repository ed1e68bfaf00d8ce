"""An engine under many clients: every answer is the one alone, and nobody holds up the others."""

import random
import threading
from pathlib import Path

import pytest
from test_batch import SETTINGS, alone, asked, question, what

import ivlite
from ivlite.errors import UsageError
from ivlite.gguf import SHIPPED
from ivlite.stop import Stop

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
CLIP = Path(__file__).parents[1] / "examples" / "clip.mp4"
TIMEOUT = 120  # seconds until a test that hangs fails


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo", threads=2, context=2048) as model:
        yield model


def about(n, start=0.0, end=2.0):
    part = {"type": "video", "video": str(CLIP), "start": start, "end": end, "fps": 4.0}
    return [{"role": "user", "content": [part, {"type": "text", "text": f"{n}: what happens?"}]}]


def run_all(bodies):
    """Runs functions in threads of their own; raises what one of them raises."""
    errors = []

    def guarded(body):
        try:
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def idle(engine):
    """Waits until an engine has nothing to do: it sees at its next step that a client has left."""
    for _ in range(100 * TIMEOUT):
        if engine.running == engine.waiting == 0:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{engine.running} run and {engine.waiting} wait")


@pytest.mark.parametrize("most", [1, 3, 8])
def test_fifty_clients_at_random_moments(demo, most):
    """Some leave in the middle, some before they are served; the others get what they get alone."""
    numbers = range(50)
    expected = [alone(demo, n) for n in numbers]
    demo.caches.clear()
    rng = random.Random(most)
    plans = [(rng.random() * 0.4, rng.choice([None, None, 0, 1, 3])) for _ in numbers]
    found = {}
    with ivlite.Engine(demo, most=most) as engine:

        def client(n, delay, leaves):
            threading.Event().wait(delay)
            stream = engine.stream(
                question(n), client=str(n % 7), **({"max_new_tokens": 24} | SETTINGS[n % len(SETTINGS)])
            )
            said, text = 0, ""
            if leaves == 0:
                stream.close()
            for delta in stream:
                text, said = text + delta.text, said + 1
                if said == leaves:
                    stream.close()
                    break
            found[n] = text, stream.reply

        run_all([lambda n=n, plan=plan: client(n, *plan) for n, plan in enumerate(plans)])
        idle(engine)
    for n, (_, leaves) in enumerate(plans):
        text, reply = found[n]
        if leaves is None:
            assert what(reply) == expected[n] and text == reply.text
        else:
            assert expected[n][2][: len(reply.token_ids)] == tuple(reply.token_ids)
            assert reply.finish_reason in ("closed", expected[n][3])


def test_videos_images_and_sessions_beside_one_another(demo):
    rows = [about(n, start=n / 2, end=n / 2 + 1.5) for n in range(4)]
    demo.caches.clear()
    expected = [what(demo.chat(messages, temperature=0)) for messages in rows]
    with demo.session() as session:
        for _ in (stream := session.ask("Say a number.", temperature=0)):
            pass
        for _ in (second := session.ask("And another?", temperature=0)):
            pass
        first = what(stream.reply), what(second.reply)
    demo.caches.clear()
    with ivlite.Engine(demo) as engine, demo.session() as session:
        streams = [engine.stream(messages, temperature=0, client=str(n)) for n, messages in enumerate(rows)]
        ask = engine.add(session.ask("Say a number.", temperature=0))
        with pytest.raises(UsageError, match="answering"):
            session.ask("And another?")
        for _ in ask:
            pass
        follow = engine.add(session.ask("And another?", temperature=0), client="1")
        for _ in follow:
            pass
        for stream in streams:
            for _ in stream:
                pass
        assert [what(stream.reply) for stream in streams] == expected
        assert (what(ask.reply), what(follow.reply)) == first and len(session.messages) == 4
        again = engine.stream(
            [*session.messages, {"role": "user", "content": "Third?"}], session=session, temperature=0
        )
        for _ in again:
            pass
        assert len(session.messages) == 6 and again.reply.usage["cached_tokens"] > 20


def test_several_at_once_for_one_caller(demo):
    expected = [alone(demo, n) for n in range(9)]
    demo.caches.clear()
    with ivlite.Engine(demo, most=4) as engine:
        streams, texts = [asked(demo, n) for n in range(9)], [""] * 9
        other = engine.stream(question(3), **SETTINGS[3], max_new_tokens=24)
        for i, delta in engine.together(streams):
            texts[i] += delta.text
        assert [what(s.reply) for s in streams] == expected and texts == [text for text, *_ in expected]
        for _ in other:
            pass
        assert what(other.reply) == expected[3]


def test_a_branch_for_each_look(demo):
    with demo.session() as session:
        for _ in session.stream(about(1), temperature=0):
            pass
        alone_ = []
        for n in range(3):
            with session.branch() as twin:
                for _ in (stream := twin.ask(f"{n}: what color?", temperature=0)):
                    pass
                alone_.append(what(stream.reply))
        twins = [session.branch() for _ in range(3)]
        streams = [twin.ask(f"{n}: what color?", temperature=0) for n, twin in enumerate(twins)]
        for _ in ivlite.together(streams):
            pass
        assert [what(s.reply) for s in streams] == alone_ and len(session.messages) == 2
        assert all(len(twin.messages) == 4 for twin in twins)
        assert all(s.reply.usage["cached_tokens"] > 30 for s in streams)


def test_a_consumer_who_does_not_read_holds_up_nobody(demo):
    expected = alone(demo, 3)
    demo.caches.clear()
    with ivlite.Engine(demo, most=2) as engine:
        asleep = [engine.stream(question(n), max_new_tokens=24, **SETTINGS[n]) for n in (0, 6)]
        for _ in (stream := engine.stream(question(3), max_new_tokens=24, **SETTINGS[3], client="other")):
            pass
        assert what(stream.reply) == expected
        assert all("".join(delta.text for delta in late) == late.reply.text != "" for late in asleep)


def test_a_short_question_goes_before_a_film_in_prefill(demo, monkeypatch):
    """The film goes on between its pieces; its bits are those of a film alone."""
    film = about(1, 0, 8)
    film[0]["content"][0]["fps"] = 8.0
    demo.caches.clear()
    expected = what(demo.chat(film, temperature=0, max_new_tokens=8))
    demo.caches.clear()
    order, begun, answered = [], threading.Event(), threading.Event()

    def progress(stage, done, total):
        if stage == "vision":
            begun.set()
            assert answered.wait(TIMEOUT)  # as a film that takes as long as that; its turn is not kept meanwhile
        if stage == "generate" and done == 1:
            order.append("film")

    # a callback that waits is no piece of computing: hand the turn over as vision does while it waits for frames
    waits = ivlite.stop.waiting

    def patient(*arguments):
        with waits():
            progress(*arguments)

    with ivlite.Engine(demo) as engine:
        long = engine.stream(film, temperature=0, max_new_tokens=8, progress=patient)
        assert begun.wait(TIMEOUT)
        short = engine.stream(question(0), temperature=0, max_new_tokens=4)
        next(short)
        order.append("question")
        answered.set()
        for stream in (short, long):
            for _ in stream:
                pass
    assert order == ["question", "film"] and what(long.reply) == expected


def test_decoding_goes_on_between_pieces_of_a_prefill(demo):
    """Steps of an answer and layers of a chunk of prefill take turns in the network."""
    order, steps, attention = [], demo.network.step, demo.network.layers[0].__class__.attention
    text = [{"role": "user", "content": "word " * 700}]
    demo.caches.clear()
    expected = what(demo.chat(text, temperature=0, max_new_tokens=2))
    demo.caches.clear()
    ready = threading.Event()

    def progress(stage, done, total):
        if stage == "generate" and done == 2:
            ready.set()

    def step(*arguments):
        order.append("step")
        return steps(*arguments)

    def attend(layer, x, *rest):
        order.append("layer" if len(x) > 500 else "few")
        return attention(layer, x, *rest)

    with pytest.MonkeyPatch.context() as patch, ivlite.Engine(demo) as engine:
        patch.setattr(demo.network, "step", step)
        patch.setattr(type(demo.network.layers[0]), "attention", attend)
        patch.setattr("ivlite.engine.turns.SHORTEST", 0.0)
        patch.setattr("ivlite.engine.turns.LONGEST", 0.0)
        slow = engine.stream(question(6), max_new_tokens=400, **SETTINGS[6], progress=progress)
        assert ready.wait(TIMEOUT)
        long = engine.stream(text, temperature=0, max_new_tokens=2)
        for _ in long:
            pass
        slow.close()
    layers = [n for n, what in enumerate(order) if what == "layer"]
    between = [order[a:b].count("step") for a, b in zip(layers, layers[1:], strict=False)]
    assert len(layers) == len(demo.network.layers) and sum(n > 0 for n in between) >= len(between) // 2
    assert what(long.reply) == expected


def test_times_of_answers_that_ran_together_correct_no_plan(demo):
    demo.chat(about(1), temperature=0)
    planner = demo.planner
    recorded = []
    with pytest.MonkeyPatch.context() as patch, ivlite.Engine(demo) as engine:
        patch.setattr(planner, "record", lambda *_: recorded.append(_))
        streams = [engine.stream(question(6), max_new_tokens=24, **SETTINGS[6]) for _ in range(3)]
        for stream in streams:
            for _ in stream:
                pass
        assert len(recorded) <= 1
        demo.caches.clear()
        for _ in engine.stream(question(0), temperature=0):
            pass
        assert recorded


def test_a_deadline_counts_in_the_queue_too(demo):
    with ivlite.Engine(demo, most=1) as engine:
        first = engine.stream(question(6), max_new_tokens=1000, **SETTINGS[6])
        next(first)
        stop = Stop()
        late = engine.stream(question(0), stop=stop, temperature=0)
        assert engine.waiting == 1
        stop.set("enough")
        assert list(late) == [] and late.reply.finish_reason == "enough"
        first.close()
        for _ in (after := engine.stream(question(0), temperature=0, max_new_tokens=3)):
            pass
        assert after.reply.finish_reason in ("stop", "length")


def test_one_who_runs_alone_still_guesses(demo):
    """An engine with one answer is `Model.stream` in another thread: drafts and forced tokens as there."""
    text = [{"role": "user", "content": "one two three four " * 20}]
    demo.caches.clear()
    passes = []
    with pytest.MonkeyPatch.context() as patch:
        step = demo.network.step
        patch.setattr(demo.network, "step", lambda ids, *rest: passes.append(len(ids)) or step(ids, *rest))
        schema = {
            "type": "object",
            "properties": {"a_long_name": {"type": "integer", "maximum": 9}},
            "required": ["a_long_name"],
        }
        plain = demo.chat(text, temperature=0, response_format=schema)
        alone_, passes[:] = list(passes), []
        demo.caches.clear()
        with ivlite.Engine(demo) as engine:
            for _ in (stream := engine.stream(text, temperature=0, response_format=schema)):
                pass
    assert what(stream.reply) == what(plain) and passes[0] == alone_[0] > 1  # drafts follow measured times


def test_an_open_engine_runs_every_answer(demo):
    """Those of the model, of sessions and `together`, so that nobody computes beside it; and its own callbacks' directly."""
    expected = [alone(demo, n) for n in range(4)]
    demo.caches.clear()
    inner = []
    with ivlite.Engine(demo) as engine, demo.session() as session:
        seen = []

        def progress(stage, done, total):
            seen.append((threading.current_thread().name, engine.running))
            if stage == "generate" and not inner:
                inner.append(what(demo.chat(question(1), max_new_tokens=24, **SETTINGS[1])))

        reply = demo.chat(question(0), max_new_tokens=24, progress=progress, **SETTINGS[0])
        assert what(reply) == expected[0] and inner == [expected[1]]
        streams = [asked(demo, n, progress=progress) for n in (2, 3)]
        for _ in ivlite.together(streams):
            pass
        assert [what(stream.reply) for stream in streams] == expected[2:]
        for _ in (stream := session.ask("Say a number.", temperature=0, progress=progress)):
            pass
        assert stream.reply.token_ids and {name for name, _ in seen} == {"ivlite-engine"}
        assert min(running for _, running in seen) >= 1
    seen.clear()
    assert what(demo.chat(question(0), max_new_tokens=24, **SETTINGS[0])) == expected[0] and demo.engine is None
