"""The loop of the agent with scripted replies: what it looks at, what it says, and where it ends."""

import json
import math
import time

import pytest
from agent_scripts import Scripted, call, film, finish, kept, kinds, results, uneven

from ivlite.agent import Agent, Budget, allowed, looks
from ivlite.agent import act as acts
from ivlite.agent.act import fitting
from ivlite.agent.answer import Answered, Call, Remark, Result, Said, event_data, event_of
from ivlite.agent.case import Line, NoTexts
from ivlite.agent.film import Wrong
from ivlite.agent.record import Record
from ivlite.agent.tools import BY_NAME, TOOLS, Tool
from ivlite.errors import Stopped, UsageError
from ivlite.stop import Stop, current

ASK = "When does it turn blue?"
WATCH = call("watch", windows=[{"start": 14.0, "end": 16.0}], question="Which colour?", detail="mid")


def test_a_run_from_overview_to_a_verified_answer(demo, clip):
    with Scripted(demo, [clip], [WATCH, finish("It turns blue [E2].", ["E2"])]) as agent:
        answer = agent.ask(ASK)
    assert kinds(answer) == ["Call", "Result", "Call", "Result", "Said"]
    assert answer.text == "It turns blue [E2]." and answer.finish_reason == "finish"
    overview, watch = answer.evidence
    assert (overview.id, overview.kind, len(overview.frames)) == ("E1", "frames", 32)
    assert (watch.start, watch.end) == (14.0, 16.0) and watch.frames == tuple(t / 5 for t in range(70, 81))
    (claim,) = answer.claims
    assert claim.evidence == ("E2",) and claim.confirmed == (claim.probability >= 0.5) and 0 <= claim.probability <= 1
    assert [e.id for e in answer.cited()] == ["E2"]
    assert answer.usage["frames"] == sum(look.frames for look in answer.looked_at) == 32 + 11 + 11
    assert answer.usage["rounds"] == 2 and answer.usage["apart"] == 1
    data = json.loads(json.dumps(answer.as_dict()))
    assert {"answer", "claims", "evidence", "confidence", "looked_at", "missing", "usage", "videos", "steps"} <= set(
        data
    )
    assert [event_of(step) for step in data["steps"]] == list(answer.steps)


def test_evidence_stands_for_times(demo, clip, apart):
    """A window that is named by what was found before is that window, and what is told of the call has its seconds."""
    replies = [
        WATCH,
        call("watch", windows=[{"start": "E2", "end": "E2"}], question="Which colour?", detail="high"),
        call("look", t="E2"),
        call("verify", claim="It is blue.", start="E4", end="E4"),
        call("ground", query="a square", end="E2"),
        call("watch", windows=[{"start": "E77", "end": 20.0}], question="Which colour?", detail="mid"),
        finish("It turns blue [E2].", ["E2"]),
    ]  # fmt: skip
    with Scripted(demo, [clip], replies, lambda text, parts: 0.1) as agent:
        answer, held = agent.ask(ASK), agent.context.session.messages
    calls = [e for e in answer.steps if isinstance(e, Call)]
    assert calls[2].arguments["windows"] == [{"start": 14.0, "end": 16.0}]
    assert (calls[4].arguments["start"], calls[4].arguments["end"]) == (15.0, 15.5)
    assert calls[5].arguments == {"query": "a square", "end": 16.0}
    _, watched, closer, look, _, scan = answer.evidence
    assert (closer.start, closer.end) == (watched.start, watched.end) and look.start == 15.0 and scan.end <= 16.0
    assert results(answer)[-1] == {"error": "there is no evidence E77 of this video"}
    assert any("E2" in str(m.get("tool_calls")) for m in held)  # the conversation has what the model wrote


def test_the_question_is_said_again_behind_what_tools_return(demo, clip):
    """Once in each round, by the user, cut where it is long; not behind the question itself."""
    steps = [
        call("watch", windows=[{"start": 3.0, "end": 6.0}], question="?", detail="low"),
        call("nothing"),
        "no call",
        finish(),
    ]
    for question, said in (("Which way\ndoes it go?", "Which way does it go?"), ("why " * 300, "why " * 99 + "why…")):
        with Scripted(demo, [clip], steps, verify=False) as agent:
            agent.ask(question)
        roles = ["".join(m["role"][0] for m in messages) for messages in agent.seen]
        assert roles == ["su", "tu", "tu", "tu"]
        assert [messages[-1]["content"] for messages in agent.seen[1:]] == [f"The question: {said}"] * 3


