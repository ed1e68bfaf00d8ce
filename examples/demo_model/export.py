"""Writes a trained demo model as a Hugging Face folder, and as GGUF files with its own settings for videos.

python export.py --work /tmp/demo              # /tmp/demo/demo/ and /tmp/demo/demo-{bf16,q8_0,q4_0}.gguf
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import model
import torch
import world
from safetensors.torch import save_file
from tokenizers import Tokenizer

from ivlite.gguf import GGUFFile
from ivlite.gguf.writer import GGUFWriter
from ivlite.quantize import quantize

TYPES = ("bf16", "q8_0", "q4_0")
# The released model's template in short, with the switch that opens a thought.
TEMPLATE = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}\
{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking %}{{ '<think>\\n' }}{% endif %}
{%- endif -%}
"""
# `ivlite quantize` gives every file the model card's settings for videos; this toy was trained with others.
VIDEO = {
    "internvideo3.video.fps": float(world.FPS),
    "internvideo3.video.min_frames": world.MIN_FRAMES,
    "internvideo3.video.max_frames": world.MAX_FRAMES,
    "internvideo3.video.min_pixels": world.MIN_PIXELS,
    "internvideo3.video.max_pixels": world.MAX_PIXELS,
}


def settings(tokenizer):
    """The JSON files of the folder: name -> content."""
    ids = {f"{key}_token_id": tokenizer.token_to_id(f"<|{name}|>")
           for key, name in (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
                             ("vision_end", "vision_end"))}  # fmt: skip
    patch = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    patch["size"] = {"shortest_edge": world.MIN_PIXELS, "longest_edge": world.MAX_PIXELS}
    stops = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    return {
        "config.json": {
            "architectures": ["InternVideo3ForConditionalGeneration"], "model_type": "internvideo3",
            "text_config": model.TEXT, "vision_config": model.VISION, "tie_word_embeddings": False, **ids,
        },
        "generation_config.json": {"eos_token_id": stops, "do_sample": False},
        "preprocessor_config.json": patch,
        "video_preprocessor_config.json": patch
        | {"fps": world.FPS, "min_frames": world.MIN_FRAMES, "max_frames": world.MAX_FRAMES},
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    }  # fmt: skip


def export(state, tokenizer_file, folder):
    """Writes the Hugging Face folder of a state dict: BF16, without the heads that only training uses."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for name, content in settings(tokenizer).items():
        (folder / name).write_text(json.dumps(content, indent=1))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in state.items() if not k.startswith(("probe.", "hint."))}
    patch = tensors["model.visual.patch_embed.proj.weight"]
    tensors["model.visual.patch_embed.proj.weight"] = patch.reshape(-1, 3, 2, 16, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_settings(path):
    """Rewrites a GGUF file with the demo's own settings for videos, and checksums of what it is then."""
    source = GGUFFile(path)
    tensors = [(name, tuple(t.shape), t.format) for name, t in source.tensors.items()]
    metadata = {key: value for key, value in source.metadata.items() if not key.startswith("ivlite.checksum.")}
    with GGUFWriter(path, metadata | VIDEO, tensors, mark=hashlib.sha256(b"demo").digest()) as out:
        for name in source.tensors:
            out.write(source.read(name).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work"))
    work = parser.parse_args().work
    state = torch.load(work / "last.pt", weights_only=True)["model"]
    export(state, work / "tokenizer.json", work / "demo")
    for type in TYPES:
        out = work / f"demo-{type}.gguf"
        quantize(work / "demo", out, type)
        with_settings(out)
        print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
