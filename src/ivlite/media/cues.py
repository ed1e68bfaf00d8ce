"""Cues of subtitles: clean text, possible times, no repetitions. What is wrong with a file is counted, and never an error."""

import bisect
import html
import re
import unicodedata
from dataclasses import dataclass

MOST_CUES = 200_000  # of one track: twice what is said in a day
LONGEST = 1_000  # characters of a cue
LATEST = 400 * 24 * 3600.0  # seconds
NEAR = 0.5  # seconds between captions that follow each other
ROLLING = 12  # lines of the captions before that a rolling caption may repeat
SPEED, LEAST, MOST = 15, 1.0, 7.0  # characters read per second; seconds that a cue without an end stays
SLACK = 5.0  # seconds that subtitles may go on after the last frame

TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|<\d+:[\d:.]{1,20}>")  # HTML, WebVTT classes and its times of words
SPEAKER = re.compile(r"<v(?:\.[^\s<>]{0,80})?\s+([^<>]{1,80})>")  # of WebVTT
OVERRIDE = re.compile(r"(\{[^{}]*\})")
DRAWING = re.compile(r"\\p(\d)")
EASTERN = r"[\u3040-\u30ff\u3400-\u9fff\uff00-\uffef]"
BREAK = re.compile(rf"(?<={EASTERN})\n(?={EASTERN})")
# What is counted, and how a sentence says it.
COUNTED = {
    "empty": "without text",
    "broken": "without a time that can be read",
    "no_end": "without an end",
    "backward": "that end before they start",
    "unordered": "out of order",
    "repeated": "that repeat what was just said",
    "overlapping": "that overlap others",
    "outside": "after the end of the video",
    "clipped": "cut at the end of the video",
    "shortened": f"longer than {LONGEST} characters",
    "damaged": "with bytes that are no text",
}


@dataclass(frozen=True)
class Cue:
    """What is said or written from `start` to `end`, in seconds of the video's time; one line of text."""

    start: float
    end: float
    text: str


def plain(text):
    """The text of a cue without tags, overrides, entities and control characters; its lines as a list."""
    if "\\" in text:
        text = _without_overrides(text) if "{" in text else text
        text = text.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ")
    if "<" in text:
        text = TAG.sub("", SPEAKER.sub(r"\1: ", text))
    if "&" in text:
        text = TAG.sub("", html.unescape(text))
    if not text.isprintable():
        text = "".join(map(_printable, text))
    return [line for part in text.split("\n") if (line := " ".join(part.split()))]


def _without_overrides(text):
    """Text without the overrides of ASS in braces, and without its drawings: {\\an8}, and not {laughs}."""
    out, drawing = [], False
    for part in OVERRIDE.split(text):
        if part.startswith("{") and part.endswith("}") and "\\" in part:
            for level in DRAWING.findall(part):
                drawing = level != "0"
        elif not drawing:
            out.append(part)
    return "".join(out)


def _printable(c):
    """A character as it is shown: joiners stay, marks of direction go."""
    return c if c.isprintable() or c in "\n\u200c\u200d" else "" if unicodedata.category(c) == "Cf" else " "


def joined(lines):
    return BREAK.sub("", "\n".join(lines)).replace("\n", " ")


