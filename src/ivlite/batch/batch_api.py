"""Lines of OpenAI's Batch API: requests of /v1/chat/completions as tasks, and answers in the form of its output file."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ivlite.errors import UsageError, shown

if TYPE_CHECKING:
    from ivlite.batch.task import Task

ENDPOINT = "/v1/chat/completions"
KEYS = {"custom_id", "method", "url", "body"}
# Fields of a body, and the arguments of Model.stream that they become; others are passed over, as the server does.
BECOMES = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p",
    "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty", "seed": "seed", "stop": "stop",
    "tools": "tools", "tool_choice": "tool_choice", "parallel_tool_calls": "parallel_tool_calls", "response_format": "response_format",
    "enable_thinking": "enable_thinking", "thinking_budget": "thinking_budget", "budget": "budget", "dedupe": "dedupe",
}  # fmt: skip
# What is known of the API and not supported, but for the value that changes nothing.
ONLY = {"n": 1, "stream": False, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}


def is_request(record: Mapping[str, Any]) -> bool:
    return "custom_id" in record or "body" in record


def request(record: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """(custom_id, messages, settings) of a line. Raises UsageError."""
    name, body = record.get("custom_id"), record.get("body")
    if not isinstance(name, str) or not isinstance(body, dict) or set(record) - KEYS:
        raise UsageError(
            'a request of the Batch API is {"custom_id": text, "method": "POST", "url": ..., "body": {...}}'
        )
    if record.get("url", ENDPOINT) != ENDPOINT or record.get("method", "POST") != "POST":
        raise UsageError(
            f"the request is {shown(record.get('method'))} {shown(record.get('url'))}; it must be POST {ENDPOINT}"
        )
    settings: dict[str, Any] = {}
    for key, value in body.items():
        if key in ONLY and value is not None and value != ONLY[key]:
            raise UsageError(f"{key} is {shown(value)}; a batch takes only {shown(ONLY[key])}")
        if key in BECOMES and value is not None:
            settings[BECOMES[key]] = value
    settings["top_k"] = (
        max(0, settings["top_k"]) if isinstance(settings.get("top_k"), int) else settings.get("top_k")
    )  # -1: all
    template = body.get("chat_template_kwargs")
    if isinstance(template, dict) and template.get("enable_thinking") is not None:
        settings["enable_thinking"] = template["enable_thinking"]
    return name, body.get("messages"), {key: value for key, value in settings.items() if value is not None}


def line(task: "Task", mark: str, told: dict[str, Any] | None, error: dict[str, Any] | None) -> dict[str, Any]:
    """The output line: `created` is 0, so that the same batch gives the same bytes."""
    name = f"batch_req_{mark[:16]}"
    fault = None if error is None else {"code": error["class"], **error}
    response = None if told is None else {"status_code": 200, "request_id": name, "body": completion(task, name, told)}
    return {"id": name, "custom_id": task.id, "response": response, "error": fault, "task": mark}


def completion(task: "Task", name: str, told: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": told["text"]}
    if told["thinking"]:
        message["reasoning_content"] = told["thinking"]
    if told["tool_calls"]:
        message["tool_calls"] = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": json.dumps(c["arguments"], ensure_ascii=False)}}
            for c in told["tool_calls"]
        ]  # fmt: skip
    usage, reason = told["usage"], told["finish_reason"]
    counts = {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage["new_tokens"]}
    return {
        "id": f"chatcmpl-{name}", "object": "chat.completion", "created": 0, "model": task.shown.get("model", ""),
        "choices": [{"index": 0, "message": message, "finish_reason": "length" if reason == "repetition" else reason, "logprobs": None}],
        "usage": counts | {"total_tokens": sum(counts.values())},
    }  # fmt: skip
