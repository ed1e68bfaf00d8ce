"""What the endpoints share: the model, its turns, files, limits, counts and the log."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from starlette.requests import Request as HttpRequest

from ivlite.engine.batch import Engine
from ivlite.engine.reply import Reply
from ivlite.errors import Stopped
from ivlite.media.apart import Apart, Decoders
from ivlite.serve.bodies import Bodies
from ivlite.serve.files import Files
from ivlite.serve.kept import Kept
from ivlite.serve.metrics import Metrics
from ivlite.serve.parts import Sources, readable
from ivlite.serve.places import Places
from ivlite.serve.request import Request
from ivlite.serve.roots import Roots
from ivlite.serve.wire import LEFT, Refused, refusal
from ivlite.serve.work import Work, portions
from ivlite.stop import Stop, using

PLANS = 2  # plans, pictures and exports that are made at once
Log = Callable[[str], object]


@dataclass(frozen=True)
class Limits:
    """body, file: bytes of a request and of an uploaded file. waiting: requests that run or wait."""

    body: int = 256 << 20
    file: int = 64 << 30
    waiting: int = 64


class Service:
    """A model that is served, by an Engine. root: the folder of file:// URIs, resolved, or None. log: gets one line about each failure."""

    def __init__(self, engine: Engine, name: str, *, root: Path | None = None, limits: Limits = Limits(),
                 log: Log = lambda line: None, decoders: Decoders | None = None) -> None:  # fmt: skip
        self.engine, self.model = engine, engine.model
        self.name, self.root, self.limits, self.log = name, root, limits, log
        self.created = int(time.time())
        self.stop = Stop()  # of all answers
        self.metrics = Metrics()
        self.decoders, self.responses = decoders or Decoders(), Kept()
        self.files, self.bodies = Files(limits.file), Bodies(limits.body)
        self.plans, self.agents = anyio.CapacityLimiter(PLANS), Places()
        self.open, self._seconds = 0, 1.0  # requests for answers; how long one takes, on average
        self.metrics.gauges |= {
            "ivlite_requests_open": lambda: self.open,
            "ivlite_answers_running": lambda: self.engine.running,
            "ivlite_cache_bytes": lambda: self.engine.nbytes,
            "ivlite_body_bytes": lambda: self.bodies.held,
        }

    def close(self) -> None:
        self.stop.set("the server is closing")
        self.files.close()
        self.decoders.close()

    @contextmanager
    def admitted(self, work: Work) -> Iterator[None]:
        """Starts the work, if there are not too many. Raises Refused."""
        if self.open >= self.limits.waiting:
            wait = str(min(60, max(1, round(self._seconds))))
            message = f"{self.open} requests run or wait: try again in {wait} seconds"
            raise Refused(429, message, code="busy", headers={"retry-after": wait})
        self.open += 1
        try:
            work.start(lambda: self._ended(work))
        except RuntimeError as error:  # the system refuses another thread
            self.open -= 1
            raise Refused(503, "the server has no thread for this request", code="busy", headers={"retry-after": "5"}) from error  # fmt: skip
        yield

    def _ended(self, work: Work) -> None:
        self._seconds += 0.2 * (time.monotonic() - work.began - self._seconds)
        if isinstance(work.reply, Reply):
            self.metrics.answered(work.reply)
        self.open -= 1

    @contextmanager
    def opened(self, asked: Request, work: Work, client: str) -> Iterator[Any]:
        """The pieces of a request's answer. Called in the work's thread. Raises Refused, IvliteError."""
        with ExitStack() as stack:
            sources = stack.enter_context(self.sources())
            messages = readable(asked.messages, sources, asked.media)
            asked.messages = []  # media within the request are files now
            asked.release()
            settings = asked.settings | {"logprobs": asked.logprobs, "progress": work.progress}
            settings["stop"] = [*settings.get("stop", ()), work.stop]
            work.stream = stack.enter_context(self.engine.stream(messages, client=client, **settings))
            yield portions(work, work.stream)

    def sources(self) -> Sources:
        """Where the media of one request may come from."""
        return Sources(self.files, self.root, self._opened)

    def _opened(self, path: str, name: str) -> Apart:
        return Apart(path, name, self.decoders, self._readable, lambda: self._readable(path))

    def _readable(self, path: str) -> bool:
        """Whether a file still is one that requests may name: of the server's own folder, or under the root."""
        own = os.path.dirname(path) == os.fspath(self.files.folder)
        return own or (self.root is not None and Roots([self.root]).allowed(path) is not None)

    def planned(self, asked: Request, stop: Stop) -> Any:
        """The Plan of a request. Raises Refused, IvliteError."""
        names = (
            "budget",
            "max_new_tokens",
            "tools",
            "enable_thinking",
            "add_vision_id",
            "continue_final_message",
            "dedupe",
        )
        settings = {name: asked.settings[name] for name in names if name in asked.settings}
        with using(stop), self.sources() as sources:
            messages = readable(asked.messages, sources, asked.media)
            asked.release()
            return self.model.plan(messages, **settings)

    def told(self, http: HttpRequest, error: BaseException) -> Refused:
        """What a client is told about an error; the log gets the rest."""
        refused = refusal(error)
        if isinstance(error, Stopped) and error.reason in ("left", "closed"):
            refused = Refused(LEFT, "the client has left")
        self.note(http, refused)
        return refused

    def note(self, http: HttpRequest, refused: Refused) -> None:
        detail = f" ({type(refused.detail).__name__}: {refused.detail})" if refused.detail else ""
        self.log(f"{http.scope.get('request_id')} {http.scope['path']} {refused.status}: {refused.message}{detail}")
