"""From a checked request to the pieces of its answer: admission, the stream, the client that leaves."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import anyio
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ivlite.engine.reply import Reply
from ivlite.errors import Stopped
from ivlite.serve.request import Request, read
from ivlite.serve.service import Service
from ivlite.serve.wire import LEFT, Refused, dumps
from ivlite.serve.work import Portion, Work
from ivlite.stop import Stop

T = TypeVar("T")
PATIENCE = 5.0  # seconds without news after which a stream says what is being done
BEAT = 0.5  # the same, where the client wants to show it
STALLED = 60.0  # seconds for which a client may take nothing of its answer


class Answer(Response):
    """The response to a request for an answer. A subclass says how the answer is written.

    The answer ends within moments when the client leaves, when it takes nothing for STALLED seconds, or when the server
    closes. Errors before the first piece have a status of their own; later ones are an event.
    """

    def __init__(self, service: Service, http: HttpRequest, asked: Request) -> None:
        self.service, self.http, self.asked = service, http, asked
        self.created = int(time.time())
        self.work: Work
        self.told = 0  # tokens whose logprobs were sent, or that were of the thinking
        self.status_code, self.background = 200, None

    # ------------------------------------------------------------------------------------- how an answer is written

    def whole(self, pieces: list[Portion]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        raise NotImplementedError

    def first(self) -> list[bytes]:
        """The events before the first piece."""
        return []

    def events(self, piece: Portion) -> list[bytes]:
        """The events of a piece."""
        raise NotImplementedError

    def last(self) -> list[bytes]:
        """The events after the last piece."""
        raise NotImplementedError

    def failed(self, refused: Refused) -> list[bytes]:
        """The events of an error after the first."""
        return [event(refused.body(self.http.scope["request_id"]))]

    # ------------------------------------------------------------------------------------------------- what it counts

    def counts(self, reply: Reply) -> dict[str, Any]:
        """Counts in OpenAI's form. ivlite: stages in seconds, what was reused, what is worth knowing about the media."""
        used = reply.usage
        prompt, made = used["prompt_tokens"], used["new_tokens"]
        rest = ("vision_tokens", "frames", "stored_tokens", "draft_tokens", "accepted_tokens")
        return {
            "prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": used["cached_tokens"]},
            "completion_tokens_details": {"reasoning_tokens": reply.thought},
            "ivlite": {name: used[name] for name in rest} | {
                "seconds": {stage: round(seconds, 4) for stage, seconds in reply.timings.items() if stage != "load"},
                "finish_reason": reply.finish_reason, "warnings": reply.warnings,
            },
        }  # fmt: skip

    def logprobs(self, upto: int) -> list[dict[str, Any]]:
        """The entries of the tokens that were not sent yet, up to number `upto`."""
        assert self.work.stream is not None
        reply = self.work.stream.reply
        first, self.told = max(self.told, reply.thought), max(self.told, upto)
        return [
            self._token(entry.token, entry.logprob) | {"top_logprobs": [self._token(*other) for other in entry.top]}
            for entry in reply.logprobs[first:upto]
        ]

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.service.model.tokenizer.bytes_of(token, skip_special=False)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(data)}

    # -------------------------------------------------------------------------------------------------- its course

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.send, self.started = send, False
        self.work = Work(self._open, Stop(self.service.stop))
        try:
            with self.service.admitted(self.work):
                async with anyio.create_task_group() as group:
                    group.start_soon(watch, receive, self.work.stop)
                    await (self._stream() if self.asked.stream else self._body())
                    group.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.work.stop.set("closed")
            self.asked.release()

    def _open(self, work: Work) -> Any:
        return self.service.opened(self.asked, work, self.client)

    @property
    def client(self) -> str:
        """Whose turns are counted together."""
        peer = self.http.client.host if self.http.client else ""
        return f"{peer} {self.asked.user}"

    async def _body(self) -> None:
        pieces: list[Portion] = []
        while not self.work.done:
            pieces += await self.work.pieces(PATIENCE)
        pieces += await self.work.pieces(0)
        self._check()
        body = await anyio.to_thread.run_sync(lambda: dumps(self.whole(pieces)))
        await self._sent(Response(body, media_type="application/json"))

    async def _stream(self) -> None:
        try:
            async for piece in self._news():
                await self._start()
                await self._write(*(self.events(piece) if piece else [self._stage()]))
            self._check()
            await self._start()
            await self._write(*self.last())
        except Exception as error:
            if not self.started or (isinstance(error, Refused) and error.status == LEFT):
                raise
            refused = self.service.told(self.http, error)
            await self._write(*self.failed(refused))
        await self._patiently({"type": "http.response.body", "body": b"", "more_body": False})

    async def _news(self) -> AsyncIterator[Portion | None]:
        """The pieces; None where nothing has come for a while."""
        while not self.work.done:
            pieces = await self.work.pieces(BEAT if self.asked.include_progress else PATIENCE)
            for piece in pieces:
                yield piece
            if not pieces and not self.work.done:
                yield None
        for piece in await self.work.pieces(0):
            yield piece

    def _stage(self) -> bytes:
        """What is being done, and how far it is: a comment, which clients pass over, or the event that they asked for."""
        stage, stages = self.work.stage, self.work.stages
        if self.asked.include_progress:
            return event({"object": "progress", "stage": stage, "stages": stages}, "progress")
        done, total = stages.get(stage, (0, 0))
        return f": {stage} {done} of {total}\n\n".encode() if total else f": {stage}\n\n".encode()

    def _check(self) -> None:
        """Raises what went wrong with the answer."""
        if self.work.error is not None:
            raise self.work.error
        assert self.work.reply is not None
        if self.work.stop.reason is not None:
            raise Stopped.because(self.work.stop.reason)

    async def _start(self) -> None:
        """Sends the headers of a stream, and the first events, once."""
        if not self.started:
            self.started = True
            await self._patiently({
                "type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")],
            })  # fmt: skip
            await self._write(*self.first())

    async def _write(self, *events: bytes) -> None:
        await self._patiently({"type": "http.response.body", "body": b"".join(events), "more_body": True})

    async def _sent(self, response: Response) -> None:
        await self._patiently({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
        await self._patiently({"type": "http.response.body", "body": response.body})

    async def _patiently(self, message: Any) -> None:
        try:
            with anyio.fail_after(STALLED):
                await self.send(message)
        except TimeoutError:
            raise Refused(LEFT, f"the client has taken nothing of its answer for {STALLED:.0f} seconds") from None


async def taken(service: Service, http: HttpRequest,
                translated: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body) -> tuple[Request, dict[str, Any]]:  # fmt: skip
    """(the Request of a chat request's body, the body). Raises Refused."""
    body, held = await service.bodies.kept(http)
    try:
        asked = read(translated(body))
        asked.release = held.release
        return asked, body
    except BaseException:
        held.release()
        raise


async def watch(receive: Any, stop: Stop) -> None:
    """Sets a Stop when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stop.set("left")


async def attended(http: HttpRequest, stop: Stop, function: Callable[..., T], *args: Any, limiter: Any = None) -> T:
    """What a function returns, run in a thread; the Stop is set when the client leaves."""
    found: list[T] = []
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch, http.receive, stop)
            found.append(await anyio.to_thread.run_sync(function, *args, limiter=limiter))
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return found[0]


def event(data: Any, kind: str = "") -> bytes:
    """A server-sent event of JSON."""
    return (f"event: {kind}\n".encode() if kind else b"") + b"data: " + dumps(data) + b"\n\n"
