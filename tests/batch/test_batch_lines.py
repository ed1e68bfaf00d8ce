"""`ivlite batch`: which inputs become which lines, and what they say."""

import json
import os
import re
import subprocess
import sys

import pytest
from batch_runs import ASKED, CLIP, TOLD, records

import ivlite
from ivlite.batch import inputs

KEYS = [
    "id",
    "video",
    "prompt",
    "text",
    "thinking",
    "tool_calls",
    "finish_reason",
    "usage",
    "warnings",
    "error",
    "task",
]


def test_lines_are_the_answers_of_single_calls_in_order(batch):
    """Drawn ones, too, whatever else is answered meanwhile; and all the names arrive as they are."""
    done = batch(
        "videos/*", "--prompt", "What happens?", "--temperature", "1.5", "--seed", "7", "--max-new-tokens", "24"
    )
    assert (
        done.code == 0
        and done.out == ""
        and done.err.count("\n") == 1
        and re.search(r"^\[6 answered \| 7.* tokens/s \| peak", done.err)
    )
    names = sorted(name for name in os.listdir("videos") if name != "notes.txt")
    assert [record["id"] for record in done.records] == [f"videos/{name}" for name in names]
    with ivlite.load("demo") as model:
        for record in done.records:
            assert list(record) == KEYS and record["error"] is None
            part = {"type": "video", "video": record["video"]}
            content = [part, {"type": "text", "text": "What happens?"}]
            model.caches.clear()
            reply = model.chat([{"role": "user", "content": content}], temperature=1.5, seed=7, max_new_tokens=24)
            assert (record["text"], record["finish_reason"]) == (reply.text, reply.finish_reason)
            assert record["usage"] == {name: reply.usage[name] for name in record["usage"]}


def test_failures_are_lines(batch, films):
    (films / "videos" / "aa.mp4").write_bytes(CLIP.read_bytes()[:3000])
    (films / "videos" / "zz.mp4").write_text("no video at all")
    done = batch("videos", "gone.mp4", "videos/notes.txt", *ASKED, "--json")
    assert done.code == 4
    found = {record["id"]: record["error"] for record in done.records}
    assert len(found) == 10 and [name for name, error in found.items() if error] == [
        "videos/aa.mp4", "videos/zz.mp4", "gone.mp4", "videos/notes.txt"]  # fmt: skip
    for name, error in found.items():
        if error:
            assert error["class"] == "MediaError" and error["exit_code"] == 4 and name in error["message"]
            assert f"ivlite: failed: {error['message']}" in done.err
    assert all(record["text"] == (None if record["error"] else TOLD) for record in done.records)
    counts = json.loads(done.out)
    assert (counts["inputs"], counts["answered"], counts["failed"], counts["exit_code"]) == (10, 6, 4, 4)


def test_the_code_is_that_of_the_first_failure(batch):
    grammar = {"type": "grammar", "grammar": "start: gone"}
    lines = [{"prompt": "word " * 3000}, {"video": "gone.mp4"}, {"prompt": "Hello", "response_format": grammar}]
    done = batch("-", "--context", "1024", stdin="\n".join(map(json.dumps, lines)).encode())
    assert [record["error"]["class"] for record in done.records] == ["ContextError", "MediaError", "UsageError"]
    assert done.code == 7


def test_lists(batch, films):
    """Of paths, of objects with settings of their own, of both; paths are relative to the list."""
    lines = [
        {"video": "a b.mp4", "prompt": "What shape?", "id": "one", "max_new_tokens": 2},
        {"video": ["a b.mp4", "b\n1.mp4"], "start": 0, "end": 2, "id": "two"},
        {
            "prompt": "Hello",
            "system": "Be short.",
            "max_new_tokens": 3,
            "response_format": {"type": "regex", "pattern": "[ab]{2}"},
        },
    ]
    data = b"\xef\xbb\xbf" + "\r\n\n".join(map(json.dumps, lines)).encode() + b"\nc\xff.mp4\n  \n"
    (films / "videos" / "list.jsonl").write_bytes(data)
    done = batch("--inputs", "videos/list.jsonl", "videos/d%s.mp4", *ASKED)
    assert done.code == 0, done.err
    assert [r["id"] for r in done.records] == ["videos/d%s.mp4", "one", "two", "Hello", "c\udcff.mp4"]
    assert [r["prompt"] for r in done.records] == [
        "What happens?",
        "What shape?",
        "What happens?",
        "Hello",
        "What happens?",
    ]
    assert done.records[1]["usage"]["new_tokens"] == 2 and done.records[2]["video"] == ["a b.mp4", "b\n1.mp4"]
    assert done.records[3]["text"] in ("aa", "ab", "ba", "bb") and done.records[4]["text"] == TOLD
    paths = b"\0".join(
        os.fsencode(f"videos/{name}") for name in sorted(os.listdir("videos")) if name.lower().endswith("mp4")
    )
    done = batch("-", *ASKED, stdin=paths, out="zeros.jsonl")
    assert done.code == 0 and [r["text"] for r in done.records] == [TOLD] * 6


