"""Claims or evidence of an answer, or segments of a video, as captions: SubRip and WebVTT."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from ivlite import output
from ivlite.agent.answer import Answer, Video
from ivlite.agent.export.text import doubted, line, spans
from ivlite.errors import UsageError, shown
from ivlite.numbers import clock

SHORTEST = 2.0  # seconds that a caption stays, so that it can be read
JOINER = "\u2060"  # is not seen; after it, < and { begin no markup of SubRip


@dataclass(frozen=True)
class Caption:
    """One caption. start, end: seconds of the video."""

    start: float
    end: float
    text: str


def of_claims(answer: Answer, video: Video) -> list[Caption]:
    """What an answer claims, at the times of its evidence in one video."""
    found = [(e.start, e.end, doubted(claim)) for claim in answer.claims for e in spans(answer, claim, video.handle)]
    return captions(found, video.duration)


def of_evidence(answer: Answer, video: Video) -> list[Caption]:
    """What was read, noted and said of the evidence in one video."""
    return captions([(e.start, e.end, e.text) for e in answer.evidence if e.video == video.handle], video.duration)


def captions(spans: Iterable[tuple[float, float, str]], duration: float) -> list[Caption]:
    """Captions of (start, end, text), in order of time; those without text are left out. duration: of the video."""
    made = set()
    for start, end, text in spans:
        start = min(max(0.0, start), duration)
        end = min(max(end, start + SHORTEST), duration)
        if end > start and (text := line(text, 1000)):
            made.add((start, end, text))
    return [Caption(*parts) for parts in sorted(made)]


def srt(captions: Iterable[Caption]) -> str:
    """A SubRip file."""
    return "\n".join(
        f"{n}\n{clock(c.start).replace('.', ',')} --> {clock(c.end).replace('.', ',')}\n{unmarked(c.text)}\n"
        for n, c in enumerate(captions, 1)
    )


def unmarked(text: str) -> str:
    """A text in which SubRip's readers find no markup and no times."""
    return text.replace("-->", "→").replace("<", "<" + JOINER).replace("{", "{" + JOINER)


def vtt(captions: Iterable[Caption]) -> str:
    """A WebVTT file."""
    cues = (f"\n{clock(c.start)} --> {clock(c.end)}\n{escaped(c.text)}\n" for c in captions)
    return "WEBVTT\n" + "".join(cues)


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


FORMS = {"srt": srt, "vtt": vtt}


def write(path: str | os.PathLike[str], answer: Answer, form: str) -> list[str]:
    """Writes the claims of an answer, or its evidence if it makes none, as captions; returns the files that were written.

    form: "srt" or "vtt". Of several videos each has a file of its own, whose name has the handle before the ending. Raises
    UsageError where there is nothing to write, DiskError.
    """
    if form not in FORMS:
        raise UsageError(f"form is {shown(form)}; it must be one of {', '.join(FORMS)}")
    parts = []
    for video in answer.videos:
        found = of_claims(answer, video) or of_evidence(answer, video)
        if found:
            name, ending = os.path.splitext(os.fspath(path))
            own = f"{name}.{video.handle}{ending}" if len(answer.videos) > 1 else os.fspath(path)
            parts.append((own, FORMS[form](found)))
    if not parts:
        raise UsageError(
            f"{path} is not written: the answer claims nothing that has a time, and no evidence has a text"
        )
    for own, text in parts:
        output.write(own, text.encode())
    return [own for own, _ in parts]
