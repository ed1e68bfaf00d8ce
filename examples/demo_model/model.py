"""InternVideo3 at toy size in torch, for training: the tensors have the names of a released checkpoint.

Shapes: B sequences of T tokens; P frame pairs of one grid h x w of patches; every 2 x 2 patches make one token.
"""

import math

import torch
from packed import Blocks, attended
from torch import nn
from torch.nn import functional as F

TEXT = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 32, "vocab_size": 1344, "rms_norm_eps": 1e-6, "max_position_embeddings": 8192,
    "kv_lora_rank": 128, "q_lora_rank": None, "qk_rope_head_dim": 32, "qk_nope_head_dim": 16, "v_head_dim": 32,
    "qk_latent_layernorm": False, "rope_interleave": True, "attention_bias": True, "hidden_act": "silu",
    "rope_theta": 1000.0,
    "rope_scaling": {"rope_type": "default", "mrope_section": [8, 4, 4], "mrope_interleaved": True},
}  # fmt: skip
VISION = {
    "depth": 4, "hidden_size": 128, "num_heads": 4, "intermediate_size": 512, "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2], "patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2,
    "out_hidden_size": 256, "hidden_act": "gelu_pytorch_tanh", "in_channels": 3,
}  # fmt: skip

PROBED = [7, 5, 6]  # classes of colour, shape and motion, 0 being nothing
HINTS = [
    11,
    10,
    10,
    2,
    4,
    4,
]  # classes of tens (10: none), ones and tenths of the time mark, of being the first, and of corners of boxes
HINTED = 3


def mrope_axes():
    """Which axis (0 time, 1 height, 2 width) turns each rotary frequency, an index tensor (rope / 2,)."""
    section = TEXT["rope_scaling"]["mrope_section"]
    axes = torch.zeros(sum(section), dtype=torch.long)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


def angles(positions, dim, theta):
    """(..., dim / 2) angles of positions (..., dim / 2) or (..., 1)."""
    return positions.float() * theta ** (-torch.arange(0, dim, 2, device=positions.device).float() / dim)


class RMSNorm(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, TEXT["rms_norm_eps"])


