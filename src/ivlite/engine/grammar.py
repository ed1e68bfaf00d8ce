"""Constrained decoding: answers that match a JSON schema, a regular expression, one of some choices, or a grammar; tool calls.

The grammars and the masks of allowed tokens are those of llguidance, which is imported when the first one is asked for.
"""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ivlite.engine import calls as tool_calls
from ivlite.engine.reply import THINK_END, THINK_START
from ivlite.engine.sampling import Sampler
from ivlite.engine.schemas import readable
from ivlite.errors import UsageError, shown
from ivlite.numbers import whole
from ivlite.prompt import json_data
from ivlite.workers import deeply

LARGEST = 1 << 20  # characters of a grammar
ITEMS = 20_000  # of a parser between two characters, some 4 for each property that may come next; llguidance's own limit is 2,000
KEPT = 64  # grammars that need not be read again, as long as they are no larger together


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
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")  # of a JSON schema itself


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
    if not isinstance(asked, Mapping):
        raise UsageError(f"response_format is {shown(asked)}; it must be a dict with a type, or a JSON schema")
    asked = json_data("response_format", asked)
    kind = asked.get("type")
    if kind == "text":
        return None
    if not isinstance(kind, str) or kind in TYPES:
        return "json_schema", asked
    if kind not in FORMATS:
        known = ", ".join(["text", *FORMATS])
        raise UsageError(f"response_format has the type {shown(kind)}; there are {known}, and the types of JSON schema")
    how, found = FORMATS[kind]
    return how, found(asked)


@dataclass(frozen=True)
class Rules:
    """What an answer must follow.

    answer: the grammar of its text, as `grammar` returns it. calls: those that it may have; None without tools.
    thinking_budget: tokens after which its thinking is closed; None for no limit.
    """

    answer: tuple[str, Any] | None = None
    calls: tool_calls.Calls | None = None
    thinking_budget: int | None = None

    @classmethod
    def of(cls, tools: Sequence[str], response_format: Any = None, tool_choice: Any = "auto",
           parallel_tool_calls: Any = True, thinking_budget: Any = None) -> "Rules":  # fmt: skip
        """The Rules of arguments of `Model.stream`; tools: signatures as JSON texts. Raises UsageError."""
        budget = None if thinking_budget is None else whole("thinking_budget", thinking_budget, 0)
        if isinstance(tool_choice, Mapping):
            tool_choice = json_data("tool_choice", tool_choice)
        return cls(grammar(response_format), tool_calls.allowed(tools, tool_choice, parallel_tool_calls), budget)


def check_rules(rules: Rules) -> None:
    """Raises UsageError for a JSON schema or a regular expression that no model can follow; one that a certain model cannot passes.

    Grammars in Lark's form may name tokens of a model, and pass.
    """
    asked = [] if rules.answer is None or rules.answer[0] == "lark" else [(NAMES[rules.answer[0]], part(*rules.answer))]
    for name, schema in rules.calls.functions if rules.calls else ():
        asked.append((of_tool(name), {"json_schema": schema}))
    for named, grammar in asked:
        refuse(named, fault(as_text([grammar], named)))


@lru_cache(KEPT)
def fault(text: str) -> str:
    """What is wrong with a grammar whatever the tokens are, or ""."""
    from llguidance import LLMatcher

    return str(deeply(lambda: LLMatcher.validate_grammar(text)))


def refuse(named: str, wrong: str) -> None:
    """Raises UsageError for a grammar with which something is wrong."""
    if wrong:
        raise UsageError(f"the {named} cannot be used: {_line(wrong)}")


def of_tool(name: str) -> str:
    """What a message calls the grammar of a tool's arguments."""
    return f"JSON schema of the tool {shown(name, 60)}"


def as_text(parts: list[dict[str, Any]], named: str) -> str:
    """A grammar as llguidance reads it. Raises UsageError for what is no JSON, or too long."""
    try:
        text = json.dumps({"grammars": parts})
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the {named} is not JSON: {error!s:.200}") from None
    if len(text) > LARGEST:
        raise UsageError(f"the {named} has {len(text):,} characters; {LARGEST:,} are the most")
    return text


