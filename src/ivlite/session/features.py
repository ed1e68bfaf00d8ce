"""Vision features of a prefill that was stopped: kept in a file of the store until the prefill goes on.

Rows of the cache are complete only at the end of a chunk, and the vision tower may have worked for minutes by then.
"""

import contextlib

import numpy as np

from ivlite.errors import SessionFileError
from ivlite.session.file import SessionFile
from ivlite.session.table import Layout

KIND = "vision"  # instead of a kind of cache


class Pairs:
    """Features of frame pairs as a cache whose rows are saved: one row per merged patch, its DeepStack features behind it."""

    def __init__(self, features, numpy):
        self.features, self.numpy = features, numpy
        self.counts = np.array([len(merged) for merged, _ in features], np.int64)
        self.ends = np.cumsum(self.counts)

    def dump(self, first, last):
        rows, found = [], np.searchsorted(self.ends, [first, last - 1], side="right")
        for n in range(found[0], found[1] + 1):
            start = self.ends[n] - self.counts[n]
            part = slice(max(0, first - start), last - start)
            merged, deep = self.features[n]
            rows.append(np.concatenate([self.numpy(merged)[part], *(self.numpy(d)[part] for d in deep)], 1))
        return np.concatenate(rows).astype(np.float32, copy=False).reshape(-1).view(np.uint8)


class Rows:
    """float32 (n, width) as a cache whose rows are restored."""

    def __init__(self, values):
        self.values, self.length, self.token_bytes = values, 0, 4 * values.shape[1]

    def truncate(self, length):
        self.length = length

    def restore(self, first, data):
        rows = data.view(np.float32).reshape(-1, self.values.shape[1])
        self.values[first : first + len(rows)] = rows
        self.length = first + len(rows)


def path(store, layout):
    return store.folder / f"{layout.model[:16]}-{KIND}-{layout.model[:8]}.ivs"


def _layout(layout, network):
    vision = network.config.vision
    width = vision.out_hidden_size * (1 + len(vision.deepstack_indexes))
    return Layout(layout.model, KIND, (width,), 1, 4 * width, layout.name)


def keep(store, layout, maker, network, paths):
    """Keeps the features that a network has in its table. paths: the files that the prompt shows. Raises DiskError."""
    items = network.seen.items() if getattr(network, "seen", None) else []
    if not items:
        return
    form, pairs = _layout(layout, network), Pairs([features for _, features in items], network.ops.numpy)
    arrays = {
        "keys": np.frombuffer(b"".join(key for (key, _), _ in items), np.uint8).reshape(len(items), -1),
        "wide": np.array([wide for (_, wide), _ in items], np.int64),
        "rows": pairs.counts,
    }
    place = path(store, layout)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    count = int(pairs.ends[-1])
    if store.make_room(count * form.token_bytes, place):
        media = [{"source": "frames of a prompt that was stopped"}]
        meta = {"maker": maker, "paths": paths, "media": media, "seconds": 0.0}
        SessionFile(place, durable=False).save(form, meta, arrays, pairs, count)


def recall(store, layout, maker, network, paths):
    """Puts the features that were kept for one of these files into a network's table; returns whether there were any."""
    with contextlib.suppress(SessionFileError, OSError):
        with SessionFile.open(path(store, layout)) as file:
            table = file.table
            known = table.meta.get("paths")
            if table.layout != _layout(layout, network) or table.meta.get("maker") != maker:
                return False
            if not isinstance(known, list) or not {p for p in known if isinstance(p, str)} & set(paths):
                return False
            rows = Rows(np.empty((table.length, table.layout.ranks[0]), np.float32))
            file.restore(rows)
        return _put(network, table, rows.values)
    return False


def _put(network, table, values):
    keys, wide, counts = (table.arrays.get(name) for name in ("keys", "wide", "rows"))
    if any(a is None for a in (keys, wide, counts)) or keys.ndim != 2 or not len(keys) == len(wide) == len(counts):
        return False
    if (
        not np.isfinite(values).all()
        or wide.ndim != 1
        or counts.ndim != 1
        or (counts < 1).any()
        or counts.sum() != len(values)
    ):
        return False
    hidden, at = network.config.vision.out_hidden_size, 0
    for key, width, count in zip(keys, wide.tolist(), counts.tolist(), strict=True):
        parts = np.split(values[at : at + count], range(hidden, values.shape[1], hidden), axis=1)
        merged, *deep = (network.ops.array(np.ascontiguousarray(part)) for part in parts)
        network.seen.put((key.tobytes(), width), network.ops, merged, deep)
        at += count
    return True


def remove(store, layout):
    """Removes what was kept: the prefill has gone on."""
    path(store, layout).unlink(missing_ok=True)
