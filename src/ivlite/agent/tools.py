"""Tool definitions for chat(tools=...): their names and arguments."""

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