class Collector:
    """Takes the cues of a track as they are read; `finish` returns them. `counts`: what was wrong, by name of COUNTED."""

    def __init__(self):
        self.counts = dict.fromkeys(COUNTED, 0)
        self.rows = []  # (start, end or None, lines)
        self._last = {}  # text -> its newest row: effects and layers repeat a text many times
        self.full = False

    def add(self, start, end, text):
        """A cue as it was read: seconds or None, and marked-up text. Returns whether there is room for more."""
        if start is None or not -LATEST < start < LATEST:
            self.counts["broken"] += 1
            return True
        text = text[: 4 * LONGEST]
        if "\ufffd" in text:
            self.counts["damaged"] += 1
        lines = plain(text)
        if not lines:
            self.counts["empty"] += 1
            return True
        if end is None:
            self.counts["no_end"] += 1
        elif end < start or end > LATEST:
            self.counts["backward"] += 1
            end = None
        elif end == start:
            end = None
        return self._keep(start, end, lines)

    def _keep(self, start, end, lines):
        key = "\n".join(lines)
        at = self._last.get(key)
        if at is not None:
            first, last, _ = self.rows[at]
            if end is not None and last is not None and first - NEAR <= end and start <= last + NEAR:
                self.rows[at] = min(first, start), max(last, end), lines
                self.counts["repeated"] += 1
                return True
        if len(self.rows) >= MOST_CUES:
            self.full = True
            return False
        self._last[key] = len(self.rows)
        self.rows.append((start, end, lines))
        return True

    def finish(self, duration=None):
        """(cues in order of time within the video, hours that they were shifted back). duration: seconds, or None."""
        rows = self._ordered()
        rows = self._rolled(rows)
        shift = hours_ahead(rows, duration)
        cues = self._placed([(start - 3600 * shift, end - 3600 * shift, lines) for start, end, lines in rows], duration)
        latest = 0.0
        for cue in cues:
            self.counts["overlapping"] += cue.start < latest - 0.01
            latest = max(latest, cue.end)
        return tuple(cues), shift

    def _ordered(self):
        """The rows in order of time, each with an end."""
        rows, self.rows, self._last = self.rows, [], {}
        self.counts["unordered"] += sum(b[0] < a[0] for a, b in zip(rows, rows[1:], strict=False))
        rows.sort(key=lambda row: row[0])
        starts = [row[0] for row in rows]
        for i, (start, end, lines) in enumerate(rows):
            if end is None:
                end = start + min(MOST, max(LEAST, sum(map(len, lines)) / SPEED))
                following = bisect.bisect_right(starts, start)
                if following < len(starts):
                    end = min(end, max(starts[following], start + 0.1))
                rows[i] = start, end, lines
        return rows

    def _rolled(self, rows):
        """Rows without the lines that a rolling caption repeats of the captions just before it."""
        out, shown, until = [], [], None  # the newest lines that were said, and how long they are shown
        for start, end, lines in rows:
            if until is None or start > until + NEAR:
                shown = []
            again = next((n for n in range(min(len(lines), len(shown)), 0, -1) if shown[-n:] == lines[:n]), 0)
            fresh = lines[again:]
            until = end if until is None else max(until, end)
            self.counts["repeated"] += again > 0
            if not fresh:
                out[-1] = out[-1][0], max(out[-1][1], end), out[-1][2]
                continue
            if not again and out and shown and _grows(out[-1], start, fresh):  # word by word
                self.counts["repeated"] += 1
                out[-1] = out[-1][0], max(out[-1][1], end), fresh
                shown = [*shown[:-1], *fresh][-ROLLING:]
                continue
            out.append((start, end, fresh))
            shown = [*shown, *fresh][-ROLLING:]
        return out

    def _placed(self, rows, duration):
        """Cues within the video."""
        cues, over = [], float("inf") if duration is None else float(duration)
        for start, end, lines in rows:
            if start >= over or end <= 0:
                self.counts["outside"] += 1
                continue
            if end > over + SLACK:
                self.counts["clipped"] += 1
            text = joined(lines)
            if len(text) > LONGEST:
                self.counts["shortened"] += 1
                text = text[: LONGEST - 4] + " ..."
            cues.append(Cue(round(max(0.0, start), 3), round(min(end, over), 3), text))
        return cues


def _grows(row, start, lines):
    """Whether lines go on with the single line of a row that is on the screen until then."""
    _, end, before = row
    return (
        len(before) == len(lines) == 1 and abs(start - end) <= 0.1 and lines[0].startswith(before[0] + " ")
        and len(before[0]) >= 2
    )  # fmt: skip


def hours_ahead(rows, duration):
    """How many whole hours the times of rows lie behind a video, as those of broadcasts do: 0 where they fit as they are."""
    if duration is None or not rows or rows[0][0] < 3600:
        return 0
    ends = sorted(row[1] for row in rows)
    last = ends[int(0.98 * (len(ends) - 1))]  # a few wrong ones change nothing
    hours = int(rows[0][0] // 3600)
    if last <= duration + SLACK or last - 3600 * hours > duration * 1.02 + SLACK:
        return 0
    return hours


def remarks(counts):
    """What was wrong with the cues of a track, as parts of a sentence."""
    return [f"{n:,} {COUNTED[name]}" for name, n in counts.items() if n and name in COUNTED]
