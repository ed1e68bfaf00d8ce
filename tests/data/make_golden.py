"""Writes the golden checkpoints of this folder and what transformers computes on them. Run by hand, not by the tests.

    python tests/data/make_golden.py tests/data      (torch, transformers 5, tokenizers, safetensors, av, pillow)

The vision tower, DeepStack, positions and MLP are those of transformers' Qwen3-VL; its text attention is replaced by
M2LA written from the formulas of the paper. Weights are rounded to bfloat16, the arithmetic is float32. Each
OUT/golden_NAME holds hf/ (a checkpoint), cases.json (conversations), and per case an npz of token_ids, positions,
grid_thw, vision, deepstack, rows (which tokens the logits belong to), logits and 12 greedy tokens.
"""

import argparse
import json
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig

CONTROL = "endoftext im_start im_end vision_start vision_end vision_pad image_pad video_pad".split()
KEPT = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TRAINING = [
    "system user assistant tool seconds", "Describe the picture, then the video, please.",
    "A green triangle falls at 3.5 seconds. Two circles follow; one stops.", "What comes first, and how many are there?",
] * 3  # fmt: skip

NAMES = {
    "plain": dict(
        seed=3, hidden=96, layers=3, heads=3, ranks=[64, 64, 64], rope=32, nope=24, v=40, ffn=160, section=[6, 5, 5],
        interleave=True, norm=False, bias=True, tied=False,
        vision=dict(depth=4, hidden_size=64, num_heads=2, intermediate_size=144, num_position_embeddings=36,
                    deepstack_visual_indexes=[0, 2, 3]),
    ),
    "variant": dict(
        seed=4, hidden=64, layers=4, heads=2, ranks=[48, 64, 32, 48], rope=16, nope=32, v=16, ffn=96, section=[4, 2, 2],
        interleave=False, norm=True, bias=False, tied=True,
        vision=dict(depth=3, hidden_size=48, num_heads=4, intermediate_size=96, num_position_embeddings=49,
                    deepstack_visual_indexes=[1, 2]),
    ),
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self, v, layer):
        super().__init__()
        h, d, r = v["heads"], v["hidden"], v["ranks"][layer]
        self.v, self.rank = v, r
        self.q_proj = nn.Linear(d, h * (v["nope"] + v["rope"]), bias=v["bias"])
        self.kv_a_proj_with_mqa = nn.Linear(d, r + v["rope"], bias=v["bias"])
        if v["norm"]:
            self.kv_a_layernorm = qwen.Qwen3VLTextRMSNorm(r, eps=1e-6)
        self.kv_b_proj = nn.Linear(r, h * (v["nope"] + v["v"]), bias=False)
        self.o_proj = nn.Linear(h * v["v"], d, bias=False)

    def rotate(self, x, cos, sin):
        half = x.shape[-1] // 2
        a, b = (x[..., ::2], x[..., 1::2]) if self.v["interleave"] else (x[..., :half], x[..., half:])
        c, s = cos[..., :half], sin[..., :half]
        return torch.cat([a * c - b * s, a * s + b * c], -1)

    def forward(self, hidden_states, position_embeddings, **_):
        x, (cos, sin), v = hidden_states[0], [p[0] for p in position_embeddings], self.v
        n = len(x)
        q = self.q_proj(x).view(n, v["heads"], -1)
        c, k = self.kv_a_proj_with_mqa(x).split([self.rank, v["rope"]], -1)
        c = self.kv_a_layernorm(c) if v["norm"] else c
        kv = self.kv_b_proj(c).view(n, v["heads"], -1)
        qr = self.rotate(q[..., v["nope"] :], cos[:, None], sin[:, None])
        score = torch.einsum("thd,shd->hts", q[..., : v["nope"]], kv[..., : v["nope"]])
        score = (score + torch.einsum("thd,sd->hts", qr, self.rotate(k, cos, sin))) / (v["nope"] + v["rope"]) ** 0.5
        p = score.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
        return self.o_proj(torch.einsum("hts,shd->thd", p, kv[..., v["nope"] :]).reshape(1, n, -1)), None


def tokenizer():
    t = Tokenizer(models.BPE())
    t.normalizer, t.decoder = normalizers.NFC(), decoders.ByteLevel()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False))
    t.add_special_tokens([AddedToken(f"<|{s}|>", normalized=False, special=True) for s in CONTROL])
    t.add_tokens([AddedToken(s, normalized=False, special=False) for s in KEPT])
    return t


