"""Questions about a film with their true answers, and when an agent's answer is right.

An answer is a sentence without its references: "The green cross appears at [E3]." says "The green cross appears at."; the time
is that of the evidence, for a model never writes one.
"""

import re
from dataclasses import dataclass

from questions import kept_back, moves
from world import COLORS, SHAPES

TIMES = ["no times", "one time", "two times", "three times", "four times", "five times", "six times", "seven times",
         "eight times", "nine times"]  # fmt: skip
APART = 20.0  # seconds between the beginnings of two events whose order is asked
WITHIN = 1.0  # seconds by which a time may be wrong

# Per kind: wordings that training shows, and wordings of the same words that it never shows.
WORDINGS = {
    "way": (
        ["Which way does the {n} move?", "In which direction does the {n} go?", "Where does the {n} move?",
         "How does the {n} move in the {f}?", "Tell me the direction of the {n}.", "Where does the {n} go in the {f}?",
         "Which way does the {n} go in this {f}?", "Tell me where the {n} goes.", "Tell me how the {n} moves.",
         "Tell me in which direction the {n} goes.", "What is the direction of the {n}?", "Where does the {n} go?",
         "Tell me the way that the {n} moves in the {f}."],
        ["In which direction does the {n} move?", "Which way does the {n} go?", "Tell me which way the {n} moves."],
    ),
    "when": (
        ["When does the {n} appear?", "At what time does the {n} appear?", "When can I see the {n}?",
         "Tell me when the {n} appears in the {f}.", "When does the {n} show up?", "When do you see the {n} in the {f}?",
         "At what time does the {n} show up in this {f}?", "Find the {n}.", "Tell me at what time the {n} appears.",
         "Tell me when you see the {n} in this {f}.", "When is the {n} in the picture?"],
        ["Tell me when the {n} shows up.", "At what time can I see the {n}?", "When does the {n} appear in this {f}?"],
    ),
    "order": (
        ["Which comes {o}, the {a} or the {b}?", "What appears {o}, the {a} or the {b}?",
         "Which one comes {o}: the {a} or the {b}?", "Tell me which appears {o}, the {a} or the {b}.",
         "What do you see {o} in the {f}, the {a} or the {b}?", "Does the {a} or the {b} come {o}?",
         "Which comes {o}: the {a} or the {b}?", "What appears {o} in the {f}: the {a} or the {b}?",
         "Tell me what you see {o}: the {a} or the {b}.", "Tell me what appears {o} in this {f}, the {a} or the {b}.",
         "The {a} or the {b}: which comes {o}?", "Which one appears {o}? Is it the {a} or the {b}?",
         "Do you see the {a} or the {b} {o}?"],
        ["Which appears {o}, the {a} or the {b}?", "Tell me what comes {o}: the {a} or the {b}.",
         "Which one do you see {o} in the {f}, the {a} or the {b}?"],
    ),
    "count": (
        ["How many times does a {n} appear?", "How many times can you see a {n} in the {f}?", "Count the times a {n} appears.",
         "Tell me how many times a {n} comes.", "How many times does a {n} show up?", "How often does a {n} appear in the {f}?",
         "How often do you see a {n} in this {f}?", "Tell me how often a {n} appears.", "How many times is there a {n}?"],
        ["How many times does a {n} appear in the {f}?", "How often can you see a {n}?",
         "Tell me how many times a {n} appears in this {f}."],
    ),
    "sign": (
        ["Which sign is beside the {n}?", "What sign does the {n} have?", "What is the sign beside the {n}?",
         "Tell me the sign beside the {n}.", "Which sign does the {n} show in the {f}?", "What small sign is beside the {n}?",
         "Tell me what sign the {n} has.", "Which small sign do you see beside the {n}?", "Tell me the small sign that the {n} shows."],
        ["What sign is beside the {n}?", "Which sign does the {n} have?", "Tell me which sign is beside the {n} in the {f}."],
    ),
    "there": (
        ["Is there a {n} in the {f}?", "Does a {n} appear?", "Can you see a {n} in this {f}?", "Do you see a {n}?",
         "Tell me if there is a {n} in the {f}.", "Is a {n} in the {f}?", "Tell me if a {n} appears.", "Can you see a {n}?",
         "Is there a {n} in the picture?"],
        ["Is there a {n}?", "Does a {n} appear in the {f}?", "Do you see a {n} in this {f}?"],
    ),
    "said": (
        ["The speaker says that there is a {n}. What is really there?", "What is shown when the speaker says {n}?",
         "The speaker tells of a {n}. What does the picture show?", "What do you see when the speaker speaks of a {n}?",
         "When the speaker says {n}, what is in the picture?", "What is in the picture when the speaker tells of a {n}?",
         "The speaker speaks of a {n}. What is really shown?", "What is really there when the speaker says {n}?",
         "The speaker says that there is a {n}. What does the picture show?", "Tell me what you see when the speaker says {n}."],
        ["What do you really see when the speaker tells of a {n}?", "The speaker says {n}. What is in the picture?",
         "What is there when the speaker says {n}?"],
    ),
    "spoken": (
        ["What is shown when the speaker talks of the {w}?", "What do you see when the speaker says {w}?",
         "What appears when the speaker talks of the {w}?", "The speaker tells of the {w}. What does the picture show?",
         "Which shape is there when the speaker speaks of the {w}?", "What is in the picture when the speaker talks of the {w}?",
         "Which shape do you see when the speaker tells of the {w}?", "The speaker speaks of the {w}. Which shape is shown?",
         "Tell me which shape appears when the speaker says {w}.", "When the speaker talks of the {w}, what do you see?"],
        ["What appears when the speaker says {w}?", "The speaker talks of the {w}. What do you see?",
         "Which shape is shown when the speaker tells of the {w}?"],
    ),
}  # fmt: skip
BEFORE = ["", "", "", "", "Please tell me: ", "In this {f}: ", "Look closely. ", "A question: ", "Hi! "]
AFTER = ["", "", "", "", " Thanks.", " Please answer briefly.", " Thank you!"]
MEDIA = ["film", "video"]
ROWS = ("needle", "order", "count", "detail", "absent", "said")  # of the table
SHARES = (0.22, 0.24, 0.1, 0.24, 0.1, 0.1)  # of each in training


