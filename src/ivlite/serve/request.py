"""A chat request: its body, checked, as arguments of Model.stream."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ivlite.errors import UsageError, shown
from ivlite.numbers import whole
from ivlite.serve.fields import CHAT, WHOLE_EFFORTS, Field
from ivlite.serve.wire import Refused

ANSWER = 4096  # tokens of an answer whose request states no limit
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
    include_progress: bool = False
    logprobs: int | None = None
    user: str = ""
    release: Callable[[], object] = lambda: None  # gives back the memory of the body


def read(body: Mapping[str, Any]) -> Request:
    """The Request of a body; fields that are unknown or null are passed over. Raises Refused, naming the field."""
    given: dict[str, Any] = {}
    settings: dict[str, Any] = {"max_new_tokens": ANSWER, "seed": secrets.randbits(63)}
    for name, wanted in CHAT.items():
        if (value := checked(name, wanted, body)) is not None:
            given[name] = value
            settings |= {wanted.becomes: value} if wanted.becomes else {}
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
    options = given.get("stream_options", {})
    usage, progress = (options.get(name) is True for name in ("include_usage", "include_progress"))
    return Request(
        given["messages"], settings, media_settings(given), given.get("stream", False), usage, progress, logprobs(given),
        given.get("user", ""),
    )  # fmt: skip


def checked(name: str, wanted: Field, body: Mapping[str, Any]) -> Any:
    """The value of a field, None where there is none. Raises Refused, naming the field."""
    if (value := body.get(name)) is None:
        return None
    try:
        return wanted.check(name, value)
    except UsageError as error:
        raise Refused(400, str(error), param=name) from None


def thinking(given: Mapping[str, Any]) -> bool:
    """Of the chat template's arguments only this one is taken: the others could change what the server does."""
    effort = given.get("reasoning_effort") in WHOLE_EFFORTS
    asked = given.get("chat_template_kwargs", {}).get("enable_thinking", given.get("enable_thinking", effort))
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
    if given.get("top_logprobs") and not given.get("logprobs"):
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
