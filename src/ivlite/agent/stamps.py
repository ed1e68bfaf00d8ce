"""Times and ids of evidence in texts that a model writes: what it says of a time is replaced by the evidence of that time, or left out."""

import re
from collections.abc import Iterator, Sequence

from ivlite.agent.answer import Evidence

CITED = re.compile(r"\s*\[(E[0-9]+(?:\s*,\s*E[0-9]+)*)\]")
CLOCK, LONG = r"\d{1,3}(?::[0-5]\d){1,2}(?:[.,]\d+)?", r"\d+(?:\.\d+)?\s*(?:s|secs?|seconds?|mins?|minutes?)\b"
NUMBER = r"\d+(?:\.\d+)?"
POINT = rf"(?:{CLOCK}|{LONG}|{NUMBER})"
WORD = r"(?:at|from|until|till|between|around|after|before|since|near)"
RANGE = rf"(?:{POINT}\s*(?:to|and|until|till|-|–)\s*)?"
# Points in time as a model writes them. A clock in the middle of a sentence may be one that is seen: "the clock shows 9:58".
STAMP = re.compile("|".join((
    rf"\s*\(?\b(?:{WORD}|about|by|to)\s+{RANGE}{CLOCK}(?![\d:])\)?",
    rf"\s*\(?\b{WORD}\s+{RANGE}{LONG}\)?",
    rf"\s*[(\[]\s*{RANGE}{CLOCK}\s*[)\]]|(?:^|(?<=[.;!?]))\s*{RANGE}{CLOCK}(?![\d:])",
    r"\s*\(?\b\d{1,3}(?::[0-5]\d){2}(?:[.,]\d+)?\b\)?",
    rf"\s*\(?\b(?:{WORD}\s+)?(?:the\s+)?(?:{NUMBER}[\s-]*(?:second|minute)\s+mark|second\s+{NUMBER}\b"
    rf"|{LONG}\s+in(?:to)?\b(?:\s+the\s+(?:video|film|clip|recording)\b)?)\)?",
    rf"\s*\(?\b(?:{WORD}\s+)?t\s*=\s*{NUMBER}\s*s?\b\)?",
    r"\s*\bat\s+\d+\.\d+(?!\s*[\w%°/])",
)), re.IGNORECASE)  # fmt: skip
TWICE = re.compile(r"(\[E[0-9]+\])(?:\s*\1)+")


def marks(ids: Sequence[str]) -> str:
    """Ids as a text names them: "[E1][E2]"."""
    return "".join(f"[{id}]" for id in ids)


def untimed(text: str, evidence: Sequence[Evidence], quoted: str = "") -> str:
    """A text whose points in time are those of evidence, or are left out: the model's own may be made up.

    quoted: texts that were read, whose clocks are no times of a video: "the train leaves at 10:15".
    """

    def named(match: re.Match[str]) -> str:
        clocks = re.findall(CLOCK, match[0])
        if clocks and all(re.search(rf"(?<![\d:]){re.escape(clock)}(?![\d:])", quoted) for clock in clocks):
            return match[0]
        near = [e for e in evidence if any(e.start - 1 <= t <= e.end + 1 for t in seconds_in(match[0]))]
        return f" [{near[0].id}]" if near else ""

    return TWICE.sub(r"\1", STAMP.sub(named, text)).strip()


def seconds_in(text: str) -> Iterator[float]:
    """The times that a text names, in seconds."""
    clocks = re.findall(r"(?:(\d{1,3}):)?(\d{1,3}):(\d{2}(?:[.,]\d+)?)", text)
    for hours, minutes, rest in clocks:
        yield 3600 * int(hours or 0) + 60 * int(minutes) + float(rest.replace(",", "."))
    for number, unit in () if clocks else re.findall(rf"({NUMBER})[\s-]*(m(?:in|\b))?", text.lower()):
        yield float(number) * (60 if unit else 1)


def read(evidence: Sequence[Evidence]) -> str:
    """The texts of evidence that was read and not written by a model."""
    return " ".join(e.text for e in evidence if e.kind == "text")


def uncited(text: str) -> str:
    """A text without marks of evidence: what was read may hold some of its own."""
    return CITED.sub("", text)
