"""The agent played with the truth: the product's loop and tools over films that exist in memory, and a model that is right.

The tools are the product's own functions, given a film whose frames are known without a file (`Known`) and a model that
answers their questions from what those frames show (`Oracle`). What was said and read is recorded: it is what training shows.
"""

import math
import re
from functools import cached_property
from types import SimpleNamespace

import films
import numpy as np
import world
from conversations import UNIT, View, sized
from questions import moves

from ivlite.agent import say
from ivlite.agent.case import Line
from ivlite.agent.film import Film as Shown
from ivlite.agent.film import boxed
from ivlite.library import Library
from ivlite.media.timeline import Timeline

PICTURE = 1 << 18  # pixels of the frames that the product takes boxes of, at most, with the demo's settings


class Known(Shown):
    """A film of the world in the place of a file."""

    def __init__(self, film, config):
        self.handle, self.source, self.config = "v1", film, config
        height, width = films.size(film.aspect)
        times = np.arange(film.total) / film.rate
        line = Timeline(times, None, np.arange(film.total), float(film.rate), 1 / film.rate)
        self.probe = SimpleNamespace(
            times=line, name="film.mp4", size=lambda unit, *pixels: sized(height, width, *pixels)
        )

    @cached_property
    def subtitles(self):
        return Subtitles(self.source)

    def resolved(self, part):
        return {"type": "video", "view": view(self, part)}


def view(known, part):
    """The View of a part of a message about a Known film."""
    limits = part["min_pixels"], part["max_pixels"]
    if "index" not in part:
        times = known.shown(part.get("start", 0.0), part.get("end", known.duration), part["nframes"])
        return View(known.source, np.array(times), known.probe.size(UNIT, *limits))
    height, width = known.probe.size(UNIT, 1, PICTURE)
    x0, y0, x1, y1 = box = boxed(part["box"])
    rows, columns = math.ceil(y1 * height) - int(y0 * height), math.ceil(x1 * width) - int(x0 * width)
    return View(known.source, known.times[[part["index"]]], sized(rows, columns, *limits), box)


class Subtitles:
    """The lines of a film, as the product's library keeps and finds them."""

    def __init__(self, film):
        self.lines, self.library = len(film.cues), Library.in_memory()
        self.id = self.library.add_video("film.mp4", bytes(32), film.seconds)
        self.library.add_texts(self.id, "subtitle", film.cues, "film.srt")

    def count(self, known):
        return self.lines

    def search(self, query, known, start, end, k):
        found = self.library.search(query, [self.id], start, end, k=k)
        return [Line(hit.start, hit.end, hit.text, hit.kind, hit.score) for hit in found]

    def note(self, known, start, end, text):
        pass


# ------------------------------------------------------------------------------------------------ what frames show


def visible(view, name):
    """Indexes of the frames of a View that show a name."""
    actors = [a for a in view.film.actors if a.name == name]
    return [i for i, t in enumerate(view.times) if any(a.shown[0] <= t < a.shown[1] for a in actors)]


def spans(view, name):
    """[(mark, mark)] of the first and the last pair of each appearance of a name."""
    out = []
    for a in view.film.actors:
        seen = [i // 2 for i, t in enumerate(view.times) if a.name == name and a.shown[0] <= t < a.shown[1]]
        if seen:
            out.append((view.marks[seen[0]], view.marks[seen[-1]]))
    return out


def holds(views, claim):
    """Whether a claim is true of what views show."""
    for pattern, check in CLAIMS.items():
        if found := re.fullmatch(pattern, claim):
            return check(views, *found.groups())
    raise ValueError(f"no claim of this world: {claim}")


def moved(views, name, way):
    shown = [a for v in views for a in v.film.actors if a.name == name and visible(v, name)]
    return any(moves(a) == way for a in shown)


def signed(views, sign):
    """Whether a close look shows a sign; in a whole frame it is too small."""
    close = [v for v in views if v.box != world.WHOLE]
    return any(
        a.sign == sign for v in close for a in v.film.actors if any(a.shown[0] <= t < a.shown[1] for t in v.times)
    )


NAME = r"(\w+ \w+)"
CLAIMS = {
    rf"There is a {NAME}\.": lambda views, name: all(visible(v, name) for v in views),
    rf"There is no {NAME}\.": lambda views, name: not any(visible(v, name) for v in views),
    rf"The {NAME} (moves \w+|stays still)\.": moved,
    r"The sign is a (\w+)\.": signed,
}


def pattern(template, name):
    """The pattern of a question of `say`, whose field `name` is what is asked about."""
    parts = re.split(r"{[^}]*}", template)
    fields = re.findall(r"{(\w+)[^}]*}", template)
    groups = [f"(?P<{f}>.*)" if f == name else ".*" for f in fields]
    return re.compile("".join(re.escape(p) + g for p, g in zip(parts, [*groups, ""], strict=True)), re.S)


ASIDE = {"ground": pattern(say.GROUND, "query"), "count": pattern(say.COUNT, "query"),
         "shown": pattern(say.SHOWN, "query"), "verify": pattern(say.VERIFY, "claim")}  # fmt: skip


def kind_of(text):
    return next(kind for kind, pattern in ASIDE.items() if pattern.fullmatch(text))


def aside(views, text):
    """The true answer to a question of a tool about views."""
    kind = kind_of(text)
    about = ASIDE[kind].fullmatch(text).group(1)
    if kind == "shown":
        return say.YES if any(visible(v, about) for v in views) else say.NO
    if kind == "verify":
        return say.YES if holds(views, about) else say.NO
    times = [f"{a} - {b}" for v in views for a, b in spans(v, about)]
    if not times:
        return "none"
    return times[0] if kind == "ground" else ", ".join(times)
