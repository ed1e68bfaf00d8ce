"""Requests as evaluation harnesses build them, read as they read answers."""

import json

import pytest
from serve_asking import CLIP, WHAT, data_uri, picture

pytest.importorskip("starlette")
openai = pytest.importorskip("openai")


@pytest.mark.parametrize("stream", [False, True])
def test_vlmevalkit(http, demo, media_root, stream):
    """Sampling as top-level fields; settings of media inside their objects; a video by its file or whole within the request."""
    settings = {"fps": 2, "max_frames": 16, "min_pixels": 1024, "max_pixels": 65536}
    part = {"type": "video", "video": str(CLIP), **settings}
    expected = demo.chat([{"role": "user", "content": [part, {"type": "text", "text": WHAT}]}], temperature=0).text
    for url in (data_uri(), f"file://{media_root}/clip.mp4"):
        content = [
            {"type": "video_url", "video_url": {"url": url, **settings}},
            {"type": "text", "text": WHAT},
        ]  # fmt: skip
        payload = {
            "model": "ivlite", "messages": [{"role": "user", "content": content}], "n": 1, "max_tokens": 16384, "temperature": 0,
            "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.0, "presence_penalty": 0, "stream": stream,
        }  # fmt: skip
        answer = http.post("/v1/chat/completions", json=payload, headers={"Authorization": "Bearer sk-123456"})
        assert answer.status_code == 200, answer.text
        if not stream:
            assert answer.json()["choices"][0]["message"]["content"].strip() == expected
            continue
        text = ""
        for line in answer.text.splitlines():
            if line.startswith("data:") and line[5:].strip() != "[DONE]":
                text += json.loads(line[5:])["choices"][0]["delta"].get("content") or ""
        assert text.strip() == expected and answer.text.rstrip().endswith("[DONE]")


def test_lmms_eval_frames_with_times(served):
    """Its asynchronous client writes a time before each frame."""
    import av

    with av.open(str(CLIP)) as container:
        frames = [(float(f.time), f.to_image()) for f in container.decode(video=0)][::4]
    parts = []
    for time, _ in frames[:16]:
        parts += [
            {"type": "text", "text": f"<{time:.1f} seconds>"},
            {"type": "image_url", "image_url": {"url": picture()}},
        ]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0, timeout=120) as client:
        answer = client.chat.completions.create(
            model="ivlite", messages=[{"role": "user", "content": [*parts, {"type": "text", "text": WHAT}]}], max_tokens=1024,
            temperature=0,
        )  # fmt: skip
    assert isinstance(answer.choices[0].message.content, str) and answer.usage.ivlite["frames"] == len(parts) // 2


def test_lmms_eval_tools(served):
    """What it sends back after a call: the objects of the client, results without ids, pictures among them."""
    tools = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {
        "type": "object", "properties": {"t": {"enum": [1, 2]}}, "required": ["t"], "additionalProperties": False}}}]  # fmt: skip
    messages = [
        {
            "role": "user",
            "content": [{"type": "video_url", "video_url": {"url": data_uri()}}, {"type": "text", "text": WHAT}],
        }
    ]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0, timeout=120) as client:
        first = client.chat.completions.create(
            model="ivlite", messages=messages, max_tokens=64, temperature=0, tools=tools, tool_choice="required"
        )
        said, calls = first.choices[0].message.content, first.choices[0].message.tool_calls
        assert first.choices[0].finish_reason == "tool_calls" and said + "" == ""
        messages += [{"role": "assistant", "content": said}, {"role": "assistant", "tool_calls": calls}]
        for call in calls:
            json.loads(call.function.arguments)
            content = [{"type": "text", "text": "frame"}, {"type": "image_url", "image_url": {"url": picture("blue")}}]
            messages.append({"role": "tool", "name": call.function.name, "content": content})
        last = client.chat.completions.create(
            model="ivlite", messages=messages, max_tokens=64, temperature=0, tools=tools, tool_choice="auto"
        )
    assert isinstance(last.choices[0].message.content, str)
