"""Attention over packed rows, as the demo model's training computes it: by blocks, as the mask over everything has it."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples/demo_model"))

import packed  # noqa: E402

ROWS = {
    "shared": [[0] * 5 + [1] * 3 + [2] * 4 + [-1] * 2],
    "nothing shared": [[1] * 4 + [2] * 10],
    "shared alone": [[0] * 13 + [-1]],
    "several rows": [[0] * 2 + [1] * 12, [1, 2, 3, 4] + [5] * 10, [0] * 14, [-1] * 14],
    "one token": [[0]],
}


@pytest.mark.parametrize("prefix", [0, 7])
@pytest.mark.parametrize("rows", ROWS)
def test_blocks_and_the_mask_agree(rows, prefix):
    segment = np.array(ROWS[rows])
    torch.manual_seed(1)
    size = len(segment), 2, segment.shape[1]
    q, k, v = (torch.randn(*size[:2], prefix * bool(i) + size[2], 16, requires_grad=True) for i in range(3))
    seen = torch.from_numpy(segment >= 0)[:, None, :, None]
    grad = torch.randn(*size, 16) * seen
    mask = packed.mask(torch.from_numpy(segment), prefix)
    found = []
    for attention in (
        lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        lambda: packed.attended(q, k, v, packed.Blocks(segment, prefix)),
    ):
        for x in (q, k, v):
            x.grad = None
        out = attention() * seen
        out.backward(grad)
        found.append([x.clone() for x in (out.detach(), q.grad, k.grad, v.grad)])
    for whole, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", ROWS)
def test_a_key_that_stands_for_several(rows):
    segment, (sampled, weight, prefix) = np.array(ROWS[rows]), (3, 2.5, 7)
    torch.manual_seed(1)
    size = len(segment), 2, segment.shape[1]
    q, k, v = (torch.randn(*size[:2], prefix * bool(i) + size[2], 16, requires_grad=True) for i in range(3))
    seen = torch.from_numpy(segment >= 0)[:, None, :, None]
    added = torch.zeros(prefix + size[2])
    added[:sampled] = np.log(weight)
    bias = added.masked_fill(~packed.mask(torch.from_numpy(segment), prefix), -torch.inf)
    found = []
    for attention in (
        lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        lambda: packed.attended(q, k, v, packed.Blocks(segment, prefix, sampled, weight)),
    ):
        out = attention() * seen
        found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for whole, blocks in zip(*found, strict=True):
        torch.testing.assert_close(blocks, whole, atol=2e-5, rtol=1e-4)


def test_a_sample_stands_for_all():
    rng, count = np.random.default_rng(3), 1000
    torch.manual_seed(1)
    q, k, v = torch.randn(1, 2, 5, 16), 0.5 * torch.randn(1, 2, count + 5, 16), torch.randn(1, 2, count + 5, 16)
    segment = np.array([[0, 0, 1, 1, 1]])
    whole, out = packed.attended(q, k, v, packed.Blocks(segment, count)), []
    for _ in range(300):
        sample = packed.Sample(rng, count)
        assert len(set(sample.keys)) == len(sample.keys) and sample.keys.max() == count - 1
        keys = np.concatenate([sample.keys, np.arange(count, count + 5)])
        out.append(packed.attended(q, k[:, :, keys], v[:, :, keys], sample.blocks(segment)))
    out = torch.stack(out)
    error = out.std(0) / len(out) ** 0.5
    assert ((out.mean(0) - whole).abs() < 5 * error + 0.02 * whole.abs().max()).all()
    assert error.max() < 0.1 * whole.abs().max()  # so that the line above says something
