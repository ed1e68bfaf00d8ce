"""One input of a batch: what is asked of which files, and what identifies it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ivlite import files
from ivlite.errors import IvliteError
from ivlite.media.source import is_base64, is_file, local_path, uri

FORM = 1  # of lines: raised where the same question gives another line
SIZE = 8  # bytes of each of the two digests in a line


@dataclass(frozen=True)
class Task:
    """An input. messages: as Model.stream takes them, whose media are files of this machine or data: URIs.

    id, shown: what its line begins with, {"video": ..., "prompt": ...}. settings: arguments of Model.stream. agent: None, or
    the budget of the agent that answers. base: the folder that paths are relative to. batch_api: whether the input was a line
    of OpenAI's Batch API, and its line is one, too.
    """

    id: str
    shown: Mapping[str, Any]
    messages: list[dict[str, Any]]
    settings: Mapping[str, Any]
    agent: Mapping[str, Any] | None = None
    base: str = ""
    batch_api: bool = False
    named: bool = False  # whether the input states its id, which no other may have then
    where: str = field(default="", compare=False)  # for messages: "inputs.jsonl line 3"

    def asked(self, model: str) -> str:
        """A digest of what is asked of a model, without what the files hold."""
        told = [FORM, model, self.id, dict(self.shown), self.messages, dict(self.settings), self.agent, self.batch_api]
        text = json.dumps(told, sort_keys=True, default=repr)  # a name that is no text is escaped
        return hashlib.blake2b(text.encode(), digest_size=SIZE).hexdigest()

    def sources(self) -> list[tuple[str, str]]:
        """(kind, source) of each medium, in order."""
        found: list[tuple[str, str]] = []
        for part in parts(self.messages):

            def seen(source: str, kind: str = part["type"]) -> None:
                found.append((kind, source))

            replaced(part, seen)
        return found

    def paths(self) -> dict[str, str]:
        """The absolute path of each source that names a file, by what names it."""
        named = [source for _, source in self.sources() if not is_base64(source)]
        return {source: self.path(source) for source in named}

    def path(self, source: str) -> str:
        """The absolute path of a file; a URI as it is."""
        if "\0" in source:
            return source
        path = os.path.normpath(os.path.join(self.base, os.fsdecode(files.expanded(source))))
        return source if uri(source) and not is_file(path) else path

    def content(self, report: Callable[[int, int], object] | None = None) -> str:
        """A digest of what the files hold now; one that cannot be read counts as such. Raises Stopped."""
        total = hashlib.blake2b(digest_size=SIZE)
        for source, path in self.paths().items():
            try:
                total.update(files.content_digest(local_path(path, "video")[0], report))
            except (IvliteError, OSError, ValueError) as error:
                if getattr(error, "reason", None):  # Stopped
                    raise
                total.update(b"unreadable " + source.encode(errors="surrogatepass"))
        return total.hexdigest()


def parts(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The media of messages, as parts {"type": "video", "video": source, ...}."""
    for message in messages:
        content = message.get("content")
        yield from (p for p in content if p["type"] != "text") if isinstance(content, list) else ()


def replaced(part: Mapping[str, Any], change: Callable[[str], Any]) -> dict[str, Any]:
    """A part with `change` applied to its source, or to those of its frames."""

    def each(source: Any) -> Any:
        if isinstance(source, list):
            return [each(frame) for frame in source]
        if isinstance(source, dict):
            return source | {"image": each(source.get("image"))}
        return change(source)

    return {**part, part["type"]: each(part[part["type"]])}
