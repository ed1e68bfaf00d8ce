"""Searches of the library: what is typed is found, and nothing that is typed is an operator or a fault."""

import random
import sqlite3

import pytest
from library_files import cues, found

from ivlite.errors import UsageError
from ivlite.library import Library, schema, searching

LINES = (
    "A red truck crosses the bridge", "红色卡车正在过桥", 'He said "; DROP TABLE text; --', "Fireworks 🎉 tonight", "C++ and 100% sure_thing",
    "Ärger im Café", "we saw the TRUCKS go", "short a b", "Ёлка стоит у моста", "赤いトラックが橋を渡る", "back\\slash", "the\u0301 end",
)  # fmt: skip


@pytest.fixture
def full(library, clip):
    library.add_texts(library.add_video(clip(), duration=100), "subtitle", cues(*LINES), "a.srt")
    return library


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("red truck", 0), ("truck red", 0), ("RED TRUCK", 0), ("bridge", 0), ('"crosses the bridge"', 0), ("where is the red truck", 0),
        ("卡", 1), ("卡车", 1), ("红色卡车", 1), ("红色的卡车在哪里", 1), ('"; DROP TABLE', 2), ("drop table text", 2), ("🎉", 3),
        ("fireworks 🎉", 3), ("100%", 4), ("sure_thing", 4), ("_", 4), ("%", 4), ("C++", 4), ("cafe", 5), ("CAFÉ", 5), ("Cafe\u0301", 5),
        ("ärger", 5), ("rucks", 6), ("ёлка", 8), ("МОСТА", 8), ("トラック", 9), ("赤", 9), ("橋", 9), ("back\\slash", 10), ("\\", 10),
    ],
)  # fmt: skip
def test_what_is_typed_is_found(full, query, first):
    hits = full.search(query)
    assert hits and hits[0].text == searching.clean(LINES[first])
    assert all(0 < hit.score <= 1 for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_rare_words_count_more_and_the_end_of_a_sentence_is_no_part_of_a_word(library, clip):
    """A question is full of words that every text has."""
    common = ["do you see the one who comes to the lake"] * 30
    library.add_texts(
        library.add_video(clip()), "subtitle", cues(*common, "a white cross", *common, "C++ or C"), "a.srt"
    )
    hits = library.search("Which one do you see in the lake: the (white) cross?")
    assert hits[0].text == "a white cross" and hits[0].score > 1.2 * hits[1].score
    assert [hit.text for hit in library.search("What is C++?", k=1)] == ["C++ or C"]
    assert library.search("the lake", k=1)[0].score == 1.0
    library._database.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 600)  # older versions bind 999
    phrases = (" ".join(f"{a}{b}" for b in "abcdefghijklmnopqrstuvwxyz" * 2) for a in "qwertyuiopasdfghjklzxcvbnm")
    assert library.search(" ".join(f'"{phrase}"' for phrase in phrases) + " the", k=1) != []


@pytest.mark.parametrize(
    "query",
    [
        "", " ", "\0", "\n", "xyzzy", "%%", "__", "*", '"', '""', "'; DROPS TABLES; --", "zz OR yy", "NEAR(qq ww, 2)", "NOT qq", "^qq", "-qq",
        "body:qq", "{body}:qq", "q*q", "(((", ")", "\ud800\udfff", "\x1b[31m", "🦊", "𠮷", "ﷺ", "qq " * 500, "q" * 100_000, "\u202eqq", "{}[]",
    ],
)  # fmt: skip
def test_nothing_that_is_typed_is_an_operator(full, query):
    assert full.search(query, k=3) == []
    assert len(full.texts(1)) == len(LINES)


@pytest.mark.parametrize("query", ["truck*", "^truck", "truck🚚", "(truck)~"])
def test_marks_at_a_word_cost_it_little(full, query):
    assert full.search(query)[0].score >= 0.5


def test_queries_of_any_characters_never_fail(full):
    chance = random.Random(3)
    alphabet = "ab红车🎉 \"'%_*()^:-+{}[]\\;,.ANDORNEAT\0\n\ud800é\u0301"
    for _ in range(500):
        full.search("".join(chance.choices(alphabet, k=chance.randrange(1, 12))), k=5)
    for query in (None, 5, b"red"):
        with pytest.raises(UsageError):
            full.search(query)


def test_searches_take_conditions(full, clip):
    other = full.add_video(clip("b.mp4", b"b"))
    full.add_texts(other, "speech", cues("nothing", "a red truck too"), "whisper")
    assert len(full.search("red truck")) == 2
    assert found(full, "red truck", videos=[other]) == ["a red truck too"]
    assert found(full, "red truck", kinds=["subtitle"]) == [LINES[0]]
    assert found(full, "red truck", end=0.5) == [LINES[0]]
    assert found(full, "red truck", start=1) == ["a red truck too"]  # a text that ended by then is not in it
    assert found(full, "red truck", videos=[]) == found(full, "red truck", kinds=[]) == []
    assert len(found(full, "e", k=3)) == 3
    with pytest.raises(UsageError):
        full.search("red", kinds=["song"])
    with pytest.raises(UsageError):
        full.search("red", k=0)


@pytest.mark.parametrize("usable", [[], ["words"], ["grams"]])
def test_searches_do_without_full_text_indexes(path, clip, monkeypatch, usable):
    monkeypatch.setattr(schema, "usable", lambda: usable)
    with Library.open(path) as library:
        library.add_texts(library.add_video(clip()), "subtitle", cues(*LINES), "a.srt")
        assert found(library, "truck", k=1) == [LINES[0]]
        assert found(library, "卡车") == [LINES[1]] and found(library, "sure_thing") == [LINES[4]]


def test_many_rows_are_searched_through_an_index(library, clip):
    """In instructions of SQLite's machine, not in seconds."""
    lines = [f"{i} walks 卡车" for i in range(60_000)]
    library.add_texts(library.add_video(clip()), "speech", cues(*lines), "whisper")
    steps = []
    library._database.connection.set_progress_handler(lambda: steps.append(1) and None, 1000)
    assert found(library, "57777", k=1) == [lines[57_777]]
    assert len(steps) < 20  # a look at every row takes hundreds
    steps.clear()
    assert found(library, "7777 walks", k=1) == [lines[7_777]]
    assert len(steps) < 200
    steps.clear()
    assert len(found(library, "walks", k=5)) == 5 and len(found(library, "卡", k=5)) == 5
    assert len(steps) < 5_000
