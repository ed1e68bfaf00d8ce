"""Who may ask, and what a body may be, before anything is computed."""

import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest
from serve_asking import asked

pytest.importorskip("starlette")
from starlette.testclient import TestClient  # noqa: E402

BODY = json.dumps(asked("Hello", max_tokens=1)).encode()
JSON = {"content-type": "application/json"}


def refused(response, status, word=""):
    """Checks an error in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and word in error["message"]
    assert response.json()["request_id"] == response.headers["x-request-id"]
    return error


@pytest.mark.parametrize("headers, status", [
    ({"host": "evil.example"}, 403),
    ({"host": "evil.example:8080"}, 403),
    ({"host": "127.0.0.1.evil.example"}, 403),
    ({"host": "localhost.evil.example:80"}, 403),
    ({"host": "192.168.0.7"}, 403),
    ({"host": ""}, 403),
    ({"host": "[::2]"}, 403),
    ({"host": "user@localhost"}, 403),
    ({"host": "localhost"}, 200),
    ({"host": "localhost:9"}, 200),
    ({"host": "LOCALHOST"}, 200),
    ({"host": "127.3.2.1:1"}, 200),
    ({"host": "[::1]:8080"}, 200),
    ({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1"}, 200),
    ({"host": "127.0.0.1:1", "origin": "http://127.0.0.1:2"}, 403),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://localhost.evil.example"}, 403),
    ({"host": "localhost", "sec-fetch-site": "cross-site"}, 403),
    ({"host": "localhost", "sec-fetch-site": "same-origin"}, 200),
])  # fmt: skip
def test_foreign_pages(http, headers, status):
    for method, path, body in (("GET", "/v1/models", None), ("POST", "/v1/chat/completions", BODY)):
        response = http.request(method, path, content=body, headers=JSON | headers)
        assert response.status_code == status, response.text
        assert not any(name.startswith("access-control") for name in response.headers)
        if status == 403:
            refused(response, 403)


def test_two_hosts(served):
    where = urlsplit(served.url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", "localhost")
    connection.putheader("Host", "evil.example")
    connection.endheaders()
    assert connection.getresponse().status in (400, 403)
    connection.close()


@pytest.mark.parametrize("headers", [
    {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": ""}, {},
    {"content-type": "application/json", "content-encoding": "gzip"}, {"content-type": "multipart/form-data; boundary=a"},
])  # fmt: skip
def test_kinds_of_bodies(http, headers):
    refused(http.post("/v1/chat/completions", content=BODY, headers=headers), 415)


def test_preflights_are_not_answered(http):
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    response = http.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 403 and "access-control-allow-origin" not in response.headers
    assert http.options("/v1/chat/completions").status_code == 405


def test_paths_and_methods_that_do_not_exist(http):
    refused(http.get("/v1/nothing"), 404)
    refused(http.get("/v1/chat/completions"), 405)
    refused(http.delete("/v1/models"), 405)
    for path in ("/../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00", "/x//", "/%ff"):
        assert http.get(path).status_code in (400, 404)


def test_a_key(serving):
    import httpx

    served = serving(key="a-long-secret", loopback=False, hosts=("box.example",))
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as http:
        assert http.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic a-long-secret"},
                        {"authorization": "Bearer"}, {"x-api-key": "a-long-secreT"}, {"authorization": "Bearer \xe9"}):  # fmt: skip
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                encoded = {name: value.encode("latin-1") for name, value in headers.items()}
                assert refused(http.get(path, headers=encoded), 401)["code"] == "invalid_api_key"
        good = {"authorization": "Bearer a-long-secret"}
        assert http.get("/v1/models", headers=good).status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": "a-long-secret"}).status_code == 200
        for host, status in (("10.0.0.7:8080", 200), ("box.example", 200), ("nas.local", 200), (socket.gethostname(), 200),
                             ("evil.example", 403)):  # fmt: skip
            assert http.get("/v1/models", headers=good | {"host": host}).status_code == status, host


def test_a_body_that_is_too_large(serving):
    import httpx

    served = serving(body=1000)
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as http:
        for content in (b" " * 1001, iter([b" " * 600, b" " * 600])):  # stated, and in pieces
            assert refused(http.post("/v1/chat/completions", content=content, headers=JSON), 413)["code"] == "too_large"
        assert http.post("/v1/chat/completions", content=BODY, headers=JSON).status_code == 200
    assert served.service.bodies.held == 0


def test_all_bodies_together_are_bounded(serving):
    from ivlite.serve.app import application
    from ivlite.serve.guard import Guard

    served = serving(body=1000)
    served.service.bodies.held = served.service.bodies.most - 10
    client = TestClient(application(served.service, loopback=True), base_url="http://localhost")
    assert refused(client.post("/v1/chat/completions", content=BODY, headers=JSON), 429)
    assert served.service.bodies.held == served.service.bodies.most - 10
    assert isinstance(client.app, Guard)


def test_lengths_that_are_none(served):
    where = urlsplit(served.url)
    for length in (b"-1", b"1e3", b"9" * 30, b"abc"):
        with socket.create_connection((where.hostname, where.port), timeout=30) as wire:
            wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                         b"Content-Length: " + length + b"\r\n\r\n{}")  # fmt: skip
            assert wire.recv(100).split()[1] in (b"400", b"413")
