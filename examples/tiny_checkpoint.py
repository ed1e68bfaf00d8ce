"""Writes a toy InternVideo3 checkpoint with random weights, and a short clip: it runs, and what it says is noise.

    python examples/tiny_checkpoint.py toy        # toy/config.json, model.safetensors, tokenizer.json, ..., clip.mp4

The layout is that of a released checkpoint, the sizes are about a thirtieth. Use it to try the tools without weights.
"""

import argparse
import json
import struct
from pathlib import Path

import numpy as np

SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
    <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()
PLAIN = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
    <tool_response> </tool_response> <think> </think>""".split()
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

TEXT = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 288,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "kv_lora_rank": 64,
    "q_lora_rank": None,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "qk_latent_layernorm": False,
    "rope_interleave": True,
    "attention_bias": True,
    "hidden_act": "silu",
    "rope_theta": 5000000.0,
    "rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
}
VISION = {
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 160,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": TEXT["hidden_size"],
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
}


def byte_characters():
    """The printable stand-in of each byte in a byte-level tokenizer: itself where it prints, else from U+0100 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in prints]
    return [chr(b) for b in prints] + [chr(0x100 + i) for i in range(len(rest))]


def tokenizer():
    """tokenizer.json of a byte-level tokenizer that merges nothing, and the ids of its added tokens."""
    vocab = {c: i for i, c in enumerate(byte_characters())}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": len(vocab) + i, "content": name, "special": name in SPECIAL, **flags}
        for i, name in enumerate(SPECIAL + PLAIN)
    ]
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "vocab": vocab,
        "merges": [],
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    return data, {token["content"]: token["id"] for token in added}


def shapes():
    """Every tensor of the checkpoint: name -> shape."""
    d, f, heads = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["num_attention_heads"]
    rank, rope, nope, v = (TEXT[k] for k in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    out = {
        "lm_head.weight": (TEXT["vocab_size"], d),
        "model.language_model.embed_tokens.weight": (TEXT["vocab_size"], d),
    }
    for i in range(TEXT["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (d,),
            "post_attention_layernorm.weight": (d,),
            "self_attn.q_proj.weight": (heads * (nope + rope), d),
            "self_attn.q_proj.bias": (heads * (nope + rope),),
            "self_attn.kv_a_proj_with_mqa.weight": (rank + rope, d),
            "self_attn.kv_a_proj_with_mqa.bias": (rank + rope,),
            "self_attn.kv_b_proj.weight": (heads * (nope + v), rank),
            "self_attn.o_proj.weight": (d, heads * v),
            "mlp.gate_proj.weight": (f, d),
            "mlp.up_proj.weight": (f, d),
            "mlp.down_proj.weight": (d, f),
        }
        out |= {f"model.language_model.layers.{i}.{name}": shape for name, shape in layer.items()}
    out["model.language_model.norm.weight"] = (d,)
    return out | {f"model.visual.{name}": shape for name, shape in vision_shapes().items()}


def vision_shapes():
    w, inner, out = VISION["hidden_size"], VISION["intermediate_size"], VISION["out_hidden_size"]
    merged = w * VISION["spatial_merge_size"] ** 2
    patch = (
        VISION["in_channels"],
        VISION["temporal_patch_size"],
        VISION["patch_size"],
        VISION["patch_size"],
    )
    result = {"pos_embed.weight": (VISION["num_position_embeddings"], w)}

    def both(name, rows, *columns):
        result.update({f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)})

    both("patch_embed.proj", w, *patch)
    for i in range(VISION["depth"]):
        both(f"blocks.{i}.norm1", w)
        both(f"blocks.{i}.norm2", w)
        both(f"blocks.{i}.attn.qkv", 3 * w, w)
        both(f"blocks.{i}.attn.proj", w, w)
        both(f"blocks.{i}.mlp.linear_fc1", inner, w)
        both(f"blocks.{i}.mlp.linear_fc2", w, inner)
    mergers = ["merger"] + [f"deepstack_merger_list.{k}" for k in range(len(VISION["deepstack_visual_indexes"]))]
    for name in mergers:
        both(f"{name}.norm", w if name == "merger" else merged)
        both(f"{name}.linear_fc1", merged, merged)
        both(f"{name}.linear_fc2", out, merged)
    return result


def random_tensor(rng, name, shape):
    """Weights that keep activations near one in size, as bfloat16 bits (uint16)."""
    if len(shape) > 1:
        x = rng.standard_normal(shape) * 1.2 / np.sqrt(np.prod(shape[1:]))
    else:
        x = rng.standard_normal(shape) * 0.05 + ("norm" in name and name.endswith("weight"))
    bits = x.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_safetensors(path, seed):
    rng = np.random.default_rng(seed)
    tensors = {name: random_tensor(rng, name, shape) for name, shape in shapes().items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(x.shape),
            "data_offsets": [offset, offset + x.nbytes],
        }
        offset += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            file.write(x.tobytes())


def write_checkpoint(folder, seed=0):
    """Writes the checkpoint's files into `folder`, which is made where it is missing."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokens, ids = tokenizer()
    patch = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    files = {
        "config.json": {
            "architectures": ["InternVideo3ForConditionalGeneration"],
            "model_type": "internvideo3",
            "text_config": TEXT,
            "vision_config": VISION,
            "tie_word_embeddings": False,
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        },
        "generation_config.json": {
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
        },
        "preprocessor_config.json": patch | {"size": {"shortest_edge": 4096, "longest_edge": 16777216}},
        "video_preprocessor_config.json": patch
        | {
            "size": {"shortest_edge": 4096, "longest_edge": 25165824},
            "fps": 2,
            "min_frames": 4,
            "max_frames": 768,
        },
        "tokenizer.json": tokens,
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))
    write_safetensors(folder / "model.safetensors", seed)


def write_clip(path, seconds=6, rate=10):
    """A red square that crosses a gradient, 320 x 240."""
    import av  # installed with ivlite; the checkpoint alone needs numpy only

    y, x = np.mgrid[0:240, 0:320]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for t in range(seconds * rate):
            frame = np.stack([x // 2, y // 2, np.full_like(x, 60)], -1).astype(np.uint8)
            frame[100:140, 4 * t : 4 * t + 40] = (230, 40, 40)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_checkpoint(args.folder, args.seed)
    write_clip(args.folder / "clip.mp4")
    print(f"{args.folder}: a toy checkpoint (random weights, it prints noise) and clip.mp4")
