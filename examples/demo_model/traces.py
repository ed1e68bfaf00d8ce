"""Conversations of the agent as training shows them: the product's loop and tools, played by an expert that is right."""

import contextlib
from dataclasses import replace
from functools import cache

import asides
import data
import numpy as np
import play
from conversations import Roll, View, packed
from film_questions import ROWS, SHARES, ask, follow_up, shows
from films import new_film
from oracle import Oracle, rolled
from vocabulary import extended

from ivlite.agent import looks
from ivlite.agent.budget import Budget
from ivlite.agent.case import Case
from ivlite.agent.context import Context
from ivlite.agent.film import OVERVIEW
from ivlite.agent.loop import Loop
from ivlite.agent.record import Record
from ivlite.agent.tools import TOOLS, signatures
from ivlite.gguf.tokenizer import Tokenizer as Reader

LENGTH = 1280  # tokens of a row, those of the instructions apart
FRAMES = 60000  # that a question may take
GLANCES = (2, 9)  # frames of a film at a glance, so that a row holds more conversations
GLANCED = 0.35  # share of rows with all of them
OPENED = 0.2  # share of rows that show only how conversations open
OPENINGS = 16  # in such a row, or in what another one leaves, at most
SECOND = 0.8  # share of openings with the second call, which tells questions about a found thing apart
QUIET = 0.65  # share of films of which few lines are left, so that a row holds more conversations
THINKING, THOUGHTFUL = Budget().thinking, 0.5  # tokens of thought before a call; share of conversations with any


def tools():
    """The agent's, where nobody is there to be asked."""
    return {tool.name: tool for tool in TOOLS if tool.name != "ask_user"}


def played(rng, known, questions, reader, thinking=0):
    """(turns, answers, messages of the conversation) of an agent that is asked questions about a Known film, in turn."""
    oracle = Oracle(known.config, reader, rng)
    case, table = Case(oracle, [known], known.subtitles), tools()
    context, answers = Context(case, signatures(table.values()), lambda sentence: None), []
    for number, question in enumerate(questions):
        oracle.question = question
        loop = Loop(case, context, Record(), table)
        *_, last = loop.events(question.text, Budget(frames=FRAMES, thinking=thinking), number == 0)
        answers.append(last.answer)
    return oracle.turns, answers, context.messages


def opening(rng, known, question, reader, count=1, thinking=0):
    """The first turns alone, `count` of them or all, of an agent that is asked a question."""
    oracle = Oracle(known.config, reader, rng)
    case, table = Case(oracle, [known], known.subtitles), tools()
    oracle.question = question
    loop = Loop(case, Context(case, signatures(table.values()), lambda sentence: None), Record(), table)
    with contextlib.closing(loop.events(question.text, Budget(frames=FRAMES, thinking=thinking), True)) as events:
        next((event for event in events if len(oracle.turns) >= count), None)
    return oracle.turns[:count]


# ------------------------------------------------------------------------------------------------ sequences


def batch(rng, speaker, config, size, test=False):
    """`size` rows of conversations about films, as `conversations.packed`. prefix: ids of the instructions before each row."""
    rows, kinds = [], []
    for b in range(size):
        film = new_film(rng, test=test)
        if not test and rng.random() < QUIET:
            film.cues = few(rng, film)
        known = play.Known(film, config)
        with glance_of(OVERVIEW.frames if test or rng.random() < GLANCED else int(rng.integers(*GLANCES))):
            (turn,) = opening(rng, known, asked(rng, known.source, test)[0], reader(speaker))
            instructions, glance, _ = parted(turn.given)
            shared = glanced(speaker, glance)
            only = not test and rng.random() < OPENED
            found = [] if only else whole(rng, speaker, known, shared, test)
            found += openings(rng, speaker, known, shared, found, test)
        kinds += [(b, number, kind) for number, (kind, _) in enumerate(found, 1)]
        rows.append((shared, [roll for _, roll in found]))
    return finished(rng, rows, speaker.encode("".join(instructions)), kinds)


@contextlib.contextmanager
def glance_of(frames):
    """Within it, a film at a glance has so many frames."""
    looks.OVERVIEW = replace(OVERVIEW, frames=frames)
    try:
        yield
    finally:
        looks.OVERVIEW = OVERVIEW


