"""The end of a run: what the model gave to `finish` becomes an Answer, whose claims are verified and whose times are the program's."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ivlite.agent.answer import CONFIDENCE, Answer, Claim, Evidence, Look
from ivlite.agent.case import Case
from ivlite.agent.film import Film, Wrong
from ivlite.agent.stamps import CITED, marks, read, uncited, untimed
from ivlite.plan import spaced

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
        if ids and str(claim.get("text") or "").strip():
            out.append(Claim(said(case, claim["text"], ids) or marks(ids), ids))
    return out


def exists(case: Case, id: str) -> bool:
    try:
        return case.by_id(id) is not None
    except Wrong:
        return False


def said(case: Case, text: Any, ids: Sequence[str] = ()) -> str:
    """A text of the model in one line: without ids that do not exist, and with ids in place of the times that it wrote."""

    def known(match: re.Match[str]) -> str:
        kept = [id for id in re.findall("E[0-9]+", match[1]) if exists(case, id)]
        return " " * (match[0][:1].isspace() and bool(kept)) + marks(kept)

    text = CITED.sub(known, " ".join(str(text or "").split()))
    return untimed(text, [case.by_id(id) for id in ids], read(case.evidence))


def answer(case: Case, arguments: Mapping[str, Any], claims: Sequence[Claim], **more: Any) -> Answer:
    """The Answer. claims: verified."""
    ids = [id for claim in claims for id in claim.evidence]
    given = arguments.get("confidence")
    confidence = given if given in CONFIDENCE else "low"
    if any(claim.confirmed is False for claim in claims):
        confidence = "low"
    missing = [said(case, arguments.get("missing")), *unseen(case.films.values(), case.evidence, case.looked)]
    text = said(case, arguments.get("answer"), ids) or " ".join(claim.text for claim in claims)
    return Answer(
        text, tuple(claims), tuple(case.evidence), confidence, tuple(case.looked),
        " ".join(text for text in missing if text), usage=case.spent.as_data(),
        videos=tuple(film.video for film in case.films.values()), **more,
    )  # fmt: skip


def nothing(case: Case, hidden: Collection[str] = (), **more: Any) -> Answer:
    """The Answer where the model gave none: what was found by then. hidden: ids of looks whose frames it has not been shown."""
    shown, looked = [e for e in case.evidence if e.id not in hidden], list(case.looked)
    for e in (e for e in case.evidence if e.id in hidden):
        mine = [n for n, look in enumerate(looked) if (look.video, look.start, look.end) == (e.video, e.start, e.end)]
        del looked[mine[-1] : mine[-1] + 1]
    found = [e for e in shown if e.text and (e.score is None or e.score >= 0.5) and e.kind != "count"]
    listed = "; ".join(f"{uncited(e.text)[:OPENED]} [{e.id}]" for e in found[-5:])
    text = f"No answer was reached. Found by then: {listed}" if listed else "No answer was reached."
    return replace(
        answer(case, {}, (), **more), text=text, evidence=tuple(shown), looked_at=tuple(looked),
        missing=" ".join(unseen(case.films.values(), shown, looked)),
    )  # fmt: skip


def unseen(films: Iterable[Film], evidence: Sequence[Evidence], looked: Sequence[Look]) -> Iterator[str]:
    """What was not looked at, of each video: how far apart the frames are that were seen of it."""
    films = list(films)
    for film in films:
        times = sorted({t for e in evidence if e.video == film.handle for t in e.frames} | seen(looked, film.handle))
        name = f" of {film.handle}" if len(films) > 1 else ""
        if not times:
            yield f"No frame{name} was looked at."
            continue
        gaps = [b - a for a, b in zip([0.0, *times], [*times, film.duration], strict=True)]
        if (widest := max(gaps)) > 2 * max(float(film.probe.times.interval), 0.5):
            yield f"Frames{name} that were looked at lie up to {spaced(widest)} apart: shorter events may be missed."


def seen(looked: Sequence[Look], handle: str) -> set[float]:
    """Times of looks whose frames are not evidence."""
    return {t for look in looked if look.video == handle for t in (look.start, look.end)}
