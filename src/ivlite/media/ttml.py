"""TTML and DFXP subtitles: the tags of a file, one after the other, to cues. Damage costs a cue and not the file."""

import re

from ivlite.stop import checkpoint

LONGEST_TAG = 1 << 14  # characters; a longer one is text
LONGEST = 4_000  # characters of a cue that are kept
DEEPEST = 64  # elements around a paragraph
NEAREST = 8  # open elements within a paragraph among which the one that ends is looked for
FRAMES = 30.0  # a second, where neither the file nor the video says how many
HIDDEN = ("metadata", "title", "desc", "copyright")  # elements whose text is not shown

# No pattern goes over the same characters more than a few times, however a file is made.
TAG = re.compile(r"<[^<>]*>")
NAME = re.compile(r"<\s*+(/?)\s*+(?:[\w.-]++:)?([\w.-]++)")
ATTRIBUTE = re.compile(r"""(?<![\w:.-])([\w:.-]++)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)')""")
CLOCK = re.compile(r"(?:(\d{1,6}):)?(\d{1,6}):(\d{1,6})(?:[.,](\d{1,12})|:(\d{1,6})(?:\.\d{1,6})?)?")
OFFSET = re.compile(r"(\d{1,18}(?:\.\d{1,12})?)\s?(h|ms|m|s|f|t|)")
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0, "ms": 0.001}


def cues(lines, rate=None):
    """Yields (start, end, text) of an iterator over lines: seconds, or None where they cannot be read.

    rate: frames per second of the video, for a file that counts frames and does not say how many a second has.
    """
    reader = Reader(rate)
    for text, tag in tokens(lines):
        yield from reader.take(text, tag)
    yield from reader.finish()


def tokens(lines):
    """Yields (text, the tag that follows it or ""), without comments."""
    comment = False
    for text, tag in pieces(lines):
        if comment:
            comment = "-->" not in text and not tag.endswith("-->")
            text, tag = text.partition("-->")[2], tag if "-->" in text else ""
        if not comment and "<!--" in text + tag:
            comment = "-->" not in (text + tag).rpartition("<!--")[2]
            text, tag = text.partition("<!--")[0], ""
        if tag.startswith("<![CDATA["):
            text, tag = text + tag[9:].removesuffix("]]>"), ""
        yield text, tag


def pieces(lines):
    """Yields (text, the tag that follows it or "") of lines; tags may go over several."""
    waiting, size = [], 0  # what may be the beginning of a tag
    for n, line in enumerate(lines):
        if n % 4096 == 0:
            checkpoint()
        waiting.append(line)
        size += len(line)
        if ">" not in line and size <= LONGEST_TAG and (len(waiting) > 1 or "<" in line):
            continue
        text, at = "".join(waiting), 0
        for found in TAG.finditer(text):
            yield text[at : found.start()], found[0] if len(found[0]) <= LONGEST_TAG else ""
            at = found.end()
        rest = text.rfind("<", at)
        if rest < 0 or len(text) - rest > LONGEST_TAG:
            rest = len(text)
        yield text[at:rest], ""
        waiting, size = [text[rest:]] if rest < len(text) else [], len(text) - rest
    yield "".join(waiting).partition("<")[0], ""  # a tag that is cut off is none


