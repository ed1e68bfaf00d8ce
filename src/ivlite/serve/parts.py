"""Messages of clients as the model takes them: media become files of this machine, frames with times become videos."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from ivlite.errors import MediaError, UsageError
from ivlite.media.animation import is_image
from ivlite.media.memory import file_data
from ivlite.numbers import number
from ivlite.prompt import Message, plain_messages
from ivlite.prompt.messages import Part
from ivlite.serve.files import FILE_ID, Files
from ivlite.serve.roots import Roots
from ivlite.serve.wire import Refused

MOST_MEDIA = 4096  # pictures and videos of one request
MARK = re.compile(r"\s*<(\d{1,7}(?:\.\d{1,6})?) seconds>\s*")
DATA = re.compile(r"data:([^,]{0,1000}),", re.IGNORECASE)
ADDRESS = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64}")
LATER = 1e-6  # seconds: times that clients round to the same tenth

ADDRESSES = "addresses are not fetched: send a data: URI, or upload the file to /v1/files and use its id"
NO_FOLDER = "file:// URIs are not read: the server was started without --media-root"
NO_FILE = "there is no file of this URI that the server may read: see --media-root"
NO_UPLOAD = "there is no uploaded file of this id: upload it to /v1/files again"
NO_SOURCE = "the source must be a data: URI, the id of an uploaded file, or a file:// URI under --media-root"


class Sources:
    """Where media of one request may come from. root: the folder of file:// URIs, or None. opened(path, name): what becomes
    of a file, which messages call `name`.

    A context manager: what came within the request is a file until its end.
    """

    def __init__(self, files: Files, root: Path | None, opened: Callable[[str, str], Any]) -> None:
        self.files, self.root, self.opened = files, root, opened
        self._kept: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path in self._kept:
            path.unlink(missing_ok=True)

    def _keep(self, text: str, kind: str) -> Any:
        """The medium of a data: URI. Raises Refused."""
        try:
            data = file_data(text, kind)
        except MediaError:
            data = None
        if data is None:
            raise media_error(f"the {kind} is a data: URI that is empty or damaged")
        self._kept.append(self.files.keep(data.content))
        return self.opened(str(self._kept[-1]), data.name)

    def medium(self, text: str, kind: str) -> Any:
        """An image or video; what is sent within the request becomes a file. Raises Refused."""
        start = text[:1024].lstrip()
        if re.match("file:", start, re.IGNORECASE):
            return self.opened(self._local(text.strip()), text.strip())
        if DATA.match(start):
            return self._keep(text.lstrip(), kind)
        if ADDRESS.match(start):
            raise media_error(ADDRESSES)
        if start.startswith("file-"):
            found = self.files.path(text) if FILE_ID.fullmatch(text) else None
            if found is None:
                raise media_error(NO_UPLOAD)
            return self.opened(str(found), text)
        if BASE64.match(start) and len(start) >= 64:
            return self._keep(f"data:;base64,{text}", kind)
        raise media_error(NO_SOURCE)

    def _local(self, uri: str) -> str:
        """The path of a file:// URI: the same sentence whether the file does not exist or lies elsewhere."""
        if self.root is None:
            raise media_error(NO_FOLDER)
        if (path := Roots([self.root]).uri(uri)) is None:
            raise media_error(NO_FILE)
        return path


def media_error(message: str) -> Refused:
    return Refused(400, message, param="messages", code="invalid_media")


