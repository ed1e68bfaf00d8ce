"""`ivlite batch`: what makes no sense is refused before any work, and what the command line says counts."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from batch_runs import ASKED, CLIP, PATIENCE, TOLD

from ivlite import cli
from ivlite.batch import inputs
from ivlite.cli import arguments
from ivlite.cli import batch as command
from ivlite.errors import UsageError

PARSE = cli.parser().parse_args


def tasks(*lines, args=()):
    """The Tasks of a list of those lines, with what the command line says."""
    parsed = PARSE(["batch", "demo", "list", "-o", "out", *args])
    command.check(parsed)
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    return inputs.checked(inputs.of_list(data, "list", command.defaults(parsed), "/base"))


def request(*content, name="a", system=None, **body):
    first = [{"role": "system", "content": system}] if system else []
    return {"custom_id": name, "body": {"messages": [*first, {"role": "user", "content": [*content]}], **body}}


def film(**settings):
    return {"type": "video_url", "video_url": {"url": "a.mp4", **settings}}


# ------------------------------------------------------------------------------------------------ numbers that are 0


def test_zero_on_the_command_line_counts():
    zeros = ("temperature", "top_k", "top_p", "min_p")
    flags = [word for name in (*zeros, "thinking_budget") for word in (f"--{name.replace('_', '-')}", "0")]
    (task,) = tasks(b"a.mp4", args=["--think", *flags, "--start", "0", "--stream", "0"])
    assert [task.settings[name] for name in (*zeros, "thinking_budget")] == [0, 0, 0, 0, 0]
    assert task.settings["seed"] == 0 and task.settings["enable_thinking"] is True
    assert task.messages[0]["content"][0] == {"type": "video", "video": "a.mp4", "start": 0, "stream": 0}
    (task,) = tasks(b"a.mp4")
    assert set(task.settings) == {"max_new_tokens", "seed", "tool_choice"}


@pytest.mark.parametrize("flag", ["--top-k", "--start", "--stream", "--min-p", "--top-p"])
def test_zero_is_refused_where_another_number_is(flag):
    parsed = PARSE(["batch", "demo", "a.mp4", "-o", "out", "--agent", flag, "0"])
    with pytest.raises(UsageError, match=f"^{flag} is not for the agent"):
        command.check(parsed)


@pytest.mark.parametrize("flag", ["--start", "--stream"])
def test_zero_needs_a_video(flag):
    parsed = PARSE(["run", "demo", "Hello", flag, "0"])
    with pytest.raises(UsageError, match=f"^{flag} is about videos"):
        arguments.check_media(parsed)


# ------------------------------------------------------------------------------------------------ requests of the Batch API


def test_requests_take_what_the_command_line_says():
    args = [
        "--fps",
        "2",
        "--max-frames",
        "4",
        "--max-pixels",
        "65536",
        "--system",
        "Be short.",
        "--start",
        "1",
        "--budget",
        "900",
    ]
    image = {"type": "image_url", "image_url": {"url": "b.png"}}
    plain, stated = tasks(
        request(film(), image, "Why?"), request(film(fps=1, start=0), name="b", system="Be long.", budget=70), args=args
    )
    assert plain.messages[0] == {"role": "system", "content": "Be short."}
    video, picture, text = plain.messages[1]["content"]
    assert video == {"type": "video", "video": "a.mp4", "fps": 2, "max_frames": 4, "max_pixels": 65536, "start": 1}
    assert picture == {"type": "image", "image": "b.png", "max_pixels": 65536} and text == {
        "type": "text",
        "text": "Why?",
    }
    assert plain.settings["budget"] == 900 and stated.settings["budget"] == 70
    assert [message["role"] for message in stated.messages] == ["system", "user"]
    assert stated.messages[0]["content"] == [{"type": "text", "text": "Be long."}]
    assert stated.messages[1]["content"][0] == {
        "type": "video", "video": "a.mp4", "fps": 1, "max_frames": 4, "max_pixels": 65536, "start": 0}  # fmt: skip


def test_a_stated_number_of_frames_goes_before_a_rate_of_the_command_line():
    for line in (request(film(nframes=8)), {"video": "a.mp4", "nframes": 8}):
        (task,) = tasks(line, args=["--fps", "2", "--max-frames", "4", "--max-pixels", "65536"])
        part = task.messages[-1]["content"][0]
        assert part == {"type": "video", "video": "a.mp4", "nframes": 8, "max_pixels": 65536}


def test_a_stated_detail_goes_before_pixels_of_the_command_line():
    for line in (request(film(detail="low")), {"video": "a.mp4", "detail": "low"}):
        (task,) = tasks(line, args=["--max-pixels", "65536"])
        assert task.messages[-1]["content"][0] == {"type": "video", "video": "a.mp4", "max_pixels": 512 * 512}


def test_frames_of_requests_are_those_of_the_command_line(batch):
    data = json.dumps(
        request({"type": "video_url", "video_url": {"url": f"file://{CLIP}"}}, "What happens?", temperature=0)
    ).encode()
    both = [
        batch("-", "--max-frames", n, stdin=data, out=f"{n}.jsonl").records[0]["response"]["body"] for n in ("2", "8")
    ]
    few, many = (body["usage"]["prompt_tokens"] for body in both)
    assert few < many


def test_a_prompt_that_plays_no_part(batch):
    data = json.dumps(request("Why?", max_tokens=1)).encode()
    done = batch("-", "--prompt", "What?", stdin=data)
    assert done.code == 2 and "--prompt plays no part" in done.err and done.records is None
    done = batch("-", "--prompt", "What?", "--max-new-tokens", "1", stdin=data + b'\n{"video": "videos/a b.mp4"}')
    assert done.code == 0 and done.records[1]["prompt"] == "What?"


# ------------------------------------------------------------------------------------------------ lines that make no sense

NONSENSE = [
    ({"temperature": "hot"}, "temperature is 'hot'"), ({"max_new_tokens": -3}, "max_new_tokens is -3"), ({"top_k": 1.5}, "top_k is 1.5"),
    ({"seed": -1}, "seed is -1"), ({"stop": [""]}, "stop must be"), ({"budget": 0}, "budget is 0"), ({"dedupe": "no"}, "dedupe is 'no'"),
    ({"enable_thinking": 1}, "enable_thinking is 1"), ({"thinking_budget": -1}, "thinking_budget is -1"),
    ({"response_format": {"type": "nonsense"}}, "the type 'nonsense'"), ({"response_format": 3}, "response_format is 3"),
    ({"response_format": {"type": "regex", "pattern": "("}}, "the regular expression cannot be used"),
    ({"response_format": {"type": "json_schema", "schema": {"type": "many"}}}, "the JSON schema cannot be used: Invalid type: many"),
    ({"tools": [{}]}, 'has no "name"'), ({"tools": 3}, "tools must be"), ({"tool_choice": "required"}, "there are no tools"),
    ({"tools": [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "many"}}}}]}, "the tool 'f' cannot be used"),
]  # fmt: skip
OF_MEDIA = [
    ({"start": "abc"}, "start is 'abc'"), ({"start": -1}, "start is -1"), ({"end": 0}, "end (0 s) must come after"),
    ({"start": 4, "end": 2}, "end (2 s) must come after start (4 s)"), ({"fps": 2, "nframes": 4}, "both fps and nframes"),
    ({"fps": 0}, "fps is 0"), ({"nframes": 0}, "nframes is 0"), ({"max_frames": "x"}, "max_frames is 'x'"), ({"stream": -1}, "stream is -1"),
    ({"min_pixels": 9, "max_pixels": 8}, "min_pixels (9) is above"), ({"min_frames": 9, "max_frames": 8}, "min_frames (9) is above"),
    ({"nframes": 9, "max_frames": 8}, "nframes (9) is above"), ({"detail": "much"}, "detail is 'much'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "word"), [*NONSENSE, *OF_MEDIA, ({"start": 0, "end": 5, "fps": 10**9 * 10**9}, "fps is")]
)
def test_a_line_is_checked_before_any_work(more, word):
    good = {"video": "a.mp4", "id": "good"}
    with pytest.raises(UsageError) as caught:
        tasks(good, b"b.mp4", {"video": "a.mp4", "prompt": "Why?", **more})
    assert str(caught.value).startswith("list line 3: ") and word in str(caught.value)


@pytest.mark.parametrize(("body", "part", "word"), [
    *((more, {}, word) for more, word in NONSENSE), *(({}, more, word) for more, word in OF_MEDIA), ({"max_tokens": 0}, {}, "max_new_tokens is 0")
])  # fmt: skip
def test_a_request_is_checked_before_any_work(body, part, word):
    body = {{"max_new_tokens": "max_tokens"}.get(name, name): value for name, value in body.items()}
    with pytest.raises(UsageError) as caught:
        tasks(b"b.mp4", request(film(**part), "Why?", **body))
    assert str(caught.value).startswith("list line 2: ") and word in str(caught.value)


@pytest.mark.parametrize(("line", "args", "word"), [
    ({"video": "a.mp4", "min_pixels": 999999}, ["--max-pixels", "65536"], "min_pixels (999999) is above max_pixels (65536)"),
    ({"video": "a.mp4", "start": 9}, ["--end", "5"], "end (5 s) must come after start (9 s)"),
    ({"image": "a.png", "fps": 2}, [], "fps is about videos, and the line names none"),
    ({"prompt": "Why?", "max_pixels": 2}, [], "max_pixels is about videos and images, and the line names none"),
    ({"video": "a.mp4", "temperature": "hot"}, ["--agent"], "temperature is 'hot'"),
    ({"video": [f"{n}.mp4" for n in range(17)]}, ["--agent"], "takes 16 at most: the line names 17"),
    ({"prompt": "Why?"}, ["--agent"], "needs a video"), ({"video": "a.mp4", "prompt": "word " * 2000}, ["--agent"], "10,000 characters"),
    ({"video": "a.mp4", "fps": 2}, ["--agent"], "the agent takes no fps"),
])  # fmt: skip
def test_a_line_and_the_command_line_together(line, args, word):
    with pytest.raises(UsageError) as caught:
        tasks(line, args=args)
    assert str(caught.value).startswith("list line 1: ") and word in str(caught.value)


def test_what_the_model_alone_knows_passes():
    """Tokens that a grammar names, and whatever a checkpoint has."""
    formats = [
        {"type": "grammar", "grammar": "start: <think>"},
        {"type": "regex", "pattern": "[ab]{2}"},
        {"type": "object"},
        {"type": "text"},
    ]
    assert len(tasks(*({"prompt": f"{n}", "response_format": wanted} for n, wanted in enumerate(formats)))) == 4


@pytest.mark.parametrize(("args", "word"), [
    (["--schema", '{"type": "many"}'], "Invalid type: many"), (["--tools", "[{}]"], 'has no "name"'),
    (["--agent", "--max-new-tokens", "3"], "new_tokens is 3"), (["--tools", '[{"name": "f"}]', "--tool-choice", "g"], "the tools are f"),
])  # fmt: skip
def test_the_command_line_is_checked_before_any_work(batch, args, word):
    done = batch("videos", *args)
    assert done.code == 2 and word in done.err and done.err.count("\n") == 1 and done.records is None, done.err


def test_a_line_that_is_mended_goes_on(batch):
    """A line that was refused has left no failure that the next run would refuse."""
    lines = [{"video": "videos/a b.mp4"}, {"video": "videos/a b.mp4", "temperature": "hot", "id": "b"}]
    done = batch("-", *ASKED, stdin="\n".join(map(json.dumps, lines)).encode())
    assert done.code == 2 and "standard input line 2: temperature is 'hot'" in done.err and done.records is None
    lines[1]["temperature"] = 0
    done = batch("-", *ASKED, stdin="\n".join(map(json.dumps, lines)).encode())
    assert done.code == 0 and [record["text"] for record in done.records] == [TOLD] * 2


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize("name", ["http://x/y.mp4", "https://x/y.mp4?token=1", "s3://bucket/*.mp4", "rtsp:x"])
def test_an_address_is_called_one(batch, name):
    as_request = request({"type": "video_url", "video_url": {"url": name}}, "Why?")
    data = "\n".join([name, json.dumps({"video": name, "prompt": "Why?"}), json.dumps(as_request)]).encode()
    done = batch(name, "-", *ASKED, stdin=data)
    assert done.code == 4 and len(done.records) == 4
    for record in done.records:
        told = f"video {name} is an address, and ivlite does not download: save it and give its path"
        assert record["error"]["message"] == told and record["error"]["class"] == "MediaError"


def test_a_file_with_a_colon_is_no_address(films):
    (films / "videos" / "s3:x.mp4").write_bytes(CLIP.read_bytes())
    (task,) = inputs.of_list(b"s3:x.mp4", "list", inputs.Defaults(), str(films / "videos"))
    assert task.path("s3:x.mp4") == str(films / "videos" / "s3:x.mp4")
    assert task.path("file:x.mp4") == str(films / "videos" / "file:x.mp4")
    assert task.path("file:///x.mp4") == "file:///x.mp4" and task.path("HTTP://x") == "HTTP://x"


@pytest.mark.parametrize(
    "second",
    [{"video": "clip.mp4", "id": "clip.mp4"}, {"video": "b.mp4", "id": "clip.mp4"}, request("Why?", name="clip.mp4")],
)
def test_a_stated_id_is_that_of_no_other_line(second):
    for lines in ([b"clip.mp4", second], [second, {"video": "clip.mp4", "prompt": "Why?"}]):
        with pytest.raises(UsageError, match="^list line 2: the id 'clip.mp4' is that of list line 1, too$"):
            tasks(*lines)
    assert len(tasks(b"clip.mp4", {"video": "clip.mp4", "prompt": "Why?"}, b"clip.mp4")) == 3


@pytest.mark.parametrize("form", ["utf-16", "utf-16-be", "utf-32"])
def test_a_list_in_utf_16_is_refused(batch, form):
    data = ("\ufeff" if form == "utf-16-be" else "").encode(form) + "videos/a b.mp4\nvideos/d%s.mp4\n".encode(form)
    if form != "utf-32":
        assert data[:2] in (b"\xff\xfe", b"\xfe\xff")
    with open("list.txt", "wb") as file:
        file.write(data)
    done = batch("--inputs", "list.txt", *ASKED)
    assert done.code == 2 and done.err == "ivlite: error: the list list.txt is UTF-16 text: save it as UTF-8\n"
    assert "the list standard input is UTF-16" in batch("-", *ASKED, stdin=data).err


def test_a_working_folder_that_was_removed(films):
    """Absolute paths need none; what is relative is not there, and no defect."""
    gone = films / "gone"
    gone.mkdir()
    clip, out = films / "clip.mp4", films / "out.jsonl"
    shutil.copy(CLIP, clip)
    (films / "list.txt").write_text("clip.mp4\n")
    for words, code in (
        (["demo", clip, "--inputs", films / "list.txt"], 0), (["demo", "relative.mp4"], 4), (["demo", "--inputs", "list.txt"], 2),
        (["gone.gguf", clip], 3),
    ):  # fmt: skip
        script = "import os, sys; os.rmdir(os.getcwd()); import ivlite.cli; sys.exit(ivlite.cli.main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", script, "batch", *map(str, words), *ASKED, "-o", str(out)], cwd=gone, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == code and "defect" not in done.stderr and "Traceback" not in done.stderr, done.stderr
        if not code:
            assert out.read_bytes().count(b"\n") == 2
        if out.exists():
            os.unlink(out)
        gone.mkdir()
