"""/v1/agent: the agent's answer, and its events as they happen."""

import json
import threading
import time

import pytest
from serve_asking import WHAT, data_uri
from test_serve_guard import refused

pytest.importorskip("starlette")

QUESTION = {"question": WHAT, "videos": [data_uri()], "temperature": 0, "budget": {"rounds": 4, "frames": 64}}


def test_an_answer(http):
    answer = http.post("/v1/agent", json=QUESTION)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["object"] == "agent.answer" and isinstance(found["answer"], str) and found["usage"]["rounds"] <= 4
    assert found["videos"][0]["handle"] == "v1" and "/tmp" not in answer.text


def test_its_events(http):
    answer = http.post("/v1/agent", json=QUESTION | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    events = [block.split("\n") for block in answer.text.split("\n\n") if block and block[0] != ":"]
    data = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
    assert [lines[0] for lines in events] == [f"event: {item['type']}" for item in data]
    assert data[-1]["type"] == "answered" and "call" in {item["type"] for item in data}
    whole = http.post("/v1/agent", json=QUESTION).json()
    assert data[-1]["answer"]["answer"] == whole["answer"] and data[-1]["answer"]["claims"] == whole["claims"]


@pytest.mark.parametrize("more", [
    {"question": None}, {"question": ""}, {"question": 5}, {"question": "x" * 9000}, {"videos": None}, {"videos": []},
    {"videos": [5]}, {"videos": ["/etc/passwd"]}, {"videos": ["http://x"]}, {"videos": [data_uri()] * 17},
    {"videos": [{"type": "text", "text": "x"}]}, {"videos": [{"type": "video", "video": data_uri(), "fps": 1}]},
    {"budget": {"rounds": 0}}, {"budget": {"rounds": "x"}}, {"budget": {"other": 1}}, {"budget": 5}, {"tools": ["rm"]},
    {"tools": [5]}, {"tools": "look"}, {"temperature": -1}, {"stream": "x"}, {"verify": 1}, {"seed": 0.5},
])  # fmt: skip
def test_requests_that_are_wrong(http, more):
    refused(http.post("/v1/agent", json=QUESTION | more), 400)


def test_its_work_is_that_of_its_client(served, http):
    """What an agent computes counts as what its client had, as that of other requests does."""
    engine = served.service.engine
    new = engine.had("127.0.0.1 worker")
    assert http.post("/v1/agent", json=QUESTION | {"user": "worker"}).status_code == 200
    assert engine.had("127.0.0.1 worker") > new and engine.serving.client == ""


def test_places_are_given_in_order():
    """To the lowest rank first, of equal ones to who came first; who is stopped leaves the line."""
    from ivlite.errors import Stopped
    from ivlite.serve.places import Places
    from ivlite.stop import Stop

    places, order, had, threads = Places(1), [], {"a": 3.0, "b": 1.0}, []
    first, leaving = Stop(), Stop()

    def work(name, stop):
        try:
            with places.taken(stop, lambda: had[name[0]]):
                order.append(name)
        except Stopped:
            order.append(f"{name} left")

    with places.taken(first):
        for name, stop in (("a1", first), ("b1", leaving), ("a2", first), ("b2", first), ("b3", first)):
            threads.append(threading.Thread(target=work, args=(name, stop)))
            threads[-1].start()
            while len(places._line) < len(threads):
                time.sleep(0.001)
        leaving.set("left")
        threads[1].join(60)
    for thread in threads:
        thread.join(60)
    assert order == ["b1 left", "b2", "b3", "a1", "a2"] and places._free == 1 and not places._line
    with pytest.raises(ZeroDivisionError), places.taken(first):
        raise ZeroDivisionError
    assert places._free == 1
