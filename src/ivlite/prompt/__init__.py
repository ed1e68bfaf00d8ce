"""Turns messages into a Prompt: token ids, multimodal positions, and opened media that are not yet decoded."""

from ivlite.prompt.layout import TOOLS_AFTER, TOOLS_BEFORE, Prompt, build
from ivlite.prompt.messages import check_message

__all__ = ["TOOLS_AFTER", "TOOLS_BEFORE", "Prompt", "build", "check_message"]
