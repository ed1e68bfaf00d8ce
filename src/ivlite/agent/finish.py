"""The end of a run: what the model gave to `finish` becomes an Answer, whose claims are verified and whose times are the program's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ivlite.agent.answer import CONFIDENCE, Answer, Claim, Evidence
from ivlite.agent.case import Case
from ivlite.agent.film import Wrong
from ivlite.plan import spaced

CITED = re.compile(r"\s*\[(E[0-9]+)\]")
CLOCK, LONG = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?", r"\d+(?:\.\d+)?\s*(?:s|sec|secs|seconds?|min|mins|minutes?)\b"
POINT = rf"(?:{CLOCK}|{LONG}|\d+(?:\.\d+)?)"
# Points in time as a model writes them: after a word that names one, and clocks with hours anywhere.
STAMP = re.compile(
    rf"\s*\(?\b(?:at|from|until|till|between|around)\s+(?:{POINT}\s*(?:to|and|until|till|-|–)\s*)?(?:{CLOCK}|{LONG})\)?"
    r"|\s*\(?\b\d{1,2}:\d{2}:\d{2}(?:[.,]\d+)?\b\)?", re.IGNORECASE,
)  # fmt: skip
OPENED = 60  # characters of a finding, where there is no answer


def checked(case: Case, arguments: Mapping[str, Any]) -> None:
    """Raises Wrong where an answer cites nothing, or what does not exist."""
    claims = arguments.get("claims")
    if not str(arguments.get("answer") or "").strip():
        raise Wrong("answer is empty")
    if not isinstance(claims, list) or not claims:
        raise Wrong("an answer needs at least one claim with the id of its evidence")
    for claim in claims:
        ids = claim.get("evidence") if isinstance(claim, Mapping) else None
        if not isinstance(ids, list) or not ids:
            raise Wrong("each claim needs at least one id of evidence")
        for id in ids:
            case.by_id(str(id))


def claims_of(case: Case, arguments: Mapping[str, Any]) -> list[Claim]:
    """The claims of an answer, without ids that do not exist; a claim that has no other is left out."""
    out, given = [], arguments.get("claims")
    for claim in given if isinstance(given, list) else ():
        if not isinstance(claim, Mapping) or not isinstance(claim.get("evidence"), list):
            continue
        ids = tuple(dict.fromkeys(str(i) for i in claim["evidence"] if exists(case, str(i))))
        if ids and (text := said(case, claim.get("text"), ids)):
            out.append(Claim(text, ids))
    return out


def exists(case: Case, id: str) -> bool:
    try:
        return case.by_id(id) is not None
    except Wrong:
        return False


def said(case: Case, text: Any, ids: Sequence[str] = ()) -> str:
    """A text of the model in one line: without ids that do not exist, and with ids in place of the times that it wrote."""
    text = " ".join(str(text or "").split())
    text = CITED.sub(lambda m: m[0] if exists(case, m[1]) else "", text)
    return untimed(text, [case.by_id(id) for id in ids])


def untimed(text: str, evidence: Sequence[Evidence]) -> str:
    """A text whose points in time are those of evidence, or are left out: the model's own may be made up."""

    def named(match: re.Match[str]) -> str:
        near = [e for e in evidence if any(e.start - 1 <= t <= e.end + 1 for t in seconds_in(match[0]))]
        return f" [{near[0].id}]" if near else ""

    return STAMP.sub(named, text).strip()


def seconds_in(text: str) -> Iterator[float]:
    """The times that a text names, in seconds."""
    for hours, minutes, rest in re.findall(r"(?:(\d{1,2}):)?(\d{1,2}):(\d{2}(?:[.,]\d+)?)", text):
        yield 3600 * int(hours or 0) + 60 * int(minutes) + float(rest.replace(",", "."))
    for number, unit in re.findall(r"(\d+(?:\.\d+)?)\s*(s|m)", text.lower()):
        yield float(number) * (60 if unit == "m" else 1)


def answer(case: Case, arguments: Mapping[str, Any], claims: Sequence[Claim], **more: Any) -> Answer:
    """The Answer. claims: verified."""
    ids = [id for claim in claims for id in claim.evidence]
    given = arguments.get("confidence")
    confidence = given if given in CONFIDENCE else "low"
    if any(claim.confirmed is False for claim in claims):
        confidence = "low"
    missing = [said(case, arguments.get("missing")), *unseen(case)]
    return Answer(
        said(case, arguments.get("answer"), ids), tuple(claims), tuple(case.evidence), confidence, tuple(case.looked),
        " ".join(text for text in missing if text), usage=case.spent.as_data(),
        videos=tuple(film.video for film in case.films.values()), **more,
    )  # fmt: skip


def nothing(case: Case, **more: Any) -> Answer:
    """The Answer where the model gave none: what was found by then."""
    found = [e for e in case.evidence if e.text and (e.score is None or e.score >= 0.5) and e.kind != "count"]
    listed = "; ".join(f"{e.text[:OPENED]} [{e.id}]" for e in found[-5:])
    text = f"No answer was reached. Found by then: {listed}" if listed else "No answer was reached."
    return replace(answer(case, {}, (), **more), text=text)


def unseen(case: Case) -> Iterator[str]:
    """What was not looked at, of each video: how far apart the frames are that were seen of it."""
    for film in case.films.values():
        times = sorted(
            {t for look in case.evidence if look.video == film.handle for t in look.frames} | seen(case, film.handle)
        )
        name = f" of {film.handle}" if case.several else ""
        if not times:
            yield f"No frame{name} was looked at."
            continue
        gaps = [b - a for a, b in zip([0.0, *times], [*times, film.duration], strict=True)]
        if (widest := max(gaps)) > 2 * max(float(film.probe.times.interval), 0.5):
            yield f"Frames{name} that were looked at lie up to {spaced(widest)} apart: shorter events may be missed."


def seen(case: Case, handle: str) -> set[float]:
    """Times of looks whose frames are not evidence."""
    return {t for look in case.looked if look.video == handle for t in (look.start, look.end)}