def test_lines_that_match_far_worse_than_the_best_are_left_out(demo, clip):
    class Texts(NoTexts):
        def count(self, film):
            return 3

        def search(self, query, film, start, end, k):
            lines = {"a white cross": 0.5, "a white wall": 0.25, "thank you": 0.24, "of a note": None}
            return [Line(3.0, 4.0, text, score=score) for text, score in lines.items()]

    with Scripted(demo, [clip], [finish()], texts=Texts(), verify=False) as agent:
        lines = results(agent.ask(ASK))[1]
    assert [line["text"] for line in lines] == ["a white cross", "a white wall", "of a note"]


def test_other_programs_get_what_the_model_wrote(demo, clip):
    got = []
    own = Tool(
        "lookup",
        "Looks it up.",
        {"type": "object", "properties": {}},
        external=True,
        answer=lambda a: got.append(a) or "no",
    )
    replies = [call("lookup", start="E1", t="E1"), finish()]
    with Scripted(demo, [clip], replies, tools=[*TOOLS, own], verify=False) as agent:
        agent.ask(ASK)
    assert got == [{"start": "E1", "t": "E1"}]


def test_a_person_may_take_long_to_agree(demo, clip, monkeypatch):
    monkeypatch.setattr(acts, "WAITS", 0.2)
    agreed = iter([True, False])
    schema = {"type": "object", "properties": {}}
    slow = Tool(
        "lookup",
        "Looks it up.",
        schema,
        external=True,
        answer=lambda a: "found",
        agree=lambda a: not time.sleep(0.5) and next(agreed),
    )
    replies = [call("lookup", n=1), call("lookup", n=2), finish()]
    with Scripted(demo, [clip], replies, tools=[*TOOLS, slow], verify=False) as agent:
        assert results(agent.ask(ASK))[1:] == [{"data": "found"}, {"data": '{"refused": "the person did not agree"}'}]


def test_evidence_tells_its_video(demo, clip, tmp_path):
    other = film(tmp_path / "other.mp4", seconds=12)
    with Agent(demo, [clip, other]) as agent:
        one, two = agent.case.films.values()
        agent.case.seen(one, (1.0, 2.0)), agent.case.seen(two, (3.0, 4.0))
        timed = agent.case.timed
        assert timed({"query": "x", "start": "E2"}) == {"query": "x", "start": 3.0, "video": "v2"}
        assert timed({"windows": [{"start": "E1", "end": "E1"}]})["video"] == "v1"
        assert timed({"video": "v1", "start": "E2", "end": 5}) == {"video": "v1", "start": "E2", "end": 5}
        assert timed({"start": "E1", "end": "E2"}) == {"start": 1.0, "end": "E2", "video": "v1"}
        assert timed({"t": "E2"}) == {"t": 3.5, "video": "v2"}
        assert timed({"text": "E1", "evidence": ["E1"]}) == {"text": "E1", "evidence": ["E1"]}
        for odd in ({"start": "E9"}, {"start": None}, {"windows": "E1"}, {"windows": [3, {"start": ["E1"]}]}, {}):
            assert timed(odd) == odd


def test_times_of_a_call_are_numbers_or_evidence_that_exists(demo, clip):
    with Agent(demo, [clip]) as agent:
        agent.case.seen(agent.case.film({}), (1.0, 2.0))
        windows = allowed.narrowed(agent.case, BY_NAME["watch"])["properties"]["windows"]["items"]["properties"]
        number = {"type": "number", "minimum": 0, "maximum": 30.0, "multipleOf": 0.1}
        assert windows == dict.fromkeys(("start", "end"), {"anyOf": [number, {"enum": ["E1"]}]})
        assert allowed.narrowed(agent.case, BY_NAME["look"])["properties"]["t"] == windows["start"]
        for value in ({}, ["E1"], True, 1e16, math.nan):
            with pytest.raises(Wrong):
                fitting(BY_NAME["ground"].parameters, {"query": "x", "start": value})
        fitting(BY_NAME["ground"].parameters, {"query": "x", "start": "E1", "end": 3})


