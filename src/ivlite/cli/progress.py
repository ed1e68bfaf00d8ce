"""Progress of loading, conversion, decoding, vision and prefill: one updated line, or plain lines."""

import os
import sys
import time

from ivlite.stages import UNITS, Stages, seconds

__all__ = ["UNITS", "Progress", "capable", "display", "seconds"]


def capable(stream, environ=os.environ):
    """Whether a stream is a terminal that understands escape sequences; TERM=dumb says that it does not."""
    return stream.isatty() and environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def display(quiet=False, verbose=False, kind=None, **settings):
    """A command's Progress, or another `kind` of it: on a terminal and for --verbose, else None.

    --verbose has a line for every finished stage; a terminal that cannot rewrite a line has one for those that took long.
    """
    if quiet or not (verbose or sys.stderr.isatty()):
        return None
    return (kind or Progress)(capable(sys.stderr) and not verbose, least=0 if verbose else 1, **settings)


class Progress(Stages):
    """Called as progress(stage, done, total). `live` rewrites one line of `out`; else each finished stage is a line.

    least: the seconds that a stage takes to be worth a line.
    """

    INTERVAL = 0.1  # seconds between two rewrites: faster flickers and costs time

    def __init__(self, live, out=None, clock=time.monotonic, least=0):
        super().__init__(clock)
        self.live, self.out, self.least = live, out or sys.stderr, least
        self.shown, self.visible = None, False

    def __call__(self, stage, done, total):
        if stage == "generate":
            return self.clear()
        now = self.clock()
        self.note(stage, done, total, now)
        if self.live:
            if self.shown is None or now - self.shown >= self.INTERVAL:
                self.shown, self.visible = now, True
                print(f"\r\x1b[K{self.line(now)}", end="", file=self.out, flush=True)
        elif done >= total and now - self.started >= self.least:
            print(
                f"ivlite: {self.describe(stage)} after {seconds(now - self.started)}",
                file=self.out,
                flush=True,
            )

    def clear(self):
        """Removes the line, before anything else is printed."""
        if self.visible:
            print("\r\x1b[K", end="", file=self.out, flush=True)
            self.visible = False
