"""Constrained decoding: answers that match a JSON schema, a regular expression, one of some choices, or a grammar.

The grammars and the masks of allowed tokens are those of llguidance, which is imported when the first one is asked for.
"""

import json
import re
from typing import Any

import numpy as np

from ivlite.engine.sampling import Sampler
from ivlite.errors import UsageError, shown

LARGEST = 1 << 20  # characters of a grammar
# JSON as json.dumps writes it: where any white space may stand between values, small models write it without end
COMPACT = {"overrides": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
THOUGHT = b"</think>"


def _schema(asked):
    inner = asked.get("json_schema", asked)
    found = inner.get("schema") if isinstance(inner, dict) else None
    if found is None:
        raise UsageError('a response_format of type json_schema needs "schema": a JSON schema')
    return found


def _choice(asked):
    choices = asked.get("choices")
    if not isinstance(choices, list | tuple) or not choices or not all(c and isinstance(c, str) for c in choices):
        raise UsageError('a response_format of type choice needs "choices": a list of texts')
    return "|".join(re.escape(c).replace(r"\ ", " ") for c in choices)


def _text(name):
    def read(asked):
        if not isinstance(asked.get(name), str) or not asked[name]:
            raise UsageError(f'a response_format of type {asked["type"]} needs "{name}": a text')
        return asked[name]

    return read


# type of a response_format -> how llguidance reads its grammar, and where that stands
FORMATS = {
    "json_object": ("json_schema", lambda asked: asked.get("schema", {"type": "object"})),
    "json_schema": ("json_schema", _schema),
    "regex": ("regex", _text("pattern")),
    "choice": ("regex", _choice),
    "grammar": ("lark", _text("grammar")),
}


def grammar(asked: Any) -> tuple[str, Any] | None:
    """(how llguidance reads it, the grammar) of a response_format; None for text that is free.

    asked: None or {"type": "text"}; {"type": "json_object"}; {"type": "json_schema", "json_schema": {"schema": S}} or {"type":
    "json_schema", "schema": S}; {"type": "regex", "pattern": P}; {"type": "choice", "choices": [...]}; {"type": "grammar",
    "grammar": a Lark grammar}; a JSON schema itself; or a class with `model_json_schema()`. Raises UsageError.
    """
    if hasattr(asked, "model_json_schema"):
        asked = asked.model_json_schema()
    if asked is None:
        return None
    if not isinstance(asked, dict):
        raise UsageError(f"response_format is {shown(asked)}; it must be a dict with a type, or a JSON schema")
    kind = asked.get("type")
    if kind == "text":
        return None
    if not isinstance(kind, str) or kind not in FORMATS:
        return "json_schema", asked
    how, found = FORMATS[kind]
    return how, found(asked)


class Vocabulary:
    """The tokens of a model as llguidance wants them. Made once for a model: it takes a moment.

    tokenizer: a gguf.tokenizer.Tokenizer. size: the number of logits. eos: ids that end an answer.
    """

    def __init__(self, tokenizer: Any, size: int, eos: Any) -> None:
        import llguidance

        self.eos, self.eos_token_id, self.bos_token_id = sorted(eos), min(eos), None
        self.tokens = [tokenizer.bytes_of(i, skip_special=False) for i in range(size)]
        # All of them: <think> is no part of a text either.
        self.special_token_ids = [i for i in tokenizer.added.values() if i < size]
        self.encode, self.bytes_of = tokenizer.encode, tokenizer.bytes_of
        self.core = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), size, self.eos_token_id)

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)

    def matcher(self, how: str, text: Any) -> Any:
        """A matcher of a grammar. Raises UsageError for one that llguidance cannot read."""
        from llguidance import LLMatcher

        try:
            text = json.dumps(text) if how == "json_schema" else text
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema is not JSON: {error!s:.200}") from None
        if len(text) > LARGEST:
            raise UsageError(f"the grammar of the answer has {len(text):,} characters; {LARGEST:,} are the most")
        named = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}[how]
        try:
            read = getattr(LLMatcher, f"grammar_from_{how}")(text, **(COMPACT if how == "json_schema" else {}))
        except ValueError as error:
            raise UsageError(f"the {named} cannot be used: {_line(error)}") from None
        matcher = LLMatcher(self.core, read, log_level=0)
        if matcher.is_error():
            raise UsageError(f"the {named} cannot be used: {_line(matcher.get_error())}")
        return matcher


def _line(error):
    """The first sentences of an error of the library."""
    return " ".join(str(error).split("\n\n")[0].split())[:300]


class Constrained:
    """A Sampler whose tokens follow a grammar, from the start of the answer or from the end of its thinking.

    sampler: draws among the tokens that are allowed. matcher: of Vocabulary.matcher. thinks: the answer begins inside <think>.
    """

    def __init__(self, sampler: Sampler, vocabulary: Vocabulary, matcher: Any, thinks: bool) -> None:
        self.sampler, self.vocabulary, self.matcher, self.thinks = sampler, vocabulary, matcher, thinks
        self._tail = b""
        self._forced: list[int] = []

    @property
    def greedy(self) -> bool:
        return self.sampler.greedy

    def __call__(self, logits: Any) -> int:
        """One token id from float32 logits (vocab,). Raises UsageError where no token can follow."""
        if self.thinks:
            logits = np.array(logits, np.float32)
            logits[[i for i in self.vocabulary.eos if i < len(logits)]] = -np.inf  # the answer is yet to come
            return self._thought(self.sampler(logits))
        if forced := self.forced():
            token = self.sampler.took(forced.pop(0))
        else:
            token = self.sampler(self._masked(np.asarray(logits)))
        if not self.matcher.consume_token(token):
            self._fail()
        return token

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as the grammar leaves no choice; [] while the model thinks."""
        if not self._forced and not self.thinks and not self.matcher.is_stopped():
            self._forced = self.matcher.compute_ff_tokens()
        return self._forced

    def _thought(self, token: int) -> int:
        self._tail = (self._tail + self.vocabulary.bytes_of(token, False))[-len(THOUGHT) - 64 :]
        self.thinks = THOUGHT not in self._tail
        return token

    def _masked(self, logits: np.ndarray) -> np.ndarray:
        """The logits with minus infinity for tokens that the grammar does not allow next."""
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(mask, bitorder="little")[: len(logits)].astype(bool)
        if self.matcher.is_error() or not allowed.any():
            self._fail()
        return np.where(allowed, logits, np.float32(-np.inf))

    def _fail(self) -> None:
        why = _line(self.matcher.get_error()) or "the model has no token for what must follow"
        raise UsageError(f"the answer cannot go on as its grammar wants: {why}")
