"""/v1/files and /v1/uploads: a video is sent once, whole or in parts, and then named by its id.

A connection that breaks costs one part: GET /v1/uploads/ID says which have come.
"""

import hashlib
from typing import Any

import anyio
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from ivlite.errors import UsageError
from ivlite.numbers import whole
from ivlite.serve.bodies import check_length, pieces
from ivlite.serve.files import pieces_of
from ivlite.serve.service import Service
from ivlite.serve.wire import Json, Refused

ENVELOPE = 1 << 20  # bytes of a form beside its file
PURPOSES = ("vision", "user_data", "assistants", "batch", "evals", "fine-tune")
TYPE = "application/octet-stream"


async def form(service: Service, http: HttpRequest, name: str) -> Any:
    """The form of a request with a file under `name`; a context manager. Raises Refused."""
    if not http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refused(415, "the Content-Type must be multipart/form-data")
    most = service.files.room() + ENVELOPE
    check_length(http, most)
    parser = MultiPartParser(http.headers, pieces(http, most), max_files=1, max_fields=16)
    try:
        found = await parser.parse()
    except (MultiPartException, KeyError, ValueError):
        raise Refused(400, "the form cannot be read", param=name) from None
    if not hasattr(found.get(name), "file"):
        await found.close()
        raise Refused(400, f"the form needs a file named {name}", param=name)
    return found


def spooled(upload: Any) -> Any:
    """The content of a file of a form, a piece at a time."""
    upload.file.seek(0)
    return iter(lambda: upload.file.read(1 << 20), b"")


def text(value: Any, name: str, default: str | None = None) -> str:
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or not value:
        raise Refused(400, f"{name} must be a text", param=name)
    return value


def purpose(value: Any) -> str:
    found = text(value, "purpose", "vision")
    if found not in PURPOSES:
        raise Refused(400, f"purpose must be one of {', '.join(PURPOSES)}", param="purpose")
    return found


async def add_file(service: Service, http: HttpRequest) -> Response:
    found = await form(service, http, "file")
    try:
        upload, wanted = found["file"], purpose(found.get("purpose"))
        stored = await anyio.to_thread.run_sync(service.files.add, spooled(upload), upload.filename or "file", wanted)
    finally:
        await found.close()
    return Json(stored.as_dict())


async def list_files(service: Service, http: HttpRequest) -> Response:
    """All of them, or those of one purpose, the newest first."""
    wanted = http.query_params.get("purpose")
    data = [file.as_dict() for file in service.files.listed() if wanted in (None, file.purpose)]
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return Json({"object": "list", "data": data, "has_more": False, **ends})


async def get_file(service: Service, http: HttpRequest) -> Response:
    return Json(service.files.get(http.path_params["file"]).as_dict())


async def get_content(service: Service, http: HttpRequest) -> Response:
    stored = service.files.get(http.path_params["file"])
    return FileResponse(service.files.folder / stored.id, media_type=TYPE, filename=stored.name)


async def delete_file(service: Service, http: HttpRequest) -> Response:
    service.files.delete(http.path_params["file"])
    return Json({"id": http.path_params["file"], "object": "file", "deleted": True})


async def add_upload(service: Service, http: HttpRequest) -> Response:
    body = await service.bodies.json(http)
    try:
        nbytes = whole("bytes", body.get("bytes"))
    except UsageError as error:
        raise Refused(400, str(error), param="bytes") from None
    name, wanted = text(body.get("filename"), "filename"), purpose(body.get("purpose"))
    return Json(service.files.begin(name, wanted, nbytes).as_dict())


async def get_upload(service: Service, http: HttpRequest) -> Response:
    return Json(service.files.upload(http.path_params["upload"]).as_dict())


async def add_part(service: Service, http: HttpRequest) -> Response:
    upload = service.files.upload(http.path_params["upload"], pending=True)
    found = await form(service, http, "data")
    try:
        part = await anyio.to_thread.run_sync(service.files.add_part, upload, spooled(found["data"]))
    finally:
        await found.close()
    return Json({"id": part, "object": "upload.part", "created_at": upload.created, "upload_id": upload.id})


async def complete_upload(service: Service, http: HttpRequest) -> Response:
    upload = service.files.upload(http.path_params["upload"], pending=True)
    body = await service.bodies.json(http)
    parts, md5 = body.get("part_ids"), body.get("md5")
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Refused(400, "part_ids must be a list of ids", param="part_ids")
    if md5 is not None:
        paths = [service.files.part(upload, part) for part in parts]
        if await anyio.to_thread.run_sync(digest, paths) != text(md5, "md5").lower():
            raise Refused(400, "the parts have another MD5 sum than the file", param="md5")
    return Json((await anyio.to_thread.run_sync(service.files.complete, upload, parts)).as_dict())


def digest(paths: Any) -> str:
    found = hashlib.md5(usedforsecurity=False)
    for piece in pieces_of(paths):
        found.update(piece)
    return found.hexdigest()


async def cancel_upload(service: Service, http: HttpRequest) -> Response:
    return Json(service.files.cancel(service.files.upload(http.path_params["upload"], pending=True)).as_dict())


ROUTES = (
    ("POST", "/v1/files", add_file),
    ("GET", "/v1/files", list_files),
    ("GET", "/v1/files/{file}", get_file),
    ("GET", "/v1/files/{file}/content", get_content),
    ("DELETE", "/v1/files/{file}", delete_file),
    ("POST", "/v1/uploads", add_upload),
    ("GET", "/v1/uploads/{upload}", get_upload),
    ("POST", "/v1/uploads/{upload}/parts", add_part),
    ("POST", "/v1/uploads/{upload}/complete", complete_upload),
    ("POST", "/v1/uploads/{upload}/cancel", cancel_upload),
)
