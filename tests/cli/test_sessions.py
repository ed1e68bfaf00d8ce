"""`ivlite sessions`: what is listed, what is removed, what is refused."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import ivlite, refused

sys.path.insert(0, str(Path(__file__).parents[1]))

from session_fakes import PlainCache, layout

from ivlite.session.file import SessionFile
from ivlite.session.packing import pack
from ivlite.session.state import SessionState
from ivlite.session.store import Store


@pytest.fixture
def folder(tmp_path):
    """A cache folder with an entry of 300 tokens about two videos, used 3 hours ago, and one of 20 tokens of text."""
    store = Store(tmp_path / "ivlite" / "sessions")
    for tokens, sources in ((300, ["match.mp4", "cl\x1b[31mip.mp4"]), (20, [])):
        cache = PlainCache(1000).grow(tokens)
        state = SessionState(token_ids=list(range(tokens)), positions=np.zeros((3, tokens), np.int64), rows=tokens, tools=[],
                             media=[{"kind": "video", "source": source} for source in sources])  # fmt: skip
        meta, arrays = pack(state)
        file = SessionFile(store.new_path(layout(cache)))
        file.save(layout(cache), meta | {"maker": "", "contents": {}, "seconds": 61.5}, arrays, cache, tokens)
        if sources:
            os.utime(file.path, (time.time() - 3.2 * 3600,) * 2)
    return tmp_path


@pytest.fixture
def sessions(folder):
    """sessions(...) runs `ivlite sessions ...` over the folder."""

    def call(*args, home=folder):
        return ivlite("sessions", *args, cwd=folder, env=os.environ | {"XDG_CACHE_HOME": str(home)})

    return call


def names(folder):
    return [entry.name for entry in Store(folder / "ivlite" / "sessions").entries()]


def test_list(sessions, folder):
    young, old = names(folder)
    done = sessions()
    assert done.returncode == 0 and done.stderr == "" and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert f"{folder}/ivlite/sessions: 2 sessions" in lines[0] and "of at most" in lines[0]
    assert (
        lines[-1].split()[0] == old
        and "3 hours ago" in lines[-1]
        and "match.mp4, cl" in lines[-1]
        and " 300 " in lines[-1]
    )
    assert lines[-2].split()[0] == young and "just now" in lines[-2] and lines[-2].endswith("text")
    facts = json.loads(sessions("list", "--json").stdout)
    assert [s["name"] for s in facts["sessions"]] == [young, old] and facts["bytes"] == sum(
        s["bytes"] for s in facts["sessions"]
    )
    expected = {
        "tokens": 300,
        "seconds": 61.5,
        "kv": "q8",
        "model": "tiny",
        "fault": None,
        "media": ["match.mp4", "cl\x1b[31mip.mp4"],
    }
    assert expected.items() <= facts["sessions"][1].items()


def test_remove_and_clear(sessions, folder):
    young, old = names(folder)
    refused(sessions("remove", old, "nothing"), 2, "no stored session nothing")
    refused(sessions("remove", ""), 2, "2 stored sessions begin")
    assert names(folder) == [young, old]
    done = sessions("remove", old[:6], old)
    assert done.returncode == 0 and done.stdout.startswith("removed 1 session,") and names(folder) == [young]
    assert json.loads(sessions("clear", "--json").stdout)["removed"] == [young]
    assert names(folder) == [] and sessions().stdout == "nothing is stored\n"
    assert sessions("clear").stdout == "removed 0 sessions, 0 MB\n"


def test_usage(sessions):
    refused(sessions("remove"), 2, "name the sessions")
    refused(sessions("list", "x"), 2, "takes no names")
    refused(sessions("clear", "x"), 2, "takes no names")
    assert sessions("forget").returncode == 2
    assert "--no-store" in sessions("--help").stdout


def test_damaged_entries_are_listed_and_removed(sessions, folder):
    young, old = names(folder)
    path = next(Path(folder, "ivlite", "sessions").glob(f"*{old}.ivs"))
    path.write_bytes(path.read_bytes()[:-1])
    done = sessions()
    assert done.returncode == 0 and "cannot be used" in done.stdout
    assert sum(s["fault"] is not None for s in json.loads(sessions("--json").stdout)["sessions"]) == 1
    assert sessions("remove", old).returncode == 0


def test_no_folder(sessions):
    done = sessions(home="/proc")
    assert done.returncode == 0 and done.stdout == "nothing is stored\n"
    assert done.stderr.count("warning") == 1 and "nothing is kept" in done.stderr
    assert json.loads(sessions("--json", home="/proc").stdout)["sessions"] == []
    refused(sessions("remove", "abc", home="/proc"), 2, "no stored session")


def test_what_is_no_regular_file_is_no_session(sessions, folder):
    store = folder / "ivlite" / "sessions"
    before = names(folder)
    (store / "folder.ivs").mkdir()
    (store / "link.ivs").symlink_to(store)
    os.mkfifo(store / "pipe.ivs")
    assert [entry["name"] for entry in json.loads(sessions("--json").stdout)["sessions"]] == before
    refused(sessions("remove", "folder"), 2, "no stored session folder")
    done = sessions("clear")
    assert done.returncode == 0 and done.stdout.startswith("removed 2 sessions,"), done.stderr
    assert sorted(os.listdir(store)) == ["folder.ivs", "link.ivs", "pipe.ivs"]


@pytest.mark.parametrize("more", [{"media": 7}, {"media": ["a"]}, {"media": None}, {"seconds": "x"}, {"seconds": []}])
def test_entries_of_another_form_are_listed_as_damaged(sessions, folder, more):
    cache = PlainCache(1000).grow(9)
    file = SessionFile(Store(folder / "ivlite" / "sessions").new_path(layout(cache)))
    file.save(layout(cache), {"media": [], "seconds": 1.0} | more, {}, cache, 9)
    done = sessions()
    assert done.returncode == 0 and done.stdout.count("cannot be used") == 1, done.stderr
    assert sum(s["fault"] is not None for s in json.loads(sessions("--json").stdout)["sessions"]) == 1
