"""Messages of every client made plain, and messages that are no messages: each one sentence that says where."""

import json
from collections import OrderedDict, UserDict
from enum import StrEnum
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest

from ivlite.errors import UsageError
from ivlite.prompt.messages import Part, as_json, plain_messages, plain_tools

B64 = "aGVsbG8="


def one(part, role="user"):
    (message,) = plain_messages([{"role": role, "content": [part]}])
    (found,) = message.parts
    return found.kind, found.value, found.settings


@pytest.mark.parametrize("part, value", [
    ({"type": "image", "image": "a.png"}, "a.png"),
    ({"type": "image", "path": "a.png"}, "a.png"),
    ({"type": "image", "url": "file:///a.png"}, "file:///a.png"),
    ({"type": "image", "base64": B64}, f"data:;base64,{B64}"),
    ({"type": "image", "data": B64, "mimeType": "image/png"}, f"data:;base64,{B64}"),
    ({"type": "image", "data": b"\x89PNG"}, b"\x89PNG"),
    ({"type": "image", "data": "DATA:image/png;base64,eA=="}, "DATA:image/png;base64,eA=="),
    ({"type": "image", "image": "a.png", "image_url": None, "min_pixels": None}, "a.png"),
    ({"type": "image_url", "image_url": "a.png"}, "a.png"),
    ({"type": "image_url", "image_url": {"url": "a.png"}}, "a.png"),
    ({"type": "image_url", "image_url": {"url": "a.png", "detail": "auto"}, "uuid": "7"}, "a.png"),
    ({"type": "image_url", "image_url": MappingProxyType({"url": "a.png", "detail": None})}, "a.png"),
    ({"type": "image", "image": {"path": "a.png"}}, "a.png"),
    ({"type": "input_image", "image_url": "a.png", "file_id": None, "detail": "high"}, "a.png"),
    ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}}, f"data:;base64,{B64}"),
    ({"type": "image", "source": {"type": "url", "url": "a.png"}, "cache_control": {"type": "x"}}, "a.png"),
])  # fmt: skip
def test_images_of_every_client(part, value):
    assert one(part) == ("image", value, {}) == one(UserDict(part)) == one(OrderedDict(part), "tool")
    moving = json.loads(
        json.dumps(part, default=lambda v: v.decode("latin1") if isinstance(v, bytes) else dict(v)).replace(
            "image", "video"
        )
    )
    assert one(moving)[0] == "video"


def test_settings_travel_with_a_medium():
    part = {"type": "video_url", "video_url": {"url": "v"}, "fps": 2, "video_start": 1, "end": None, "num_frames": 3}
    assert one(part) == ("video", "v", {"fps": 2, "start": 1, "nframes": 3})
    assert one({"type": "input_video", "input_video": {"data": B64}}) == ("video", f"data:;base64,{B64}", {})
    low = {"type": "image_url", "image_url": {"url": "a", "detail": "low"}}
    assert one(low)[2] == {"max_pixels": 512 * 512} and one(low | {"max_pixels": 9})[2] == {"max_pixels": 9}
    assert one({"type": "image_url", "image_url": {"url": "a", "detail": "original"}}) == ("image", "a", {})
    assert one({"type": "video", "video": ["a.png"], "sample_fps": 2}) == ("video", ["a.png"], {"fps": 2})


@pytest.mark.parametrize("part, found", [
    ({"text": "Hi"}, ("text", "Hi", {})), ({"image": "a.png", "type": None}, ("image", "a.png", {})),
    ({"image_url": {"url": "a.png"}}, ("image", "a.png", {})),
    ({"fps": 1, "video": "a.mp4", "max_pixels": 9}, ("video", "a.mp4", {"fps": 1, "max_pixels": 9})),
])  # fmt: skip
def test_parts_without_a_type_are_what_they_have(part, found):
    assert one(part) == found


