"""The options that write an answer for a person: what is checked before, what is written, what is said."""

import argparse
import io
import os

import pytest
from made_videos import numbered
from test_pictures import Terminal

from ivlite.agent.answer import Answer, Claim, Evidence, Video
from ivlite.cli import exports
from ivlite.errors import DiskError, Stopped, UsageError

ALL = {"report": "r.html", "clips": "clips", "srt": "a.srt", "vtt": "a.vtt", "chapters": "c.txt"}


def parsed(folder, quiet=False, **names):
    parser = argparse.ArgumentParser()
    exports.add(parser)
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args([f"--{n}={folder / v}" for n, v in names.items()] + ["--quiet"] * quiet)


def answer(film, seconds=40.0, claims=3):
    evidence = tuple(
        Evidence(f"E{i}", "v1", 12.0 * i, 12.0 * i + 2, "frames", (12.0 * i, 12.0 * i + 2))
        for i in range(1, claims + 1)
    )
    said = tuple(Claim(f"Thing {e.id}.", (e.id,)) for e in evidence)
    return Answer("Things.", said, evidence, videos=(Video("v1", str(film), seconds, "film"),))


@pytest.fixture
def film(tmp_path):
    return numbered(tmp_path / "film.mp4", 200, rate=5)


def test_everything_at_once(tmp_path, film, capsys):
    args = parsed(tmp_path, **ALL)
    exports.check(args, [film])
    assert exports.write(args, answer(film), "What?") == 0
    names = sorted(os.listdir(tmp_path))
    assert (
        names == ["a.srt", "a.vtt", "c.txt", "clips", "film.mp4", "r.html"] and len(os.listdir(tmp_path / "clips")) == 3
    )
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 7 and all(line.startswith("ivlite: wrote: ") for line in said)


def test_quietly(tmp_path, film, capsys):
    assert exports.write(parsed(tmp_path, quiet=True, **ALL), answer(film), "What?") == 0
    assert capsys.readouterr() == ("", "") and (tmp_path / "r.html").exists()


def test_an_answer_with_nothing_to_export(tmp_path, film, capsys):
    """Not in this video: a whole answer, of which there are no captions."""
    assert exports.write(parsed(tmp_path, **ALL), answer(film, claims=0), "What?") == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1] for line in said] == [" wrote", " warning", " warning", " warning", " warning"]
    assert sorted(os.listdir(tmp_path)) == ["film.mp4", "r.html"]


def test_what_fails_does_not_keep_the_rest(tmp_path, film, capsys):
    args = parsed(tmp_path, **ALL | {"report": "no/r.html", "clips": "film.mp4/clips"})
    assert exports.write(args, answer(film), "What?") == DiskError.exit_code
    assert sorted(os.listdir(tmp_path)) == ["a.srt", "a.vtt", "c.txt", "film.mp4"]
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()][:2] == [" error", " error"]


def test_what_a_stop_kept_from_being_written_is_said(tmp_path, film, capsys, monkeypatch):
    def stopped(*_):
        raise Stopped.because("interrupted")

    args = parsed(tmp_path, **ALL)
    monkeypatch.setitem(exports.WRITERS, "report", stopped)
    with pytest.raises(Stopped):
        exports.write(args, answer(film), "What?")
    assert "not written: --report" in capsys.readouterr().err


@pytest.mark.parametrize("names, kind", [
    ({"report": "film.mp4"}, UsageError), ({"srt": "a", "vtt": "a"}, UsageError), ({"clips": "film.mp4"}, UsageError),
    ({"chapters": "no/c"}, DiskError), ({"report": "."}, UsageError), ({}, None), (ALL, None),
])  # fmt: skip
def test_outputs_are_checked_before_the_work(tmp_path, film, names, kind):
    args = parsed(tmp_path, **names)
    if kind is None:
        exports.check(args, [film])
    else:
        with pytest.raises(kind):
            exports.check(args, [film])
    assert os.listdir(tmp_path) == ["film.mp4"]


@pytest.mark.parametrize("names, replaced", [
    ({"srt": "film.srt"}, "film.srt"), ({"vtt": "film.de.srt"}, "film.de.srt"), ({"report": "film.mp4.vtt"}, "film.mp4.vtt"),
    ({"chapters": "link"}, "film.srt"), ({"report": "l.sqlite"}, "l.sqlite"),
])  # fmt: skip
def test_no_output_replaces_subtitles_of_a_video(tmp_path, film, names, replaced, capsys):
    for name in ("film.srt", "film.de.srt", "film.mp4.vtt", "l.sqlite"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "film.srt")
    with pytest.raises(UsageError, match=f"{replaced}, which is being read"):
        exports.check(parsed(tmp_path, **names), [film], [tmp_path / "l.sqlite"])
    assert (tmp_path / replaced).read_text() == "mine" and capsys.readouterr().err == ""


def test_captions_that_will_be_read_as_subtitles(tmp_path, film, capsys):
    exports.check(parsed(tmp_path, srt="film.srt", vtt="claims.vtt", report="film.html"), [film])
    (said,) = capsys.readouterr().err.splitlines()
    assert "film.srt is named like subtitles of" in said
    exports.check(parsed(tmp_path, quiet=True, srt="film.srt"), [film])
    assert capsys.readouterr().err == ""


def test_files_of_several_videos_are_checked_each(tmp_path, film):
    other = numbered(tmp_path / "claims.v2.mp4", 20, rate=5)
    (tmp_path / "claims.v2.srt").write_text("mine")
    with pytest.raises(UsageError, match="claims.v2.srt, which is being read"):
        exports.check(parsed(tmp_path, srt="claims.srt"), [film, other])
    with pytest.raises(UsageError, match="one file"):
        exports.check(parsed(tmp_path, srt="a.txt", chapters="a.txt"), [film, other])
    exports.check(parsed(tmp_path, report="claims.srt"), [film, other])


def test_pictures_where_a_terminal_can_show_them(film, monkeypatch):
    for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, pipe = Terminal(), io.StringIO()
    exports.show(answer(film), terminal)
    exports.show(answer(film), pipe)
    assert pipe.getvalue() == "" and all(f"E{i} 00:00:{12 * i + 2}.000" in terminal.getvalue() for i in (1, 2, 3))
    gone = Terminal()
    exports.show(answer("/no/film.mp4"), gone)
    assert gone.getvalue() == ""
