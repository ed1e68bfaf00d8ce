"""/v1/agent: a question that the agent answers by looking at parts of videos; its events as they happen."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ivlite.agent.agent import Agent
from ivlite.agent.answer import Answered, event_data
from ivlite.agent.budget import Budget
from ivlite.errors import UsageError
from ivlite.prompt import plain_messages
from ivlite.serve.answers import Answer, event, taken
from ivlite.serve.fields import AGENT
from ivlite.serve.parts import media_error, named
from ivlite.serve.request import Request, checked
from ivlite.serve.service import Service
from ivlite.serve.wire import Refused
from ivlite.serve.work import Work

BUDGET = {field.name for field in dataclasses.fields(Budget)}


class Happened:
    """An event of the agent."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def joined(self, other: "Happened") -> bool:
        return False


async def create(service: Service, http: HttpRequest) -> Response:
    """Answers a question about videos; with `stream`, tells each step."""
    asked, body = await taken(service, http, translated)
    return Investigation(service, http, asked, {name: checked(name, field, body) for name, field in AGENT.items()})


ROUTES = (("POST", "/v1/agent", create),)


def translated(body: Mapping[str, Any]) -> dict[str, Any]:
    """The videos of the body as a chat request, whose checks they share. Raises Refused."""
    given = {name: checked(name, field, body) for name, field in AGENT.items()}
    for name in ("question", "videos"):
        if given[name] is None:
            raise Refused(400, f"{name} is missing", param=name)
    videos, budget = given["videos"], given["budget"] or {}
    if unknown := budget.keys() - BUDGET:
        raise Refused(400, f"budget takes {', '.join(sorted(BUDGET))}, not {min(unknown)[:80]!r}", param="budget")
    parts = [{"type": "video", "video": video} if isinstance(video, str) else video for video in videos]
    shared = {name: given[name] for name in ("stream", "stream_options", "user")}
    return {"messages": [{"role": "user", "content": parts}], **shared}


class Investigation(Answer):
    """The answer of the agent, or its events."""

    def __init__(self, service: Service, http: HttpRequest, asked: Request, given: dict[str, Any]) -> None:
        super().__init__(service, http, asked)
        self.given = given

    @contextmanager
    def _open(self, work: Work) -> Iterator[Any]:
        with self.service.sources() as sources:
            (message,) = plain_messages([named(m, sources.files) for m in self.asked.messages])
            if any(part.kind != "video" or not isinstance(part.value, str) or part.settings for part in message.parts):
                raise media_error("videos must be files: a source, or a video part without settings")
            films = [sources.medium(str(part.value), "video") for part in message.parts]
            self.asked.messages = []
            self.asked.release()
            settings, engine = self._settings(work), self.service.engine
            with engine.serving(self.client), self.service.agents.taken(work.stop, lambda: engine.had(self.client)):
                with Agent(self.service.model, films, **settings) as agent:
                    with agent.stream(self.given["question"], stop=work.stop) as events:
                        yield self._told(work, events)

    def _settings(self, work: Work) -> dict[str, Any]:
        stated = {
            name: self.given[name]
            for name in ("tools", "temperature", "seed", "verify")
            if self.given[name] is not None
        }
        try:
            return stated | {"budget": Budget(**(self.given["budget"] or {})), "progress": work.progress}
        except UsageError as error:
            raise Refused(400, str(error), param="budget") from None

    def _told(self, work: Work, events: Any) -> Iterator[Happened]:
        for item in events:
            if isinstance(item, Answered):
                work.reply = item.answer
            yield Happened(event_data(item))

    def whole(self, pieces: list[Any]) -> dict[str, Any]:
        answer = self.work.reply
        return {"object": "agent.answer", "created": self.created, "model": self.service.name, **answer.as_dict()}

    def events(self, piece: Any) -> list[bytes]:
        return [event(piece.data, piece.data["type"])]

    def last(self) -> list[bytes]:
        return []