def build(v, ids, vocab):
    torch.manual_seed(v["seed"])
    rope = dict(rope_type="default", rope_theta=5e6, mrope_section=v["section"], mrope_interleaved=True)
    text = dict(
        hidden_size=v["hidden"], intermediate_size=v["ffn"], num_hidden_layers=v["layers"], head_dim=v["rope"],
        num_attention_heads=v["heads"], num_key_value_heads=v["heads"], vocab_size=vocab, rms_norm_eps=1e-6,
        max_position_embeddings=4096, rope_parameters=rope,
    )  # fmt: skip
    vision = dict(v["vision"], patch_size=16, temporal_patch_size=2, spatial_merge_size=2, out_hidden_size=v["hidden"])
    cfg = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=v["tied"], **ids)
    cfg._attn_implementation = "eager"
    model = qwen.Qwen3VLForConditionalGeneration(cfg).float().eval()
    for i, layer in enumerate(model.model.language_model.layers):
        layer.self_attn = Attention(v, i)
    if v["tied"]:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    g = torch.Generator().manual_seed(v["seed"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            scale = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1
            base = 1 if "norm" in name and name.endswith("weight") and p.ndim == 1 else 0
            p.copy_((base + noise * scale).bfloat16().float())
    return model, text, vision


def write_checkpoint(folder, v, model, text, vision, ids, tok):
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: t.bfloat16().contiguous() for k, t in model.state_dict().items() if not (v["tied"] and "lm_head" in k)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tok.save(str(folder / "tokenizer.json"))
    rope = text.pop("rope_parameters")
    text.update(
        q_lora_rank=None, qk_rope_head_dim=v["rope"], qk_nope_head_dim=v["nope"], v_head_dim=v["v"],
        qk_latent_layernorm=v["norm"], rope_interleave=v["interleave"], attention_bias=v["bias"],
        rope_theta=rope.pop("rope_theta"), rope_scaling=rope,
    )  # fmt: skip
    text.update(dict(kv_lora_rank=v["ranks"][0]) if len(set(v["ranks"])) == 1 else dict(kv_lora_rank_list=v["ranks"]))
    config = dict(architectures=["InternVideo3ForConditionalGeneration"], model_type="internvideo3", text_config=text,
                  vision_config=dict(vision, in_channels=3), tie_word_embeddings=v["tied"], **ids)  # fmt: skip
    stops = [tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")]
    size = dict(patch_size=16, temporal_patch_size=2, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    files = {
        "config.json": config,
        "generation_config.json": dict(eos_token_id=stops, do_sample=True, temperature=0.7, top_p=0.8, top_k=20),
        "preprocessor_config.json": dict(size, size=dict(shortest_edge=1024, longest_edge=1 << 20)),
        "video_preprocessor_config.json": dict(size, size=dict(shortest_edge=1024, longest_edge=1 << 22), fps=2,
                                               min_frames=3, max_frames=64),
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1))


def media(folder):
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:64, 0:96]
    Image.fromarray(np.stack([x * 2, y * 3, (x ^ y) & 255], -1).astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(np.stack([255 - x * 2, x + y, y * 2], -1).astype(np.uint8)[:32]).save(folder / "b.png")
    with av.open(str(folder / "clip.mkv"), "w") as out:
        s = out.add_stream("ffv1", rate=5)
        s.width, s.height, s.pix_fmt = 64, 96, "bgr0"
        for t in range(13):
            f = np.stack([x.T + 10 * t, y.T * 2, np.full_like(x.T, 15 * t)], -1).astype(np.uint8)
            f[5 * t : 5 * t + 20, 2 * t : 2 * t + 20] = (240, 200, 30)
            out.mux(s.encode(av.VideoFrame.from_ndarray(f, format="rgb24")))
        out.mux(s.encode())


def part(kind, value, **more):
    return {"type": kind, kind: value, **more}


EXACT = dict(min_pixels=1024, max_pixels=1 << 20)  # the media keep their size, so that resizing is not in question
CASES = {
    "text": [{"role": "user", "content": "What comes first?"}],
    "turns": [
        {"role": "system", "content": "Two words, please."},
        {"role": "user", "content": [part("image", "a.png"), part("text", "Describe")]},
        {"role": "assistant", "content": "A picture."},
        {"role": "user", "content": [part("text", "and "), part("image", "b.png"), part("image", "a.png")]},
    ],
    "odd": [{"role": "user", "content": [part("video", "clip.mkv", fps=2, **EXACT), part("text", "How many?")]}],
    "mixed": [
        {"role": "user", "content": [part("image", "b.png"), part("video", "clip.mkv", fps=5, **EXACT)]},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Why?"},
    ],
}


def frames_of(item, folder):
    """Frames (F, H, W, 3) and, for a video, their source indices."""
    if item["type"] == "image":
        return np.stack([np.asarray(Image.open(folder / item["image"]).convert("RGB"))] * 2), None
    with av.open(str(folder / item["video"])) as c:
        every = np.stack([f.to_ndarray(format="rgb24") for f in c.decode(video=0)])
    n = min(max(int(len(every) / 5 * item["fps"]), 3), 64, len(every))
    index = np.linspace(0, len(every) - 1, n).round().astype(int)
    index = np.append(index, index[-1:]) if len(index) % 2 else index
    return every[index], index


def patches_of(frames):
    f, h, w, _ = frames.shape
    x = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    x = x.reshape(f // 2, 2, 3, h // 32, 2, 16, w // 32, 2, 16).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(-1, 1536), (f // 2, h // 16, w // 16)


def render(messages, folder):
    """The prompt text, and patches and grid of every medium."""
    text, media = "", []
    for m in messages:
        text += f"<|im_start|>{m['role']}\n"
        for p in [part("text", m["content"])] if isinstance(m["content"], str) else m["content"]:
            if p["type"] == "text":
                text += p["text"]
                continue
            frames, index = frames_of(p, folder)
            patches, grid = patches_of(frames)
            media.append((p["type"], patches, grid))
            pad = f"<|{p['type']}_pad|>"
            pads = f"<|vision_start|>{pad * (grid[1] * grid[2] // 4)}<|vision_end|>"
            if index is None:
                text += pads
            else:
                marks = [(a / 5 + b / 5) / 2 for a, b in index.reshape(-1, 2)]
                text += "".join(f"<{t:.1f} seconds>{pads}" for t in marks)
        text += "<|im_end|>\n"
    return text + "<|im_start|>assistant\n", media


@torch.no_grad()
def run_case(model, tok, messages, folder, ids):
    text, media = render(messages, folder)
    seq = torch.tensor([tok.encode(text).ids])
    extra = {}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [m for m in media if m[0] == kind]
        if chosen:
            extra[pixels], extra[grid] = torch.cat([m[1] for m in chosen]), torch.tensor([m[2] for m in chosen])

    def kinds(s):
        return (s == ids["image_token_id"]).int() + 2 * (s == ids["video_token_id"]).int()

    def logits_of(s):
        more = dict(extra, mm_token_type_ids=kinds(s)) if media else {}
        return model(input_ids=s, use_cache=False, **more).logits[0]

    n = seq.shape[1]
    positions, vision, deep = torch.arange(n).expand(3, -1), torch.zeros(0), torch.zeros(0)
    if media:
        grids = [extra.get(k) for k in ("image_grid_thw", "video_grid_thw")]
        positions = model.model.get_rope_index(seq, kinds(seq), *grids)[0][:, 0]
        out = model.model.visual(torch.cat([m[1] for m in media]), grid_thw=torch.tensor([m[2] for m in media]))
        vision, deep = out.pooler_output, torch.stack(list(out.deepstack_features))
    logits, greedy, longer = logits_of(seq), [], seq
    for _ in range(12):
        greedy.append(int(logits_of(longer)[-1].argmax()))
        longer = torch.cat([longer, torch.tensor([greedy[-1:]])], 1)
    rows = np.unique(np.r_[np.arange(0, n, 5), n - 1])
    return dict(token_ids=seq[0], positions=positions, grid_thw=np.array([m[2] for m in media]), vision=vision,
                deepstack=deep, rows=rows, logits=logits[rows], greedy=np.array(greedy))  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    media(out / "golden_media")
    (out / "golden_media" / "cases.json").write_text(json.dumps(CASES, indent=1))
    for name, v in NAMES.items():
        tok = tokenizer()
        ids = {f"{k}_token_id": tok.token_to_id(f"<|{k if 'vision' in k else k + '_pad'}|>")
               for k in ("image", "video", "vision_start", "vision_end")}  # fmt: skip
        model, text, vision = build(v, ids, -(-tok.get_vocab_size() // 32) * 32)
        folder = out / f"golden_{name}"
        write_checkpoint(folder / "hf", v, model, text, vision, ids, tok)
        for case, messages in CASES.items():
            result = run_case(model, tok, messages, out / "golden_media", ids)
            np.savez_compressed(folder / f"{case}.npz", **{k: np.asarray(a) for k, a in result.items()})
            print(f"{name} {case}: {len(result['token_ids'])} tokens, greedy {result['greedy'][:6]}")


if __name__ == "__main__":
    main()
