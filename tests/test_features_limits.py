"""Batches of the vision tower and the features that are kept: counts, bytes, and what is encoded again."""

from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.engine import vision
from ivlite.engine.meter import Meter
from ivlite.engine.vision import Seen
from ivlite.errors import ModelFileError
from ivlite.session import features

OPS = SimpleNamespace(numpy=np.asarray, array=np.asarray, concat=lambda parts, axis: np.concatenate(parts, axis))


def rows(count, value=0.0, hidden=8):
    return np.full((count, hidden), value, np.float32)


def test_features_are_kept_up_to_a_number_of_bytes():
    kept = Seen(most=5 * 4 * 2 * 8 * 3)  # five pairs of two rows, with two DeepStack layers
    for n in range(5):
        kept.put(n, OPS, rows(2, n), [rows(2, n), rows(2, n)])
    assert kept.nbytes == kept.most and [key for key, _ in kept.items()] == [0, 1, 2, 3, 4]
    merged, deep = kept.get(0)
    assert merged.shape == (2, 8) and len(deep) == 2 and kept.get(9) is None
    kept.put(5, OPS, rows(2), [rows(2), rows(2)])
    assert [key for key, _ in kept.items()] == [2, 3, 4, 0, 5] and kept.nbytes == kept.most
    kept.put(5, OPS, rows(2), [rows(2), rows(2)])
    assert kept.nbytes == kept.most and len(kept.items()) == 5
    kept.put(6, OPS, rows(4), [rows(4), rows(4)])
    assert [key for key, _ in kept.items()] == [4, 0, 5, 6]
    kept.put(7, OPS, rows(11), [rows(11), rows(11)])  # more than is kept at all
    assert kept.get(7) is None and len(kept.items()) == 4
    kept.put(8, OPS, rows(10), [rows(10), rows(10)])
    assert [key for key, _ in kept.items()] == [8] and kept.nbytes == kept.most
    kept.put(9, OPS, rows(1), [])
    assert [key for key, _ in kept.items()] == [9] and kept.nbytes == 4 * 8
    assert Seen().most == 128 << 20


def test_what_is_kept_is_a_copy():
    kept, given = Seen(), rows(2, 1.0)
    kept.put(1, OPS, given, [given])
    given[:] = 7
    merged, (deep,) = kept.get(1)
    assert merged[0, 0] == deep[0, 0] == 1


class Medium:
    def __init__(self, levels, grid=(4, 8), kind="video"):
        self.levels, self.kind, self.grid, self.began = levels, kind, (len(levels), *grid), []

    def pairs(self, first=0):
        self.began.append(first)
        for level in self.levels[first:]:
            yield np.full((2, 4, 4, 3), level, np.uint8)


class Tower:
    """A tower whose features say the level of their pair; calls: the levels of each batch."""

    def __init__(self, seen=None, broken=False):
        settings = SimpleNamespace(mean=(0.5,), std=(0.25,))
        self.ops, self.calls, self.seen, self.broken = OPS, [], seen, broken
        self.config = SimpleNamespace(
            video=settings,
            image=SimpleNamespace(mean=(0.1,), std=(0.2,)),
            vision=SimpleNamespace(deepstack_indexes=(0, 1), out_hidden_size=8),
        )

    def vision(self, batch, mean, std):
        self.calls.append(([int(pair[0, 0, 0, 0]) for pair in batch], mean, std))
        merged = np.concatenate([rows(8, float(pair[0, 0, 0, 0])) for pair in batch])
        return np.full_like(merged, np.nan) if self.broken else merged, [merged + 100, merged + 200]


@pytest.mark.parametrize(
    "grid, sizes", [((4, 8), [64, 6]), ((32, 32), [2] * 35), ((32, 33), [1] * 70), ((64, 64), [1] * 70), ((1, 2), [70])]
)
def test_pairs_of_a_batch(grid, sizes):
    """2048 patches together, and a pair that has more is a batch of its own."""
    medium, told = Medium(range(70), grid), []
    meter = Meter(lambda *args: told.append(args))
    got = list(vision._batches(vision.wanted_media([medium]), meter))
    patches = grid[0] * grid[1]
    assert [wide for _, _, wide in got] == [min(256, n * patches) for n in sizes]
    assert [len(pairs) for _, pairs, _ in got] == sizes and told == [("decode", 2 * n, 140) for n in range(1, 71)]
    part, told[:] = list(vision._batches(vision.wanted_media([medium, Medium([1], kind="image")], [65, 0]), meter)), []
    assert sum(len(pairs) for _, pairs, _ in part) == 6 and medium.began == [0, 65]
    assert [wide for _, _, wide in part] == [wide for _, _, wide in got][-len(part) + 1 :] + [
        32
    ]  # those of whole batches
    assert vision.wanted_media([medium, medium, medium], [69, 70, 0]) == [
        (medium, 69),
        (medium, 0),
    ] and vision.wanted_media([medium]) == [(medium, 0)]


def test_progress_counts_frames_and_pairs():
    told = []
    media = [Medium([1, 2, 3]), Medium([9], kind="image")]
    made = list(vision.encoded(Tower(), media, Meter(lambda *args: told.append(args)), [1, 0]))
    assert [args for args in told if args[0] == "decode"] == [("decode", n, 5) for n in (2, 4, 5)]
    assert [args for args in told if args[0] == "vision"] == [("vision", 2, 3), ("vision", 3, 3)] and len(made) == 2


