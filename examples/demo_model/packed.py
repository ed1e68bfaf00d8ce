"""Attention over packed rows on a CPU: only those blocks of scores are computed that the mask leaves, a fifth to two thirds of all."""

import math

import numpy as np
import torch

forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
FIRST, DRAWN, LAST = 48, 96, 80  # of a Sample


def mask(segment, prefix=0):
    """Bool (B, 1, T, prefix + T): what `Blocks` says, for other kernels; padding sees what is padding or shared."""
    b, n = segment.shape
    before = torch.ones(n, n, dtype=torch.bool, device=segment.device).tril()
    seen = ((segment[:, :, None] == segment[:, None]) | (segment[:, None] == 0)) & before
    return torch.cat([seen.new_ones(b, n, prefix), seen], 2)[:, None]


class Blocks:
    """Which keys the queries of packed rows see, as blocks: (row, queries, keys, whether causal, weight), a row's keys after `prefix` others.

    segment: int array (B, T): 0 is what all of a row go on from and comes first, 1, 2, ... what sees that and itself, -1 is padding, which
    sees nothing: attention there is zero. sampled: the first of the prefix that are drawn from more keys, each of which counts for `weight`:
    its exponential times that, so that the sums over all of them are met on average.
    """

    def __init__(self, segment, prefix=0, sampled=0, weight=1.0):
        self.prefix, self.rows = prefix, []
        for row, numbers in enumerate(segment):
            borders = [0, *((numbers[1:] != numbers[:-1]).nonzero()[0] + 1).tolist(), len(numbers)]
            spans = [(a, b) for a, b in zip(borders, borders[1:], strict=False) if numbers[a] >= 0]
            shared = spans[0][1] if numbers[0] == 0 else 0
            end = spans[-1][1] if spans else 0
            self.rows += [(row, slice(a, b), slice(prefix + a, prefix + b), True, 1.0) for a, b in spans]
            parts = [
                (0, end, 0, sampled, weight),
                (0, shared, sampled, prefix, 1.0),
                (shared, end, sampled, prefix + shared, 1.0),
            ]
            self.rows += [(row, slice(a, b), slice(c, d), False, w) for a, b, c, d, w in parts if a < b and c < d]


class Sample:
    """Some of the tokens that every row goes on from, in their stead: its first and last ones, and `DRAWN` of those between.

    keys: their indexes, drawn ones first. drawn: how many these are. weight: for how many each of them stands.
    """

    def __init__(self, rng, count):
        between = np.arange(FIRST, count - LAST)
        self.drawn, self.weight = DRAWN, len(between) / DRAWN
        self.keys = np.concatenate(
            [rng.choice(between, DRAWN, replace=False), np.arange(FIRST), np.arange(count - LAST, count)]
        )

    def blocks(self, segment):
        return Blocks(segment, len(self.keys), self.drawn, self.weight)


class Attended(torch.autograd.Function):
    """Softmax attention by blocks: each block's own, weighted by its share of the sum of exponentials.

    q (B, heads, T, d), k and v (B, heads, prefix + T, d), float32. The gradient of a block follows from the whole sum and output, as in
    "FlashAttention" (arXiv 2205.14135), section 3.
    """

    @staticmethod
    def forward(ctx, q, k, v, blocks):
        out, total = torch.zeros_like(q), q.new_full(q.shape[:3], -torch.inf)
        for row, queries, keys, causal, weight in blocks.rows:
            one, own = forward(q[row, None, :, queries], k[row, None, :, keys], v[row, None, :, keys], 0.0, causal)
            own = own.view_as(total[row, None, :, queries]) + math.log(weight)
            new = torch.logaddexp(total[row, None, :, queries], own)
            kept = (total[row, None, :, queries] - new).exp()[..., None]
            out[row, None, :, queries] = out[row, None, :, queries] * kept + one * (own - new).exp()[..., None]
            total[row, None, :, queries] = new
        ctx.blocks = blocks
        ctx.save_for_backward(q, k, v, out, total)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, total = ctx.saved_tensors
        gradients = tuple(torch.zeros_like(x) for x in (q, k, v))
        for row, queries, keys, causal, weight in ctx.blocks.rows:
            at = ((row, slice(None), queries), (row, slice(None), keys), (row, slice(None), keys))
            parts = backward(grad[at[0]][None], q[at[0]][None], k[at[1]][None], v[at[2]][None], out[at[0]][None],
                             total[at[0]][None] - math.log(weight), 0.0, causal)  # fmt: skip
            for gradient, where, part in zip(gradients, at, parts, strict=True):
                gradient[where] += part[0]
        return *gradients, None


@torch.compiler.disable
def attended(q, k, v, blocks):
    return Attended.apply(q, k, v, blocks)
