"""What a question costs before it is paid: frames, tokens, memory and seconds on this machine, and the nearest that fits."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from ivlite.prompt import Choice

WAITED_FOR = ("load", "scan", "decode", "vision", "prefill")  # stages before the first token
WORTH_SAYING = 64  # tokens that are held


@dataclass(frozen=True)
class Setting:
    """A change of settings with which the plan fits, or takes more: as on the command line, and as arguments.

    frames, tokens: of all videos, and of the prompt. wait: seconds until the first token, None if unknown.
    """

    flag: str
    settings: dict[str, float]
    frames: int
    tokens: int
    wait: float | None = None


@dataclass(frozen=True)
class Plan:
    """The cost of a prompt and its answer.

    videos: how the frames of each were chosen. images: their number. prompt_tokens, vision_tokens: counted, not estimated
    (unless a video is `estimated`). max_new_tokens: of the answer. room: tokens that model, context and memory hold.
    cache_bytes: of prompt and answer. weight_bytes. peak_memory: bytes. seconds: of the stages load (if it is yet to come),
    scan (files are opened and their frames' times read), decode, vision, prefill and generate (for all of max_new_tokens),
    None if the machine's speed is not known. fits: whether it can be done; problem: why not, with the numbers. nearest:
    settings that fit, or that take more frames. held: tokens of the prompt that need no work, because a session, an
    earlier call or the store has it. linear: the share of prefill that does not grow with what came before. took: what
    happened (seconds of each stage, counts), once it has.
    """

    videos: tuple[Choice, ...]
    images: int
    prompt_tokens: int
    vision_tokens: int
    max_new_tokens: int
    room: int
    cache_bytes: int
    weight_bytes: int
    peak_memory: int
    seconds: dict[str, float] | None
    fits: bool = True
    problem: str = ""
    nearest: tuple[Setting, ...] = ()
    held: int = 0
    linear: float = 1.0
    took: dict[str, Any] | None = None

    @property
    def wait(self) -> float | None:
        """Seconds until the first token."""
        return None if self.seconds is None else sum(self.seconds.get(stage, 0.0) for stage in WAITED_FOR)

    def as_data(self) -> dict[str, Any]:
        """The plan as plain data for JSON."""
        data = asdict(self)
        if self.seconds is not None:
            data["seconds"] = {stage: round(value, 3) for stage, value in self.seconds.items()}
        return data | {"wait": None if self.wait is None else round(self.wait, 3)}

    def happened(self, usage: dict[str, int], seconds: dict[str, float]) -> "Plan":
        """The plan with what happened beside it: counts, and seconds of each stage."""
        return replace(self, took={"seconds": {stage: round(s, 3) for stage, s in seconds.items()}, **usage})

    def line(self) -> str:
        """What was left open and how it was decided, in one sentence."""
        if not self.videos:
            return f"{self.prompt_tokens:,} tokens{self._time()}"
        frames, thinned = sum(v.frames for v in self.videos), [v for v in self.videos if v.frames < v.possible]
        if len(self.videos) == 1:
            (video,) = self.videos
            of = f" of {video.possible:,} possible" if thinned else ""
            counts = f"{frames:,}{of} frame{'s' if frames > 1 or of else ''}"
            counts += f", one every {spaced(video.interval)}" if video.interval else ""
        else:
            counts = ", ".join(f"{v.name}: {v.frames:,} of {v.possible:,}" for v in self.videos[:4])
            counts += f" and {len(self.videos) - 4} more videos" if len(self.videos) > 4 else ""
            counts = f"{frames:,} frames ({counts} possible)"
        planned = [f"{v.name} was planned with {v.planned:,}" for v in self.videos if v.planned is not None]
        notes = f" ({'; '.join(planned[:2])}, by what it declares)" if planned else ""
        if any(v.by == "least" for v in self.videos):
            notes += " (the model file's min_frames, more than fps asks for)"
        more = next((s for s in self.nearest if s.frames > frames), None)
        advice = (
            f"; {more.flag} takes {'them all' if more.frames == self._all() else f'{more.frames:,}'}" if more else ""
        )
        return f"{counts}{notes}: {sum(v.tokens for v in self.videos):,} tokens{self._time()}{advice}"

    def _all(self) -> int:
        return sum(v.possible for v in self.videos)

    def _time(self) -> str:
        return "" if self.wait is None else f", about {about(self.wait)}{self._held()}"

    def _held(self) -> str:
        if self.held < WORTH_SAYING:
            return ""
        return f" ({self.held:,} of the {self.prompt_tokens:,} prompt tokens are computed already)"


def spaced(seconds: float) -> str:
    """Formats the time between frames: "14.1 s", "0.25 s"."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2g} s"


def about(seconds: float) -> str:
    """Formats an estimate in words: "12 s", "4 min", "1 h 20 min"."""
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
