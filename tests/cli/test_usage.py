"""Help, versions and the arguments of the command line."""

import subprocess
import sys

import pytest
from command import ivlite, refused

from ivlite import cli
from ivlite.cli import arguments, run
from ivlite.errors import MediaError, UsageError


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_gives_examples_and_imports_nothing_heavy(command, tmp_path):
    program = f"""
import sys
from ivlite.cli import main
code = main({[*command, "--help"]!r})
heavy = {{"numpy", "av", "PIL", "tokenizers", "torch", "prompt_toolkit", "llguidance", "pysubs2"}} & set(sys.modules)
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"  Is it raining?\n", "Is it raining?"),
        (b"\xef\xbb\xbfIs it raining?", "Is it raining?"),
        ("Où\u2028et quand ?".encode(), "Où\u2028et quand ?"),
        (b"\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"caf\xe9?", "UTF-8"),
        ("no".encode("utf-16"), "UTF-8"),
        (b"x" * (run.INPUT_LIMIT + 1), "more than"),
        (None, "closed"),
    ],
)
def test_a_dash_reads_the_question_from_standard_input(given, expected, tmp_path, monkeypatch):
    (tmp_path / "input").write_bytes(given or b"")
    with open(tmp_path / "input") as source:
        monkeypatch.setattr("sys.stdin", None if given is None else source)
        if given and expected in given.decode(errors="replace"):
            assert run.question(parsed("-")) == expected
        else:
            with pytest.raises(UsageError, match=expected):
                run.question(parsed("-"))


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    args = cli.parser().parse_args(["run", "~/m.gguf", "--video", "~/a/v.mp4"])
    assert (args.model, args.media) == (f"{tmp_path}/m.gguf", [("video", f"{tmp_path}/a/v.mp4")])


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_cannot_be_written_is_code_6(option, tmp_path):
    with open("/dev/full", "w") as full:
        done = ivlite(option, cwd=tmp_path, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    refused(done, 6, "No space left")


@pytest.mark.parametrize("own", ["", r'warnings.filterwarnings("ignore", module=r"PIL\.")'])
def test_a_program_that_calls_main_keeps_its_warning_filters(tmp_path, own):
    program = f"""
import warnings
import ivlite.model  # numpy adds filters of its own
from ivlite.cli import main
{own}
before = list(warnings.filters)
assert main(["run", "missing.gguf", "?"]) == 3
assert warnings.filters == before, warnings.filters[:3]
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
