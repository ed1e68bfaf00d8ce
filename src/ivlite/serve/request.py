"""The fields of a chat request: a table of what each may be, and what it becomes."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ivlite.errors import UsageError, shown
from ivlite.numbers import number, whole
from ivlite.serve.wire import Refused

ANSWER = 4096  # tokens of an answer whose request states no limit
MOST_STOPS = 16
Check = Callable[[str, Any], Any]


def ranged(check: Any, low: float, high: float) -> Check:
    return lambda name, value: check(name, value, low, high)


def a(kind: type, what: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise UsageError(f"{name} is {shown(value)}; it must be {what}")
        return value

    return check


def only(*allowed: Any) -> Check:
    def check(name: str, value: Any) -> Any:
        if value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise UsageError(f"{name} is {shown(value)}; this server takes only {shown(allowed[0])}")
        return value

    return check


def seed(name: str, value: Any) -> int:
    """Clients send -1 for a seed of its own, and signed numbers."""
    found = whole(name, value, -(2**63), 2**64 - 1)
    return secrets.randbits(63) if found == -1 else found % 2**64


def stops(name: str, value: Any) -> list[str]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or len(given) > MOST_STOPS or not all(s and isinstance(s, str) for s in given):
        raise UsageError(f"{name} must be a text or a list of at most {MOST_STOPS} texts, none of them empty")
    return given


FLAG, TEXT, OBJECT, LIST = a(bool, "true or false"), a(str, "a text"), a(dict, "an object"), a(list, "a list")
TOKENS = ranged(whole, 1, 2**40)
# field -> (check, the argument of Model.stream that it becomes; "" for what is used here)
FIELDS: dict[str, tuple[Check, str]] = {
    "model": (TEXT, ""), "messages": (LIST, ""), "stream": (FLAG, ""), "stream_options": (OBJECT, ""), "user": (TEXT, ""),
    "max_tokens": (TOKENS, "max_new_tokens"), "max_completion_tokens": (TOKENS, "max_new_tokens"),
    "max_output_tokens": (TOKENS, "max_new_tokens"),
    "temperature": (ranged(number, 0, 100), "temperature"), "top_p": (ranged(number, 0, 1), "top_p"),
    "top_k": (ranged(whole, -1, 2**31), "top_k"), "min_p": (ranged(number, 0, 1), "min_p"),
    "repetition_penalty": (ranged(number, 0.01, 100), "repetition_penalty"), "seed": (seed, "seed"), "stop": (stops, "stop"),
    "n": (only(1), ""), "logprobs": (FLAG, ""), "top_logprobs": (ranged(whole, 0, 20), ""),
    "tools": (LIST, "tools"), "tool_choice": (a((str, dict), "a text or an object"), "tool_choice"),  # type: ignore[arg-type]
    "parallel_tool_calls": (FLAG, "parallel_tool_calls"), "response_format": (OBJECT, ""),
    "chat_template_kwargs": (OBJECT, ""), "enable_thinking": (FLAG, "enable_thinking"),
    "thinking_budget": (ranged(whole, 0, 2**40), "thinking_budget"), "add_vision_id": (FLAG, "add_vision_id"),
    "continue_final_message": (FLAG, "continue_final_message"),
    "budget": (TOKENS, "budget"), "dedupe": (FLAG, "dedupe"), "media_io_kwargs": (OBJECT, ""), "mm_processor_kwargs": (OBJECT, ""),
    "frequency_penalty": (only(0), ""), "presence_penalty": (only(0), ""), "logit_bias": (only({}), ""),
    "modalities": (only(["text"]), ""),
}  # fmt: skip
FORMATS = ("text", "json_object", "json_schema", "regex", "choice")  # not "grammar": its cost has no bound
VIDEO = ("video", "video_url", "input_video")


@dataclass
class Request:
    """A chat request that was checked. settings: arguments of Model.stream. media: settings of media, by kind."""

    messages: list[Any]
    settings: dict[str, Any]
    media: dict[str, dict[str, Any]] = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None
    user: str = ""
    release: Callable[[], object] = lambda: None  # gives back the memory of the body


def read(body: Mapping[str, Any]) -> Request:
    """The Request of a body; fields that are unknown or null are passed over. Raises Refused, naming the field."""
    given: dict[str, Any] = {}
    settings: dict[str, Any] = {"max_new_tokens": ANSWER, "seed": secrets.randbits(63)}
    for name, (check, target) in FIELDS.items():
        if (value := body.get(name)) is None:
            continue
        try:
            given[name] = check(name, value)
        except UsageError as error:
            raise Refused(400, str(error), param=name) from None
        if target:
            settings[target] = given[name]
    if "messages" not in given:
        raise Refused(400, "messages must be a list of at least one message", param="messages")
    settings["top_k"] = max(0, settings["top_k"]) if "top_k" in settings else None  # -1: all, as vLLM writes it
    settings["enable_thinking"] = thinking(given)
    settings["response_format"] = wanted_format(given.get("response_format"))
    lifted = part_budget(given["messages"])
    if lifted is not None and "budget" in given:
        raise Refused(400, "budget is stated both in a part and for the request: state it once", param="budget")
    if lifted is not None:
        settings["budget"] = lifted
    options = given.get("stream_options", {}).get("include_usage", False)
    return Request(
        given["messages"], settings, media_settings(given), given.get("stream", False), options is True, logprobs(given),
        given.get("user", ""),
    )  # fmt: skip


def thinking(given: Mapping[str, Any]) -> bool:
    """Of the chat template's arguments only this one is taken: the others could change what the server does."""
    asked = given.get("chat_template_kwargs", {}).get("enable_thinking", given.get("enable_thinking", False))
    if not isinstance(asked, bool):
        raise Refused(400, f"enable_thinking is {shown(asked)}; it must be true or false", param="chat_template_kwargs")
    return asked