def test_the_frames_of_a_prompt_are_those_that_evidence_tells(demo, clip):
    """Whatever the window and the number of frames: what is cited is what was shown."""
    with Agent(demo, [clip]) as agent:
        shown = agent.case.films["v1"]
        for start, end, count in [
            (0, 30, 32),
            (0.0, 1.0, 4),
            (29.7, 30.0, 4),
            (3.33, 4.44, 5),
            (12.1, 12.2, 8),
            (0.5, 29.5, 31),
        ]:
            count = min(count, shown.possible(start, end))
            part = agent.case.resolved([shown.part(start, end, count)])
            prompt = demo.prepare([{"role": "user", "content": part}])
            times = [shown.times[n] for n in prompt.frames[0]]
            assert times == pytest.approx(shown.shown(start, end, count), abs=1e-3)
        for t in (0.0, 0.01, 7.77, 29.8, 29.99, 30.0):
            at, part = shown.frame(t)
            prompt = demo.prepare([{"role": "user", "content": agent.case.resolved([part])}])
            assert [shown.times[n] for n in prompt.frames[0]] == pytest.approx([at], abs=1e-3)
            assert at <= t < at + 0.21
            at, part = shown.frame(t, [250, 250, 500, 750])
            (media,) = demo.prepare([{"role": "user", "content": agent.case.resolved([part])}]).media
            assert media.timestamps == pytest.approx([at], abs=1e-3)


def test_so_they_are_where_frames_come_and_stay(demo, tmp_path):
    """At a rate that varies: bursts, and pauses of seconds."""
    times = [0, 0.033, 0.066, 0.1, 1.1, 1.133, 5.0, 5.033, 9.0, 9.5, 9.6, 9.7, 20.0]
    with Agent(demo, [uneven(tmp_path / "uneven.mp4", times)]) as agent:
        shown = agent.case.films["v1"]
        assert shown.times == pytest.approx(times, abs=2e-3)
        for start, end in [(0, shown.duration), (0.5, 6.0), (4.0, 4.5), (9.55, 20.0), (19.0, 20.0)]:
            for count in (1, 2, 4, 8):
                count = min(count, shown.possible(start, end))
                part = agent.case.resolved([shown.part(start, end, count)])
                prompt = demo.prepare([{"role": "user", "content": part}])
                assert [shown.times[n] for n in prompt.frames[0]] == pytest.approx(
                    shown.shown(start, end, count), abs=1e-3
                )
        for t in (0.05, 3.0, 4.99, 9.55, 19.9):
            at, part = shown.frame(t)
            (frames,) = demo.prepare([{"role": "user", "content": agent.case.resolved([part])}]).frames
            assert [shown.times[n] for n in frames] == pytest.approx([at], abs=1e-3) and at <= t


def test_several_windows_are_asked_apart_and_only_answers_come_in(demo, clip, apart):
    windows = [{"start": t, "end": t + 2.0} for t in (2.0, 14.0, 26.0)]
    says = {"v1": "A blue square."}
    replies = [call("watch", windows=windows, question="Which colour?", detail="low"), finish(ids=["E3"])]
    with Scripted(demo, [clip], replies, lambda text, parts: says["v1"] if text == "Which colour?" else None) as agent:
        answer = agent.ask(ASK)
        tokens = agent.context.session.tokens
    assert results(answer)[1] == [
        {"id": f"E{n}", "start": t, "end": t + 2.0, "frames": 4, "says": "A blue square."}
        for n, t in ((2, 2.0), (3, 14.0), (4, 26.0))
    ]
    with Scripted(demo, [clip], [replies[0].replace("26.0", "25.0"), finish()]) as other:
        other.ask(ASK)
        assert abs(other.context.session.tokens - tokens) < 60  # no frames


