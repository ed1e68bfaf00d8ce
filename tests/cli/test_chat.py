"""`ivlite chat` through a pipe, on a terminal that only shows text, and on one with an editor."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import interruptible, ivlite, refused
from console import Console

from ivlite import cli
from ivlite.cli import arguments
from ivlite.cli.chat import commands, entry
from ivlite.errors import UsageError

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"
SHORT = ["chat", "demo", "--max-new-tokens", "12", "--temperature", "0"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with clip.mp4, and a home of its own."""
    shutil.copy(CLIP, tmp_path / "clip.mp4")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path


def piped(place, *lines, args=SHORT):
    """What the command does with lines of standard input: its exit code, and what it prints."""
    return given(place, "".join(f"{line}\n" for line in lines).encode(), args)


def given(place, data, args=SHORT):
    """The same for bytes. In this process: most of what a process of its own does is imports."""
    (place / "input").write_bytes(data)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(place),
        open("input") as source,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        before, sys.stdin = sys.stdin, source
        try:
            code = cli.main([str(arg) for arg in args])
        finally:
            sys.stdin = before
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def answers(place, *lines, args=SHORT):
    """The answers to those lines, of a process that ends well."""
    done = piped(place, *lines, args=args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def prompt_tokens(err):
    """The prompt tokens of every closing line."""
    return [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) prompt tokens", err)]


# ------------------------------------------------------------------------------------------------ through a pipe


def test_a_pipe_has_a_question_per_line(place):
    done = piped(place, "What can you do?", "", "And then?\r", "/bye", "never read")
    assert done.returncode == 0, done.stderr
    closing = done.stderr.splitlines()
    assert len(closing) == 2 and all("prompt tokens" in line for line in closing)
    first, second = prompt_tokens(done.stderr)
    assert second > first + 10, "the second prompt holds the first question and its answer"
    assert len(done.stdout.splitlines()) >= 2 and ">>>" not in done.stdout + done.stderr


def test_the_last_line_needs_no_end_and_quiet_is_silent(place):
    done = given(place, b"What can you do?", [*SHORT, "--quiet"])
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()
    assert given(place, b"").returncode == 0


def test_a_pipe_needs_no_editor(place):
    program = f"import sys; from ivlite.cli import main; code = main({SHORT}); assert 'prompt_toolkit' not in sys.modules; sys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, input="Hello.", capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_process_of_its_own(place):
    done = ivlite(*SHORT, cwd=place, stdin=None, input="/video clip.mp4\nWhat happens?\nAnd then?\n")
    assert done.returncode == 0 and done.stdout == answers(place, "/video clip.mp4", "What happens?", "And then?")


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"/vidoe clip.mp4", 2, "did you mean /video?"),
        (b"/xyzzy", 2, "/help"),
        (b"/video none.mp4", 4, "none.mp4 does not exist"),
        (b"/video clip.mp4 soon", 2, "soon"),
        (b"/video clip.mp4 0:10 0:05", 2, "after the start"),
        (b"/video clip.mp4 1 2 3 4", 2, "write /video"),
        (b"/image", 2, "write /image"),
        (b"/undo", 2, "no question yet"),
        (b"/regen", 2, "no question yet"),
        (b"/set heat 3", 2, "heat"),
        (b"/set temperature -1", 2, "temperature"),
        (b"/load none.ivs", None, "none.ivs"),
        (b'/load ""', 2, "write /load"),
        (b"/save", 2, "name a file"),
        (b"caf\xe9?", 2, "UTF-8"),
        (b"/video ~\0a.mp4", 4, "does not exist"),
        (b"/video \x1b[2J\x07.mp4", 4, r"\x1b[2J\x07.mp4"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_next_line_goes_on(place, line, code, words):
    done = given(place, line + b"\nWhat can you do?\n")
    err = done.stderr
    assert (done.returncode == code) if code else done.returncode
    assert done.stdout.strip() and err.count("ivlite: error: ") == 1 and words in err.splitlines()[0]
    assert "\x1b" not in err and "Traceback" not in err


def test_no_question_is_answered_without_its_media(place):
    (place / "no.mp4").write_bytes(b"no video")
    done = piped(place, "/video no.mp4", "What happens?", "And then?", "/undo", "What can you do?")
    assert done.returncode == 4 and done.stderr.count("/undo takes files back") == 2
    assert len(prompt_tokens(done.stderr)) == 1
    late = piped(place, "/video clip.mp4 9999", "What happens?", "/undo", "What can you do?")
    assert late.returncode == 2 and late.stderr.count("/undo takes files back") == 1
    many = [*SHORT, "--video", "clip.mp4", "--fps", "1000", "--context", "64"]
    done = piped(place, "What happens?", "What happens?", args=many)
    assert (done.returncode, done.stdout) == (7, "") and done.stderr.count("ivlite: error: ") == 2


def test_a_closed_pipe_is_silent_and_a_full_disk_ends_it(place):
    process = interruptible(
        [sys.executable, "-m", "ivlite", *SHORT], cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write("Hello.\n" * 3)
    process.stdin.close()
    assert process.stderr.read() == "" and process.wait(60) == 0
    with open("/dev/full", "w") as full:
        done = ivlite(
            *SHORT,
            cwd=place,
            stdin=None,
            input="Hello.\nHello.\n",
            capture_output=False,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 6 and done.stderr.count("No space left") == 1


def test_json_is_an_object_per_answer(place):
    done = piped(place, "/video clip.mp4", "What happens?", "/vidoe", "And then?", args=[*SHORT, "--json", "--quiet"])
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 2 and first["text"] and second["text"] and first["media"][0]["frames"] == 16
    assert second["usage"]["cached_tokens"] >= first["usage"]["prompt_tokens"]


def test_a_disk_that_is_full_costs_no_answer(place):
    limited = f'ulimit -f 1; exec "$0" -m ivlite {shlex.join(SHORT)} --session s.ivs --no-store'
    done = subprocess.run(
        ["sh", "-c", limited, sys.executable], cwd=place, input="What can you do?\nAnd then?\n", capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 6 and len(prompt_tokens(done.stderr)) == 2
    assert done.stderr.count("s.ivs cannot be written") == 2  # after each answer, and not once more at the end


def test_standard_input_that_cannot_be_read(place):
    done = subprocess.run(
        ["sh", "-c", '"$0" -m ivlite chat demo <&-', sys.executable], cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 2 and "closed" in done.stderr
    with pytest.raises(AssertionError):
        answers(place, "/video " + "x" * 5000)


# ------------------------------------------------------------------------------------------------ commands


@pytest.mark.parametrize(
    "name", [b"caf\xe9 1.mp4", "é 🎬.mp4".encode(), b"-x.mp4", b"a:b.mp4", b"%d.mp4", b"n" * 247 + b".mp4"]
)
def test_names_of_files(place, name):
    """Of videos and of sessions: any bytes."""
    shutil.copy(CLIP, os.path.join(os.fsencode(place), name))
    session = name.replace(b".mp4", b".ivs")
    done = given(place, b"/video %s\nWhat happens?\n/save %s\n/undo\n/stats" % (name, session))
    assert done.returncode == 0 and "[16 frames" in done.stderr, done.stderr
    again = given(place, b"/load %s\n/regen" % session)
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr


def test_video_of_a_range_and_undo(place):
    lines = ["/video clip.mp4 1 3 2", "What happens?", "/undo", "What happens?", "/undo", "/undo", "What can you do?"]
    done = piped(place, *lines)
    assert done.returncode == 0, done.stderr
    tokens = prompt_tokens(done.stderr)
    assert done.stderr.count("[4 frames") == 2 and tokens[0] == tokens[1] > tokens[2]
    assert done.stderr.count("taken back: 'What happens?'; its media") == 2
    first, second, third = done.stdout.splitlines()
    assert first == second != third


def test_regen_takes_the_next_seed_and_a_seed_gives_its_answer_again(place):
    args = ["chat", "demo", "--max-new-tokens", "12", "--quiet"]
    lines = ["/set temperature 3", "/set seed 5", "What can you do?"]
    asked = [
        answers(place, *lines, *more, args=args) for more in ([], ["/regen"], ["/regen", "/regen 5"], ["/regen 6"])
    ]
    first, second = asked[0], asked[1].removeprefix(asked[0])
    assert first.strip() and second.strip() and first != second
    assert asked[2] == first + second + first and asked[3] == asked[1]
    direct = answers(place, *lines[:1], "/set seed 6", lines[2], args=args)
    assert direct == second


def test_set_shows_what_holds(place):
    err = piped(place, "/set", "/set top-k 7", "/set think on").stderr
    assert "temperature 0.0" in err and "(the model file's)" in err and "top-k 7" in err and "think on" in err


def test_help_lists_every_command_and_stats_the_figures(place):
    err = piped(place, "/help", "What can you do?", "/stats").stderr
    for name in commands.COMMANDS:
        assert f"/{name}" in err
    assert err.count("prompt tokens") == 2 and "questions 1" in err and "q8 cache" in err


@pytest.mark.parametrize("line", ["/exit", "/quit", "/bye"])
def test_words_that_end_it(place, line):
    assert answers(place, line, "never read") == ""


# ------------------------------------------------------------------------------------------------ files of conversations


def test_a_saved_conversation_goes_on(place):
    whole = answers(place, "/video clip.mp4", "What happens?", "/save a.ivs", "And then?")
    rest = answers(place, "/load a.ivs", "And then?")
    assert rest and whole.endswith(rest)
    again = answers(place, "/load a.ivs", "/undo", "/undo", "What can you do?")
    assert again == answers(place, "What can you do?")


def test_session_keeps_the_conversation(place):
    done = piped(place, "What can you do?", args=[*SHORT, "--session", "b.ivs"])
    assert done.returncode == 0 and (place / "b.ivs").exists(), done.stderr
    again = piped(place, "And then?", args=[*SHORT, "--session", "b.ivs"])
    both = piped(place, "What can you do?", "And then?")
    assert done.stdout + again.stdout == both.stdout
    assert prompt_tokens(done.stderr + again.stderr) == prompt_tokens(both.stderr)


def test_a_system_message_begins_a_conversation(place):
    args = [*SHORT, "--session", "c.ivs", "--system"]
    assert (
        answers(place, "What can you do?", args=[*args, "Be brief."])
        and answers(place, args=[*args, "Be brief."]) == ""
    )
    refused(piped(place, args=[*args, "Be long."]), 2, "--system", "c.ivs")
    assert answers(place, "/undo", "/stats", "What can you do?", args=[*args, "Be brief."])


def test_a_file_that_is_no_session(place):
    before = (place / "clip.mp4").read_bytes()
    refused(piped(place, "Hello.", args=[*SHORT, "--session", "clip.mp4"]), 3, "clip.mp4")
    done = piped(place, "Hello.", "/save clip.mp4", "/load clip.mp4")
    assert done.returncode == 3 and done.stderr.count("clip.mp4") == 2 and (place / "clip.mp4").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_keeps_what_was_answered(toy, number):
    name = f"killed{int(number)}.ivs"
    command = [sys.executable, "-m", "ivlite", "chat", "model.gguf", "--session", name, "--temperature", "0"]
    process = interruptible(
        [*command, "--max-new-tokens", "7000"], cwd=toy, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(b"Go on.\n")
    first = process.stdout.read(1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert b"its beginning stays" in err and b"Traceback" not in err and (first + out).endswith(b"\n")
    done = subprocess.run(
        [*command, "--max-new-tokens", "3"], cwd=toy, input=b"/stats\n/undo\n", capture_output=True, timeout=60
    )
    assert done.returncode == 0 and b"questions 1" in done.stderr and b"taken back: 'Go on.'" in done.stderr


# ------------------------------------------------------------------------------------------------ terminals


def console(place, *args, term="xterm", program=("-m", "ivlite"), **environment):
    return Console(*program, *args, cwd=place, term=term, **environment)


ENTER = {"dumb": "\n", "xterm": "\r"}


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_a_terminal(place, term):
    with console(place, *SHORT, "--video", "clip.mp4", term=term) as c:
        shown = c.until(">>> ")
        assert "clip.mp4 is for the next question" in shown
        c.send("What\\" + ENTER[term])
        c.until("...")
        c.send("happens?" + ENTER[term])
        shown = c.until("tokens/s", ">>> ")
        assert "frames" in shown
        c.send("\x03")
        c.until("/bye or Ctrl-D", ">>> ")
        c.send("/hlep" + ENTER[term])
        c.until("did you mean /help?", ">>> ")
        c.send("\x04")
        code, rest = c.end()
        assert code == 0
        if term == "dumb":
            assert b"\x1b" not in c.output


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_ctrl_c_stops_the_answer_and_not_the_program(toy, term):
    with console(toy, "chat", "model.gguf", "--temperature", "0", "--max-new-tokens", "7000", term=term) as c:
        c.until(">>> ")
        for _ in range(2):
            c.send("Go on." + ENTER[term])
            c.until("\ufffd")  # bytes that are no text: this model has learnt nothing
            c.send("\x03")
            c.until("its beginning stays in the conversation", ">>> ")
        c.send("/stats" + ENTER[term])
        c.until("questions 2", ">>> ")
        c.send("/bye" + ENTER[term])
        assert c.end()[0] == 0


INTERRUPT = """
import os, signal, sys
from ivlite.cli.progress import Progress
stages = sys.argv.pop(1).split(",")

def show(self, stage, done, total):
    if stages and stage == stages[0]:
        stages.pop(0)
        os.kill(os.getpid(), signal.SIGINT)

Progress.__call__ = show
from ivlite.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("stage", ["decode", "vision", "prefill"])
def test_ctrl_c_before_the_answer_begins(place, stage):
    with console(place, stage, *SHORT, "--video", "clip.mp4", term="dumb", program=("-c", INTERRUPT)) as c:
        c.until(">>> ")
        c.send("What happens?\n")
        c.until("stopped before the answer", ">>> ")
        c.send("What happens?\n")
        assert "16 frames" in c.until("tokens/s", ">>> ")
        c.send("/stats\n")
        c.until("questions 1", ">>> ")
        c.send("\x04")
        assert c.end()[0] == 0


@pytest.mark.parametrize("term", ["dumb", "xterm"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_prompt_ends_it(place, term, number):
    with console(place, *SHORT, "--session", "s.ivs", term=term) as c:
        c.until(">>> ")
        c.send("What can you do?" + ENTER[term])
        c.until("tokens/s", ">>> ")
        c.process.send_signal(number)
        assert c.end()[0] == 128 + number
    assert (place / "s.ivs").exists()


def test_a_terminal_that_is_closed(place):
    with console(place, *SHORT, "--session", "s.ivs") as c:
        c.until(">>> ")
        c.send("What can you do?\r")
        c.until("tokens/s", ">>> ")
        os.close(c.fd)
        c.fd = os.open(os.devnull, os.O_RDONLY)
        assert c.process.wait(60) in (0, 129)
    assert (place / "s.ivs").exists()


# ------------------------------------------------------------------------------------------------ the editor


def test_history_is_kept_and_private(place):
    for _ in range(2):
        with console(place, *SHORT) as c:
            c.until(">>> ")
            c.send("\x1b[A\r" if _ else "What can you do?\r")
            c.until("What can you do?", "tokens/s", ">>> ")
            c.send("\x04")
            assert c.end()[0] == 0
    file = place / "home" / ".cache" / "ivlite" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and "What can you do?" in file.read_text()


def test_no_store_leaves_nothing(place):
    with console(place, *SHORT, "--no-store") as c:
        c.until(">>> ")
        c.send("What can you do?\r")
        c.until("tokens/s", ">>> ")
        c.send("\x1b[A")
        c.until("What can you do?")
    assert list((place / "home").rglob("*history*")) == []


def test_bytes_that_are_no_text(place):
    with console(place, *SHORT) as c:
        c.until(">>> ")
        os.write(c.fd, b"caf\xe9?\r")
        c.until("is not UTF-8 text", ">>> ")
        c.send("\x04")
        assert c.end()[0] == 0


@pytest.mark.parametrize("home", [None, "/nowhere", "/proc"])
def test_without_a_home(place, home):
    with console(place, *SHORT, HOME=home) as c:
        c.until(">>> ")
        c.send("What can you do?\r")
        c.until("tokens/s", ">>> ")
        c.send("\x1b[A")
        c.until("What can you do?")
        c.send("\x03")
        c.until("ask something")
        c.send("\x04")
        code, _ = c.end()
        assert code == 0 and b"Traceback" not in c.output


def test_completion_of_commands_and_paths(place):
    (place / "my films").mkdir()
    shutil.copy(CLIP, place / "my films" / "it's one.mp4")
    (place / "my films" / "notes.txt").write_text("no video")
    with console(place, *SHORT) as c:
        c.until(">>> ")
        c.send("/vi\t")
        c.until("/video")
        c.send("my\t")
        c.until("my\\ films/")
        c.send("\t")
        c.until("it\\'s\\ one.mp4")
        c.send("\r")
        c.until("it's one.mp4 is for the next question", ">>> ")
        c.send(f"{place}/my\\ films/\t")
        c.until("one.mp4")
        c.send(" What happens?\r")
        assert "32 frames" in c.until("tokens/s", ">>> ")


def test_texts_of_several_lines(place):
    with console(place, *SHORT) as c:
        for text in ("a\x1b\rb", '"""a\rb"""', "\x1b[200~a\nb\x1b[201~"):
            c.until(">>> ")
            c.send(text)
            c.until("...", "b")
            c.send("\r")
            c.until("tokens/s")
        assert len(set(prompt_tokens(c.output.decode()))) == 3


def files(folder):
    """Completions of every name in a folder, as text."""
    from ivlite.cli.chat.terminal import files as found

    return [completion.text for completion in found(f"{folder}/", None)]


def test_names_that_a_terminal_would_obey_are_not_offered(tmp_path):
    for name in ("plain.mp4", "bad\x1b[2J.mp4", ".hidden", "a b.mp4"):
        (tmp_path / name).write_bytes(b"")
    assert files(tmp_path) == [f"{tmp_path}/a\\ b.mp4", f"{tmp_path}/plain.mp4"]
    assert files(tmp_path / "none") == []


class TestHistory:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "history"

    def test_what_was_entered_is_read_again_newest_first(self, path):
        from ivlite.cli.chat.history import FileHistory

        for text in ("one", "two\nlines", "é\x1b"):
            FileHistory(path).store_string(text)
        assert list(FileHistory(path).load_history_strings()) == ["é\x1b", "two\nlines", "one"]

    def test_it_stays_private_short_and_readable(self, path):
        from ivlite.cli.chat import history

        path.write_bytes(b'\xff\n{"a": 1}\n"cut\n' + b"".join(b'"%d"\n' % n for n in range(history.MOST // 5)))
        path.chmod(0o666)
        entries = list(history.FileHistory(path).load_history_strings())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size <= history.KEPT
        assert entries[0] == str(history.MOST // 5 - 1) and len(entries) > 1000
        path.write_bytes(b'\xff\n{"a": 1}\n"cut\n"one"\n')
        assert list(history.FileHistory(path).load_history_strings()) == ["one"]

    def test_a_link_is_not_followed(self, path, tmp_path):
        from ivlite.cli.chat.history import FileHistory

        (tmp_path / "precious").write_text("precious")
        path.symlink_to(tmp_path / "precious")
        with pytest.raises(OSError):
            FileHistory(path)
        assert (tmp_path / "precious").read_text() == "precious"


# ------------------------------------------------------------------------------------------------ what is entered


@pytest.mark.parametrize(
    ("text", "open_", "meant"),
    [
        ("a", False, "a"),
        ("a\\", True, None),
        ("a\\\\", False, "a\\\\"),
        ("a\\\nb", False, "a\nb"),
        ('"""a', True, None),
        ('"""a\nb\\', True, None),
        ('"""a\nb"""', False, "a\nb"),
        ('"""\na\n"""', False, "a"),
        ('say """', False, 'say """'),
    ],
)
def test_lines_that_go_on(text, open_, meant):
    assert entry.unfinished(text) is open_
    if meant is not None:
        assert entry.finished(text) == meant


NAMES = ["a.mp4", "a b.mp4", "it's.mp4", 'say "a".mp4', "a\\b.mp4", "é ü.mp4", "$HOME `x`.mp4", "#1 (2).mp4", " x.mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_names_as_terminals_write_them(tmp_path, name):
    path = str(tmp_path / name)
    shutil.copy(CLIP, path)
    escaped = re.sub(r"([^\w/.])", r"\\\1", path)
    for written in (shlex.quote(path), escaped, entry.quoted(path), (tmp_path / name).as_uri()):
        found, rest = entry.dragged(f"{written} What happens?", entry.media_kind)
        assert [kind for kind, _ in found] == ["video"] and rest == "What happens?", written
        assert os.path.samefile(local(found[0][1]), path)
    for written in (path, shlex.quote(path), escaped):
        assert entry.only_file(written) == path
        assert entry.leading_file(written + " 1:00 2") == (path, ["1:00", "2"])


def local(name):
    from ivlite.media.source import local_path

    return local_path(name, "video")[0]


@pytest.mark.parametrize(
    ("text", "found", "rest"),
    [
        ("what's in A and what's in B?", [], None),
        ("A", ["A"], ""),
        ("compare A with B please", ["A", "B"], "compare a.mp4 with b.mp4 please"),
        ("A B what differs?", ["A", "B"], "what differs?"),
        ("what is this? A", ["A"], "what is this?"),
        ("'A what is it", [], None),
    ],
)
def test_files_within_a_question(tmp_path, text, found, rest):
    for name in "ab":
        shutil.copy(CLIP, tmp_path / f"{name}.mp4")
    full = {"A": str(tmp_path / "a.mp4"), "B": str(tmp_path / "b.mp4")}
    if not found:
        assert entry.dragged(text, entry.media_kind) == ([], text)
        return
    written = re.sub(r"\b[AB]\b", lambda m: full[m[0]], text)
    assert entry.dragged(written, entry.media_kind) == ([("video", full[f]) for f in found], rest)


def test_words_take_no_time_on_hostile_lines():
    for text in ('"' + "\\" * 50000, "'" * 50001, '"a' * 30000, "\\" * 50001):
        assert entry.words(text)


def test_which_lines_are_commands():
    assert commands.command("/video a b") == ("video", "a b")
    assert commands.command("/quit") == ("bye", "")
    assert commands.command("Is /video a command?") is None
    for line in ("/", "/ video", "/Video", "//"):
        with pytest.raises(UsageError):
            commands.command(line)


def test_every_command_has_a_usage_and_every_setting_a_flag():
    parser = arguments.Parser()
    arguments.add_answer(parser)
    arguments.add_media(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {f"--{name}" for name in commands.SETTINGS} <= flags
    assert all(name == name.lower() and text for name, (_, text, _) in commands.COMMANDS.items())


def test_parts_of_messages_of_a_hostile_file():
    content = [
        None,
        3,
        {},
        {"type": []},
        {"type": "text"},
        {"type": "text", "text": 3},
        {"type": "video", "video": None},
    ]
    assert entry.parts([{"content": content}, {"content": "a"}], "text", "video") == [{"type": "text", "text": "a"}]
