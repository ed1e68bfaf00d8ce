"""The real `openai` client."""

import json

import pytest
from serve_asking import CLIP, TOLD, WHAT, data_uri

pytest.importorskip("starlette")
openai = pytest.importorskip("openai")

VIDEO = {"type": "video_url", "video_url": {"url": data_uri()}}
COUNT = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {
    "type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"], "additionalProperties": False}}}  # fmt: skip


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def messages(part=VIDEO, text=WHAT):
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def test_chat(client):
    answer = client.chat.completions.create(model="demo", messages=messages(), temperature=0)
    assert answer.choices[0].message.content == TOLD and answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0 and answer._request_id.startswith("req-")


def test_stream(client):
    stream = client.chat.completions.create(
        model="demo", messages=messages(), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TOLD
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-2].choices[0].finish_reason == "stop"


def test_tools(client):
    settings = {"model": "demo", "messages": messages(), "temperature": 0, "tools": [LOOK], "tool_choice": "required",
                "parallel_tool_calls": False}  # fmt: skip
    answer = client.chat.completions.create(**settings).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and json.loads(call.function.arguments)["side"] in ("left", "right")
    chunks = list(client.chat.completions.create(**settings, stream=True))
    (streamed,) = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert streamed.function.arguments == call.function.arguments and streamed.index == 0
    again = [*messages(), answer.message, {"role": "tool", "tool_call_id": call.id, "content": "a red cross"}]
    assert client.chat.completions.create(model="demo", messages=again, tools=[LOOK], temperature=0).choices[0].message


def test_schema(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": COUNT}}
    answer = client.chat.completions.create(model="demo", messages=messages(), response_format=wanted, temperature=0)
    assert json.loads(answer.choices[0].message.content)["n"] in (1, 2)
    pydantic = pytest.importorskip("pydantic")

    class Found(pydantic.BaseModel):
        left: bool

    parsed = client.chat.completions.parse(model="demo", messages=messages(), response_format=Found, temperature=0)
    assert isinstance(parsed.choices[0].message.parsed, Found)


def test_models_and_logprobs(client):
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id) == model
    choice = client.chat.completions.create(
        model=model.id, messages=messages(), temperature=0, logprobs=True, top_logprobs=2
    ).choices[0]
    assert "".join(entry.token for entry in choice.logprobs.content) == TOLD
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)


def test_files(client, tmp_path):
    pytest.importorskip("python_multipart")
    with open(CLIP, "rb") as file:
        stored = client.files.create(file=file, purpose="vision")
    part = {"type": "video_url", "video_url": {"url": stored.id}}
    answer = client.chat.completions.create(model="demo", messages=messages(part), temperature=0)
    assert answer.choices[0].message.content == TOLD
    assert client.files.content(stored.id).read() == CLIP.read_bytes() and stored.id in [
        f.id for f in client.files.list()
    ]
    upload = client.uploads.upload_file_chunked(file=CLIP, mime_type="video/mp4", purpose="vision", part_size=6000)
    assert upload.status == "completed" and upload.file.bytes == CLIP.stat().st_size
    for file in (stored.id, upload.file.id):
        assert client.files.delete(file).deleted


def test_errors_are_those_of_the_client(client, serving):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=messages(), temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-" + "0" * 32)
    served = serving(key="a-long-secret")
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong-one", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="a-long-secret", max_retries=0) as other:
        assert other.models.list().data


def parts(video=None, text=WHAT):
    video = video or {"type": "input_video", "input_video": data_uri()}
    return [{"role": "user", "content": [video, {"type": "input_text", "text": text}]}]


def test_responses(client):
    made = client.responses.create(
        model="demo", input=parts(), temperature=0, instructions="Be brief.", metadata={"a": "b"}
    )
    assert made.output_text == TOLD and made.status == "completed" and made.id.startswith("resp_")
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens and made.metadata == {"a": "b"}
    assert client.responses.retrieve(made.id).output_text == TOLD
    more = client.responses.create(
        model="demo", input="What shape is the red thing?", temperature=0, previous_response_id=made.id, store=False
    )
    assert more.output_text == "The red one is a cross." and more.usage.input_tokens_details.cached_tokens > 0
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(more.id)
    client.responses.delete(made.id)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="demo", input="x", previous_response_id=made.id)
    cut = client.responses.create(model="demo", input="Hello", max_output_tokens=1)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def test_responses_as_events(client):
    events = list(client.responses.create(model="demo", input=parts(), temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TOLD
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert events[-1].response.output_text == TOLD
    with client.responses.stream(model="demo", input=parts(), temperature=0) as stream:
        assert stream.get_final_response().output_text == TOLD
    question = "Which way does the red cross move?"
    thinking = list(client.responses.create(
        model="demo", input=parts(text=question), temperature=0, stream=True, reasoning={"effort": "low"}))  # fmt: skip
    kinds = [item.type for item in thinking[-1].response.output]
    assert kinds == ["reasoning", "message"] and "response.reasoning_text.delta" in {event.type for event in thinking}
    assert thinking[-1].response.usage.output_tokens_details.reasoning_tokens > 0


def test_responses_call_tools_and_follow_schemas(client):
    tool = {"type": "function", "name": "look", "strict": True, "parameters": LOOK["function"]["parameters"]}
    settings = {"model": "demo", "input": parts(), "temperature": 0, "tools": [tool], "tool_choice": "required",
                "parallel_tool_calls": False}  # fmt: skip
    made = client.responses.create(**settings)
    (call,) = made.output
    assert call.type == "function_call" and json.loads(call.arguments)["side"] in ("left", "right")
    named = client.responses.create(**settings | {"tool_choice": {"type": "function", "name": "look"}})
    assert named.output[0].arguments == call.arguments
    events = list(client.responses.create(**settings, stream=True))
    assert [e.arguments for e in events if e.type == "response.function_call_arguments.done"] == [call.arguments]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "a red cross"}
    for again in ({"input": [result], "previous_response_id": made.id}, {"input": [*parts(), call, result]}):
        assert client.responses.create(model="demo", temperature=0, tools=[tool], **again).status == "completed"
    wanted = {"format": {"type": "json_schema", "name": "count", "strict": True, "schema": COUNT}}
    answer = client.responses.create(model="demo", input=parts(), text=wanted, temperature=0)
    assert json.loads(answer.output_text)["n"] in (1, 2)
    include = ["message.output_text.logprobs"]
    scored = client.responses.create(model="demo", input=parts(), include=include, top_logprobs=2, temperature=0)
    entries = scored.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries) == TOLD and len(entries[0].top_logprobs) == 2


@pytest.mark.parametrize("more", [
    {"input": None}, {"input": []}, {"input": 5}, {"input": [5]}, {"input": [{"type": "item_reference", "id": "x"}]},
    {"tools": [{"type": "web_search"}]}, {"tools": "x"}, {"text": 5}, {"text": {"format": 5}}, {"instructions": 5},
    {"previous_response_id": "resp_x"}, {"previous_response_id": 5}, {"max_output_tokens": 0}, {"reasoning": 5}, {"include": 5},
    {"input": [{"type": "function_call"}]}, {"input": [{"type": "function_call_output", "call_id": "x", "output": 5}]},
    {"text": {"format": {"type": "json_schema"}}}, {"tool_choice": 5}, {"temperature": "x"},
])  # fmt: skip
def test_responses_that_are_refused(client, more):
    with pytest.raises(openai.BadRequestError):
        client.post("/responses", body={"model": "demo", "input": "Hello", **more}, cast_to=object)
