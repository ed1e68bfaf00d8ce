"""How many frames each video of a prompt gets.

What a person states (fps, max_frames, nframes, a budget) is done exactly. The rest is left open: at most the model file's
frames per second, thinned evenly until all videos fit a budget of vision tokens, which they share by their lengths. Every
video gets a frame pair.
"""

from dataclasses import dataclass, replace
from typing import Any

from ivlite import media
from ivlite.errors import ContextError, UsageError
from ivlite.numbers import whole
from ivlite.prompt.messages import PIXELS, RATE

BUDGET = 16384  # vision tokens of all videos of a prompt
UNLIMITED = 1 << 40  # frames
COUNTS = ("fps", "max_frames", "nframes")  # settings that state how many frames there are


@dataclass(frozen=True)
class Choice:
    """How the frames of a video were chosen.

    name: of the video. seconds: of the range that is used. possible: frames at the rate in force. frames: those taken, out
    of these. interval: mean seconds from one to the next, 0 for a single one. size: (height, width) after resizing.
    tokens: vision tokens. stated: the settings that were stated. by: what limited the frames, "" (nothing), "stated",
    "least" (the file's min_frames, more than fps), "budget", "model" (the file's max_frames), "context", "limit" (of time or
    memory) or "repeats" (left out). estimated: the times are those that the container declares. planned: the frames planned from
    these, if the file's own times give another number.
    """

    name: str
    seconds: float
    possible: int
    frames: int
    interval: float
    size: tuple[int, int]
    tokens: int
    stated: tuple[str, ...] = ()
    by: str = ""
    estimated: bool = False
    planned: int | None = None

    def of(self, medium: Any) -> "Choice":
        """The choice of what dedupe left of a video, a Medium."""
        if len(medium.frames) == self.frames:
            return self
        interval = (medium.timestamps[-1] - medium.timestamps[0]) / max(1, len(medium.frames) - medium.temporal)
        tokens = self.tokens // -(-self.frames // medium.temporal) * medium.grid[0]
        return replace(self, frames=len(medium.frames), interval=interval, tokens=tokens, by="repeats")


