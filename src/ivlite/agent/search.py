"""Tools that search frames: `ground` (where something is seen) and `count` (how often).

Both go through a range of the video in segments, each in a conversation of its own. A segment that shows what is wanted is
asked for its times, in the authors' form; what it names is looked at again, wider and more closely, and ranked by how probable
the model finds it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ivlite.agent import say
from ivlite.agent.answer import Evidence
from ivlite.agent.apart import Apart, room
from ivlite.agent.case import Case, Found
from ivlite.agent.film import Detail, Film, NothingLeft
from ivlite.agent.looks import within_time

RATE = 1.0  # frames a second of a search, where the budget allows
SEGMENT = 64  # frames of one
SHARE = 0.5  # of the frames that are left, for one search
LIKELY = 0.2  # p(yes) from which a segment is asked for times
SPANS = 5  # that are returned, at most
CANDIDATES = 8  # that are looked at again, at most
AGAIN = Detail(16, 1.0)  # of the second look
WIDER = 0.5  # of its length, by which a span is widened on each side; a second at least
NEW_TOKENS = 48  # of times
NUMBER = r"[0-9]{1,6}(\.[0-9])?"
TIMES = rf"none|{NUMBER} - {NUMBER}(, {NUMBER} - {NUMBER}){{0,11}}"  # what a count answers


@dataclass(frozen=True)
class Segment:
    """A stretch of a search. frames: their times."""

    start: float
    end: float
    count: int
    frames: tuple[float, ...]


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
    named: list[tuple[float, float, float]] = []  # probability, start, end
    for part in parts:
        named += _named(case, film, part, query)
    named.sort(key=lambda item: -item[0])
    found = [e for _, a, b in apart_from(named)[:CANDIDATES] if (e := _again(case, film, a, b, query)) is not None]
    found.sort(key=lambda e: -(e.score or 0.0))
    return Found(say.spans(scan, spacing(parts), found[:SPANS], case.several), evidence=(scan, *found))


def _named(case: Case, film: Film, part: Segment, query: str) -> list[tuple[float, float, float]]:
    """What a segment names, with the probability that it shows it; nothing where that is small."""
    shown = [film.part(part.start, part.end, part.count)]
    with Apart(case) as aside:
        probability = aside.odds(shown, say.SHOWN.format(query=query))
        if probability < LIKELY:
            return []
        text = say.GROUND.format(duration=film.duration, query=query)
        reply = aside.ask(shown, text, max_new_tokens=NEW_TOKENS)
    return [(probability, a, b) for a, b in spans_of(reply.text, part.start, part.end)[:1]] or [
        (probability, part.start, part.end)
    ]


def apart_from(named: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """The spans without those that lie within a better one."""
    out: list[tuple[float, float, float]] = []
    for p, a, b in named:
        if not any(a >= c - 0.5 and b <= d + 0.5 for _, c, d in out):
            out.append((p, a, b))
    return out


def _again(case: Case, film: Film, start: float, end: float, query: str) -> Evidence | None:
    """The evidence of a span that is looked at again, wider and more closely; None where no frames are left for it."""
    more = max(1.0, WIDER * (end - start))
    a, b = max(0.0, start - more), min(film.duration, end + more)
    count = case.spent.frames_for(min(AGAIN.frames, film.possible(a, b), room(case, film.pair_tokens())), checking=True)
    if count < 1:
        return None
    shown, times = [film.part(a, b, count, AGAIN.pixels)], film.shown(a, b, count)
    case.looks_at(film, times)
    with Apart(case) as aside:
        score = aside.odds(shown, say.SHOWN.format(query=query))
        text = say.GROUND.format(duration=film.duration, query=query)
        closer = spans_of(aside.ask(shown, text, max_new_tokens=NEW_TOKENS).text, a, b)
    start, end = closer[0] if closer else (start, end)
    inside = nearest(times, start, end)
    return case.add(film, "frames", inside[0], inside[-1], frames=inside, text=query, score=score)


def nearest(times: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """The times from start to end; where there are none, the nearest one."""
    inside = tuple(t for t in times if start - 0.05 <= t <= end + 0.05)
    return inside or (min(times, key=lambda t: abs(t - (start + end) / 2)),)


def count(case: Case, arguments: Mapping[str, Any]) -> Found:
    """How often something is seen; what goes on over the border of two segments counts once."""
    film, query = case.film(arguments), str(arguments.get("query") or "")
    start, end = film.window(arguments.get("start"), arguments.get("end"))
    parts = segments(case, film, start, end)
    every, spans = spacing(parts), list[tuple[float, float]]()
    scan = case.seen(film, [t for part in parts for t in part.frames], kind="count", text=query)
    for part in parts:
        with Apart(case) as aside:
            reply = aside.ask(
                [film.part(part.start, part.end, part.count)], say.COUNT.format(query=query), max_new_tokens=160,
                response_format={"type": "regex", "pattern": TIMES},
            )  # fmt: skip
        spans += spans_of(reply.text, part.start, part.end)
    found = []
    for a, b in merged(spans, every):
        inside = nearest(scan.frames, a, b)
        found.append(case.add(film, "frames", inside[0], inside[-1], frames=inside, text=query))
    case.revise(scan, text=f"{len(found)} x {query}", score=None)
    return Found(say.counted(scan, every, found, case.several), evidence=(scan, *found))


def merged(spans: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Spans in order; those that overlap, or lie less than `gap` seconds apart, are one."""
    out: list[tuple[float, float]] = []
    for a, b in sorted(spans):
        if out and a - out[-1][1] < gap:
            out[-1] = out[-1][0], max(out[-1][1], b)
        else:
            out.append((a, b))
    return out
