"""Chat completions, plain HTTP: what requests may say, and what answers are."""

import json

import pytest
from serve_asking import CLIP, TOLD, WHAT, asked, data_uri

pytest.importorskip("starlette")

VIDEO = {"type": "video_url", "video_url": {"url": data_uri()}}


def said(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def events(response):
    """The data of the events of a streamed response, without the last, which is [DONE]."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") or line[0] == ":" for line in lines)
    return [json.loads(line[6:]) for line in lines[:-1] if line[0] != ":"]


@pytest.mark.parametrize("part", [
    {"type": "video_url", "video_url": {"url": data_uri()}},
    {"type": "video_url", "video_url": data_uri()},
    {"type": "input_video", "input_video": {"data": data_uri()}},
    {"type": "input_video", "input_video": data_uri()},
    {"type": "video", "video": data_uri()},
    {"video": data_uri()},
], ids=["video_url", "video_url text", "input_video", "input_video text", "video", "no type"])  # fmt: skip
def test_a_video_under_each_name(ask, part):
    assert said(ask(part, WHAT)) == TOLD


def test_a_file_of_the_media_folder(ask, media_root):
    assert said(ask({"type": "video_url", "video_url": {"url": f"file://{media_root}/clip.mp4"}}, WHAT)) == TOLD


def test_settings_of_a_video_are_beside_its_source_or_in_it(ask, demo):
    def frames(part, **more):
        answer = ask({"type": "video_url", **part}, WHAT, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["ivlite"]["frames"], answer.json()["usage"]["prompt_tokens"]

    url = data_uri()
    expected = frames({"video_url": {"url": url}, "nframes": 4})
    assert expected[0] == 4
    assert frames({"video_url": {"url": url, "nframes": 4}}) == expected
    assert frames({"video_url": {"url": url, "num_frames": 4}}) == expected
    assert frames({"video_url": {"url": url}, "frames": 4}) == expected
    assert frames({"video_url": {"url": url}}, media_io_kwargs={"video": {"num_frames": 4, "fps": -1}}) == expected
    assert frames({"video_url": {"url": url, "nframes": 4}}, media_io_kwargs={"video": {"num_frames": 8}}) == expected
    assert frames({"video_url": {"url": url, "nframes": 4}}, mm_processor_kwargs={"fps": 2}) == expected
    small = frames({"video_url": {"url": url, "max_pixels": 4096}, "nframes": 4})
    assert small[0] == 4 and small[1] < expected[1]
    assert frames({"video_url": {"url": url}, "nframes": 4}, mm_processor_kwargs={"max_pixels": 4096}) == small
    assert frames({"video_url": {"url": url}, "nframes": 4},
                  mm_processor_kwargs={"size": {"shortest_edge": 1024, "longest_edge": 4096}}) == small  # fmt: skip
    part = {"video_start": 1, "video_end": 3, "fps": 1, "max_frames": 2}
    assert frames({"video_url": {"url": url, **part}})[0] == 2
    few = frames({"video_url": {"url": url}, "budget": 40})
    assert few == frames({"video_url": {"url": url, "budget": 40}}) == frames({"video_url": {"url": url}}, budget=40)
    assert few[0] < frames({"video_url": {"url": url}})[0]


def test_frames_with_times_are_the_video_that_was_sampled_there(served, demo, tmp_path):
    """Many pictures with time marks between them become the tokens and pixels of one video."""
    import av
    import numpy as np

    from ivlite.serve.files import Files
    from ivlite.serve.parts import Sources, readable

    medium = demo.prepare([{"role": "user", "content": [{"type": "video", "video": str(CLIP), "fps": 1}]}]).media[0]
    with av.open(str(CLIP)) as container:
        pictures = [(float(frame.time), frame.to_image()) for frame in container.decode(video=0)]
    wanted = [pictures[index] for index in medium.frames]
    parts, listed = [], []
    for n, (time, picture) in enumerate(wanted):
        picture.save(tmp_path / f"{n}.png")
        uri = data_uri(tmp_path / f"{n}.png", "image/png")
        parts += [{"type": "text", "text": f"<{time:.1f} seconds>"}, {"type": "image_url", "image_url": {"url": uri}}]
        listed.append({"t": round(time, 1), "image": uri})
    files = Files(1 << 30)
    try:
        with Sources(files, None, lambda path, name: path) as sources:

            def prompt(*content):
                messages = [{"role": "user", "content": [*content, {"type": "text", "text": WHAT}]}]
                return demo.prepare(readable(messages, sources, {}))

            video = demo.prepare([{"role": "user", "content": [
                {"type": "video", "video": str(CLIP), "fps": 1}, {"type": "text", "text": WHAT}]}])  # fmt: skip
            apart, together = prompt(*parts), prompt({"type": "video", "video": listed})
            assert apart.token_ids == together.token_ids and len(apart.media) == 1
            assert (apart.positions == together.positions).all() and apart.keys == together.keys
            assert apart.token_ids == video.token_ids
            for mine, theirs in zip(apart.media[0].pairs(), video.media[0].pairs(), strict=True):
                assert np.abs(mine.astype(int) - theirs).mean() < 3  # the conversion to RGB is another one
    finally:
        files.close()
    assert not list(served.service.files.folder.glob("sent-*"))


def test_pictures_without_marks_stay_pictures(ask, tmp_path):
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    uri = data_uri(tmp_path / "a.png", "image/png")
    image = {"type": "image_url", "image_url": {"url": uri, "detail": "low"}}
    answer = ask(image, {"type": "text", "text": "at <12.0 seconds> it was"}, image, WHAT)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["ivlite"]["frames"] == 2
    marked = ask(
        {"type": "text", "text": "<12.0 seconds>"}, image, {"type": "text", "text": "<2 seconds>"}, image, WHAT
    )
    assert marked.status_code == 200 and "frames" in marked.text  # a time that goes back: two videos of one frame


def test_a_stream_adds_up_to_the_answer(ask):
    whole = ask(VIDEO, WHAT).json()
    stream = ask(VIDEO, WHAT, stream=True, stream_options={"include_usage": True})
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, last = events(stream)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == TOLD
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"] and {chunk["usage"] for chunk in chunks} == {None}
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1 and last["choices"] == []
    same = ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details")
    assert {name: last["usage"][name] for name in same} == {name: whole["usage"][name] for name in same}
    assert all("usage" not in chunk for chunk in events(ask(VIDEO, WHAT, stream=True)))


def test_usage_tells_stages_and_what_was_reused(ask):
    first, second = (ask(VIDEO, WHAT).json()["usage"] for _ in range(2))
    assert second["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] - 16
    assert {"decode", "vision", "prefill", "generate"} <= first["ivlite"]["seconds"].keys()
    assert first["total_tokens"] == first["prompt_tokens"] + first["completion_tokens"]
    assert first["ivlite"]["vision_tokens"] > 0 and first["ivlite"]["warnings"] == []


def test_thinking_is_apart_from_the_answer(ask):
    question = "Which way does the red cross move?"
    body = {"chat_template_kwargs": {"enable_thinking": True, "tokenize": True}, "logprobs": True}
    answer = ask(VIDEO, question, **body).json()
    message = answer["choices"][0]["message"]
    assert message["content"] == "The red cross moves left." and message["reasoning_content"]
    assert 0 < answer["usage"]["completion_tokens_details"]["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    deltas = [chunk["choices"][0]["delta"] for chunk in events(ask(VIDEO, question, stream=True, **body))]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert "reasoning_content" not in ask(VIDEO, question).json()["choices"][0]["message"]


@pytest.mark.parametrize("more, thinks", [
    ({"reasoning_effort": "high"}, True), ({"reasoning_effort": "low"}, True), ({"reasoning_effort": "minimal"}, False),
    ({"reasoning_effort": "none"}, False), ({"reasoning_effort": None}, False),
    ({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}, False),
    ({"reasoning_effort": "none", "enable_thinking": True}, True),
])  # fmt: skip
def test_an_effort_of_reasoning(more, thinks):
    from ivlite.serve.request import read

    assert read(asked("hi") | more).settings["enable_thinking"] is thinks


def test_logprobs(ask):
    choice = ask(VIDEO, WHAT, logprobs=True, top_logprobs=3).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == TOLD
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == TOLD
    for entry in entries:
        top = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True) and entry["logprob"] == top[0] <= 0
    chunks = events(ask(VIDEO, WHAT, logprobs=True, stream=True))
    sent = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in sent] == [entry["token"] for entry in entries]
    assert ask(VIDEO, WHAT).json()["choices"][0]["logprobs"] is None


def test_how_an_answer_ends(ask):
    def end(**more):
        choice = ask(VIDEO, WHAT, **more).json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]

    assert end(max_tokens=2)[1] == end(max_completion_tokens=2)[1] == "length"
    assert end(stop=" circle") == end(stop=["never", " circle"]) == ("A yellow", "stop")
    assert end(max_tokens=10**9, stop=None, seed=None, n=1, top_k=-1, unknown=[1]) == (TOLD, "stop")
    assert end(response_format={"type": "text"}) == (TOLD, "stop")


def test_a_schema_and_choices(ask):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": schema}}
    assert json.loads(said(ask(VIDEO, WHAT, response_format=wanted)))["n"] in (1, 2)
    assert said(ask(VIDEO, WHAT, response_format={"type": "choice", "choices": ["left", "right"]})) in ("left", "right")


def test_the_seed_decides(ask):
    def text(seed):
        return said(ask("Tell me a story.", temperature=1.5, seed=seed, max_tokens=30))

    assert text(5) == text(5) and len({text(seed) for seed in (1, 2, 3, -7, 2**63)}) > 1


def test_a_conversation_with_results_of_tools(ask, http):
    """As lmms-eval sends it: two messages of the assistant, results without ids and with pictures."""
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"t": 3}'}}
    body = asked(VIDEO, WHAT)
    body["messages"] += [
        {"role": "assistant", "content": ""}, {"role": "assistant", "tool_calls": [call], "content": None},
        {"role": "tool", "name": "look", "content": [{"type": "text", "text": "seen"}, {**VIDEO, "nframes": 2}]},
    ]  # fmt: skip
    body["tools"] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["choices"][0]["message"]["content"], str)


def test_models_health_plan(http, ask):
    models = http.get("/v1/models").json()
    assert models["object"] == "list" and models["data"][0]["id"] == "demo"
    assert http.get("/v1/models/demo").json() == models["data"][0] and http.get("/v1/models/other").status_code == 404
    assert http.get("/health").json()["status"] == "ok"
    plan = http.post("/v1/plan", json=asked(VIDEO, WHAT)).json()
    answer = ask(VIDEO, WHAT).json()["usage"]
    assert plan["fits"] and plan["prompt_tokens"] == answer["prompt_tokens"]


def test_metrics(serving):
    import httpx

    with httpx.Client(base_url=serving().url, timeout=120, trust_env=False) as http:
        usage = http.post("/v1/chat/completions", json=asked("Hello", max_tokens=2)).json()["usage"]
        assert http.post("/v1/chat/completions", json={}).status_code == 400
        assert http.get("/health", headers={"host": "other.example"}).status_code == 403
        assert http.get("/v1/nothing").status_code == 404 and http.delete("/health").status_code == 405
        text = http.get("/metrics").text
    for status in (200, 400):
        assert f'ivlite_requests_total{{path="/v1/chat/completions",status="{status}"}} 1\n' in text
    for status in (403, 404, 405):  # refused before a path was looked at, or there is none
        assert f'ivlite_requests_total{{path="other",status="{status}"}} 1\n' in text
    assert (
        f'ivlite_tokens_total{{kind="prompt"}} {usage["prompt_tokens"]}\n' in text
        and "\nivlite_requests_open 0\n" in text
    )
    for line in text.splitlines():
        assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0


LOOK = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {
    "type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"], "additionalProperties": False}}}  # fmt: skip


def test_calls_of_tools(ask):
    more = {"tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False}
    choice = ask(VIDEO, WHAT, **more).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == ""
    assert call["type"] == "function" and call["function"]["name"] == "look" and call["id"]
    assert json.loads(call["function"]["arguments"])["side"] in ("left", "right")
    chunks = events(ask(VIDEO, WHAT, stream=True, **more))
    sent = [one for chunk in chunks for one in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert [one["index"] for one in sent] == [0] and sent[0]["function"] == call["function"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    named = ask(VIDEO, WHAT, tools=[LOOK], tool_choice={"type": "function", "function": {"name": "look"}})
    assert named.json()["choices"][0]["message"]["tool_calls"][0]["function"] == call["function"]
    assert said(ask(VIDEO, WHAT, tools=[LOOK], tool_choice="none"))


def test_a_budget_of_thinking(ask):
    """The program ends the thinking; the answer goes on."""
    more = {"enable_thinking": True, "thinking_budget": 2}
    answer = ask(VIDEO, "Which way does the red cross move?", **more).json()
    long = ask(VIDEO, "Which way does the red cross move?", enable_thinking=True).json()
    thought, whole = (found["usage"]["completion_tokens_details"]["reasoning_tokens"] for found in (answer, long))
    assert thought < whole and answer["choices"][0]["message"]["content"]
