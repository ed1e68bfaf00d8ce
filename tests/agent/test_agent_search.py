"""Searches: what is made of the spans that a model names, and of which frames it is asked for them."""

from types import SimpleNamespace

import pytest
from agent_scripts import Scripted, call, film, finish, results

from ivlite.agent import Budget, search
from ivlite.agent.search import Span, marked, merged

FILM = SimpleNamespace(config=SimpleNamespace(vision=SimpleNamespace(temporal_patch_size=2)))
TIMES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # marks: 0.5, 2.5, 4.5, 6.0


@pytest.mark.parametrize("start, end, frames", [
    (2.5, 2.5, (2.0, 3.0)),  # a mark names both frames of its pair
    (2.5, 4.5, (2.0, 3.0, 4.0, 5.0)),
    (2.0, 3.0, (2.0, 3.0)),
    (3.0, 4.0, (3.0, 4.0)),  # times of frames name frames
    (6.0, 6.0, (6.0,)),  # a frame without another
    (3.3, 3.4, (2.0, 3.0)),  # nothing there: the nearest pair
])  # fmt: skip
def test_spans_name_frames(start, end, frames):
    assert marked(FILM, TIMES, start, end) == frames


def test_marks_are_read_with_one_decimal():
    times = (10.0, 10.5, 11.0, 11.5)  # marks 10.25 and 11.25, which prompts write as 10.2 and 11.2
    assert marked(FILM, times, 10.2, 10.2) == times[:2] and marked(FILM, times, 11.2, 11.2) == times[2:]


def test_what_goes_on_over_the_border_of_two_segments_is_one():
    """Pairs of the two segments lie two frames apart, their marks twice as far."""
    before, after = Span((60.0, 61.0, 62.0, 63.0), 0.7), Span((64.0, 65.0), 0.9)
    assert merged([after, before], 1.5) == [Span((60.0, 61.0, 62.0, 63.0, 64.0, 65.0), 0.9)]
    later = Span((67.0, 68.0), 0.4)
    assert merged([later, after], 1.5) == [after, later]


# ------------------------------------------------------------------------------------------------ with a model that is told

ASK = "When does it turn blue?"


class Watching:
    """What a model says that knows when something is shown. events: (start, end). bad: frames of a question from which it names wrong times.

    fancies: frames of a question from which it takes something for shown at times when nothing is.
    """

    def __init__(self, *events, bad=1000, fancies=1000):
        self.events, self.bad, self.fancies, self.asked = events, bad, fancies, []

    def __call__(self, text, parts):
        (part,) = parts
        start, end = part.get("start", 0.0), part.get("end", 1e9)
        inside = [(max(a, start), min(b, end)) for a, b in self.events if a <= end and b >= start]
        if text.startswith("Does the video show"):
            return 0.9 if inside or part["nframes"] >= self.fancies else 0.01
        if not text.startswith(("Given the video", "List the start")):
            return None
        self.asked.append(part["nframes"])
        if part["nframes"] >= self.bad:
            return f"{start:.1f} - {start + 1:.1f}"
        return ", ".join(f"{a:.1f} - {b:.1f}" for a, b in inside) or "none"


def searched(demo, clip, model, tool="ground", **budget):
    """(what the tool found, what the answer has seen)."""
    replies = [call(tool, query="a blue square"), finish()]
    with Scripted(demo, [clip], replies, model, verify=False, budget=Budget(**budget)) as agent:
        answer = agent.ask(ASK)
    return results(answer)[1], answer


def test_ground_returns_ranked_spans_and_what_was_searched(demo, clip, apart):
    found, answer = searched(demo, clip, Watching((15.2, 17.0)))
    assert found["scan"] == "E2" and found["every"] == 1.0 and [s["id"] for s in found["spans"]] == ["E3"]
    span = answer.evidence[2]
    assert 15.2 <= span.start <= 15.5 and 16.7 <= span.end <= 17.0 and span.score == 0.9
    assert set(span.frames) <= {n / 5 for n in range(150)}


