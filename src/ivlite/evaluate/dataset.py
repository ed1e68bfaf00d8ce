"""Prompts to calibrate and evaluate with: a folder of media, a file of JSON lines, or the built-in texts."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ivlite.errors import MediaError, UsageError, shown
from ivlite.files import opened, reason
from ivlite.stop import checkpoint

# Modules for messages and media are imported lazily: `ivlite --help` imports this module for ASK, and must be fast.

ASK = {
    "video": "Please describe this video in detail.",
    "image": "Please describe this image in detail.",
    "text": "Please introduce yourself.",
}
WHOLE = 1 << 24  # bytes; the digest of a larger file covers BLOCKS blocks, evenly spaced
BLOCKS, BLOCK = 64, 1 << 18
LINE = 1 << 28  # bytes of a line of JSON, which may hold images as data: URIs
KINDS = ("text", "image", "video")
MEDIA = ("video", "image")
FORM = 'a line is {"messages": [...]} or {"video" or "image": path, "prompt": text} or {"prompt": text}'


@dataclass(frozen=True)
class Sample:
    """One conversation for Model.prepare. label: its origin. key: equal for equal content."""

    messages: list
    label: str

    @property
    def kind(self):
        """ "video" if there is one, else "image" if there is one, else "text"."""
        kinds = {part.get("type") for part in self._parts()}
        return next((kind for kind in ("video", "image") if kind in kinds), "text")

    @property
    def key(self):
        """A digest of the messages; files count by their content, not by their path."""
        import hashlib  # loads OpenSSL, which --help does not need

        plain = json.loads(json.dumps(self.messages))
        for part in parts(plain):
            if part.get("type") in MEDIA:
                part[part["type"]] = each_source(part[part["type"]], digest)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def sources(self):
        """Every path and data: URI of its media; of a list of frames those of all."""
        found = []
        for part in self._parts():
            if part.get("type") in MEDIA:
                each_source(part[part["type"]], found.append)
        return found

    def _parts(self):
        return parts(self.messages)


def parts(messages):
    """Yields all parts of all messages that have parts."""
    for message in messages:
        content = message.get("content")
        yield from (p for p in content if isinstance(p, dict)) if isinstance(content, list) else ()


def each_source(source, change):
    """Applies `change` to the path of a medium's source, or to those of all frames in a list."""
    if isinstance(source, list):
        return [each_source(frame, change) for frame in source]
    if isinstance(source, dict):
        return source | {"image": change(source.get("image"))}
    return change(source)


def digest(source):
    """A digest of the file at a path; a source that holds its data itself is returned unchanged."""
    from ivlite.media.source import is_base64

    if is_base64(source):
        return source
    checkpoint()
    try:
        info = os.stat(source)
        return _digest(source, info.st_size, info.st_mtime_ns)
    except OSError:  # the prompt will be left out when the file is opened, with the reason
        return source


