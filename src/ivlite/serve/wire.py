"""What goes over the wire: JSON of clients, checked before it is used, and errors in OpenAI's shape."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from ivlite.errors import ContextError, MediaError, OutOfMemoryError, Stopped, UsageError, sentence

DEEPEST = 64  # nested lists and objects
MOST_VALUES = 2_000_000  # commas and brackets of a body: each may become an object of 60 bytes
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
LEFT = 499  # the client has left: for metrics and the log, nobody receives it

UNUSABLE = (
    "an image or video of the request cannot be used: it is empty, damaged, cut off, too large, too long, or of a kind that "
    "is not read"
)


class Refused(Exception):
    """A request that gets an error. message: a sentence that holds nothing of the machine. param: the field at fault.

    detail: what only the log says.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None, detail: object = "") -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, sentence(message), param, code
        self.headers, self.detail = dict(headers or {}), detail

    def body(self, request_id: str) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
            "request_id": request_id,
        }


def refusal(error: BaseException) -> Refused:
    """What a client is told about an error: sentences about its own request, else a fixed one."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ContextError):
        return Refused(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, OutOfMemoryError):
        return Refused(503, str(error), code="insufficient_memory", headers={"retry-after": "10"})
    if isinstance(error, UsageError):
        return Refused(400, str(error))
    if isinstance(error, MediaError):  # its sentence may hold text of a decoding library
        return Refused(400, UNUSABLE, param="messages", code="invalid_media", detail=error)
    if isinstance(error, Stopped):
        return Refused(503, "the server is closing", code="closing", detail=error)
    if isinstance(error, MemoryError):
        return Refused(503, "the server has too little memory now", code="insufficient_memory", detail=error)
    return Refused(500, "the server failed; its log says why, by this request_id", code="internal", detail=error)


class Json(Response):
    """A response of JSON text in UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def dumps(data: Any) -> bytes:
    """JSON in UTF-8 without line breaks; half surrogate pairs of clients become question marks."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def loads(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a body. Raises Refused for anything else, and for JSON that is too deep or has too many values."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise Refused(400, f"the body has more than {MOST_VALUES:,} values", code="invalid_json")
    try:
        found = json.loads(body.decode("utf-8-sig"), parse_constant=_constant)
    except RecursionError:
        raise Refused(400, _deep(), code="invalid_json") from None
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise Refused(400, f"the body is not JSON (line {error.lineno}, column {error.colno})", code="invalid_json") from None  # fmt: skip
    except ValueError:  # a number of thousands of digits, NaN
        raise Refused(400, "the body has a number that is not finite or too long", code="invalid_json") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body must be a JSON object", code="invalid_json")
    check_depth(found)
    return found


def _constant(name: str) -> float:
    raise ValueError(name)


def _deep() -> str:
    return f"the body nests lists and objects deeper than {DEEPEST}"


def check_depth(data: Any) -> None:
    """Raises Refused for data that is nested too deeply."""
    level, depth = [data], 0
    while level:
        depth += 1
        if depth > DEEPEST + 1:
            raise Refused(400, _deep(), code="invalid_json")
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, dict | list)
        ]
