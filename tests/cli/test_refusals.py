"""Bad settings, files, media and disks: one sentence and the documented exit code."""

import errno
import importlib
import io
import json
import os
import subprocess
import sys
import wave

import pytest
from command import ivlite, refused

from ivlite import cli
from ivlite.cli import run


@pytest.mark.parametrize(
    "name, value", [("IVLITE_ISA", "sse9"), ("IVLITE_NUM_THREADS", "two"), ("IVLITE_NUM_THREADS", "0")]
)
def test_settings_that_cannot_be_obeyed_are_code_2(toy, name, value):
    for command in (["run", "model.gguf", "Hi"], ["doctor"], ["bench", "--random", "tiny"]):
        refused(ivlite(*command, cwd=toy, env={**os.environ, name: value}), 2, name, value)
        refused(ivlite(*command, cwd=toy, env={**os.environ, name: f"{value}\udcff"}), 2, name, value, "\\xff")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here")
def test_the_reference_without_torch_is_code_2(toy):
    refused(ivlite("run", "model.gguf", "Hi", "--device", "reference", cwd=toy), 2, "torch")


def test_bad_model_files_are_code_3(toy):
    whole = (toy / "model.gguf").read_bytes()
    (toy / "empty.gguf").write_bytes(b"")
    (toy / "page.gguf").write_text("<!doctype html><title>Not found</title>")
    (toy / "short.gguf").write_bytes(whole[:-1])
    (toy / "header.gguf").write_bytes(whole[:100])
    (toy / "folder.gguf").mkdir(exist_ok=True)
    (toy / "other.gguf").write_bytes(whole.replace(b"internvideo3", b"internvideo9"))
    for name in ("none", "empty", "page", "short", "header", "folder", "other"):
        refused(ivlite("run", f"{name}.gguf", cwd=toy), 3, f"{name}.gguf")