class Reader:
    """The cues of tags that are given one after the other. Times of elements are relative to those around them."""

    def __init__(self, rate):
        self.usual = rate if rate and 1 <= rate <= 1000 else FRAMES
        self.frames, self.ticks = self.usual, 1.0  # a second
        self.around = []  # (name, start, end) of the open elements around paragraphs: seconds, or None
        self.paragraph = None

    def take(self, text, tag):
        """The cues that end with a tag. text: what stands before it."""
        if self.paragraph:
            self.paragraph.say(text)
        found = NAME.match(tag)
        if not found:
            return ()
        closing, name = found[1], found[2].lower()
        rows = self.finish() if name in ("p", "div", "body", "tt") else ()
        if name == "tt":
            self._begin(attributes(tag))
        elif name in ("div", "body"):
            self._leave(name) if closing else self._enter(name, tag)
        elif name == "p":
            if not closing and not tag.endswith("/>"):
                self.paragraph = Paragraph(*self._times(attributes(tag)))
        elif self.paragraph and not tag.endswith("/>"):
            self._inside(name, closing, tag)
        elif self.paragraph and name == "br":
            self.paragraph.say("", "\n")
        return rows

    def finish(self):
        """The cues of the open paragraph, which ends."""
        paragraph, self.paragraph = self.paragraph, None
        return paragraph.rows() if paragraph else ()

    def _begin(self, given):
        self.around = []
        self.frames, self.ticks = self.usual, 1.0
        parts = re.findall(r"\d{1,6}", given.get("frameratemultiplier", ""))
        factor = int(parts[0]) / int(parts[1]) if len(parts) == 2 and int(parts[0]) and int(parts[1]) else 1.0
        if frames := positive(given.get("framerate")):
            self.frames, self.ticks = frames * factor, frames * factor
        self.ticks = positive(given.get("tickrate")) or self.ticks

    def _enter(self, name, tag):
        if not tag.endswith("/>") and len(self.around) < DEEPEST:
            self.around.append((name, *self._times(attributes(tag))))

    def _leave(self, name):
        for at in range(len(self.around) - 1, -1, -1):
            if self.around[at][0] == name:
                del self.around[at:]
                break

    def _inside(self, name, closing, tag):
        if name == "br" and not closing:
            self.paragraph.say("", "\n")
        elif closing:
            self.paragraph.close(name)
        else:
            given = attributes(tag) if name == "span" else {}
            timed = not given.keys().isdisjoint(("begin", "end", "dur"))
            self.paragraph.open(name, self._times(given) if timed else None)

    def _times(self, given):
        """(start, end) of an element by its attributes: of those around it if it has none; None where they cannot be read."""
        base = next((start for _, start, _ in reversed(self.around) if start is not None), 0.0)
        begin, end, length = (self.seconds(given.get(name)) for name in ("begin", "end", "dur"))
        if begin is None and (given.get("begin") or (end is None and length is None)):
            return (None, None) if given.get("begin") or not self.around else self.around[-1][1:]
        start = base + (begin or 0.0)
        ends = [base + end] if end is not None else []
        return start, min([*ends, start + length] if length is not None else ends, default=None)

    def seconds(self, value):
        """Seconds of a time: a clock's, perhaps with frames, or a number with a unit. None if it cannot be read."""
        value = (value or "").strip()[:40]
        if found := CLOCK.fullmatch(value):
            hours, minutes, rest, part, frames = found.groups()
            whole = 3600 * int(hours or 0) + 60 * int(minutes) + int(rest)
            return whole + (int(part) / 10 ** len(part) if part else 0.0) + int(frames or 0) / self.frames
        if found := OFFSET.fullmatch(value):
            units = UNITS | {"f": 1 / self.frames, "t": 1 / self.ticks}
            return float(found[1]) * units[found[2]]
        return None


class Paragraph:
    """A <p> element: its text, and the times of the <span> elements in it. start, end: seconds, or None."""

    def __init__(self, start, end):
        self.times = [(start, end)]  # of the paragraph, and of each span that has times
        self.inside = [("p", 0)]  # open elements, and the number of the times that hold in each
        self.said, self.size = [], 0  # (number of times, text)

    def say(self, text, end=""):
        """Adds text. end: what follows it, perhaps the end of a line: those of the file itself are spaces."""
        name, number = self.inside[-1]
        text = text.replace("\n", " ") + end
        if text and name not in HIDDEN and self.size < LONGEST:
            self.said.append((number, text))
            self.size += len(text)

    def open(self, name, times):
        number = self.inside[-1][1]
        if times:
            number, self.size = len(self.times), 0
            self.times.append(times)
        self.inside.append((name, number))

    def close(self, name):
        for at in range(len(self.inside) - 1, max(0, len(self.inside) - 1 - NEAREST), -1):
            if self.inside[at][0] == name:
                del self.inside[at:]
                break

    def rows(self):
        """The cues, those of the spans if only they have times."""
        apart = self.times[0][0] is None and len(self.times) > 1
        texts = [[] for _ in self.times]
        for number, text in self.said:
            texts[number if apart else 0].append(text)
        found = [(*times, "".join(text)) for times, text in zip(self.times, texts, strict=True)]
        return [row for row in (found if apart else found[:1]) if row[0] is not None or row[2].strip()]


def attributes(tag):
    """{name in lower case without its prefix: value} of a tag."""
    return {name.rpartition(":")[2].lower(): a or b for name, a, b in ATTRIBUTE.findall(tag)}


def positive(value):
    """The number above zero that a text says; None if it says none."""
    found = re.fullmatch(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*", value or "")
    return float(found[1]) or None if found else None
