"""The tokenizer of a checkpoint as one tokenizer.json: its own, or one built from vocab.json and merges.txt."""

import json

from ivlite.errors import ModelFileError
from ivlite.gguf.jsontext import AGAIN
from ivlite.gguf.tokenizer import Tokenizer

# The pre-tokenizer pattern of Qwen2.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def read(checkpoint):
    """(text of tokenizer.json, its Tokenizer) of a Checkpoint. Raises ModelFileError for one that cannot be loaded."""
    path = checkpoint.folder / "tokenizer.json"
    text = checkpoint.text("tokenizer.json", required=False)
    if text is None:
        path = checkpoint.folder / "vocab.json"
        text = json.dumps(_build(checkpoint), ensure_ascii=False)
    return text, Tokenizer(text, path)


def _build(checkpoint):
    """tokenizer.json as a dict, from vocab.json, merges.txt and the added tokens of the other files."""
    vocab = checkpoint.json("vocab.json", required=False)
    if not vocab:
        raise ModelFileError(
            f"{checkpoint.folder} has no tokenizer.json, nor a vocab.json: download the whole checkpoint"
        )
    lines = checkpoint.text("merges.txt").split("\n")
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    odd = next((m for m in merges if len(m.split(" ")) != 2), None)
    if odd is not None:
        raise ModelFileError(f"{checkpoint.folder / 'merges.txt'} has the line {odd!r:.40}, which is no pair; {AGAIN}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added_tokens(checkpoint),
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level, "decoder": byte_level, "model": model,
    }  # fmt: skip


def _added_tokens(checkpoint):
    """The added tokens by id: added_tokens_decoder of tokenizer_config.json, else added_tokens.json."""
    decoder = checkpoint.json("tokenizer_config.json", required=False).get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        tokens = [_token(i, entry) for i, entry in decoder.items()]
    else:
        table = checkpoint.json("added_tokens.json", required=False)
        tokens = [_token(i, {"content": content, "special": _looks_special(content)}) for content, i in table.items()]
    if None in tokens:
        raise ModelFileError(f"{checkpoint.folder} has damaged added tokens; {AGAIN}")
    return sorted(tokens, key=lambda token: token["id"])


def _token(i, entry):
    """One entry of added_tokens, or None if it is malformed."""
    number = str(i)
    if not isinstance(entry, dict) or not number.isascii() or not number.isdecimal() or len(number) > 9:
        return None
    flags = {flag: entry.get(flag) is True for flag in FLAGS}
    return {"id": int(i), "content": entry.get("content"), **flags, "special": entry.get("special") is True}


def _looks_special(content):
    """Guesses, since added_tokens.json does not record it: <|...|> is a control token, except for code markers."""
    plain = ("<|fim_", "<|repo_name|>", "<|file_sep|>")
    return content.startswith("<|") and not content.startswith(plain)
