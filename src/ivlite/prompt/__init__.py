"""Turns messages into a Prompt: token ids, multimodal positions, and opened media that are not yet decoded."""

from ivlite.prompt.budget import BUDGET, Choice
from ivlite.prompt.dedupe import deduped
from ivlite.prompt.layout import TOOLS_AFTER, TOOLS_BEFORE, Draft, Prompt, build, draft
from ivlite.prompt.messages import (
    Message,
    check_message,
    json_data,
    listed_tools,
    plain_messages,
    plain_text,
    plain_tools,
)

__all__ = [
    "BUDGET", "TOOLS_AFTER", "TOOLS_BEFORE", "Choice", "Draft", "Message", "Prompt", "build", "check_message", "deduped",
    "draft", "json_data", "listed_tools", "plain_messages", "plain_text", "plain_tools",
]  # fmt: skip
