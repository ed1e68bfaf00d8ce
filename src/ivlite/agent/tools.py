"""The tools of the agent: names, descriptions and arguments, as the model reads them. Training uses the same table.

Times are seconds, or ids of evidence: as `start` where that begins, as `end` where it ends, as `t` its middle. Videos are handles
("v1"; the only one need not be named), and boxes are thousandths of a frame's width and height. No tool takes a path, an address or a command. What a
call may say at a step, such as the ids that exist, is narrower than its schema here: see `agent.allowed`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ivlite.agent import looks, notes, search, verify
from ivlite.agent.case import Case, Found
from ivlite.agent.film import DETAILS

Run = Callable[[Case, Mapping[str, Any]], Found]
MOST_WINDOWS = 4  # of a watch

TIME = {"type": ["number", "string"]}
TEXT = {"type": "string"}
IDS = {"type": "array", "items": TEXT}
SPAN = {"start": TIME, "end": TIME}
VIDEO = {"video": TEXT}


@dataclass(frozen=True)
class Tool:
    """One tool. parameters: a JSON schema of its arguments. run: what it does; None for the one that ends.

    external: of another program, or of the caller's: `answer` gets the arguments and returns a text or JSON data, which is not
    trusted, and may not end. agree: asks the person before each call of it, as long as that takes; None where nobody is asked.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Run | None = None
    external: bool = False
    answer: Callable[[dict[str, Any]], Any] | None = None
    agree: Callable[[dict[str, Any]], bool] | None = None

    @property
    def signature(self) -> dict[str, Any]:
        """The tool in the form that chat templates take."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def _tool(name: str, run: Run | None, description: str, required: Iterable[str] = (), **properties: Any) -> Tool:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if needed := list(required):
        schema["required"] = needed
    return Tool(name, description, schema, run)


TOOLS = (
    _tool("overview", looks.overview, "The whole video at a glance: its length and frames spread evenly over it.", **VIDEO),
    _tool(
        "search_text", notes.search_text, "Lines of subtitles, speech, captions and notes that match words.", ["query"],
        query=TEXT, **SPAN, k={"type": "integer"}, **VIDEO,
    ),
    _tool("ground", search.ground, "Where something is seen: the spans that match a description, best first.", ["query"],
          query=TEXT, **SPAN, **VIDEO),
    _tool(
        "watch", looks.watch, "Frames of 1 to 4 windows of time, with a question about them.", ["windows", "question", "detail"],
        windows={"type": "array", "items": {"type": "object", "properties": SPAN, "required": ["start", "end"]}},
        question=TEXT, detail={"enum": list(DETAILS)}, **VIDEO,
    ),
    _tool("look", looks.look, "One frame in full detail, or a box of it: x0, y0, x1, y1 from 0 to 1000.", ["t"],
          t=TIME, box={"type": "array", "items": {"type": "integer"}}, **VIDEO),
    _tool("count", search.count, "How often something is seen, and when, each time once.", ["query"], query=TEXT, **SPAN, **VIDEO),
    _tool("verify", verify.verify, "How probable a statement is, by the frames of a window.", ["claim", "start", "end"],
          claim=TEXT, **SPAN, **VIDEO),
    _tool("note", notes.note, "Keeps a finding, with the evidence for it.", ["text", "evidence"], text=TEXT, evidence=IDS),
    _tool("ask_user", notes.ask_user, "Asks the person who asked.", ["question"], question=TEXT),
    _tool(
        "finish", None, "Ends with the answer. Each claim names its evidence. missing: what could not be found out.",
        ["answer", "claims", "confidence"], answer=TEXT,
        claims={"type": "array", "items": {"type": "object", "properties": {"text": TEXT, "evidence": IDS},
                                           "required": ["text", "evidence"]}},
        confidence={"enum": ["low", "mid", "high"]}, missing=TEXT,
    ),
)  # fmt: skip

# Names in the paper of InternVideo3's agent.
ALIASES = {"video_segmentation": "overview", "asr": "search_text", "temporal_grounding": "ground"}
BY_NAME = {tool.name: tool for tool in TOOLS}


def named(name: str) -> Tool:
    """The tool of that name or alias, under the name that was asked for. Raises KeyError."""
    return replace(BY_NAME[ALIASES.get(name, name)], name=name)


def signatures(tools: Iterable[Tool] = TOOLS) -> list[dict[str, Any]]:
    """Tools in the form that `chat(tools=...)` takes."""
    return [tool.signature for tool in tools]


ZOOM = {
    "type": "function",
    "function": {
        "name": "zoom",
        "description": "Look again at a part of the video, at more frames per second.",
        "parameters": {
            "type": "object",
            "properties": {
                "start": {"type": "number", "description": "where the part begins, in seconds"},
                "end": {"type": "number", "description": "where it ends, in seconds"},
            },
            "required": ["start", "end"],
        },
    },
}
