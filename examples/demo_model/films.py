"""Long films of the demo's world: many scenes, rare events of two seconds, signs that only a close look shows, subtitles.

A film is 5 to 60 minutes of backgrounds on which one shape at a time appears, most of them once. What a film shows follows
from its generator alone; its file's name, its size and its subtitles tell nothing of the answers: the speaker lies half
of the time.
"""

from dataclasses import dataclass, field, replace

import av
import numpy as np
import world
from world import COLORS, MOTIONS, SHAPES, Scene

NEEDLE = (2.0, 2.4)  # seconds of a rare event
LONG = (4.0, 6.5)  # of one that has a sign
RATES = [2, 3]  # frames a second of the files
GAP = 6.0  # seconds between two events, at least
SHORT_SIDE = 240  # pixels of the files
NOUNS = ["bridge", "garden", "river", "market", "tower", "school", "harbor", "station", "forest", "castle", "island",
         "museum"]  # fmt: skip
CHATTER = ["We come to the {w}.", "Here is the {w}.", "This is the old {w}.", "I like the {w}.", "Now we see the {w}.",
           "Look at the {w}!"]  # fmt: skip
TALK = ["It is a fine day.", "Please stay with us.", "We will be back soon.", "What a long way!", "Let us go on.",
        "Thank you for watching."]  # fmt: skip
ANNOUNCED = ["Now a {n} comes.", "And here is a {n}.", "Look, a {n}!", "This is a {n}."]


@dataclass
class Cue:
    """A line of the subtitles. name: of the shape that it announces; noun: of the place that it speaks of."""

    start: float
    end: float
    text: str
    name: str = ""
    noun: str = ""


@dataclass
class Film:
    """cuts: seconds at which each background begins, the first at 0. actors: in order of time, never two at once.

    once: names of shapes that appear once. total: frames of the file, `rate` a second.
    """

    aspect: float
    rate: int
    total: int
    cuts: np.ndarray
    backgrounds: list
    actors: list = field(default_factory=list)
    cues: list = field(default_factory=list)

    @property
    def seconds(self):
        return self.total / self.rate

    @property
    def names(self):
        return [a.name for a in self.actors]

    @property
    def once(self):
        return [a for a in self.actors if self.names.count(a.name) == 1]

    def scene(self, number, times):
        """What is seen at times within one background, as a Scene of the world."""
        close = [a for a in self.actors if a.shown[0] < times[-1] + 1 and a.shown[1] > times[0] - 1]
        return Scene(self.aspect, close, self.backgrounds[number], self.rate)

    def draw(self, times, h, w, softness=1.0, box=world.WHOLE):
        """uint8 (F, h, w, 3): the frames at times (F,), ascending, or a box of them."""
        numbers = np.searchsorted(self.cuts, times + 1e-6, "right") - 1
        parts = [times[numbers == n] for n in np.unique(numbers)]
        drawn = (world.draw(self.scene(n, part), part, h, w, softness, box)
                 for n, part in zip(np.unique(numbers), parts, strict=True))  # fmt: skip
        return np.concatenate(list(drawn))

    def shown(self, start, end):
        """The actors that are to be seen between two times."""
        return [a for a in self.actors if a.shown[0] < end and a.shown[1] > start]


# ------------------------------------------------------------------------------------------------ what happens


def new_film(rng, seconds=None, aspect=None, test=False):
    """A film. test: with combinations that training never shows."""
    seconds = float(np.exp(rng.uniform(np.log(300), np.log(3600)))) if seconds is None else seconds
    rate = int(rng.choice(RATES))
    plan = planned(rng, min(1.0, (seconds - 200) / 1500))
    starts = spread_out(rng, np.array([duration for _, duration, _ in plan]), seconds)
    actors = []
    for (name, duration, sign), start in sorted(zip(plan, starts, strict=True), key=lambda item: item[1]):
        actors.append(new_event(rng, name, start, duration, sign, test))
    cuts = cut(rng, seconds, actors)
    aspect = float(rng.choice(world.ASPECTS)) if aspect is None else aspect
    film = Film(aspect, rate, int(seconds * rate), cuts, [world.new_background(rng) for _ in cuts], actors)
    film.cues = spoken(rng, film)
    return film


def planned(rng, size):
    """[(name, seconds, whether it has a sign)] of the events; size 0..1 goes from the shortest film to full ones."""
    names = [f"{c} {s}" for c in COLORS for s in SHAPES]
    names = [names[i] for i in rng.permutation(len(names))]
    rare, close, often = 3 + int(3 * size * rng.random()), 3 + int(3 * size * rng.random()), 2 + int(2 * size)
    plan = [(names.pop(), rng.uniform(*NEEDLE), False) for _ in range(rare)]
    plan += [(names.pop(), rng.uniform(*LONG), True) for _ in range(close)]
    for _ in range(often):
        name = names.pop()
        plan += [(name, rng.uniform(2.5, 6), False) for _ in range(int(rng.integers(2, 4 + round(3 * size))))]
    return plan


def spread_out(rng, durations, seconds):
    """Where each event begins, in a random order, at least GAP apart."""
    order = rng.permutation(len(durations))
    free = seconds - durations.sum() - GAP * (len(durations) + 1)
    cuts = np.sort(rng.uniform(0, free, len(durations)))
    before = np.concatenate([[0.0], np.cumsum(durations[order])[:-1]])
    starts = np.empty(len(durations))
    starts[order] = cuts + before + GAP * (1 + np.arange(len(durations)))
    return starts