class Attention(nn.Module):
    """M2LA: keys and values of all heads come from one latent (B, T, rank), beside one rotated key (B, T, rope)."""

    def __init__(self):
        super().__init__()
        t = TEXT
        self.heads, self.nope, self.rope, self.v = (
            t[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        )
        width, self.rank = t["hidden_size"], t["kv_lora_rank"]
        self.q_proj = nn.Linear(width, self.heads * (self.nope + self.rope))
        self.kv_a_proj_with_mqa = nn.Linear(width, self.rank + self.rope)
        self.kv_b_proj = nn.Linear(self.rank, self.heads * (self.nope + self.v), bias=False)
        self.o_proj = nn.Linear(self.heads * self.v, width, bias=False)

    @staticmethod
    def rotate(x, cos, sin):
        """Interleaved pairs in, halves out; x (B, heads, T, rope), cos and sin (B, 1, T, rope / 2)."""
        a, b = x[..., ::2], x[..., 1::2]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def memory(self, x, cos, sin):
        """Keys (B, heads, T, nope + rope) and values (B, heads, T, v)."""
        b, n, _ = x.shape
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([self.rank, self.rope], -1)
        kv = self.kv_b_proj(latent).view(b, n, self.heads, -1).transpose(1, 2)
        k_nope, v = kv.split([self.nope, self.v], -1)
        k_rope = self.rotate(k_rope[:, None], cos, sin).expand(-1, self.heads, -1, -1)
        return torch.cat([k_nope, k_rope], -1), v

    def forward(self, x, cos, sin, mask, before=None):
        """before: keys and values of what every sequence of the batch goes on from, each (1, heads, P, ...)."""
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.heads, -1).transpose(1, 2)
        q_nope, q_rope = q.split([self.nope, self.rope], -1)
        q = torch.cat([q_nope, self.rotate(q_rope, cos, sin)], -1)
        k, v = self.memory(x, cos, sin)
        if before is not None:
            k, v = (
                torch.cat([past.to(y.dtype).expand(b, -1, -1, -1), y], 2)
                for past, y in zip(before, (k, v), strict=True)
            )
        v = F.pad(v, (0, self.nope + self.rope - self.v))  # the fused kernels want values as wide as keys
        if x.device.type == "cpu":  # its fused float32 kernel is the faster one
            q, k, v = q.float(), k.float(), v.float()
        if isinstance(mask, Blocks):
            out = attended(q, k, v, mask)
        else:
            with torch.autocast(x.device.type, enabled=False):
                out = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask, is_causal=mask is None)
        out = out[..., : self.v]
        return self.o_proj(out.transpose(1, 2).reshape(b, n, -1))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        width, inner = TEXT["hidden_size"], TEXT["intermediate_size"]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(TEXT["hidden_size"]), RMSNorm(TEXT["hidden_size"])
        self.self_attn, self.mlp = Attention(), MLP()

    def forward(self, x, cos, sin, mask, before=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, before)
        return x + self.mlp(self.post_attention_layernorm(x))

    plain = forward  # where `forward` is compiled, it takes no other shapes than those of the batches


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(TEXT["vocab_size"], TEXT["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(TEXT["num_hidden_layers"]))
        self.norm = RMSNorm(TEXT["hidden_size"])


# ------------------------------------------------------------------------------------------------ vision


class VisionAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(VISION["hidden_size"], 3 * VISION["hidden_size"])
        self.proj = nn.Linear(VISION["hidden_size"], VISION["hidden_size"])

    def forward(self, x, cos, sin):
        """x (P, patches, width); cos, sin (patches, head / 2): attention within a pair."""
        p, n, width = x.shape
        q, k, v = self.qkv(x).view(p, n, 3, VISION["num_heads"], -1).permute(2, 0, 3, 1, 4)

        def rotate(y):
            a, b = y.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        out = F.scaled_dot_product_attention(rotate(q), rotate(k), v)
        return self.proj(out.transpose(1, 2).reshape(p, n, width))


class VisionMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear_fc1 = nn.Linear(VISION["hidden_size"], VISION["intermediate_size"])
        self.linear_fc2 = nn.Linear(VISION["intermediate_size"], VISION["hidden_size"])

    def forward(self, x):
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(VISION["hidden_size"], eps=1e-6)
        self.norm2 = nn.LayerNorm(VISION["hidden_size"], eps=1e-6)
        self.attn, self.mlp = VisionAttention(), VisionMLP()

    def forward(self, x, cos, sin):
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """(P, patches, width) -> (P * patches / 4, hidden)."""

    def __init__(self, after):
        super().__init__()
        self.after, self.inner = after, 4 * VISION["hidden_size"]
        self.norm = nn.LayerNorm(self.inner if after else VISION["hidden_size"], eps=1e-6)
        self.linear_fc1 = nn.Linear(self.inner, self.inner)
        self.linear_fc2 = nn.Linear(self.inner, VISION["out_hidden_size"])

    def forward(self, x):
        x = self.norm(x.reshape(-1, self.inner) if self.after else x).reshape(-1, self.inner)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


def interpolation(h, w):
    """(h * w, positions) weights that sample the square table bilinearly, rows in merge-block order."""
    side = math.isqrt(VISION["num_position_embeddings"])

    def line(n):
        at = torch.linspace(0, side - 1, n)
        return (1 - (at[:, None] - torch.arange(side)).abs()).clamp(min=0)

    full = torch.einsum("ha,wb->hwab", line(h), line(w)).reshape(h * w, side * side)
    return full[block_order(h, w)]


def block_order(h, w):
    """Index (h * w,) of each patch in the order 2 x 2 block by block."""
    return torch.arange(h * w).view(h // 2, 2, w // 2, 2).transpose(1, 2).reshape(-1)


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(1536, VISION["hidden_size"])


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = Patches()
        self.pos_embed = nn.Embedding(VISION["num_position_embeddings"], VISION["hidden_size"])
        self.blocks = nn.ModuleList(Block() for _ in range(VISION["depth"]))
        self.merger = Merger(False)
        self.deepstack_merger_list = nn.ModuleList(Merger(True) for _ in VISION["deepstack_visual_indexes"])

    def forward(self, patches, h, w):
        """patches (P, h * w, 1536) in block order -> merged (tokens, hidden), list of DeepStack (tokens, hidden)."""
        x = self.patch_embed.proj(patches) + interpolation(h, w).to(patches.device) @ self.pos_embed.weight
        order, half = block_order(h, w), VISION["hidden_size"] // VISION["num_heads"] // 2
        turned = [angles(i[:, None], half, 10000.0) for i in (order // w, order % w)]
        turned = torch.cat(turned, -1)
        cos, sin = turned.cos().to(x), turned.sin().to(x)
        deep = []
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin)
            if i in VISION["deepstack_visual_indexes"]:
                deep.append(self.deepstack_merger_list[len(deep)](x))
        return self.merger(x), deep


def patchified(frames):
    """Float (2P, H, W, 3) in 0..255 -> patches (P, h * w, 1536) in block order, and h, w."""
    f, height, width, _ = frames.shape
    h, w = height // 16, width // 16
    x = (frames.float() / 127.5 - 1).view(f // 2, 2, h // 2, 2, 16, w // 2, 2, 16, 3)
    return x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(f // 2, h * w, 1536), h, w


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.language_model = Vision(), LanguageModel()


class InternVideo3(nn.Module):
    """The whole model, with heads beside it that only training uses, both over vision tokens.

    probe: colour, shape and motion, of what the tower gives. hint: the digits of the time mark, whether this is where the
    shape appears, and the corner of a box around it, after HINTED text layers: without it, answers about time come very late.
    """

    def __init__(self):
        super().__init__()
        self.model = Inner()
        self.lm_head = nn.Linear(TEXT["hidden_size"], TEXT["vocab_size"], bias=False)
        self.probe = nn.Linear(VISION["out_hidden_size"], sum(PROBED))
        self.hint = nn.Linear(TEXT["hidden_size"], sum(HINTS))
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02 if "embed" in name and p.shape[1] != 1536 else p.shape[1] ** -0.5)
                if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")):
                    p.data *= 0.3
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def named(self, merged, deep):
        """The probe's (tokens, 18) of what the tower gives: colour, shape, motion."""
        return self.probe(merged + sum(deep))

    def seen(self, frames):
        """What the tower gives for frames of several sizes: (tokens, hidden), and a list of such for DeepStack."""
        looks = [self.model.visual(*patchified(part)) for part in frames]
        none = self.lm_head.weight.new_zeros(0, TEXT["hidden_size"])
        deep = (
            zip(*(look[1] for look in looks), strict=True) if looks else [[]] * len(VISION["deepstack_visual_indexes"])
        )
        return torch.cat([none, *(look[0] for look in looks)]), [torch.cat([none, *parts]) for parts in deep]

    def turned(self, positions):
        """Cosines and sines (B, 1, T, rope / 2) of positions (3, B, T)."""
        axes = mrope_axes().to(positions.device)
        turned = angles(positions[axes].permute(1, 2, 0), TEXT["qk_rope_head_dim"], TEXT["rope_theta"])
        return turned.cos()[:, None], turned.sin()[:, None]

    @torch.no_grad()
    def recalled(self, ids):
        """Keys and values of each layer after ids (P,), plain text, for sequences that go on from it: nothing learns there."""
        text = self.model.language_model
        x = text.embed_tokens(ids[None])
        cos, sin = self.turned(torch.arange(len(ids), device=ids.device).expand(3, 1, -1))
        out = []
        for layer in text.layers:
            out.append(layer.self_attn.memory(layer.input_layernorm(x), cos, sin))
            x = Layer.plain(layer, x, cos, sin, None)
        return out

    def forward(self, ids, positions, mask, frames, at, rows, before=None):
        """Logits (rows, vocab) of flat token indexes `rows`, the probe's (tokens, 18) and the hint's (tokens, 41).

        ids (B, T); positions (3, B, T); mask: `Blocks`, bool (B, 1, T, P + T), or None (causal); frames: tensors (2P, H, W, 3), one per size; at:
        flat indexes of the vision tokens, size by size. before: what `recalled` gave for the P tokens before every sequence.
        """
        text = self.model.language_model
        x = text.embed_tokens(ids)
        shape = x.shape
        merged, deep = self.seen(frames)
        x = x.reshape(-1, shape[-1]).index_copy(0, at, merged.to(x.dtype)).view(shape)
        cos, sin = self.turned(positions)
        for i, layer in enumerate(text.layers):
            x = layer(x, cos, sin, mask, before and before[i])
            if i < len(deep):
                x = x.reshape(-1, shape[-1]).index_add(0, at, deep[i].to(x.dtype)).view(shape)
            if i + 1 == HINTED:
                hint = self.hint(x.reshape(-1, shape[-1])[at])
        return self.lm_head(text.norm(x.reshape(-1, shape[-1])[rows])), self.named(merged, deep), hint
