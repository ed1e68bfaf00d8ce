"""The fields of a request: what each may be, how a schema says so, and the argument of Model.stream that it becomes."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ivlite.agent.agent import MOST, QUESTION
from ivlite.errors import UsageError, shown
from ivlite.numbers import number, whole

MOST_STOPS = 16
MESSAGES = 100_000
WHOLE_EFFORTS = ("low", "medium", "high", "xhigh")  # with which the model thinks; "none" and "minimal": it does not
Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Field:
    """check(name, value) returns the value or raises UsageError. schema: the same as JSON schema. becomes: "" for nothing."""

    check: Check
    schema: dict[str, Any]
    becomes: str = ""


def integer(low: int, high: int, becomes: str = "") -> Field:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Field(lambda name, value: whole(name, value, low, high), schema, becomes)


def real(low: float, high: float, becomes: str = "") -> Field:
    schema = {"type": "number", "minimum": low, "maximum": high}
    return Field(lambda name, value: number(name, value, low, high), schema, becomes)


KINDS: dict[str, tuple[type, str]] = {
    "boolean": (bool, "true or false"), "string": (str, "a text"), "object": (dict, "an object"), "array": (list, "a list"),
}  # fmt: skip


def a(*kinds: str, becomes: str = "") -> Field:
    """A value of some types."""
    types, what = tuple(KINDS[kind][0] for kind in kinds), " or ".join(KINDS[kind][1] for kind in kinds)

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, types):
            raise UsageError(f"{name} is {shown(value)}; it must be {what}")
        return value

    return Field(check, {"type": kinds[0] if len(kinds) == 1 else [*kinds]}, becomes)


def text(most: int) -> Field:
    """A text of 1 to `most` characters that are not all white space."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > most:
            raise UsageError(f"{name} is {shown(value)}; it must be a text of 1 to {most:,} characters")
        return value

    return Field(check, {"type": "string", "minLength": 1, "maxLength": most, "pattern": r"\S"})


def several(of: Field | None, most: int) -> Field:
    """A list of 1 to `most` values; of: each of them, or None for any."""

    def check(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise UsageError(f"{name} is {shown(value)}; it must be a list of 1 to {most}")
        return value if of is None else [of.check(f"{name}[{n}]", item) for n, item in enumerate(value)]

    return Field(check, {"type": "array", "items": of.schema if of else {}, "minItems": 1, "maxItems": most})


def one_of(choices: tuple[str, ...]) -> Field:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise UsageError(f"{name} is {shown(value)}; it must be one of {', '.join(choices)}")
        return str(value)

    return Field(check, {"type": "string", "enum": list(choices)})


def only(allowed: Any) -> Field:
    """What is known of OpenAI's API and not supported, but for the value that changes nothing."""

    def check(name: str, value: Any) -> Any:
        if value != allowed or isinstance(value, bool) != isinstance(allowed, bool):
            raise UsageError(f"{name} is {shown(value)}; this server takes only {shown(allowed)}")
        return value

    return Field(check, {"const": allowed})


def seed(name: str, value: Any) -> int:
    """Clients send -1 for a seed of its own, and signed numbers."""
    found = whole(name, value, -(2**63), 2**64 - 1)
    return secrets.randbits(63) if found == -1 else found % 2**64


def stops(name: str, value: Any) -> list[str]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or len(given) > MOST_STOPS or not all(s and isinstance(s, str) for s in given):
        raise UsageError(f"{name} must be a text or a list of at most {MOST_STOPS} texts, none of them empty")
    return given


STOP = {"type": "string", "minLength": 1}
SEED = Field(seed, {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}, "seed")
STOPS = Field(stops, {"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": MOST_STOPS}]}, "stop")
TOKENS = integer(1, 2**40, "max_new_tokens")
SHARED = {  # of every request for an answer
    "model": a("string"), "stream": a("boolean"), "user": a("string"),
    "temperature": real(0, 100, "temperature"), "top_p": real(0, 1, "top_p"), "top_k": integer(-1, 2**31, "top_k"),
    "min_p": real(0, 1, "min_p"), "repetition_penalty": real(0.01, 100, "repetition_penalty"), "seed": SEED, "stop": STOPS,
    "top_logprobs": integer(0, 20), "tools": a("array", becomes="tools"),
    "tool_choice": a("string", "object", becomes="tool_choice"), "parallel_tool_calls": a("boolean", becomes="parallel_tool_calls"),
    "chat_template_kwargs": a("object"), "enable_thinking": a("boolean", becomes="enable_thinking"),
    "thinking_budget": integer(0, 2**40, "thinking_budget"), "add_vision_id": a("boolean", becomes="add_vision_id"),
    "budget": integer(1, 2**40, "budget"), "dedupe": a("boolean", becomes="dedupe"),
    "media_io_kwargs": a("object"), "mm_processor_kwargs": a("object"),
}  # fmt: skip
CHAT = SHARED | {
    "messages": several(None, MESSAGES), "max_tokens": TOKENS, "max_completion_tokens": TOKENS, "stream_options": a("object"),
    "n": only(1), "logprobs": a("boolean"), "response_format": a("object"),
    "continue_final_message": a("boolean", becomes="continue_final_message"), "reasoning_effort": a("string"),
    "frequency_penalty": only(0), "presence_penalty": only(0), "logit_bias": only({}), "modalities": only(["text"]), "functions": only([]),
}  # fmt: skip
AGENT = {
    "question": text(QUESTION), "videos": several(None, MOST), "budget": a("object"), "tools": a("array"), "temperature": SHARED["temperature"],
    "seed": SEED, "verify": a("boolean"), "stream": a("boolean"), "stream_options": a("object"), "user": a("string"),
}  # fmt: skip
EXPORTS = ("report", "clips", "chapters", "ffmetadata", "srt", "vtt")
EXPORT = {"kind": one_of(EXPORTS), "question": a("string"), "videos": a("array"), "answer": a("object")}
RESPONSES = SHARED | {
    "max_output_tokens": TOKENS, "input": a("string", "array"), "instructions": a("string"), "text": a("object"),
    "reasoning": a("object"), "include": a("array"), "previous_response_id": a("string"), "store": a("boolean"),
    "metadata": a("object"), "truncation": only("disabled"), "background": only(False),
}  # fmt: skip
