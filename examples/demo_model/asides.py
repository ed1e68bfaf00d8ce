"""What the tools of the agent ask apart, with true answers: is it shown, from when to when, how often, is it true.

Also what a close look shows: the sign on a shape, and where the shape is.
"""

from dataclasses import replace
from itertools import islice

import data
import film_questions
import numpy as np
import play
import world
from conversations import Roll, filled, packed
from films import new_film
from questions import moves

from ivlite.agent import say
from ivlite.agent.search import AGAIN, RATE, SEGMENT
from ivlite.agent.verify import AROUND, CLOSE

LENGTH = 960  # tokens of a row
ROWS = 0.45  # share of rows of close looks
BOXES = 0.6  # of their questions, those where a sign is: its box is learnt last
EXACT = 0.5  # share of looks at a sign in the box that the expert would take
WHERE = [
    "Where is the sign of the {n}?",
    "In which box is the sign of the {n}?",
    "Tell me the box of the sign of the {n}.",
]


def batch(rng, speaker, config, size, test=False):
    """`size` rows, as `conversations.packed`."""
    rows = [(close_row if rng.random() < ROWS else film_row)(rng, speaker, config, test) for _ in range(size)]
    kinds = [(b, n, f"apart-{roll.kind}") for b, (_, rolls) in enumerate(rows) for n, roll in enumerate(rolls, 1)]
    return packed(rng, rows, LENGTH) | {"kinds": kinds}


# ------------------------------------------------------------------------------------------------ of films


def film_row(rng, speaker, config, test=False):
    """A part of a film, and as many questions about it as fit."""
    film = new_film(rng, test=test)
    known = play.Known(film, config)
    views = seen(rng, known)
    shared = Roll(speaker)
    shared.text("<|im_start|>user\n")
    for view in views:
        shared.view(view)
    rolls = []
    shared.flush()
    for text in islice(asked(rng, film, views, known.duration, test), 24):
        rolls.append(put(Roll(speaker, shared.at), play.kind_of(text), text, play.aside(views, text)))
    if len(views) == 1 and (found := plain(rng, views[0], test)):
        rolls.insert(0, put(Roll(speaker, shared.at), "plain", *found))
    return filled(shared, rolls, LENGTH)


def put(roll, kind, question, answer, actors=()):
    """A Roll of a question and its answer."""
    roll.kind = kind
    roll.question(question)
    roll.answer(answer, actors)
    return roll.done()


def seen(rng, known):
    """The frames of a question apart: of a search, of a second look, of a claim, or of several windows of one."""
    film, roll = known.source, rng.random()
    if roll < 0.5:
        return [scanned(rng, known)]
    if roll < 0.6:  # a claim that rests on the whole search
        return [shown(known, 0.0, known.duration, CLOSE.frames)]
    actor = film.actors[int(rng.integers(len(film.actors)))]
    a, b = actor.shown
    if roll < 0.75:
        more = max(1.0, 0.5 * (b - a)) + rng.uniform(-0.5, 0.5)
        return [shown(known, max(0.0, a - more), b + more, AGAIN.frames)]
    same = [a for a in film.actors if a.name == actor.name][: 1 if roll < 0.9 else 4]
    return [shown(known, *span(rng, a), CLOSE.frames) for a in same]


def span(rng, actor):
    """A window in which evidence of an actor lies: its own, a little off, or that of a single frame."""
    a, b = actor.shown
    if rng.random() < 0.1:
        at = rng.uniform(a, b)
        return max(0.0, at - AROUND), at + AROUND
    return max(0.0, a + rng.uniform(-0.6, 0.4)), b + rng.uniform(-0.5, 0.4)


def shown(known, start, end, most, pixels=1.0):
    """The View of a part."""
    count = min(most, known.possible(start, end))
    return play.view(known, known.part(start, end, count, pixels))


