"""What an agent knows of its videos: the evidence that it has, and how tools add to it."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from ivlite.agent.answer import Evidence, Look, evidence_of
from ivlite.agent.budget import Budget, Spent
from ivlite.agent.film import Film, Wrong

TIMES = ("start", "end", "t")  # arguments that may be evidence
MOMENT = 0.5  # seconds that evidence of a single frame has as a window, at least


@dataclass(frozen=True)
class Line:
    """A line of text of a video. kind: "subtitle", "speech", "caption", "note", ..."""

    start: float
    end: float
    text: str
    kind: str = "subtitle"
    score: float | None = None


class Texts(Protocol):
    """Where lines of text come from."""

    def count(self, film: Film) -> int:
        """The number of lines of a video."""
        ...

    def search(self, query: str, film: Film, start: float | None, end: float | None, k: int) -> Sequence[Line]:
        """The k lines that match best, best first."""
        ...

    def note(self, film: Film, start: float, end: float, text: str) -> None:
        """Keeps a note."""
        ...


class NoTexts:
    """Videos without any text."""

    def count(self, film: Film) -> int:
        return 0

    def search(self, query: str, film: Film, start: float | None, end: float | None, k: int) -> Sequence[Line]:
        return ()

    def note(self, film: Film, start: float, end: float, text: str) -> None:
        pass


@dataclass
class Found:
    """What a tool gives. text: JSON for the model. parts: media that follow it. evidence: what is new. known: nothing is new.

    finished: the arguments of the answer, of the tool that ends.
    """

    text: str
    parts: list[dict[str, Any]] = field(default_factory=list)
    evidence: tuple[Evidence, ...] = ()
    known: bool = False


class Case:
    """The state of an agent's work on its videos; it grows with every look.

    model: an ivlite.Model. films: by handle. evidence: in order. spent: of the question in hand.
    """

    def __init__(
        self, model: Any, films: Sequence[Film], texts: Texts, ask_user: Callable[[str], str] | None = None
    ) -> None:
        self.model, self.texts, self.ask_user = model, texts, ask_user
        self.films = {film.handle: film for film in films}
        self.evidence: list[Evidence] = []
        self.spent = Spent(Budget())
        self.remarks: list[str] = []
        self.remarked = 0  # how many of them were told
        self.settings: dict[str, Any] = {}  # of sampling, and progress
        self.looked: list[Look] = []
        self.shown: dict[str, float] = {}  # ids of frames that the conversation holds -> their pixels (see film.Detail)
        self.moments: dict[
            str, dict[str, Any]
        ] = {}  # ids of looks at one frame, or a box of it -> the part that showed it
        self._asked: dict[str, tuple[str, ...]] = {}  # calls that were answered -> the ids that they gave

    @property
    def several(self) -> bool:
        return len(self.films) > 1

    def film(self, arguments: Mapping[str, Any]) -> Film:
        """The video that a call is about. Raises Wrong."""
        handle = arguments.get("video")
        if handle is None and len(self.films) == 1:
            return next(iter(self.films.values()))
        if handle not in self.films:
            raise Wrong(f"video must be one of {', '.join(self.films)}")
        return self.films[handle]

    def resolved(self, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Parts of messages with their videos in place of handles."""
        return [self.films[p["video"]].resolved(dict(p)) if p["type"] == "video" else dict(p) for p in parts]

    def add(self, film: Film, kind: str, start: float, end: float, *, frames: Sequence[float] = (), text: str = "",
            score: float | None = None) -> Evidence:  # fmt: skip
        """New evidence, with the next id."""
        made = Evidence(
            f"E{len(self.evidence) + 1}", film.handle, round(float(start), 3), round(float(end), 3), kind,
            tuple(round(float(t), 3) for t in frames), text, score,
        )  # fmt: skip
        self.evidence.append(made)
        return made

    def seen(self, film: Film, frames: Sequence[float], **more: Any) -> Evidence:
        """New evidence of frames that are shown: it begins with the first and ends with the last of them."""
        self.looks_at(film, frames)
        return self.add(film, more.pop("kind", "frames"), frames[0], frames[-1], frames=frames, **more)

    def revise(self, evidence: Evidence, **changes: Any) -> Evidence:
        """Evidence with what became known of it later."""
        made = replace(evidence, **changes)
        self.evidence[int(evidence.id[1:]) - 1] = made
        return made

    def by_id(self, id: str) -> Evidence:
        """Raises Wrong for an id that does not exist."""
        number = int(id[1:]) if id[:1] == "E" and id[1:].isascii() and id[1:].isdigit() and len(id) < 9 else 0
        if not 0 < number <= len(self.evidence) or self.evidence[number - 1].id != id:
            raise Wrong(f"there is no evidence {id[:20]}")
        return self.evidence[number - 1]

    def timed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call with seconds in place of ids of evidence, and with the video that these are of.

        What is no id of that video stays, and is no time.
        """
        of = arguments.get("video") or next(iter(self._videos(arguments)), None)
        named = {"video": of} if self.several and of is not None else {}
        return dict(arguments) | named | {name: self._time(name, value, of) for name, value in arguments.items()}

    def _videos(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        """The handles of the videos of evidence that stands for times."""
        windows = arguments.get("windows")
        for window in [arguments, *(windows if isinstance(windows, list) else ())]:
            if isinstance(window, Mapping):
                yield from (e.video for name in TIMES if (e := self._named(window.get(name))) is not None)

    def _time(self, name: str, value: Any, video: Any) -> Any:
        if name == "windows" and isinstance(value, list):
            return [{n: self._time(n, v, video) for n, v in w.items()} if isinstance(w, Mapping) else w for w in value]
        evidence = self._named(value) if name in TIMES else None
        if evidence is None or evidence.video != (video or evidence.video):
            return value
        start, end = evidence.start, max(evidence.end, evidence.start + MOMENT)
        return {"start": start, "end": end, "t": (start + evidence.end) / 2}[name]

    def _named(self, value: Any) -> Evidence | None:
        with contextlib.suppress(Wrong):
            return self.by_id(value) if isinstance(value, str) else None
        return None

    # -------------------------------------------------------------------------------------------- the same again

    def repeated(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The ids that the same call gave before; None for a call that is new."""
        return self._asked.get(call_key(name, arguments))

    def answered(self, name: str, arguments: Mapping[str, Any], evidence: Sequence[Evidence]) -> None:
        self._asked[call_key(name, arguments)] = tuple(e.id for e in evidence)

    def hides(self, ids: Sequence[str]) -> None:
        """The conversation does not hold the frames of these looks any more: a call that asks for them again is a new one."""
        for id in ids:
            self.shown.pop(id, None)
        self._asked = {key: given for key, given in self._asked.items() if not set(given) & set(ids)}

    def looks_at(self, film: Film, frames: Sequence[float]) -> None:
        """Notes that frames are looked at, by their times."""
        self.spent.frames += len(frames)
        every = (frames[-1] - frames[0]) / max(1, len(frames) - 1)
        self.looked.append(Look(film.handle, round(frames[0], 3), round(frames[-1], 3), len(frames), round(every, 3)))

    # -------------------------------------------------------------------------------------------- as data

    def mark(self) -> tuple[int, int]:
        """This state, for `since`."""
        return len(self.evidence), len(self.looked)

    def undo(self, mark: tuple[int, int]) -> None:
        """Forgets what is new since a mark: a call that failed shows nothing."""
        del self.evidence[mark[0] :], self.looked[mark[1] :]
        self.shown = {id: pixels for id, pixels in self.shown.items() if int(id[1:]) <= len(self.evidence)}
        self.moments = {id: part for id, part in self.moments.items() if int(id[1:]) <= len(self.evidence)}

    def since(self, mark: tuple[int, int]) -> dict[str, Any]:
        """What is new since a mark, as plain data."""
        spent = {name: value for name, value in asdict(self.spent).items() if name not in ("budget", "began", "before")}
        return {
            "evidence": [asdict(e) for e in self.evidence[mark[0] :]], "looked": [asdict(e) for e in self.looked[mark[1] :]],
            "shown": dict(self.shown), "moments": dict(self.moments), "asked": {key: list(ids) for key, ids in self._asked.items()},
            "spent": spent | {"before": self.spent.seconds}, "remarks": list(self.remarks),
        }  # fmt: skip

    def restore(self, data: Mapping[str, Any]) -> None:
        """Adds what `since` gave."""
        self.evidence += [evidence_of(e) for e in data["evidence"]]
        self.looked += [Look(**look) for look in data["looked"]]
        self.shown, self.moments, self.remarks = dict(data["shown"]), dict(data["moments"]), list(data["remarks"])
        self._asked = {key: tuple(ids) for key, ids in data["asked"].items()}
        self.spent = replace(self.spent, **data["spent"])


def call_key(name: str, arguments: Mapping[str, Any]) -> str:
    """A text that two calls share if they ask the same; times count with one decimal."""
    return json.dumps([name, plain(arguments)], sort_keys=True)


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | int) and not isinstance(value, bool):
        return round(float(value), 1)
    return " ".join(value.lower().split()) if isinstance(value, str) else value
