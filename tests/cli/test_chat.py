"""`ivlite chat` through a pipe, on a terminal that only shows text, and on one with an editor."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from command import ivlite, refused

from ivlite import cli
from ivlite.cli.chat import commands, conversation
from ivlite.session import Session

CLIP = Path(__file__).parents[2] / "examples" / "clip.mp4"
SHORT = ["chat", "demo", "--max-new-tokens", "12", "--temperature", "0"]


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
    process = subprocess.Popen(
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


def test_an_answer_stays_where_regen_fails(place):
    first = piped(
        place,
        "What happens?",
        "/set budget 1",
        "/regen",
        "/stats",
        args=[*SHORT, "--video", "clip.mp4", "--session", "s.ivs"],
    )
    assert first.returncode == 7 and "budget is 1" in first.stderr and "questions 1" in first.stderr
    assert first.stdout == answers(place, "/regen", args=[*SHORT, "--session", "s.ivs"])


def test_a_plan_is_of_the_question_behind_the_conversation(place):
    args = [*SHORT, "--video", "clip.mp4", "--context", "215"]
    lines = ["What happens?", "Which colours?", "/plan And then?", "And then?", "/video clip.mp4", "/plan", "Why?"]
    done = piped(place, *lines, args=args)
    asked = [int(n) for n in re.findall(r"\[.*?(\d+) prompt tokens", done.stderr)]
    planned = re.findall(r"^prompt +(\d+) tokens.* (\d+) computed already", done.stderr, re.MULTILINE)
    assert len(asked) == 3 and int(planned[0][0]) == asked[2] > int(planned[0][1]) > asked[1]
    refusals = re.findall(r"the prompt has (\d+) tokens .* holds 215", done.stderr)
    assert done.returncode == 7 and len(refusals) == 2 and refusals[0] == planned[1][0]
    assert "/undo and /clear make room" in done.stderr
    assert len(re.findall(r"holds 215: use .*--context \d+$", done.stderr, re.MULTILINE)) == 2


@pytest.mark.parametrize("taken", [False, True])
def test_two_conversations_of_one_file_lose_nothing(place, monkeypatch, taken):
    """The one that is overtaken goes on under a name of its own. taken: by a third one, at the same moment."""
    args = [*SHORT, "--session", "s.ivs"]
    answers(place, "What can you do?", args=args)
    real, done = conversation.Conversation.enter, []

    def enter(self, text):
        if not done:
            monkeypatch.setattr(conversation.Conversation, "enter", real)
            other = ivlite("chat", "demo", "--session", "s.ivs", cwd=place, input="And then?\nWhy?\n", stdin=None)
            done.append(other.returncode)
        real(self, text)

    save, third = Session.save, place / "s-2.ivs"

    def save_late(self, path=None, **more):
        if taken and path is not None and not third.exists():
            third.write_bytes((place / "s.ivs").read_bytes())
        save(self, path, **more)

    monkeypatch.setattr(conversation.Conversation, "enter", enter)
    monkeypatch.setattr(Session, "save", save_late)
    here = piped(place, "Which colours?", "Really?", args=args)
    kept = "s-3.ivs" if taken else "s-2.ivs"
    assert done == [0] and here.returncode == 0 and (not taken or third.read_bytes() == (place / "s.ivs").read_bytes())
    assert here.stderr.count(f"s.ivs was saved by another process meanwhile: this conversation is kept in {kept}") == 1
    for name, count in (("s.ivs", 3), (kept, 3)):
        assert f"questions {count}" in piped(place, "/stats", args=[*SHORT, "--session", name]).stderr


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


@pytest.mark.parametrize("line", ["/undo 2", "/clear all", "/stats y", "/help me", "/bye now", "/quit now", "/? x"])
def test_words_after_a_command_that_takes_none_are_refused(place, line):
    done = piped(place, "What can you do?", line, "/stats")
    name = {"/quit": "/bye", "/?": "/help"}.get(line.split()[0], line.split()[0])
    refused_line = f"ivlite: error: {name} takes nothing after it, not {line.split()[1]!r}: write {name}"
    assert done.returncode == 2 and refused_line in done.stderr.splitlines() and "questions 1" in done.stderr


def test_a_command_that_takes_nothing_takes_no_file(place):
    done = piped(place, f"/undo {place}/clip.mp4", "What can you do?")
    assert done.returncode == 2 and "takes nothing after it" in done.stderr and "[16 frames" not in done.stderr


def test_undo_shows_the_question_and_not_the_system_message(place):
    done = piped(place, "What can you do?", "/undo", args=[*SHORT, "--system", "Be brief."])
    assert "taken back: 'What can you do?'" in done.stderr


@pytest.mark.parametrize("line", ["What happens?", "/plan"])
def test_what_is_refused_names_the_file_and_no_part_of_messages(place, line):
    args = [*SHORT, "--system", "Be brief."]
    done = piped(place, "/video clip.mp4", "/video clip.mp4 9999", line, args=args)
    errors = [text for text in done.stderr.splitlines() if text.startswith("ivlite: error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "message " not in errors[0]
    assert errors[0].startswith(f"ivlite: error: video {place}/clip.mp4: ")


@pytest.mark.parametrize("command", ["run", "plan"])
def test_other_commands_name_the_file_as_well(place, command):
    done = piped(place, args=[command, "demo", "--system", "Be brief.", "--video", "clip.mp4", "--start", "9999"])
    refused(done, 2, "error: video clip.mp4: start")


def test_what_is_refused_of_the_last_question_names_the_file(place):
    shutil.copy(CLIP, place / "other.mp4")
    session = [*SHORT, "--session", "o.ivs"]
    answers(place, "/video clip.mp4", "/video other.mp4 1", "What happens?", args=session)
    with av.open(str(place / "other.mp4"), "w") as out:  # now it ends before that
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 64, 64
        for packet in [*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode()]:
            out.mux(packet)
    done = piped(place, "/regen", args=session)
    errors = [text for text in done.stderr.splitlines() if text.startswith("ivlite: error: ")]
    assert done.returncode == 2 and errors and errors[0].startswith(f"ivlite: error: video {place}/other.mp4: ")


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


def test_load_refuses_another_system_message_as_session_does(place):
    assert answers(place, "What can you do?", "/save d.ivs", args=[*SHORT, "--system", "Be long."])
    done = piped(place, "Hello.", "/load d.ivs", "/stats", args=[*SHORT, "--system", "Be brief."])
    assert done.returncode == 2 and "--system begins a conversation, and d.ivs has begun otherwise" in done.stderr
    assert "questions 1" in done.stderr  # the conversation stays
    assert answers(place, "/load d.ivs", "And then?", args=[*SHORT, "--system", "Be long."])


def test_a_video_of_the_command_line_is_found_from_another_folder(place):
    first = answers(place, "What happens?", args=[*SHORT, "--video", "clip.mp4", "--session", "e.ivs"])
    (place / "sub").mkdir()
    (place / "sub" / "clip.mp4").write_bytes(b"another one")
    assert answers(place / "sub", "/regen", args=[*SHORT, "--session", "../e.ivs"]) == first


def test_a_kind_of_cache_that_is_left_open_is_that_of_the_file(place):
    args = [*SHORT, "--session", "f.ivs"]
    first = answers(place, "What can you do?", args=[*args, "--kv", "f16"])
    done = piped(place, "/stats", "/regen", args=args)
    assert done.returncode == 0 and done.stdout == first and "f16 cache" in done.stderr
    refused(piped(place, "/stats", args=[*args, "--kv", "q8"]), 3, "f.ivs", "--kv f16")
    done = piped(place, "/load f.ivs", "/stats")
    assert done.returncode == 3 and "--kv f16" in done.stderr and "q8 cache" in done.stderr


def test_frames_that_were_handed_over_are_said_to_be_missing(place):
    import numpy as np

    import ivlite

    with ivlite.load("demo") as model, model.session(place / "g.ivs") as session:
        for _ in session.ask("What?", videos=[[np.zeros((64, 64, 3), np.uint8)] * 6], max_new_tokens=4):
            pass
        session.save()
    done = piped(place, "/regen", "/undo", "What?", "/undo", "And?", args=[*SHORT, "--session", "g.ivs"])
    assert done.returncode == 4 and "check the path" not in done.stderr
    assert done.stderr.count("video <6 frames> was handed over in memory and is not in the session's file") == 2
    assert len(prompt_tokens(done.stderr)) == 1


def test_a_file_that_is_no_session(place):
    before = (place / "clip.mp4").read_bytes()
    refused(piped(place, "Hello.", args=[*SHORT, "--session", "clip.mp4"]), 3, "clip.mp4")
    done = piped(place, "Hello.", "/save clip.mp4", "/load clip.mp4")
    assert done.returncode == 3 and done.stderr.count("clip.mp4") == 2 and (place / "clip.mp4").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_keeps_what_was_answered(toy, number):
    name = f"killed{int(number)}.ivs"
    command = [sys.executable, "-m", "ivlite", "chat", "model.gguf", "--session", name, "--temperature", "0"]
    process = subprocess.Popen(
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
