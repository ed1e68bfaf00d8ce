"""`ivlite chat` on terminals: keys, signals, history, completion, and what an entry is."""

import os
import re
import shlex
import shutil
import signal
import stat

import pytest
from console import Console
from test_chat import CLIP, SHORT, prompt_tokens

from ivlite.cli import arguments
from ivlite.cli.chat import commands, entry
from ivlite.errors import UsageError

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
    with console(place, *SHORT, columns=1000) as c:  # the path of a temporary folder is on one line, however long it is
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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/ex", ["/exit"]), ("/q", ["/quit"]), ("/b", ["/bye"]), ("/vi", ["/video "]), ("/xyz", []),
        ("/set temp", ["temperature "]), ("/set top", ["top-k ", "top-p "]), ("/set  see", ["seed "]), ("/set seed 1", []),
        ("/set seed ", []), ("/setter", []), ("set temp", []),
    ],
)  # fmt: skip
def test_completion_of_words(text, found):
    """Of commands by each of their names, and of the names of settings."""
    from prompt_toolkit.document import Document

    from ivlite.cli.chat.terminal import Names

    made = list(Names().get_completions(Document(text), None))
    assert [one.text for one in made] == found
    assert all((text[: len(text) + one.start_position] + one.text).startswith(text) for one in made)


def test_every_setting_is_completed():
    from prompt_toolkit.document import Document

    from ivlite.cli.chat.terminal import Names

    assert [one.text.strip() for one in Names().get_completions(Document("/set "), None)] == list(commands.SETTINGS)


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
