"""Who may ask: checks of every request before an endpoint sees it."""

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from ivlite.serve.wire import Json, Refused

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

OPEN = ("/health",)  # without a key
LOCAL_NAMES = ("localhost", "localhost.localdomain")
LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


def is_loopback(host: str) -> bool:
    """Whether a host name or address of this machine is reached by this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in LOCAL_NAMES


def host_of(value: str) -> str:
    """The lower-case name of a Host header, without its port; "" if it is none."""
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?", value)
    return found[1].lower().rstrip(".") if found else ""


class Guard:
    """Middleware: request ids; Host, Origin and key; the kind of a body; no compression.

    A page of the web reaches a server on this machine through the visitor's browser: by a name that resolves to 127.0.0.1
    (its Host is foreign), or from its own address (its Origin is).

    loopback: the server listens to this machine alone. key: what clients must know, or None. hosts: more names of the server.
    pages: paths of the server's own page, which need no key; other sites may link to it. count: is told the status of what is refused.
    """

    def __init__(self, app: Any, *, loopback: bool, key: str | None, hosts: tuple[str, ...] = (),
                 pages: tuple[str, ...] = (), count: Callable[[int], None] = lambda status: None) -> None:  # fmt: skip
        self.app, self.loopback, self.key, self.count = app, loopback, key, count
        self.pages, self.open = pages, {*OPEN, *pages}
        self.hosts = {host.lower() for host in hosts} | {socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope["request_id"] = request_id = f"req-{secrets.token_hex(12)}"

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
        except Refused as refused:
            self.count(refused.status)
            response = Json(refused.body(request_id), refused.status, refused.headers)
            return await response(scope, receive, named)
        await self.app(scope, receive, named)

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        host = host_of(hosts[0]) if len(hosts) == 1 else ""
        if not self._known(host):
            raise Refused(
                403,
                "the Host of the request is not a name of this server: see `ivlite serve --allow-host`",
                code="host",
            )
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2].lower() != hosts[0].lower()
        if foreign or (
            headers.get("sec-fetch-site") in ("cross-site", "same-site") and not self._followed(scope, headers)
        ):
            raise Refused(403, "pages of other sites may not use this server", code="origin")
        if self.key is not None and scope["path"] not in self.open and not self._has_key(headers):
            message = "the API key is missing or wrong: send it as Authorization: Bearer KEY"
            raise Refused(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        if scope["method"] in ("POST", "PUT", "PATCH"):
            self._check_body(headers)

    def _followed(self, scope: Scope, headers: Headers) -> bool:
        """Whether the visitor follows a link to the page."""
        wanted = scope["method"], headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
        return scope["path"] in self.pages and wanted == ("GET", "navigate", "document")

    def _known(self, host: str) -> bool:
        if host in self.hosts or is_loopback(host):
            return bool(host)
        if self.loopback or not host:
            return False
        try:
            ipaddress.ip_address(host.strip("[]"))
            return True
        except ValueError:
            return host.endswith(LOCAL_ENDINGS)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("utf-8", "replace"), (self.key or "").encode())

    def _check_body(self, headers: Headers) -> None:
        """A form of another page cannot send these types without asking first, which this server never allows."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        empty = headers.get("content-length") == "0" and not kind
        if kind not in ("application/json", "multipart/form-data") and not empty:
            raise Refused(415, "the Content-Type must be application/json (for files: multipart/form-data)")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "compressed bodies are not read: send it without Content-Encoding")
