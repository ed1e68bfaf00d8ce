"""Text to token ids and back, over a `tokenizer.json`. Text is data: it can never become a control token."""

import codecs
import json
import re

import tokenizers

from ivlite.errors import ModelFileError, UsageError


def byte_table():
    """The character that byte-level BPE writes for each byte, as {character: byte}."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


class Tokenizer:
    """The tokenizer of a model, from the text of its tokenizer.json.

    special: {content: id} of added tokens that control the model, added: of all added tokens. Raises ModelFileError.
    """

    def __init__(self, json_text):
        try:
            data = json.loads(json_text)
            listed = data.pop("added_tokens", None) or []
            rows = [(t["content"], t["id"], bool(t.get("special", False))) for t in listed]
            vocab = data["model"]["vocab"]
            if not all(isinstance(c, str) and c and type(i) is int and i >= 0 for c, i, _ in rows):
                raise ValueError("an added token is not a text with an id")
            self.added = {content: i for content, i, _ in rows}
            self.special = {content: i for content, i, special in rows if special}
            # Left in the vocabulary, an added token could come out of ordinary text by whole-word lookup.
            data["model"]["vocab"] = {t: i for t, i in vocab.items() if t not in self.added}
            data |= {"truncation": None, "padding": None, "added_tokens": []}
            self._core = tokenizers.Tokenizer.from_str(json.dumps(data))
            self._vocab = self._core.get_vocab(with_added_tokens=False)
        except Exception as error:  # the library raises bare Exception for every malformed part
            raise ModelFileError(
                f"the model file's tokenizer is damaged ({_sentence(error)}): convert the checkpoint again"
            ) from error
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
        """The id of an added token, or of a vocabulary entry as the file spells it. Raises ModelFileError."""
        found = self.added.get(name, self._vocab.get(name))
        if found is None:
            raise ModelFileError(f"the model file's tokenizer has no token {name!r}: convert the checkpoint again")
        return found

    def split(self, text, allowed=()):
        """Cuts text at the added tokens of `allowed`: list of str (plain text, not empty) and int (token id)."""
        names = sorted((n for n in allowed if n in self.added), key=len, reverse=True)
        if not names:
            return [text] if text else []
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [self.added[p] if i % 2 else p for i, p in enumerate(parts) if p]

    def encode(self, text, allowed=()):
        """Token ids of text. Added tokens stand for themselves only if `allowed` names them; else they are plain text.

        Raises UsageError for text that is not Unicode (lone surrogates).
        """
        ids = []
        for part in self.split(text, allowed):
            ids += [part] if isinstance(part, int) else self._plain(part)
        return ids

    def _plain(self, text):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError("the text holds bytes that are not valid UTF-8: pass readable text") from error
        return self._core.encode(text, add_special_tokens=False).ids

    def bytes_of(self, token_id, skip_special=True):
        """The UTF-8 bytes a token stands for; empty for special tokens (if skipped) and ids without a token."""
        if skip_special and token_id in self._special_ids:
            return b""
        return self._bytes.get(token_id, b"")

    def decode(self, ids, skip_special=True):
        """The text of token ids; bytes that are not UTF-8 become U+FFFD. Added tokens that are not special stay."""
        return b"".join(self.bytes_of(int(i), skip_special) for i in ids).decode("utf-8", "replace")

    def stream(self, skip_special=True):
        """A TextStream: decodes tokens one at a time."""
        return TextStream(self, skip_special)


class TextStream:
    """Decodes tokens as they come; a character that spans tokens appears once it is whole.

    What push returned, and what flush returns at the end, add up to what decode gives for all the tokens.
    """

    def __init__(self, tokenizer, skip_special=True):
        self.tokenizer, self.skip_special = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id):
        """The text that is complete with this token, possibly empty."""
        return self._decoder.decode(self.tokenizer.bytes_of(int(token_id), self.skip_special))

    def flush(self):
        """What is left: U+FFFD for a character that never became whole."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _sentence(error):
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"no entry {text}" if isinstance(error, KeyError) else text
