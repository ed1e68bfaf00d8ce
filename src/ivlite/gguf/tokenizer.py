"""Encodes text to token ids and back with a `tokenizer.json`. Plain text never becomes a control token."""

import codecs
import json
import re

import tokenizers

from ivlite.errors import ContextError, ModelFileError, UsageError
from ivlite.gguf.jsontext import parse
from ivlite.stop import checkpoint

# The pre-tokenizer of Qwen's models. Its matches never go on from an ASCII letter or digit to an ASCII sign or a white space,
# nor from a digit to a digit, so a text may be cut there (no such place changes under normalization either).
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTER = "A-Za-z\u0410-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
SEAM = re.compile(f"[0-9{LETTER}](?=[ -/:-@\\[-`{{-~\\t\\r\\n\u3001\u3002\uff01\uff0c\uff1f])|[0-9](?=[0-9])")
PIECE, LONGEST = 1 << 14, 1 << 17  # characters that the library reads at once: usually, and where there is no seam

AGAIN = "convert the checkpoint again with `ivlite quantize`"
ID_LIMIT = 1 << 24
PARTS = {  # allowed normalizers and pre-tokenizers; the library panics on some others
    "normalizer": ("Sequence", "NFC", "NFD", "NFKC", "NFKD"),
    "pre_tokenizer": ("Sequence", "Split", "ByteLevel", "Digits"),
}


def byte_table():
    """{character: byte}: how byte-level BPE writes bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


class Tokenizer:
    """The tokenizer of a model, from the text of its tokenizer.json.

    special: {content: id} of added tokens that control the model, added: of all added tokens. Raises ModelFileError.
    """

    def __init__(self, json_text, path="the model file's tokenizer"):
        data = parse(json_text, path, AGAIN)
        try:
            self.added, self.special, vocab = _checked(data)
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{path} is damaged ({error!s:.200}): {AGAIN}") from None
        # If added tokens stayed in the vocabulary, ordinary text could be encoded to them. Post-processor and decoder
        # are not used.
        data["model"]["vocab"] = {t: i for t, i in vocab.items() if t not in self.added}
        data |= {"truncation": None, "padding": None, "added_tokens": [], "post_processor": None, "decoder": None}
        self._core = _guarded(path, lambda: tokenizers.Tokenizer.from_str(json.dumps(data)))
        _guarded(path, lambda: self._core.encode("Ab 1!\n", add_special_tokens=False))
        self._seams = _splits(data.get("pre_tokenizer")) == [QWEN]
        self._vocab = data["model"]["vocab"]
        self._special_ids = frozenset(self.special.values())
        self._bytes = self._byte_strings()
        self.vocab_size = 1 + max([*self._vocab.values(), *self.added.values()], default=-1)

    def _byte_strings(self):
        table = byte_table()

        def of(token):
            if all(c in table for c in token):
                return bytes(table[c] for c in token)
            return token.encode("utf-8", "replace")  # not a byte-level token

        return {i: of(t) for t, i in self._vocab.items()} | {i: t.encode("utf-8") for t, i in self.added.items()}

    def token_id(self, name):
        """The id of an added token or a vocabulary entry, spelled as in the file. Raises ModelFileError."""
        found = self.added.get(name, self._vocab.get(name))
        if found is None:
            raise ModelFileError(f"the model file's tokenizer has no token {name!r}: convert the checkpoint again")
        return found

    def split(self, text, allowed=()):
        """Splits text at the added tokens of `allowed`: a list of str (plain text, not empty) and int (token id)."""
        names = sorted((n for n in allowed if n in self.added), key=len, reverse=True)
        if not names:
            return [text] if text else []
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [self.added[p] if i % 2 else p for i, p in enumerate(parts) if p]

    def encode(self, text, allowed=(), most=None):
        """Token ids of text. Added tokens in it are encoded as such only if `allowed` names them, else as plain text.

        most: ids after which it gives up. Raises UsageError for text that is not Unicode (lone surrogates), ContextError for
        text of more than `most` ids, Stopped.
        """
        ids = []
        for part in self.split(text, allowed):
            for found in [[part]] if isinstance(part, int) else self._plain(part):
                ids += found
                if most is not None and len(ids) > most:
                    raise ContextError(f"a text of {len(text):,} characters has more than {most:,} tokens: shorten it")
        return ids

    def _plain(self, text):
        """Yields the ids of the pieces of a text: the library holds the GIL, and 400 bytes for each token."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError("the text holds bytes that are not valid UTF-8: pass readable text") from error
        for n, piece in enumerate(pieces(text) if self._seams else [text]):
            if n:
                checkpoint()
            yield self._piece(piece)

    def _piece(self, text):
        return _guarded("the model file's tokenizer", lambda: self._core.encode(text, add_special_tokens=False)).ids

    def bytes_of(self, token_id, skip_special=True):
        """The UTF-8 bytes of a token; empty for special tokens (if skipped) and unknown ids."""
        if skip_special and token_id in self._special_ids:
            return b""
        return self._bytes.get(token_id, b"")

    def decode(self, ids, skip_special=True):
        """The text of token ids; invalid UTF-8 becomes U+FFFD. Keeps added tokens that are not special."""
        return b"".join(self.bytes_of(int(i), skip_special) for i in ids).decode("utf-8", "replace")

    def stream(self, skip_special=True):
        """A TextStream: decodes tokens one at a time."""
        return TextStream(self, skip_special)