@pytest.mark.parametrize("event", [(0.0, 1.5), (7.2, 9.4), (15.2, 17.0), (28.6, 29.8)])
def test_times_are_asked_of_few_frames(demo, clip, apart, event):
    """A model that names wrong times of many frames: what it sees in them is found all the same."""
    model = Watching(event, bad=search.AGAIN.frames + 1)
    found, answer = searched(demo, clip, model)
    assert max(model.asked) <= search.AGAIN.frames
    (span,) = found["spans"]
    assert abs(span["start"] - event[0]) <= 0.5 and abs(span["end"] - event[1]) <= 0.5


@pytest.mark.parametrize("tool", ["ground", "count"])
def test_what_only_many_frames_seem_to_show_is_not_found(demo, clip, apart, tool):
    found, _ = searched(demo, clip, Watching(fancies=search.WINDOW + 1), tool)
    assert found["spans"] == [] and found.get("count", 0) == 0


@pytest.mark.parametrize("frames", [1024, 72, 48])
def test_frames_of_windows_are_counted(demo, clip, apart, frames):
    """However few there are: a search takes half of those left, its windows no more than that again."""
    found, answer = searched(demo, clip, Watching((13.0, 19.0)), frames=frames)
    (span,) = found["spans"]
    near = 1.5 * found["every"]  # a frame, and half the distance to the next one
    assert abs(span["start"] - 13) <= near and abs(span["end"] - 19) <= near
    overview, scan = answer.evidence[:2]
    looks = [look.frames for look in answer.looked_at]
    assert looks[:2] == [len(overview.frames), len(scan.frames)] and sum(looks) == answer.usage["frames"] <= frames
    assert (looks[2] == looks[1]) == (looks[1] > search.WINDOW)


def test_where_time_is_short_a_segment_is_asked_itself(demo, clip, apart, monkeypatch):
    left = iter([30, 12])  # frames that time suffices for: of the search, and of looking again
    monkeypatch.setattr(search, "within_time", lambda *_: next(left))
    model = Watching((15.2, 17.0))
    found, answer = searched(demo, clip, model, seconds=600.0)
    assert len(found["spans"]) == 1 and max(model.asked) == 30 and len(answer.looked_at) == 3


def test_windows_show_the_frames_of_their_segment(demo, clip):
    with Scripted(demo, [clip], []) as agent:
        shown = agent.case.films["v1"]
        for count in (9, 16, 30, 64):
            part = search.Segment(0.0, 30.0, count, shown.shown(0.0, 30.0, count))
            cut = search.windows(agent.case, shown, part)
            assert [w.count for w in cut] == [len(w.frames) for w in cut] and max(w.count for w in cut) == search.WINDOW
            assert sum(w.count for w in cut) == count
            for window, at in zip(cut, range(0, count, search.WINDOW), strict=True):
                frames = part.frames[at : at + search.WINDOW]
                assert (window.frames[0], window.frames[-1]) == (frames[0], frames[-1])
                assert window.frames == pytest.approx(frames, abs=1 / 5 + 1e-9)


def test_counts_join_what_goes_on_over_a_border(demo, tmp_path, apart):
    """Of two segments, and of two windows: 80 and 55 seconds."""
    long = film(tmp_path / "long.mp4", seconds=160, rate=2)
    model = Watching((50.0, 55.5), (70.0, 72.0), (77.0, 83.0), (120.0, 121.0))
    found, answer = searched(demo, long, model, "count")
    assert found["count"] == 4
    for span, event in zip(found["spans"], model.events, strict=True):
        assert abs(span["start"] - event[0]) <= 1.5 and abs(span["end"] - event[1]) <= 1.5
    assert answer.evidence[1].kind == "count" and answer.evidence[1].text == "4 x a blue square"
    assert max(model.asked) <= search.WINDOW
