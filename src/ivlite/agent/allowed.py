"""What a call may say at one step: only ids that exist, times within the videos, texts of bounded length.

Decoding follows these schemas token by token, so that a call is complete, and refers to what there is, whatever the model is.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ivlite.agent.case import Case
from ivlite.agent.tools import MOST_WINDOWS, Tool

# Characters of the texts of a call, by the name of the argument.
LONGEST = {"query": 160, "question": 200, "claim": 240, "text": 240, "answer": 1500, "missing": 240}
CITING = ("answer", "text", "missing")  # texts that may name evidence
CLAIMS, IDS = 6, 6  # most claims of an answer, most ids of a claim
FEWEST = 200  # characters of an answer, where the context is nearly full
LINES = 10


def choice(case: Case, tools: Iterable[Tool], room: int) -> dict[str, Any]:
    """The tool_choice of a step: one call of these tools. room: tokens that the reply may have."""
    narrow = [
        {"type": "function", "function": {"name": tool.name, "parameters": narrowed(case, tool, room)}}
        for tool in tools
    ]
    return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": narrow}}


def narrowed(case: Case, tool: Tool, room: int = 1 << 20) -> dict[str, Any]:
    """The schema of a tool's arguments at this step."""
    if tool.external:
        return dict(tool.parameters)
    limits = Limits(case, room)
    out: dict[str, Any] = limits.object(tool.parameters)
    return out


class Limits:
    """The limits of one step, by the names of arguments."""

    def __init__(self, case: Case, room: int) -> None:
        self.ids = [e.id for e in case.evidence]
        self.handles = list(case.films)
        self.several = case.several
        last = max(film.duration for film in case.films.values())
        self.last = max(0.1, math.floor(last * 10) / 10)
        self.answer = max(FEWEST, min(LONGEST["answer"], room // 4))

    def object(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """A schema of an object whose properties are narrower."""
        given = {name: self.property(name, inner) for name, inner in schema.get("properties", {}).items()}
        properties = {name: inner for name, inner in given.items() if inner is not None}
        return dict(schema) | {"properties": properties, "additionalProperties": False}

    def property(self, name: str, schema: Mapping[str, Any]) -> dict[str, Any] | None:
        """A narrower schema of the argument of that name; None for one that is not offered."""
        if name == "video":
            return {"enum": self.handles} if self.several else None
        if name in ("start", "end", "t"):
            time = {"type": "number", "minimum": 0, "maximum": self.last, "multipleOf": 0.1}
            return {"anyOf": [time, {"enum": self.ids}]} if self.ids else time
        if name == "evidence":
            return {"type": "array", "items": {"enum": self.ids}, "minItems": 1, "maxItems": IDS}
        if name == "k":
            return {"type": "integer", "minimum": 1, "maximum": LINES}
        if name == "box":
            corner = {"type": "integer", "minimum": 0, "maximum": 1000}
            return {"type": "array", "items": corner, "minItems": 4, "maxItems": 4}
        if name in ("windows", "claims"):
            most = MOST_WINDOWS if name == "windows" else CLAIMS
            return {"type": "array", "items": self.object(schema["items"]), "minItems": 1, "maxItems": most}
        return self.text(name) if schema.get("type") == "string" else dict(schema)

    def text(self, name: str) -> dict[str, Any]:
        """A text of bounded length; brackets in it name evidence that exists."""
        most = self.answer if name == "answer" else LONGEST.get(name, FEWEST)
        if name not in CITING:
            return {"type": "string", "pattern": f"^(?s:.){{1,{most}}}$"}
        return {"type": "string", "pattern": rf"^([^\[\]]|\[E({numbers(self.ids)})\]){{1,{most}}}$"}


def numbers(ids: Sequence[str]) -> str:
    return "|".join(id[1:] for id in ids)
