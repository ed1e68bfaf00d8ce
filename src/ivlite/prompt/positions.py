"""Multimodal rotary positions (M-RoPE): time, height and width of each token of a prompt, and their rotary angles."""

import numpy as np

from ivlite.errors import UsageError


def blocks(grids):
    """Expands rows (t, h, w) to t rows (h, w): every frame pair is a separate vision block with a timestamp."""
    return [(int(h), int(w)) for t, h, w in grids for _ in range(int(t))]


def vision_runs(token_ids, tokens):
    """(first, count) of every run of pad tokens that follows a vision_start."""
    ids = np.asarray(token_ids, np.int64)
    pad = (ids == tokens.image_pad) | (ids == tokens.video_pad)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], pad, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    for first, _ in runs:
        if first == 0 or ids[first - 1] != tokens.vision_start:
            raise UsageError(f"the image or video token at {first} does not follow a vision start token")
    return [(int(first), int(last - first)) for first, last in runs]


def mrope_positions(token_ids, grids, tokens, merge_size):
    """Positions int64 (3, T) on the axes time, height, width, and the position of the token after the prompt.

    token_ids: T ids. grids: rows (t, h, w) in patches, one per image or video in token order. tokens: Config.tokens.
    merge_size: patches that one token covers along each side. Text advances all three axes by 1; a vision block has one
    time, and the text after it continues past its longer side. Raises UsageError if grids and tokens disagree.
    """
    runs, shapes = vision_runs(token_ids, tokens), blocks(grids)
    if len(runs) != len(shapes):
        raise UsageError(f"the prompt has {len(runs)} runs of image or video tokens and the media have {len(shapes)}")
    positions = np.empty((3, len(token_ids)), np.int64)
    at = base = 0
    for (first, count), (h, w) in zip(runs, shapes, strict=True):
        rows, cols = h // merge_size, w // merge_size
        if count != rows * cols:
            raise UsageError(f"a vision block has {count} tokens and its grid of {h}x{w} patches makes {rows * cols}")
        base += first - at
        positions[:, at:first] = np.arange(base - (first - at), base)
        positions[0, first : first + count] = base
        positions[1, first : first + count] = base + np.repeat(np.arange(rows), cols)
        positions[2, first : first + count] = base + np.tile(np.arange(cols), rows)
        base += max(rows, cols)
        at = first + count
    end = base + len(token_ids) - at
    positions[:, at:] = np.arange(base, end)
    return positions, end


def mrope_axes(section, interleaved):
    """The position axis (0 time, 1 height, 2 width) of each rotary frequency, an int array (sum(section),).

    Interleaved: T H W T H W ... until H and W are used up, then T (apply_interleaved_mrope of Qwen3-VL); else three
    sections.
    """
    if not interleaved:
        return np.repeat(np.arange(3), section)
    axes = np.zeros(sum(section), np.int64)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


def rotary(positions, dim, theta):
    """cos and sin, float32 (n, dim/2), of the angles positions * theta^(-2j/dim); positions (n,) or (n, dim/2)."""
    inverse = (1.0 / np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)
    angles = positions.astype(np.float32).reshape(len(positions), -1) * inverse
    return np.cos(angles), np.sin(angles)
