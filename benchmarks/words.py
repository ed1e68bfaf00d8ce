"""A small byte-level vocabulary, written alike into ivlite's random model and into its rival's, so that both read the
same number of tokens in one prompt. Its words are those of the prompt of `versus.py clip`."""

import json

from ivlite.gguf.tokenizer import byte_table
from ivlite.quantize.tokenizer import WORDS as SPLIT

QUESTION = "What happens in this video, and in which order?"
WORDS = "user|assistant| seconds|What| happens| in| this| video| and| which| order".split("|")
SPECIAL = "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|> <|video_pad|>".split()


def merges():
    """Pairs that grow each word from its left."""
    spelt = [word.replace(" ", "\u0120") for word in WORDS]  # how byte-level vocabularies write a space
    return list(dict.fromkeys((word[:i], word[i]) for word in spelt for i in range(1, len(word))))


def tokens():
    """All of them in the order of their ids."""
    return [*byte_table(), *(a + b for a, b in merges()), *SPECIAL]


def token_id(name):
    return tokens().index(name)


def tokenizer_json():
    """The text of a tokenizer.json."""
    plain = {token: i for i, token in enumerate(tokens()) if token not in SPECIAL}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": {"type": "NFC"},
        "added_tokens": [{"id": token_id(name), "content": name, **flags} for name in SPECIAL],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "vocab": plain,
                  "merges": [" ".join(pair) for pair in merges()]},
    })  # fmt: skip


def add_to(writer, size):
    """The same to a GGUFWriter of llama.cpp's, filled up to `size` tokens."""
    from gguf import TokenType

    known = tokens()
    kinds = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in known]
    more = size - len(known)  # normal as well: they are what random weights say, and a server streams texts
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*known, *(f"[unused_{i}]" for i in range(len(known), size))])
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * more])
    writer.add_token_merges([" ".join(pair) for pair in merges()])
    writer.add_eos_token_id(token_id("<|im_end|>"))
    writer.add_add_bos_token(False)
