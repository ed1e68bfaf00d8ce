"""What the `openai` package builds on the API: parsed answers, event streams, the asynchronous client, paths that are not there."""

import asyncio

import pytest
from serve_asking import CLIP, TOLD, WHAT, data_uri

pytest.importorskip("starlette")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

PART = {"type": "video_url", "video_url": {"url": data_uri()}}
MESSAGES = [{"role": "user", "content": [PART, {"type": "text", "text": WHAT}]}]
INPUT = [{"role": "user", "content": [{"type": "input_video", "input_video": data_uri()}, {"type": "input_text", "text": WHAT}]}]  # fmt: skip
CHAT = {"model": "demo", "messages": MESSAGES, "temperature": 0}
RESPONSE = {"model": "demo", "input": INPUT, "temperature": 0}


class Found(pydantic.BaseModel):
    side: bool
    count: int = pydantic.Field(ge=0, le=9)


class Look(pydantic.BaseModel):
    """Looks at a side."""

    left: bool


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120) as made:
        yield made


def test_answers_are_parsed(client):
    chat = client.chat.completions.parse(**CHAT, response_format=Found)
    response = client.responses.parse(**RESPONSE, text_format=Found)
    for found in (chat.choices[0].message.parsed, response.output_parsed):
        assert isinstance(found, Found) and 0 <= found.count <= 9


def test_streams_are_parsed(client):
    with client.chat.completions.stream(**CHAT, response_format=Found) as stream:
        kinds = [event.type for event in stream]
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Found)
    assert kinds.count("content.done") == 1 and "content.delta" in kinds
    with client.responses.stream(**RESPONSE, text_format=Found) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Found)
    with client.chat.completions.stream(**CHAT, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TOLD and final.usage.completion_tokens > 0


def test_arguments_of_tools_are_parsed(client):
    tools = [openai.pydantic_function_tool(Look, name="look")]
    settings = {**CHAT, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = client.chat.completions.parse(**settings).choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Look)
    with client.chat.completions.stream(**settings) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [call.function.parsed_arguments]


def test_raw_responses_have_an_id(client):
    raw = client.chat.completions.with_raw_response.create(**CHAT, max_tokens=2)
    assert raw.headers["x-request-id"] == raw.parse()._request_id and raw.http_response.status_code == 200


def test_a_file_is_there_until_it_is_deleted(client):
    pytest.importorskip("python_multipart")
    stored = client.files.create(file=("a clip.mp4", CLIP.read_bytes(), "video/mp4"), purpose="user_data")
    assert client.files.wait_for_processing(stored.id, poll_interval=0.1).status == "processed"
    assert client.files.retrieve(stored.id).filename == "a clip.mp4"
    asked = {**CHAT, "messages": [{"role": "user", "content": [
        {"type": "video_url", "video_url": {"url": stored.id}}, {"type": "text", "text": WHAT}]}]}  # fmt: skip
    assert client.chat.completions.create(**asked).choices[0].message.content == TOLD
    client.files.delete(stored.id)
    for ask in (lambda: client.files.retrieve(stored.id), lambda: client.files.content(stored.id)):
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**asked)


def test_the_asynchronous_client(served):
    """Several answers at once; one is left after its first piece, and the others are whole."""

    async def left(client):
        async for chunk in await client.chat.completions.create(**CHAT, stream=True):
            if chunk.choices[0].delta.content:
                break
        return TOLD

    async def whole(client):
        return (await client.chat.completions.create(**CHAT)).choices[0].message.content

    async def streamed(client):
        async with client.responses.stream(**RESPONSE) as stream:
            return (await stream.get_final_response()).output_text

    async def all_of_them():
        async with openai.AsyncOpenAI(
            base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:
            return await asyncio.gather(*(ask(client) for ask in (left, whole, streamed, whole)))

    assert asyncio.run(all_of_them()) == [TOLD] * 4


def test_paths_that_are_not_there(client):
    calls = (
        lambda: client.embeddings.create(model="demo", input="x"),
        lambda: client.completions.create(model="demo", prompt="x"),
        lambda: client.images.generate(prompt="x"),
        lambda: client.moderations.create(input="x"),
        lambda: client.models.retrieve("gpt-4o"),
        lambda: client.post("/chat/completion", body={}, cast_to=object),
    )
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            call()
        assert "/" in caught.value.body["message"], caught.value  # it says where to look
    with pytest.raises(openai.APIStatusError) as caught:
        client.get("/chat/completions", cast_to=object)
    assert caught.value.status_code == 405 and caught.value.response.headers["allow"] == "POST"
