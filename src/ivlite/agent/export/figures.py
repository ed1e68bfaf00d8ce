"""Times, spans and numbers as a report writes them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ivlite.agent.answer import Answer, Look

GAP = 1.0  # seconds: a shorter part that was not looked at is not worth naming
LONGEST = 4000  # characters of a step


def span_text(start: float, end: float | None) -> str:
    return short(start) if end is None or end <= start else f"{short(start)} – {short(end)}"


def short(seconds: float) -> str:
    """A time to a tenth of a second as people write it: "1:02", "2:01.9", "1:02:01"."""
    tenths = max(0, round(10 * seconds))
    minutes, rest = divmod(tenths // 10, 60)
    start = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
    return f"{start}:{rest:02d}" + (f".{tenths % 10}" if tenths % 10 else "")


def place(seconds: float, length: float) -> str:
    """A share of a video's length in per cent."""
    return f"{100 * min(1.0, max(0.0, seconds / length)):.3f}%"


def union(looks: Sequence[Look], duration: float) -> list[tuple[float, float]]:
    """The parts that were looked at, without overlaps. A frame stands for the time until the next one would be."""
    out: list[tuple[float, float]] = []
    for start, end in sorted((k.start, min(duration, max(k.end, k.start) + k.every)) for k in looks):
        if out and start <= out[-1][1] + GAP:
            out[-1] = out[-1][0], max(out[-1][1], end)
        else:
            out.append((start, end))
    return out


def seen(answer: Answer, video: str) -> list[float]:
    """The times of the frames of a video that were looked at, ascending: of evidence, and of looks as evenly as they are."""
    times = {t for e in answer.evidence if e.video == video for t in e.frames}
    for look in answer.looked_at:
        if look.video == video:
            steps = max(1, look.frames - 1)
            times |= {look.start + (look.end - look.start) * i / steps for i in range(max(1, look.frames))}
    return sorted(times)


def widest(times: Sequence[float], duration: float) -> float:
    """The longest time between two frames, before the first and behind the last."""
    return max(b - a for a, b in zip([0.0, *times], [*times, duration], strict=True))


def rest(parts: Sequence[tuple[float, float]], duration: float) -> list[tuple[float, float]]:
    """What is between parts of a video, where it is longer than GAP."""
    ends = [0.0, *(end for _, end in parts)]
    starts = [*(start for start, _ in parts), duration]
    return [(a, b) for a, b in zip(ends, starts, strict=True) if b - a > GAP]


def arguments(given: Mapping[str, Any]) -> str:
    return json.dumps(given, ensure_ascii=False, default=str)[1:-1]


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"


def figure(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