def wanted_format(asked: dict[str, Any] | None) -> dict[str, Any] | None:
    if asked is not None and asked.get("type") not in FORMATS:
        known = ", ".join(FORMATS)
        raise Refused(400, f"response_format.type is {shown(asked.get('type'))}; it must be one of {known}", param="response_format")  # fmt: skip
    return asked


def logprobs(given: Mapping[str, Any]) -> int | None:
    """The number of alternatives of each token, None where no logprobs are wanted."""
    if "top_logprobs" in given and not given.get("logprobs"):
        raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return int(given.get("top_logprobs", 0)) if given.get("logprobs") else None


def part_budget(messages: list[Any]) -> int | None:
    """Takes `budget` out of the part of the only video, where it is stated: videos of a request share one. Raises Refused."""
    videos, budgets = 0, []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or not any(part.get("type") == name or name in part for name in VIDEO):
                continue
            videos += 1
            for place in (part, *(part[name] for name in VIDEO if isinstance(part.get(name), dict))):
                if place.get("budget") is not None:
                    budgets.append(place.pop("budget"))
    if not budgets:
        return None
    if videos > 1:
        raise Refused(400, "videos of a request share one budget: state it beside messages", param="budget")
    try:
        return whole("budget", budgets[0])
    except UsageError as error:
        raise Refused(400, str(error), param="budget") from None


PIXELS = ("min_pixels", "max_pixels")
COUNTS = ("fps", "max_frames", "min_frames")


def media_settings(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of media by kind, from vLLM's arguments; keys that ivlite has no use for are passed over. Raises Refused."""
    out: dict[str, dict[str, Any]] = {"video": {}, "image": {}}
    processor = given.get("mm_processor_kwargs", {})
    size = processor.get("size") if isinstance(processor.get("size"), dict) else {}
    sides = {
        "min_pixels": size.get("shortest_edge"),
        "max_pixels": size.get("longest_edge"),
    }  # in pixels, as Qwen's have it
    for kind in out:
        found = {name: processor.get(name, sides[name]) for name in PIXELS}
        out[kind] |= {name: value for name, value in found.items() if value is not None}
    out["video"] |= {name: processor[name] for name in COUNTS if processor.get(name) is not None}
    inner = given.get("media_io_kwargs", {}).get("video", {})
    inner = inner if isinstance(inner, dict) else {}
    frames, rate = (processor.get("num_frames", inner.get("num_frames")), inner.get("fps"))
    if rate not in (None, -1):
        out["video"]["fps"] = rate
    if frames not in (None, -1):  # with a rate, it is the most
        out["video"]["max_frames" if "fps" in out["video"] else "nframes"] = frames
    return out