def test_verification_reads_logits_and_what_fails_is_kept(demo, clip, apart):
    claims = [{"text": "It is blue", "evidence": ["E2"]}, {"text": "It is green", "evidence": ["E2", "E1"]}]
    replies = [WATCH, finish("It is blue [E2].", claims=claims, confidence="high")]
    odds = {"It is blue": 0.97, "It is green": 0.08}
    model = lambda text, parts: next((p for claim, p in odds.items() if claim in text), None)  # noqa: E731
    with Scripted(demo, [clip], replies, model) as agent:
        answer = agent.ask(ASK)
    assert [(c.text, c.confirmed, c.probability) for c in answer.claims] == [
        ("It is blue", True, 0.97), ("It is green", False, 0.08)]  # fmt: skip
    assert answer.confidence == "low" and [e.claim for e in answer.steps if isinstance(e, Said)] == list(answer.claims)


def test_the_probability_of_yes_is_that_of_the_logits(demo, clip):
    import numpy as np

    from ivlite.agent.apart import Apart

    with Agent(demo, [clip]) as agent, Apart(agent.case) as aside:
        part = agent.case.films["v1"].part(0, 30, 8)
        p = aside.odds([part], "Is it blue? Answer Yes or No.")
        question = [
            {
                "role": "user",
                "content": [*agent.case.resolved([part]), {"type": "text", "text": "Is it blue? Answer Yes or No."}],
            }
        ]
        logits = demo.logits(demo.prepare(question))[-1].astype(np.float64)
        yes, no = (np.exp(logits[demo.tokenizer.encode(word)[0]]) for word in ("Yes", "No"))
        assert p == pytest.approx(yes / (yes + no), abs=0.05)


def test_questions_apart_are_not_kept_on_the_disk(clip, tmp_path):
    import ivlite
    from ivlite.agent.apart import Apart
    from ivlite.session.store import Store

    with ivlite.load("demo", store=False) as model:
        model.store = Store(tmp_path / "sessions", worth=0.0, limit=10**9)
        with Agent(model, [clip]) as agent, Apart(agent.case) as aside:
            aside.ask([agent.case.films["v1"].part(0, 30, 32)], "What happens?")
            assert not list(tmp_path.rglob("*.ivs"))
        with model.session() as kept:
            for _ in kept.ask("What happens?", [clip], max_new_tokens=4):
                pass
            assert list(tmp_path.rglob("*.ivs"))


def test_not_in_this_video_says_what_was_not_seen(demo, tmp_path):
    long = film(tmp_path / "long.mp4", seconds=400, rate=1)
    claims = [{"text": "There is no dog", "evidence": ["E1"]}]
    with Scripted(demo, [long], [finish("There is no dog in the video.", claims=claims, missing="Sounds.")]) as agent:
        answer = agent.ask("When does the dog bark?")
    assert answer.text == "There is no dog in the video." and answer.claims[0].evidence == ("E1",)
    assert answer.missing.startswith("Sounds.") and "shorter events may be missed" in answer.missing
    assert answer.looked_at[0].every == pytest.approx(399 / 31, abs=0.01)


def test_a_global_question_about_a_short_video_is_answered_at_once(demo, clip):
    with Scripted(demo, [clip], [finish()]) as agent:
        answer = agent.ask("Describe the video.")
        assert answer.usage["rounds"] == 1 and answer.finish_reason == "finish"
    with Agent(demo, [clip]) as agent:
        answer = agent.ask("What happens in this clip?")
        assert answer.usage["rounds"] == 1 and answer.claims and answer.usage["calls"] == 1


def test_a_question_that_follows_costs_a_tenth(demo, clip):
    with Scripted(demo, [clip], [WATCH, finish(ids=["E2"]), finish("Red [E2].", ["E2"])], verify=False) as agent:
        first = agent.ask(ASK)
        second = agent.ask("And which colour was it before?")
    assert second.text == "Red [E2]." and second.evidence == first.evidence and second.usage["rounds"] == 1
    assert 10 * second.usage["prompt_tokens"] < first.usage["prompt_tokens"] and second.usage["frames"] == 0


