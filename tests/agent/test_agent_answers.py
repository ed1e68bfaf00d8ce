"""The parts of an answer that are computed without a model: times in texts, what was not seen, routes, the budget of time."""

import os
import pty
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from agent_scripts import Scripted, call, film, finish

from ivlite.agent import Agent, Budget, looks
from ivlite.agent.answer import Answer, Claim, Evidence, Look, Said, Video, event_data, event_of
from ivlite.agent.finish import claims_of
from ivlite.agent.route import direct
from ivlite.agent.stamps import untimed
from ivlite.errors import Stopped
from ivlite.library import Library
from ivlite.stop import Stop, using

SEEN = [
    Evidence("E3", "v1", 12.0, 15.0, "frames", (12.0, 15.0)),
    Evidence("E4", "v1", 3600.0, 3601.0, "frames", (3600.0,)),
]


@pytest.mark.parametrize("said, kept", [
    ("It appears at 12.5 seconds and leaves at 00:00:14.200.", "It appears [E3] and leaves [E3]."),
    ("It appears at 99 seconds.", "It appears."),
    ("From 12 to 15 s it moves", "[E3] it moves"),
    ("It ends around 1:00:00 [E4].", "It ends [E4]."),
    ("The clock shows 9:58.", "The clock shows 9:58."),
    ("He waits for 5 minutes (at 0:13).", "He waits for 5 minutes [E3]."),
    ("It wins by 3 seconds, 2:1.", "It wins by 3 seconds, 2:1."),
    ("12:34:56 is a time", "is a time"),
    ("At 7 there are 3 of them", "At 7 there are 3 of them"),
    ("(1:23) it turns", "it turns"), ("0:13 it turns. 9:58 it ends", "[E3] it turns. it ends"), ("It turns by 12:30.", "It turns."),
    ("After 45 seconds it turns", "it turns"), ("It is at t=500s", "It is"), ("It turns at t=13 s", "It turns [E3]"),
    ("It turns at 45.5.", "It turns."), ("It drives at 45.5 km/h", "It drives at 45.5 km/h"),
    ("At the 13 second mark it turns", "[E3] it turns"), ("It turns 99 seconds into the video", "It turns"),
    ("It goes on to 5 seconds, about 10 minutes", "It goes on to 5 seconds, about 10 minutes"),
    ("A train leaves at 10:15.", "A train leaves at 10:15."), ("Open from 10:15 to 18:00", "Open"),
    ("It turns at 100:00:00", "It turns"), ("A 16:9 picture, 3:2", "A 16:9 picture, 3:2"),
])  # fmt: skip
def test_points_in_time_are_those_of_evidence(said, kept):
    assert untimed(said, SEEN, "the train leaves at 10:15") == kept


def test_a_claim_that_is_only_a_time_names_its_evidence(demo, clip):
    claims = [{"text": "at 99 seconds", "evidence": ["E1"]}]
    with Scripted(demo, [clip], [finish("At 99 seconds.", claims=claims)]) as agent:
        answer = agent.ask("When does it turn blue?")
    assert answer.claims == (Claim("[E1]", ("E1",)),) and answer.finish_reason == "finish"
    with Scripted(demo, [clip], [finish("at 99 seconds", claims=claims)]) as agent:
        assert agent.ask("When does it turn blue?").text == "[E1]"


def test_ids_that_do_not_exist_are_left_out_of_lists(demo, clip):
    with Scripted(demo, [clip], [finish("Blue [E1, E9] and red [E7,E8].")]) as agent:
        assert agent.ask("When does it turn blue?").text == "Blue [E1] and red."


def test_what_is_read_names_no_evidence(demo, clip, tmp_path):
    """Neither a line of subtitles nor an old note with "[E1]" in it becomes a reference, and notes have no times of their own."""
    copy = shutil.copy(clip, tmp_path / "film.mp4")
    (tmp_path / "film.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nit turns blue [E1] here\n")
    note = call("note", text="blue at 99:59 [E1]", evidence=["E1"])
    with Library.in_memory() as library, Scripted(demo, [copy], [note, finish()], library=library) as agent:
        answer = agent.ask("When is blue said?")
        (kept,) = library.texts(agent.memory.ids["v1"], ["note"])
    assert kept.text == "blue"
    assert [e.text for e in answer.evidence if e.kind == "text"] == ["it turns blue here"]
    assert [e.text for e in answer.evidence if e.kind == "note"] == ["blue [E1]"]


@pytest.mark.parametrize("question, at_once", [
    ("Describe the video.", True), ("What happens?", True), ("Summarise it", True), ("What is the main topic?", True),
    ("When does it happen?", False), ("What happens first?", False), ("How many dogs are there?", False),
    ("What is written on the sign?", False), ("Describe what is written", False), ("Where is the dog?", False),
])  # fmt: skip
def test_routes(question, at_once):
    short, long = SimpleNamespace(duration=30.0), SimpleNamespace(duration=300.0)
    assert direct(question, [short]) is at_once
    assert not direct(question, [long]) and not direct(question, [short, short, short])


