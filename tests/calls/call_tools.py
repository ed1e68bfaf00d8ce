"""Two tools, what is asked of them, and what makes a call sound."""

import json

from ivlite.engine.grammar import Rules
from ivlite.prompt import plain_tools

ASK = [{"role": "user", "content": "Which shapes move, and where to?"}]
ZOOM = {
    "type": "function",
    "function": {
        "name": "zoom",
        "parameters": {
            "type": "object",
            "properties": {"start": {"type": "number", "minimum": 0, "maximum": 99}, "end": {"type": "integer"}},
            "required": ["start", "end"],
        },
    },
}
NOTE = {
    "name": "note",
    "input_schema": {
        "type": "object",
        "properties": {"kind": {"enum": ["é", 'a "quoted" one']}, "sure": {"type": "boolean"}},
        "required": ["kind"],
    },
}
TOOLS = [ZOOM, NOTE]


def sound(call):
    assert call.arguments == json.loads(call.text)
    if call.name == "zoom":
        assert list(call.arguments) == ["start", "end"] and 0 <= call.arguments["start"] <= 99
        return isinstance(call.arguments["end"], int)
    assert call.name == "note" and call.arguments["kind"] in ("é", 'a "quoted" one')
    return isinstance(call.arguments.get("sure", False), bool) and len(call.arguments) <= 2


def of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


def rules(*tools, **settings):
    return Rules.of(plain_tools(tools), **settings)
