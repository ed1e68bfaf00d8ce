"""/v1/exports: an answer as a report, chapters, captions or clips. /v1/files/ID/frames: pictures of moments of a video.

The client sends the answer: one of the agent's, or any with the same form. So nothing of it has to be kept.
"""

import base64
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import quote

from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from ivlite import media
from ivlite.agent.agent import MOST
from ivlite.agent.answer import EVENTS, Answer, Event, Evidence, Video
from ivlite.agent.export import captions, chapters, clips, page
from ivlite.errors import DiskError, UsageError, shown
from ivlite.media.thumbnails import thumbnails
from ivlite.numbers import number, whole
from ivlite.serve.answers import attended
from ivlite.serve.fields import EXPORT
from ivlite.serve.files import FILE_ID
from ivlite.serve.request import checked
from ivlite.serve.service import Service
from ivlite.serve.wire import Json, Refused
from ivlite.stop import Stop, using

LONGEST, ITEMS, LATEST = 1 << 20, 4096, 1e7  # characters of a text, items of a list, seconds or any other number
CLIPS, FRAMES = 64, 64  # of one request
EVENT_KINDS = {name: kind for name, kind in EVENTS.items() if name != "answered"}


# ------------------------------------------------------------------------------------------- the answer of a client


def built(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON as an annotation of agent.answer says. Raises UsageError, naming the place."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return None if value is None else built(next(a for a in inner if a is not NoneType), value, where)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > ITEMS:
            raise UsageError(f"{where} must be a list of at most {ITEMS:,}")
        return tuple(built(inner[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if kind is float:
        return float(number(where, value, 0, LATEST))
    if kind is int:
        return whole(where, value, 0, int(LATEST))
    plain = origin or (dict if is_dataclass(kind) else kind)
    if not isinstance(value, plain) or isinstance(value, str) and len(value) > LONGEST:
        raise UsageError(f"{where} is {shown(value)}; it must be a {plain.__name__}")
    if not is_dataclass(kind):
        return value
    if kind is Event:
        kind = EVENT_KINDS.get(value["type"]) if isinstance(value.get("type"), str) else None
        if kind is None:
            raise UsageError(f"{where}.type must be one of {', '.join(EVENT_KINDS)}")
    hints = get_type_hints(kind)
    given = {f.name: built(hints[f.name], value[f.name], f"{where}.{f.name}") for f in fields(kind) if f.name in value}
    try:
        return kind(**given)
    except TypeError:
        raise UsageError(f"{where} lacks a field of {kind.__name__}") from None


def answer_of(data: dict[str, Any], sources: Any, service: Service, videos: list[str]) -> Answer:
    """The Answer of a client about videos, which are sources; their `path` is what opens them. Raises UsageError, Refused."""
    text = {"text": data["answer"]} if "answer" in data else {}
    answer = built(Answer, data | text | {"videos": []}, "answer")
    opened = []
    for n, source in enumerate(videos, 1):
        found = sources.medium(source, "video")
        title = service.files.get(source).name if FILE_ID.fullmatch(source) else f"video {n}"
        probe = media.probe(found, fps=clips.FPS)
        probe.settle()
        opened.append(Video(f"v{n}", found, probe.times.duration, title))
    handles = {video.handle for video in opened}
    for evidence in answer.evidence:
        if evidence.video not in handles or not (
            evidence.id.isascii() and evidence.id.isalnum() and len(evidence.id) < 16
        ):
            raise UsageError(
                f"evidence {shown(evidence.id)} must have an id such as E1 and one of the videos, v1 and so on"
            )
    return replace(answer, videos=tuple(opened))


# ------------------------------------------------------------------------------------------- what becomes of it


def report(folder: Path, answer: Answer, question: str) -> None:
    pictures, notes = page.pictures_of(answer)
    players = {video.handle: "./" + quote(os.path.basename(video.title)) for video in answer.videos}
    text = page.page(answer, question, pictures, players, notes)
    (folder / "report.html").write_bytes(text.encode("utf-8", "replace"))


def clips_of(folder: Path, answer: Answer, _: str) -> None:
    """A clip of each piece of evidence that the answer names."""
    videos = {video.handle: video.path for video in answer.videos}
    for evidence in answer.cited()[:CLIPS]:
        clip(folder, evidence, videos[evidence.video])
    if not any(folder.iterdir()):
        raise UsageError("there is nothing to cut: the answer names no part of a video")


def clip(folder: Path, evidence: Evidence, source: Any) -> None:
    found = media.probe(source, fps=clips.FPS)
    found.settle()
    try:
        span = clips.span(evidence, found)
    except UsageError:  # it is the whole video
        return
    source.cut(str(folder / clips.name(evidence)), *span)


KINDS: dict[str, Callable[[Path, Answer, str], object]] = {
    "report": report,
    "clips": clips_of,
    "chapters": lambda folder, answer, _: chapters.write(folder / "chapters.txt", answer),
    "ffmetadata": lambda folder, answer, _: chapters.write(folder / "chapters.ffmeta", answer),
    "srt": lambda folder, answer, _: captions.write(folder / "captions.srt", answer, "srt"),
    "vtt": lambda folder, answer, _: captions.write(folder / "captions.vtt", answer, "vtt"),
}


def made(service: Service, given: dict[str, Any], folder: Path, stop: Stop) -> Path:
    """The file of an export: what was written, or all of it in one ZIP file. Raises UsageError, Refused, MediaError."""
    written = folder / "out"
    written.mkdir()
    with using(stop), service.sources() as sources:
        answer = answer_of(given["answer"], sources, service, given["videos"])
        try:
            KINDS[given["kind"]](written, answer, given["question"] or "")
        except UsageError as error:
            raise UsageError(str(error).replace(f"{written}/", "")) from None
        except (DiskError, OSError) as error:
            raise Refused(503, "the server cannot write files now", code="disk", detail=error) from error
        found = sorted(written.iterdir())
        if len(found) == 1:
            return found[0]
        with zipfile.ZipFile(folder / f"{given['kind']}.zip", "w") as archive:
            for path in found:
                stop.check()
                archive.write(path, path.name)
    return folder / f"{given['kind']}.zip"


class Sent(FileResponse):
    """A file that is sent to be saved; its folder is removed then."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path, filename=path.name, content_disposition_type="attachment")
        self.folder = folder

    async def __call__(self, *connection: Any) -> None:
        try:
            await super().__call__(*connection)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


async def export(service: Service, http: HttpRequest) -> Response:
    """An answer as a file: a report, clips, chapters for video sites or for ffmpeg, captions."""
    body = await service.bodies.json(http)
    given = {name: checked(name, field, body) for name, field in EXPORT.items()}
    if given["kind"] not in KINDS:
        raise Refused(400, f"kind must be one of {', '.join(KINDS)}", param="kind")
    videos = given["videos"]
    if not videos or len(videos) > MOST or not all(isinstance(video, str) for video in videos):
        raise Refused(
            400, f"videos must be a list of 1 to {MOST} sources, in the order of v1, v2 and so on", param="videos"
        )
    if given["answer"] is None:
        raise Refused(400, "answer must be an object", param="answer")
    folder, stop = Path(tempfile.mkdtemp(prefix="export-", dir=service.files.folder)), Stop(service.stop)
    try:
        path = await attended(http, stop, made, service, given, folder, stop, limiter=service.plans)
        return Sent(path, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


# ------------------------------------------------------------------------------------------- pictures


async def get_frames(service: Service, http: HttpRequest) -> Response:
    """The frames of a video at `times` (seconds, with commas between) as JPEG, `longest` pixels on a side at most."""
    name, query = http.path_params["file"], http.query_params
    service.files.get(name)
    try:
        times = [number("times", float(t), 0) for t in query.get("times", "0").split(",")[: FRAMES + 1]]
        longest = whole("longest", int(query.get("longest", "320")), 16, 1920)
    except (ValueError, UsageError):
        times, longest = [], 0
    if not 1 <= len(times) <= FRAMES:
        raise Refused(
            400, f"times must be 1 to {FRAMES} numbers of seconds, and longest 16 to 1920 pixels", param="times"
        )
    stop = Stop(service.stop)

    def found() -> list[Any]:
        with using(stop), service.sources() as sources:
            return thumbnails(media.probe(sources.medium(name, "video"), fps=clips.FPS), times, longest)

    pictures = await attended(http, stop, found, limiter=service.plans)
    data = [{"time": p.time, "width": p.width, "height": p.height,
             "image": f"data:image/jpeg;base64,{base64.b64encode(p.jpeg).decode()}"} for p in pictures]  # fmt: skip
    return Json({"object": "list", "data": data})


ROUTES = (("POST", "/v1/exports", export), ("GET", "/v1/files/{file}/frames", get_frames))
