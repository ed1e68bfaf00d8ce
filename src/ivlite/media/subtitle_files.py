"""The formats of subtitle files: lines of text to (start, end, text), a block at a time. Damage costs a cue and not the file."""

import re
import warnings
from itertools import chain, islice

import pysubs2

from ivlite.media import ttml
from ivlite.stop import checkpoint

BLOCK = 2_000  # lines that pysubs2 parses at once
LONGEST = 4_000  # characters of a SAMI caption
HEAD = 400  # lines that tell the format

TIME = re.compile(r"\s*(-?)\s*(?:(\d{1,6})\s*:\s*)?(\d{1,6})\s*:\s*(\d{1,3})(?:\s*[.,:;]\s*(\d{1,9}))?")
ARROW = re.compile(r"-{1,3}\s?>|-{1,3}&gt;|[–—]>|→")
SYNC = re.compile(r"(?=<sync\b)", re.IGNORECASE)
BLOCKS = ("NOTE", "STYLE", "REGION", "WEBVTT")  # of WebVTT; the last one begins a file that was joined to another
# How the lines of a format begin, in the order in which they are tried.
FORMATS = (
    ("vtt", re.compile(r"\s*WEBVTT")),
    ("ass", re.compile(r"\s*\[(Script Info|V4\+? Styles|Events)\]|\s*Dialogue:", re.IGNORECASE)),
    ("sami", re.compile(r"\s*<SAMI", re.IGNORECASE)),
    ("ttml", re.compile(r"\s*(<\?xml.*|<!--.*)?<(\w+:)?tt[\s>]", re.IGNORECASE)),
    ("microdvd", re.compile(r" *\{ *\d+ *\} *\{ *\d* *\}")),
    ("mpl2", re.compile(r"\[-?\d+\]\[-?\d*\]")),
    ("srt", re.compile(rf"{TIME.pattern}\s*(?:{ARROW.pattern})")),
    ("tmp", re.compile(r"\d{1,2}:\d{2}:\d{2}:.")),
)  # fmt: skip
OPEN = re.compile(r"^( *[{\[] *)(\d+)( *[}\]])( *[{\[] *[}\]])")
RATE = re.compile(r" *\{ *[01] *\} *\{ *[01] *\} *(\d{1,3}(?:[.,]\d{1,9})?)\s*$")


def format_of(head):
    """The format of a file by its first lines, "" if it is none that is read."""
    for line in head:
        for name, pattern in FORMATS:
            if pattern.match(line[:200]):
                return name
    return ""


def cues(lines, rate=None):
    """(name of the format or "", an iterator over (start, end, text)) of an iterator over lines.

    Times are seconds, or None where there are none. rate: frames per second of the video, for files that count frames.
    """
    lines = (line.lstrip("\ufeff") for line in lines)  # a byte order mark begins each file of those that were joined
    head = list(islice(lines, HEAD))
    name = format_of(head)
    if not name:
        return "", iter(())
    everything = chain(head, lines)
    if name in ("srt", "vtt"):
        return name, timed(everything, name == "vtt")
    if name == "sami":
        return name, captions(everything)
    if name == "ttml":
        return name, ttml.cues(everything, rate)
    if name == "ass":
        return name, blocks(events(everything), "ass", "[Events]\n", None)
    if name == "microdvd":
        found = RATE.match(head[0])
        rate = float(found[1].replace(",", ".")) if found else rate
        everything = everything if found is None else islice(everything, 1, None)
        return name, blocks(map(closed, everything), name, "", rate if rate and 1 <= rate <= 1000 else 25.0)
    return name, blocks(map(closed, everything), name, "", None)


def seconds(found):
    """Seconds of a match of TIME."""
    sign, hours, minutes, rest, part = found.groups()
    value = 3600 * int(hours or 0) + 60 * int(minutes) + int(rest)
    value += int(part) / 10 ** len(part) if part else 0.0
    return -value if sign else value


