"""Turns: of several threads that work on answers, one computes at a time, and hands over between pieces of its work.

A piece ends at a checkpoint (`ivlite.stop`): some 512 tokens of a layer's products, a span of attention, a block of the vision
tower. What is computed does not depend on who had a turn when.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from ivlite.stop import Stop

SHORTEST = 0.05  # seconds of a turn that are not cut short by one that is urgent
LONGEST = 0.5
POLL = 0.1  # seconds between two looks at the Stop of a thread that waits
LENT = 0.01  # seconds that whoever has the turn may wait for something else before another takes it


class Turns:
    """Who computes now, and who waits for it.

    Urgent turns (steps of decoding) and others come by turns, so that each kind has half of the time where both want all:
    a turn of the others is as long as the last urgent one was.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.owner: Turn | None = None
        self.away: float | None = None  # since when the owner waits for something else
        self.waiting: list[Turn] = []
        self.length = SHORTEST

    def best(self, after: "Turn", elapsed: float) -> "Turn | None":
        """Who comes after a turn that has taken so long and could go on; None: it goes on."""
        urgent = [turn for turn in self.waiting if turn.urgent]
        if urgent and elapsed >= self.length:
            return urgent[0]
        first = min((turn for turn in self.waiting if not turn.urgent), key=lambda turn: turn.key(0.0), default=None)
        mine = after.key(elapsed if elapsed >= SHORTEST else 0.0)  # no change at every piece between two of one rank
        return first if first is not None and first.key(0.0) < mine else None

    def next(self, urgent: bool) -> "Turn | None":
        """Who comes after a turn that has ended."""
        return min(self.waiting, key=lambda turn: (turn.urgent == urgent, turn.key(0.0)), default=None)

    def lent(self) -> float:
        """Seconds until the owner, who waits for something else, must let others go on; POLL if it does not."""
        return POLL if self.away is None else max(0.0, self.away + LENT - time.monotonic())


class Turn:
    """The part of one thread in Turns. One that is urgent is not interrupted.

    key(seconds): the smallest goes first; with so many seconds that were not spent yet. spend(seconds) is told what a turn took.
    stop: ends waiting; what is computed then sees it at its next checkpoint.
    """

    def __init__(self, turns: Turns, key: Callable[[float], Any], spend: Callable[[float], None], stop: Stop,
                 urgent: bool = False) -> None:  # fmt: skip
        self.turns, self.key, self.spend, self.stop, self.urgent = turns, key, spend, stop, urgent
        self._began = 0.0

    def take(self) -> None:
        """Waits for the turn; or for the Stop, without it."""
        turns = self.turns
        with turns.changed:
            if turns.owner is None:
                turns.owner, self._began = self, time.monotonic()
            else:
                self._wait()

    def give(self) -> None:
        """Ends the turn, if this thread has it."""
        turns = self.turns
        with turns.changed:
            if turns.owner is not self:
                return
            seconds = time.monotonic() - self._began
            if self.urgent:
                turns.length = min(max(seconds, SHORTEST), LONGEST)
            self._hand(turns.next(self.urgent), seconds)

    def offer(self) -> None:
        """Lets others go first, if it is their time, and then goes on."""
        turns = self.turns
        if self.urgent or not turns.waiting or turns.owner is not self:
            return
        with turns.changed:
            seconds = time.monotonic() - self._began
            best = turns.best(self, seconds)
            if best is not None:
                self._hand(best, seconds)
                self._wait()

    def lend(self) -> None:
        """Says that this thread waits for something else: if that takes long, others compute meanwhile.

        At once would cost a short question as many pieces of a long prefill as it looks into the store.
        """
        turns = self.turns
        with turns.changed:
            if turns.owner is self:
                turns.away = time.monotonic()
                turns.changed.notify_all()

    def back(self) -> None:
        """Goes on after `lend`: at once, or when it is this one's turn again."""
        turns = self.turns
        with turns.changed:
            if turns.owner is self:
                turns.away = None
                return
        self.take()

    def _hand(self, other: "Turn | None", seconds: float) -> None:
        turns = self.turns
        self.spend(seconds)
        turns.owner, turns.away = other, None
        if other is not None:
            turns.waiting.remove(other)
            other._began = time.monotonic()
            turns.changed.notify_all()

    def _wait(self) -> None:
        """Until the turn is this one's, or the Stop is set."""
        turns = self.turns
        turns.waiting.append(self)
        while turns.owner is not self:
            turns.changed.wait(turns.lent())
            owner = turns.owner
            if owner is self:
                return
            if self.stop:
                turns.waiting.remove(self)
                return
            if owner is not None and turns.away is not None and not turns.lent():
                owner._hand(turns.next(owner.urgent), turns.away - owner._began)
