"""The stages of long work: how far each is, and the time left."""

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


class Stages:
    """The stages that run, each with what is done of its total."""

    def __init__(self, clock=time.monotonic):
        self.clock = clock
        self.stages = {}  # name -> (done, total)
        self.started = None
        self.expected, self.linear = None, 1.0  # seconds of stages that are planned

    def note(self, stage, done, total, now):
        """Notes how far a stage is."""
        if stage not in self.stages and (stage in FILES or set(self.stages) <= set(FILES)):
            self.started = now
            self.stages.clear()
        self.stages[stage] = (done, total)

    def describe(self, stage):
        """A stage as text: "prefill 512 of 2,048 tokens"."""
        done, total = self.stages[stage]
        if stage in FILES:
            return f"{stage} {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        return f"{stage} {done:,} of {total:,} {UNITS.get(stage, '')}".rstrip()

    def line(self, now):
        """All running stages, and the time left."""
        text, left = " · ".join(self.describe(stage) for stage in self.stages), self.remaining(now)
        return text if left is None else f"{text} · {seconds(left)} left"

    def remaining(self, now):
        """Seconds left, by the plan or else estimated from the last stage that has started; None while nothing tells."""
        known = [stage for stage in (*FILES, "dedupe", "encode", *WORK) if stage in self.stages] or list(self.stages)
        if not known:
            return None
        (done, total), elapsed = self.stages[known[-1]], now - self.started
        if elapsed < 1 or not 0 < done < total:
            return None
        return elapsed * (total - done) / done if self.expected is None else self.left(elapsed)

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
