"""Messages as the model reads them: token ids, multimodal positions, and media planned but not yet decoded."""

from ivlite.prompt.layout import TOOLS_AFTER, TOOLS_BEFORE, Prompt, build
from ivlite.prompt.messages import check_message

__all__ = ["TOOLS_AFTER", "TOOLS_BEFORE", "Prompt", "build", "check_message"]
