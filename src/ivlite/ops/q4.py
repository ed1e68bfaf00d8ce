"""The cache kind q4 in numpy, to the bits of csrc/kernels/q4.h, which says what it is: for the reference backend."""

import numpy as np

PART, RUN, GROUP, KEYS = 128, 64, 16, 32  # columns rotated, packed, with one table, with one scale of keys
HALF = np.array([7, 21, 35, 50, 66, 83, 102, 127])
_UPPER = (2 * HALF * np.arange(1, 17)[:, None] + 16) // 32
TABLES = np.concatenate((-_UPPER[:, ::-1], _UPPER), 1)  # (table, level), ascending


def _blocks(n):
    """The slices of n columns that are rotated together."""
    at = 0
    while at < n:
        size = min(PART, 1 << (n - at).bit_length() - 1)
        yield slice(at, at + size)
        at += size


def rotate(x):
    """Rows of float32 times orthonormal Hadamard matrices, one per block of columns; its own inverse."""
    y = np.empty_like(x)
    for block in _blocks(x.shape[1]):
        part, n, h = x[:, block], block.stop - block.start, 1
        while h < n:
            pairs = part.reshape(len(x), n // (2 * h), 2, h)
            a, b = pairs[:, :, 0], pairs[:, :, 1]
            part, h = np.stack((a + b, a - b), 2).reshape(len(x), n), 2 * h
        y[:, block] = part * (np.float32(1) / np.sqrt(np.float32(n)))
    return y


def quantize(x, groups):
    """Rows (n, cols) to (x / scale, scale (n, groups)), scale the largest magnitude of each group of columns / 127: NaN, and
    zeros, where that is not finite."""
    top = np.abs(x.reshape(len(x), groups, x.shape[1] // groups)).max(2)
    some = (top > np.float32(1e-33)) & np.isfinite(top)
    inverse = np.where(some, np.float32(127) / np.where(some, top, 1), 0).astype(np.float32)
    with np.errstate(invalid="ignore"):
        scale = top / np.float32(127) + (top - top)
    each = np.repeat(inverse, x.shape[1] // groups, 1)
    return np.where(each > 0, x * each, 0).astype(np.float32), scale


def _padded(x, to):
    return np.pad(x, ((0, 0), (0, -x.shape[1] % to)))


def _rounded(y, real, table):
    """The levels of a table (n, groups) nearest to y (n, groups, 16), and the sums of squared errors of the real columns."""
    levels = TABLES[table].astype(np.float32)
    middles = (levels[..., 1:] + levels[..., :-1]) / 2
    codes = (y[..., None] >= middles[:, :, None]).sum(-1)
    error = np.where(real, (np.take_along_axis(levels, codes, 2) - y) ** 2, 0).astype(np.float32)
    while error.shape[2] > 1:  # in the order of the kernels
        half = error.shape[2] // 2
        error = error[..., :half] + error[..., half:]
    return codes, error[..., 0]


def store(latent):
    """float32 (n, rank) -> rows uint8 (n, row bytes), scale float32 (n, 1)."""
    n, rank = latent.shape
    with np.errstate(invalid="ignore", over="ignore"):
        y, scale = quantize(rotate(latent), 1)
    groups = -(-rank // GROUP)
    y = _padded(y, GROUP).reshape(n, groups, GROUP)
    real = (np.arange(groups * GROUP) < rank).reshape(1, groups, GROUP)
    last = np.ceil(np.abs(y).max(2) * (np.float32(16) / np.float32(127))).astype(int) - 1
    table = np.clip(last, 0, 15)
    codes, error = _rounded(y, real, table)
    finer, less = _rounded(y, real, np.maximum(table - 1, 0))
    take = (table > 0) & (less < error)
    codes = np.where(take[..., None], finer, codes).reshape(n, groups * GROUP)[:, :rank]
    return np.concatenate((_packed_runs(codes), _packed(np.where(take, table - 1, table), 1)), 1), scale


def _packed(x, half):
    """Pairs of columns that are `half` apart as bytes; x has 2 * half of them, or as many as there are at half 1."""
    if half == 1:
        x = _padded(x, 2)
        return (x[:, ::2] | x[:, 1::2] << 4).astype(np.uint8)
    x = np.pad(x, ((0, 0), (0, 2 * half - x.shape[1])))
    return (x[:, :half] | x[:, half:] << 4).astype(np.uint8)


def _packed_runs(codes):
    runs = (codes[:, at : at + RUN] for at in range(0, codes.shape[1], RUN))
    return np.concatenate([_packed(run, (run.shape[1] + 1) // 2) for run in runs], 1)


def load(rows, scale, rank):
    """What `store` returned to float32 (n, rank)."""
    codes = []
    for at in range(0, rank, RUN):
        count = min(RUN, rank - at)
        packed = rows[:, at // 2 : at // 2 + (count + 1) // 2]
        codes.append(np.concatenate((packed & 15, packed >> 4), 1)[:, :count])
    which = rows[:, (rank + 1) // 2 :]
    tables = np.stack((which & 15, which >> 4), 2).reshape(len(rows), 2 * which.shape[1])[:, : -(-rank // GROUP)]
    values = TABLES[np.repeat(tables, GROUP, 1)[:, :rank], np.concatenate(codes, 1)]
    return rotate(values.astype(np.float32) * scale)


def store_keys(keys):
    """float32 (n, rope) -> int8 (n, rope), scales float32 (n, ceil(rope / 32))."""
    padded = _padded(keys, KEYS)
    y, scale = quantize(padded, padded.shape[1] // KEYS)
    return np.rint(y)[:, : keys.shape[1]].astype(np.int8), scale


def load_keys(codes, scale):
    """What `store_keys` returned to float32 (n, rope)."""
    return codes * np.repeat(scale, KEYS, 1)[:, : codes.shape[1]]