def test_pairs_that_were_seen_are_not_encoded_again():
    tower = Tower(Seen())
    medium = Medium([5, 6, 5, 5, 7])

    def features(levels, first=0):
        (made,) = vision.encoded(tower, [Medium(levels)], Meter(), [first])
        merged, deep = made
        assert len(deep) == 2 and (deep[0] == merged + 100).all() and (deep[1] == merged + 200).all()
        return merged[::8, 0].tolist()

    assert features(medium.levels) == [5, 6, 5, 5, 7] and tower.calls.pop() == (
        [5, 6, 7, 5, 5],
        (0.5,),
        (0.25,),
    )  # as wide as the whole batch: 160 patches
    assert features([7, 5, 5, 6, 6]) == [7, 5, 5, 6, 6] and not tower.calls
    assert features([7, 5, 8, 6, 6]) == [7, 5, 8, 6, 6] and tower.calls.pop()[0] == [8, 8, 8, 8, 8]
    assert features([5]) == [5] and tower.calls.pop()[0] == [5]  # one alone computes otherwise
    many = [n % 3 for n in range(12)]
    assert features(many) == many and tower.calls.pop()[0] == [
        0,
        1,
        2,
        0,
        0,
        0,
        0,
        0,
    ]  # from 256 patches on, always the same
    assert features([1, 2] * 10) == [1, 2] * 10 and not tower.calls
    assert features([1, 2, 3], 2) == [3]
    plain = Tower()
    (made,) = vision.encoded(plain, [Medium([5, 5])], Meter())
    assert plain.calls == [([5, 5], (0.5,), (0.25,))] and len(made[0]) == 16
    list(vision.encoded(plain, [Medium([5], kind="image")], Meter()))
    assert plain.calls[-1] == ([5], (0.1,), (0.2,))


def test_features_that_are_not_finite():
    with pytest.raises(ModelFileError, match="not finite"):
        list(vision.encoded(Tower(broken=True), [Medium([1])], Meter()))


def test_features_in_pieces_and_together():
    made = vision.Features(Tower(), [Medium([1, 2]), Medium([3])], Meter())
    sizes = []
    for most in (5, 100, 3, 100):
        merged, deep = made.take(most)
        sizes.append(len(merged))
        assert [len(d) for d in deep] == [len(merged)] * 2
    assert sizes == [5, 11, 3, 5]
    ((merged, deep),) = vision.together(Tower(), [Medium([1, 2]), Medium([3])], Meter())
    assert merged[::8, 0].tolist() == [1, 2, 3] and deep.shape == (2, 24, 8) and deep[1, -1, 0] == 203
    ((merged, deep),) = vision.together(Tower(), [], Meter())
    assert merged.shape == (0, 8) and deep.shape == (2, 0, 8)


# ------------------------------------------------------------------------------------------------ in the store


def test_features_as_rows_of_a_file():
    kept = [(rows(n, float(i)), [rows(n, i + 100.0)]) for i, n in enumerate((3, 1, 4))]
    pairs = features.Pairs(kept, np.asarray)
    assert pairs.counts.tolist() == [3, 1, 4] and pairs.ends.tolist() == [3, 4, 8]
    whole = np.concatenate([np.concatenate([m, d[0]], 1) for m, d in kept])
    for first in range(8):
        for last in range(first + 1, 9):
            assert pairs.dump(first, last).tobytes() == whole[first:last].tobytes(), (first, last)
    back = features.Rows(np.zeros((8, 16), np.float32))
    assert back.token_bytes == 64
    back.restore(0, pairs.dump(0, 5))
    assert back.length == 5
    back.restore(5, pairs.dump(5, 8))
    assert (back.values == whole).all() and back.length == 8
    back.truncate(2)
    assert back.length == 2


@pytest.mark.parametrize("change, put", [
    ({}, True), ({"keys": None}, False), ({"wide": None}, False), ({"rows": None}, False), ({"keys": np.zeros(3, np.uint8)}, False), ({"keys": np.zeros((2, 16), np.uint8)}, False),
    ({"wide": np.zeros((3, 1), np.int64)}, False), ({"rows": np.array([[3], [1], [4]])}, False), ({"rows": np.array([3, 1, 3])}, False), ({"rows": np.array([4, 0, 4])}, False), ({"wide": np.zeros(2, np.int64)}, False),
])  # fmt: skip
def test_what_a_file_must_say_of_features(change, put):
    arrays = {
        "keys": np.arange(48, dtype=np.uint8).reshape(3, 16),
        "wide": np.array([256, 32, 32]),
        "rows": np.array([3, 1, 4]),
    } | change
    table = SimpleNamespace(arrays={k: v for k, v in arrays.items() if v is not None})
    network, values = Tower(Seen()), np.arange(8 * 24, dtype=np.float32).reshape(8, 24)
    assert features._put(network, table, values) == put and len(network.seen.items()) == 3 * put
    if put:
        merged, (one, two) = network.seen.get((bytes(range(16, 32)), 32))
        assert (
            merged.tolist() == values[3:4, :8].tolist()
            and one.tolist() == values[3:4, 8:16].tolist()
            and two.tolist() == values[3:4, 16:].tolist()
        )
        values[7, 23] = np.inf
        assert not features._put(Tower(Seen()), table, values)
