"""Inputs of a batch: videos, and lists of them with a prompt of their own, as Tasks.

A list has a line per input: a path, {"video": ..., "prompt": ..., "id": ..., settings}, or a request of OpenAI's Batch API.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivlite.batch import batch_api
from ivlite.batch.task import Task
from ivlite.errors import UsageError, shown
from ivlite.evaluate.dataset import ASK
from ivlite.prompt import plain_messages
from ivlite.prompt.messages import SETTINGS, refuse_unknown
from ivlite.stop import checkpoint

MOST = 1_000_000  # inputs
ANSWER = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "budget", "dedupe", "response_format",
    "tools", "tool_choice", "enable_thinking", "thinking_budget",
)  # fmt: skip
MEDIA = tuple(dict.fromkeys([*SETTINGS["video"], *SETTINGS["image"]]))
BY_AGENT = ("temperature", "seed")  # what a line may say of an answer by the agent
KINDS = ("video", "image")
KEYS = {"id", "prompt", "system", *KINDS, *MEDIA, *ANSWER}


@dataclass(frozen=True)
class Defaults:
    """What an input takes that states nothing itself. prompt: None for a description. media: settings of a part, by kind.

    settings: arguments of Model.stream, or of the Agent where agent is its budget.
    """

    prompt: str | None = None
    system: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    agent: Mapping[str, Any] | None = None


def of_paths(paths: Iterable[str], defaults: Defaults, base: str) -> Iterator[Task]:
    """A Task for each video."""
    for path in paths:
        yield of_record({"video": path}, defaults, base, path)


def of_list(data: bytes, name: str, defaults: Defaults, base: str) -> Iterator[Task]:
    """The Tasks of a list. Lines end with a line feed, or with a null where there is one. Raises UsageError, naming the line."""
    end = b"\0" if b"\0" in data else b"\n"
    for number, line in enumerate(data.split(end), 1):
        checkpoint()
        line = line.removeprefix(b"\xef\xbb\xbf")  # files laid end to end have several
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            yield of_line(line, defaults, base, where)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def of_line(line: bytes, defaults: Defaults, base: str, where: str) -> Task:
    text = os.fsdecode(line.removesuffix(b"\r"))  # names of files need be no text
    if not text.lstrip().startswith("{"):
        return of_record({"video": text}, defaults, base, where)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"it is no JSON ({error!s:.100})") from None
    record = {key: value for key, value in record.items() if value is not None}
    if batch_api.is_request(record):
        return of_request(record, defaults, base, where)
    return of_record(record, defaults, base, where)


def of_record(record: Mapping[str, Any], defaults: Defaults, base: str, where: str) -> Task:
    """The Task of a line in our own form. Raises UsageError."""
    refuse_unknown("the input", record, KEYS)
    media = {kind: sources(kind, record[kind]) for kind in KINDS if kind in record}
    ids = [source for found in media.values() for source in found]
    prompt = record.get("prompt", defaults.prompt)
    prompt = prompt if prompt is not None else ASK[next((kind for kind in KINDS if kind in media), "text")]
    system, name = record.get("system", defaults.system), record.get("id", ids[0] if ids else prompt)
    for key, value in (("prompt", prompt), ("system", system or "-"), ("id", name)):
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{key} is {shown(value)}; it must be a text")
    if not ids and "prompt" not in record:
        raise UsageError("it names no video, no image and no prompt")
    content = [part(kind, source, record, defaults) for kind in media for source in media[kind]]
    content.append({"type": "text", "text": prompt})
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": content})
    checked_text(messages, prompt, system)
    echo = {kind: record[kind] for kind in media} | {"prompt": prompt}
    return Task(
        name, echo, messages, settings(record, defaults, media), defaults.agent, base, named="id" in record, where=where
    )


def checked_text(messages: list[dict[str, Any]], prompt: str, system: str | None) -> None:
    """Raises UsageError for a text that has no UTF-8 form."""
    plain_messages([{"role": "user", "content": f"{system or ''}{prompt}"}])


def sources(kind: str, value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(source, str) and source for source in found):
        raise UsageError(f"{kind} is {shown(value)}; it must be a path or a list of paths")
    return found


def part(kind: str, source: str, record: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    stated = {name: record[name] for name in SETTINGS[kind] if name in record}
    return {"type": kind, kind: source, **defaults.media.get(kind, {}), **stated}


def settings(record: Mapping[str, Any], defaults: Defaults, media: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a line over the defaults. Raises UsageError where the agent has none of that name."""
    stated = {name: record[name] for name in ANSWER if name in record}
    if defaults.agent is None:
        return {**defaults.settings, **stated}
    wrong = [name for name in record if name in (*ANSWER, *MEDIA, "system", "image") and name not in BY_AGENT]
    if wrong or "video" not in media:
        raise UsageError(f"the agent takes no {wrong[0]}" if wrong else "the agent needs a video")
    return {**defaults.settings, **stated}


def of_request(record: Mapping[str, Any], defaults: Defaults, base: str, where: str) -> Task:
    """The Task of a request of the Batch API. Raises UsageError."""
    if defaults.agent is not None:
        raise UsageError("the agent does not answer requests of the Batch API: leave --agent out")
    name, given, stated = batch_api.request(record)
    messages = []
    for message in plain_messages(given if given is not None else ()):
        content = [{"type": p.kind, p.kind: p.value, **p.settings} for p in message.parts]
        calls = [{"name": called, "arguments": arguments} for called, arguments in message.calls]
        messages.append({"role": message.role, "content": content} | ({"tool_calls": calls} if calls else {}))
    model = record["body"].get("model")
    shown_model = {"model": model} if isinstance(model, str) else {}
    task = Task(
        name,
        shown_model,
        messages,
        {**defaults.settings, **stated},
        None,
        base,
        batch_api=True,
        named=True,
        where=where,
    )
    for kind, source in task.sources():
        if not isinstance(source, str) or not source:
            raise UsageError(f"the {kind} is {shown(source)}; it must be a path or a data: URI")
    return task


def checked(tasks: Iterable[Task]) -> Sequence[Task]:
    """The tasks as a list. Raises UsageError where two have one id."""
    found: list[Task] = []
    first: dict[str, str] = {}
    for task in tasks:
        checkpoint()
        if len(found) >= MOST:
            raise UsageError(f"there are more than {MOST:,} inputs: give them in several batches")
        if task.named and first.setdefault(task.id, task.where) != task.where:
            raise UsageError(f"{task.where}: the id {shown(task.id)} is that of {first[task.id]}, too")
        found.append(task)
    return found
