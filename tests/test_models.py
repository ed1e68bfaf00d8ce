"""The model's own arithmetic outside the ops: tensor lists, rotary axes, interpolated positions, patch order."""

import importlib.util

import numpy as np
import pytest

from ivlite.models import architectures, internvideo3, module
from ivlite.prompt.positions import mrope_axes, rotary


def test_the_file_name_is_the_registration():
    assert "internvideo3" in architectures()
    assert module("internvideo3") is internvideo3


def test_mrope_axes_of_the_released_model():
    axes = mrope_axes((24, 20, 20), interleaved=True)
    j = np.arange(64)
    expected = np.where((j % 3 == 1) & (j < 60), 1, np.where((j % 3 == 2) & (j < 60), 2, 0))
    assert np.array_equal(axes, expected)
    assert np.bincount(axes).tolist() == [24, 20, 20]


def test_mrope_axes_in_runs():
    assert mrope_axes((2, 1, 1), interleaved=False).tolist() == [0, 0, 1, 2]


def test_rotary_takes_one_position_per_row_or_per_frequency():
    positions = np.array([0, 1, 7])
    cos, sin = rotary(positions, 8, 10000.0)
    assert cos.dtype == np.float32 and cos.shape == (3, 4)
    assert np.allclose(cos[2], np.cos(7 * 10000.0 ** (-np.arange(4) / 4)), atol=1e-6)
    assert np.allclose(sin[2], np.sin(7 * 10000.0 ** (-np.arange(4) / 4)), atol=1e-6)
    both = rotary(np.repeat(positions[:, None], 4, 1), 8, 10000.0)
    assert np.array_equal(both[0], cos) and np.array_equal(both[1], sin)


def test_block_order_puts_neighbours_of_a_merged_token_together():
    grid = np.arange(4 * 6).reshape(4, 6)
    rows = internvideo3.vision.block_order(grid, 2)
    assert rows[:8].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    assert rows[12:16].tolist() == [12, 13, 18, 19]


def test_positions_at_the_table_s_own_size_are_the_table():
    table = np.random.default_rng(0).standard_normal((36, 5)).astype(np.float32)
    out = internvideo3.vision.interpolated_positions(table, 6, 6, 2)
    assert np.allclose(out, internvideo3.vision.block_order(table.reshape(6, 6, 5), 2), atol=1e-6)


@pytest.mark.parametrize("h, w", [(2, 2), (4, 10), (12, 6), (14, 14)])
def test_positions_are_bilinear_with_aligned_corners(h, w):
    side = 8
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    table = np.stack([y, x, y + 10 * x], -1).reshape(side * side, 3)  # linear in both, so interpolation is exact
    out = internvideo3.vision.interpolated_positions(table, h, w, 2)
    rows, cols = np.linspace(0, side - 1, h), np.linspace(0, side - 1, w)
    expected = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1)
    expected = np.concatenate([expected, expected @ np.array([[1.0], [10.0]])], -1)
    assert np.allclose(out, internvideo3.vision.block_order(expected, 2), atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="compares with torch.linspace")
@pytest.mark.parametrize("n", [1, 2, 3, 7, 22, 48, 83, 250])
def test_linspace_is_torch_s(n):
    import torch

    # Torch may fuse the product and the sum, which moves the last bit; the embeddings are continuous in it.
    assert np.allclose(internvideo3.vision._linspace32(47, n), torch.linspace(0, 47, n).numpy(), rtol=0, atol=4e-6)
