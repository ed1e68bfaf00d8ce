"""The command line as a person meets it: help, answers, JSON, interruption, and one sentence for every bad input."""

import importlib.util
import io
import json
import os
import signal
import struct
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from ivlite import cli
from ivlite.cli import answer, arguments, inspect, run
from ivlite.cli.progress import Progress, seconds
from ivlite.errors import MediaError, UsageError
from ivlite.reply import Piece

EXAMPLES = Path(__file__).parents[1] / "examples"


def ivlite(*args, cwd, **options):
    """Runs the command in a process of its own, outside the source tree; returns the finished process."""
    command = [sys.executable, "-m", "ivlite", *map(str, args)]
    options = {
        "capture_output": True,
        "text": True,
        "timeout": 300,
        "stdin": subprocess.DEVNULL,
    } | options
    return subprocess.run(command, cwd=cwd, **options)


def refused(result, code, *words):
    """Asserts that a run failed with that code and one sentence that holds the words."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("ivlite: error: ")]
    assert len(errors) == 1 and result.stderr.splitlines()[-1] == errors[0], result.stderr
    for word in words:
        assert str(word) in errors[0], errors[0]


@pytest.fixture(scope="module")
def toy_module():
    spec = importlib.util.spec_from_file_location("tiny_checkpoint", EXAMPLES / "tiny_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def never_ends(folder):
    """Zeroes the head's rows of the end tokens, so that a greedy answer goes on to its limit."""
    ids = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    with open(folder / "model.safetensors", "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        head = json.loads(file.read(length))["lm_head.weight"]
        row = 2 * head["shape"][1]
        for i in ids:
            file.seek(8 + length + head["data_offsets"][0] + i * row)
            file.write(bytes(row))


@pytest.fixture(scope="module")
def toy(toy_module, tmp_path_factory):
    """A folder with checkpoint/, model.gguf (q8_0) and clip.mp4; a greedy answer of the model has no end."""
    folder = tmp_path_factory.mktemp("toy")
    toy_module.write_checkpoint(folder / "checkpoint")
    never_ends(folder / "checkpoint")
    toy_module.write_clip(folder / "clip.mp4", seconds=3)
    done = ivlite("quantize", "checkpoint", "-o", "model.gguf", "--type", "q8_0", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def picture(toy):
    from PIL import Image

    Image.linear_gradient("L").convert("RGB").resize((96, 64)).save(toy / "picture.png")
    return toy / "picture.png"


# ------------------------------------------------------------------------------------------------ help and usage


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_gives_examples_and_imports_nothing_heavy(command, tmp_path):
    program = f"""
import sys
from ivlite.cli import main
code = main({[*command, "--help"]!r})
heavy = {{"numpy", "av", "PIL", "tokenizers", "torch"}} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    if not command:
        assert "exit codes:" in done.stdout and all(f"{n} " in done.stdout for n in (0, 2, 3, 4, 5, 6, 7, 130))


def test_version(tmp_path):
    import ivlite as package

    assert ivlite("--version", cwd=tmp_path).stdout.strip() == f"ivlite {package.__version__}"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["run"], "MODEL"),
        (["run", "m.gguf", "one", "two"], "two"),
        (["run", "m.gguf", "--fps", "2"], "--fps"),
        (["run", "m.gguf", "--max-pixels", "99"], "--max-pixels"),
        (["run", "m.gguf", "--video", "v.mp4", "--fps", "0"], "--fps"),
        (["run", "m.gguf", "--video", "v.mp4", "--start", "soon"], "soon"),
        (["run", "m.gguf", "--video", "v.mp4", "--start", "9", "--end", "0:08"], "--end"),
        (
            ["run", "m.gguf", "--video", "v.mp4", "--min-pixels", "9", "--max-pixels", "8"],
            "--min-pixels",
        ),
        (["run", "m.gguf", "--temperature", "-1"], "--temperature"),
        (["run", "m.gguf", "--max-new-tokens", "none"], "none"),
        (["run", "m.gguf", "--kv", "q3"], "q3"),
        (["run", "m.gguf", "--load", "swap"], "swap"),
        (["run", "m.gguf", "--threads", "1025"], "--threads"),
        (["run", "m.gguf", "--quiet", "--verbose"], "--quiet"),
        (["run", "m.gguf", "  "], "empty"),
        (["run", "m.gguf", "-"], "standard input"),
        (["bench"], "FILE"),
        (["bench", "m.gguf", "--random", "tiny"], "one of the two"),
        (["bench", "m.gguf", "--type", "q4_0"], "--type"),
        (["quantize", "somewhere"], "quantize"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(args, word, tmp_path):
    refused(ivlite(*args, cwd=tmp_path), 2, word)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("90.5", 90.5), ("1:30", 90), ("01:02:03.5", 3723.5), ("100:00:00", 360000)],
)
def test_moment(text, value):
    assert arguments.moment(text) == value


@pytest.mark.parametrize("text", ["", ":", "1:2:3:4", "1:60", "-1", "1.5:00", "nan", "inf", "1e3", "0:-1", "1:"])
def test_moment_refuses(text):
    with pytest.raises(arguments.argparse.ArgumentTypeError):
        arguments.moment(text)


def parsed(*args):
    return cli.parser().parse_args(["run", "m.gguf", *args])


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], run.ASK["text"]),
        (["--image", "i.png"], run.ASK["image"]),
        (["--image", "i.png", "--video", "v.mp4"], run.ASK["video"]),
        (["--video", "v.mp4", "Why?"], "Why?"),
    ],
)
def test_the_question_that_is_asked(args, text):
    assert run.messages(parsed(*args))[-1]["content"][-1] == {"type": "text", "text": text}


def test_media_keep_their_order_and_their_own_settings():
    args = parsed(
        "--image",
        "a",
        "--video",
        "b",
        "--image",
        "c",
        "--fps",
        "2",
        "--end",
        "1:00",
        "--max-pixels",
        "5000",
    )
    args.system = "Be brief."
    system, user = run.messages(args)
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"][:-1] == [
        {"type": "image", "image": "a", "max_pixels": 5000},
        {"type": "video", "video": "b", "fps": 2, "end": 60, "max_pixels": 5000},
        {"type": "image", "image": "c", "max_pixels": 5000},
    ]


def test_media_are_looked_for_before_loading(tmp_path):
    (tmp_path / "a b.mp4").write_bytes(b"-")
    run.check(parsed("--video", (tmp_path / "a b.mp4").as_uri()))
    for name, word in (("file:///none.mp4", "exist"), (str(tmp_path), "folder"), ("http://host/a.mp4", "download")):
        with pytest.raises(MediaError, match=word):
            run.check(parsed("--video", name))


def test_a_dash_reads_the_question_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("  Is it raining?\n"))
    assert run.question(parsed("-")) == "Is it raining?"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(UsageError):
        run.question(parsed("-"))


# ------------------------------------------------------------------------------------------------ what is shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_sees_thinking_dimmed_and_no_escape_sequences():
    out = Terminal()
    screen = answer.Screen(out)
    for piece in (Piece("hm", thinking=True), Piece("a\x1b[31mb\x07"), Piece("\tc\n")):
        screen(piece)
    screen.end()
    assert out.getvalue() == "\x1b[2mhm\x1b[0m\n\na[31mb\tc\n"


def test_a_file_sees_the_answer_only_and_ends_with_a_newline():
    out, aside = io.StringIO(), io.StringIO()
    screen = answer.Screen(out, aside)
    for piece in (Piece("hm", thinking=True), Piece("yes")):
        screen(piece)
    screen.end()
    assert (out.getvalue(), aside.getvalue()) == ("yes\n", "hm")


def test_progress_rewrites_one_line_and_removes_it():
    out, now = io.StringIO(), [0.0]
    progress = Progress(live=True, out=out, clock=lambda: now[0])
    progress("load", 1_000_000_000, 4_000_000_000)
    now[0] = 2.0
    progress("load", 2_000_000_000, 4_000_000_000)
    assert out.getvalue().endswith("\r\x1b[Kload 2.00 of 4.00 GB · 2 s left")
    now[0] = 3.0
    progress("decode", 2, 8)
    now[0] = 7.0
    progress("vision", 1, 4)
    assert out.getvalue().endswith("decode 2 of 8 frames · vision 1 of 4 frame pairs · 12 s left")
    progress("generate", 1, 100)
    assert out.getvalue().endswith("\r\x1b[K")
    assert "\n" not in out.getvalue()


def test_plain_progress_is_a_line_per_finished_stage():
    out = io.StringIO()
    progress = Progress(live=False, out=out, clock=lambda: 5.0)
    for done in (1, 2, 3):
        progress("prefill", done, 3)
    assert out.getvalue() == "ivlite: prefill 3 of 3 tokens after 0 s\n"


@pytest.mark.parametrize(("value", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3725, "1:02:05")])
def test_seconds(value, text):
    assert seconds(value) == text


def test_control_characters_of_names_are_escaped():
    assert cli.printable("a\x1b[31m\x9b\r.mp4 é\n") == "a\\x1b[31m\\x9b\\r.mp4 é\n"


# ------------------------------------------------------------------------------------------------ answers


def test_run_streams_an_answer_and_closes_with_figures(toy):
    done = ivlite(
        "run",
        "model.gguf",
        "--video",
        "clip.mp4",
        "--max-new-tokens",
        5,
        "--temperature",
        0,
        cwd=toy,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n") and done.stdout.strip()
    closing = done.stderr.splitlines()[-1]
    for word in (
        "4 frames",
        "prompt tokens",
        "vision",
        "5 new (the limit)",
        "prefill",
        "tokens/s",
        "peak",
    ):
        assert word in closing
    assert "\x1b" not in done.stderr


def test_json_is_one_object_and_quiet_is_silent(toy, picture):
    done = ivlite(
        "run", "model.gguf", "--image", picture.name, "--video", "clip.mp4", "What?", "--json", "--quiet", "--seed", 3,
        "--max-new-tokens", 6, "--fps", 2, cwd=toy,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    data = json.loads(done.stdout)
    assert len(data["token_ids"]) == data["usage"]["new_tokens"] <= 6
    assert data["usage"]["vision_tokens"] == sum(m["tokens"] for m in data["media"])
    assert [m["kind"] for m in data["media"]] == ["image", "video"]
    assert data["media"][1]["frames"] == 6 and len(data["media"][1]["timestamps"]) == 3
    assert {"load", "decode", "vision", "prefill", "generate", "total"} <= set(data["timings"])
    assert data["peak_memory"] > 1e7 and data["model"]["weights"] > 1e6 and data["warnings"] == []
    again = ivlite(
        "run", "model.gguf", "--image", picture.name, "--video", "clip.mp4", "What?", "--json", "--quiet", "--seed", 3,
        "--max-new-tokens", 6, "--fps", 2, cwd=toy,
    )  # fmt: skip
    assert json.loads(again.stdout)["token_ids"] == data["token_ids"]


def test_verbose_tells_what_a_video_became(toy):
    done = ivlite("run", "model.gguf", "--video", "clip.mp4", "--verbose", "--max-new-tokens", 1, cwd=toy)
    assert done.returncode == 0, done.stderr
    assert "ivlite: load" in done.stderr and "ivlite: prefill" in done.stderr
    assert "ivlite: note: video clip.mp4: 4 frames of" in done.stderr and "time marks" in done.stderr


def start(toy, **options):
    command = [sys.executable, "-m", "ivlite", "run", "model.gguf", "Go on.", "--temperature", "0"]
    command += ["--max-new-tokens", "8000", "--context", "8192"]
    return interruptible(command, cwd=toy, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def interruptible(command, **options):
    """A process as a terminal starts it: whoever runs the tests may have SIGINT ignored, and children inherit that."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, **options)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_interrupt_keeps_what_there_is(toy):
    process = start(toy)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (first + out).endswith(b"\n") and b"Traceback" not in err
    assert b"new |" in err.splitlines()[-1] and b"8,000 new" not in err


def test_interrupt_with_json_prints_the_object(toy):
    command = [
        sys.executable,
        "-m",
        "ivlite",
        "run",
        "model.gguf",
        "--json",
        "--verbose",
        "--temperature",
        "0",
    ]
    command += ["--max-new-tokens", "8000"]
    process = interruptible(command, cwd=toy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "ivlite: prefill" not in (line := process.stderr.readline()):
        assert line, "the run ended before prefill"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["finish_reason"] == "interrupted"


def test_a_closed_pipe_is_silent(toy):
    process = start(toy)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 0
    assert err == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_silent(toy, closed):
    command = f'"$0" -m ivlite run model.gguf Hi --max-new-tokens 2 {closed}'
    result = subprocess.run(["sh", "-c", command, sys.executable], cwd=toy, capture_output=True, text=True)
    assert result.returncode == 0 and "error" not in result.stderr


def test_interrupted_before_a_command_runs(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parser", interrupted)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "ivlite: interrupted\n"


def test_a_full_disk_is_code_6(toy):
    with open("/dev/full", "w") as full:
        done = ivlite(
            "run", "model.gguf", "--json", "--quiet", "--max-new-tokens", 2, cwd=toy,
            capture_output=False, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    refused(done, 6, "No space left")


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "name, value", [("IVLITE_ISA", "sse9"), ("IVLITE_NUM_THREADS", "two"), ("IVLITE_NUM_THREADS", "0")]
)
def test_settings_that_cannot_be_obeyed_are_code_2(toy, name, value):
    for command in (["run", "model.gguf", "Hi"], ["doctor"], ["bench", "--random", "tiny"]):
        refused(ivlite(*command, cwd=toy, env={**os.environ, name: value}), 2, name, value)


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
    monkeypatch.setattr("ivlite.model.available_memory", lambda: 10_000_000)
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
    monkeypatch.setattr(cli, "_drop_output", lambda: None)
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


# ------------------------------------------------------------------------------------------------ inspect, doctor, bench


def test_inspect_tells_types_sizes_and_defaults(toy):
    done = ivlite("inspect", "model.gguf", "--tensors", cwd=toy)
    assert done.returncode == 0, done.stderr
    for word in (
        "internvideo3",
        "text attention",
        "mergers",
        "q8_0",
        "bits per weight",
        "cache bytes",
        "blk.0.attn_kv_b",
    ):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 260  # the tokenizer is not poured out
    data = json.loads(ivlite("inspect", "model.gguf", "--json", cwd=toy).stdout)
    assert data["architecture"] == "internvideo3" and "problem" not in data
    assert sum(g["parameters"] for g in data["groups"].values()) == data["parameters"]
    assert data["config"]["text"]["kv_lora_rank"] == [64] * 4
    assert data["cache_bytes_per_token"]["f32"] == 4 * (64 + 32) * 4


def test_inspect_shows_a_file_of_another_architecture(toy):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(toy / "llama.gguf", "llama")
    writer.add_name("somebody's\x1b[31m model")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = ivlite("inspect", "llama.gguf", cwd=toy)
    assert done.returncode == 0, done.stderr
    assert "ivlite cannot run it" in done.stdout and "llama" in done.stdout and "\x1b" not in done.stdout


def test_inspect_of_what_is_no_gguf_is_code_3(toy):
    (toy / "page.gguf").write_text("<!doctype html>")
    refused(ivlite("inspect", "page.gguf", cwd=toy), 3, "page.gguf")
    refused(ivlite("inspect", "none.gguf", cwd=toy), 3, "none.gguf")


def test_long_metadata_is_shortened():
    assert inspect.shortened("x" * 1000) == "x" * inspect.SHOWN + "... (1,000 characters)"
    assert inspect.shortened(list(range(1000))).startswith("1000 values: 0, 1, 2")
    assert inspect.shortened([1, 2]) == [1, 2] and inspect.shortened(float("nan")) == "nan"


def test_doctor(tmp_path):
    done = ivlite("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("processor", "instructions", "threads", "memory", "CUDA", "GB/s"):
        assert word in done.stdout
    data = json.loads(ivlite("doctor", "--json", cwd=tmp_path).stdout)
    assert data["isa"] in data["isas"] and data["threads"] >= 1
    assert 1e8 < data["limits"]["read"] < 1e13
    assert data["packages"]["numpy"] and data["ffmpeg"]


def test_bench_of_a_random_model(tmp_path):
    done = ivlite("bench", "--random", "tiny", "--prompt", 40, "--new", 4, "--depth", "50,90", "--vision", "96x64x3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "weights are random",
        "prefill 40 tokens after 50",
        "decode 4 tokens after 90",
        "vision, 2 pairs of 96x64",
        "GB/s",
        "GOPS",
    ):
        assert word in done.stdout
    args = ("bench", "--random", "tiny", "--type", "f32", "--prompt", 8, "--new", 2, "--json")
    data = json.loads(ivlite(*args, cwd=tmp_path).stdout)
    assert data["synthetic"] is True and data["type"] == "f32"
    assert all(stage["per_second"] > 0 and stage["bytes_per_second"] > 0 for stage in data["decode"])


def test_bench_of_a_file(toy):
    done = ivlite("bench", "model.gguf", "--prompt", 16, "--new", 2, "--json", cwd=toy)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["synthetic"] is False
