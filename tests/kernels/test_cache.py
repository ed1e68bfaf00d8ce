import numpy as np
import pytest

from ivlite import _C

KINDS = ("f32", "bf16", "q8")


def half(x):
    return x.astype(np.float16).astype(np.float32)


def stored(kind, latent, rope):
    """What each kind of cache gives back."""
    if kind == "f32":
        return latent, rope
    if kind == "bf16":
        return half(latent), half(rope)
    top = np.abs(latent).max(1, keepdims=True)
    inverse = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    return np.rint(latent * inverse) * (top / np.float32(127)), half(rope)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank, rope", [(1, 2), (7, 4), (16, 8), (33, 18), (96, 32), (896, 128)])
def test_rows_come_back_as_stored(isa, rng, kind, rank, rope):
    latent = rng.standard_normal((9, rank + 4), dtype=np.float32)[:, :rank]
    keys = rng.standard_normal((9, rope + 4), dtype=np.float32)[:, :rope]
    latent[4] = 0
    cache = _C.LatentCache([rank, rank], rope, 20, kind)
    for rows in (slice(0, 6), slice(6, 9)):
        for layer in (0, 1):
            cache.append(layer, latent[rows] * (layer + 1), keys[rows])
        cache.advance(rows.stop - rows.start)
    assert cache.length == 9
    for layer in (0, 1):
        got = cache.read(layer, 0, 9)
        expected = stored(kind, latent * (layer + 1), keys)
        assert np.allclose(got[0], expected[0], rtol=1e-6, atol=0) and np.array_equal(got[1], expected[1])
        assert np.array_equal(cache.read(layer, 5, 7)[0], got[0][5:7])


def test_layers_may_have_ranks_of_their_own(isa):
    cache = _C.LatentCache([3, 40], 2, 4, "q8")
    for layer, rank in enumerate((3, 40)):
        cache.append(layer, np.ones((2, rank), np.float32), np.ones((2, 2), np.float32))
    cache.advance(2)
    assert cache.read(1, 0, 2)[0].shape == (2, 40)
    assert cache.nbytes == 4 * (3 + 4 + 4 + 40 + 4 + 4)


def test_truncate_forgets_the_newest(isa):
    cache = _C.LatentCache([4], 2, 8, "f32")

    def add(value, n):
        cache.append(0, np.full((n, 4), value, np.float32), np.full((n, 2), value, np.float32))
        cache.advance(n)

    add(1, 5)
    cache.truncate(3)
    add(2, 2)
    assert cache.length == 5 and cache.read(0, 0, 5)[0][:, 0].tolist() == [1, 1, 1, 2, 2]


def test_misuse_is_refused():
    cache = _C.LatentCache([4], 2, 3, "f32")
    two = np.zeros((2, 4), np.float32), np.zeros((2, 2), np.float32)
    cache.append(0, *two)
    with pytest.raises(ValueError, match="advance"):
        cache.advance(1)
    cache.advance(2)
    for call, word in (
        (lambda: cache.append(0, *two), "full"),
        (lambda: cache.append(1, *two), "layer"),
        (lambda: cache.append(0, two[1], two[1]), "latent"),
        (lambda: cache.truncate(3), "length"),
        (lambda: cache.read(0, 1, 4), "rows"),
        (lambda: _C.LatentCache([4], 2, 3, "q3"), "q3"),
        (lambda: _C.LatentCache([], 2, 3, "q8"), "layers"),
        (lambda: _C.LatentCache([4], 2, 2**40, "q8"), "large"),
    ):
        with pytest.raises(ValueError, match=word):
            call()
