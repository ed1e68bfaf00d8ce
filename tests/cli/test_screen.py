"""What a terminal and a file see of answers and progress."""

import io

import pytest

from ivlite import cli
from ivlite.cli import answer
from ivlite.cli.progress import Progress, display, seconds
from ivlite.engine.reply import Delta


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def capable(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_a_dumb_terminal_sees_no_escape_sequences_at_all(monkeypatch, term):
    monkeypatch.setenv("TERM", term) if term is not None else monkeypatch.delenv("TERM")
    out = Terminal()
    screen = answer.Screen(out)
    for delta in (Delta("hm", thinking=True), Delta("a\x1b[31mb")):
        screen(delta)
    screen.end()
    assert out.getvalue() == "[thinking]\nhm\n\n[answer]\na[31mb\n"
    monkeypatch.setattr("sys.stderr", Terminal())
    assert not display().live and display().least and display(quiet=True) is None and not display(verbose=True).least


def test_a_terminal_sees_thinking_dimmed_and_no_escape_sequences():
    out = Terminal()
    screen = answer.Screen(out)
    for delta in (Delta("hm", thinking=True), Delta("a\x1b[31mb\x07"), Delta("\tc\n")):
        screen(delta)
    screen.end()
    assert out.getvalue() == "\x1b[2mhm\x1b[0m\n\na[31mb\tc\n"


def test_a_file_sees_the_answer_only_and_ends_with_a_newline():
    out, aside = io.StringIO(), io.StringIO()
    screen = answer.Screen(out, aside)
    for delta in (Delta("hm", thinking=True), Delta("yes")):
        screen(delta)
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
