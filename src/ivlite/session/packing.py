"""SessionState to and from what a session file holds: JSON data and arrays."""

import numpy as np

from ivlite.engine.held import Held, Span
from ivlite.session.state import SessionState
from ivlite.session.table import LENGTH_LIMIT, need, whole

FACTS = {"messages": list, "media": list, "turns": list, "tail": str, "tails": list, "tools": list}
KEY = 16  # bytes
TURN = 8  # numbers of a turn, at most


def pack(state):
    """(meta, arrays) of a SessionState, for SessionFile.save."""
    meta = {name: getattr(state, name) for name in FACTS}
    arrays = {
        "tokens": np.asarray(state.token_ids, np.int32),
        "positions": np.asarray(state.positions, np.int32),
        "spans": np.asarray(state.spans, np.int64).reshape(-1, 3),
        "keys": np.frombuffer(b"".join(state.keys), np.uint8).reshape(len(state.keys), KEY),
        "chunks": np.asarray(list(state.chunks.items()), np.int64).reshape(-1, 2),
        "ends": np.asarray([n for n, _ in state.ends], np.int64),
        "logits": np.array([logits for _, logits in state.ends], np.float32, ndmin=2)[: len(state.ends)],
    }
    return meta, arrays


def unpack(file):
    """The SessionState in an open SessionFile. Raises SessionFileError."""
    try:
        return _state(file.table)
    except (ValueError, KeyError, TypeError) as error:
        raise file.damaged(f"its conversation ({type(error).__name__}: {error!s:.80})") from None


def _state(table):
    meta, arrays = (
        {"tails": []} | table.meta,
        {"chunks": np.empty((0, 2), np.int64)} | table.arrays,
    )  # not in older versions
    for name, kind in FACTS.items():
        need(isinstance(meta[name], kind), name)
    tokens, positions, spans = arrays["tokens"], arrays["positions"], arrays["spans"]
    count = len(tokens)
    need(tokens.dtype.kind == spans.dtype.kind == "i", "numbers")
    need(tokens.ndim == 1 and table.length <= count <= LENGTH_LIMIT and tokens.min(initial=0) >= 0, "tokens")
    need(positions.shape == (3, count) and positions.min(initial=0) >= 0, "positions")
    need(spans.ndim == 2 and spans.shape[1] == 3 and arrays["keys"].shape == (len(spans), KEY), "spans")
    need(arrays["keys"].dtype == np.uint8, "keys")
    end = 0
    for medium, first, size in spans.tolist():
        need(0 <= medium < len(meta["media"]) and end <= first < count and 0 < size <= LENGTH_LIMIT, "spans")
        end = first + size
    ends, logits = arrays["ends"], arrays["logits"]
    need(ends.dtype.kind == "i" and ends.ndim == 1 and logits.ndim == 2 and len(logits) == len(ends), "logits")
    need(all(0 < n <= table.length for n in ends.tolist()), "logits")
    chunks = arrays["chunks"]
    need(chunks.dtype.kind == "i" and chunks.ndim == 2 and chunks.shape[1] == 2, "chunks")
    need(all(0 <= first < end <= table.length for first, end in chunks.tolist()), "chunks")
    need(all(isinstance(m, dict) for m in [*meta["messages"], *meta["media"]]), "messages")
    for turn in meta["turns"]:
        need(isinstance(turn, list) and len(turn) <= TURN and all(whole(n, 0, LENGTH_LIMIT) for n in turn), "turns")
    return SessionState(
        messages=meta["messages"], token_ids=tokens.tolist(), positions=positions.astype(np.int64), rows=table.length,
        spans=[tuple(span) for span in spans.tolist()], keys=[key.tobytes() for key in arrays["keys"]],
        media=meta["media"], ends=list(zip(ends.tolist(), logits, strict=True)),
        turns=[tuple(turn) for turn in meta["turns"]], tail=meta["tail"], tails=meta["tails"],
        tools=meta["tools"], chunks=dict(chunks.tolist()),
    )  # fmt: skip


def held_by(state):
    """The Held of the rows that a SessionState has in its cache."""
    held = Held()
    held.append(state.token_ids[: state.rows], state.positions[:, : state.rows])
    for (_, first, count), key in zip(state.spans, state.keys, strict=True):
        if first < state.rows:
            held.spans.append(Span(first, count, key=key))
    for rows, logits in state.ends:
        held.keep_logits(logits, rows)
    held.chunks = {first: end for first, end in state.chunks.items() if end <= state.rows}
    return held
