"""/openapi.json: the server's endpoints in the form that other programs read."""

from typing import Any

from ivlite._version import __version__
from ivlite.serve.fields import AGENT, CHAT, EXPORT, RESPONSES, Field
from ivlite.serve.file_routes import PURPOSES

ERROR = {
    "type": "object", "required": ["error", "request_id"], "properties": {"request_id": {"type": "string"}, "error": {
        "type": "object", "required": ["message", "type", "param", "code"], "properties": {
            "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]},
            "code": {"type": ["string", "null"]},
        }}},
}  # fmt: skip
STATUSES = {
    "400": "the request is wrong", "401": "the key is missing or wrong", "403": "a page of another site", "404": "there is none",
    "408": "the body did not come", "413": "the body is too large", "415": "a body of another type", "429": "too many requests",
    "500": "the server failed", "503": "the server is closing, or has no memory",
}  # fmt: skip
BYTES = {"type": "string", "format": "binary", "minLength": 1}
PURPOSE = {"type": "string", "enum": [*PURPOSES]}
FORM = {"type": "object", "required": ["file"], "properties": {"file": BYTES, "purpose": PURPOSE}}
PART = {"type": "object", "required": ["data"], "properties": {"data": BYTES}}
NULL = {"type": "null"}
OBJECT = {"type": "object"}


def fields(table: dict[str, Field], required: list[str]) -> dict[str, Any]:
    """The schema of a body; null is the same as nothing."""
    properties = {
        name: field.schema if name in required else {"anyOf": [field.schema, NULL]} for name, field in table.items()
    }
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": True}


BODIES = {
    "/v1/chat/completions": fields(CHAT, ["messages"]), "/v1/plan": fields(CHAT, ["messages"]),
    "/v1/agent": fields(AGENT, ["question", "videos"]), "/v1/exports": fields(EXPORT, ["kind", "videos", "answer"]),
    "/v1/responses": fields(RESPONSES, ["input"]), "/v1/files": FORM, "/v1/uploads/{upload}/parts": PART,
    "/v1/uploads": {"type": "object", "required": ["bytes", "filename"], "properties": {
        "bytes": {"type": "integer", "minimum": 1}, "filename": {"type": "string", "minLength": 1}, "purpose": {"anyOf": [PURPOSE, NULL]}}},
    "/v1/uploads/{upload}/complete": {"type": "object", "required": ["part_ids"], "properties": {
        "part_ids": {"type": "array", "items": {"type": "string"}}, "md5": {"type": "string"}}},
}  # fmt: skip
FORMS = (FORM, PART)
OTHERS = {
    "/metrics": "text/plain",
    "/v1/files/{file}/content": "application/octet-stream",
    "/v1/exports": "application/octet-stream",
}


def document(routes: Any) -> dict[str, Any]:
    """The OpenAPI document of (method, path, endpoint) rows."""
    paths: dict[str, Any] = {}
    for method, path, endpoint in routes:
        name = path.replace(":path", "")
        paths.setdefault(name, {})[method.lower()] = operation(method, name, endpoint)
    return {
        "openapi": "3.1.0", "info": {"title": "ivlite", "version": __version__}, "paths": paths,
        "components": {"schemas": {"Error": ERROR}, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }  # fmt: skip


def operation(method: str, path: str, endpoint: Any) -> dict[str, Any]:
    """One endpoint."""
    answers: dict[str, Any] = {"application/json": {"schema": OBJECT}}
    if path in ("/v1/chat/completions", "/v1/responses", "/v1/agent") and method == "POST":
        answers["text/event-stream"] = {}
    if path in OTHERS:
        answers = {OTHERS[path]: {"schema": {"type": "string"}}}
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    out: dict[str, Any] = {
        "operationId": endpoint.__name__, "summary": (endpoint.__doc__ or endpoint.__name__.replace("_", " ")).split("\n")[0],
        "responses": {"200": {"description": "done", "content": answers}}
        | {status: {"description": text, **error} for status, text in STATUSES.items()},
    }  # fmt: skip
    if names := [part[1:-1] for part in path.split("/") if part.startswith("{")]:
        out["parameters"] = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    if method == "POST" and path in BODIES:
        kind = "multipart/form-data" if BODIES[path] in FORMS else "application/json"
        out["requestBody"] = {"required": True, "content": {kind: {"schema": BODIES[path]}}}
    return out