@dataclass
class Question:
    """row: of the table. kind: of the wording. names: of the shapes that are asked about, or the place.

    truth: the sentence that is right. events: the actors whose times the evidence must show, in the order of the claims.
    """

    row: str
    kind: str
    text: str
    truth: str
    names: tuple = ()
    events: tuple = ()

    @property
    def absent(self):
        return self.row == "absent"


def worded(rng, kind, test, **words):
    """A question of a kind; for a test, in a wording that training never shows."""
    seen, unseen = WORDINGS[kind]
    while True:
        core = str(rng.choice(unseen if test and rng.random() < 0.5 else seen))
        wrapped = str(rng.choice(BEFORE)), core, str(rng.choice(AFTER))
        is_unseen = core in unseen or (kept_back("|".join(wrapped)) and (wrapped[0] or wrapped[2]) != "")
        if is_unseen == test:
            return "".join(wrapped).format(f=str(rng.choice(MEDIA)), **words)


def missing(rng, film):
    """A name that the film does not show; a third of the time one that its speaker tells of."""
    told = [c.name for c in film.cues if c.name and c.name not in film.names]
    if told and rng.random() < 0.33:
        return str(rng.choice(told))
    names = [f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" not in film.names]
    return str(rng.choice(names))


def one(rng, items):
    return items[int(rng.integers(len(items)))] if items else None


# ------------------------------------------------------------------------------------------------ one row each


def about(rng, row, kind, actor, test):
    """A question of a kind about one actor."""
    truth = {"way": f"The {actor.name} {moves(actor)}.", "when": f"The {actor.name} appears at.",
             "there": f"Yes, there is a {actor.name}.", "sign": f"The sign is a {actor.sign}."}  # fmt: skip
    text = worded(rng, kind, test, n=actor.name)
    return Question(row, kind, text, truth[kind], (actor.name,), (actor,))


def needle(rng, film, test):
    """When and where a shape of two seconds moves, or whether it is there."""
    actor = one(rng, [a for a in film.once if a.shown[1] - a.shown[0] < 3])
    return about(rng, "needle", str(rng.choice(["way", "way", "when", "there"])), actor, test)


def order(rng, film, test):
    once = film.once
    pairs = [(a, b) for a in once for b in once if a is not b and abs(a.shown[0] - b.shown[0]) > APART]
    a, b = one(rng, pairs)
    last = rng.random() < 0.3
    found = max((a, b), key=lambda x: x.shown[0]) if last else min((a, b), key=lambda x: x.shown[0])
    word = "last" if last else "first"
    text = worded(rng, "order", test, a=a.name, b=b.name, o=word)
    return Question("order", "order", text, f"The {found.name} comes {word}.", (a.name, b.name), (a, b))


def count(rng, film, test):
    name = str(rng.choice(sorted(dict.fromkeys(film.names), key=film.names.count)[-4:]))
    events = tuple(a for a in film.actors if a.name == name)
    text = worded(rng, "count", test, n=name)
    return Question("count", "count", text, f"The {name} appears {TIMES[len(events)]}.", (name,), events)


def detail(rng, film, test):
    return about(rng, "detail", "sign", one(rng, [a for a in film.once if a.sign]), test)


def absent(rng, film, test):
    """Something that is not there, asked for as if it were."""
    name = missing(rng, film)
    kind = str(rng.choice(["way", "when", "there", "there", "sign", "count"]))
    return Question("absent", kind, worded(rng, kind, test, n=name), f"There is no {name}.", (name,))


def said(rng, film, test):
    """What the picture shows while the speaker says something, which is wrong half of the time."""
    cue = one(rng, [c for c in film.cues if shows(film, c) and (c.name or c.noun)])
    (actor,) = film.shown(cue.start, cue.end)
    kind, word = ("said", cue.name) if cue.name else ("spoken", cue.noun)
    text = worded(rng, kind, test, **({"n": word} if cue.name else {"w": word}))
    return Question("said", kind, text, f"It is a {actor.name}.", (word,), (actor,))


def shows(film, cue):
    """Whether a single shape is to be seen for most of a cue's time."""
    actors = film.shown(cue.start, cue.end)
    return len(actors) == 1 and min(cue.end, actors[0].shown[1]) - max(cue.start, actors[0].shown[0]) > 1.2


MAKERS = dict(zip(ROWS, (needle, order, count, detail, absent, said), strict=True))


def ask(rng, film, row, test=False):
    """A Question of a row about a film."""
    return MAKERS[row](rng, film, test)


def follow_up(rng, film, question, test=False):
    """Another Question about what one was about, or None."""
    if question.absent:
        kind = str(rng.choice(["way", "when", "there", "sign"]))
        text = worded(rng, kind, test, n=question.names[0])
        return Question("absent", kind, text, question.truth, question.names)
    known = [a for a in question.events if a in film.once]
    if not known:
        return None
    kind = str(rng.choice(["way", "when", "there", *["sign"] * bool(known[0].sign)]))
    return about(rng, "needle" if kind != "sign" else "detail", kind, known[0], test)


# ------------------------------------------------------------------------------------------------ answers


def plain(text):
    """A sentence without its references to evidence."""
    return re.sub(r"\s*\[E\d+\]", "", text).strip()


def right(question, answer):
    """Whether the text of an answer is the true one."""
    return plain(answer) == question.truth


def in_time(question, evidence):
    """Whether evidence (start, end) begins within WITHIN seconds of each event that is asked for, or None without one."""
    if not question.events:
        return None
    return all(any(abs(start - a.shown[0]) <= WITHIN for start, _ in evidence) for a in question.events)