def scanned(rng, known):
    """A segment of a search, more often than not one with something in it."""
    number = -(-round(known.duration * RATE) // SEGMENT)
    length = known.duration / number
    actors = known.source.actors
    at = actors[int(rng.integers(len(actors)))].shown[0] if rng.random() < 0.7 else rng.uniform(0, known.duration)
    n = min(number - 1, int(at / length))
    return shown(known, n * length, (n + 1) * length, round(length * RATE))


def asked(rng, film, views, duration, test=False):
    """Questions, without end: most about what is shown, or resembles it."""
    here = [a for v in views for a in film.shown(v.times[0], v.times[-1] + 1e-3)]
    moving, visible = ([a for v in views for a in seen_moving(v, least)] for least in (2, 1))
    while True:
        name = near(rng, here, [] if test else visible)
        actor = next((a for a in here if a.name == name), None)
        kind = str(rng.choice(["shown", "shown", "ground", "count", "claim"]))
        if kind == "claim":
            yield say.VERIFY.format(claim=claim(rng, name, next((a for a in moving if a.name == name), None)))
        elif kind != "ground" or actor or rng.random() < 0.3:
            template = {"shown": say.SHOWN, "ground": say.GROUND, "count": say.COUNT}[kind]
            yield template.format(query=name, duration=duration)


def seen_moving(view, least=2):
    """The actors that several frames of a View show."""
    count = {id(a): sum(a.shown[0] <= t < a.shown[1] for t in view.times) for a in view.film.actors}
    return [a for a in view.film.actors if count[id(a)] >= least]


def plain(rng, view, test):
    """(question, answer, actors): as whoever has no tools asks about a film, answered from what the frames show; or None."""
    here, rolls = seen_moving(view, 1), rng.random(2)
    names = [a.name for a in here]
    if rolls[0] < 0.25 or not here:
        name = near(rng, here, [] if test else here)
        if name in names:
            return None
        return film_questions.worded(rng, "way", test, n=name), f"There is no {name}.", ()
    if rolls[1] < 0.2 and len(set(names)) == len(names) > 1:
        one, other = (here[i] for i in rng.permutation(len(here))[:2])
        first = min(one, other, key=lambda a: a.shown[0])
        text = film_questions.worded(rng, "order", test, a=one.name, b=other.name, o="first")
        return text, f"The {first.name} comes first.", (first,)
    actor = here[int(rng.integers(len(here)))]
    if rolls[1] < 0.4:
        times = film_questions.TIMES[len(play.spans(view, actor.name))]
        return film_questions.worded(rng, "count", test, n=actor.name), f"The {actor.name} appears {times}.", ()
    if names.count(actor.name) > 1:
        return None
    kinds = ["when", "there", *["way"] * any(a is actor for a in seen_moving(view))]
    question = film_questions.about(rng, "needle", str(rng.choice(kinds)), actor, test)
    at = f" {play.spans(view, actor.name)[0][0]} seconds." if question.kind == "when" else ""
    return question.text, question.truth.removesuffix("." if at else "") + at, (actor,)


def near(rng, here, visible):
    """The name of something that is shown, or of what has its colour, its shape, or nothing of it.

    Never one of which a "no" would teach that what is held out cannot be, where `visible` can be seen.
    """
    names = {actor.name for actor in visible}
    while True:
        color, shape = str(rng.choice(list(world.COLORS))), str(rng.choice(world.SHAPES))
        if here and (roll := rng.random()) < 0.85:
            actor = here[int(rng.integers(len(here)))]
            color, shape = (
                (actor.color if roll < 0.65 else color),
                (actor.shape if roll < 0.45 or roll > 0.65 else shape),
            )
        alike = [a.motion for a in visible if color == a.color or shape == a.shape]
        if f"{color} {shape}" in names or not any(world.held_out(color, shape, motion) for motion in alike):
            return f"{color} {shape}"


def claim(rng, name, actor):
    """A statement about a name; none that would teach that a held-out combination cannot be."""
    color, shape = name.split(" ")
    ways = [m for m in world.MOTIONS[:5] if not world.held_out(color, shape, m)]
    if actor is None or rng.random() < 0.4:
        return f"There is {'no' if rng.random() < 0.4 else 'a'} {name}."
    way = actor.motion if rng.random() < 0.5 else str(rng.choice(ways))
    return f"The {name} {moves(replace(actor, motion=way))}."


# ------------------------------------------------------------------------------------------------ of close looks


def close_row(rng, speaker, config, test=False):
    """Single frames, whole or boxes of them, with a question about the sign, a claim about it, or where the shape is."""
    shared = Roll(speaker)
    shared.text("<|im_start|>user\n")
    shared.flush()
    known = play.Known(new_film(rng, 300.0, test=test), config)
    return filled(shared, [close(rng, speaker, shared.at, known) for _ in range(20)], LENGTH)


def close(rng, speaker, start, known):
    actors = [a for a in known.source.actors if a.sign]
    actor = actors[int(rng.integers(len(actors)))]
    where, roll = rng.random() < BOXES, Roll(speaker, start)
    first, end = actor.shown
    t, whole = known.frame(rng.uniform(first + 1 / known.source.rate, end))  # a frame is on screen from its time on
    if where:
        roll.view(play.view(known, whole))
        roll.question(str(rng.choice(WHERE)).format(n=actor.name))
        roll.answer(str(box_of(actor, t, known.source.aspect)))
        roll.kind = "box"
        return roll.done()
    view = play.view(known, known.frame(t, beside(rng, actor, t, known.source.aspect))[1])
    roll.kind = "sign"
    roll.view(view)
    if rng.random() < 0.3:
        said = actor.sign if rng.random() < 0.5 else str(rng.choice(world.SHAPES))
        text = say.VERIFY.format(claim=f"The sign is a {said}.")
        roll.question(text)
        roll.answer(play.aside([view], text))
    else:
        roll.question("Which sign is it?")
        roll.answer(f"The sign is a {actor.sign}.")
    return roll.done()


def box_of(actor, t, aspect):
    """A box of two fifths of the frame around the sign of an actor, in steps of a fifth: [x0, y0, x1, y1] in thousandths."""
    return boxed(*data.corner(actor, *at(actor, t), *sides(aspect)))


def beside(rng, actor, t, aspect):
    """That box, or another one that holds the sign: the model itself is a fifth off now and then."""
    x, y = data.place(actor, *at(actor, t), *sides(aspect))
    across, down = (
        [n for n in range(4) if n / 5 + room < v < n / 5 + 0.4 - room]
        for v, room in ((x, world.SIGN / sides(aspect)[0]), (y, world.SIGN / sides(aspect)[1]))
    )
    if rng.random() < EXACT or not across or not down:
        return box_of(actor, t, aspect)
    return boxed(int(rng.choice(across)), int(rng.choice(down)))


def at(actor, t):
    """(x, y) of an actor, in shares of the frame."""
    return (float(v[0]) for v in actor.at(np.array([t])))


def sides(aspect):
    """(width, height) of a frame, the shorter side being 1."""
    return max(1.0, aspect), max(1.0, 1 / aspect)


def boxed(across, down):
    """The box that begins at these fifths."""
    return [200 * across, 200 * down, 200 * across + 400, 200 * down + 400]
