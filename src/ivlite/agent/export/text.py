"""Texts of videos and of models made safe to write into files: they are data, whatever they hold."""

import re

from ivlite.agent.answer import Answer, Claim, Evidence

# Controls, halves of characters, and marks that turn the direction of what follows them.
UNWANTED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
CITED = re.compile(r"\[(E\d+(?:\s*,\s*E\d+)*)\]")
STATES = {True: "confirmed", False: "not confirmed", None: "not checked"}


def line(text: str, most: int = 10_000) -> str:
    """A text as one line without control characters, at most `most` characters long."""
    text = " ".join(UNWANTED.sub(" ", text[: 4 * most]).split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def uncited(text: str) -> str:
    """A text without its marks of evidence, [E3], and the spaces before them."""
    return re.sub(rf"\s*{CITED.pattern}", "", text)


def doubted(claim: Claim) -> str:
    """The text of a claim; one that was found not to be so says so."""
    said = line(uncited(claim.text))
    return f"{said} (not confirmed)" if claim.confirmed is False else said


def spans(answer: Answer, claim: Claim, video: str) -> list[Evidence]:
    """The evidence of a claim in one video, by its handle."""
    return [e for e in answer.evidence if e.id in claim.evidence and e.video == video]


def cited(answer: Answer) -> set[str]:
    """The ids that the claims and the text name."""
    named = {i for claim in answer.claims for i in claim.evidence}
    return named | {i.strip() for found in CITED.findall(answer.text) for i in found.split(",")}