def time_line(line, before):
    """(start, end) of a line with two times and an arrow, either may be None; None for any other line.

    before: the lines before it. Under a cue's number it is a time line, even if neither time can be read.
    """
    arrow = ARROW.search(line, 0, 200)
    if arrow is None:
        return None
    start = TIME.fullmatch(line[: arrow.start()].rstrip())
    end = TIME.match(line[arrow.end() : arrow.end() + 60].lstrip())
    if start is None and end is None:
        return (None, None) if before and before[-1].isdigit() and not any(before[-2:-1]) else None
    if start is None and len(line[: arrow.start()].split()) > 1:  # "he turns --> 10:30 is late"
        return None
    return (seconds(start) if start else None), (seconds(end) if end else None)


def timed(lines, vtt):
    """The cues of SubRip and WebVTT lines."""
    times, text, aside = None, [], False
    for n, line in enumerate(lines):
        if n % 4096 == 0:
            checkpoint()
        line = line.rstrip("\n")
        found = time_line(line, text) if ">" in line or "→" in line or "&gt;" in line else None
        if found is not None:
            if times is not None:
                yield *times, "\n".join(without_name(text, vtt))
            times, text, aside = found, [], False
        elif vtt and (not text or not text[-1] or line == "WEBVTT") and line.startswith(BLOCKS):
            aside = True
            if text and text[-1]:
                text.append("")
        elif aside:
            aside = bool(line.strip())
        elif times is not None and len(text) < 100:
            text.append(line.strip())
    if times is not None:
        while text and not text[-1]:
            text.pop()
        yield *times, "\n".join(text[:-1] if text[1:] and text[-1].isdigit() and not text[-2] else text)


def without_name(text, vtt):
    """The lines of a cue without the number or the name of the one that follows."""
    end = len(text)
    if end and (text[-1].isdigit() or (vtt and end > 1 and not text[-2])):
        return text[: end - 1]
    return text


def events(lines):
    """The dialogue lines of an ASS or SSA file, in the usual order of fields."""
    order = ["layer", "start", "end", "style", "name", "marginl", "marginr", "marginv", "effect", "text"]
    inside = False
    for n, line in enumerate(lines):
        if n % 4096 == 0:
            checkpoint()
        start = line.lstrip("\ufeff \t")
        if start.startswith("["):
            inside = start[:8].lower() == "[events]"
        elif start.startswith("Format:") and inside:
            named = [part.strip().lower() for part in start[7:].split(",")]
            order = named if {"start", "end", "text"} <= set(named) and named[-1] == "text" else order
        elif start.startswith("Dialogue:"):
            parts = start[9:].rstrip("\n").split(",", len(order) - 1)
            row = dict(zip(order, parts, strict=False))
            yield f"Dialogue: 0,{row.get('start', '')},{row.get('end', '')},Default,,0,0,0,,{row.get('text', '')}\n"


def closed(line):
    """A line of a format in braces or brackets; without an end, it ends where it starts."""
    return OPEN.sub(r"\1\2\3\1\2\3", line, count=1)


def blocks(lines, name, header, rate):
    """The cues of a format of one line each, by pysubs2; what it cannot parse yields one without times."""
    lines = iter(lines)
    while block := list(islice(lines, BLOCK)):
        checkpoint()
        block = list(filter(str.strip, block))
        try:
            found = parsed(header + "".join(block), name, rate)
        except Exception:  # of any kind: pysubs2 states none
            found = [row for line in block for row in alone(header + line, name, rate)]
        yield from found
        yield from [(None, None, "")] * (len(block) - len(found))


def alone(line, name, rate):
    try:
        return parsed(line, name, rate)
    except Exception:
        return []


def captions(lines):
    """The cues of a SAMI file, one at a time: each stays until the next, which may be empty."""
    text = ""
    for line in chain(lines, ["<sync>"]):
        for n, piece in enumerate(SYNC.split(line)):
            if n:
                checkpoint()
                yield from caption(text)
                text = ""
            text += piece if len(text) < LONGEST else ""


def caption(text):
    """The cue of one <sync> element."""
    if not SYNC.match(text):
        return
    try:
        yield from ((start, None, words) for start, _, words in parsed(text[:LONGEST] + "</sync>", "sami", None))
    except Exception:
        yield None, None, text


def parsed(text, name, rate):
    """[(start, end, text)] of a text, by pysubs2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pysubs2.SSAFile.from_string(text, format_=name, fps=rate)
    return [(e.start / 1000, e.end / 1000, e.text) for e in found if not e.is_comment]