def test_two_videos_have_handles(demo, clip, tmp_path):
    other = film(tmp_path / "other.mp4", seconds=8)
    replies = [call("look", t=3.0, video="v2"), finish("In the second [E3].", ["E3"])]
    with Scripted(demo, [clip, other], replies) as agent:
        answer = agent.ask("Which one is short?")
    assert [(v.handle, v.duration) for v in answer.videos] == [("v1", 30.0), ("v2", 8.0)]
    assert answer.evidence[2].video == "v2" and results(answer)[2] == {"id": "E3", "video": "v2", "t": 3.0}
    with Scripted(demo, [clip, other], [call("look", t=3.0), finish()]) as agent:
        assert "video must be one of v1, v2" in results(agent.ask("Which one is short?"))[2]["error"]


# ------------------------------------------------------------------------------------------------ budgets


def test_the_last_round_is_the_answer(demo, clip):
    looks = [call("look", t=float(t)) for t in range(20)]
    with Scripted(demo, [clip], looks[:3], budget=Budget(rounds=4)) as agent:
        answer = agent.ask(ASK)
    assert answer.usage["rounds"] == 4 and answer.finish_reason == "budget" and answer.claims
    with Scripted(demo, [clip], looks, budget=Budget(rounds=4)) as agent:  # it looks on, whatever it is told
        answer = agent.ask(ASK)
    assert answer.usage["rounds"] <= 4 + 4 and answer.claims == () and answer.text.startswith("No answer was reached")
    assert sum(isinstance(e, Call) and e.name == "look" for e in answer.steps) >= 3


def test_repeated_calls_are_answered_from_what_is_known(demo, clip):
    with Scripted(demo, [clip], [WATCH] * 3) as agent:
        answer = agent.ask(ASK)
    assert results(answer)[2] == {"known": ["E2"]} and answer.finish_reason == "stalled" and answer.claims
    assert answer.usage["rounds"] == 4 and sum(e.kind == "frames" for e in answer.evidence) == 2


def test_a_window_whose_frames_are_there_is_known(demo, clip):
    inner = call("watch", windows=[{"start": 14.4, "end": 15.0}], question="Which?", detail="mid")
    with Scripted(demo, [clip], [WATCH, inner, finish(ids=["E2"])]) as agent:
        assert results(agent.ask(ASK))[2] == {"known": ["E2"]}


def test_no_more_frames_than_the_budget(demo, clip):
    looks = [
        call("watch", windows=[{"start": t, "end": t + 8.0}], question="?", detail="high") for t in (0.0, 9.0, 20.0)
    ]
    with Scripted(demo, [clip], [*looks, finish()], budget=Budget(frames=64)) as agent:
        answer = agent.ask(ASK)
    assert answer.usage["frames"] <= 64 and "no frames are left" in results(answer)[-1]["error"]


def test_time_that_is_used_up_asks_for_the_answer(demo, clip):
    with Scripted(demo, [clip], [call("look", t=3.0), call("look", t=4.0)], budget=Budget(seconds=0.2)) as agent:
        answer = agent.ask(ASK)
    assert answer.finish_reason == "budget" and answer.usage["rounds"] < 5


@pytest.mark.parametrize(
    "value", [{"rounds": 0}, {"frames": 1}, {"seconds": -1}, {"thinking": -1}, {"new_tokens": "many"}]
)
def test_budgets_are_checked(value):
    with pytest.raises(UsageError):
        Budget(**value)


# ------------------------------------------------------------------------------------------------ a full context


def test_old_looks_are_folded_when_the_context_is_nearly_full(demo, clip):
    windows = [
        call("watch", windows=[{"start": t, "end": t + 4.0}], question="?", detail="high") for t in range(0, 27, 3)
    ]
    with Scripted(
        demo, [clip], [*windows, finish("Blue [E3].", ["E3"])], budget=Budget(rounds=20), verify=False
    ) as agent:
        agent.context.room = lambda: 4960
        answer = agent.ask(ASK)
        held = agent.context.session.messages
    folds = [e.text for e in answer.steps if isinstance(e, Remark) and "nearly full" in e.text]
    assert 1 <= len(folds) <= 5 and "E2, E3" in folds[0] and answer.text == "Blue [E3]."
    assert agent.context.session.tokens <= 4600
    said = [m["content"] for m in held if m["role"] == "tool"]
    assert any(isinstance(c, str) and '"E2"' in c for c in said) and any(isinstance(c, list) for c in said)


