"""Bodies of requests: bounded each and all together, and read only as long as they come."""

import threading
from typing import Any

import anyio
from starlette.requests import ClientDisconnect, Request

from ivlite.errors import Stopped
from ivlite.serve.wire import Refused, loads

STALLED, SLOWEST = 60.0, 1000  # seconds without a byte; bytes a second, after so many seconds
INLINE = 1 << 16  # bytes of JSON that are read at once; larger ones in a thread


class Held:
    """A part of the memory for bodies, until it is released. Any thread may release it."""

    def __init__(self, bodies: "Bodies") -> None:
        self._bodies, self._size = bodies, 0

    def grow(self, size: int) -> None:
        """Raises Refused where all bodies together are too large."""
        with self._bodies.lock:
            if self._bodies.held + size > self._bodies.most:
                message = "the server is reading too many large requests"
                raise Refused(429, message, code="busy", headers={"retry-after": "5"})
            self._bodies.held += size
            self._size += size

    def release(self) -> None:
        with self._bodies.lock:
            self._bodies.held -= self._size
            self._size = 0


class Bodies:
    """Memory for bodies. largest: bytes of one; all of them together may have four times as many."""

    def __init__(self, largest: int) -> None:
        self.largest, self.most, self.held, self.lock = largest, 4 * largest, 0, threading.Lock()

    async def json(self, request: Request) -> dict[str, Any]:
        """The JSON object of a request. Raises Refused (too large, too slow, not JSON), Stopped when the client leaves."""
        body, held = await self.kept(request)
        held.release()
        return body

    async def kept(self, request: Request) -> tuple[dict[str, Any], Held]:
        """The JSON object of a request, which counts as memory until the second is released."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the Content-Type must be application/json")
        body, held = bytearray(), Held(self)
        try:
            check_length(request, self.largest)
            async for part in pieces(request, self.largest):
                held.grow(len(part))
                body += part
            if len(body) <= INLINE:
                return loads(body), held
            return await anyio.to_thread.run_sync(loads, body), held
        except BaseException:
            held.release()
            raise


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
    total, stream, began = 0, request.stream(), anyio.current_time()
    while True:
        late = STALLED + total / SLOWEST - (anyio.current_time() - began)
        try:
            with anyio.fail_after(max(0.0, min(STALLED, late))):
                part = await anext(stream, None)
        except TimeoutError:
            message = (
                "the body comes too slowly"
                if late < STALLED
                else f"no byte of the body has come for {STALLED:.0f} seconds"
            )
            raise Refused(408, message, code="timeout") from None
        except ClientDisconnect:
            raise Stopped.because("closed") from None
        if part is None:
            return
        total += len(part)
        if total > largest:
            raise too_large(largest)
        yield part
