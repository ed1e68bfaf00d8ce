"""Pictures in a terminal: which way for which terminal, and what is sent."""

import base64
import io
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from ivlite.cli.pictures import BLOCK, box, nearest, rows, way
from ivlite.media.thumbnails import jpeg

LEFT, RIGHT = (200, 40, 40), (40, 40, 200)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Plain(Terminal):
    encoding = "ascii"


@pytest.mark.parametrize("variables, wanted", [
    ({"TERM": "xterm-kitty"}, "kitty"),
    ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
    ({"TERM": "xterm-ghostty", "COLORTERM": "truecolor"}, "kitty"),
    ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
    ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
    ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
    ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm", "NO_COLOR": "1"}, "iterm"),
    ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "colors"),
    ({"TERM": "xterm-256color", "COLORTERM": "24bit", "TERM_PROGRAM": "Apple_Terminal"}, "colors"),
    ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, "palette"),
    ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, "palette"),
    ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "TERM_PROGRAM": "iTerm.app", "COLORTERM": "truecolor"}, "colors"),
    ({"TERM": "xterm-256color", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "1"}, "palette"),
    ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, None),
    ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": ""}, "colors"),
    ({"TERM": "linux"}, None), ({"TERM": "vt100"}, None), ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
    ({"TERM": "dumb", "KITTY_WINDOW_ID": "1"}, None), ({"TERM": ""}, None), ({}, None),
])  # fmt: skip
def test_the_way_of_a_terminal(variables, wanted):
    assert way(Terminal(), variables) == wanted
    assert way(io.StringIO(), variables) is None  # no terminal


def test_blocks_need_a_character_for_them():
    assert way(Plain(), {"TERM": "xterm-256color", "COLORTERM": "truecolor"}) is None
    assert way(Plain(), {"TERM": "xterm-kitty"}) == "kitty"


def picture(height=90, width=160):
    image = np.empty((height, width, 3), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = LEFT, RIGHT
    return jpeg(Image.fromarray(image))


@pytest.mark.parametrize("size, wanted", [
    ((90, 160), (7, 26)), ((160, 90), (14, 17)), ((100, 100), (12, 26)), ((1, 1000), (1, 26)), ((1000, 1), (14, 1)),
])  # fmt: skip
def test_the_room_for_a_picture(size, wanted):
    assert box(*size, 26) == wanted


def visible(text):
    return re.sub("\x1b\\[[0-9;]*[a-zA-Z]", "", text)


@pytest.mark.parametrize("kind", ["colors", "palette"])
@pytest.mark.parametrize("columns, across", [(80, 2), (20, 1), (200, 5), (27, 1), (3, 1)])
def test_blocks(kind, columns, across):
    text = rows([(picture(), f"E{i} 00:00:0{i}.000") for i in range(5)], kind, columns)
    lines = [visible(line) for line in text.split("\n")]
    assert max(map(len, lines)) < columns and sum(line.count("E") for line in lines) == 5
    assert sum("E" in line for line in lines) == -(-5 // across)
    for line in text.split("\n"):  # nothing of a picture colours what follows it
        assert BLOCK not in line or line.rstrip().endswith("\x1b[0m")


def test_colours_of_blocks():
    text = rows([(picture(), "")], "colors", 80)
    cells = re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+)m", text)
    assert np.abs(np.array(cells[0], int) - LEFT).max() < 12 and np.abs(np.array(cells[-1], int) - RIGHT).max() < 12
    exact = [[(0, 0, 0), (255, 255, 255), (255, 0, 0)], [(95, 135, 175), (128, 128, 128), (11, 9, 7)]]
    assert nearest(np.array(exact, np.uint8)) == [["5;16", "5;231", "5;196"], ["5;67", "5;244", "5;232"]]


def test_kitty():
    text = rows([(picture(), "one"), (picture(160, 90), "two")], "kitty", 80)
    sent = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", text)
    assert all(len(data) <= 4096 for _, data in sent)
    pictures, current = [], ""
    for keys, data in sent:
        given = dict(pair.split("=") for pair in keys.split(","))
        current = {**given, "data": ""} if "a" in given else current
        current["data"] += data
        if given["m"] == "0":
            pictures.append(current)
    assert [(p["c"], p["r"]) for p in pictures] == [("26", "7"), ("17", "14")] and len(pictures) == 2
    for p in pictures:
        raw = zlib.decompress(base64.b64decode(p["data"], validate=True))
        shown = np.frombuffer(raw, np.uint8).reshape(int(p["v"]), int(p["s"]), 3)
        assert np.abs(shown[:, 3].astype(int) - LEFT).max() < 20 and np.abs(shown[:, -3].astype(int) - RIGHT).max() < 20
        assert p["f"] == "24" and p["C"] == "1" and p["q"] == "2"
    assert text.startswith("\n" * 14 + "\x1b[14A") and text.endswith("\x1b[14B\rone" + " " * 25 + "two\n")


def test_iterm():
    data = picture()
    text = rows([(data, "one")], "iterm", 80)
    (sent,) = re.findall("\x1b]1337;File=([^:]*):([^\x07]*)\x07", text)
    assert base64.b64decode(sent[1], validate=True) == data and f"size={len(data)};width=26;height=7" in sent[0]


@pytest.mark.parametrize("kind", ["colors", "palette", "kitty", "iterm"])
def test_labels_cannot_steer_the_terminal(kind):
    text = rows([(picture(), "\x1b]0;title\x07\n\r\x9b31m" + "x" * 500)], kind, 80)
    label = text.rsplit("\r" if kind in ("kitty", "iterm") else "\x1b[0m", 1)[1]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", label) and len(label.strip()) <= 26
