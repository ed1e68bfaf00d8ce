"""Conversations with frames as training sequences: what the product would lay out, token for token.

A sequence is a row of one batch: what all its conversations share first (a film at a glance, say), then each of them,
which sees what is shared and itself. What is said by the model is learnt, all else is only read.
"""

from dataclasses import dataclass

import data
import numpy as np
import world

from ivlite.media.resize import fitted

IGNORE = -100
UNIT = 32  # pixels of a vision token's side
UNHEARD = 2  # see data.Speaker.barred


@dataclass
class View:
    """Frames of a film as a message shows them. times: (n,) seconds; size: (h, w) in pixels; box: in shares of the frame."""

    film: object
    times: np.ndarray
    size: tuple
    box: tuple = world.WHOLE

    @property
    def pairs(self):
        return np.append(self.times, self.times[-1:]) if len(self.times) % 2 else self.times

    @property
    def marks(self):
        return [f"{t:.1f}" for t in self.pairs.reshape(-1, 2).mean(1)]

    @property
    def tokens(self):
        """Of each pair."""
        return self.size[0] * self.size[1] // UNIT**2

    def answers(self):
        """What the probe and the hint should see, as `data.answers`; nothing is known of a box."""
        h, w = (n // UNIT for n in self.size)
        actors = self.film.shown(self.times[0], self.times[-1] + 1e-6)
        out = data.answers(self.pairs.reshape(-1, 2), self.marks, (h, w), self.film.aspect, actors)
        if self.box != world.WHOLE:
            out[:, :3] = out[:, 6:] = IGNORE
        return out

    def frames(self, rng):
        """uint8 (2 * pairs, h, w, 3): what the model sees."""
        softness = rng.uniform(0.8, 1.8 if self.box == world.WHOLE else 3.0)  # a box is small in its file
        drawn = self.film.draw(self.times, *self.size, softness, self.box)
        drawn = world.compressed(rng, drawn) if rng.random() < 0.7 else drawn
        return np.concatenate([drawn, drawn[-1:]]) if len(drawn) % 2 else drawn


def sized(height, width, least, most):
    """(h, w) at which the product shows a picture of that size, between `least` and `most` pixels."""
    return fitted(height, width, UNIT, least, most, "a frame")


class Roll:
    """A stretch of tokens: ids, which are learnt, what is barred there, positions (3, n), and the views among them."""

    def __init__(self, speaker, at=0):
        self.speaker, self.at = speaker, at
        self.ids, self.learnt, self.barred, self.positions, self.views = [], [], [], [], []
        self.waiting, self.actors = "", None

    def text(self, text, actors=None):
        """Adds text; one about actors (which may be none) is the model's, and is learnt.

        Texts that follow each other are encoded as one, as the product does.
        """
        if actors is not self.actors:
            self.flush()
            self.actors = actors
        self.waiting += text

    def flush(self):
        ids = self.speaker.encode(self.waiting) if self.waiting else []
        self.waiting = ""
        self.ids += ids
        self.learnt += [self.actors is not None] * len(ids)
        self.barred += self.speaker.barred(ids, self.actors or ())
        self.positions.append(np.arange(self.at, self.at + len(ids))[None].repeat(3, 0))
        self.at += len(ids)

    def question(self, text):
        """The rest of the user's turn, and the beginning of the answer's."""
        self.text(f"{text}<|im_end|>\n<|im_start|>assistant\n")

    def answer(self, text, actors=()):
        self.text(f"{text}<|im_end|>", actors)

    def view(self, view):
        """Adds frames: of each pair its time mark and its block of vision tokens."""
        h, w = (n // UNIT for n in view.size)
        row, col = np.divmod(np.arange(h * w), w)
        starts = []
        for mark in view.marks:
            self.text(f"<{mark} seconds><|vision_start|>")
            self.flush()
            starts.append(len(self.ids))
            self.ids += [self.speaker.video_pad] * (h * w)
            self.learnt += [False] * (h * w)
            self.barred += [[-1] * UNHEARD] * (h * w)
            self.positions.append(np.stack([row * 0, row, col]) + self.at)
            self.at += max(h, w)
            self.text("<|vision_end|>")
        self.views.append((view, starts))

    def done(self):
        self.flush()
        return self


def packed(rng, rows, length, start=0):
    """Rows [(shared Roll, [Roll, ...])] as arrays of a batch; positions begin at `start`.

    ids, targets, segment (B, length), positions (3, B, length), barred (B, length, UNHEARD); frames: a list of uint8
    (2P, h, w, 3), one per size; at: flat indexes of the vision tokens, size by size, and labels: what they should show.
    """
    count = len(rows)
    out = {"ids": np.zeros((count, length), np.int64), "targets": np.full((count, length), IGNORE),
           "segment": np.full((count, length), -1), "positions": np.zeros((3, count, length), np.int64),
           "barred": np.full((count, length, UNHEARD), -1)}  # fmt: skip
    sizes = {}
    for b, (shared, rolls) in enumerate(rows):
        at = 0
        for number, roll in enumerate([shared, *rolls]):
            if not roll.ids:
                continue
            here, before = slice(at, at + len(roll.ids)), slice(at, at + len(roll.ids) - 1)
            out["ids"][b, here], out["segment"][b, here] = roll.ids, number
            out["positions"][:, b, here] = np.concatenate(roll.positions, 1) + start
            out["targets"][b, before] = np.where(roll.learnt[1:], roll.ids[1:], IGNORE)
            out["barred"][b, before] = np.array(roll.barred[1:]).reshape(-1, UNHEARD)
            for view, starts in roll.views:
                place = b * length + at + np.array(starts)[:, None] + np.arange(view.tokens)
                sizes.setdefault(view.size, []).append((view.frames(rng), place.ravel(), view.answers()))
            at += len(roll.ids)
    parts = [part for listed in sizes.values() for part in listed]
    out["frames"] = [np.concatenate([frames for frames, _, _ in listed]) for listed in sizes.values()]
    out["at"] = np.concatenate([np.zeros(0, np.int64), *(place for _, place, _ in parts)])
    out["labels"] = np.concatenate([np.zeros((0, 9), np.int64), *(known for _, _, known in parts)])
    return out


def filled(shared, rolls, length):
    """A row of as many of the rolls as fit, in their order."""
    taken, left = [], length - len(shared.ids)
    for roll in rolls:
        if len(roll.ids) <= left:
            taken.append(roll)
            left -= len(roll.ids)
    return shared, taken
