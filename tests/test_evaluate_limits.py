"""Prompts to calibrate and judge with, and what calibration keeps, one decision at a time."""

import json

import numpy as np
import pytest

from ivlite.errors import MediaError, UsageError
from ivlite.evaluate import dataset
from ivlite.evaluate.dataset import Sample
from ivlite.evaluate.importance import Statistics


def user(*content):
    return [{"role": "user", "content": list(content)}]


def test_the_kind_of_a_sample():
    text, image, video = ({"type": t, t: "x"} for t in ("text", "image", "video"))
    for content, kind in (([text], "text"), ([image, text], "image"), ([image, video], "video"), ([video], "video")):
        assert Sample(user(*content), "l").kind == kind
    assert Sample([{"role": "user", "content": "video"}], "l").kind == "text"


def test_a_key_is_of_the_content_and_of_names_and_sizes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(b"12345")

    def key(path, text="t"):
        return Sample(user({"type": "image", "image": str(path)}, {"type": "text", "text": text}), "l").key

    first = key(tmp_path / "a" / "x.png")
    assert len(first) == 16 and first == key(tmp_path / "b" / "x.png") != key(tmp_path / "b" / "x.png", "u")
    (tmp_path / "b" / "x.png").write_bytes(b"123456")
    assert first != key(tmp_path / "b" / "x.png")


def test_the_built_in_texts():
    samples = dataset.read()
    assert (
        samples == dataset.built_in()
        and samples[0].label == "built-in text 1"
        and len({s.key for s in samples}) == len(samples) > 50
    )
    roles = {tuple(m["role"] for m in s.messages) for s in samples}
    assert roles == {("user",), ("user", "assistant")}
    assert not any(m["content"].startswith("? ") or not m["content"].strip() for s in samples for m in s.messages)


def test_a_folder_is_its_videos_and_images_in_order(tmp_path):
    (tmp_path / "z").mkdir()
    for name in ("b.MP4", "a.png", "notes.txt", "z/c.Jpeg"):
        (tmp_path / name).write_bytes(b"x")
    made = dataset.read(tmp_path)
    assert [(s.label, s.kind) for s in made] == [("a.png", "image"), ("b.MP4", "video"), ("z/c.Jpeg", "image")]
    first = made[0].messages
    assert first == user(
        {"type": "image", "image": str(tmp_path / "a.png")},
        {"type": "text", "text": "Please describe this image in detail."},
    )


@pytest.mark.parametrize(
    "record, content",
    [
        ({"prompt": "Why?"}, "Why?"),
        ({"image": "a.png"}, [{"type": "image", "image": "a.png"}, {"type": "text", "text": dataset.ASK["image"]}]),
        ({"video": "a.png", "prompt": "Who?"}, [{"type": "video", "video": "a.png"}, {"type": "text", "text": "Who?"}]),
    ],
)
def test_lines(tmp_path, record, content):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "p.jsonl").write_text("\n" + json.dumps(record) + "\n\n")
    (made,) = dataset.read(tmp_path / "p.jsonl")
    for part in content if isinstance(content, list) else ():
        if part["type"] != "text":
            part[part["type"]] = str(tmp_path / "a.png")
    assert made.messages == [{"role": "user", "content": content}] and made.label == "p.jsonl line 2"


@pytest.mark.parametrize(
    "record",
    [{}, [], {"prompt": " "}, {"prompt": 5}, {"image": "a.png", "video": "a.png"}, {"prompt": "x", "fps": 1}, {"messages": []},
     {"messages": [1]}, {"messages": [{"role": "user", "content": "x"}], "prompt": "y"}, {"image": 5}, {"text": "x"}],
)  # fmt: skip
def test_lines_that_are_none(tmp_path, record):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n' + json.dumps(record))
    with pytest.raises(UsageError, match="line 2"):
        dataset.read(tmp_path / "p.jsonl")


def test_what_a_line_names_must_be_there(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"video": "gone.mp4"}')
    with pytest.raises(MediaError, match="line 1"):
        dataset.read(tmp_path / "p.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    for path in ("empty.jsonl", "no.jsonl"):
        with pytest.raises(UsageError):
            dataset.read(tmp_path / path)


# ------------------------------------------------------------------------------------------------ statistics


def test_statistics_are_means_over_the_prompts_that_ended(tmp_path):
    stats = Statistics("m")
    x = np.array([[1, 2], [3, 4]], np.float32)
    stats.observe(("a.weight", "b.weight"), x)
    stats.observe(("a.weight",), x[:1] * 2)
    stats.keep("one", 7)
    stats.observe(("a.weight",), x * 100)
    stats.drop()
    stats.observe(("b.weight",), x[1:])
    stats.keep("two", 5)
    assert stats.prompts == ["one", "two"] and stats.tokens == 12 and stats.rows == {"a.weight": 3, "b.weight": 3}
    assert stats.mean("a.weight").tolist() == [14 / 3, 36 / 3] and stats.mean("b.weight").tolist() == [19 / 3, 36 / 3]
    stats.save(tmp_path / "s.gguf")
    again = Statistics.load(tmp_path / "s.gguf")
    assert (again.model, again.prompts, again.tokens, again.rows) == ("m", ["one", "two"], 12, stats.rows)
    again.observe(("a.weight",), x[:1])
    again.keep("three", 1)
    assert np.allclose(again.mean("a.weight"), [15 / 4, 40 / 4])
