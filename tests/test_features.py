"""Vision features of frame pairs are kept by their keys: the same bits, few of them, one table for all threads."""

import threading

import numpy as np
import pytest
from test_reuse import needs_demo

import ivlite


@pytest.fixture
def model():
    with ivlite.load("demo", context=2048) as model:
        yield model


def features(model, frames, **more):
    part = {"type": "video", "video": frames, "fps": 2, **more}
    return model.encode_vision(model.prepare([{"role": "user", "content": [part]}]))


@pytest.fixture
def encoded(model, monkeypatch):
    """The number of frame pairs of every batch that was encoded."""
    batches, tower = [], model.network.vision
    monkeypatch.setattr(model.network, "vision", lambda pairs, *more: batches.append(len(pairs)) or tower(pairs, *more))
    return batches


def frames_of(order, size):
    """Two equal frames for each number: equal numbers, equal pairs."""
    pictures = np.random.default_rng(5).integers(0, 256, (max(order) + 1, size, size, 3), np.uint8)
    return pictures[np.repeat(order, 2)]


# Patches of a pair: 16 and 64 (below WIDE) and 256; encoded: what must be.
@needs_demo
@pytest.mark.parametrize("size, order, expected", [
    (64, [0, 0, 0, 0], [4]),  # 64 patches: as they are, so that their arithmetic stays
    (64, [0] * 40, [16]), (64, [0, 1] * 20 + [2], [16]), (128, [0, 0, 0, 1, 1, 0], [4]), (256, [0] * 8, [1]),
    (256, [0, 1, 0, 1, 2, 0, 1, 3], [4]), (256, [0] * 20, [1]), (256, [0, 1, 2, 3], [4]),
    (256, [*range(8), *range(8)], [8]),
])  # fmt: skip
def test_features_are_the_same_bits(model, encoded, monkeypatch, size, order, expected):
    more = {"min_pixels": 1024, "max_pixels": size * size, "max_frames": 1000}
    frames = frames_of(order, size)
    seen, model.network.seen = model.network.seen, None
    plain = features(model, frames, **more)
    assert sum(encoded) == len(order)
    encoded.clear()
    model.network.seen = seen
    for again in range(2):
        merged, deep = features(model, frames, **more)
        assert np.array_equal(merged, plain[0]) and np.array_equal(deep, plain[1])
        assert encoded == expected, again  # the second time they are in the table
    assert 0 < seen.nbytes <= seen.most


@needs_demo
def test_few_features_are_kept(model, encoded):
    model.network.seen = seen = ivlite.engine.vision.Seen(1)
    features(model, frames_of([0, 1], 256), max_pixels=1 << 16)
    assert seen.nbytes == 0 and not seen._features
    seen.most = 1 << 30
    features(model, frames_of([0], 256), max_pixels=1 << 16)
    one = seen.nbytes
    seen.most = 3 * one
    features(model, frames_of([0, 1, 2, 0, 3], 256), max_pixels=1 << 16)
    assert seen.nbytes == 3 * one and len(seen._features) == 3
    encoded.clear()
    features(model, frames_of([3], 256), max_pixels=1 << 16)
    assert encoded == []


@needs_demo
def test_images_and_videos_are_encoded_apart(model, encoded):
    picture = frames_of([0], 256)[0]
    image = {"type": "image", "image": picture, "max_pixels": 1 << 16}
    features(model, frames_of([0], 256), max_pixels=1 << 16)
    for _ in range(2):
        model.encode_vision(model.prepare([{"role": "user", "content": [image]}]))
    assert encoded == [1, 1]


@needs_demo
def test_threads_share_the_table(model):
    orders = [[0, 1, 2], [2, 1, 0], [1, 3, 1], [3, 0, 2]]
    alone = [features(model, frames_of([*o, 3][:4], 256), max_pixels=1 << 16)[0] for o in orders]
    model.network.seen = ivlite.engine.vision.Seen(1 << 18)
    wrong = []

    def work(order, expected):
        for _ in range(5):
            got = features(model, frames_of([*order, 3][:4], 256), max_pixels=1 << 16)[0]
            if not np.array_equal(got, expected):
                wrong.append(order)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(orders, alone, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    seen = model.network.seen
    assert wrong == [] and seen.nbytes <= seen.most
    assert seen.nbytes == sum(4 * m.size * (1 + len(d)) for m, d in seen._features.values())


@needs_demo
def test_who_observes_sees_every_pair():
    with ivlite.load("demo", observe=lambda names, x: None) as model:
        assert model.network.seen is None