class TextStream:
    """Incremental decoder: a character that spans tokens appears once it is complete.

    The results of push, and of flush at the end, add up to the result of decode for all the tokens.
    """

    def __init__(self, tokenizer, skip_special=True):
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id):
        """Adds a token; returns the text that it completes, possibly ""."""
        return self._decoder.decode(self.tokenizer.bytes_of(int(token_id), self.skip_special))

    @property
    def pending(self):
        """Whether a character is incomplete."""
        return bool(self._decoder.getstate()[0])

    def flush(self):
        """The remaining text: U+FFFD for an incomplete character, else ""."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def pieces(text):
    """Yields the pieces of a long text, which have the ids of the whole. A run of LONGEST characters without a seam is cut anyway."""
    at = 0
    while len(text) - at > 2 * PIECE:
        found = SEAM.search(text, at + PIECE, at + LONGEST)
        end = found.end() if found else min(at + LONGEST, len(text))
        yield text[at:end]
        at = end
    if at < len(text):
        yield text[at:]


def _guarded(path, work):
    """The result of work(); errors of the library become a ModelFileError.

    For malformed parts the library raises bare Exception. For unforeseen ones it panics: PanicException derives from
    BaseException, as KeyboardInterrupt does, and is recognized by its name.
    """
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, MemoryError):
            raise
        raise ModelFileError(f"{path} is damaged ({' '.join(str(error).split()):.200}): {AGAIN}") from None


def _checked(data):
    """({added token: id}, {special token: id}, vocabulary) of a parsed tokenizer.json. Raises ValueError.

    The library checks little: it panics, or accepts ids for which the model has no rows.
    """
    model, rows = data.get("model"), data.get("added_tokens") or []
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError("it is no byte-level BPE")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise ValueError(f"it has a {key}, as no byte-level BPE has")
    for key, allowed in PARTS.items():
        odd = next((kind for kind in _kinds(data.get(key)) if kind not in allowed), None)
        if odd is not None:
            raise ValueError(f"its {key} is {odd!r:.40}, as no byte-level BPE's is")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise ValueError("it lacks the vocabulary or the merges of a BPE")
    if not isinstance(rows, list) or not all(map(_is_added, rows)):
        raise ValueError("its added_tokens are not texts with ids")
    added = {row["content"]: row["id"] for row in rows}
    ids = vocab | added
    if not all(type(i) is int and 0 <= i < ID_LIMIT for i in ids.values()):
        raise ValueError("its token ids are not whole numbers")
    "".join(ids).encode()  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
    if len(set(ids.values())) != len(ids):
        raise ValueError("two tokens have one id")
    _check_merges(merges, vocab)
    return added, {row["content"]: row["id"] for row in rows if row.get("special") is True}, vocab


def _kinds(part):
    """The types of a normalizer or pre-tokenizer and of its parts."""
    if part is None:
        return
    kind = part.get("type") if isinstance(part, dict) else part
    yield kind if isinstance(kind, str) else f"{kind!r:.30}"
    if kind == "Sequence":
        parts = part.get("normalizers", part.get("pretokenizers"))
        for inner in parts if isinstance(parts, list) else [parts]:
            yield from _kinds(inner)


def _splits(part):
    """The patterns at which a pre-tokenizer splits, None for those that are no regular expressions."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        parts = part.get("pretokenizers")
        return [found for inner in (parts if isinstance(parts, list) else ()) for found in _splits(inner)]
    if part.get("type") == "ByteLevel" and part.get("use_regex") is False and not part.get("add_prefix_space"):
        return []
    pattern = part.get("pattern")
    isolated = part.get("behavior") == "Isolated" and not part.get("invert")
    return [pattern.get("Regex") if isinstance(pattern, dict) and isolated else None]


def _is_added(row):
    return (
        isinstance(row, dict) and isinstance(row.get("content"), str) and row["content"] and type(row.get("id")) is int
    )


def _check_merges(merges, vocab):
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(half, str) for half in pair):
            raise ValueError(f"the merge {merge!r:.40} is no pair of texts")
        missing = next((text for text in (*pair, "".join(pair)) if text not in vocab), None)
        if missing is not None:
            raise ValueError(f"the merge {merge!r:.60} needs the token {missing!r:.40}, which is not in the vocabulary")


def check_ids(tokenizer, config, path):
    """Raises ModelFileError if the ids of a Tokenizer contradict the Config: they belong to two models."""
    if tokenizer.vocab_size > config.text.vocab_size:
        raise ModelFileError(
            f"{path}: the tokenizer has token id {tokenizer.vocab_size - 1}, and the model a vocabulary of "
            f"{config.text.vocab_size}; they belong to different models: {AGAIN}"
        )
    for name in ("image_pad", "video_pad", "vision_start", "vision_end", "im_start", "im_end"):
        own, wanted = tokenizer.added.get(f"<|{name}|>"), getattr(config.tokens, name)
        if own != wanted:
            raise ModelFileError(
                f"{path}: <|{name}|> is token {own} in the tokenizer and {wanted} in the settings; {AGAIN}"
            )
