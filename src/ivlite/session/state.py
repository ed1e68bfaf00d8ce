"""A session as plain data: what is saved beside the rows of its cache."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ivlite.errors import UsageError

ROLES = ("system", "user", "assistant", "tool")
KEYS = {"role", "content", "tool_calls", "thinking"}  # of a message
KINDS = ("text", "image", "video")  # of a part


@dataclass
class SessionState:
    """A conversation without the rows of its cache.

    messages: as published, role and content; a medium in memory is its name. tools: function signatures as JSON texts.
    token_ids: T ids of all turns. positions: int64 (3, T). rows: how many of the leading tokens the cache holds.
    spans: (index of the medium, first token, count) of every block of vision tokens, in order; keys: 16 bytes of each.
    media: of each medium kind, source, size (H, W), grid (t, h, w), frames, timestamps, duration, temporal: JSON data.
    ends: (number of tokens, float32 logits (vocab,)) where prompts ended. turns: (messages, tokens, rows, media) at the
    end of each. tail: text of the last answer whose tokens are still to be added; tails: of the answers before it, or
    nothing (files of older versions). chunks: {first token: end} of whole chunks of a prefill (see Held), of what a store keeps.
    """

    messages: list[Mapping[str, Any]] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    positions: np.ndarray = field(default_factory=lambda: np.zeros((3, 0), np.int64))
    rows: int = 0
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    media: list[dict[str, Any]] = field(default_factory=list)
    ends: list[tuple[int, np.ndarray]] = field(default_factory=list)
    turns: list[tuple[int, int, int, int]] = field(default_factory=list)
    tail: str = ""
    tails: list[str] = field(default_factory=list)
    chunks: dict[int, int] = field(default_factory=dict)


def checked(state: SessionState, config: Any) -> SessionState:
    """Returns the state. Raises UsageError, naming the first part that contradicts another or the model's Config."""
    for what, right in CHECKS:
        try:
            good = bool(right(state, config))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
            good = False
        if not good:
            raise UsageError(f"the session's {what} are not those of a session of this model")
    return state


def _tokens(s, config):
    ids, n = np.asarray(s.token_ids, np.int64), len(s.token_ids)
    inside = n == 0 or (0 <= ids.min() and ids.max() < config.text.vocab_size)
    return inside and n <= config.text.context_length and _whole(s.rows, 0, n)


def _positions(s, config):
    p = s.positions
    return (
        p.shape == (3, len(s.token_ids)) and p.dtype == np.int64 and (p.size == 0 or 0 <= p.min() <= p.max() < 1 << 40)
    )


def _media(s, config):
    merge = config.vision.spatial_merge_size
    for index, m in enumerate(s.media):
        if not all(isinstance(m[name], list | tuple) for name in ("grid", "size", "frames", "timestamps")):
            return False
        t, h, w = m["grid"]
        mine = [count for owner, _, count in s.spans if owner == index]
        right = m["kind"] in ("image", "video") and isinstance(m["source"], str) and len(mine) == t
        right = (
            right and all(_whole(n, 1, 1 << 24) for n in (t, h, w, *m["size"], m["temporal"])) and len(m["size"]) == 2
        )
        right = right and set(mine) <= {h // merge * (w // merge)} and all(_whole(f, 0, 1 << 50) for f in m["frames"])
        right = right and all(isinstance(x, int | float) for x in (*m["timestamps"], m["duration"] or 0))
        if not right or len(m["timestamps"]) != (t if m["kind"] == "video" else 0):
            return False
    return True


def _spans(s, config):
    after = owner = 0
    for medium, first, count in s.spans:
        if not (owner <= medium < len(s.media) and after <= first and count > 0 and first + count <= len(s.token_ids)):
            return False
        after, owner = first + count, medium
    return len(s.keys) == len(s.spans) and all(isinstance(k, bytes) and len(k) == 16 for k in s.keys)


def _turns(s, config):
    before = (0, 0, 0, 0)
    for turn in s.turns:
        messages, tokens, rows, media = turn
        rising = all(_whole(b, a) for a, b in zip(before, turn, strict=True))
        if not rising or messages == before[0] or tokens == before[1] or rows > tokens:
            return False
        before = tuple(turn)
    return before == (len(s.messages), len(s.token_ids), s.rows, len(s.media))


def _ends(s, config):
    return all(
        _whole(n, 1, s.rows) and e.shape == (config.text.vocab_size,) and e.dtype == np.float32 and np.isfinite(e).all()
        for n, e in s.ends
    )


def _messages(s, config):
    plain = all(_message(m, first=m is s.messages[0]) for m in s.messages)
    tails = len(s.tails) in (0, len(s.turns) - 1) and all(isinstance(t, str) for t in (s.tail, *s.tails))
    return plain and tails and _answered(s) and all(isinstance(json.loads(t), dict) for t in s.tools)


def _message(m, first):
    """Whether a message is as said.as_published and said.answered make it."""
    content, role = m["content"], m["role"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    plain = (
        role in ROLES and (role != "system" or first) and m.keys() <= KEYS and isinstance(m.get("thinking", ""), str)
    )
    calls = m.get("tool_calls", [])
    return plain and all(map(_part, parts)) and isinstance(calls, list) and all(map(_call, calls))


def _part(p):
    return p["type"] in KINDS and isinstance(p[p["type"]], str)


def _call(c):
    known = c.keys() <= {"id", "type", "function"} and isinstance(c.get("id", ""), str)
    return known and all(isinstance(c["function"][name], str) for name in ("name", "arguments"))


def _answered(s):
    """Whether every turn ends with an answer, and shows as many media as it says."""
    at = shown = 0
    for messages, _, _, media in s.turns:
        for m in s.messages[at:messages]:
            shown += sum(p["type"] != "text" for p in m["content"]) if isinstance(m["content"], list) else 0
        if shown != media or s.messages[messages - 1]["role"] != "assistant":
            return False
        at = messages
    return True


def _whole(value, low, high=1 << 60):
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and low <= value <= high


CHECKS = (
    ("tokens", _tokens), ("positions", _positions), ("frame pairs", _spans), ("media", _media),
    ("turns", _turns), ("logits", _ends), ("messages", _messages),
)  # fmt: skip
