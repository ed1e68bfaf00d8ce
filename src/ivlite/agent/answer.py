"""What an agent says and what it rests on: evidence, claims, answers, and the events of a run.

Times are those of frames and of texts; a model never writes one. Texts name evidence as [E3], and whoever shows them prints
the times of that evidence.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ivlite.numbers import clock as clock  # for who shows an answer

CONFIDENCE = ("low", "mid", "high")
KINDS = ("frames", "text", "note", "count")  # of evidence


@dataclass(frozen=True)
class Video:
    """A video of a run. handle: "v1", "v2", ... in the order given; duration: seconds; title: the name of its file."""

    handle: str
    path: str
    duration: float
    title: str = ""


@dataclass(frozen=True)
class Evidence:
    """Something that was seen or read. id: "E1", "E2", ... in the order of a run. video: a handle. start, end: seconds.

    kind: "frames" (they were shown), "text" (subtitles, speech, captions), "note" (of the model) or "count". frames: the times
    of the frames that were really shown, in seconds. text: what was read, noted, counted, or said of the frames. score: 0 to 1,
    of what was searched for; None for what was not.
    """

    id: str
    video: str
    start: float
    end: float
    kind: str
    frames: tuple[float, ...] = ()
    text: str = ""
    score: float | None = None


@dataclass(frozen=True)
class Claim:
    """One statement of an answer. evidence: the ids that it rests on, at least one.

    confirmed: whether the frames of its evidence were found to show it; None where it was not asked of frames. probability:
    that they show it, 0 to 1, as the model sees it.
    """

    text: str
    evidence: tuple[str, ...]
    confirmed: bool | None = None
    probability: float | None = None


@dataclass(frozen=True)
class Look:
    """A part of a video that was looked at. frames: how many; every: mean seconds between two of them, 0 for one frame."""

    video: str
    start: float
    end: float
    frames: int
    every: float


@dataclass(frozen=True)
class Event:
    """Something that happens in a run: one of the classes below."""


@dataclass(frozen=True)
class Thought(Event):
    """What the model thinks before it acts."""

    text: str


@dataclass(frozen=True)
class Call(Event):
    """A call of a tool. number: of the call in the run, from 1. arguments: as the model wrote them."""

    number: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Result(Event):
    """What call `number` gave. text: what the model reads. evidence: what is new with it."""

    number: int
    text: str
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Remark(Event):
    """Something that the program did or found, in one sentence: looks that were folded, a tool that was dropped."""

    text: str


@dataclass(frozen=True)
class Said(Event):
    """A claim of the answer, after its verification."""

    claim: Claim


@dataclass(frozen=True)
class Answer:
    """The answer to a question. text names evidence as [E3].

    claims: what it states, each with its evidence. evidence: all of the run, in order. confidence: "low", "mid" or "high".
    looked_at: what was seen, and how closely. missing: what was not, or could not be found out, in words; "" for nothing.
    steps: the events before it, in order. usage: rounds, calls, frames, new_tokens, prompt_tokens, seconds and the like.
    videos: what the handles stand for. finish_reason: "finish" (the model ended it), "budget" (rounds, frames, tokens or time
    were used up), "stalled" (nothing new was found), "repairs" (its calls made no sense), or the reason of a Stop.
    """

    text: str
    claims: tuple[Claim, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    confidence: str = "low"
    looked_at: tuple[Look, ...] = ()
    missing: str = ""
    steps: tuple[Event, ...] = ()
    usage: dict[str, Any] = field(default_factory=dict)
    videos: tuple[Video, ...] = ()
    finish_reason: str = "finish"
    run: str = ""  # the id of the run in the library, for --resume; "" where it was not stored

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: answer, claims, evidence, confidence, looked_at, missing, usage, videos, steps and the rest."""
        data = asdict(replace(self, steps=()))
        return {"answer": data.pop("text")} | data | {"steps": [event_data(event) for event in self.steps]}

    def cited(self) -> tuple[Evidence, ...]:
        """The evidence that the claims and the text name, in the order of its ids."""
        named = {i for claim in self.claims for i in claim.evidence}
        return tuple(e for e in self.evidence if e.id in named or f"[{e.id}]" in self.text)


@dataclass(frozen=True)
class Answered(Event):
    """The end of a run."""

    answer: Answer


EVENTS: dict[str, type[Event]] = {
    "thought": Thought, "call": Call, "result": Result, "remark": Remark, "said": Said, "answered": Answered,
}  # fmt: skip


def event_data(event: Event) -> dict[str, Any]:
    """An event as plain data for JSON; its "type" is its class in lower case."""
    kind = type(event).__name__.lower()
    if isinstance(event, Answered):
        return {"type": kind, "answer": event.answer.as_dict()}
    return {"type": kind} | asdict(event)


def event_of(data: dict[str, Any]) -> Event:
    """The event of `event_data`. Raises KeyError or TypeError for other data."""
    given = {name: value for name, value in data.items() if name != "type"}
    kind = EVENTS[data["type"]]
    if kind is Result:
        given["evidence"] = tuple(evidence_of(e) for e in given["evidence"])
    if kind is Said:
        claim = given["claim"]
        given["claim"] = Claim(**claim | {"evidence": tuple(claim["evidence"])})
    return kind(**given)


def evidence_of(data: dict[str, Any]) -> Evidence:
    """The Evidence of its plain data."""
    return Evidence(**data | {"frames": tuple(data.get("frames", ()))})