def test_claims_without_evidence_are_no_claims(demo, clip):
    with Scripted(demo, [clip], [finish()], verify=False) as agent:
        agent.ask("What is there?")
        given = [
            {"text": "a", "evidence": ["E1", "E1", "E9"]}, {"text": "b", "evidence": ["E9"]}, {"text": "c", "evidence": []},
            {"text": " ", "evidence": ["E1"]}, {"text": "d"}, "e", {"evidence": "E1"}, None,
        ]  # fmt: skip
        assert claims_of(agent.case, {"claims": given}) == [Claim("a", ("E1",))]
        assert claims_of(agent.case, {"claims": "E1"}) == claims_of(agent.case, {}) == []


def test_answers_are_plain_data():
    answer = Answer(
        "It is blue [E3].", (Claim("It is blue", ("E4",), True, 0.9),), tuple(SEEN), "high", (Look("v1", 12.0, 15.0, 2, 3.0),),
        "", (), {"rounds": 1}, (Video("v1", "/a.mp4", 4000.0, "a.mp4"),),
    )  # fmt: skip
    assert [e.id for e in answer.cited()] == ["E3", "E4"]
    data = replace(answer, steps=(event_of(event_data(SAID)),)).as_dict()
    assert data["answer"] == answer.text and data["steps"] == [event_data(SAID)] and "text" not in data


SAID = Said(Claim("It is blue", ("E4",), None, None))


def test_what_was_not_seen_is_said_of_each_video(demo, clip, tmp_path):
    long = film(tmp_path / "long.mp4", seconds=120, rate=2)
    with Scripted(demo, [clip, long], [finish()], verify=False) as agent:
        answer = agent.ask("When does it turn blue?")
    assert answer.missing == "Frames of v2 that were looked at lie up to 4.0 s apart: shorter events may be missed."


def test_time_thins_looks_by_the_plan(demo, clip, monkeypatch):
    """A wait that all frames would exceed leaves as many as the plan says."""
    asked = []

    def plan(messages, *, max_wait, budget, max_new_tokens):
        asked.append((max_wait, messages[0]["content"][0]))
        return SimpleNamespace(videos=[SimpleNamespace(by="limit", frames=6)])

    monkeypatch.setattr(demo, "plan", plan)
    with Agent(demo, [clip]) as agent:
        agent.case.spent = agent.case.spent.__class__(Budget(seconds=100.0))
        shown = agent.case.films["v1"]
        assert looks.affordable(agent.case, shown, 0.0, 30.0, looks.OVERVIEW) == 6
        assert 39 < asked[0][0] <= 40 and asked[0][1]["video"] == clip
        agent.case.spent = agent.case.spent.__class__(Budget())
        assert looks.affordable(agent.case, shown, 0.0, 30.0, looks.OVERVIEW) == 32 and len(asked) == 1


@pytest.mark.parametrize("seconds", [0.001, 0.1, 60.0])
def test_frames_that_nobody_states_are_those_of_ten_minutes(demo, clip, monkeypatch, seconds):
    shown = []

    def plan(messages, **more):
        part = messages[0]["content"][0]
        shown.append(part["nframes"])
        return SimpleNamespace(seconds={"vision": 0.25 * seconds, "prefill": 0.75 * seconds, "decode": 99.0})

    monkeypatch.setattr(demo, "plan", plan)
    with Agent(demo, [clip]) as agent:
        wanted = looks.frames_in_time(agent.case)
    assert wanted == max(1024, int(600 / (seconds / shown[0])))
    assert (wanted == 1024) == (seconds == 60.0)


def test_a_real_plan_limits_a_hurried_run(demo, clip):
    replies = [call("watch", windows=[{"start": 0.0, "end": 30.0}], question="?", detail="high"), finish()]
    with Scripted(demo, [clip], replies, verify=False, budget=Budget(seconds=600.0)) as agent:
        answer = agent.ask("When does it turn blue?")
    assert answer.usage["frames"] == 64 and answer.finish_reason == "finish"


def test_a_person_is_asked_only_where_there_is_one(monkeypatch):
    from ivlite.cli import agent as command

    args = SimpleNamespace(json=False, quiet=False)
    keyboard, terminal = pty.openpty()
    with open(terminal) as stdin, open(os.dup(terminal), "w") as stderr:
        monkeypatch.setattr(command.sys, "stdin", stdin)
        monkeypatch.setattr(command.sys, "stderr", stderr)
        ask = command.person(args, None)
        os.write(keyboard, b"the red one\n")
        assert ask("Which?") == "the red one"
        stop = Stop()
        threading.Timer(0.3, stop.set, ["interrupted"]).start()
        with using(stop), pytest.raises(Stopped):  # nobody types, and Ctrl-C ends the wait
            ask("Which?")
        os.close(keyboard)
    assert command.person(SimpleNamespace(json=True, quiet=False), None) is None
    monkeypatch.setattr(command.sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert command.person(args, None) is None