def test_bad_checkpoints_are_code_3(toy, toy_module, tmp_path):
    refused(ivlite("quantize", "nowhere", "-o", "x.gguf", cwd=tmp_path), 3, "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    refused(ivlite("quantize", tmp_path, "-o", "x.gguf", cwd=tmp_path), 3)
    refused(
        ivlite("quantize", toy / "checkpoint", "-o", "x.gguf", "--type", "q9_z", cwd=tmp_path),
        2,
        "q9_z",
    )
    assert not list(tmp_path.glob("*.gguf*"))


def test_bad_media_are_code_4(toy):
    (toy / "empty.mp4").write_bytes(b"")
    (toy / "text.mp4").write_text("this is no video\n" * 100)
    (toy / "list.mp4").write_text("ffconcat version 1.0\nfile clip.mp4\n")
    (toy / "play.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nclip.mp4\n#EXT-X-ENDLIST\n")
    (toy / "cut.mp4").write_bytes((toy / "clip.mp4").read_bytes()[:2000])
    with wave.open(str(toy / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    for name in (
        "none.mp4",
        "empty.mp4",
        "text.mp4",
        "list.mp4",
        "play.mp4",
        "cut.mp4",
        "sound.wav",
    ):
        refused(ivlite("run", "model.gguf", "--video", name, cwd=toy), 4, name)
    for name in ("none.png", "empty.mp4", "text.mp4"):
        refused(ivlite("run", "model.gguf", "--image", name, cwd=toy), 4, name)


def test_what_does_not_fit_in_memory_is_code_5(toy, monkeypatch, capsys):
    monkeypatch.setattr("ivlite.loading.available_memory", lambda: 10_000_000)
    assert cli.main(["run", str(toy / "model.gguf"), "--quiet"]) == 5
    assert "ivlite: error: the model needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 5, "memory ran out"),
        (OSError(28, "No space left on device", "out.gguf"), 6, "out.gguf"),
        (ZeroDivisionError("division by zero"), 1, "--verbose"),
    ],
)
def test_errors_that_nobody_foresaw_are_a_sentence(error, code, words, monkeypatch, capfd):
    def fail(args):
        raise error

    monkeypatch.setattr(run, "run", fail)
    monkeypatch.setattr(cli, "_drop", lambda stream: None)
    assert cli.main(["run", "m.gguf"]) == code
    err = capfd.readouterr().err
    assert words in err and "Traceback" not in err and err.count("\n") == 1


def test_verbose_shows_the_traceback_of_a_defect(monkeypatch, capfd):
    monkeypatch.setattr(run, "run", lambda args: 1 / 0)
    assert cli.main(["run", "m.gguf", "--verbose"]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_a_file_that_cannot_be_written_is_code_6(toy):
    refused(ivlite("quantize", "checkpoint", "-o", "no/such/folder/x.gguf", cwd=toy), 6, "x.gguf")


def test_a_prompt_beyond_the_context_is_code_7(toy):
    done = ivlite("run", "model.gguf", "word " * 100, "--context", 64, cwd=toy)
    refused(done, 7, "64", "tokens")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_error_that_cannot_be_written_costs_no_answer(toy, monkeypatch, unbuffered):
    # with a buffer, Python writes again at its end what a stream could not take
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    asked = ["run", "model.gguf", "Hi", "--max-new-tokens", "2", "--verbose"]
    whole = ivlite(*asked, cwd=toy).stdout
    with open("/dev/full", "w") as full:
        done = ivlite(*asked, cwd=toy, capture_output=False, stdout=subprocess.PIPE, stderr=full)
        assert (done.returncode, done.stdout) == (0, whole)
        assert ivlite("run", "none.gguf", cwd=toy, capture_output=False, stderr=full).returncode == 3
        assert ivlite("bench", "--nope", cwd=toy, capture_output=False, stderr=full).returncode == 2
        refused(ivlite(*asked, cwd=toy, capture_output=False, stdout=full, stderr=subprocess.PIPE), 6, "No space left")
        done = ivlite(*asked, cwd=toy, capture_output=False, stdout=full, stderr=full)
        assert done.returncode == 6
    read, write = os.pipe()
    os.close(read)
    done = ivlite(*asked, cwd=toy, capture_output=False, stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    assert (done.returncode, done.stdout) == (0, whole)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, errno.EFBIG, errno.EDQUOT, errno.ESTALE])
def test_what_keeps_the_output_from_being_written_is_named(toy, monkeypatch, capsys, number):
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(number, os.strerror(number))

        def fileno(self):
            return os.dup(2)

    monkeypatch.chdir(toy)
    monkeypatch.setattr(sys, "stdout", Broken())
    assert cli.main(["inspect", "model.gguf"]) == 6
    assert f"cannot write the output: {os.strerror(number)}; " in capsys.readouterr().err


def test_files_that_the_limit_leaves_out_are_no_outputs(toy, tmp_path, capsys):
    data, frames = tmp_path / "data", tmp_path / "frames.jsonl"
    data.mkdir()
    for name in ("a.png", "b.png"):
        (data / name).write_bytes(b"stays")
    frames.write_text('{"prompt": "a"}\n{"video": ["data/a.png", {"t": 1, "image": "data/b.png"}]}\n')
    os.link(data / "b.png", tmp_path / "link.png")
    calibrate = ["calibrate", str(toy / "model.gguf"), "--restart", "--limit", "1", "-o"]
    evaluate = ["eval", str(toy / "model.gguf"), "--against", str(toy / "model.gguf"), "--limit", "1"]
    for given in (data, frames):
        for output in ([*calibrate, tmp_path / "link.png"], [*evaluate, "--report", tmp_path / "link.png"]):
            assert cli.main([*map(str, output), "--data", str(given)]) == 2
            assert "which is being read" in capsys.readouterr().err
    assert (data / "b.png").read_bytes() == b"stays"


def test_prompts_without_an_end_are_refused(toy, tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", "/dev/full", str(tmp_path / "pipe")):
        assert cli.main(["calibrate", str(toy / "model.gguf"), "-o", str(tmp_path / "s"), "--data", path]) == 2
        assert "not a regular file" in capsys.readouterr().err
        assert cli.main(["quantize", str(toy / "model.gguf"), "--dry-run", "--recipe", path]) == 2
        assert "not a regular file" in capsys.readouterr().err
    monkeypatch.setattr("ivlite.evaluate.dataset.LINE", 10)
    (tmp_path / "long.jsonl").write_text('{"prompt": "a question"}')
    assert (
        cli.main(
            ["calibrate", str(toy / "model.gguf"), "-o", str(tmp_path / "s"), "--data", str(tmp_path / "long.jsonl")]
        )
        == 2
    )
    assert "line 1 is longer" in capsys.readouterr().err


def test_a_pipe_is_no_output(toy):
    for command in (["quantize", "checkpoint", "-o"], ["calibrate", "model.gguf", "-o"]):
        refused(ivlite(*command, "/dev/stdout", cwd=toy), 2, "/dev/stdout is not a regular file")
    for command in (["quantize", "checkpoint", "-o", "-"], ["batch", "model.gguf", "clip.mp4", "-o", "-"],
                    ["agent", "model.gguf", "What?", "--video", "clip.mp4", "--srt", "-"]):  # fmt: skip
        refused(ivlite(*command, cwd=toy), 2, '"-" is no file')
    assert not (toy / "-").exists()


def test_names_that_are_no_names_of_reports_and_outputs(toy, tmp_path, capsys):
    evaluate = ["eval", str(toy / "model.gguf"), "--against", str(toy / "model.gguf"), "--limit", "1", "--report"]
    for name in (".html", f"{tmp_path}/.png", "report.pdf"):
        assert cli.main([*evaluate, name]) == 2
        assert "must end in .html or .png" in capsys.readouterr().err
    deep = str(tmp_path)
    while len(deep) < 4000:
        deep += "/" + "d" * min(200, 4049 - len(deep))
    os.makedirs(deep)
    calibrate = ["calibrate", str(toy / "model.gguf"), "--limit", "1", "-o"]
    for name in ("n" * 300, f"{deep}/{'n' * 40}", "n/" * 3000):  # the second is too long with its hidden file only
        assert cli.main([*calibrate, name]) == 6
        err = capsys.readouterr().err
        assert "too long" in err and len(err) < 520


def test_a_line_break_in_a_name_breaks_no_line(toy, tmp_path):
    made = ivlite("quantize", toy / "model.gguf", "-o", "a\nb.gguf", "--type", "q8_0", cwd=tmp_path)
    assert (made.returncode, made.stderr.splitlines()[-1][:10]) == (0, r"a\nb.gguf:"), made.stderr
    assert ivlite("verify", "a\nb.gguf", cwd=tmp_path).stdout.startswith(r"a\nb.gguf: ")
    assert ivlite("calibrate", "a\nb.gguf", "-o", "c\nd", "--limit", 1, cwd=tmp_path).stderr.startswith(r"c\nd: ")


@pytest.mark.parametrize("name", ["q8", "Q8", "F16", "BF16", "f32"])
def test_cache_formats_in_any_case(toy, name):
    assert ivlite("run", "model.gguf", "Hi", "--max-new-tokens", 1, "--kv", name, cwd=toy).returncode == 0


def test_data_in_part(toy, picture, tmp_path, monkeypatch, capsys):
    """Files that cannot be read are left out, errors of prepared prompts name their line, joined files keep their BOMs."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "b.png"):
        (data / name).write_bytes(picture.read_bytes())
    plain = open

    def refuse(name, *args, **more):
        if str(name).endswith("b.png"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return plain(name, *args, **more)

    calibrate = ["calibrate", str(toy / "model.gguf"), "--restart", "-o", str(tmp_path / "out"), "--data"]
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        assert cli.main([*calibrate, str(data)]) == 0
        err = capsys.readouterr().err
        assert "b.png is left out: " in err and "Permission denied" in err and "over 1 prompts" in err
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n\xef\xbb\xbf{"prompt": "b"}\n')
    assert cli.main([*calibrate, str(lines)]) == 0
    part = {"type": "image", "image": str(data / "a.png"), "max_pixels": "x"}
    lines.write_text('{"prompt": "a"}\n' + json.dumps({"messages": [{"role": "user", "content": [part]}]}))
    assert cli.main([*calibrate, str(lines)]) == 2
    assert "lines.jsonl line 2: " in capsys.readouterr().err.splitlines()[-1]

    def closed(path, onerror):
        onerror(PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path)))
        return []

    monkeypatch.setattr(os, "walk", closed)
    assert cli.main([*calibrate, str(data)]) == 2
    assert "data cannot be read: Permission denied" in capsys.readouterr().err
