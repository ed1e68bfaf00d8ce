"""Counts for /metrics, in Prometheus' text format."""

import threading
from collections import Counter
from collections.abc import Callable

from ivlite.engine.reply import Reply
from ivlite.machine import peak_memory

KINDS = {
    "prompt": "prompt_tokens", "vision": "vision_tokens", "cached": "cached_tokens", "stored": "stored_tokens",
    "generated": "new_tokens",
}  # fmt: skip
Labels = tuple[tuple[str, str], ...]
HELP = {
    "ivlite_requests_total": (
        "counter",
        "Requests that have ended, by path (other: refused before, or none) and HTTP status (499: the client left).",
    ),
    "ivlite_tokens_total": ("counter", "Tokens of prompts (vision, cached and stored among them) and of answers."),
    "ivlite_stage_seconds_total": ("counter", "Seconds spent in each stage of answers."),
    "ivlite_answers_total": ("counter", "Answers, by finish reason."),
    "ivlite_requests_open": ("gauge", "Requests for answers that run or wait."),
    "ivlite_answers_running": ("gauge", "Answers that are computed together."),
    "ivlite_cache_bytes": ("gauge", "Bytes of all caches."),
    "ivlite_body_bytes": ("gauge", "Bytes of request bodies in memory."),
    "ivlite_peak_memory_bytes": ("gauge", "Peak memory of the server's process."),
}


class Metrics:
    """Counters and gauges. Any thread may call any method."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Labels]] = Counter()  # floats, too
        self._lock = threading.Lock()
        self.gauges: dict[str, Callable[[], float]] = {"ivlite_peak_memory_bytes": peak_memory}

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment]

    def answered(self, reply: Reply) -> None:
        """Counts an answer, whole or cut short."""
        for kind, name in KINDS.items():
            self.add("ivlite_tokens_total", reply.usage.get(name, 0), kind=kind)
        for stage, seconds in reply.timings.items():
            if stage not in ("load", "total"):
                self.add("ivlite_stage_seconds_total", seconds, stage=stage)
        self.add("ivlite_answers_total", reason=reply.finish_reason or "none")

    def text(self) -> str:
        with self._lock:
            counts: dict[tuple[str, Labels], float] = {**self._counts}
        gauges: dict[tuple[str, Labels], float] = {(name, ()): gauge() for name, gauge in self.gauges.items()}
        values = counts | gauges
        lines = []
        for name, (kind, told) in HELP.items():
            lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
            for (other, labels), value in sorted(values.items()):
                if other == name:
                    inside = ",".join(f'{key}="{text}"' for key, text in labels)
                    lines.append(f"{name}{f'{{{inside}}}' if inside else ''} {value:.15g}")
        return "\n".join(lines) + "\n"
