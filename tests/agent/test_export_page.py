"""The report: one file without anything from outside, texts that stay texts, times that lead to the video."""

import base64
import hashlib
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from export_answers import HOSTILE, answer
from made_videos import numbered, said
from PIL import Image

from ivlite.agent.answer import Evidence, Look, Video
from ivlite.agent.export import page
from ivlite.agent.export.figures import rest, seen, short, union, widest
from ivlite.agent.export.markup import Html, tag
from ivlite.errors import DiskError, Stopped
from ivlite.stop import Stop, using

VOID = {"meta", "img", "br", "hr", "link"}


class Reader(HTMLParser):
    """A page as a browser takes it: elements with their attributes, and the text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text, self.code = [], [], "", {"style": "", "script": ""}
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open and self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] in self.code:
            self.code[self.open[-1]] += data
        else:
            self.text += data

    def all(self, name):
        return [attributes for found, attributes in self.elements if found == name]


@pytest.fixture
def film(tmp_path):
    return numbered(tmp_path / "film.mp4", 250)


def written(path, a, question="What is it?"):
    notes = page.write(path, a, question)
    return Reader(Path(path).read_text()), notes


def test_what_a_report_says(tmp_path, film):
    read, notes = written(tmp_path / "r.html", answer(film, 10.0))
    text = " ".join(read.text.split())
    for part in (
        "What is it?", "medium confidence", "It begins here E2 0:02 – 0:03, and ends there E3 0:06.2 – 0:06.4, E4 0:08.",
        "confirmed 97%", "not checked", "not confirmed 12%", "Not found out: who said it", "2 looks", "One every", "Where?",
        "2 more that the answer does not name", "score 0.83", "lie up to 1.0 seconds apart: shorter events may be missed", "12.3", "5 steps",
    ):  # fmt: skip
        assert part in text, part
    assert notes == []


def test_how_far_apart_frames_lie_is_said_once(tmp_path, film):
    said = "Frames that were looked at lie up to 1.5 s apart: shorter events may be missed."
    read, _ = written(tmp_path / "r.html", answer(film, 10.0, missing=said))
    text = " ".join(read.text.split())
    assert text.count("may be missed") == 1 and "up to 1.5 s apart" in text


def test_the_pictures_are_the_frames_that_were_shown(tmp_path, film):
    read, _ = written(tmp_path / "r.html", answer(film, 10.0))
    shown = {}
    for image in read.all("img"):
        head, data = image["src"].split(",", 1)
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            shown[image["alt"]] = said(np.asarray(picture.convert("RGB")))
    at = {"00:00:02.000": 50, "00:00:02.520": 63, "00:00:03.000": 75, "00:00:08.000": 200, "00:00:05.000": 125}
    assert shown == {f"Frame at {time}": number for time, number in at.items()}


def test_times_lead_to_the_video_beside_the_report(tmp_path):
    (tmp_path / "in").mkdir()
    film = numbered(tmp_path / "in" / "a %&'\"<b> ?#ü.mp4", 250)
    read, _ = written(tmp_path / "r.html", answer(film, 10.0))
    (video,) = read.all("video")
    assert unquote(video["src"]) == f"./in/{film.name}" and not re.search("[?#'\"<> ]", video["src"])
    links = [a for a in read.all("a") if "data-start" in a]
    assert all(a["href"].startswith(video["src"] + "#t=") and a["data-video"] == "v1" for a in links)
    assert {"2.000", "2.520", "6.200", "8.000"} <= {a["data-start"] for a in links}
    assert all(float(a["data-start"]) <= 10 and float(a.get("data-end") or 0) <= 10 for a in links)


def test_videos_and_folders_that_are_links(tmp_path, film):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link.mp4").symlink_to(film)
    (tmp_path / "other").symlink_to(tmp_path)
    for path, report, src in (
        (tmp_path / "out" / "link.mp4", tmp_path / "out" / "r.html", "./link.mp4"),
        (film, tmp_path / "other" / "r.html", "./film.mp4"),
    ):
        read, _ = written(report, answer(path, 10.0))
        assert [video["src"] for video in read.all("video")] == [src]


def test_a_video_elsewhere_is_not_played(tmp_path, film):
    (tmp_path / "out").mkdir()
    read, _ = written(tmp_path / "out" / "r.html", answer(film, 10.0))
    assert not read.all("video") and len(read.all("img")) == 5
    assert all(a["href"].startswith("#E") for a in read.all("a"))


def test_a_report_needs_nothing_from_outside(tmp_path, film):
    read, _ = written(tmp_path / "r.html", answer(film, 10.0))
    names = {name for name, _ in read.elements}
    assert (
        not names & {"link", "iframe", "object", "embed", "form", "base", "audio", "source"}
        and len(read.all("script")) == 1
    )
    for name, attributes in read.elements:
        for key in ("src", "href", "srcset", "action", "poster", "background"):
            value = attributes.get(key, "#")
            assert value.startswith(("#", "data:image/jpeg;base64,", "./film.mp4")), (name, value)
        assert not any(key.startswith("on") for key in attributes)
    assert not re.search(r"url\(|@import|https?:", read.code["style"] + read.code["script"])
    (rules,) = [m["content"] for m in read.all("meta") if m.get("http-equiv")]
    own = base64.b64encode(hashlib.sha256(read.code["script"].encode()).digest()).decode()
    assert f"script-src 'sha256-{own}'" in rules and "default-src 'none'" in rules


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts(tmp_path, text):
    """The same elements as with a harmless text in its place, wherever texts can be."""
    plain, _ = written(tmp_path / "a.html", answer("/no/film.mp4", says=["lorem"] * 40), "Why? lorem")
    read, _ = written(tmp_path / "b.html", answer("/no/film.mp4", says=[text] * 40), f"Why? {text}")
    shape = [(name, sorted(attributes)) for name, attributes in plain.elements]
    assert [(name, sorted(attributes)) for name, attributes in read.elements] == shape
    assert read.code == plain.code and not re.search(
        "[\x00-\x08\x0b-\x1f\u202e\ud800]", (tmp_path / "b.html").read_text()
    )
    if text.isprintable() and len(text) < 1000:
        assert read.text.count(text) >= plain.text.count("lorem") - 1  # the title of the page may be shortened


def test_hostile_names_of_evidence_are_no_links(tmp_path):
    read, _ = written(tmp_path / "r.html", answer("/no/f.mp4", text="[E99] [E2] [E2]] [<b>] [E2, E99]"))
    assert "[E99]" in read.text and all(a["href"] in ("#E2", "#E3", "#E4") for a in read.all("a"))


def test_a_video_that_is_gone_costs_only_its_pictures(tmp_path):
    read, notes = written(tmp_path / "r.html", answer(tmp_path / "gone.mp4"))
    assert len(notes) == 1 and "gone.mp4 does not exist" in notes[0] and notes[0] in read.text
    assert not read.all("img") and "It begins." in read.text


def test_an_empty_answer(tmp_path):
    bare = answer(
        "f.mp4", text="", claims=(), evidence=(), looked_at=(), steps=(), usage={}, missing="", finish_reason="budget"
    )
    read, _ = written(tmp_path / "r.html", bare, "")
    assert "No frame of this video was looked at." in read.text and "cut short: the budget is used up." in read.text


def test_several_videos(tmp_path, film):
    other = numbered(tmp_path / "b.mp4", 50)
    read, _ = written(
        tmp_path / "r.html",
        answer(film, 10.0, videos=(Video("v1", str(film), 10.0), Video("v2", str(other), 2.0, "b"))),
    )
    assert [v["data-video"] for v in read.all("video")] == ["v1", "v2"] and "E2 0:02 – 0:03 in v1" in " ".join(
        read.text.split()
    )


def test_a_report_stays_small(tmp_path, film):
    """However much was seen: a few pictures of what is named, one of what is not, and so many in all."""
    many = tuple(
        Evidence(f"E{i}", "v1", i % 10, i % 10, "frames", tuple(0.04 * j for j in range(200))) for i in range(1, 400)
    )
    read, _ = written(tmp_path / "r.html", answer(film, 10.0, evidence=many))
    assert len(read.all("img")) == page.MOST and os.path.getsize(tmp_path / "r.html") < 4 << 20


def test_nothing_is_left_of_a_report_that_was_not_written(tmp_path, film):
    with pytest.raises(DiskError):
        page.write(tmp_path / "no" / "r.html", answer(film, 10.0), "?")
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped), using(stop):
        page.write(tmp_path / "r.html", answer(film, 10.0), "?")
    assert os.listdir(tmp_path) == ["film.mp4"]


# ------------------------------------------------------------------------------------------------ parts


def test_what_was_and_was_not_looked_at():
    looks = [
        Look("v1", 50, 60, 6, 2.0),
        Look("v1", 0, 20, 5, 5.0),
        Look("v1", 58, 61, 1, 0.0),
        Look("v1", 90, 98, 5, 2.0),
    ]
    assert union(looks, 99) == [(0, 25), (50, 62), (90, 99)]
    assert rest(union(looks, 99), 99) == [(25, 50), (62, 90)]
    a = answer(
        looked_at=(*looks, Look("v2", 0, 99, 99, 1.0)), evidence=(Evidence("E1", "v1", 70, 75, "frames", (70.0, 75.0)),)
    )
    assert widest(seen(a, "v1"), 99) == 30 and seen(a, "v1")[:5] == [0, 5, 10, 15, 20] and seen(a, "v3") == []
    assert union([], 9) == [] and rest([], 9) == [(0, 9)]


def test_times_as_people_write_them():
    assert [short(t) for t in (0, 5.04, 61.96, 3599.99, 3661, 36000.54)] == [
        "0:00", "0:05", "1:02", "1:00:00", "1:01:01", "10:00:00.5",
    ]  # fmt: skip


def test_a_text_is_escaped_unless_it_was_made_here():
    assert tag("p", "<b>", tag("i", "&"), None, ["x", Html("<hr>")], class_='a"b', hidden=True, lang=None) == (
        '<p class="a&quot;b" hidden>&lt;b&gt;<i>&amp;</i>x<hr></p>'
    )
