"""The tokenizer of the agent stage: that of the model before it, whose every text keeps its tokens, and more merges.

What the agent says and reads (its tools, calls, results, questions about films) is then one token a word, not four. The ids
of the earlier tokens stay, so the weights that were learnt for them stay right.
"""

import json
import re
from collections import Counter

from tokenizers import Tokenizer

ADDED = 500  # tokens
CONTROL = re.compile(r"<\|\w+\|>|</?(?:tool_call|tool_response|think)>")


def extended(tokenizer, old, new, count=ADDED):
    """A Tokenizer with up to `count` more tokens, learnt from texts `new`; texts `old` are encoded as before.

    Pairs of tokens that occur inside a word of the old texts are never merged.
    """
    kept = {pair for word in words(tokenizer, old) for pair in pairs(pieces(tokenizer, word))}
    parts = {w: pieces(tokenizer, w) for w in words(tokenizer, new)}
    weights, data = words(tokenizer, new), json.loads(tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary |= {t["content"]: t["id"] for t in data["added_tokens"]}  # or the library gives them other ids
    following = 1 + max(vocabulary.values())
    for at in range(count):
        seen = Counter()
        for word, split in parts.items():
            for pair in pairs(split):
                seen[pair] += weights[word]
        best = max((p for p in seen if p not in kept), key=lambda p: (seen[p], p), default=None)
        if best is None:
            break
        vocabulary["".join(best)] = following + at
        data["model"]["merges"].append(list(best))
        parts = {word: merged(split, best) for word, split in parts.items()}
    return Tokenizer.from_str(json.dumps(data))


def words(tokenizer, texts):
    """How often each word (as the pre-tokenizer splits) occurs in texts."""
    out = Counter()
    for text in texts:
        for part in CONTROL.split(text):
            out.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(part))
    return out


def pieces(tokenizer, word):
    """A word, spelled as the pre-tokenizer spells it, as the texts of its tokens."""
    return [token.value for token in tokenizer.model.tokenize(word)]


def pairs(split):
    return zip(split, split[1:], strict=False)


def merged(split, pair):
    """A word's tokens with every occurrence of a pair made one."""
    out, i = [], 0
    while i < len(split):
        if tuple(split[i : i + 2]) == pair:
            out.append("".join(pair))
            i += 2
        else:
            out.append(split[i])
            i += 1
    return out
