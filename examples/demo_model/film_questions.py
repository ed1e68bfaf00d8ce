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

# Per kind: patterns of wordings that training shows, where [a|b] is one of them, and wordings of the same words that it never
# shows. A handful of wordings would be learnt by heart, with the places of the names in them; so many make it read.
WORDINGS = {
    "way": (
        ["[Which way|In which direction|Where|How|In what direction] does the {n} [move|go]{in}?",
         "Tell me [where|how|which way|in which direction|in what direction] the {n} [moves|goes]{in}.",
         "Tell me the [way|direction] [in which|that] the {n} [moves|goes]{in}.", "Tell me the direction of the {n}{in}.",
         "What is the direction of the {n}{in}?", "[Can|Do] you see [where|how|which way] the {n} [moves|goes]{in}?"],
        ["In which direction does the {n} move?", "Which way does the {n} go?", "Tell me which way the {n} moves."],
    ),
    "when": (
        ["[When|At what time] does the {n} [appear|show up|come]{in}?", "[When|At what time] [can|do] [I|you] see the {n}{in}?",
         "Tell me [when|at what time] the {n} [appears|shows up|comes]{in}.", "[When|At what time] is the {n} in the picture?",
         "Tell me [when|at what time] [you|I can|you can] see the {n}{in}.", "Find the {n}{in}.", "[When|At what time] is there a {n}{in}?"],
        ["Tell me when the {n} shows up.", "At what time can I see the {n}?", "When does the {n} appear in this {f}?"],
    ),
    "order": (
        ["[Which|What|Which one|Which shape] [comes|appears|shows up|do you see|can you see] {o}{in}[,|:] the {a} or the {b}?",
         "Tell me [which|what|which one|which shape] [comes|appears|shows up|you see|you can see] {o}{in}[,|:] the {a} or the {b}.",
         "[Does|Tell me: does] the {a} or the {b} [come|appear|show up] {o}{in}?", "[Do|Can] you see the {a} or the {b} {o}{in}?",
         "The {a} or the {b}: [which|what|which one] [comes|appears|shows up|do you see|can you see] {o}{in}?",
         "[Which|What|Which one] [comes|appears|shows up|do you see] {o}{in}? Is it the {a} or the {b}?",
         "[Is it|Tell me if it is|Tell me: is it] the {a} or the {b} that [comes|appears|shows up] {o}{in}?",
         "Tell me if the {a} or the {b} [comes|appears|shows up] {o}{in}."],
        ["Which appears {o}, the {a} or the {b}?", "Tell me what comes {o}: the {a} or the {b}.",
         "Which one do you see {o} in the {f}, the {a} or the {b}?"],
    ),
    "count": (
        ["How [many times|often] does a {n} [appear|show up|come]{in}?", "How [many times|often] [can|do] you see a {n}{in}?",
         "Tell me how [many times|often] a {n} [appears|shows up|comes]{in}.", "How [many times|often] is there a {n}{in}?",
         "Count [the times|how many times|how often] a {n} [appears|shows up|comes]{in}.",
         "Tell me how [many times|often] [you see|you can see|there is] a {n}{in}."],
        ["How many times does a {n} appear in the {f}?", "How often can you see a {n}?",
         "Tell me how many times a {n} appears in this {f}."],
    ),
    "sign": (
        ["[Which|What] [|small ]sign is beside the {n}{in}?", "[Which|What] [|small ]sign does the {n} [have|show]{in}?",
         "[Which|What] [|small ]sign [do|can] you see beside the {n}{in}?", "What is the [|small ]sign beside the {n}{in}?",
         "Tell me the [|small ]sign beside the {n}{in}.", "Tell me [which|what] [|small ]sign the {n} [has|shows]{in}.",
         "Tell me [which|what] [|small ]sign is beside the {n}{in}.", "Tell me the [|small ]sign that the {n} [has|shows]{in}."],
        ["What sign is beside the {n}?", "Which sign does the {n} have?", "Tell me which sign is beside the {n} in the {f}."],
    ),
    "there": (
        ["Is there a {n}{in}?", "Does a {n} [appear|show up|come]{in}?", "[Can|Do] you see a {n}{in}?", "Is a {n} [in the {f}|in this {f}]?",
         "Tell me if there is a {n}{in}.", "Tell me if a {n} [appears|shows up|comes]{in}.", "Tell me if you [|can ]see a {n}{in}.",
         "Is there a {n} in the picture?"],
        ["Is there a {n}?", "Does a {n} appear in the {f}?", "Do you see a {n} in this {f}?"],
    ),
    "said": (
        ["The speaker [says that there is a|tells of a|speaks of a] {n}. What [is really there|is there|is shown|is really shown]?",
         "The speaker [says that there is a|says|tells of a|speaks of a] {n}. What [does the picture show|do you see|do you really see]?",
         "The speaker [says that there is a|tells of a|speaks of a] {n}. What is [|really ]in the picture?",
         "What [is|is really] [shown|there|in the picture] when the speaker [says|tells of a|speaks of a] {n}?",
         "What [do you see|does the picture show] when the speaker [says|tells of a|speaks of a] {n}?",
         "When the speaker [says|tells of a|speaks of a] {n}, what [is in the picture|is shown|is really there|do you see]?",
         "Tell me what [you see|you really see|is there|is shown|is in the picture] when the speaker [says|tells of a|speaks of a] {n}."],
        ["What do you really see when the speaker tells of a {n}?", "The speaker says {n}. What is in the picture?",
         "What is there when the speaker says {n}?"],
    ),
    "spoken": (
        ["[What|Which shape] [is shown|do you see|appears|is there|is in the picture] when the speaker [talks|tells|speaks] of the {w}?",
         "[What|Which shape] [is shown|do you see|appears|is there] when the speaker says {w}?",
         "The speaker [talks|tells|speaks] of the {w}. What [does the picture show|is shown|is in the picture|appears|is there]?",
         "The speaker [talks|tells|speaks] of the {w}. Which shape [is shown|do you see|appears|is there]?",
         "Tell me [what|which shape] [you see|appears|is shown|is there] when the speaker [says|talks of the|tells of the|speaks of the] {w}.",
         "When the speaker [says|talks of the|tells of the|speaks of the] {w}, [what|which shape] [do you see|is shown|appears|is there]?"],
        ["What appears when the speaker says {w}?", "The speaker talks of the {w}. What do you see?",
         "Which shape is shown when the speaker tells of the {w}?"],
    ),
}  # fmt: skip
IN = ["", "", "", " in the {f}", " in this {f}"]
BEFORE = ["", "", "", "", "Please tell me: ", "In this {f}: ", "Look closely. ", "A question: ", "Hi! "]
AFTER = ["", "", "", "", " Thanks.", " Please answer briefly.", " Thank you!"]
MEDIA = ["film", "video"]
ROWS = ("needle", "order", "count", "detail", "absent", "said")  # of the table
SHARES = (0.16, 0.4, 0.08, 0.2, 0.06, 0.1)  # of each in training


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


def spelled(rng, pattern):
    """One wording of a pattern."""
    text = pattern.replace("{in}", str(rng.choice(IN)))
    return re.sub(r"\[([^]]*)\]", lambda found: str(rng.choice(found[1].split("|"))), text)


def worded(rng, kind, test, **words):
    """A question of a kind; for a test, in a wording that training never shows."""
    seen, unseen = WORDINGS[kind]
    while True:
        core = str(rng.choice(unseen)) if test and rng.random() < 0.5 else spelled(rng, str(rng.choice(seen)))
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
