"""An answer as plain text, for terminals and for other programs."""

from collections.abc import Iterator

from ivlite.agent.answer import Answer, Claim, Evidence
from ivlite.numbers import clock

ENDS = {
    "budget": " (the budget is used up)",
    "stalled": " (nothing new was found)",
    "repairs": " (the model's calls made no sense)",
    "interrupted": " (interrupted)",
}


def shortened(text: str, most: int) -> str:
    """A text on one line of at most so many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 4] + " ..."


def entry(evidence: Evidence) -> str:
    """One piece of evidence in a line."""
    span = clock(evidence.start) if evidence.end <= evidence.start else f"{clock(evidence.start)}-{clock(evidence.end)}"
    count = f"  {len(evidence.frames)} frame{'s' * (len(evidence.frames) > 1)}" if evidence.frames else ""
    score = "" if evidence.score is None else f"  {evidence.score:.2f}"
    told = f"  {shortened(evidence.text, 120)}" if evidence.text else ""
    return f"[{evidence.id}] {evidence.video} {span}{count}{score}{told}"


def verdict(claim: Claim) -> str:
    """Whether a claim was confirmed, in words."""
    ids = " ".join(f"[{id}]" for id in claim.evidence)
    if claim.confirmed is None:
        return ids
    return f"{ids} {'confirmed' if claim.confirmed else 'not confirmed'} ({claim.probability:.2f})"


def lines(answer: Answer) -> Iterator[str]:
    """An answer as lines: the text with times, the claims, the evidence, what is missing."""
    times = {e.id: clock(e.start) for e in answer.evidence}
    told = answer.text
    for id, at in times.items():
        told = told.replace(f"[{id}]", f"[{id} {at}]")
    yield told
    if answer.claims:
        yield ""
        yield from (f"- {claim.text} {verdict(claim)}" for claim in answer.claims)
    if cited := answer.cited():
        titles = {video.handle: video.title for video in answer.videos}
        yield ""
        yield from (entry(e).replace(f"[{e.id}] {e.video} ", f"[{e.id}] {titles[e.video]} ", 1) for e in cited)
    if answer.missing:
        yield ""
        yield f"Not seen: {answer.missing}"
    yield f"Confidence: {answer.confidence}{ENDS.get(answer.finish_reason, '')}"
