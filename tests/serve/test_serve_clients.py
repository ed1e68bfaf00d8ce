"""Many clients at once, and those that leave, wait or do not read."""

import base64
import concurrent.futures
import json
import re
import socket
import threading
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
from serve_asking import CLIP, PICTURE, TOLD, WHAT, asked, data_uri
from test_serve_guard import refused

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")


def until(condition, seconds=60):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to be"
        time.sleep(0.01)


def sent(url, body):
    """A connection that has sent a chat request."""
    where, data = urlsplit(url), json.dumps(body).encode()
    wire = socket.create_connection((where.hostname, where.port), timeout=60)
    wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(data) + data)  # fmt: skip
    return wire


class Endless:
    """An engine whose answers have no end and whose prompts take long, for those who do not wait for it."""

    running = nbytes = 0

    def __init__(self, demo):
        self.model, self.begun, self.ended = demo, 0, []

    def stream(self, messages, *, client, stop, **settings):
        from ivlite.engine.reply import Delta, Reply
        from ivlite.stop import Work, within

        self.begun += 1
        reply = Reply(usage=dict.fromkeys(Reply.empty("").usage, 0))
        slow = messages[-1]["content"][-1]["text"]

        def deltas():
            try:
                while True:
                    whole.check()
                    time.sleep(0.001)
                    if slow != "prefill":
                        reply.token_ids.append(1)
                        yield Delta("word " * 20_000)
            finally:
                self.ended.append(whole.reason)

        whole = within(*(item for item in stop if not isinstance(item, str)))
        work = Work(deltas(), whole)
        return Opened(work, reply)


class Opened:
    """A stream of Endless."""

    def __init__(self, work, reply):
        self.work, self.reply = work, reply

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.work.close()

    def __iter__(self):
        return iter(self.work)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["prefill", "answer"])
def test_a_client_that_leaves(serving, demo, text, stream):
    engine = Endless(demo)
    served = serving(engine=engine)
    wire = sent(served.url, asked(text, stream=stream))
    until(lambda: engine.begun == 1)
    if stream and text == "answer":
        assert wire.recv(1000)
    wire.close()
    until(lambda: engine.ended == ["left"])
    until(lambda: served.service.open == 0)
    if not stream:  # counted once its connection is seen to be closed, after its place is free
        until(lambda: 'status="499"} 1' in served.service.metrics.text())
    assert served.thread.is_alive()


WORDS = {
    "type": "regex",
    "pattern": "[a-z ]{20000}",
}  # an answer that cannot end, whatever a processor's rounding draws
LONG = asked("Tell me a story.", max_tokens=1900, temperature=1, response_format=WORDS)


def test_a_client_that_leaves_frees_its_place(serving):
    """The same with the engine: one place, which the next one that is still there gets."""
    served = serving(most=1)
    first = sent(served.url, LONG | {"stream": True})
    assert first.recv(1000)
    second, third = (sent(served.url, LONG | {"user": user}) for user in "bc")
    until(lambda: served.service.open == 3 and served.service.engine.waiting == 2)
    second.close()
    until(lambda: served.service.open == 2 and served.service.engine.waiting == 1)
    first.close()
    until(lambda: served.service.engine.waiting == 0 and served.service.open == 1)
    third.close()
    until(lambda: served.service.open == 0 and served.service.engine.running == 0)
    assert "generated" not in re.findall(r'kind="(\w+)"} [1-9]', served.service.metrics.text()) or served.lines


def test_a_client_that_leaves_during_a_prefill(serving):
    served = serving(most=1)
    frames = [{"t": n / 10, "image": PICTURE} for n in range(600)]
    wire = sent(
        served.url, asked({"type": "video", "video": frames, "max_frames": 600}, WHAT, budget=1800, stream=True)
    )
    until(lambda: served.service.engine.running == 1 or served.service.open == 0)
    wire.close()
    until(lambda: served.service.open == 0 and served.service.engine.running == 0)
    assert served.thread.is_alive()


def test_a_reader_that_is_slow_holds_up_nobody(serving, demo, monkeypatch):
    from ivlite.serve import answers

    engine = Endless(demo)
    served = serving(engine=engine)
    monkeypatch.setattr(answers, "STALLED", 0.5)
    wire = sent(served.url, asked("answer", stream=True))
    until(lambda: engine.begun == 1)
    until(lambda: served.service.open == 0)  # it has taken nothing for too long
    assert len(engine.ended) == 1
    wire.close()


