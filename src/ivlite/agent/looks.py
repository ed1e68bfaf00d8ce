"""Tools that show frames: the whole video at a glance, windows of time, one moment in full detail."""

from collections.abc import Mapping, Sequence
from typing import Any

from ivlite.agent import apart, say
from ivlite.agent.answer import Evidence
from ivlite.agent.budget import FRAMES
from ivlite.agent.case import Case, Found
from ivlite.agent.film import DETAILS, LOOK, MANY, OVERVIEW, Detail, Film, NothingLeft, Wrong
from ivlite.agent.stamps import untimed

SAYS = 64  # new tokens of what is said of one window of several
PATIENCE, SAMPLE = (
    600.0,
    64,
)  # seconds of looking that nobody has to ask for; frames of the plan by which they are counted


def affordable(case: Case, film: Film, start: float, end: float, detail: Detail, checking: bool = False) -> int:
    """How many frames from start to end a look may have: what budget, time and context allow. Raises Wrong for none."""
    wanted = min(detail.frames, film.possible(start, end), apart.room(case, film.pair_tokens(detail.pixels)))
    count = case.spent.frames_for(wanted, checking)
    if count < 1:
        raise NothingLeft("no frames are left to look at: finish with what you know")
    wait = case.spent.wait()
    return count if wait is None else min(count, within_time(case, film, start, end, count, detail.pixels, wait))


def within_time(case: Case, film: Film, start: float, end: float, count: int, pixels: float, wait: float) -> int:
    """As many of `count` frames as this machine looks at within `wait` seconds, by the plan; a pair at least."""
    window = {} if start <= 0 and end >= film.duration else {"start": start, "end": end}
    part = {"type": "video", "video": film.source, **window, **film.limits(pixels)}
    tokens = -(-count // 2) * film.pair_tokens(pixels)
    plan = case.model.plan([{"role": "user", "content": [part]}], budget=tokens, max_wait=wait, max_new_tokens=SAYS)
    if plan.videos and plan.videos[0].by == "limit":
        return max(2, min(count, plan.videos[0].frames))
    return count


def frames_in_time(case: Case) -> int:
    """How many frames this machine looks at within PATIENCE seconds, by the plan of a few; at least FRAMES."""
    film = next(iter(case.films.values()))
    count = min(SAMPLE, film.possible(0.0, film.duration))
    part = {"type": "video", "video": film.source, "nframes": count}
    seconds = case.model.plan([{"role": "user", "content": [part]}], max_new_tokens=SAYS).seconds
    each = (seconds["vision"] + seconds["prefill"]) / count if seconds else 0.0
    return max(FRAMES, min(MANY, int(PATIENCE / each))) if each > 0 else FRAMES


def overview(case: Case, arguments: Mapping[str, Any]) -> Found:
    """The whole video. The frames go into the conversation."""
    film = case.film(arguments)
    count = affordable(case, film, 0.0, film.duration, OVERVIEW)
    evidence = case.seen(film, film.shown(0.0, film.duration, count))
    case.shown[evidence.id] = OVERVIEW.pixels
    text = say.overview(evidence, film.duration, case.texts.count(film), case.several)
    return Found(text, [film.part(0.0, film.duration, count, OVERVIEW.pixels)], (evidence,))


def watch(case: Case, arguments: Mapping[str, Any]) -> Found:
    """One window: its frames go into the conversation. Several: each is asked the question apart, and the answers go in."""
    film, detail = case.film(arguments), DETAILS.get(arguments.get("detail") or "mid")
    if detail is None:
        raise Wrong(f"detail must be one of {', '.join(DETAILS)}")
    windows = [
        film.window(w.get("start"), w.get("end")) for w in arguments.get("windows") or () if isinstance(w, Mapping)
    ]
    if not windows:
        raise Wrong("windows must name at least one window with start and end")
    if len(windows) > 1:
        return _apart(case, film, windows, detail, str(arguments.get("question") or ""))
    ((start, end),) = windows
    count = affordable(case, film, start, end, detail)
    times = film.shown(start, end, count)
    if known := already(case, film, times, detail.pixels):
        return Found(say.known([known.id]), known=True)
    evidence = case.seen(film, times)
    case.shown[evidence.id] = detail.pixels
    return Found(say.frames(evidence, case.several), [film.part(start, end, count, detail.pixels)], (evidence,))


def already(case: Case, film: Film, times: Sequence[float], pixels: float) -> Evidence | None:
    """Evidence whose frames the conversation holds, and that shows these times as closely."""
    for e in reversed(case.evidence):
        if e.video == film.handle and case.shown.get(e.id, 0.0) >= pixels and set(times) <= set(e.frames):
            return e
    return None


def _apart(case: Case, film: Film, windows: Sequence[tuple[float, float]], detail: Detail, question: str) -> Found:
    shares = []
    for start, end in windows:
        count = affordable(case, film, start, end, Detail(max(2, detail.frames // 2), detail.pixels))
        times = film.shown(start, end, count)
        shares.append((film.part(start, end, count, detail.pixels), case.seen(film, times)))
    asked = [([part], question or "What happens?") for part, _ in shares]
    replies = apart.together(case, asked, max_new_tokens=SAYS)
    said = [
        case.revise(evidence, text=untimed(" ".join(reply.text.split()), [evidence]))
        for (_, evidence), reply in zip(shares, replies, strict=True)
    ]
    return Found(say.windows(said, case.several), evidence=tuple(said))


def look(case: Case, arguments: Mapping[str, Any]) -> Found:
    """One frame, or a box of it, in full detail. It goes into the conversation."""
    film = case.film(arguments)
    if case.spent.frames_for(1) < 1:
        raise NothingLeft("no frames are left to look at: finish with what you know")
    at, part = film.frame(arguments.get("t"), arguments.get("box"))
    evidence = case.seen(film, [at])
    if arguments.get("box") is None:
        case.shown[evidence.id] = LOOK.pixels
    case.moments[evidence.id] = part
    return Found(say.moment(evidence, case.several), [part], (evidence,))
