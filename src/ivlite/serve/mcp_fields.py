"""How tools of the MCP server are described: their arguments, which are checked, and the schemas of both sides."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ivlite.errors import UsageError, shown
from ivlite.serve.fields import Field, real, text
from ivlite.serve.mcp_calls import Course, Desk
from ivlite.serve.wire import Refused

LATEST = 1e7  # seconds: of any time in a video
LONGEST = 7 * 86400.0  # seconds of one call
NAME = 4096  # characters of the name of a video

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What a call returns. text: for who reads no data. data: as the tool's output schema says. pictures: JPEG files."""

    text: str
    data: dict[str, Any]
    pictures: list[bytes] = field(default_factory=list)

    def jpegs(self) -> list[str]:
        return [base64.b64encode(picture).decode() for picture in self.pictures]


@dataclass(frozen=True)
class Tool:
    """One tool. fields: its arguments, the `required` ones first of all. output: the schema of its data.

    reads: it changes nothing. run(desk, course, arguments) -> Result, in a thread of its own, under the call's Stop.
    """

    name: str
    title: str
    description: str
    fields: Mapping[str, Field]
    required: tuple[str, ...]
    output: dict[str, Any]
    run: Callable[[Desk, Course, Arguments], Result]
    reads: bool = True

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        properties = {name: known.schema for name, known in self.fields.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(self.required),
            "additionalProperties": False,
        }

    def arguments(self, given: Arguments) -> dict[str, Any]:
        """The arguments, checked; those that are null are as if they were not there. Raises Refused."""
        if unknown := given.keys() - self.fields.keys():
            raise Refused(400, f"{self.name} takes {', '.join(self.fields)}, not {shown(min(unknown))}")
        out = {name: given[name] for name in self.fields if given.get(name) is not None}
        if missing := next((name for name in self.required if name not in out), None):
            raise Refused(400, f"{self.name} needs {missing}", param=missing)
        try:
            out = {name: self.fields[name].check(name, value) for name, value in out.items()}
        except UsageError as error:
            raise Refused(400, str(error)) from None
        if out.get("start", 0) >= out.get("end", LATEST + 1):
            raise Refused(400, f"end ({out['end']:g}) must come after start ({out['start']:g})", param="end")
        return out


# ------------------------------------------------------------------------------------------------ arguments


def told(known: Field, description: str, **more: Any) -> Field:
    """A field whose schema says what it is for."""
    return replace(known, schema=known.schema | {"description": description, **more})


VIDEO = told(
    text(NAME), 'The video: its path relative to the server\'s folder, such as "talks/monday.mp4", or a file:// URI.'
)
START = told(real(0, LATEST), "Only what comes after this time, in seconds.")
END = told(real(0, LATEST), "Only what comes before this time, in seconds.")
SECONDS = told(real(1, LONGEST), "Seconds that the call may take; what was found by then is returned.")

NUMBER, STRING, COUNT = {"type": "number"}, {"type": "string"}, {"type": "integer"}


def listed(**properties: Any) -> dict[str, Any]:
    """The schema of a list of objects that have all of these properties."""
    return {"type": "array", "items": thing(**properties)}


def thing(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
