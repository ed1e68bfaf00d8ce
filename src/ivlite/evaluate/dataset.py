"""Prompts to calibrate and judge with: a folder of media, a file of JSON lines, or the built-in texts."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from ivlite.errors import MediaError, UsageError

ASK = {
    "video": "Please describe this video in detail.",
    "image": "Please describe this image in detail.",
    "text": "Please introduce yourself.",
}
SUFFIXES = {
    "video": (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif"),
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"),
}
KINDS = ("text", "image", "video")
FORM = 'a line is {"messages": [...]} or {"video" or "image": path, "prompt": text} or {"prompt": text}'


@dataclass(frozen=True)
class Sample:
    """One conversation as Model.prepare takes it. label: where it comes from. key: the same for the same content."""

    messages: list
    label: str

    @property
    def kind(self):
        """ "video" where there is one, else "image" where there is one, else "text"."""
        kinds = {part.get("type") for part in self._parts()}
        return next((kind for kind in ("video", "image") if kind in kinds), "text")

    @property
    def key(self):
        """A digest of the messages, in which a file counts by its name and size, not by its folder."""
        plain = json.loads(json.dumps(self.messages))
        for part in parts(plain):
            if part.get("type") in SUFFIXES:
                path = part[part["type"]]
                part[part["type"]] = f"{os.path.basename(path)} {os.path.getsize(path)}"
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def _parts(self):
        return parts(self.messages)


def parts(messages):
    """Every part of every message that has parts."""
    for message in messages:
        content = message.get("content")
        yield from (p for p in content if isinstance(p, dict)) if isinstance(content, list) else ()


def read(data=None):
    """The Samples of a folder, of a .jsonl file, or (None) of the built-in texts.

    Raises UsageError (no such data, or a malformed line), MediaError (a file that a line names is missing).
    """
    if data is None:
        return built_in()
    path = Path(data)
    found = folder(path) if path.is_dir() else json_lines(path)
    if not found:
        raise UsageError(f"{data} holds no prompts: give a folder of videos and images, or a file of JSON lines")
    return found


def built_in():
    """A text per sample: questions, most with an answer, in a dozen languages and some code."""
    samples = []
    for number, entry in enumerate((Path(__file__).parent / "texts.txt").read_text("utf-8").split("\n----\n")):
        question, _, answer = entry.strip().removeprefix("? ").partition("\n")
        messages = [{"role": "user", "content": question}]
        if answer:
            messages.append({"role": "assistant", "content": answer})
        samples.append(Sample(messages, f"built-in text {number + 1}"))
    return samples


def folder(path):
    """One Sample per video and image below a folder, in the order of their names."""
    samples = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        kind = next((kind for kind, ends in SUFFIXES.items() if file.suffix.lower() in ends), None)
        if kind:
            samples.append(Sample(question(kind, str(file), ASK[kind]), str(file.relative_to(path))))
    return samples


def question(kind, path, text):
    """A user message about one file (or, kind "text", none)."""
    content = [{"type": "text", "text": text}]
    return [{"role": "user", "content": content if kind == "text" else [{"type": kind, kind: path}, *content]}]


def json_lines(path):
    """One Sample per line; paths are relative to the file's folder."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{path} cannot be read: {reason}; give a folder or a file of JSON lines") from None
    return [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _line(path, number, line):
    where = f"{path} line {number}"
    try:
        record = json.loads(line)
    except ValueError:
        raise UsageError(f"{where} is not JSON: {FORM}") from None
    messages = _messages(record)
    if messages is None:
        raise UsageError(f"{where} is not a prompt: {FORM}")
    for part in parts(messages):
        kind = part.get("type")
        if kind in SUFFIXES:
            if not isinstance(part.get(kind), str):
                raise UsageError(f"{where}: the {kind} is not a path")
            part[kind] = str(path.parent / part[kind])
            if not os.path.isfile(part[kind]):
                raise MediaError(f"{where}: {kind} {part[kind]} does not exist: check the path")
    return Sample(messages, f"{path.name} line {number}")


def _messages(record):
    """The messages of a line, or None where it has another form."""
    if not isinstance(record, dict):
        return None
    if "messages" in record:
        given = record["messages"]
        good = isinstance(given, list) and given and all(isinstance(m, dict) for m in given)
        return given if good and set(record) == {"messages"} else None
    kinds = [kind for kind in SUFFIXES if kind in record]
    kind = kinds[0] if kinds else "text"
    prompt = record.get("prompt", None if kind == "text" else ASK[kind])
    if len(kinds) > 1 or set(record) - {kind, "prompt"} or not isinstance(prompt, str) or not prompt.strip():
        return None
    return question(kind, record.get(kind), prompt)