def test_requests_of_the_batch_api(batch, films):
    part = {"type": "video_url", "video_url": {"url": f"file://{CLIP}", "fps": 2}}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}],
        "temperature": 0,
    }
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {**body, "max_tokens": 4, "top_p": None}},
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": {**body, "messages": [{"role": "user", "content": [
            {"type": "video_url", "video_url": {"url": "file:///gone.mp4"}}]}]}},
    ]  # fmt: skip
    done = batch("-", stdin="\n".join(map(json.dumps, lines)).encode())
    first, second = done.records
    assert (
        done.code == 4
        and (first["custom_id"], first["error"]) == ("a", None)
        and first["response"]["status_code"] == 200
    )
    completion = first["response"]["body"]
    choice = completion["choices"][0]
    assert (
        choice["finish_reason"] == "length"
        and TOLD.startswith(choice["message"]["content"])
        and completion["model"] == "m"
    )
    assert completion["usage"]["completion_tokens"] == 4
    assert (
        second["response"] is None
        and second["error"]["code"] == "MediaError"
        and "gone.mp4" in second["error"]["message"]
    )
    assert batch("-", stdin="\n".join(map(json.dumps, lines)).encode()).records == done.records  # known again


@pytest.mark.parametrize(("line", "word"), [
    ('{"video": 3}', "must be a path"), ('{"vido": "a.mp4"}', "did you mean 'video'"), ('{"video": "a.mp4"', "no JSON"),
    ("{}", "no video"), ('{"video": "a", "prompt": " "}', "prompt is ' '"), ('{"video": "a", "prompt": "\\ud800"}', "surrogate"),
    ('{"video": "a", "id": "x"}\n{"video": "b", "id": "x"}', "line 2: the id 'x' is that of standard input line 1"),
    ('{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "must be POST"), ('{"custom_id": "a", "body": {}}', "messages"),
    ('{"custom_id": "a", "body": {"messages": [], "n": 2}}', "n is 2"), ('{"body": {}}', "custom_id"),
])  # fmt: skip
def test_a_line_that_makes_no_sense_is_refused_before_any_work(batch, line, word):
    done = batch("-", *ASKED, stdin=line.encode())
    assert done.code == 2 and "standard input line" in done.err and word in done.err and done.records is None, done.err


@pytest.mark.parametrize(("args", "code", "word"), [
    ((), 2, "no inputs"), (("-",), 2, "standard input is empty"), (("none/*.mp4",), 4, "matches no file"), (("none/*",), 4, "matches no video"),
    (("empty",), 4, "no video files"), (("--inputs", "gone.jsonl"), 2, "cannot be read"), (("videos", "--prompt", " "), 2, "prompt is empty"),
    (("videos", "--rounds", "2"), 2, "give --agent"), (("videos", "--agent", "--fps", "2"), 2, "not for the agent"),
    (("videos", "--address", "x:1"), 2, "--engine ray"), (("videos", "--quiet", "--verbose"), 2, "contradict"),
    (("videos", "--end", "1", "--start", "2"), 2, "--end"), (("-", "--inputs", "-"), 2, "named twice"), (("videos", "--parallel", "0"), 2, "--parallel"),
])  # fmt: skip
def test_what_is_refused(batch, films, args, code, word):
    (films / "empty").mkdir()
    done = batch(*args)
    assert done.code == code and word in done.err and done.records is None and done.err.count("\n") == 1, done.err


@pytest.mark.parametrize(("out", "code"), [("gone/out.jsonl", 6), ("videos", 2), ("/dev/full", 2)])
def test_places_that_cannot_be_written(batch, out, code):
    done = batch("videos", *ASKED, out=out)
    assert done.code == code and done.err.startswith("ivlite: error: ") and done.err.count("\n") == 1, done.err


def test_an_output_is_no_input(films, capsys):
    from ivlite import cli

    before = (films / "videos" / "a b.mp4").read_bytes()
    assert cli.main(["batch", "demo", "videos", "-o", "videos/a b.mp4"]) == 2
    assert "is being read" in capsys.readouterr().err and (films / "videos" / "a b.mp4").read_bytes() == before


def test_the_agent(batch):
    """Several agents at once: each comes to what it comes to alone, with evidence; seconds and steps are left out."""
    args = (
        "--agent",
        "--prompt",
        "When does the circle appear?",
        "--rounds",
        "2",
        "--frames",
        "64",
        "--no-verify",
        "--max-new-tokens",
        "300",
    )
    together = batch("videos", *args, out="together.jsonl")
    assert together.code == 0, together.err
    alone = batch("videos/a b.mp4", *args, "--parallel", "1", out="alone.jsonl")
    assert alone.records[0] == together.records[0]
    record = together.records[1]
    assert record["videos"][0]["path"] == record["video"] and record["evidence"] and "seconds" not in record["usage"]
    assert "steps" not in record and record["error"] is None


def test_help_imports_nothing_heavy(tmp_path):
    code = "import sys, ivlite.cli; ivlite.cli.main(['batch', '--help']); assert not {'ray', 'numpy', 'av'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0 and "ivlite batch model.gguf" in done.stdout, done.stderr


def test_nothing_is_loaded_where_all_is_done(batch, monkeypatch):
    first = batch("videos", *ASKED)
    monkeypatch.setattr("ivlite.batch.answering.load", lambda *args, **more: pytest.fail("the model was loaded"))
    again = batch("videos", *ASKED)
    assert again.code == 0 and again.records == first.records == records() and "6 from before" in again.err


BOM = b"\xef\xbb\xbf"


def test_lists_laid_end_to_end():
    """Each with its byte order mark, which is no part of a path or an object."""
    data = (
        BOM
        + b'{"video": "a.mp4"}\n'
        + BOM
        + b'{"video": "b.mp4", "id": "two"}\r\n'
        + BOM
        + b"c.mp4\n"
        + BOM
        + b"\n"
        + BOM
    )
    assert [task.id for task in inputs.of_list(data, "list", inputs.Defaults(), "")] == ["a.mp4", "two", "c.mp4"]
    paths = b"\0".join([BOM + b"a.mp4", BOM + b"b\n.mp4", b"\xef\xbbc.mp4"])
    assert [os.fsencode(task.id) for task in inputs.of_list(paths, "list", inputs.Defaults(), "")] == [
        b"a.mp4", b"b\n.mp4", b"\xef\xbbc.mp4"]  # fmt: skip


@pytest.mark.parametrize("words", [["-"], ["--inputs", "-"]])
@pytest.mark.parametrize("redirected, why", [("<&-", "it is closed"), ("0> only-written", "Bad file descriptor")])
def test_standard_input_that_cannot_be_read(films, words, redirected, why):
    command = f'"$0" -m ivlite batch demo {" ".join(words)} -o out.jsonl {redirected}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "") and not os.path.exists("out.jsonl")
    assert done.stderr == f'ivlite: error: the list is "-", and standard input cannot be read: {why}\n'


def test_half_of_a_character_in_a_line_is_no_defect(batch):
    for wanted in ({"type": "regex", "pattern": "\ud800"}, {"type": "choice", "choices": ["\ud800"]}):
        with open("list.jsonl", "w") as file:
            file.write(json.dumps({"prompt": "Hello", "response_format": wanted}))
        done = batch("--inputs", "list.jsonl")
        assert done.code == 2 and "defect" not in done.err and done.records is None
        assert "list.jsonl line 1: response_format: the text is not valid Unicode" in done.err
