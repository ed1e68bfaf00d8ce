"""Videos in folders: one table of endings for all commands, and nothing that is passed over without a word."""

import os

import pytest

from ivlite.cli import batch, videos
from ivlite.cli.chat.entry import media_kind
from ivlite.errors import MediaError, UsageError
from ivlite.evaluate import dataset
from ivlite.media import folders
from ivlite.serve.roots import Roots

ENDINGS = "mp4 qt 3gpp f4v insv lrv mpe m2v apng MOV mod h265 gif"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """clips/ with a video, videos in a folder below, and links to folders and files; the working folder is above it."""
    monkeypatch.chdir(tmp_path)
    for name in ("clips/a.mp4", "clips/below/b.QT", "clips/below/notes.txt", "other/c.mp4", "clips/.hidden/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "clips"


@pytest.fixture
def closed(monkeypatch):
    """closed(folder): it may not be read from now on, even by root."""
    names, scandir = set(), os.scandir

    def look(path="."):
        if os.path.abspath(path) in names:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", look)
    return lambda path: names.add(os.path.abspath(path))


# Each gives the names of the videos in a folder.
ASKED = {
    "batch": lambda folder: batch.named([str(folder)]),
    "index and find": lambda folder: videos.expanded([str(folder)]),
    "eval and calibrate": lambda folder: [
        s.label for s in dataset.read(folder, lambda text: videos.say("warning", text)) if s.kind == "video"
    ],
}
by_each = pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
EVERY = {**ASKED, "mcp": lambda folder: Roots([folder]).videos(99, 60), "a pattern": lambda folder: videos.matching(f"{folder}/*"),
         "chat": lambda folder: [entry.path for entry in os.scandir(folder) if media_kind(entry.path) == "video"]}  # fmt: skip


@pytest.mark.parametrize("asked", EVERY.values(), ids=EVERY)
def test_all_take_the_same_endings(tmp_path, asked):
    names = {f"{number}.{ending}" for number, ending in enumerate(ENDINGS.split())}
    for name in [*names, "x.png", "y.txt", "z"]:
        (tmp_path / name).write_bytes(b"x")
    assert {os.path.basename(path) for path in asked(tmp_path)} == names


def test_no_ending_is_of_both_kinds():
    assert not folders.SUFFIXES["video"] & folders.SUFFIXES["image"]
    assert folders.kind_of("a.b/C.JPeG") == "image" and folders.kind_of("a.mp4/c") is None is folders.kind_of(".mp4")


@by_each
def test_a_folder_that_cannot_be_read_is_told(folder, closed, capsys, asked):
    closed(folder / "below")
    assert [os.path.basename(path) for path in asked(folder)] == ["a.mp4"]
    told = "passed over 1 that cannot be read: below; change the permissions of these folders\n"
    assert capsys.readouterr().err == f"ivlite: warning: {folder}: {told}"


@by_each
def test_links_to_folders_are_told(folder, capsys, asked):
    (folder / "more").symlink_to(folder.parent / "other")
    (folder / "below" / "round").symlink_to(folder)
    (folder / "linked.mp4").symlink_to(folder.parent / "other" / "c.mp4")
    (folder / ".out").symlink_to(folder.parent / "other")
    assert [os.path.basename(path) for path in asked(folder)] == ["a.mp4", "b.QT", "linked.mp4"]
    told = "passed over 2 that are links to folders: below/round, more; name the folders that they lead to"
    assert f"ivlite: warning: {folder}: {told}\n" in capsys.readouterr().err
    (folder.parent / "link").symlink_to(folder)
    assert len(asked(folder.parent / "link")) == 3  # one that is named is followed


@by_each
def test_videos_that_cannot_be_opened_are_told(folder, capsys, asked):
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(folder / "pipe.mkv")
    assert [os.path.basename(path) for path in asked(folder)] == ["a.mp4", "b.QT"]
    told = "passed over 2 that cannot be opened: gone.mp4, pipe.mkv; check their links and permissions"
    assert f"ivlite: warning: {folder}: {told}\n" in capsys.readouterr().err


@by_each
def test_the_folder_itself_cannot_be_read(folder, closed, asked):
    closed(folder)
    with pytest.raises((MediaError, UsageError), match="clips cannot be read: Permission denied"):
        asked(folder)


@by_each
def test_nothing_is_said_where_nothing_is_passed_over(tmp_path, capsys, asked):
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert len(asked(tmp_path)) == 1 and capsys.readouterr().err == ""


def test_clients_are_not_told_of_what_they_may_not_see(folder, closed):
    """A server goes on with its other folders."""
    closed(folder)
    found = Roots([folder, folder.parent / "other"]).videos(99, 60)
    assert [os.path.basename(path) for path in found] == ["c.mp4"]


def test_many_are_counted_and_few_are_named(tmp_path):
    names = [tmp_path / f"{n:02}" for n in range(12)]
    said = folders.passed_over(tmp_path, names, folders.LINKS)
    assert (
        said.startswith(f"{tmp_path}: passed over 12 that are links")
        and "07 and 4 more; name" in said
        and ", 08" not in said
    )


def test_a_name_with_a_line_break_is_one_line(folder, capsys):
    (folder / "a\nb").symlink_to(folder.parent / "other")
    batch.named([str(folder)])
    assert capsys.readouterr().err.count("\n") == 1