class Grammars:
    """The samplers of answers of one model. Any thread may call it.

    tokenizer: a gguf.tokenizer.Tokenizer. size: the number of logits. eos: ids that end an answer.
    """

    def __init__(self, tokenizer: Any, size: int, eos: Any) -> None:
        self._given = tokenizer, size, eos
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()

    def sampler(self, sampler: Sampler, rules: Rules, thinks: bool, may_think: bool) -> "Sampler | Constrained":
        """A Sampler of an answer that follows the Rules. thinks, may_think: see Constrained."""
        thinking = rules.thinking_budget is not None and (thinks or may_think)
        if rules.answer is None and rules.calls is None and not thinking:
            return sampler
        vocabulary = self._read()
        return Constrained(sampler, vocabulary, vocabulary.following(rules), thinks, may_think, rules.thinking_budget)

    def check(self, tools: Sequence[str]) -> None:
        """Raises UsageError, which names it, where no call can follow the schema of a tool. tools: signatures as JSON texts."""
        self._read().following(Rules.of(tools))

    def _read(self) -> "Vocabulary":
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(*self._given)
            return self._vocabulary


class Vocabulary:
    """The tokens of a model as llguidance wants them. Made once for a model: it takes a moment.

    tokenizer: a gguf.tokenizer.Tokenizer. size: the number of logits. eos: ids that end an answer.
    """

    def __init__(self, tokenizer: Any, size: int, eos: Any) -> None:
        import llguidance

        self.eos, self.eos_token_id, self.bos_token_id = sorted(eos), min(eos), None
        self.tokens = [tokenizer.bytes_of(i, skip_special=False) for i in range(size)]
        # All of them: <think> is no part of a text either.
        self.added = {name: i for name, i in tokenizer.added.items() if i < size}
        self.special_token_ids = list(self.added.values())
        self.encode, self.bytes_of = tokenizer.encode, tokenizer.bytes_of
        self.core = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self), size, self.eos)
        self._read: dict[str, Any] = {}  # grammar -> its matcher, which is only copied
        self._lock = threading.Lock()

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)

    def following(self, rules: Rules) -> Any:
        """A matcher of an answer that follows Rules; None where its text is free. Raises UsageError."""
        may = rules.calls
        alone = None if rules.answer is None else self.matcher(*rules.answer)  # its faults are not those of the tools
        if may is None or (rules.answer is not None and not may.functions):
            return alone
        for name, schema in may.functions:
            self._matcher([{"json_schema": schema}], of_tool(name))
        answer = None if rules.answer is None else part(*rules.answer)
        return self._matcher(tool_calls.grammar(may, answer, self.added), "grammar of the tools")

    def matcher(self, how: str, text: Any) -> Any:
        """A matcher of a grammar. Raises UsageError for one that llguidance cannot read."""
        return self._matcher([part(how, text)], NAMES[how])

    def _matcher(self, parts: list[dict[str, Any]], named: str) -> Any:
        text = as_text(parts, named)
        read = self._read.get(text)
        if read is None:
            read, wrong = deeply(lambda: reading(self.core, text))
            refuse(named, wrong)
            with self._lock:
                self._read[text] = read
                while len(self._read) > KEPT or sum(map(len, self._read)) > LARGEST:
                    del self._read[next(iter(self._read))]
        return read.deep_copy()


def reading(core: Any, text: str) -> tuple[Any, str]:
    """(a matcher, what is wrong with its grammar up to where the first choice is to be made, or "")."""
    from llguidance import LLMatcher, LLParserLimits

    read = LLMatcher(core, text, log_level=0, limits=LLParserLimits(max_items_in_row=ITEMS))
    if wrong := read.get_error():
        return read, wrong
    probe = read.deep_copy()
    while (forced := probe.compute_ff_tokens()) and probe.consume_tokens(forced):
        pass
    probe.compute_bitmask()
    if probe.is_stopped() and not probe.is_accepting():
        return read, probe.get_error() or "the model has no token for what must follow"
    return read, ""


LONG = re.compile(r"\d{16}|\d\.?[eE]\+?\d")  # see schemas.sized
NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}


def part(how: str, text: Any) -> dict[str, Any]:
    """A grammar of FORMATS as llguidance reads it."""
    if how == "json_schema":
        return {"json_schema": readable(text)}
    if how == "regex":
        from llguidance import LLMatcher

        return {"lark_grammar": json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]["lark_grammar"]}
    if isinstance(text, str) and "%json" in text and LONG.search(text):
        raise UsageError("the grammar has a JSON schema with a number of more than 15 digits: give it as a text")
    return {"lark_grammar": text}


