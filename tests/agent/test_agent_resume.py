"""Runs in the library: texts and notes that are found again, runs that go on where they were killed."""

import os
import sqlite3
from dataclasses import replace

import pytest
from agent_scripts import Scripted, call, film, finish, results

from ivlite.agent import Agent, Budget
from ivlite.errors import MediaError, UsageError
from ivlite.library import Library

ASK = "When does the teacher say red?"
SRT = """1
00:00:02,000 --> 00:00:04,000
The teacher says red.

2
00:00:05,000 --> 00:00:06,500
And then says blue.
"""


@pytest.fixture
def lecture(tmp_path):
    path = film(tmp_path / "lecture.mp4", seconds=8)
    (tmp_path / "lecture.srt").write_text(SRT)
    return path


@pytest.fixture
def library(tmp_path):
    with Library.open(tmp_path / "library.sqlite") as found:
        yield found


def test_subtitles_are_found_before_the_first_reply(demo, lecture, library):
    with Scripted(demo, [lecture], [finish("It is said [E2].", ["E2"])], library=library) as agent:
        answer = agent.ask(ASK)
    overview, lines = results(answer)
    assert overview["texts"] == 2 and lines[0] == {
        "id": "E2",
        "start": 2.0,
        "end": 4.0,
        "text": "The teacher says red.",
    }
    assert answer.evidence[1].kind == "text" and answer.claims[0].confirmed is None  # nothing to be seen of a text
    assert answer.run == library.run().id and library.run().state == "done"
    assert [e["id"] for e in library.evidence(answer.run)] == [e.id for e in answer.evidence]


def test_a_video_that_was_moved_is_found_where_the_library_has_seen_it(demo, lecture, library, tmp_path):
    with Scripted(demo, [lecture], [finish()], library=library) as agent:
        agent.ask(ASK)
    moved = tmp_path / "moved" / "film.mp4"
    moved.parent.mkdir()
    os.rename(lecture, moved)
    with pytest.raises(MediaError, match="lecture.mp4 does not exist"):
        Agent.resume(demo, library)
    library.add_video(moved)
    with Agent.resume(demo, library) as agent:
        assert agent.case.films["v1"].file == str(moved) and agent.pending[0] == ASK
    moved.write_bytes(moved.read_bytes() + b"0")  # another content: it is not that video any more
    with pytest.raises(UsageError, match="has changed since run"):
        Agent.resume(demo, library)


def test_notes_are_found_by_later_runs(demo, lecture, library):
    replies = [call("note", text="A blue square follows", evidence=["E1"]), finish()]
    with Scripted(demo, [lecture], replies, library=library) as agent:
        agent.ask("Which square follows?")
    with Scripted(demo, [lecture], [call("search_text", query="blue square"), finish()], library=library) as agent:
        answer = agent.ask("What is in it?")
    assert any(e.kind == "note" and e.text == "A blue square follows" for e in answer.evidence)


def test_a_library_that_is_damaged_under_way_costs_no_answer(demo, lecture, tmp_path):
    said, path = [], tmp_path / "library.sqlite"
    replies = [call("note", text="A square", evidence=["E1"]), finish("Red [E1].", ["E1"])]
    with Library.open(path, warn=said.append) as library, Scripted(demo, [lecture], replies, library=library) as agent:
        with sqlite3.connect(path) as other:
            other.execute("DROP TABLE text")
            other.execute("DROP TABLE step")
        other.close()
        answer = agent.ask("What is seen?")
    assert answer.text == "Red [E1]." and len(said) == 1 and "set aside" in said[0]


def test_a_run_goes_on_in_another_process_and_takes_more_questions(demo, lecture, library, tmp_path):
    budget = Budget(rounds=4)
    with Agent(demo, [lecture], library=library, budget=budget) as agent:
        whole = agent.ask(ASK)
    steps, settled = library.run(whole.run).steps, library.run(whole.run).data["settings"]["budget"]
    assert settled["frames"] >= 1024  # by the speed of the machine, and once: see below
    for cut in (0, 1, len(steps) // 2, len(steps)):
        with Library.open(tmp_path / f"cut{cut}.sqlite") as other:
            run = other.begin_run(ASK, **library.run(whole.run).data)
            for step in steps[:cut]:
                other.step(run, step.number, step.kind, step.data)
            with Agent.resume(demo, other) as agent:
                assert agent.pending == (ASK, replace(budget, frames=settled["frames"])) and agent.run == run
                again = agent.ask()
                assert (again.text, again.claims, again.evidence) == (whole.text, whole.claims, whole.evidence)
                assert agent.pending is None and other.run(run).state == "done"
                more = agent.ask("And then?")
                assert more.usage["rounds"] >= 1 and len(more.evidence) >= len(again.evidence)
            assert len(other.run(run).steps) > len(steps)


def test_what_cannot_be_resumed(demo, lecture, library, tmp_path):
    with pytest.raises(UsageError, match="no run"):
        Agent.resume(demo, library)
    with Scripted(demo, [lecture], [finish()], library=library) as agent:
        run = agent.ask(ASK).run
    with pytest.raises(UsageError, match="no run"):
        Agent.resume(demo, library, "zzz")
    film(lecture, seconds=9)
    with Scripted(demo, [lecture], [finish()], library=library) as agent:
        answer = agent.ask(ASK)
    assert any("has changed since it was remembered" in getattr(e, "text", "") for e in answer.steps)
    with pytest.raises(UsageError, match="has changed since"):
        Agent.resume(demo, library, run)
    index = library.begin_run("index")
    with pytest.raises(UsageError, match="not one of the agent"):
        Agent.resume(demo, library, index)


def test_a_resumed_run_answers_its_own_question_first(demo, lecture, library):
    with Scripted(demo, [lecture], [finish()], library=library) as agent:
        agent.ask(ASK)
    with Agent.resume(demo, library) as agent:
        with pytest.raises(UsageError, match="a question to answer first"):
            agent.ask("Something else?")
        assert agent.ask(ASK).claims


def test_frames_in_memory_have_no_memory(demo, library):
    import numpy as np

    frames = [{"t": t / 2, "image": np.full((64, 64, 3), 9 * t, np.uint8)} for t in range(12)]
    with Scripted(demo, [frames], [call("look", t=2.0), finish(ids=["E2"])], library=library) as agent:
        answer = agent.ask("What is there?")
    assert answer.evidence[1].frames == (2.0,) and library.videos() == []
    with pytest.raises((UsageError, Exception)):
        Agent.resume(demo, library)
