"""Chapters of a video: the metadata that ffmpeg reads, and the list that video sites read in a description."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ivlite import output
from ivlite.agent.answer import Answer, Video
from ivlite.agent.export.text import line, spans, uncited
from ivlite.errors import UsageError

LEAST, SHORTEST = 3, 10  # what video sites want: so many chapters, each of so many seconds
TITLE = 100  # characters
BEFORE = "Beginning"  # the title of what comes before the first chapter


@dataclass(frozen=True)
class Chapter:
    """A chapter. start: seconds; it lasts until the next one."""

    start: float
    title: str


def of_claims(answer: Answer, video: Video) -> list[Chapter]:
    """What an answer claims of one video, in order of time: each claim at its first evidence, without those that failed."""
    claims = [c for c in answer.claims if c.confirmed is not False]
    found = [(min(e.start for e in its), uncited(c.text)) for c in claims if (its := spans(answer, c, video.handle))]
    return chapters(found, video.duration)


def chapters(marks: Iterable[tuple[float, str]], duration: float) -> list[Chapter]:
    """Chapters of (start, title) in order of time; of several at one time the first counts. duration: of the video."""
    made: dict[int, str] = {}
    for start, title in sorted(marks, key=lambda mark: mark[0]):
        title = line(title, TITLE)
        if 0 <= start < duration and title:
            made.setdefault(round(1000 * start), title)
    return [Chapter(start / 1000, title) for start, title in made.items()]


def ffmetadata(chapters: list[Chapter], duration: float) -> str:
    """A file for `ffmpeg -i video -i FILE -map_chapters 1 -codec copy out`. duration: seconds of the video.

    Chapters of mp4 files begin at 0, wherever the first one is: one is put before it.
    """
    chapters = chapters if not chapters or not chapters[0].start else [Chapter(0.0, BEFORE), *chapters]
    ends = [c.start for c in chapters[1:]] + [duration]
    parts = [
        f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={round(1000 * c.start)}\nEND={round(1000 * end)}\ntitle={escaped(c.title)}\n"
        for c, end in zip(chapters, ends, strict=True)
    ]
    return "\n".join([";FFMETADATA1\n", *parts])


def escaped(text: str) -> str:
    return re.sub(r"([=;#\\\n])", r"\\\1", text)


def site_list(chapters: list[Chapter], duration: float) -> str:
    """Lines "0:00 Title" as video sites want them: the first at 0:00, each at least 10 seconds long, three or more.

    A chapter that begins less than 10 seconds after another, or before the end, is left out. Raises UsageError where fewer
    than three are left.
    """
    kept: list[tuple[int, str]] = []
    for chapter in chapters:
        start = int(chapter.start)
        if not kept:
            kept.append((0, chapter.title if start < SHORTEST else BEFORE))
        if start - kept[-1][0] >= SHORTEST and duration - start >= SHORTEST:
            kept.append((start, chapter.title))
    if len(kept) < LEAST:
        raise UsageError(
            f"video sites want {LEAST} chapters of {SHORTEST} seconds or more, and there are {len(kept)}: "
            "ask for more parts, or write a file for ffmpeg (any ending but .txt)"
        )
    hours = kept[-1][0] >= 3600
    return "".join(f"{mark(start, hours)} {title.translate(BRACKETS)}\n" for start, title in kept)


BRACKETS = str.maketrans("<>", "‹›")  # which sites do not take


def mark(seconds: int, hours: bool) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def write(path: str | os.PathLike[str], answer: Answer) -> list[str]:
    """Writes the claims of an answer as chapters; returns the files that were written.

    A name that ends in .txt is the list for video sites, any other a file for ffmpeg. Of several videos each has a file of its
    own, whose name has the handle before the ending. Raises UsageError where there is nothing to write, DiskError.
    """
    name, ending = os.path.splitext(os.fspath(path))
    form = site_list if ending.lower() == ".txt" else ffmetadata
    parts = []
    for video in answer.videos:
        found = of_claims(answer, video)
        if found:
            own = f"{name}.{video.handle}{ending}" if len(answer.videos) > 1 else os.fspath(path)
            parts.append((own, form(found, video.duration)))
    if not parts:
        doubted = any(claim.confirmed is False for claim in answer.claims)
        why = "no claim of the answer was confirmed" if doubted else "the answer claims nothing that has a time"
        raise UsageError(f"{path} is not written: {why}")
    for own, text in parts:
        output.write(own, text.encode())
    return [own for own, _ in parts]