def _line(error: Any) -> str:
    """The first sentences of an error of the library."""
    text = " ".join(re.split("\n\n|<state>", str(error))[0].split())[:300]
    return ENDLESS if text == "NoExtensionBias" else text


ENDLESS = "no text follows it: it refers to itself and to nothing else"


class Constrained:
    """A Sampler whose tokens follow a grammar, from the start of the answer or from the end of its thinking.

    sampler: draws the tokens. matcher: of `Vocabulary.following`; None for an answer that is free. thinks: the answer begins
    inside <think>. may_think: it may begin with <think>. budget: tokens after which the thinking is closed, or None.
    """

    def __init__(self, sampler: Sampler, vocabulary: Vocabulary, matcher: Any, thinks: bool, may_think: bool = False,
                 budget: int | None = None) -> None:  # fmt: skip
        self.sampler, self.vocabulary, self.matcher = sampler, vocabulary, matcher
        self.thinks, self.budget = thinks, budget
        self.opens = (
            vocabulary.added.get(THINK_START) if may_think and not thinks else None
        )  # the first token may be this
        self._tail = b"\n"
        self._forced: list[int] = []  # the tokens that come next
        if thinks:
            self._spend(0)

    @property
    def greedy(self) -> bool:
        return self.sampler.greedy

    def __call__(self, logits: Any) -> int:
        """One token id from float32 logits (vocab,). Raises UsageError where no token can follow."""
        if forced := self.forced():
            return self._took(forced.pop(0))
        token = self.sampler.drawn(logits)
        if self.opens is not None:
            opens, self.opens = self.opens, None
            if token == opens:
                self.thinks = True
                self._spend(0)
                return self.sampler.took(token)
        # Nearly always the token is allowed. Where it is not, one of those that are is drawn as if there were no others.
        if not self._allows(token):
            token = self.sampler.drawn(self._masked(np.array(logits, np.float32)))
        return self._took(token)

    def forced(self) -> list[int]:
        """The tokens that must follow, as far as there is no choice."""
        if self._forced or self.thinks or self.opens is not None or self.matcher is None or self.matcher.is_stopped():
            return self._forced
        self._forced = self.matcher.compute_ff_tokens()
        return self._forced

    def _allows(self, token: int) -> bool:
        """Whether a token may follow."""
        ends = token in self.vocabulary.eos
        if self.thinks:
            return not ends  # the answer is yet to come
        if self.matcher is None:
            return True
        return bool(self.matcher.is_accepting() if ends else self.matcher.validate_tokens([token]))

    def _took(self, token: int) -> int:
        """Notes a token; returns it."""
        if self.thinks:
            self._tail = (self._tail + self.vocabulary.bytes_of(token, False))[-len(THINK_END) - 64 :]
            closing = bool(self._forced)
            self.thinks = closing or THINK_END.encode() not in self._tail
            if self.thinks and not closing:
                self._spend(1)
        elif self.matcher is not None and not self.matcher.consume_token(token):
            self._fail()
        return self.sampler.took(token)

    def _spend(self, tokens: int) -> None:
        """Takes tokens from the budget of the thinking, and closes it at its end."""
        if self.budget is None:
            return
        self.budget -= tokens
        if self.budget <= 0:
            text = "\n" * (not self._tail.endswith(b"\n")) + THINK_END + "\n\n"
            self._forced = list(self.vocabulary.encode(text, (THINK_END,)))

    def _masked(self, logits: np.ndarray) -> np.ndarray:
        """The logits with minus infinity for tokens that may not follow."""
        if self.thinks:
            logits[[i for i in self.vocabulary.eos if i < len(logits)]] = -np.inf
            return logits
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(mask, bitorder="little")[: len(logits)].astype(bool)
        if self.matcher.is_error() or not allowed.any():
            self._fail()
        return np.where(allowed, logits, np.float32(-np.inf))

    def _fail(self) -> None:
        why = _line(self.matcher.get_error()) or "the model has no token for what must follow"
        raise UsageError(f"the answer cannot go on as its grammar wants: {why}")
