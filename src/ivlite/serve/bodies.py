"""Bodies of requests: bounded each and all together, and read only as long as they come."""

from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from ivlite.errors import Stopped
from ivlite.serve.wire import Refused, loads

STALLED = 60.0  # seconds without a byte
INLINE = 1 << 16  # bytes of JSON that are read at once; larger ones in a thread


class Bodies:
    """Memory for bodies. largest: bytes of one; all of them together may have four times as many."""

    def __init__(self, largest: int) -> None:
        self.largest, self.most, self.held = largest, 4 * largest, 0

    async def json(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request. Raises Refused (too large, too slow, not JSON), Stopped when the client leaves."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the Content-Type must be application/json")
        body, reserved = bytearray(), 0
        try:
            check_length(request, self.largest)
            async for part in pieces(request, self.largest):
                self._reserve(len(part))
                reserved += len(part)
                body += part
            if len(body) <= INLINE:
                return loads(bytes(body))
            return await anyio.to_thread.run_sync(loads, bytes(body))
        finally:
            self.held -= reserved

    def _reserve(self, size: int) -> None:
        if self.held + size > self.most:
            raise Refused(
                429, "the server is reading too many large requests", code="busy", headers={"retry-after": "5"}
            )
        self.held += size


def check_length(request: Request, largest: int) -> None:
    """Raises Refused for a body that says that it is too large."""
    stated = request.headers.get("content-length", "0")
    if not stated.isascii() or not stated.isdigit() or len(stated) > 19 or int(stated) > largest:
        raise too_large(largest)


def too_large(largest: int) -> Refused:
    message = f"the body is larger than {largest:,} bytes: upload large videos to /v1/files, in parts to /v1/uploads"
    return Refused(413, message, code="too_large")


async def pieces(request: Request, largest: int) -> Any:
    """Yields the bytes of a body as they come. Raises Refused (too many, too slow), Stopped when the client leaves."""
    total, stream = 0, request.stream()
    while True:
        try:
            with anyio.fail_after(STALLED):
                part = await anext(stream, None)
        except TimeoutError:
            raise Refused(408, f"no byte of the body has come for {STALLED:.0f} seconds", code="timeout") from None
        except ClientDisconnect:
            raise Stopped.because("closed") from None
        if part is None:
            return
        total += len(part)
        if total > largest:
            raise too_large(largest)
        yield part