@pytest.mark.parametrize("content", [
    "Hi", ["Hi"], ("Hi",), iter(["Hi"]), {"type": "text", "text": "Hi"}, [{"type": "input_text", "text": "Hi"}],
    [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": None}], [{"type": "refusal", "refusal": "Hi"}],
    (part for part in ({"type": "text", "text": "Hi"},)), [np.str_("Hi")], [SimpleNamespace()],
])  # fmt: skip
def test_texts_of_every_client(content):
    class Object(SimpleNamespace):
        def model_dump(self):
            return {"type": "text", "text": "Hi", "id": None}

    content = [Object()] if content == [SimpleNamespace()] else content
    for role in ("assistant",) if not isinstance(content, str | list | tuple | dict) else ("system", "user", "tool"):
        (message,) = plain_messages(m for m in ({"role": role, "content": content},))
        assert [(p.kind, p.value, type(p.value)) for p in message.parts] == [("text", "Hi", str)]


def test_roles_and_null_keys():
    class Role(StrEnum):
        USER = "user"

    nulls = dict.fromkeys(("name", "tool_calls", "refusal", "audio", "function_call", "anything"))
    given = [
        {"role": "developer", "content": "S", **nulls}, {"role": Role.USER, "content": "a", "name": "Ann"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm", "annotations": [], **nulls},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "function", "name": "f", "content": "c"},
        {"role": "tool", "tool_name": "f", "tool_call_id": "1", "content": "d"},
    ]  # fmt: skip
    found = plain_messages(given)
    assert [m.role for m in found] == ["system", "user", "assistant", "assistant", "tool", "tool"]
    assert all(type(m.role) is str for m in found) and found[3].parts[0].value == "no"


def test_images_beside_a_text_come_first():
    (message,) = plain_messages([{"role": "user", "content": "x", "images": ["a.png", b"\x89PNG"]}])
    assert [p.value for p in message.parts] == ["a.png", b"\x89PNG", "x"]
    (message,) = plain_messages([{"role": "user", "images": ["a.png"]}])
    assert [p.kind for p in message.parts] == ["image"]


def test_tool_calls_of_every_client():
    class Call:
        def model_dump(self):
            return {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}

    calls = (
        c for c in [Call(), {"function": {"name": "f", "arguments": {"x": 1}}}, {"name": "f", "arguments": {"x": 1}}]
    )
    (message,) = plain_messages([{"role": "assistant", "content": None, "tool_calls": calls}])
    assert message.calls == [("f", '{"x": 1}')] * 3 and message.parts == []
    (message,) = plain_messages(
        [{"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}]
    )
    assert message.calls == [("f", "{}")] and message.parts == [Part("text", "", {}, "")]


def results(order, ids="abc", names="abc"):
    calls = [{"id": id, "function": {"name": "f", "arguments": {"n": id}}} for id in ids]
    said = [{"role": "tool", "tool_call_id": names[n], "content": str(n)} for n in order]
    return [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": calls},
        *said,
        {"role": "user", "content": "y"},
    ]


def test_results_stand_in_the_order_of_their_calls():
    """A model knows of nothing else by which it could tell them apart."""
    for order, ids, names, expected in (
        ((2, 0, 1), "abc", "abc", "012"), ((1, 0), "abc", "abc", "01"), ((2, 0, 1), "abc", "abx", "201"), ((1, 0), "aab", "aa", "10"),
    ):  # fmt: skip
        found = plain_messages(results(order, ids, names))
        assert "".join(m.parts[0].value for m in found if m.role == "tool") == expected
        assert [m.role for m in found] == ["user", "assistant", *["tool"] * len(order), "user"]
    assert [m.parts[0].value for m in plain_messages(results((1, 0))[2:4], ["a", "b"])] == ["0", "1"]
    unnamed = [{"role": "tool", "content": "1"}, {"role": "tool", "tool_call_id": None, "content": "0"}]
    assert [m.parts[0].value for m in plain_messages(unnamed, ["a", None])] == ["1", "0"]


def test_tools_of_every_client():
    tool = {"type": "function", "function": {"name": "f", "strict": None}}
    assert plain_tools(iter([tool])) == [json.dumps(tool)] == plain_tools((tool,)) and plain_tools(None) == []
    assert plain_tools([MappingProxyType(tool)]) == [json.dumps(tool)]


def test_numbers_of_numpy_are_json():
    found = as_json("x", {"a": np.int64(3), "b": np.float32(0.5), "c": [np.array(2)]})
    assert found == '{"a": 3, "b": 0.5, "c": [2]}'


def test_surrogate_pairs_are_joined():
    assert one({"type": "text", "text": "\ud83d\ude00 é"})[1] == "😀 é"
    assert as_json("x", {"a": "\ud83d\ude00"}) == '{"a": "😀"}'


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def call(**function):
    return [{"role": "assistant", "content": "x", "tool_calls": [function]}]


def text(t):
    return {"type": "text", "text": t}


CYCLE = {}
CYCLE["self"] = CYCLE
HOSTILE = [
    (7, "list"), (None, "list"), ({"role": "user", "content": "x"}, "list"), (b"x", "list"), (np.array(3), "list"), (iter(()), "at least one"),
    ({1, 2}, "list"), ([3], "message 0 is int"), ([None], "message 0 is NoneType"), ([["user", "x"]], "message 0 is list"),
    ([{}], "role None"), ([{"role": ["user"], "content": "x"}], "role ['user']"), ([{"role": {}, "content": "x"}], "role {}"),
    ([{"role": "USER", "content": "x"}], "role 'USER'"), ([{"role": 7, "content": "x"}], "role 7"),
    ([{"role": "user", "content": {}}], "type None"), ([{"role": "user", "content": {"a"}}], "needs content"),
    ([{"role": "user", "content": [text("a"), {"type": {}}]}], "message 0, part 1 has a part of type {}"),
    ([{"role": "user", "content": [text("a"), None]}], "message 0, part 1"),
    ([{"role": "user", "content": [text("a"), ["b"]]}], "message 0, part 1"),
    ([{"role": "user", "content": deep(100_000)}], "message 0"), ([{"role": "user", "content": np.array(5)}], "needs content"),
    ([{"role": "user", "content": [text(b"x")]}], "text is bytes"), ([{"role": "user", "content": [text(deep(9999))]}], "text is list"),
    ([{"role": "user", "content": "a\ud800"}], "character 1"), ([{"role": "user", "content": [text("a"), text("\udc00")]}], "message 0, part 1"),
    ([{"role": "assistant", "content": "x", "tool_calls": 5}], "tool_calls"), (call(), "tool call"), (call(name=3, arguments={}), "tool call"),
    ([{"role": "assistant", "content": "x", "tool_calls": {"name": "f"}}], "tool_calls"),
    ([{"role": "assistant", "content": "x", "tool_calls": ["f", None]}], "tool call"), (call(name="f", arguments=None), "tool call"),
    (call(name="f", arguments={"x": float("nan")}), "not JSON"), (call(name="f", arguments={"x": {1}}), "not JSON"),
    (call(name="f", arguments=deep(100_000)), "not JSON"), (call(name="f", arguments=CYCLE), "not JSON"),
    (call(name="f", arguments={(1, 2): 3}), "not JSON"), (call(name="f\ud800", arguments={}), "character 1"),
    (call(name="f", arguments="\ud800"), "character 0"), (call(name="f", arguments={"x": "\ud800"}), "character"),
    (call(name="f", arguments={"x": np.zeros(3)}), "not JSON"), (call(name="f", arguments=10**9999), "not JSON"),
    ([{"role": "user", "content": "x", "contnet": "y"}], "did you mean 'content'?"), ([{"role": "user", "content": "x", 7: 8}], "unknown key 7"),
    ([{"role": "user", "content": "x", "k" * 10_000_000: 1}], "unknown key"), ([{"role": "user", "content": "x", "images": 3}], "images"),
    ([{"role": "user", "content": [{"type": "video", "video": "a", "fsp": 1}]}], "did you mean 'fps'?"),
    ([{"role": "user", "content": [{"type": "image", "image": "a", "url": "b"}]}], "both image and url"),
    ([{"role": "user", "content": [{"image": "a", "video": "b"}]}], "unknown key 'video'"),
    ([{"role": "user", "content": [{"text": "a", "image": "b"}]}], "unknown key 'image'"),
    ([{"role": "user", "content": [{"type": "video", "video": "a", "start": 1, "video_start": 2}]}], "both start and"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "without the key 'image'"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a", "size": 3}}]}], "unknown key 'size'"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a", "detail": "max"}}]}], "detail is 'max'"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a", "detail": []}}]}], "detail is []"),
    ([{"role": "user", "content": [{"type": "x" * 1_000_000}]}], "part of type 'xxx"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "image_url", "image_url": "a"}]}], "message 1"),
    ([{"role": "user", "content": "a"}, {"role": "developer", "content": "b"}], "message 1 is a system message"),
    ([{"role": "assistant", "content": "x", "audio": {"id": "1"}}], "unknown key 'audio'"),
]  # fmt: skip


@pytest.mark.parametrize("messages, words", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_message_is_one_sentence(messages, words):
    with pytest.raises(UsageError) as caught:
        plain_messages(messages)
    assert words in str(caught.value) and len(str(caught.value)) <= 500 and str(caught.value).isprintable()


def test_iterables_without_an_end_are_refused(monkeypatch):
    monkeypatch.setattr("ivlite.prompt.messages.MOST", 1000)

    def endless(item):
        while True:
            yield item

    for messages in (endless({"role": "user", "content": "x"}), [{"role": "user", "content": endless("x")}]):
        with pytest.raises(UsageError):
            plain_messages(messages)


@pytest.mark.parametrize("tools", ["f", {"name": "f"}, 5, [print], [3], [{"f": {1j}}], [{"f": deep(100_000)}], {1}])
def test_tools_that_are_refused(tools):
    with pytest.raises(UsageError, match="tools"):
        plain_tools(tools)
