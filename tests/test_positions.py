"""Positions against what transformers computed, and against their definition."""

from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.errors import UsageError
from ivlite.prompt.positions import mrope_positions

TOKENS = SimpleNamespace(image_pad=1, video_pad=2, vision_start=3, vision_end=4)


def ids_of(*items):
    """Token ids: a number is so many text tokens, a tuple (pad, t, h, w) is a medium of that grid in merged tokens."""
    ids = []
    for item in items:
        if isinstance(item, int):
            ids += [9] * item
        else:
            pad, t, h, w = item
            for _ in range(t):
                ids += [9] * (pad == 2) + [3] + [pad] * (h * w) + [4]
    return ids


def plain(ids, grids):
    """The definition, token by token."""
    shapes = [(h // 2, w // 2) for t, h, w in grids for _ in range(t)]
    out, base, i = [], 0, 0
    while i < len(ids):
        if ids[i] in (1, 2):
            h, w = shapes.pop(0)
            out += [(base, base + r, base + c) for r in range(h) for c in range(w)]
            base, i = base + max(h, w), i + h * w
        else:
            out.append((base,) * 3)
            base, i = base + 1, i + 1
    return np.array(out, np.int64).reshape(-1, 3).T, base


@pytest.mark.parametrize("items", [
    (), (1,), (7,), ((1, 1, 2, 3),), (5, (1, 1, 4, 2), 3), ((2, 3, 2, 2),), (2, (2, 1, 1, 5), (1, 1, 5, 1), 4),
    (3, (1, 1, 3, 3), (1, 1, 2, 2), 2, (2, 4, 3, 5), 1),
])  # fmt: skip
def test_positions_are_as_defined(items):
    ids = ids_of(*items)
    grids = [(t, 2 * h, 2 * w) for _, t, h, w in (i for i in items if isinstance(i, tuple))]
    positions, following = mrope_positions(ids, grids, TOKENS, 2)
    expected, end = plain(ids, grids)
    assert positions.dtype == np.int64 and positions.shape == (3, len(ids)) and following == end
    assert np.array_equal(positions, expected)


def test_text_resumes_after_the_longer_side():
    positions, following = mrope_positions(ids_of(1, (1, 1, 2, 3), 1), [(1, 4, 6)], TOKENS, 2)
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6], [0, 1, 2, 2, 2, 3, 3, 3, 5, 6], [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    ]  # fmt: skip
    assert following == 7


@pytest.mark.parametrize("ids, grids, words", [
    (ids_of((1, 1, 2, 2)), [], "1 runs"), (ids_of(3), [(1, 2, 2)], "0 runs"),
    (ids_of((1, 1, 2, 2)), [(1, 4, 6)], "4 tokens"), (ids_of((2, 2, 2, 2)), [(1, 4, 4)], "2 runs"),
    ([9, 1, 1, 4], [(1, 2, 4)], "vision start"), ([1], [(1, 2, 2)], "vision start"),
])  # fmt: skip
def test_tokens_and_grids_that_disagree_are_refused(ids, grids, words):
    with pytest.raises(UsageError, match=words):
        mrope_positions(ids, grids, TOKENS, 2)
