"""Numbers and times are written and read with points, in any locale and time zone (row 78)."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIP = str(Path(__file__).parents[2] / "examples" / "clip.mp4")
COMMA = re.compile(r"\d,(?!\d{3}(?!\d))\d")  # a decimal comma, or groups that are none of thousands
KNOWN = ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "es_ES.UTF-8", "it_IT.UTF-8", "ru_RU.UTF-8", "nl_NL.UTF-8")
DEFINITION = """\
comment_char %
escape_char /
LC_NUMERIC
decimal_point "<U002C>"
thousands_sep "<U002E>"
grouping 3;3
END LC_NUMERIC
"""
COMMAND = """\
import locale, sys
name = sys.argv.pop(1)
locale.setlocale(locale.LC_ALL if name == "C" else locale.LC_NUMERIC, name)
assert locale.localeconv()["decimal_point"] == ("." if name == "C" else ","), locale.localeconv()
from ivlite.cli import main
sys.exit(main(sys.argv[1:]))
"""


def has_commas(name, env):
    code = "import locale, sys; locale.setlocale(locale.LC_NUMERIC, sys.argv[1]); print(locale.localeconv()['decimal_point'])"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, env=env)
    return done.stdout.strip() == ","


@pytest.fixture(scope="module")
def commas(tmp_path_factory):
    """(the name of a locale with comma decimals, environment): one of the system's, or one that is made here."""
    for name in KNOWN:
        if has_commas(name, os.environ):
            return name, dict(os.environ)
    if shutil.which("localedef") is None:
        pytest.skip("the system has no locale with comma decimals, and no localedef to make one")
    folder = tmp_path_factory.mktemp("locales")
    (folder / "definition").write_text(DEFINITION)
    name, env = "xx_XX.UTF-8", dict(os.environ) | {"LOCPATH": str(folder)}
    made = subprocess.run(
        ["localedef", "-c", "-i", str(folder / "definition"), "-f", "UTF-8", str(folder / name)], capture_output=True
    )
    if not has_commas(name, env):
        pytest.skip(f"localedef makes no locale here: {made.stderr[-200:]!r}")
    return name, env


@pytest.fixture(scope="module")
def both(commas, tmp_path_factory):
    """both(*args): the finished `ivlite *args` in C and UTC, and in a comma locale where it is another day."""
    cache = str(tmp_path_factory.mktemp("cache"))  # what is measured once serves all

    def run(*args):
        def finished(name, zone, env):
            env = env | {"TZ": zone, "XDG_CACHE_HOME": cache}
            env |= {"LC_ALL": name} if name != "C" else {}
            command = [sys.executable, "-c", COMMAND, name, *map(str, args)]
            return subprocess.run(
                command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=300
            )

        name, env = commas
        return finished("C", "UTC", dict(os.environ)), finished(name, "XYZ-13:45", env)

    return run


MEDIA = ("--video", CLIP, "--fps", "3", "--start", "0.25", "--end", "0:01.75")
SAME = ("videos", "prompt_tokens", "vision_tokens", "cache_bytes", "max_new_tokens")


def test_what_run_says(both):
    plain, here = both("run", "demo", *MEDIA, "--verbose", "--temperature", "0", "--seed", "1", "What moves?")
    assert plain.returncode == here.returncode == 0, here.stderr
    assert plain.stdout == here.stdout
    said = [
        re.findall(r"time marks .* seconds|\d+ frames, one every [^:]*: \d+ tokens", d.stderr) for d in (plain, here)
    ]
    assert said[0] == said[1] and len(said[0]) >= 2 and re.search(r"time marks \d\.\d", said[0][-1] + said[0][0])
    assert not COMMA.search(here.stderr), here.stderr
    closing = here.stderr.splitlines()[-1]
    assert re.search(r"\| load (\d+\.\d\d s|\d+ ms), .* \| \d+\.\d\d tokens/s \| peak \d", closing), closing


def test_what_run_gives_to_programs(both):
    made = []
    for done in both("run", "demo", *MEDIA, "--json", "--temperature", "0", "--quiet", "What moves?"):
        assert done.returncode == 0, done.stderr
        made.append(json.loads(done.stdout))
    plain, here = made
    assert here["media"] == plain["media"] and here["text"] == plain["text"]
    assert any(t != int(t) for t in here["media"][0]["timestamps"])
    assert all(here["plan"][name] == plain["plan"][name] for name in SAME)
    assert all(isinstance(value, float) for value in here["timings"].values())


def test_what_plan_says(both):
    plain, here = (json.loads(done.stdout) for done in both("plan", "demo", *MEDIA, "--max-wait", "1.5h", "--json"))
    assert all(here[name] == plain[name] for name in SAME) and here["videos"][0]["seconds"] == 1.5
    text = both("plan", "demo", *MEDIA, "--memory", "2.5G", "--budget", "1.5k")[1]
    assert text.returncode == 0 and re.search(r"one every \d\.\d\d s", text.stdout) and not COMMA.search(text.stdout)


def test_commas_are_refused_in_any_locale(both):
    """They mean one thing: a command line works alike on every machine."""
    for option in (("--start", "0,25"), ("--fps", "1,5")):
        for done in both("run", "demo", "--video", CLIP, *option, "What moves?"):
            assert done.returncode == 2 and option[1] in done.stderr
            assert sum(line.startswith("ivlite: error: ") for line in done.stderr.splitlines()) == 1