class Video:
    """A video of a prompt that was looked at (a media Probe) and whose frames are not chosen yet.

    where: the part of the messages. limits: fps, min_frames, max_frames, nframes. stated: names of settings that were
    stated. pair: vision tokens of a frame pair.
    """

    def __init__(self, probe, where, limits, stated, size, shape, merge):
        self.probe, self.where, self.limits, self.size = probe, where, limits, size
        self.stated, self.shape = stated, shape
        rows, columns = (side // shape["patch_size"] // merge for side in size)
        self.pair, self.factor = rows * columns, shape["patch_size"] * merge
        self.open = not any(name in stated for name in COUNTS if name != "fps" or not probe.every)
        self.planned = None
        self.count()

    def count(self):
        """Counts the possible frames: at the rate in force, over the range."""
        self.possible = len(self._indexes(UNLIMITED))
        apart = set(RATE) & set(self.stated) == {"fps"}  # then the file's least number may be more than what was stated
        self.raised = apart and self.possible > 1 and len(self._indexes(UNLIMITED, 1)) < self.possible

    def settle(self, progress=None):
        """Learns the file's own times."""
        if self.probe.estimated:
            self.probe.settle(progress)
            self.count()

    def _indexes(self, most, least=None):
        limits = self.limits | {"max_frames": most, "min_frames": min(least or self.limits["min_frames"], most)}
        if self.limits["nframes"] is not None:
            limits["nframes"] = min(self.limits["nframes"], most)
        try:
            return self.probe.chosen(self.shape["temporal"], **limits)
        except UsageError as error:
            raise UsageError(f"{self.where}: {error}") from error

    def most(self, lifted):
        """Frames taken where no budget binds. lifted: a stated budget replaces the file's max_frames."""
        return self.possible if self.open and lifted else min(self.possible, self.limits["max_frames"])

    @property
    def least(self):
        """Fewest frames: a pair, or the stated min_frames."""
        floor = self.limits["min_frames"] if "min_frames" in self.stated else 1
        return max(self.shape["temporal"], floor)

    def tokens(self, frames):
        """Vision tokens of that many frames."""
        return -(-frames // self.shape["temporal"]) * self.pair

    def medium(self, frames):
        """The Medium with that many frames, or a few less where the rate varies."""
        return self.probe.open(self._indexes(frames), self.size, **self.shape)

    def choice(self, medium, by, planned):
        """The Choice that led to a Medium."""
        frames, times = len(medium.frames), self.probe.times.times
        span = float(times[medium.frames[-1]] - times[medium.frames[0]])
        return Choice(
            self.probe.name, round(self.probe.seconds, 3), max(self.possible, frames), frames,
            round(span / (frames - 1), 3) if frames > 1 else 0.0, tuple(self.size), self.tokens(frames), tuple(self.stated),
            by, self.probe.estimated, planned,
        )  # fmt: skip


class Looks:
    """Looks at the media of a conversation: images are opened, videos probed. Each is looked at once.

    defaults: limits that the caller states for all media, by name. warnings: sentences about what was given.
    """

    def __init__(self, config, defaults):
        self.config, self.defaults = config, defaults
        self.found, self.warnings = {}, []
        vision = config.vision
        self.shape = {"patch_size": vision.patch_size, "temporal": vision.temporal_patch_size}
        self.factor = vision.patch_size * vision.spatial_merge_size

    @property
    def videos(self):
        return [found for found in self.found.values() if isinstance(found, Video)]

    def look(self, part):
        """Looks at a part of a message; a Medium is taken as it is. Raises UsageError (named by the part), MediaError."""
        if isinstance(part.value, media.Medium):
            self.found[id(part)] = part.value
            return
        try:
            self.found[id(part)] = self._image(part) if part.kind == "image" else self._video(part)
        except UsageError as error:
            raise UsageError(f"{part.where}: {error}") from error

    def _image(self, part):
        return media.open_image(part.value, **self._limits(part, PIXELS), factor=self.factor, **self.shape)

    def _video(self, part):
        given, frames = part.settings, media.as_frames(part.value)
        if "nframes" in given and "fps" in given and frames is None:
            raise UsageError("a video has both fps and nframes; give one of them")
        names = PIXELS if "nframes" in given else (*RATE, *PIXELS)
        stated = {name for name in (*RATE, "nframes") if name in given or (name in self.defaults and name in names)}
        limits = self._limits(part, names)
        nframes = whole("nframes", given["nframes"]) if "nframes" in given else None
        if nframes is not None:
            check_nframes(nframes, {name: limits[name] for name in ("min_frames", "max_frames") if name in given})
        if frames is not None and frames.times is None and "fps" not in stated:
            self.warnings.append(
                f"{part.where}: a video is a list of frames without fps, so its time marks "
                f"assume {limits['fps']:g} frames per second"
            )
        more = {name: given[name] for name in ("start", "end", "stream") if name in given}
        probe = media.probe(part.value if frames is None else frames, fps=limits["fps"], **more)
        if frames is not None and frames.times is not None and "fps" not in given:  # all, as of a list without times
            probe.every = True
        if nframes is not None or ("fps" in stated and "max_frames" not in stated and not probe.every):
            limits["max_frames"] = UNLIMITED
        size = probe.size(self.factor, limits["min_pixels"], limits["max_pixels"])
        limits = {name: limits[name] for name in RATE} | {"nframes": nframes}
        merge = self.config.vision.spatial_merge_size
        return Video(probe, part.where, limits, sorted(stated), size, self.shape, merge)

    def _limits(self, part, defaulted):
        """The limits for a medium: those of the part, else the caller's for the names in `defaulted`, else the file's."""
        wanted = {k: v for k, v in self.defaults.items() if k in defaulted} | part.settings
        names = PIXELS if part.kind == "image" else (*RATE, *PIXELS)
        return media.limits(wanted, {name: getattr(getattr(self.config, part.kind), name) for name in names})


def check_nframes(nframes, bounds):
    """Raises UsageError for a number of frames outside of the bounds that were stated with it."""
    if nframes < bounds.get("min_frames", nframes):
        raise UsageError(f"nframes ({nframes}) is below min_frames ({bounds['min_frames']})")
    if nframes > bounds.get("max_frames", nframes):
        raise UsageError(f"nframes ({nframes}) is above max_frames ({bounds['max_frames']})")


def share(videos, budget, lifted=False):
    """The number of frames of each Video, so that their vision tokens are at most `budget` where that is possible.

    Videos whose number is stated have it. The others share the rest by their lengths, each at least a frame pair; what a
    short one does not need is left to the others. lifted: the budget is stated.
    """
    frames = [video.most(lifted) for video in videos]
    left = budget - sum(v.tokens(n) for v, n in zip(videos, frames, strict=True) if not v.open)
    open_ = [(i, v) for i, v in enumerate(videos) if v.open]
    bounds = [(v.tokens(min(v.least, frames[i])), v.tokens(frames[i])) for i, v in open_]
    parts = parted(left, [max(v.probe.seconds, 1e-3) for _, v in open_], bounds)
    pairs = {i: int(part / v.pair + 1e-6) for (i, v), part in zip(open_, parts, strict=True)}
    left -= sum(pairs[i] * v.pair for i, v in open_)
    rests = [part - pairs[i] * v.pair for (i, v), part in zip(open_, parts, strict=True)]
    for _, (i, v), (_, most) in sorted(zip(rests, open_, bounds, strict=True), key=lambda item: -item[0]):
        if (pairs[i] + 1) * v.pair <= most and v.pair <= left:
            pairs[i] += 1
            left -= v.pair
    for i, v in open_:
        frames[i] = min(frames[i], pairs[i] * v.shape["temporal"])
    return frames


def parted(total, lengths, bounds):
    """Parts of `total` in proportion to the lengths, each within its (low, high); their sum is `total` if that is possible."""

    def parts(rate):
        return [min(max(rate * length, low), high) for length, (low, high) in zip(lengths, bounds, strict=True)]

    low, high = 0.0, max((most / length for length, (_, most) in zip(lengths, bounds, strict=True)), default=0.0)
    if sum(parts(high)) <= total:
        return parts(high)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(parts(middle)) <= total else (low, middle)
    return parts(low)


def check_budget(videos, frames, budget):
    """Raises ContextError where a stated budget cannot hold what is stated of the videos, or a pair of each."""
    spent = sum(v.tokens(n) for v, n in zip(videos, frames, strict=True))
    if spent <= budget:
        return
    pairs = sum(-(-n // v.shape["temporal"]) for v, n in zip(videos, frames, strict=True))
    what = "one frame pair of each video is" if all(v.open for v in videos) else "the videos as stated are"
    raise ContextError(
        f"the budget is {budget:,} vision tokens and {what} {spent:,} ({sum(frames):,} frames in {pairs:,} pair{'s' * (pairs > 1)}): "
        f"raise the budget to {spent:,}, or state fewer frames (fps, max_frames) or smaller ones (max_pixels)"
    )


def reason(video, frames, lifted, narrowed):
    """What limited the frames of a video: see Choice.by. narrowed: what is below the budget, or ""."""
    if not video.open:
        return "least" if video.raised and frames == video.possible else "stated"
    if frames >= video.possible:
        return ""
    if frames >= video.most(lifted):
        return "model"
    return narrowed or "budget"


def differing(choice, planned):
    """The Choice with what was planned from declared times, where that was another number of frames."""
    return replace(choice, planned=planned) if planned not in (None, choice.frames) else choice
