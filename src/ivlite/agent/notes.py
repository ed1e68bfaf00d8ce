"""Tools without frames: lines of text, notes, questions to the person who asked."""

from collections.abc import Mapping, Sequence
from typing import Any

from ivlite.agent import say
from ivlite.agent.case import Case, Found, Line
from ivlite.agent.film import Film, Wrong
from ivlite.agent.stamps import marks, read, uncited, untimed

LINES = 10  # of text that one search returns, at most
USUAL = 5
LONGEST = 400  # characters of a line
RELEVANT = 0.5  # of the best score, below which a line is left out: it shares but the common words of a query


def search_text(case: Case, arguments: Mapping[str, Any]) -> Found:
    """Lines that match words."""
    film, k = case.film(arguments), arguments.get("k")
    start, end = arguments.get("start"), arguments.get("end")
    if start is not None or end is not None:
        start, end = film.window(start, end)
    most = min(LINES, max(1, int(k))) if isinstance(k, int | float) else USUAL
    found, before = (
        [],
        {(e.start, e.end, e.text): e for e in case.evidence if e.video == film.handle and e.kind != "frames"},
    )
    new = []
    for line in relevant(case.texts.search(str(arguments.get("query") or ""), film, start, end, most)):
        a, b = inside(film, line.start, line.end)
        text = " ".join(uncited(line.text).split())[:LONGEST]
        evidence = before.get((round(a, 3), round(b, 3), text))
        if evidence is None:
            kind = "note" if line.kind == "note" else "text"
            evidence = case.add(film, kind, a, b, text=text, score=line.score)
            new.append(evidence)
        found.append(evidence)
    return Found(say.lines(found, case.several), evidence=tuple(new), known=not new)


def relevant(lines: Sequence[Line]) -> list[Line]:
    """The lines, best first, without those that match far worse than the best one."""
    best = max((line.score or 0.0 for line in lines), default=0.0)
    return [line for line in lines if line.score is None or line.score >= RELEVANT * best]


def inside(film: Film, start: float, end: float) -> tuple[float, float]:
    """Times of a line, within the video."""
    a = min(max(0.0, start), film.duration)
    return a, min(max(a, end), film.duration)


def note(case: Case, arguments: Mapping[str, Any]) -> Found:
    """Keeps a finding; its times are those of its evidence."""
    given = [case.by_id(str(i)) for i in arguments.get("evidence") or ()]
    text = " ".join(str(arguments.get("text") or "").split())
    if not given or not text:
        raise Wrong("a note needs text and at least one id of evidence")
    film = case.films[given[0].video]
    own = [e for e in given if e.video == film.handle]
    frames = sorted({t for e in own for t in e.frames})
    start, end = min(e.start for e in own), max(e.end for e in own)
    text = untimed(text, own, read(own)) or marks([e.id for e in own])
    made = case.add(film, "note", start, end, frames=frames, text=text)
    case.texts.note(film, start, end, uncited(text))
    return Found(say.noted(made), evidence=(made,), known=True)


def ask_user(case: Case, arguments: Mapping[str, Any]) -> Found:
    """Asks whoever asked."""
    if case.ask_user is None:
        raise Wrong("nobody is there to be asked")
    said = case.ask_user(str(arguments.get("question") or ""))
    return Found(say.compact({"user": said[:4000]}))
