"""Bytes of memory that the process takes while a prompt goes through a network, beside weights and cache."""

from ivlite.engine.runner import CHUNK, DEEP
from ivlite.engine.vision import PATCHES, SEEN

PART = 512  # tokens whose queries are made together, and that go through an MLP together


def feature_bytes(config):
    """Bytes of the features of one vision token."""
    return 4 * config.vision.out_hidden_size * (1 + len(config.vision.deepstack_indexes))


def kept(config, seen):
    """Bytes of the features that a network keeps of `seen` vision tokens."""
    return min(SEEN, seen * feature_bytes(config))


def activations(config, tokens, seen=0):
    """Bytes of the activations of a prompt's longest chunk: of the vision tower, of layers that take DeepStack features, or of
    the others. seen: vision tokens of the prompt.
    """
    text, vision, merged = config.text, config.vision, config.vision.spatial_merge_size**2
    rows = max(min(tokens, CHUNK), min(tokens - DEEP, 2 * CHUNK))
    part = min(rows, CHUNK)
    states, tower = 4 * text.hidden_size, 4 * (8 * vision.hidden_size + vision.intermediate_size)
    batch = min(seen, PATCHES // merged)  # tokens of the frame pairs that are encoded together
    held = rows * states + batch * feature_bytes(config)
    deep = min(seen, part) * states * len(vision.deepstack_indexes)
    return held + max(deep + batch * merged * tower, deep + layer(text, part), layer(text, rows))


def layer(text, rows):
    """Bytes that a layer takes beside its input: queries, output, latents, and what is made part by part."""
    queries = text.num_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
    each = queries + text.num_heads * text.v_head_dim + max(text.kv_lora_rank) + text.qk_rope_head_dim
    return 4 * (rows * each + min(rows, PART) * (text.hidden_size + 2 * queries))