@cache
def _digest(path, size, _):
    import hashlib

    found = hashlib.sha256(str(size).encode())
    with opened(path) as file:
        if size <= WHOLE:
            found.update(file.read())
        for n in range(BLOCKS if size > WHOLE else 0):
            file.seek((size - BLOCK) * n // (BLOCKS - 1))
            found.update(file.read(BLOCK))
    return found.hexdigest()


def read(data=None, note=lambda sentence: None):
    """The Samples of a folder, of a video or image, of a .jsonl file, or (None) of the built-in texts.

    note(sentence) is called for skipped files of a folder. Raises UsageError (no such data, or a malformed line),
    MediaError (a file named in a line is missing).
    """
    if data is None:
        return built_in()
    from ivlite.media import folders
    from ivlite.media.source import named_path

    path = Path(named_path(os.fspath(data), "data"))
    if "\0" in str(path):
        raise UsageError(f"{path} cannot be read: no name holds a zero; give a folder or a file of JSON lines")
    kind = folders.kind_of(path.name)
    if kind and os.path.isfile(path):  # Path.is_file() raises for long paths
        return [Sample(question(kind, str(path), ASK[kind]), path.name)]
    found = folder(path, note) if os.path.isdir(path) else json_lines(path)
    if not found:
        raise UsageError(f"{data} holds no prompts: give a folder of videos and images, or a file of JSON lines")
    return found


def built_in():
    """The built-in texts, one per Sample: questions, most with an answer, in a dozen languages, and some code."""
    samples = []
    for number, entry in enumerate((Path(__file__).parent / "texts.txt").read_text("utf-8").split("\n----\n")):
        question, _, answer = entry.strip().removeprefix("? ").partition("\n")
        messages = [{"role": "user", "content": question}]
        if answer:
            messages.append({"role": "assistant", "content": answer})
        samples.append(Sample(messages, f"built-in text {number + 1}"))
    return samples


def folder(path, note=lambda sentence: None):
    """One Sample per video and image in a folder and its subfolders, sorted by name, without hidden ones.

    note(sentence) reports what is passed over: files of other types, folders that cannot be read, links to folders.
    """
    from ivlite.media import folders

    samples, others, broken = [], [], []
    try:
        files = sorted(map(Path, folders.files(path, note)))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    for file in files:
        checkpoint()
        kind = folders.kind_of(file.name)
        if kind and file.is_file():
            samples.append(Sample(question(kind, str(file), ASK[kind]), str(file.relative_to(path))))
        else:
            (broken if kind else others).append(file)
    for paths, why in ((others, folders.OTHERS), (broken, folders.BROKEN)):
        if paths:
            note(folders.passed_over(path, paths, why))
    return samples


def question(kind, path, text):
    """A user message about one file (or, kind "text", none)."""
    content = [{"type": "text", "text": text}]
    return [{"role": "user", "content": content if kind == "text" else [{"type": kind, kind: path}, *content]}]


def json_lines(path):
    """One Sample per line; paths are relative to the file's folder. Raises UsageError, MediaError."""
    samples = []
    try:
        with opened(path) as file:
            lines = iter(lambda: file.readline(LINE + 1), b"")  # of bytes: only a line feed ends a line of JSON
            for number, line in enumerate(lines, 1):
                checkpoint()
                if len(line) > LINE:
                    raise UsageError(f"{path} line {number} is longer than {LINE >> 20} MB: {FORM}")
                line = line.removeprefix(b"\xef\xbb\xbf")  # files laid end to end have several
                if line.strip():
                    samples.append(_line(path, number, line))
    except OSError as error:
        advice = "give a folder or a file of JSON lines"
        raise UsageError(f"{path} cannot be read: {reason(error, otherwise=advice)}") from None
    return samples


def _line(path, number, line):
    where = f"{path} line {number}"
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        at = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
        raise UsageError(f"{where} cannot be read: it is not UTF-8 text ({at}); convert the file") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is not JSON: {FORM}") from None
    messages = _messages(record)
    if messages is None:
        raise UsageError(f"{where} is not a prompt: {FORM}")
    try:
        return Sample(plain(messages, path.parent), f"{path.name} line {number}")
    except (UsageError, MediaError) as error:
        raise type(error)(f"{where}: {error}") from None


def plain(messages, folder):
    """The messages in normalized form, with absolute paths. Raises UsageError, MediaError."""
    from ivlite.prompt.messages import plain_message

    found = []
    for index, given in enumerate(messages):
        message = plain_message(index, given)
        for part in message.parts:
            if part.kind != "text":
                part.value = each_source(part.value, lambda source, kind=part.kind: located(source, kind, folder))
        content = [{"type": p.kind, p.kind: p.value, **p.settings} for p in message.parts]
        if len(content) == 1 and content[0]["type"] == "text":
            content = content[0]["text"]
        calls = [{"name": name, "arguments": arguments} for name, arguments in message.calls]
        found.append({"role": message.role, "content": content} | ({"tool_calls": calls} if calls else {}))
    return found


def located(source, kind, folder):
    """The absolute path of a file named in a line; a data: URI unchanged. Raises UsageError, MediaError."""
    from ivlite.media.source import is_base64, named_path

    if not isinstance(source, str):
        raise UsageError(f"the {kind} is {shown(source)}, which is not a path")
    if is_base64(source):
        return source
    path = os.path.join(folder, named_path(source, kind))
    if not os.path.isfile(path):
        raise MediaError(f"{kind} {path} does not exist: check the path")
    return path


def _messages(record):
    """The messages of a line, or None if it is malformed."""
    if not isinstance(record, dict):
        return None
    record = {key: value for key, value in record.items() if value is not None}
    if "messages" in record:
        given = record["messages"]
        good = isinstance(given, list) and given and all(isinstance(m, dict) for m in given)
        return given if good and set(record) == {"messages"} else None
    kinds = [kind for kind in MEDIA if kind in record]
    kind = kinds[0] if kinds else "text"
    prompt = record.get("prompt", None if kind == "text" else ASK[kind])
    if len(kinds) > 1 or set(record) - {kind, "prompt"} or not isinstance(prompt, str) or not prompt.strip():
        return None
    return question(kind, record.get(kind), prompt)