def readable(messages: Any, sources: Sources, defaults: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a request in the published form, with media as the sources open them.

    defaults: settings by kind of medium, for parts that state none. Raises Refused, UsageError.
    """
    given = plain_messages([named(message, sources.files) for message in messages])
    if sum(part.kind != "text" for message in given for part in message.parts) > MOST_MEDIA:
        raise media_error(f"a request has at most {MOST_MEDIA:,} images and videos")
    return [published(message, sources, defaults) for message in given]


def named(message: Any, files: Files) -> Any:
    """The message with OpenAI's parts for files of any kind as images or videos, by their first bytes."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [medium_part(part, files) for part in content]}


def medium_part(part: Any, files: Files) -> Any:
    if not isinstance(part, dict) or part.get("type") not in ("file", "input_file"):
        return part
    inner = part.get("file", part)
    value = next((inner[key] for key in ("file_id", "file_data") if isinstance(inner, dict) and inner.get(key)), None)
    if not isinstance(value, str):
        raise media_error("a file part needs file_id or file_data")
    path = files.path(value) if FILE_ID.fullmatch(value) else None
    picture = is_image(lambda: open(path, "rb"), "") if path else re.match(r"\s*data:image/", value[:64], re.IGNORECASE)
    kind = "image" if picture else "video"
    return {"type": kind, kind: value}


def published(message: Message, sources: Sources, defaults: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": []}
    for part in timed(message.parts):
        if part.kind == "text":
            out["content"].append({"type": "text", "text": part.value})
            continue
        settings = over(defaults.get(part.kind, {}), part.settings)
        value = source(part, sources)
        out["content"].append({"type": part.kind, part.kind: value, **settings})
    if message.calls:
        out["tool_calls"] = [{"name": name, "arguments": arguments} for name, arguments in message.calls]
    return out


COUNTS = {"nframes", "fps", "max_frames", "min_frames"}


def over(defaults: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a part: where it says how many frames are used, the request's counts do not."""
    if COUNTS & stated.keys():
        defaults = {name: value for name, value in defaults.items() if name not in COUNTS}
    return {**defaults, **stated}


def source(part: Part, sources: Sources) -> Any:
    """The medium of a part: a file, or frames that are files. Raises Refused, UsageError."""
    value = part.value
    if isinstance(value, str):
        many = re.match(r"\s*data:video/jpeg;base64,", value[:64], re.IGNORECASE)
        if not many or part.kind != "video":
            return sources.medium(value, part.kind)
        value = [f"data:image/jpeg;base64,{frame}" for frame in value[many.end() :].split(",", MOST_MEDIA)]
    if part.kind != "video" or not isinstance(value, list) or not 0 < len(value) <= MOST_MEDIA:
        raise UsageError(f"{part.where}: {NO_SOURCE}; a video may also be a list of 1 to {MOST_MEDIA:,} frames")
    return [frame(part, n, item, sources) for n, item in enumerate(value)]


def frame(part: Part, n: int, item: Any, sources: Sources) -> Any:
    """A frame of a list: an image, or {"t": seconds, "image": ...}."""
    timed = isinstance(item, dict) and "image" in item
    image = item["image"] if timed else item
    for key in ("image_url", "url"):  # as an image part has it
        image = image.get(key) if isinstance(image, dict) and key in image else image
    if not isinstance(image, str):
        raise UsageError(f'{part.where}, frame {n} must be an image, or {{"t": seconds, "image": ...}}')
    found = sources.medium(image, "image")
    return {**item, "image": found} if timed else found


def timed(parts: list[Part]) -> Iterator[Part]:
    """The parts, in which images that follow time marks ("<12.0 seconds>") are the frames of one video.

    A time that goes back begins another video. The images keep their pixel limits as the video's, which are its first one's.
    """
    at = 0
    while at < len(parts):
        frames: list[dict[str, Any]] = []
        first, settings = parts[at].where, None
        while (found := marked(parts, at)) is not None:
            time, image = found
            if frames and (time < frames[-1]["t"] - 0.05 or settings != image.settings):
                break
            frames.append({"t": max(time, frames[-1]["t"] + LATER) if frames else time, "image": image.value})
            settings, at = image.settings, at + 2
        if frames:
            yield Part("video", frames, dict(settings or {}), first)
        else:
            yield parts[at]
            at += 1


def marked(parts: list[Part], at: int) -> tuple[float, Part] | None:
    """(seconds, image) where a time mark and an image follow each other at `at`."""
    if at + 1 >= len(parts) or parts[at].kind != "text" or parts[at + 1].kind != "image":
        return None
    found = MARK.fullmatch(str(parts[at].value)[:64])
    return (number("a time mark", float(found[1]), 0), parts[at + 1]) if found else None
