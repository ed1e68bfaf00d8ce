"""Verification: how probable a statement is, by frames alone, without what the conversation made of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ivlite.agent import say
from ivlite.agent.answer import Claim, Evidence
from ivlite.agent.apart import Apart, room
from ivlite.agent.case import Case, Found
from ivlite.agent.film import Detail, Film
from ivlite.agent.looks import affordable
from ivlite.agent.stamps import uncited

CLOSE = Detail(16, 1.0)
CONFIRMED = 0.5  # p(yes) from which a claim is confirmed
WINDOWS = 4  # of the evidence of a claim that are looked at, at most
AROUND = 0.5  # seconds on each side of a single frame


def verify(case: Case, arguments: Mapping[str, Any]) -> Found:
    """The tool: p(yes) of a claim in a window."""
    film, text = case.film(arguments), str(arguments.get("claim") or "")
    start, end = film.window(arguments.get("start"), arguments.get("end"))
    count = affordable(case, film, start, end, CLOSE)
    with Apart(case) as aside:
        p = aside.odds([film.part(start, end, count, CLOSE.pixels)], say.VERIFY.format(claim=text))
    evidence = case.seen(film, film.shown(start, end, count), text=text, score=p)
    return Found(say.verified(evidence, case.several), evidence=(evidence,))


def confirmed(case: Case, claim: Claim) -> Claim:
    """A claim with p(yes) by the frames of its evidence, looked at once more, at least as closely; of one frame, by that frame.

    One that rests on text alone, or says nothing but when, stays as it is.
    """
    if not uncited(claim.text):
        return claim
    shown: list[dict[str, Any]] = []
    for e in _visual(case, claim)[:WINDOWS]:
        film = case.films[e.video]
        if (moment := case.moments.get(e.id)) is not None and case.spent.frames_for(1, checking=True):
            case.looks_at(film, e.frames)
            shown.append(moment)
            continue
        start, end = around(film, e)
        wanted = min(CLOSE.frames, film.possible(start, end), room(case, film.pair_tokens()) // WINDOWS or 1)
        if (count := case.spent.frames_for(wanted, checking=True)) > 0:
            case.looks_at(film, film.shown(start, end, count))
            shown.append(film.part(start, end, count, max(CLOSE.pixels, case.shown.get(e.id, 0.0))))
    if not shown:
        return claim
    with Apart(case) as aside:
        p = aside.odds(shown, say.VERIFY.format(claim=claim.text))
    return Claim(claim.text, claim.evidence, p >= CONFIRMED, round(p, 4))


def _visual(case: Case, claim: Claim) -> Sequence[Evidence]:
    """The evidence of a claim that has frames; that of a note stands for what the note rests on."""
    found, wanted = list[Evidence](), list(claim.evidence)
    while wanted and len(wanted) < 100:
        e = case.by_id(wanted.pop(0))
        if e.frames and e not in found:
            found.append(e)
    return found


def around(film: Film, evidence: Evidence) -> tuple[float, float]:
    """The window of evidence; a single frame has some time on each side."""
    if evidence.end - evidence.start >= AROUND:
        return evidence.start, evidence.end
    return max(0.0, evidence.start - AROUND), min(film.duration, evidence.end + AROUND)
