"""A session as plain data: what is saved beside the rows of its cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class SessionState:
    """A conversation without the rows of its cache.

    messages: as published, role and content; a medium in memory is its name. tools: function signatures, JSON data.
    token_ids: T ids of all turns. positions: int64 (3, T). rows: how many of the leading tokens the cache holds.
    spans: (index of the medium, first token, count) of every block of vision tokens, in order; keys: 16 bytes of each.
    media: of each medium kind, source, size (H, W), grid (t, h, w), frames, timestamps, duration, temporal: JSON data.
    ends: (number of tokens, float32 logits (vocab,)) where prompts ended. turns: (messages, tokens) at the end of each.
    tail: text of the last answer whose tokens are still to be added.
    """

    messages: list[Mapping[str, Any]] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    positions: np.ndarray = field(default_factory=lambda: np.zeros((3, 0), np.int64))
    rows: int = 0
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    media: list[dict[str, Any]] = field(default_factory=list)
    ends: list[tuple[int, np.ndarray]] = field(default_factory=list)
    turns: list[tuple[int, int]] = field(default_factory=list)
    tail: str = ""
    tools: list[Any] | None = None
