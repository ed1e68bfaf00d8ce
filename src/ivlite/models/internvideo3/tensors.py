"""The tensors of an InternVideo3 checkpoint: names, shapes, and what they may be stored as."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint: its Hugging Face name, its GGUF name, and its shape as a matrix or vector.

    kind: "matrix" may be quantized, "float_matrix" keeps a float format, "vector" is always float32.
    """

    hf: str
    gguf: str
    shape: tuple[int, ...]
    kind: str = "matrix"
    optional: bool = False


def _pair(hf, gguf, rows, cols, bias=True, kind="matrix"):
    """A linear layer's weight and bias."""
    yield TensorSpec(f"{hf}.weight", f"{gguf}.weight", (rows, cols), kind)
    if bias:
        yield TensorSpec(f"{hf}.bias", f"{gguf}.bias", (rows,), "vector")


def _norm(hf, gguf, n, bias=False):
    yield TensorSpec(f"{hf}.weight", f"{gguf}.weight", (n,), "vector")
    if bias:
        yield TensorSpec(f"{hf}.bias", f"{gguf}.bias", (n,), "vector")


def _text_layer(text, i):
    hf, gg = f"model.language_model.layers.{i}", f"blk.{i}"
    width, heads, rank = text.hidden_size, text.num_heads, text.kv_lora_rank[i]
    yield from _norm(f"{hf}.input_layernorm", f"{gg}.attn_norm", width)
    yield from _norm(f"{hf}.post_attention_layernorm", f"{gg}.ffn_norm", width)
    attn, bias = f"{hf}.self_attn", text.attention_bias
    query = heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
    yield from _pair(f"{attn}.q_proj", f"{gg}.attn_q", query, width, bias)
    latent = rank + text.qk_rope_head_dim
    yield from _pair(f"{attn}.kv_a_proj_with_mqa", f"{gg}.attn_kv_a", latent, width, bias)
    if text.latent_norm:
        yield from _norm(f"{attn}.kv_a_layernorm", f"{gg}.attn_kv_a_norm", rank)
    expanded = heads * (text.qk_nope_head_dim + text.v_head_dim)
    yield from _pair(f"{attn}.kv_b_proj", f"{gg}.attn_kv_b", expanded, rank, bias=False)
    yield from _pair(f"{attn}.o_proj", f"{gg}.attn_output", width, heads * text.v_head_dim, bias=False)
    for part, rows, cols in (
        ("gate", text.intermediate_size, width),
        ("up", text.intermediate_size, width),
        ("down", width, text.intermediate_size),
    ):
        yield from _pair(f"{hf}.mlp.{part}_proj", f"{gg}.ffn_{part}", rows, cols, bias=False)


def _vision_block(vision, i):
    hf, gg = f"model.visual.blocks.{i}", f"v.blk.{i}"
    width, inner = vision.hidden_size, vision.intermediate_size
    yield from _norm(f"{hf}.norm1", f"{gg}.ln1", width, bias=True)
    yield from _norm(f"{hf}.norm2", f"{gg}.ln2", width, bias=True)
    yield from _pair(f"{hf}.attn.qkv", f"{gg}.attn_qkv", 3 * width, width)
    yield from _pair(f"{hf}.attn.proj", f"{gg}.attn_out", width, width)
    yield from _pair(f"{hf}.mlp.linear_fc1", f"{gg}.ffn_up", inner, width)
    yield from _pair(f"{hf}.mlp.linear_fc2", f"{gg}.ffn_down", width, inner)


def _merger(vision, hf, gg, norm):
    inner = vision.hidden_size * vision.spatial_merge_size**2
    yield from _norm(f"{hf}.norm", f"{gg}.norm", norm, bias=True)
    yield from _pair(f"{hf}.linear_fc1", f"{gg}.fc1", inner, inner)
    yield from _pair(f"{hf}.linear_fc2", f"{gg}.fc2", vision.out_hidden_size, inner)


def _vision(vision):
    width = vision.hidden_size
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    yield from _pair("model.visual.patch_embed.proj", "v.patch_embd", width, patch, kind="float_matrix")
    yield TensorSpec("model.visual.pos_embed.weight", "v.position_embd.weight",
                     (vision.num_position_embeddings, width), "float_matrix")  # fmt: skip
    for i in range(vision.depth):
        yield from _vision_block(vision, i)
    yield from _merger(vision, "model.visual.merger", "v.merger", width)
    merged = width * vision.spatial_merge_size**2
    for k in range(len(vision.deepstack_indexes)):
        yield from _merger(vision, f"model.visual.deepstack_merger_list.{k}", f"v.deepstack.{k}", merged)


def tensor_names(config):
    """A list of TensorSpec: every tensor of a checkpoint of this configuration."""
    text = config.text
    table = (text.vocab_size, text.hidden_size)
    specs = [TensorSpec("model.language_model.embed_tokens.weight", "token_embd.weight", table)]
    for i in range(text.num_layers):
        specs += _text_layer(text, i)
    specs += _norm("model.language_model.norm", "output_norm", text.hidden_size)
    if not text.tie_word_embeddings:
        specs.append(TensorSpec("lm_head.weight", "output.weight", table))
    return specs + list(_vision(config.vision))
