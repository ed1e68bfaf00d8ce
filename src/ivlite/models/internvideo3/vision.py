"""The vision tower of InternVideo3: frame pairs to merged features and DeepStack features."""

import math

import numpy as np

from ivlite.ops.modules import Mlp
from ivlite.prompt.positions import rotary
from ivlite.stop import checkpoint

# ------------------------------------------------------------------------------------------------ positions


def interpolated_positions(table, h, w, merge):
    """Resamples the (side, side) table of position embeddings bilinearly to an h x w grid, with align_corners.

    table float32 (side * side, width) -> float32 (h * w, width), rows in merge-block order.
    """
    side = math.isqrt(len(table))

    def corners(n):
        at = _linspace32(side - 1, n)
        low = at.astype(np.int64)
        return low, np.minimum(low + 1, side - 1), (at - low.astype(np.float32))[:, None]

    top, bottom, dh = corners(h)
    left, right, dw = corners(w)
    grid = table.reshape(side, side, -1)
    dh = dh[:, None]
    one = np.float32(1)
    out = grid[top][:, left] * ((one - dh) * (one - dw)) + grid[top][:, right] * ((one - dh) * dw)
    out += grid[bottom][:, left] * (dh * (one - dw))
    out += grid[bottom][:, right] * (dh * dw)
    return block_order(out, merge)


def _linspace32(end, n):
    """torch.linspace(0, end, n) in float32: like torch, counts up from 0 in the first half, down from the end in the second."""
    if n == 1:
        return np.zeros(1, np.float32)
    step = np.float32(end) / np.float32(n - 1)
    i = np.arange(n)
    up = step * i.astype(np.float32)
    down = np.float32(end) - step * (n - 1 - i).astype(np.float32)
    return np.where(i < n // 2, up, down).astype(np.float32)


def block_order(grid, merge):
    """(h, w, ...) reordered to rows (h/merge, w/merge, merge, merge): the order of the patches."""
    h, w = grid.shape[:2]
    rest = grid.shape[2:]
    blocks = grid.reshape(h // merge, merge, w // merge, merge, *rest).swapaxes(1, 2)
    return np.ascontiguousarray(blocks).reshape(h * w, *rest)


# ------------------------------------------------------------------------------------------------ the tower


class Merger:
    """LayerNorm, concatenation of 2x2 neighbours, Linear, erf GELU, Linear: patches (N, width) -> (N/4, hidden)."""

    def __init__(self, load, vision, name, norm_after_merge):
        self.ops, self.eps, self.after = load.ops, vision.layer_norm_eps, norm_after_merge
        self.width = vision.hidden_size * vision.spatial_merge_size**2
        self.norm = load.norm(f"{name}.norm")
        fc1 = load.linear(f"{name}.fc1", self.width, self.width)
        self.mlp = Mlp(fc1, "gelu_erf", load.linear(f"{name}.fc2", vision.out_hidden_size, self.width))

    def __call__(self, x):
        x = x.reshape(-1, self.width) if self.after else x
        x = self.ops.layer_norm(x, *self.norm, self.eps).reshape(-1, self.width)
        return self.mlp(x)


class VisionBlock:
    """Attention within one frame pair and a tanh-GELU MLP, both pre-norm."""

    def __init__(self, load, vision, i):
        self.ops, self.vision = load.ops, vision
        name, width, inner = f"v.blk.{i}", vision.hidden_size, vision.intermediate_size
        self.ln1, self.ln2 = load.norm(f"{name}.ln1"), load.norm(f"{name}.ln2")
        self.qkv = load.linear(f"{name}.attn_qkv", 3 * width, width)
        self.exact = load.exact(f"{name}.attn_qkv.weight")
        self.out = load.linear(f"{name}.attn_out", width, width)
        up = load.linear(f"{name}.ffn_up", inner, width)
        self.mlp = Mlp(up, "gelu_tanh", load.linear(f"{name}.ffn_down", width, inner))

    def __call__(self, x, cos, sin, segment):
        ops, heads, eps = self.ops, self.vision.num_heads, self.vision.layer_norm_eps
        qkv = self.qkv(ops.layer_norm(x, *self.ln1, eps)).reshape(len(x), 3, heads, -1)
        q, k = (ops.rope(qkv[:, i], cos, sin, False) for i in (0, 1))
        h = ops.attention(q, k, qkv[:, 2], qkv.shape[-1] ** -0.5, segment, self.exact)
        x = self.out(h.reshape(len(x), -1), into=x)
        return self.mlp(ops.layer_norm(x, *self.ln2, eps), into=x)


def _nth_merger(load, vision, k):
    """The k-th merger in execution order: one per DeepStack layer, then the one after the last block."""
    if k < len(vision.deepstack_indexes):
        return Merger(load, vision, f"v.deepstack.{k}", norm_after_merge=True)
    return Merger(load, vision, "v.merger", norm_after_merge=False)


class Vision:
    """The vision tower: turns frame pairs into merged features and DeepStack features."""

    def __init__(self, load, config):
        vision = self.config = config.vision
        self.ops = load.ops
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self.patch_embed = load.linear("v.patch_embd", vision.hidden_size, patch)
        self.positions = load.floats("v.position_embd.weight")
        self.blocks = load.layers(vision.depth, lambda i: VisionBlock(load, vision, i))
        self.mergers = load.layers(len(vision.deepstack_indexes) + 1, lambda k: _nth_merger(load, vision, k))
        self._grid = None, None

    def _grid_constants(self, h, w, pairs):
        """Position embeddings and rotary cos, sin of `pairs` grids of h x w patches; caches the last result."""
        key = (h, w, pairs)
        if self._grid[0] != key:
            vision, merge = self.config, self.config.spatial_merge_size
            embedding = interpolated_positions(self.positions, h, w, merge)
            at = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), -1)
            at = block_order(at, merge)
            half = vision.hidden_size // vision.num_heads // 2
            parts = [rotary(at[:, axis], half, vision.rope_theta) for axis in (0, 1)]
            cos, sin = (np.concatenate([p[i] for p in parts], 1) for i in (0, 1))
            self._grid = key, [self.ops.array(np.tile(a, (pairs, 1))) for a in (embedding, cos, sin)]
        return self._grid[1]

    def __call__(self, pairs, mean, std):
        """Encodes frame pairs of one size, a list of uint8 (temporal, H, W, 3).

        Returns merged (n, hidden) and a list of DeepStack features (n, hidden), n = pairs * H/32 * W/32 tokens.
        """
        vision, ops = self.config, self.ops
        h, w = pairs[0].shape[1] // vision.patch_size, pairs[0].shape[2] // vision.patch_size
        patches = [ops.patchify(p, vision.patch_size, vision.spatial_merge_size, mean, std) for p in pairs]
        embedding, cos, sin = self._grid_constants(h, w, len(pairs))
        x = self.patch_embed(patches[0] if len(patches) == 1 else ops.concat(patches, axis=0))
        x += embedding
        deep, mergers = [], iter(self.mergers)
        for i, block in enumerate(self.blocks):
            checkpoint()
            x = block(x, cos, sin, h * w)
            if i in vision.deepstack_indexes:
                deep.append(next(mergers)(x))
        return next(mergers)(x), deep
