"""Inputs of a batch: videos, and lists of them with a prompt of their own, as Tasks.

A list has a line per input: a path, {"video": ..., "prompt": ..., "id": ..., settings}, or a request of OpenAI's Batch API.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivlite.agent.agent import MOST as MOST_VIDEOS
from ivlite.agent.agent import QUESTION
from ivlite.agent.budget import Budget
from ivlite.batch import batch_api
from ivlite.batch.checks import check_medium, check_settings, check_texts
from ivlite.batch.task import Task
from ivlite.errors import UsageError, shown
from ivlite.evaluate.dataset import ASK
from ivlite.prompt import plain_messages
from ivlite.prompt.messages import RATE, SETTINGS, Part, refuse_unknown, sharpness
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


def check(defaults: Defaults) -> None:
    """Raises UsageError for defaults that no input could be asked with."""
    if defaults.agent is None:
        check_settings(defaults.settings)
    else:
        Budget(**defaults.agent)


def of_paths(paths: Iterable[str], defaults: Defaults, base: str) -> Iterator[Task]:
    """A Task for each video."""
    for path in paths:
        yield of_record({"video": path}, defaults, base, path)


def of_list(data: bytes, name: str, defaults: Defaults, base: str) -> Iterator[Task]:
    """The Tasks of a list. Lines end with a line feed, or with a null where there is one. Raises UsageError, naming the line."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"the list {name} is UTF-16 text: save it as UTF-8")
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
    check_texts(system, prompt)
    echo = {kind: record[kind] for kind in media} | {"prompt": prompt}
    asked = (
        settings(record, defaults, media)
        if defaults.agent is None
        else by_agent(record, defaults, prompt, media.get("video", ()))
    )
    return Task(name, echo, messages, asked, defaults.agent, base, named="id" in record, where=where)


def sources(kind: str, value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(source, str) and source for source in found):
        raise UsageError(f"{kind} is {shown(value)}; it must be a path or a list of paths")
    return found


def part(kind: str, source: str, record: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """A part of the message, with what the line states of it. Raises UsageError."""
    stated = sharpness(kind, {name: record[name] for name in SETTINGS[kind] if name in record})
    return {"type": kind, kind: source, **medium(kind, source, stated, defaults)}


def medium(kind: str, source: Any, stated: Mapping[str, Any], defaults: Defaults) -> dict[str, Any]:
    """The settings of a video or an image over the defaults, which say nothing of frames whose number is stated. Raises UsageError."""
    given = defaults.media.get(kind, {})
    left = {name: value for name, value in given.items() if name not in RATE or "nframes" not in stated}
    found = {**left, **stated}
    if stated:  # the defaults alone were checked
        check_medium(kind, source, found)
    return found


def settings(record: Mapping[str, Any], defaults: Defaults, media: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a line over the defaults. Raises UsageError, also for one that says nothing of what the line names."""
    idle = [name for name in MEDIA if name in record and not any(name in SETTINGS[kind] for kind in media)]
    if idle:
        about = "videos and images" if idle[0] in SETTINGS["image"] else "videos"
        raise UsageError(f"{idle[0]} is about {about}, and the line names none")
    return over(defaults.settings, {name: record[name] for name in ANSWER if name in record})


def by_agent(record: Mapping[str, Any], defaults: Defaults, prompt: str, videos: Sequence[str]) -> dict[str, Any]:
    """The settings of a line that the agent answers. Raises UsageError where the agent has none of that name, or has limits."""
    for name in record:
        if name in (*ANSWER, *MEDIA, "system", "image") and name not in BY_AGENT:
            raise UsageError(f"the agent takes no {name}")
    if not 1 <= len(set(videos)) <= MOST_VIDEOS:
        raise UsageError(f"the agent needs a video, and takes {MOST_VIDEOS} at most: the line names {len(set(videos))}")
    if len(prompt) > QUESTION:
        raise UsageError(f"prompt has {len(prompt):,} characters; the agent takes {QUESTION:,} at most")
    stated = {name: record[name] for name in BY_AGENT if name in record}
    over({}, stated)
    return {**defaults.settings, **stated}


def over(defaults: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of Model.stream over the defaults. Raises UsageError."""
    found = {**defaults, **stated}
    if stated:  # the defaults alone were checked
        check_settings(found)
    return found


def of_request(record: Mapping[str, Any], defaults: Defaults, base: str, where: str) -> Task:
    """The Task of a request of the Batch API. Raises UsageError."""
    if defaults.agent is not None:
        raise UsageError("the agent does not answer requests of the Batch API: leave --agent out")
    name, given, stated = batch_api.request(record)
    check_texts(defaults.system)
    messages: list[dict[str, Any]] = []
    for message in plain_messages(given if given is not None else ()):
        content = [of_part(p, defaults) for p in message.parts]
        calls = [{"name": called, "arguments": arguments} for called, arguments in message.calls]
        messages.append({"role": message.role, "content": content} | ({"tool_calls": calls} if calls else {}))
    if defaults.system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": defaults.system})
    model = record["body"].get("model")
    echo, asked = {"model": model} if isinstance(model, str) else {}, over(defaults.settings, stated)
    task = Task(name, echo, messages, asked, None, base, batch_api=True, named=True, where=where)
    for kind, source in task.sources():
        if not isinstance(source, str) or not source:
            raise UsageError(f"the {kind} is {shown(source)}; it must be a path or a data: URI")
    return task


def of_part(part: Part, defaults: Defaults) -> dict[str, Any]:
    """A part of a request over the defaults of its kind. Raises UsageError."""
    try:
        return {"type": part.kind, part.kind: part.value, **medium(part.kind, part.value, part.settings, defaults)}
    except UsageError as error:
        raise UsageError(f"{part.where}: {error}") from None


def checked(tasks: Iterable[Task]) -> Sequence[Task]:
    """The tasks as a list. Raises UsageError where two have one id, and one of them states it."""
    found: list[Task] = []
    first: dict[str, Task] = {}
    for task in tasks:
        checkpoint()
        if len(found) >= MOST:
            raise UsageError(f"there are more than {MOST:,} inputs: give them in several batches")
        other = first.setdefault(task.id, task)
        if other is not task and (task.named or other.named):
            raise UsageError(f"{task.where}: the id {shown(task.id)} is that of {other.where}, too")
        found.append(task)
    return found
