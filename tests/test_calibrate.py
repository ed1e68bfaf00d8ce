"""Calibration: what the statistics hold, their file, interruption and resume, and every bad input."""

import base64
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.cli import main
from ivlite.errors import MediaError, ModelFileError, Stopped, UsageError
from ivlite.evaluate import dataset
from ivlite.evaluate.importance import Statistics
from ivlite.gguf import GGUFFile
from ivlite.output import Claim
from ivlite.quantize import quantize

ROOT = Path(__file__).parents[1]
MEDIA = ROOT / "tests/data/golden_media"


@pytest.fixture(scope="module")
def toy(toy_module, tmp_path_factory):
    """A folder with model.gguf (f32 weights) and media/ of a video and two images."""
    folder = tmp_path_factory.mktemp("toy")
    toy_module.write_checkpoint(folder / "checkpoint")
    quantize(folder / "checkpoint", folder / "model.gguf", type="f32")
    (folder / "media").mkdir()
    for name in ("a.png", "b.png", "clip.mkv"):
        (folder / "media" / name).write_bytes((MEDIA / name).read_bytes())
    return folder


def calibrate(toy, *args):
    return main(["calibrate", str(toy / "model.gguf"), "--quiet", *map(str, args)])


def lines(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.mark.parametrize("length", [1, 40])  # absorbed and expanded attention
def test_the_observer_sees_what_the_weights_multiply(toy, length):
    seen = {}

    def observe(names, x):
        for name in names:
            seen.setdefault(name, []).append(np.array(x))

    model = ivlite.load(toy / "model.gguf", kv="f32", observe=observe)
    prompt = model.prepare([{"role": "user", "content": "x" * length}])
    model.logits(prompt)
    expected = ivlite.load(toy / "model.gguf", kv="f32").logits(prompt)
    assert np.array_equal(model.logits(prompt), expected)
    text = {n for n, t in model.network.source.tensors.items() if len(t.shape) == 2 and not n.startswith("v.")}
    assert set(seen) == text - {"token_embd.weight"}
    for name, inputs in seen.items():
        assert inputs[0].shape == (len(prompt.token_ids), model.network.source.tensors[name].shape[1])
    assert np.array_equal(seen["blk.0.ffn_gate.weight"][0], seen["blk.0.ffn_up.weight"][0])
    info = model.network.source.read("output.weight").view(np.float32).reshape(-1, seen["output.weight"][0].shape[1])
    assert np.allclose(seen["output.weight"][0] @ info.T, expected, atol=1e-4)


def test_the_file_holds_every_layer(toy, tmp_path):
    out = tmp_path / "stats.gguf"
    assert calibrate(toy, "--data", toy / "media", "-o", out) == 0
    with GGUFFile(out) as stats, GGUFFile(toy / "model.gguf") as model:
        assert stats.metadata["general.architecture"] == "internvideo3-stats"
        assert stats.metadata["internvideo3-stats.model"] == model.metadata["general.name"]
        assert (
            stats.metadata["internvideo3-stats.tokens"] > 0 and len(stats.metadata["internvideo3-stats.prompts"]) == 3
        )
        linear = {n: t for n, t in model.tensors.items() if len(t.shape) == 2}
        del linear["token_embd.weight"], linear["v.position_embd.weight"]
        assert set(stats.tensors) == {f"{name}.importance" for name in linear}
        for name, info in linear.items():
            vector = stats.tensors[f"{name}.importance"]
            assert (vector.format, vector.shape) == ("f32", (info.shape[1],))
            values = stats.read(vector.name).view(np.float32)
            assert np.isfinite(values).all() and values.min() >= 0 and values.max() > 0


def test_it_continues_where_it_stopped(toy, tmp_path):
    whole, part = tmp_path / "whole.gguf", tmp_path / "part.gguf"
    assert calibrate(toy, "--data", toy / "media", "-o", whole) == 0
    assert calibrate(toy, "--data", toy / "media", "-o", part, "--limit", 1) == 0
    assert Statistics.load(part).tokens < Statistics.load(whole).tokens
    assert calibrate(toy, "--data", toy / "media", "-o", part) == 0
    a, b = Statistics.load(whole), Statistics.load(part)
    assert (a.prompts, a.tokens, a.rows) == (b.prompts, b.tokens, b.rows)
    assert all(np.allclose(a.mean(n), b.mean(n), rtol=1e-5) for n in a.rows)
    before = part.stat().st_mtime_ns
    assert calibrate(toy, "--data", toy / "media", "-o", part) == 0
    assert part.stat().st_mtime_ns == before
    assert calibrate(toy, "--data", toy / "media", "-o", part, "--limit", 1, "--restart") == 0
    assert len(Statistics.load(part).prompts) == 1


def test_interrupt_keeps_what_is_done(toy, tmp_path):
    data = lines(tmp_path / "long.jsonl", *({"prompt": f"{i} " + "word " * 1200} for i in range(200)))
    command = [sys.executable, "-m", "ivlite", "calibrate", "model.gguf", "--data", data, "-o", tmp_path / "s.gguf"]
    process = subprocess.Popen([*map(str, command), "--verbose"], cwd=toy, stderr=subprocess.PIPE, text=True)
    while "calibrate 2 of 200" not in (line := process.stderr.readline()):
        assert line, "it ended before the second prompt"
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "Traceback" not in err and "continues" in err.splitlines()[-1]
    assert 2 <= len(Statistics.load(tmp_path / "s.gguf").prompts) < 200
    assert os.listdir(tmp_path) == ["long.jsonl", "s.gguf"] or sorted(os.listdir(tmp_path)) == ["long.jsonl", "s.gguf"]


@pytest.mark.parametrize("restart", [False, True])
def test_what_continues_is_the_command_without_restart(toy, tmp_path, monkeypatch, capsys, restart):
    prepare, calls = ivlite.Model.prepare, []

    def stopping(model, messages):
        calls.append(messages)
        if len(calls) == 3:
            raise Stopped.because("interrupted")
        return prepare(model, messages)

    monkeypatch.setattr(ivlite.Model, "prepare", stopping)
    more = ["--restart"] if restart else []
    command = [
        "calibrate",
        str(toy / "model.gguf"),
        "--data",
        str(toy / "media"),
        "-o",
        str(tmp_path / "s.gguf"),
        *more,
    ]
    assert main(command) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(
        "the same command without --restart continues" if restart else "the same command again continues"
    )


def test_statistics_of_another_model_of_the_name_are_not_continued(toy, tmp_path, capsys):
    """A name is a folder's: two checkpoints may share it."""
    with GGUFFile(toy / "model.gguf") as file:
        name = file.metadata["general.name"]
    (sample,) = dataset.read(toy / "media")[:1]
    for layer, columns, words in (("blk.0.ffn_up.weight", 3, "3 values"), ("blk.99.ffn_up.weight", 128, "no layer")):
        stats = Statistics(name)
        stats.observe((layer,), np.ones((2, columns), np.float32))
        stats.keep(sample.key, 2)  # the prompt that --limit 1 leaves is in it already
        stats.save(tmp_path / "s.gguf")
        before = (tmp_path / "s.gguf").read_bytes()
        for more in ((), ("--limit", 1)):
            assert calibrate(toy, "--data", toy / "media", "-o", tmp_path / "s.gguf", *more) == 2
            assert words in (err := capsys.readouterr().err) and "--restart" in err and "defect" not in err
        assert (tmp_path / "s.gguf").read_bytes() == before
    assert calibrate(toy, "--data", toy / "media", "-o", tmp_path / "s.gguf", "--limit", 1, "--restart") == 0


def test_one_process_calibrates_into_a_file(toy, tmp_path, capsys):
    (tmp_path / "link.gguf").symlink_to(tmp_path / "s.gguf")
    with Claim(tmp_path / "s.gguf"):
        for name in ("s.gguf", "link.gguf"):
            assert calibrate(toy, "--data", toy / "media", "-o", tmp_path / name) == 6
            assert f"{name} is being written by another process" in capsys.readouterr().err
    assert calibrate(toy, "--data", toy / "media", "-o", tmp_path / "s.gguf", "--limit", 1) == 0
    assert sorted(os.listdir(tmp_path)) == ["link.gguf", "s.gguf"]


def test_a_disk_without_locks_is_said_once(toy, tmp_path, monkeypatch, capsys):
    def unsupported(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert calibrate(toy, "--data", toy / "media", "-o", tmp_path / "s.gguf", "--limit", 1) == 0
    assert capsys.readouterr().err.count("has no locks") == 1 and os.listdir(tmp_path) == ["s.gguf"]


def test_damaged_media_are_said(toy, tmp_path, capsys):
    (tmp_path / "media").mkdir()
    data = (MEDIA / "clip.mkv").read_bytes()
    (tmp_path / "media/cut.mkv").write_bytes(data[: len(data) * 3 // 5])
    assert calibrate(toy, "--data", tmp_path / "media", "-o", tmp_path / "s.gguf") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: cut.mkv: " in line]
    assert any("is cut off" in line or "damaged" in line for line in warnings) and len(warnings) == len(set(warnings))


def test_a_prompt_that_does_not_work_is_left_out(toy, tmp_path, capsys):
    (tmp_path / "media").mkdir()
    (tmp_path / "media/broken.mp4").write_bytes(b"no video")
    (tmp_path / "media/good.png").write_bytes((MEDIA / "a.png").read_bytes())
    assert calibrate(toy, "--data", tmp_path / "media", "-o", tmp_path / "s.gguf") == 0
    assert "warning: broken.mp4 is left out" in capsys.readouterr().err
    assert len(Statistics.load(tmp_path / "s.gguf").prompts) == 1
    (tmp_path / "media/good.png").unlink()
    assert calibrate(toy, "--data", tmp_path / "media", "-o", tmp_path / "t.gguf") == 4
    assert not (tmp_path / "t.gguf").exists()


def test_bad_input_is_one_sentence(toy, tmp_path, capsys):
    def refused(code, word, *args):
        assert calibrate(toy, *args) == code
        err = capsys.readouterr().err
        assert err.count("ivlite: error: ") == 1 and word in err and "Traceback" not in err

    out = tmp_path / "s.gguf"
    refused(2, "prompts", "--data", tmp_path, "-o", out)
    refused(2, "cannot be read", "--data", tmp_path / "none.jsonl", "-o", out)
    refused(2, "being read", "-o", toy / "model.gguf")
    given = lines(tmp_path / "given.jsonl", {"prompt": "hi"})
    (tmp_path / "link.gguf").symlink_to(given)
    for name in (given, tmp_path / "link.gguf"):
        refused(2, "being read", "--data", given, "-o", name, "--restart")
    assert given.read_text() == json.dumps({"prompt": "hi"}) + "\n"
    refused(6, "no folder", "-o", tmp_path / "none/s.gguf")
    refused(2, "is a folder", "-o", tmp_path)
    bad = lines(tmp_path / "role.jsonl", {"messages": [{"role": "king", "content": "x"}]})
    refused(2, "line 1: message 0 has role 'king'", "--data", bad, "-o", out)
    out.write_bytes((toy / "model.gguf").read_bytes())
    refused(3, "statistics", "-o", out)
    stats = Statistics("another")
    stats.observe(("a.weight",), np.ones((2, 3), np.float32))
    stats.keep("k", 2)
    stats.save(out)
    refused(2, "'another'", "-o", out, "--limit", 1)
    with pytest.raises(ModelFileError):
        Statistics.load(toy / "model.gguf")


@pytest.mark.parametrize("line, error", [
    ("{", UsageError), ("[]", UsageError), ('{"question": "x"}', UsageError), ('{"prompt": ""}', UsageError),
    ('{"video": "none.mp4"}', MediaError), ('{"image": 3}', UsageError), ('{"messages": []}', UsageError),
    ('{"video": "a", "image": "b"}', UsageError),
])  # fmt: skip
def test_malformed_lines_are_refused(tmp_path, line, error):
    (tmp_path / "x.jsonl").write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(error, match="line 2"):
        dataset.read(tmp_path / "x.jsonl")


def test_samples_of_lines_and_folders(tmp_path):
    (tmp_path / "a.png").write_bytes((MEDIA / "a.png").read_bytes())
    messages = [{"role": "user", "content": [{"type": "video", "video": "a.png"}, {"type": "text", "text": "x"}]}]
    data = lines(tmp_path / "x.jsonl", {"prompt": "Hi"}, {"image": "a.png"}, {"messages": messages})
    found = dataset.read(data)
    assert [s.kind for s in found] == ["text", "image", "video"] and len({s.key for s in found}) == 3
    assert found[1].messages[0]["content"][0]["image"] == str(tmp_path / "a.png")
    (one,) = dataset.read(tmp_path)
    assert one.kind == "image" and one.key == found[1].key  # wherever the folder lies
    (alone,) = dataset.read(tmp_path / "a.png")
    assert (alone.key, alone.label, alone.messages) == (one.key, one.label, one.messages)


def test_built_in_texts():
    found = dataset.read()
    assert len(found) > 90 and len({s.key for s in found}) == len(found)
    assert {m["role"] for s in found for m in s.messages} == {"user", "assistant"}
    assert sum(len(s.messages) == 2 for s in found) > 50


# ------------------------------------------------------------------------------------------------ JSON Lines and folders


def test_only_a_line_feed_ends_a_line(tmp_path):
    strings = ["a\u2028b", "c\u2029d", "e\x85f", "g\x0bh", "i\u001cj"]
    text = "".join(
        json.dumps({"prompt": s}, ensure_ascii=False) + end
        for s, end in zip(strings, ["\n", "\r\n", "\n\n", "\r\n  \n", ""], strict=True)
    )
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = dataset.read(tmp_path / "x.jsonl")
    assert [
        s.messages[0]["content"][0]["text"] if isinstance(s.messages[0]["content"], list) else s.messages[0]["content"]
        for s in found
    ] == strings
    assert [s.label for s in found] == [f"x.jsonl line {n}" for n in (1, 2, 3, 5, 7)]


@pytest.mark.parametrize("line, words", [
    (b'{"prompt": "\\ud83d"}', "Unicode"), (b'{"prompt": "caf\xe9"}', "not UTF-8 text (byte 16 is 0xe9)"), (b"[" * 100_000, "not JSON"),
    (b'{"messages": [{"role": "user", "content": "x"}, {"role": "usre", "content": "x"}]}', "message 1 has role 'usre'"),
    (b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\udc00"}]}]}', "Unicode"),
    (b'{"messages": [{"role": "user", "content": [{"type": "image", "image": {"a": 1}}]}]}', "unknown key 'a'"),
    (b'{"image": "http://a/b.png"}', "download"), (b'{"video": ["a.png"]}', "a.png does not exist"), (b'{"video": 5}', "not a path"),
    (b'{"video": "' + b"x" * 1_000_000 + b'"}', "does not exist"), (b'{"prompt": "' + b"x" * 1_000_000, "not JSON"),
])  # fmt: skip
def test_a_line_at_fault_is_named(tmp_path, line, words):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "fine"}\r\n\n' + line)
    with pytest.raises((UsageError, MediaError)) as caught:
        dataset.read(tmp_path / "x.jsonl")
    assert "x.jsonl line 3" in str(caught.value) and words in str(caught.value) and len(str(caught.value)) <= 500


def test_paths_of_lines(tmp_path, monkeypatch):
    path = tmp_path / "a b.png"
    path.write_bytes((MEDIA / "a.png").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    data = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    records = [
        {"image": s, "prompt": None} for s in ("a b.png", str(path), path.as_uri(), f"file://{path}", "~/a b.png", data)
    ]
    records += [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": path.as_uri()}}]}]}
    ]
    records += [{"video": ["a b.png", path.as_uri()]}, {"video": [{"t": 1, "image": "a b.png"}]}]
    found = dataset.read(lines(tmp_path / "x.jsonl", *records))
    sources = [next(dataset.parts(s.messages)) for s in found]
    assert [p["image"] for p in sources[:7]] == [str(path)] * 5 + [data, str(path)]
    assert sources[7]["video"] == [str(path)] * 2 and sources[8]["video"] == [{"t": 1, "image": str(path)}]
    assert len({s.key for s in found[:5]}) == 1 and len({s.key for s in found}) == 5


def test_keys_tell_files_apart_by_what_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "WHOLE", 1000)
    monkeypatch.setattr(dataset, "BLOCK", 100)

    def key(folder, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.mp4").write_bytes(content)
        (one,) = dataset.read(tmp_path / folder)
        return one.key

    for size in (900, 50_000):
        content = bytes(range(256)) * (size // 256 + 1)
        assert key("a", content) == key("b", content) != key("c", content[:-1] + b"x")
        assert key("a", content) != key("a", b"x" + content[1:])


def test_folders_say_what_they_pass_over(tmp_path):
    names = ["a.M2TS", "b.3gp", "c.HEIC", "d.y4m", "e.mts", "f.JP2", "sub/g.avif", "sub/h.h265"]
    others = ["notes.txt", "sub/clip.srt", "noname"]
    for name in [*names, *others, ".hidden.mp4", "sub/.h.png", ".git/x.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.mp4").mkdir()
    notes = []
    found = dataset.read(tmp_path, notes.append)
    assert [s.label for s in found] == names and [s.kind for s in found[:3]] == ["video", "video", "image"]
    assert len(notes) == 1 and "passed over 3" in notes[0] and all(name in notes[0] for name in others)
