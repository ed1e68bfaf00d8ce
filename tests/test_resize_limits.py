"""Sizes after resizing, at the limits of pixels and shapes; and positions of prompts, at theirs."""

from types import SimpleNamespace

import numpy as np
import pytest

from ivlite.errors import MediaError, UsageError
from ivlite.media.resize import MAX_ASPECT, fitted
from ivlite.prompt.positions import mrope_axes, mrope_positions, vision_runs


def size(height, width, low=1024, high=1 << 20, factor=32):
    return fitted(height, width, factor, low, high, "it")


@pytest.mark.parametrize(
    "given, low, high, expected",
    [
        ((64, 96), 1024, 1 << 20, (64, 96)), ((47, 49), 1024, 1 << 20, (32, 64)), ((48, 80), 1024, 1 << 20, (64, 64)),
        ((1, 1), 1024, 1 << 20, (32, 32)), ((5, 200), 1024, 1 << 20, (32, 224)),
        ((64, 96), 6144, 6144, (64, 96)),  # exactly at both limits
        ((64, 96), 1024, 6143, (32, 64)), ((64, 96), 6145, 1 << 20, (96, 128)),
        ((1080, 1920), 1024, 131072, (256, 480)), ((4000, 40), 1024, 1024, (320, 32)),
        ((100, 100), 1 << 20, 1 << 22, (1024, 1024)), ((10, 1000), 65536, 1 << 20, (32, 2560)),
    ],
)  # fmt: skip
def test_sizes(given, low, high, expected):
    assert size(*given, low, high) == expected


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (-1, 5)])
def test_no_pixels(shape):
    with pytest.raises(MediaError, match="no pixels"):
        size(*shape)


def test_the_longest_shape():
    assert size(1, MAX_ASPECT)[1] >= 32
    for shape in ((1, MAX_ASPECT + 1), (2 * MAX_ASPECT + 1, 2)):
        with pytest.raises(MediaError, match=f"{MAX_ASPECT} times"):
            size(*shape)


# ------------------------------------------------------------------------------------------------ positions

IDS = SimpleNamespace(image_pad=1, video_pad=2, vision_start=3, vision_end=4)


def test_positions_of_text_media_and_what_follows():
    ids = [9, 3, 1, 1, 1, 1, 1, 1, 4, 9, 3, 2, 2, 4, 3, 2, 2, 4, 9]
    got, following = mrope_positions(ids, [(1, 4, 6), (2, 2, 4)], IDS, 2)
    assert got[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8, 8, 10, 11, 12, 12, 14, 15] and following == 16
    assert got[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 8, 10, 11, 12, 12, 14, 15]
    assert got[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    got, following = mrope_positions([9, 9], [], IDS, 2)
    assert got.tolist() == [[0, 1]] * 3 and following == 2
    got, following = mrope_positions([3, 2, 2], [(1, 2, 4)], IDS, 2)
    assert got.tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 2]] and following == 3


def test_runs_of_vision_tokens():
    assert vision_runs([3, 1, 1, 4, 3, 2], IDS) == [(1, 2), (5, 1)] and vision_runs([], IDS) == []
    for ids in ([1, 4], [9, 1], [3, 9, 2]):
        with pytest.raises(UsageError, match="does not follow"):
            vision_runs(ids, IDS)


@pytest.mark.parametrize(
    "ids, grids", [([3, 1, 4], []), ([9], [(1, 2, 2)]), ([3, 1, 4], [(1, 2, 4)]), ([3, 2, 4], [(2, 2, 2)])]
)
def test_grids_that_do_not_fit(ids, grids):
    with pytest.raises(UsageError):
        mrope_positions(ids, grids, IDS, 2)


@pytest.mark.parametrize(
    "section, axes", [((2, 1, 1), [0, 1, 2, 0]), ((3, 1, 0), [0, 1, 0, 0]), ((2, 2, 1), [0, 1, 2, 0, 1])]
)
def test_interleaved_axes(section, axes):
    assert mrope_axes(section, True).tolist() == axes and np.bincount(mrope_axes(section, False)).tolist() == [
        n for n in section if n
    ]