def whole(rng, speaker, known, shared, test):
    """[(kind, Roll)] of whole conversations, as many as fit in a row; one at least: one in nine is longer than a row by itself."""
    found, left = [], LENGTH - len(shared.ids)
    while True:
        listed = asked(rng, known.source, test)
        turns, _, _ = played(rng, known, listed, reader(speaker), thoughts(rng))
        turns[0].given = parted(turns[0].given)[2]
        roll = rolled(speaker, turns, shared.at)
        if len(roll.ids) <= left:
            found.append((f"agent-{listed[0].row}", roll))
            left -= len(roll.ids)
        elif found:
            return found


def openings(rng, speaker, known, shared, found, test):
    """[(kind, Roll)] of questions with the first call or two alone, in what is left of a row: what is asked is learnt from few tokens."""
    out, left = [], LENGTH - len(shared.ids) - sum(len(roll.ids) for _, roll in found)
    while len(out) < OPENINGS:
        question, count = asked(rng, known.source, test)[0], 1 + int(rng.random() < SECOND)
        turns = opening(rng, known, question, reader(speaker), count, thoughts(rng))
        turns[0].given = parted(turns[0].given)[2]
        roll = rolled(speaker, turns, shared.at)
        if len(roll.ids) > left:
            break
        out.append(("agent-opening", roll))
        left -= len(roll.ids)
    return out


def thoughts(rng):
    """Tokens of thought in a conversation."""
    return THINKING * int(rng.random() < THOUGHTFUL)


def few(rng, film):
    """One to four of a film's lines, one of them such that what is shown then can be asked."""
    must = [c for c in film.cues if shows(film, c) and (c.name or c.noun)]
    kept = [
        must[int(rng.integers(len(must)))],
        *(film.cues[i] for i in rng.permutation(len(film.cues))[: int(rng.integers(4))]),
    ]
    return [c for c in film.cues if any(c is k for k in kept)]


def asked(rng, film, test):
    """One to three questions of a conversation."""
    out = [ask(rng, film, str(rng.choice(ROWS, p=SHARES)), test)]
    while len(out) < 3 and rng.random() < 0.3 and (more := follow_up(rng, film, out[-1], test)):
        out.append(more)
    return out


def parted(given):
    """(instructions, the film at a glance, the rest) of the first turn."""
    start, cut = given.index("<|im_start|>user\n"), next(i for i, piece in enumerate(given) if isinstance(piece, View))
    return given[:start], given[start : cut + 1], given[cut + 1 :]


def glanced(speaker, pieces):
    """The Roll of a film at a glance."""
    roll = Roll(speaker)
    for piece in pieces[:-1]:
        roll.text(piece)
    roll.view(pieces[-1])
    return roll.done()


def finished(rng, rows, before, kinds):
    """The batch of rows. before: ids of what stands before each of them."""
    return packed(rng, rows, LENGTH, len(before)) | {"prefix": np.array(before), "kinds": kinds}


@cache
def reader(speaker):
    """The product's tokenizer of the same words."""
    return Reader(speaker.tokenizer.to_str())


# ------------------------------------------------------------------------------------------------ the tokenizer


class Scribe:
    """Stands for a Speaker, and keeps the texts that are to be encoded."""

    video_pad = 0

    def __init__(self, tokenizer):
        self.tokenizer, self.texts = tokenizer, []

    def encode(self, text):
        self.texts.append(text)
        return []

    def barred(self, ids, actors):
        return []


def wider(tokenizer, config, count=150):
    """A Tokenizer with more words, for what the agent says and reads."""
    rng, scribe = np.random.default_rng(8), Scribe(tokenizer)
    for i in range(count):
        known = play.Known(new_film(rng, test=bool(i % 2)), config)
        turns, _, _ = played(rng, known, asked(rng, known.source, bool(i % 2)), reader(scribe), THINKING * (i % 4 == 0))
        rolled(scribe, turns)
        asides.film_row(rng, scribe, config)
        asides.close_row(rng, scribe, config)
    return extended(tokenizer, data.texts(rng), scribe.texts)
