"""How fast a machine computes the layers of a model, and the seconds that follow from it."""

import itertools
import math
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np

from ivlite.engine.runner import chunk_at

STAGES = ("decode", "vision", "prefill", "generate")  # stages that real runs correct
FURTHEST = 8.0  # a run that took so many times more, or less, was disturbed
SMOOTHING = 0.5  # weight of the newest run
WORTH = 0.2  # seconds: shorter stages say little about speed


@dataclass(frozen=True)
class Speeds:
    """Seconds of the parts of a model's work, over all its layers.

    token: of a prompt token in the linear layers. seen: of each older token that it attends to. expanded: of a cached
    token, once per chunk that expands it. step: of a generated token after an empty cache; step_seen: more for each cached
    token. patch: of a vision patch; patch_seen: of each patch of its frame pair that it attends to. each: of a pass over
    weights that are read for it (load="mmap"). byte: of loading a byte of weights. few: most tokens of a chunk that
    attends to older ones without expanding them. ratios: measured over estimated
    seconds of a stage, smoothed over earlier runs.
    """

    token: float
    seen: float
    expanded: float
    step: float
    step_seen: float
    patch: float
    patch_seen: float
    each: float = 0.0
    byte: float = 0.0
    few: int = 1
    ratios: dict[str, float] = field(default_factory=dict)

    def ratio(self, stage):
        return self.ratios.get(stage, 1.0)

    def prefill(self, tokens, depth=0):
        """Seconds of a prompt of that many tokens after `depth` cached ones."""
        total, last = 0.0, depth
        while last < depth + tokens:
            first, last = last, min(last + chunk_at(last), depth + tokens)
            n = last - first
            before = self.step_seen * n * first if n <= self.few else self.seen * n * first + self.expanded * first
            total += n * self.token + self.seen * n * (n + 1) / 2 + self.expanded * n + before + self.each
        return total * self.ratio("prefill")

    def linear(self, tokens, depth=0):
        """The share of prefill that is the same for every token."""
        return min(1.0, tokens * self.token * self.ratio("prefill") / max(self.prefill(tokens, depth), 1e-12))

    def generate(self, tokens, depth):
        """Seconds of that many generated tokens after a prompt of `depth`; the first comes with the prompt."""
        steps = max(0, tokens - 1)
        return steps * (self.step + self.each + self.step_seen * (depth + steps / 2)) * self.ratio("generate")

    def vision(self, pairs, patches):
        """Seconds of that many frame pairs of `patches` patches each."""
        return pairs * patches * (self.patch + self.patch_seen * patches) * self.ratio("vision")

    def corrected(self, planned, took):
        """The Speeds after a run: seconds of stages, as planned and as they were."""
        ratios = dict(self.ratios)
        for stage in STAGES:
            before, after = planned.get(stage, 0.0), took.get(stage, 0.0)
            if min(before, after) > 0 and max(before, after) >= WORTH and 1 / FURTHEST < after / before < FURTHEST:
                ratio = self.ratio(stage)  # part of what was planned
                ratios[stage] = math.exp(
                    (1 - SMOOTHING) * math.log(ratio) + SMOOTHING * math.log(ratio * after / before)
                )
        return replace(self, ratios=ratios)

    def as_data(self):
        return asdict(self)

    @classmethod
    def from_data(cls, data):
        """Speeds from what as_data() gave; None for anything else."""
        names = {f.name for f in fields(cls)} - {"ratios"}
        if not isinstance(data, dict) or not isinstance(data.get("ratios"), dict):
            return None
        values = {name: data.get(name) for name in names}
        ratios = {stage: data["ratios"][stage] for stage in STAGES if stage in data["ratios"]}
        sound = all(seconds(v) for v in values.values()) and all(
            seconds(r) and 0.01 <= r <= 100 for r in ratios.values()
        )
        return cls(**values, ratios=ratios) if sound and values["token"] and values["step"] else None


def seconds(value):
    """Whether a value of a file can be seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def fitted(rows, took):
    """The coefficients, none negative, for which rows @ coefficients is nearest to `took`, relative to it."""
    rows, took = np.asarray(rows, float), np.asarray(took, float)
    best, least = np.zeros(rows.shape[1]), math.inf
    for count in range(1, rows.shape[1] + 1):
        for kept in itertools.combinations(range(rows.shape[1]), count):
            part = rows[:, kept] / took[:, None]
            found = np.linalg.lstsq(part / (scale := np.abs(part).max(0)), np.ones(len(took)), rcond=None)[0] / scale
            error = float(((part @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(rows.shape[1]), error
                best[list(kept)] = found
    return [float(c) for c in best]
