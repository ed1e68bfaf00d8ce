"""The application: routes, and what becomes of errors."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ivlite._version import __version__
from ivlite.serve import agent, exports, file_routes, page, responses, schema
from ivlite.serve.answers import attended, taken
from ivlite.serve.chat import Chat
from ivlite.serve.guard import Guard
from ivlite.serve.service import Service
from ivlite.serve.wire import LEFT, Json, Refused
from ivlite.stop import Stop

Endpoint = Callable[[Service, HttpRequest], Awaitable[Response]]


def application(service: Service, *, loopback: bool, key: str | None = None, hosts: tuple[str, ...] = ()) -> Any:
    """The ASGI application of a Service. loopback, key, hosts: see Guard."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for method, path, endpoint in (*ROUTES, *page.ROUTES):
        paths.setdefault(path, {})[method] = endpoint
    routes = [Route(path, Handled(service, path, found), methods=[*found]) for path, found in paths.items()]

    def count(status: int) -> None:
        service.metrics.add("ivlite_requests_total", path="other", status=str(status))

    async def unknown(http: HttpRequest, error: Exception) -> Response:
        response = no_such(http, error)
        count(response.status_code)
        return response

    app = Starlette(routes=routes, exception_handlers={HTTPException: unknown})
    return Guard(app, loopback=loopback, key=key, hosts=hosts, pages=tuple(page.FILES), count=count)


class Handled:
    """The endpoints of a path as an ASGI application: errors become responses in OpenAI's shape, and all are counted."""

    def __init__(self, service: Service, path: str, endpoints: dict[str, Endpoint]) -> None:
        self.service, self.path, self.endpoints = service, path, endpoints

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        http, status, counted = HttpRequest(scope, receive, send), 0, False  # 0: nothing was sent yet

        def count() -> None:
            nonlocal counted
            if not counted:
                self.service.metrics.add("ivlite_requests_total", path=self.path, status=str(status))
            counted = True

        async def seen(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                count()  # before its client can know that it has ended
            await send(message)

        try:
            endpoint = self.endpoints["GET" if http.method == "HEAD" else http.method]
            response = await endpoint(self.service, http)
            await response(scope, receive, seen)
        except Exception as error:
            refused = self.service.told(http, error)
            begun, status = status, status or refused.status
            if not begun and status != LEFT:
                await Json(refused.body(scope["request_id"]), status, refused.headers)(scope, receive, seen)
        finally:
            count()


def no_such(http: HttpRequest, error: Exception) -> Response:
    """No such path, or not with this method."""
    status = getattr(error, "status_code", 404)
    message = (
        "there is no such path: /openapi.json lists those there are"
        if status == 404
        else "this path does not take this method"
    )
    return Json(Refused(status, message).body(http.scope["request_id"]), status, getattr(error, "headers", None))


async def chat(service: Service, http: HttpRequest) -> Response:
    return Chat(service, http, (await taken(service, http))[0])


async def models(service: Service, http: HttpRequest) -> Response:
    return Json({"object": "list", "data": [described(service)]})


async def model(service: Service, http: HttpRequest) -> Response:
    if http.path_params["model"] != service.name:
        raise Refused(404, "there is no model of this name: see /v1/models", param="model", code="model_not_found")
    return Json(described(service))


def described(service: Service) -> dict[str, Any]:
    return {
        "id": service.name, "object": "model", "created": service.created, "owned_by": "ivlite",
        "context_length": service.model.context,
    }  # fmt: skip


async def health(service: Service, http: HttpRequest) -> Response:
    return Json({"status": "ok", "version": __version__})


async def metrics(service: Service, http: HttpRequest) -> Response:
    return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(service: Service, http: HttpRequest) -> Response:
    """This document."""
    return Json(schema.document(ROUTES))


async def plan(service: Service, http: HttpRequest) -> Response:
    """The plan of a chat request, in the form of `ivlite plan --json`."""
    asked, _ = await taken(service, http)
    stop = Stop(service.stop)
    try:
        made = await attended(http, stop, service.planned, asked, stop, limiter=service.plans)
    finally:
        asked.release()
    return Json(made.as_data())


ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/chat/completions", chat),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{model:path}", model),
    ("POST", "/v1/plan", plan),
    ("GET", "/health", health),
    ("GET", "/metrics", metrics),
    ("GET", "/openapi.json", openapi),
    *file_routes.ROUTES,
    *responses.ROUTES,
    *agent.ROUTES,
    *exports.ROUTES,
)
