"""/v1/agent: the agent's answer, and its events as they happen."""

import json

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