def new_event(rng, name, start, duration, sign, test):
    """The Actor of a name; in training, of a motion that is not held out for it."""
    color, shape = name.split(" ")
    motions = [m for m in MOTIONS[:5] if test or not world.held_out(color, shape, m)]
    actor = world.new_actor(rng, str(rng.choice(motions)), None, set(), True)
    actor.color, actor.shape = color, shape
    end = start + duration
    if sign:
        actor.sign, actor.radius = str(rng.choice(SHAPES)), rng.uniform(0.18, 0.22)
    return replace(actor, start=start, end=end, shown=(start, end))


def cut(rng, seconds, actors):
    """Where backgrounds begin: every 15 to 90 seconds, never while something is shown."""
    cuts, at = [0.0], 0.0
    while (at := at + rng.uniform(15, 90)) < seconds - 10:
        for a in actors:
            if a.shown[0] - 2 < at < a.shown[1] + 2:
                at = a.shown[1] + 2
        cuts.append(at)
    return np.array(cuts)


# ------------------------------------------------------------------------------------------------ what is said


def spoken(rng, film):
    """The subtitles: a speaker who announces some of the shapes, half of them wrongly, and talks of places and of nothing."""
    nouns, cues = [NOUNS[i] for i in rng.permutation(len(NOUNS))], []
    left = [film.actors[i] for i in rng.permutation(len(film.actors))]
    true = [a for a in left if film.names.count(a.name) == 1][:2]
    left = [a for a in left if not any(a is b for b in true)]
    wrong = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in film.names]
    lies = [wrong[i] for i in rng.permutation(len(wrong))[: len(true)]]
    for actor, name in [*((a, a.name) for a in true), *((left.pop(), name) for name in lies)]:
        cues.append(beside(rng, actor, str(rng.choice(ANNOUNCED)).format(n=name), name=name))
    for noun in nouns[:3]:
        cues.append(beside(rng, left.pop(), str(rng.choice(CHATTER)).format(w=noun), noun=noun))
    return with_talk(rng, film, cues, nouns[3:])


def beside(rng, actor, text, **what):
    """A Cue that is spoken while an actor appears."""
    start = round(actor.shown[0] + rng.uniform(-0.4, 0.3), 1)
    return Cue(start, round(start + rng.uniform(2.2, 3.4), 1), text, **what)


def with_talk(rng, film, cues, nouns):
    """The cues with others between them, none within 8 seconds of another; places are named once, and not beside shapes."""
    for at in np.arange(5, film.seconds - 6, max(14, film.seconds / 60)):
        at = round(at + rng.uniform(0, 5), 1)
        if any(abs(at - c.start) < 8 for c in cues):
            continue
        noun = nouns.pop() if nouns and rng.random() < 0.2 and not film.shown(at - 1, at + 5) else ""
        text = str(rng.choice(CHATTER)).format(w=noun) if noun else str(rng.choice(TALK))
        cues.append(Cue(at, round(at + rng.uniform(1.8, 3.4), 1), text, noun=noun))
    return sorted(cues, key=lambda c: c.start)


# ------------------------------------------------------------------------------------------------ files


def size(aspect):
    """(height, width) of a file of that aspect, even numbers."""
    return round(SHORT_SIDE * max(1.0, 1 / aspect) / 2) * 2, round(SHORT_SIDE * max(1.0, aspect) / 2) * 2


def write_film(path, film, crf=26):
    """Writes a film as H.264, and its subtitles beside it as .srt; a frame that equals the one before costs next to nothing."""
    height, width = size(film.aspect)
    with av.open(str(path), "w") as out:
        options = {"crf": str(crf), "preset": "ultrafast", "g": str(10 * film.rate)}
        stream = out.add_stream("libx264", rate=film.rate, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.thread_count = width, height, "yuv420p", 1
        for frame in frames(film, height, width):
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    path.with_suffix(".srt").write_text(srt(film.cues), encoding="utf-8")


def frames(film, height, width):
    """The frames of the file as PyAV's; still ones are drawn once."""
    moving = np.zeros(film.total, bool)
    for a in film.actors:
        moving[max(0, int(a.shown[0] * film.rate) - 1) : int(a.shown[1] * film.rate) + 2] = True
    scenes = np.searchsorted(film.cuts, np.arange(film.total) / film.rate + 1e-6, "right")
    ends = np.append(np.flatnonzero(np.diff(2 * scenes + moving)) + 1, film.total)
    at = 0
    while at < film.total:
        end = ends[np.searchsorted(ends, at, "right")]
        count = min(16, end - at) if moving[at] else 1
        pictures = film.draw(np.arange(at, at + count) / film.rate, height, width)
        drawn = [av.VideoFrame.from_ndarray(p, format="rgb24").reformat(format="yuv420p") for p in pictures]
        for i in range(count if moving[at] else end - at):
            frame = drawn[min(i, count - 1)]
            frame.pts = at + i
            yield frame
        at += i + 1


def srt(cues):
    """The text of an .srt file."""

    def clock(t):
        ms = round(t * 1000)
        return f"{ms // 3600000:02d}:{ms // 60000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"

    return "".join(f"{i}\n{clock(c.start)} --> {clock(c.end)}\n{c.text}\n\n" for i, c in enumerate(cues, 1))
