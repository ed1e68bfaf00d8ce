"""Tools that search frames: `ground` (where something is seen) and `count` (how often).

Both go through a range of the video in segments, each in a conversation of its own. A segment that shows what is wanted is
gone through again in windows of a few frames, and those of them that show it are asked for times, in the authors' form: among many
frames a model tells well whether something is shown, but not when. What a window names is looked at again, wider and more closely,
and ranked by how probable the model finds it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivlite.agent import say
from ivlite.agent.answer import Evidence
from ivlite.agent.apart import Apart, room
from ivlite.agent.case import Case, Found
from ivlite.agent.film import Detail, Film, NothingLeft
from ivlite.agent.looks import within_time

RATE = 1.0  # frames a second of a search, where the budget allows
SEGMENT = 64  # frames of one
WINDOW = 8  # frames of a window of it that is asked for times
SHARE = 0.5  # of the frames that are left, for one search: its windows take no more than that again
LIKELY = 0.2  # p(yes) from which a segment is asked for times, and what a closer look shows is found
EVEN = 0.5  # p(yes) from which a window counts, and from which a segment is found that no times are named of: the whole of it
SPANS = 5  # that are returned, at most
CANDIDATES = 8  # that are looked at again, at most
AGAIN = Detail(16, 1.0)  # of the second look
WIDER = 0.5  # of its length, by which a span is widened on each side; a second at least
GAP = 2.0  # distances of frames, below which two spans are one: no frame lies between them
ON_SCREEN = 0.001  # seconds after a frame's time, which is kept in milliseconds, when it is the one on screen
ROUNDING = 0.06  # seconds by which a mark, which has one decimal, may be off
NUMBER = r"[0-9]{1,6}(\.[0-9])?"
TIMES = rf"none|{NUMBER} - {NUMBER}(, {NUMBER} - {NUMBER}){{0,11}}"  # what a count answers


@dataclass(frozen=True)
class Form:
    """How times are asked for.

    least: p(yes) from which a window shows something. most: of the times that are named, how many count. whole: where none are named,
    all that was shown counts.
    """

    text: str
    new_tokens: int
    least: float
    most: int | None = None
    whole: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


FIRST = Form(say.GROUND, 48, LIKELY, most=1, whole=True)
EVERY = Form(say.COUNT, 160, EVEN, settings={"response_format": {"type": "regex", "pattern": TIMES}})


@dataclass(frozen=True)
class Segment:
    """A stretch of a search. frames: their times."""

    start: float
    end: float
    count: int
    frames: tuple[float, ...]


@dataclass(frozen=True)
class Span:
    """Frames that show something, one after the other. score: the probability that they do."""

    frames: tuple[float, ...]
    score: float = 1.0


def segments(case: Case, film: Film, start: float, end: float) -> list[Segment]:
    """The segments of a search from start to end, RATE frames a second or as many as there are. Raises Wrong for none."""
    wanted = min(film.possible(start, end), max(2, round((end - start) * RATE)))
    count = min(wanted, case.spent.frames_for(max(2, int(case.spent.frames_left() * SHARE))))
    if count < 1:
        raise NothingLeft("no frames are left to look at: finish with what you know")
    wait = case.spent.wait()
    count = count if wait is None else within_time(case, film, start, end, count, 1.0, wait)
    number = -(-count // max(2, min(SEGMENT, room(case, film.pair_tokens()))))
    out, length = [], (end - start) / number
    for n in range(number):
        first, last = start + n * length, end if n == number - 1 else start + (n + 1) * length
        each = max(1, min(film.possible(first, last), round(count / number)))
        out.append(Segment(first, last, each, film.shown(first, last, each)))
    return out


def spacing(parts: Sequence[Segment]) -> float:
    """Mean seconds between two frames of a search."""
    frames = sum(part.count for part in parts)
    return (parts[-1].end - parts[0].start) / max(1, frames)


def spans_of(text: str, start: float, end: float) -> list[tuple[float, float]]:
    """The spans that a text names, two numbers each, within [start, end]; numbers from 0 to its length count from the start."""
    numbers = [float(n) for n in re.findall(r"\d+\.?\d*", text)][:24]
    out = []
    for a, b in zip(numbers[::2], numbers[1::2], strict=False):
        if not (start - 1 <= a <= end + 1) and a <= end - start + 1:
            a, b = a + start, b + start
        a, b = max(start, min(a, b)), min(end, max(a, b))
        if a <= b:
            out.append((a, b))
    return out


def ground(case: Case, arguments: Mapping[str, Any]) -> Found:
    """Spans that show something, best first, each with the probability that it does."""
    film, query = case.film(arguments), str(arguments.get("query") or "")
    start, end = film.window(arguments.get("start"), arguments.get("end"))
    parts = segments(case, film, start, end)
    scan = case.seen(film, [t for part in parts for t in part.frames], text=f"searched for: {query}")
    every, named = spacing(parts), list[Span]()
    for part in parts:
        named += _spans(case, film, part, query, FIRST)
    best = sorted(merged(named, GAP * every), key=lambda span: -span.score)[:CANDIDATES]
    found = [e for span in best if (e := _again(case, film, span, query)) is not None]
    found.sort(key=lambda e: -(e.score or 0.0))
    return Found(say.spans(scan, every, found[:SPANS], case.several), evidence=(scan, *found))


def _spans(case: Case, film: Film, part: Segment, query: str, form: Form, least: float = LIKELY) -> list[Span]:
    """The spans of a segment that show what is wanted; none where it is improbable that it does.

    least: the probability from which it does. A long segment that does is gone through in windows, which decide.
    """
    with Apart(case) as aside:
        shown = [film.part(part.start, part.end, part.count)]
        probability = aside.odds(shown, say.SHOWN.format(query=query))
        if probability < least:
            return []
        if not (closer := windows(case, film, part)):
            text = form.text.format(query=query, duration=film.duration)
            reply = aside.ask(shown, text, max_new_tokens=form.new_tokens, **form.settings)
    if closer:
        return [span for window in closer for span in _spans(case, film, window, query, form, form.least)]
    times = spans_of(reply.text, part.start, part.end)[: form.most]
    if not times and form.whole and probability >= EVEN:  # one of the two is sure
        times = [(part.start, part.end)]
    return [Span(marked(film, part.frames, a, b), probability) for a, b in times]


def windows(case: Case, film: Film, part: Segment) -> list[Segment]:
    """The frames of a segment in windows of WINDOW; none of a short one, or where time does not suffice to look again."""
    if part.count <= WINDOW:
        return []
    wait = case.spent.wait()
    if wait is not None and within_time(case, film, part.start, part.end, part.count, 1.0, wait) < part.count:
        return []
    case.looks_at(film, part.frames)
    out = []
    for n in range(0, part.count, WINDOW):
        frames = part.frames[n : n + WINDOW]
        start, end = frames[0] + ON_SCREEN, frames[-1] + 2 * ON_SCREEN
        out.append(Segment(start, end, len(frames), film.shown(start, end, len(frames))))
    return out


def _again(case: Case, film: Film, span: Span, query: str) -> Evidence | None:
    """The evidence of a span that is looked at again, wider and more closely.

    None where it is not seen any more, or no frames are left for it.
    """
    start, end = span.frames[0], span.frames[-1]
    more = max(1.0, WIDER * (end - start))
    a, b = max(0.0, start - more), min(film.duration, end + more)
    count = case.spent.frames_for(min(AGAIN.frames, film.possible(a, b), room(case, film.pair_tokens())), checking=True)
    if count < 1:
        return None
    shown, times = [film.part(a, b, count, AGAIN.pixels)], film.shown(a, b, count)
    case.looks_at(film, times)
    with Apart(case) as aside:
        score = aside.odds(shown, say.SHOWN.format(query=query))
        if score < LIKELY:
            return None
        text = say.GROUND.format(duration=film.duration, query=query)
        closer = spans_of(aside.ask(shown, text, max_new_tokens=FIRST.new_tokens).text, a, b)
    inside = marked(film, times, *(closer[0] if closer else (start, end)))
    return case.add(film, "frames", inside[0], inside[-1], frames=inside, text=query, score=score)


def marked(film: Film, times: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """The frames from start to end; where there are none, the nearest ones.

    A model reads one time of each group of frames, its mark, which is their mean: a mark within the span names its whole group.
    """
    temporal = film.config.vision.temporal_patch_size
    groups = [(sum(g) / len(g), g) for g in (times[n : n + temporal] for n in range(0, len(times), temporal))]
    low, high = start - ROUNDING, end + ROUNDING
    inside = [t for mark, group in groups for t in group if low <= t <= high or low <= mark <= high]
    return tuple(inside or min(groups, key=lambda item: abs(item[0] - (start + end) / 2))[1])


def count(case: Case, arguments: Mapping[str, Any]) -> Found:
    """How often something is seen; what goes on over the border of two segments counts once.

    Where a segment does not show it, no times are asked: a model that is asked for times finds some.
    """
    film, query = case.film(arguments), str(arguments.get("query") or "")
    start, end = film.window(arguments.get("start"), arguments.get("end"))
    parts = segments(case, film, start, end)
    every, spans = spacing(parts), list[Span]()
    scan = case.seen(film, [t for part in parts for t in part.frames], kind="count", text=query)
    for part in parts:
        spans += _spans(case, film, part, query, EVERY)
    found = []
    for span in merged(spans, GAP * every):
        inside = span.frames
        found.append(case.add(film, "frames", inside[0], inside[-1], frames=inside, text=query))
    case.revise(scan, text=f"{len(found)} x {query}", score=None)
    return Found(say.counted(scan, every, found, case.several), evidence=(scan, *found))


def merged(spans: Sequence[Span], gap: float) -> list[Span]:
    """Spans in order; those that overlap, or lie less than `gap` seconds apart, are one, with the better score."""
    out: list[Span] = []
    for span in sorted(spans, key=lambda span: span.frames):
        if out and span.frames[0] - out[-1].frames[-1] < gap:
            last = out.pop()
            frames = tuple(sorted({*last.frames, *span.frames}))
            span = Span(frames, max(last.score, span.score))
        out.append(span)
    return out