def test_a_stream_says_what_is_being_done(serving, demo, monkeypatch):
    """Comments, which clients pass over; an error after them is an event."""
    from ivlite.serve import answers, listen

    monkeypatch.setattr(answers, "PATIENCE", 0.05)
    monkeypatch.setattr(listen, "GRACE", 0.1)
    engine = Endless(demo)
    served = serving(engine=engine)
    wire = sent(served.url, asked("prefill", stream=True))
    text = b""
    while text.count(b": waiting\n\n") < 2:
        text += wire.recv(1000)
    assert b" 200 OK" in text and b"text/event-stream" in text
    served.stop.set("terminated")
    text += b"".join(iter(lambda: wire.recv(1000), b""))
    assert b'data: {"error":{"message":"the server is closing"' in text and b"[DONE]" not in text


def test_a_body_that_does_not_come(served, monkeypatch):
    from ivlite.serve import bodies

    monkeypatch.setattr(bodies, "STALLED", 0.2)
    where = urlsplit(served.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as wire:
        wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        assert b" 408 " in wire.recv(1000)
    with socket.create_connection((where.hostname, where.port), timeout=60) as wire:
        wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 100\r\n\r\n{")  # fmt: skip
    until(lambda: served.service.bodies.held == 0)


def test_a_body_that_comes_byte_by_byte(served, monkeypatch):
    from ivlite.serve import bodies

    monkeypatch.setattr(bodies, "STALLED", 1.0)
    with wire_to(served) as wire:
        wire.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 100000\r\n\r\n{")  # fmt: skip
        wire.settimeout(0.1)
        for _ in range(300):  # bytes, far less than a second apart
            try:
                assert b" 408 " in wire.recv(1000)
                break
            except TimeoutError:
                wire.sendall(b" ")
        else:
            raise AssertionError("it is still read")
    until(lambda: served.service.bodies.held == 0)


def wire_to(served):
    where = urlsplit(served.url)
    return socket.create_connection((where.hostname, where.port), timeout=60)


@pytest.mark.parametrize(
    "began", [b"", b"GET /health HTTP/1.1\r\nHost: ", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"]
)
def test_headers_that_do_not_come(serving, monkeypatch, began):
    from ivlite.serve import listen

    monkeypatch.setattr(listen, "ASKED", 0.3)
    served = serving()
    with wire_to(served) as wire:
        wire.settimeout(30)  # less than a connection without requests stays open
        wire.sendall(began)
        text = b""
        try:
            while part := wire.recv(1000):
                text += part
        except ConnectionResetError:
            pass
        assert text.count(b" 200 OK") == began.count(b"\r\n\r\n")


def test_connections_that_ask_for_nothing_keep_nobody_out(serving, monkeypatch):
    from ivlite.serve import listen

    monkeypatch.setattr(listen, "CONNECTIONS", 8)
    served = serving()
    busy = sent(served.url, LONG | {"stream": True})  # the oldest, which asks for something
    assert busy.recv(1000)
    with ExitStack() as stack:
        for _ in range(3):
            for wire in [stack.enter_context(wire_to(served)) for _ in range(100)]:
                with suppress(OSError):  # it was closed for a newer one
                    wire.sendall(b"GET /health HTTP/1.1\r\nHost: ")
            assert httpx.get(served.url + "/health", trust_env=False, timeout=60).status_code == 200
    assert busy.recv(1000)
    busy.close()
    until(lambda: served.service.open == 0)


@pytest.mark.parametrize("data", [
    b"\0" * 1000, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 1000, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", b"\x16\x03\x01\x02\0\x01\0",
    b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=a\r\n\r\nzz",
], ids=range(8))  # fmt: skip
def test_what_is_no_http(served, http, data):
    where = urlsplit(served.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as wire:
        try:
            wire.sendall(data)
            wire.shutdown(socket.SHUT_WR)
            assert b" 200 " not in b"".join(iter(lambda: wire.recv(10_000), b""))
        except OSError:  # it was closed before all was sent
            pass
    assert http.get("/health").status_code == 200


def test_too_many_requests(serving, demo):
    engine = Endless(demo)
    served = serving(engine=engine, waiting=3)
    wires = [sent(served.url, asked("prefill")) for _ in range(3)]
    until(lambda: served.service.open == 3)
    with httpx.Client(base_url=served.url, timeout=60, trust_env=False) as http:
        answer = http.post("/v1/chat/completions", json=asked("x"))
        refused(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        assert http.get("/health").status_code == 200
        for wire in wires:
            wire.close()
        until(lambda: served.service.open == 0)


def test_a_server_that_ends_stops_its_answers(serving, demo, monkeypatch):
    from ivlite.serve import listen

    monkeypatch.setattr(listen, "GRACE", 0.3)
    engine = Endless(demo)
    served = serving(engine=engine)
    whole, stream = sent(served.url, asked("prefill")), sent(served.url, asked("answer", stream=True, user="b"))
    until(lambda: engine.begun == 2)
    served.stop.set("terminated")
    served.thread.join(30)
    assert not served.thread.is_alive() and engine.ended
    text = b"".join(iter(lambda: whole.recv(1000), b""))
    assert b" 503 " in text and b"closing" in text
    stream.close()


KINDS = ("whole", "stream", "choice", "schema", "hostile", "leaving", "agent")
QUESTIONS = [(WHAT, TOLD), ("What shape is the red thing?", "The red one is a cross."),
             ("How many shapes are there?", "A yellow circle and a red cross: two.")]  # fmt: skip
HOSTILE = [
    b"only words " * 50,
    CLIP.read_bytes()[:7000],
    b"\0" * 4000,
    b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    b"GIF89a" + b"\xff" * 90,
]


def streamed(text):
    """The content of a stream, and whether it came to its end."""
    lines = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    return "".join(line["choices"][0]["delta"].get("content") or "" for line in lines), text.endswith(
        "data: [DONE]\n\n"
    )


class Crowd:
    """Many clients of a server at once, each with a mark of its own. It notes the most memory that they take."""

    def __init__(self, served):
        self.served, self.engine, self.most, self.over = served, served.service.engine, 0, threading.Event()

    def watch(self):
        while not self.over.wait(0.002):
            self.most = max(self.most, self.engine.nbytes)

    def client(self, n):
        """Asks, and returns what is wrong with the answer, or nothing."""
        kind = KINDS[n % len(KINDS)]
        with httpx.Client(base_url=self.served.url, timeout=300, trust_env=False) as http:
            return getattr(self, kind)(
                n, lambda body, path="chat/completions": http.post(f"/v1/{path}", json=body | {"user": f"u{n % 9}"})
            )

    def whole(self, n, post):
        text, told = QUESTIONS[n % 3]
        answer = post(asked(VIDEO, text)).json()
        return answer.get("choices", [{}])[0].get("message", {}).get("content") != told and answer

    def stream(self, n, post):
        text, told = QUESTIONS[n % 3]
        answer = post(asked(VIDEO, text, stream=True)).text
        return streamed(answer) != (told, True) and answer

    def choice(self, n, post):
        answer = post(asked(f"Say {n}.", response_format={"type": "choice", "choices": [f"mark {n}"]})).json()
        return answer.get("choices", [{}])[0].get("message", {}).get("content") != f"mark {n}" and answer

    def schema(self, n, post):
        schema = {"type": "object", "properties": {"n": {"const": n}}, "required": ["n"], "additionalProperties": False}
        wanted = {"type": "json_schema", "json_schema": {"name": "mark", "schema": schema}}
        text, ended = streamed(post(asked(PART, f"Say {n}.", response_format=wanted, stream=True)).text)
        return (not ended or json.loads(text) != {"n": n}) and text

    def hostile(self, n, post):
        data = base64.b64encode(HOSTILE[n // len(KINDS) % len(HOSTILE)]).decode()
        video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
        answer = post(asked(video, WHAT, stream=n % 2 == 0))
        begun = n % 2 == 0 and answer.status_code == 200  # it has waited long: the error is an event
        return (answer.status_code != 400 and not begun or '"code":"invalid_media"' not in answer.text) and answer.text

    def leaving(self, n, post):
        wire = sent(self.served.url, LONG | {"stream": True, "user": f"u{n % 9}"})
        try:
            return n % 2 == 0 and b" 200 " not in wire.recv(1000) and "it was refused"
        finally:
            wire.close()

    def agent(self, n, post):
        answer = post(
            {"question": WHAT, "videos": [data_uri()], "budget": {"rounds": 2, "frames": 8, "new_tokens": 64}}, "agent"
        ).json()
        return answer.get("object") != "agent.answer" and answer


VIDEO = {"type": "video_url", "video_url": {"url": data_uri()}}
PART = {"type": "image_url", "image_url": {"url": PICTURE}}


def test_fifty_clients_at_once(served):
    """Questions, streams, schemas, damaged files, agents, clients that leave: each gets its own answer, within the memory."""
    crowd = Crowd(served)
    watching = threading.Thread(target=crowd.watch)
    watching.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            wrong = [(n, found) for n, found in enumerate(pool.map(crowd.client, range(50))) if found]
    finally:
        crowd.over.set()
        watching.join()
    assert not wrong and 0 < crowd.most <= crowd.engine.memory
    until(lambda: served.service.open == 0 and crowd.engine.running == crowd.engine.waiting == 0)
    assert served.service.bodies.held == 0 and not list(served.service.files.folder.glob("sent-*"))
    assert served.thread.is_alive() and crowd.client(0) is False
