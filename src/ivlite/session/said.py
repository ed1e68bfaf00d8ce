"""What is said in a session: messages in one form, the tokens of answers, media as plain data."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping

from ivlite.errors import MediaError, UsageError, shown
from ivlite.media.medium import Seen
from ivlite.media.memory import attribute, is_tensor
from ivlite.media.memory import named as path_of
from ivlite.media.source import is_file, named_path
from ivlite.prompt import Message, plain_messages
from ivlite.prompt.messages import listed, mapping

IN_MEMORY = re.compile(r"<\d+(x\d+| frames?| bytes)>")  # how media name sources that are no files


def question(text, videos=(), images=()):
    """The messages of `Session.ask`: a user's media and text, or `text` if it is a list of messages. Raises UsageError."""
    media = [*(part("video", v) for v in given("videos", videos)), *(part("image", i) for i in given("images", images))]
    if isinstance(text, str):
        return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]
    if text is None:
        raise UsageError("the question is None; it must be a text, or a list of messages")
    if media:
        raise UsageError("videos and images go with a text: put those of messages into the messages")
    return text


def given(name, sources):
    """Sources as a list: a single one need not be in one. Raises UsageError."""
    if sources is not None and is_source(sources):
        return [sources]
    found = listed(sources)
    if found is None:
        raise UsageError(f"{name} is {shown(sources)}; it must be a list of sources, in order")
    return found


def is_source(value):
    """Whether a value is a source or a part by itself, and no collection of them."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | memoryview | os.PathLike):
        return True
    arrays = is_tensor(value) or callable(attribute(value, "__array__"))
    return arrays or callable(attribute(value, "read")) or mapping(value) is not None


def part(kind, source):
    """A part of a message: a source, or the part itself."""
    return source if isinstance(source, Mapping) and source.get("type") == kind else {"type": kind, kind: source}


def published(messages, before=()):
    """Messages of any accepted form as published ones; iterators of frames become lists, paths absolute.

    Raises UsageError, MediaError (what was in memory when a session was saved). before: the published ones that they follow.
    """
    ids = [call.get("id") for call in before[-1].get("tool_calls", ())] if before else ()
    return [as_published(message) for message in plain_messages(messages, ids)]


def as_published(message: Message):
    parts = [{"type": p.kind, p.kind: p.value if p.kind == "text" else kept_source(p.kind, p.value), **p.settings}
             for p in message.parts]  # fmt: skip
    plain = all(p.kind == "text" for p in message.parts)
    out = {"role": message.role, "content": "".join(p["text"] for p in parts) if plain else parts}
    if message.calls:
        ids = [*message.ids, *[None] * (len(message.calls) - len(message.ids))]  # one in OpenAI's older form has none
        out["tool_calls"] = [as_call(*call, id) for call, id in zip(message.calls, ids, strict=True)]
    return out


def as_call(name, arguments, id=None):
    """A tool call of a message. arguments: as JSON text."""
    return ({} if id is None else {"id": id}) | {"type": "function", "function": {"name": name, "arguments": arguments}}


def kept_source(kind, value):
    """A source as a session keeps it: it means the same wherever the process goes, and as often as it is asked about."""
    check_kept(kind, value)
    if isinstance(value, Iterator) and not hasattr(value, "read"):
        value = list(value)
    return [kept_frame(item) for item in value] if isinstance(value, list | tuple) else rooted(value)


def kept_frame(item):
    """A frame of a video that is a list: a picture, or one with its time."""
    return {**item, "image": rooted(item["image"])} if isinstance(item, Mapping) and "image" in item else rooted(item)


def rooted(source):
    """The absolute path of a source that names a file (a path, a file: URI, an open file); any other source as it is."""
    found = path_of(source)
    if isinstance(found, bytes) and not is_file(found):
        return source  # the content of a file
    if not isinstance(found, str | bytes | os.PathLike) or hasattr(found, "close"):
        return source
    try:
        path = named_path(os.fsdecode(found), "file")
    except (MediaError, TypeError):  # who opens it says what is wrong
        return source
    return os.path.abspath(path) if is_file(path) else source


def check_kept(kind, source):
    """Raises MediaError for the name of a source that was in memory: a session's file does not keep pixels."""
    if isinstance(source, str) and IN_MEMORY.fullmatch(source) and not is_file(source):
        raise MediaError(f"{kind} {source} was handed over in memory and is not in the session's file: give it again")


def answered(messages, reply, continued):
    """The messages with the answer; continued: it goes on with the last one."""
    before = messages[-1]["content"] if continued else ""
    calls = [as_call(call.name, call.text, call.id) for call in reply.tool_calls]
    cut = reply.unfinished and "\n" * bool(reply.text or calls) + reply.unfinished  # as it stands in the tokens
    answer = {"role": "assistant", "content": before + reply.text + ("" if calls else cut)}
    if calls:
        answer["tool_calls"] = calls
    if reply.thinking:
        answer["thinking"] = reply.thinking
    return [*(messages[:-1] if continued else messages), answer]


def kept(tokenizer, ids, end):
    """(token ids, text that they leave out) of an answer whose text ends after `end` characters; None: all of it."""
    if end is None:
        return ids, ""
    text, stream, read, kept = tokenizer.decode(ids)[:end], tokenizer.stream(), 0, (0, 0)
    for n, token in enumerate(ids, 1):
        read += len(stream.push(token))
        if read > len(text):
            break
        if not stream.pending:
            kept = n, read
    return ids[: kept[0]], text[kept[1] :]


# ------------------------------------------------------------------------------------------------ plain data


def named(messages, media):
    """Messages as JSON data: media that are not paths or URIs become their names."""
    names = iter(medium.source for medium in media)
    return [
        message | {"content": [named_part(p, names) for p in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def named_part(given, names):
    kind = given["type"]
    if kind == "text":
        return given
    name, source = next(names), given[kind]
    short = isinstance(source, str | os.PathLike) and len(os.fspath(source)) < 4096
    return given | {kind: os.fsdecode(source) if short else name}


FIELDS = ("kind", "source", "size", "grid", "frames", "timestamps", "duration", "temporal")


def described(medium):
    """A Medium as JSON data."""
    data = {name: getattr(medium, name) for name in FIELDS}
    return data | {"size": [int(n) for n in medium.size], "grid": [int(n) for n in medium.grid]}


def seen(state, index):
    """The Seen of a medium of a SessionState."""
    keys = [key for (owner, _, _), key in zip(state.spans, state.keys, strict=True) if owner == index]
    return Seen(**{name: state.media[index][name] for name in FIELDS}, keys=keys)
