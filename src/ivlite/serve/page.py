"""The page at /: files that `web/` is built to, without anything from elsewhere."""

import hashlib
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from ivlite.serve.service import Service

FOLDER = Path(__file__).parent / "page"
FILES = {  # path -> (file, type)
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
POLICY = (  # blob: is what the visitor dropped; data: pictures that the server made
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # names stay when the content changes: a browser asks whether it has
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


async def get_page(service: Service, http: HttpRequest) -> Response:
    name, kind = FILES[http.url.path]
    content = (FOLDER / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"etag": tag}
    if tag in http.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


ROUTES = tuple(("GET", path, get_page) for path in FILES)
