"""Progress of loading, conversion, decoding, vision and prefill: one updated line, or plain lines."""

import os
import sys
import time

FILES = ("load", "read", "convert", "golden", "scan", "restore", "store")  # stages that are counted in bytes
WORK = ("decode", "vision", "prefill")  # stages that overlap
TRUST = 0.2  # of the work: so much of it goes as planned before the pace so far counts as much
UNITS = {
    "dedupe": "frames",
    "encode": "frames",
    "decode": "frames",
    "vision": "frame pairs",
    "prefill": "tokens",
    "scenes": "frames",
    "speech": "seconds",
    "caption": "segments",
}


def seconds(value):
    """Formats a duration: "8 s", "2:05", "1:02:05"."""
    whole = int(value + 0.5)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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


class Progress:
    """Called as progress(stage, done, total). `live` rewrites one line of `out`; else each finished stage is a line.

    least: the seconds that a stage takes to be worth a line.
    """

    INTERVAL = 0.1  # seconds between two rewrites: faster flickers and costs time

    def __init__(self, live, out=None, clock=time.monotonic, least=0):
        self.live, self.out, self.clock, self.least = live, out or sys.stderr, clock, least
        self.stages = {}  # name -> (done, total)
        self.started = self.shown = None
        self.visible = False
        self.expected, self.linear = None, 1.0  # seconds of stages that are planned

    def __call__(self, stage, done, total):
        if stage == "generate":
            return self.clear()
        now = self.clock()
        if stage not in self.stages and (stage in FILES or set(self.stages) <= set(FILES)):
            self.started = now
            self.stages.clear()
        self.stages[stage] = (done, total)
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

    def describe(self, stage):
        done, total = self.stages[stage]
        if stage in FILES:
            return f"{stage} {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        return f"{stage} {done:,} of {total:,} {UNITS.get(stage, '')}".rstrip()

    def line(self, now):
        """All running stages, and the time left, by the plan or else estimated from the last stage that has started."""
        text = " · ".join(self.describe(stage) for stage in self.stages)
        done, total = self.stages[[s for s in (*FILES, "dedupe", "encode", *WORK) if s in self.stages][-1]]
        elapsed = now - self.started
        if elapsed >= 1 and 0 < done < total:
            left = elapsed * (total - done) / done if self.expected is None else self.left(elapsed)
            text += f" · {seconds(left)} left"
        return text

    def expect(self, plan):
        """Takes the time left from a Plan, corrected by the pace so far. Tokens get slower the more come before them."""
        if plan.seconds is not None and sum(plan.seconds.get(stage, 0.0) for stage in WORK) > 0:
            self.expected, self.linear = {stage: plan.seconds.get(stage, 0.0) for stage in WORK}, plan.linear

    def left(self, elapsed):
        """Seconds left of the stages of WORK, by the plan."""
        shares = {stage: done / max(1, total) for stage, (done, total) in self.stages.items()}
        share = shares.get("prefill", 0.0)
        shares["prefill"] = share * (self.linear + (1 - self.linear) * share)
        whole = sum(self.expected.values())
        done = sum(seconds * shares.get(stage, 0.0) for stage, seconds in self.expected.items())
        return (whole - done) * (elapsed + TRUST * whole) / (done + TRUST * whole)

    def restart(self):
        """Forgets the stages so far: another prompt begins."""
        self.stages.clear()
        self.expected = None

    def clear(self):
        """Removes the line, before anything else is printed."""
        if self.visible:
            print("\r\x1b[K", end="", file=self.out, flush=True)
            self.visible = False
