"""The weights and the tokenizer of a demo model in a GGUF file, to go on training from them."""

import numpy as np
import torch
from model import TEXT
from tokenizers import Tokenizer

from ivlite.gguf import SHIPPED, GGUFFile
from ivlite.gguf.config import Config
from ivlite.models.internvideo3 import tensor_names

UNHEARD = 0.3  # a new token's share of the logit of its first part, which stays the likelier one until it is learnt


def opened(path):
    """(state dict without the heads that only training uses, Tokenizer) of a model file in f32, bf16 or q8_0."""
    with GGUFFile(path) as source:
        specs = tensor_names(Config.from_metadata(source.metadata, path))
        state = {
            s.hf: torch.from_numpy(floats(source, s.gguf).reshape(s.shape)) for s in specs if s.gguf in source.tensors
        }
        return state, Tokenizer.from_str(source.metadata["tokenizer.huggingface.json"])


def located(name):
    """The file of a model: `demo` is the one in the package."""
    return SHIPPED.get(name, name)


def floats(source, name):
    """The weights of a tensor, float32."""
    raw, kind = np.ascontiguousarray(source.read(name)), source.tensors[name].format
    if kind == "f32":
        return raw.view(np.float32).copy()
    if kind == "bf16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if kind != "q8_0":
        raise ValueError(f"{name} is {kind}; start from a model file in q8_0 or bf16")
    blocks = raw.reshape(-1, 34)
    return (blocks[:, :2].copy().view(np.float16).astype(np.float32) * blocks[:, 2:].view(np.int8)).ravel()


def load(model, path, tokenizer):
    """Gives a model the weights of a file, for a Tokenizer that extends the file's: a new token begins as the mean of its parts."""
    state, before = opened(path)
    known = before.get_vocab_size()
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.zeros(TEXT["vocab_size"], TEXT["hidden_size"])
        rows[:known] = state[name][:known]
        for i in range(known, tokenizer.get_vocab_size()):
            parts = before.encode(tokenizer.decode([i]), add_special_tokens=False).ids
            rows[i] = rows[parts].mean(0) if "embed" in name else UNHEARD * rows[parts[0]]
        state[name] = rows
    missing, unknown = model.load_state_dict(state, strict=False)
    if unknown or any(not n.startswith(("probe.", "hint.")) for n in missing):
        raise ValueError(f"{path} is no demo model: {missing[:3]} {unknown[:3]}")
    for head in (model.probe, model.hint):  # new ones, which must not move what is below them before they know anything
        for p in head.parameters():
            torch.nn.init.zeros_(p)
