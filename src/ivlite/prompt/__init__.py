"""Turns messages into a Prompt: token ids, multimodal positions, and opened media that are not yet decoded."""

from ivlite.prompt.budget import BUDGET, Choice
from ivlite.prompt.layout import TOOLS_AFTER, TOOLS_BEFORE, Draft, Prompt, build, draft
from ivlite.prompt.messages import check_message

__all__ = ["BUDGET", "TOOLS_AFTER", "TOOLS_BEFORE", "Choice", "Draft", "Prompt", "build", "check_message", "draft"]