def test_a_look_that_was_folded_can_be_had_again(demo, clip):
    with Scripted(demo, [clip], [WATCH, WATCH, finish("Blue [E3].", ["E3"])], verify=False) as agent:
        ask = agent.context.ask

        def folding(limit, **settings):
            if len(agent.replies) == 2:
                agent.context.leave_out(["E2"])
            return ask(limit, **settings)

        agent.context.ask = folding
        answer = agent.ask(ASK)
    assert "known" not in results(answer)[2] and results(answer)[2]["id"] == "E3" and answer.finish_reason == "finish"


# ------------------------------------------------------------------------------------------------ stops


def test_a_stop_gives_what_was_found(demo, clip):
    stop = Stop()
    with Scripted(demo, [clip], [WATCH, finish(ids=["E2"])]) as agent:
        events = []
        with pytest.raises(StopIteration), agent.stream(ASK, stop=stop) as stream:
            while True:
                events.append(next(stream))
                if isinstance(events[-1], Call) and events[-1].name == "watch":
                    stop.set("interrupted")
        assert isinstance(events[-1], Answered) and events[-1].answer.finish_reason == "interrupted"
        assert events[-1].answer.evidence[0].id == "E1"
        agent.replies = [finish("Blue [E1].")]
        assert agent.ask("And now?").text == "Blue [E1]."  # the conversation goes on


def test_frames_that_a_stop_kept_from_the_model_were_not_looked_at(demo, clip):
    stop = Stop()
    with Scripted(demo, [clip], [WATCH, WATCH, finish()]) as agent:  # the first of these is lost with the stop
        with agent.stream(ASK, stop=stop) as stream:
            for event in stream:
                if isinstance(event, Result):  # of the overview: its frames wait for the first reply
                    stop.set("interrupted")
        answer = event.answer
        assert answer.evidence == answer.looked_at == () and answer.missing == "No frame was looked at."
        again = agent.ask("And now?")
        assert (
            [e.id for e in again.evidence] == ["E1", "E2"]
            and len(again.looked_at) > 2
            and again.text == "It turns blue [E1]."
        )


def test_a_look_that_is_stopped_leaves_nothing(demo, clip, monkeypatch):
    def stopped(case, *args):
        case.looks_at(case.films["v1"], [1.0, 2.0])
        raise Stopped.because("interrupted")

    monkeypatch.setattr(looks, "already", stopped)
    with Scripted(demo, [clip], [WATCH]) as agent, agent.stream(ASK, stop=(stop := Stop())) as stream:
        for event in stream:
            if isinstance(event, Call) and event.name == "watch":
                stop.set("interrupted")
    assert [(look.start, look.frames) for look in event.answer.looked_at] == [(0.0, 32)]


def test_a_run_leaves_no_stop_behind(demo, clip):
    """What comes after a run whose events were not read to the end is not stopped."""
    with Scripted(demo, [clip], [finish()]) as agent:
        with agent.stream(ASK) as events:
            for event in events:
                if isinstance(event, Answered):
                    break
        assert current() is None and demo.chat([{"role": "user", "content": "Hello"}]).finish_reason != "closed"


def test_a_run_goes_on_after_every_step(demo, tmp_path):
    """Cut after any of its steps, a run ends in the same answer, and does nothing twice."""
    short, ask, budget = film(tmp_path / "short.mp4", seconds=6), "Which colours are there?", Budget(rounds=4)
    steps, record = kept()
    with Agent(demo, [short], record=record, budget=budget) as agent:
        whole = agent.ask(ask)
    assert [kind for kind, _ in steps][0] == "question" and [kind for kind, _ in steps][-1] == "answer"
    for cut in range(1, len(steps) + 1):
        later = []
        record = Record(steps[:cut], lambda number, kind, data, into=later: into.append(kind))
        with Agent(demo, [short], record=record, budget=budget) as agent:
            again = agent.ask(ask)
        assert again.text == whole.text and again.claims == whole.claims and again.evidence == whole.evidence
        assert [event_data(e) for e in again.steps] == [event_data(e) for e in whole.steps]
        assert len(later) == len(steps) - cut and agent.case.spent.frames == whole.usage["frames"]
