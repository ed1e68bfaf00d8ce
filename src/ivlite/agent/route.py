"""What kind of question it is: only a guess of where to begin, by its words and the length of the videos."""

import re
from collections.abc import Sequence

from ivlite.agent.film import Film

SHORT = 64.0  # seconds of all videos that one pass sees well
GLOBAL = re.compile(
    r"\b(describe|summar\w*|overview|overall|in general|what happens|what is (this|it|the video|the clip) about|"
    r"main (topic|idea|point|subject)|tell me about|caption|title|genre|mood|atmosphere)\b", re.IGNORECASE,
)  # fmt: skip
CLOSE = re.compile(
    r"\b(when|how (many|often|long)|count|exactly|read|text|written|says?|number|letter|digit|name|brand|plate|sign|first|last|"
    r"before|after|order|second|minute|moment|time)\b", re.IGNORECASE,
)  # fmt: skip


def direct(question: str, films: Sequence[Film]) -> bool:
    """Whether one pass over the frames is enough: the question is about the whole, and the whole is short."""
    short = sum(film.duration for film in films) <= SHORT
    return short and bool(GLOBAL.search(question)) and not CLOSE.search(question)
