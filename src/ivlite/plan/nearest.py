"""The settings nearest to those of a plan that fit, or that take more frames."""

from dataclasses import dataclass

from ivlite.plan import Setting
from ivlite.plan.work import before, decoding
from ivlite.prompt.budget import share as budgeted
from ivlite.prompt.layout import time_mark

LEARNING = 4  # how often the time marks of frames that seem to fit are looked at


@dataclass(frozen=True)
class Limits:
    """What a plan has to keep: room for an answer of so many tokens, seconds until the first token, bytes of memory.

    longest: tokens of the answer that was asked for; memory is counted for as many of them as the room then holds.
    """

    answer: int
    wait: float | None = None
    memory: int | None = None
    longest: int = 1


class Figures:
    """The videos of a Prompt as numbers: what it would be with other numbers of frames, and other sizes."""

    def __init__(self, planner, draft, laid, made, limits):
        self.planner, self.videos, self.laid, self.budget, self.draft = planner, draft.videos, laid, draft.budget, draft
        self.new = laid.media[len(draft.after[0].media) if draft.after else 0 :]
        self.speeds = planner.speeds(measuring=False)
        owners = [next(i for i, m in enumerate(laid.media) if m is medium) for medium in draft.opened]
        self.gaps = [self._gap(owner, draft.tokenizer) for owner in owners]
        self.frames = [choice.frames for choice in laid.choices]
        self.held, self._decoding = before(draft), {tuple(self.frames): decoding(laid, 0)}
        self.images = sum(n for m, _, n in laid.spans if laid.media[m].kind == "image")
        self.decode = made.seconds and made.seconds["decode"]  # None if it is not known, and not asked for
        if made.seconds and made.held > self.held:  # other frames are not
            self.decode = None if limits.wait is None else draft.cost(laid)[1] * self.speeds.ratio("decode")
        self.rest = len(laid.token_ids) - self._video_tokens(self.frames, [v.pair for v in self.videos])

    def _gap(self, owner, tokenizer):
        """Tokens of a pair's time mark and borders, in the mean."""
        own = [(first, count) for m, first, count in self.laid.spans if m == owner]
        between = [b - (a + n) for (a, n), (b, _) in zip(own, own[1:], strict=False)]
        medium = self.laid.media[owner]
        if between:
            return (mark(tokenizer, medium.timestamps[0]) + sum(between)) / len(own)
        return float(mark(tokenizer, (medium.duration or 0.0) / 2))

    def learn(self, frames):
        """Learns what the time marks of so many frames of each video take: those late in a long video are longer."""
        for i, (video, count) in enumerate(zip(self.videos, frames, strict=True)):
            times = video.medium(count).timestamps if count else ()
            if len(times):
                self.gaps[i] = sum(mark(self.draft.tokenizer, t) for t in times) / len(times)

    def _video_tokens(self, frames, pairs):
        return round(sum(-(-n // v.shape["temporal"]) * (p + g)
                         for n, v, p, g in zip(frames, self.videos, pairs, self.gaps, strict=True)))  # fmt: skip

    def tokens(self, frames, pairs):
        """Tokens of the prompt."""
        return self.rest + self._video_tokens(frames, pairs)

    def wait(self, made, frames, pairs):
        """Seconds until the first token; None if the speed is not known."""
        if self.speeds is None or self.decode is None:
            return None
        merge = self.planner.config.vision.spatial_merge_size**2
        vision = sum(self.speeds.vision(-(-n // v.shape["temporal"]), p * merge)
                     for n, v, p in zip(frames, self.videos, pairs, strict=True))  # fmt: skip
        images = sum(self.speeds.vision(1, m.grid[1] * m.grid[2]) for m in self.new if m.kind == "image")
        decode = self.decode * sum(frames) / max(1, sum(self.frames))
        others = sum(made.seconds.get(stage, 0.0) for stage in ("load", "scan"))
        prompt = self.speeds.prefill(self.tokens(frames, pairs) - self.held, self.held)
        return others + decode + vision + images + prompt

    def decoding(self, frames):
        """Bytes of memory for the files while so many frames of each are decoded."""
        key = tuple(frames)
        if key not in self._decoding:
            media = [video.medium(count) for video, count in zip(self.videos, frames, strict=True)]
            self._decoding[key] = max(medium.memory() for medium in media)
        return self._decoding[key]

    def fits(self, made, frames, pairs, limits, budget=None):
        """Whether a Plan with so many frames of each video fits, with frame pairs of so many tokens. budget: if it is stated."""
        tokens = self.tokens(frames, pairs)
        if tokens + limits.answer > made.room:
            return False
        if budget is not None and sum(v.tokens(n) for v, n in zip(self.videos, frames, strict=True)) > budget:
            return False
        if limits.memory is not None:
            seen = self.images + sum(
                v.tokens(n) // v.pair * p for v, n, p in zip(self.videos, frames, pairs, strict=True)
            )
            capacity = tokens + max(1, min(limits.longest, made.room - tokens))
            peak = self.planner.peak(tokens, capacity, seen, self.decoding(frames))
            if peak > limits.memory:
                return False
        seconds = self.wait(made, frames, pairs)
        return limits.wait is None or seconds is None or seconds <= limits.wait

    def setting(self, made, flag, settings, frames, pairs):
        seconds = self.wait(made, frames, pairs)
        return Setting(
            flag, settings, sum(frames), self.tokens(frames, pairs), None if seconds is None else round(seconds, 1)
        )


def mark(tokenizer, seconds):
    """Tokens of the time mark of a frame pair, and of its borders."""
    return len(tokenizer.encode(time_mark(seconds))) + 2


def settings(planner, draft, laid, made, limits):
    """Yields the Settings nearest to a Plan: of one that does not fit, those that do; else a budget that takes more."""
    if not draft.videos:
        return
    figures = Figures(planner, draft, laid, made, limits)
    if made.fits:
        yield from larger(figures, made, limits)
    else:
        yield from fewer(figures, made, limits)
        yield from smaller(figures, made, limits)


def last(low, high, holds):
    """The largest whole number from low to high for which holds(n), if it holds for all below; None if not for low."""
    if not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def learnt(figures, at, low, high, holds):
    """last(), by the time marks of the frames at(n) that it finds: those of the plan may be shorter."""
    found = last(low, high, holds)
    for _ in range(LEARNING):
        if not found:
            break
        figures.learn(at(found))
        if holds(found):
            break
        found = last(low, found - 1, holds) if found > low else None
    return found


def fewer(figures, made, limits):
    """--max-frames that fits, with frames as large as they are: stated, it replaces the budget of videos that are open."""
    pairs, temporal = [v.pair for v in figures.videos], figures.videos[0].shape["temporal"]

    def at(n):
        return [
            min(v.possible if v.open else count, n) for v, count in zip(figures.videos, figures.frames, strict=True)
        ]

    most = learnt(
        figures, at, 1, max(figures.frames), lambda n: figures.fits(made, at(n), pairs, limits, figures.budget)
    )
    if most is not None:
        most -= most % temporal if most > temporal else 0
        yield figures.setting(made, f"--max-frames {most}", {"max_frames": most}, at(most), pairs)


def smaller(figures, made, limits):
    """--max-pixels that fits, with as many frames as there are: at least an eighth of the pixels."""

    def at(units):
        return [pair_tokens(v, units * v.factor**2) for v in figures.videos]

    low, high = (f([v.pair for v in figures.videos]) for f in (min, max))
    units = last(max(1, low // 8), high, lambda n: figures.fits(made, figures.frames, at(n), limits))
    if units is not None:
        pixels = units * figures.videos[0].factor ** 2
        yield figures.setting(made, f"--max-pixels {pixels}", {"max_pixels": pixels}, figures.frames, at(units))


def pair_tokens(video, pixels):
    """Vision tokens of a frame pair of a video in at most so many pixels."""
    height, width = video.probe.size(video.factor, 1, min(pixels, video.size[0] * video.size[1]))
    return height // video.factor * (width // video.factor)


def larger(figures, made, limits):
    """--budget that takes all frames, or as many as fit."""
    pairs = [v.pair for v in figures.videos]
    thinned = [v.open and n < v.possible for v, n in zip(figures.videos, figures.frames, strict=True)]
    if not any(thinned):
        return

    def at(share):  # of 1000 parts of the frames that are not taken
        more = [
            v.possible - n if open_ else 0 for v, n, open_ in zip(figures.videos, figures.frames, thinned, strict=True)
        ]
        return [n + m * share // 1000 for n, m in zip(figures.frames, more, strict=True)]

    share = learnt(figures, at, 0, 1000, lambda s: figures.fits(made, at(s), pairs, limits))
    if not share:
        return
    tokens = sum(v.tokens(n) for v, n in zip(figures.videos, at(share), strict=True))
    if share == 1000:
        budget = -(-tokens // 1024) * 1024 if tokens > 1024 else tokens
    else:
        budget = tokens // 1024 * 1024 if tokens >= 16384 else tokens // 16 * 16
    if share == 1000 or budget > made.vision_tokens:
        flag = f"{budget // 1024}k" if budget % 1024 == 0 else str(budget)
        frames = at(share) if share == 1000 else budgeted(figures.videos, budget, lifted=True)
        figures.learn(frames)
        yield figures.setting(made, f"--budget {flag}", {"budget": budget}, frames, pairs)
