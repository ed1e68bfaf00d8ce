"""Files of subtitles: every format, damaged ones above all."""

import os
import random

import pytest
from subtitle_rows import SRT, rows

from ivlite.errors import MediaError
from ivlite.media import cues, subtitle_files, subtitles
from ivlite.media.cues import Collector, plain

ASS = """[Script Info]
Title: x
[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,{\\k20}ka{\\k30}ra\\Nx, y
Dialogue: 1,0:00:01.00,0:00:03.00,Glow,,0,0,0,,{\\pos(1,2)}kara\\Nx, y
Dialogue: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,{\\p1}m 0 0 l 1 1{\\p0}
Comment: 0,0:00:01.00,0:00:03.00,Default,,0,0,0,,not shown
Dialogue: 0,0:00:xx.00,0:00:05.00,Default,,0,0,0,,no time
Dialogue: 0,0:00:04.00,0:00:05.00,Default,,0,0,0,,{laughs} done
"""
SSA = """[Script Info]
[V4 Styles]
[Events]
Format: Marked, Start, End, Style, Text
Dialogue: Marked=0,0:00:01.00,0:00:03.00,Default,one, two
"""
VTT = """WEBVTT - a film

STYLE
::cue { color: red }

NOTE 00:00:00.500 --> 00:00:00.900
is not a cue

intro
00:01.000 --> 00:02.000 align:start position:0%
<v Bob>Hi <00:00:01.500><c.loud>there</c>

next
00:02.000 --> 01:00:04.000
Tom &amp; <b>Ann</b>&nbsp;&lt;3
"""
FORMATS = {
    "a.ass": (ASS, [(1, 3, "kara x, y"), (4, 5, "{laughs} done")]),
    "a.ssa": (SSA, [(1, 3, "one, two")]),
    "a.vtt": (VTT, [(1, 2, "Bob: Hi there"), (2, 3604, "Tom & Ann <3")]),
    "a.sub": ("{1}{1}10\n{10}{20}Hi|there\n{30}{}open\n{50}{60}{y:i}ok\n", [(1, 2, "Hi there"), (3, 4, "open"), (5, 6, "ok")]),
    "a.mpl": ("[10][20]/Hi|you\n[30][40]b\n", [(1, 2, "Hi you"), (3, 4, "b")]),
    "a.txt": ("00:00:01:Hello\n00:00:02:World|you\n", [(1, 2, "Hello"), (2, 3.773, "World you")]),
    "a.smi": (
        "<SAMI><BODY>\n<SYNC Start=1000><P Class=X>Hi\n<SYNC Start=2000><P>&nbsp;\n<SYNC Start=3000><P>a<br>b\n</BODY>",
        [(1, 2, "Hi"), (3, 4, "a b")],
    ),
    "a.ttml": (
        '<?xml version="1.0"?><tt xmlns="http://www.w3.org/ns/ttml"><body><div><p begin="00:00:01.000" '
        'end="00:00:02.000">Hi<br/>x</p></div></body></tt>',
        [(1, 2, "Hi x")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_by_its_content(write, name):
    text, wanted = FORMATS[name]
    for path in (write(name, text), write("other.bin", text)):
        assert rows(subtitles.read(path)) == wanted


def test_frames_are_counted_at_the_rate_of_the_video(write):
    path = write("a.sub", "{50}{100}Hi\n")
    assert rows(subtitles.read(path, rate=50)) == [(1, 2, "Hi")]
    assert rows(subtitles.read(path)) == [(2, 4, "Hi")]


def test_damaged_lines_cost_a_cue_and_are_counted(write):
    found = subtitles.read(write("a.ass", ASS))
    assert found.counts["broken"] == found.counts["empty"] == found.counts["repeated"] == 1
    found = subtitles.read(write("b.sub", "{1}{1}10\nnonsense\n{10}{20}a\n{x}{y}b\n"))
    assert rows(found) == [(1, 2, "a")] and found.counts["broken"] == 2


# ------------------------------------------------------------------------------------------------ broken times

ODD = (  # what a time line may look like, and what is made of it
    ("00:00:01,000 --> 00:00:02,000", (1, 2)),
    ("0:0:1.0-->0:0:2.5", (1, 2.5)),
    ("00:01 --> 00:02", (1, 2)),
    ("00:00:01:500 --> 00:00:02:500", (1.5, 2.5)),
    ("00: 00: 01, 000 --> 00: 00: 02, 000", (1, 2)),
    ("00:00:01,000 --&gt; 00:00:02,000", (1, 2)),
    ("00:00:01,000 -> 00:00:02,000  X1:100 X2:200", (1, 2)),
    ("00:00:01,000 →00:00:02,000", (1, 2)),
    ("-00:00:01,000 --> 00:00:02,000", (0, 2)),
    ("00:00:01,000 -->", (1, 2)),
    ("00:00:01,000 --> xx", (1, 2)),
    ("00:00:02,000 --> 00:00:01,000", (2, 3)),
    ("00:00:01,000 --> 00:00:01,000", (1, 2)),
    ("00:00:01,000 --> 999999:00:00,000", (1, 2)),
    ("--> 00:00:02,000", None),
    ("xx --> yy", None),
    ("999999:00:01,000 --> 00:00:02,000", None),
)
MENDED = [line for line, _ in ODD[9:12]] + [ODD[13][0]]


@pytest.mark.parametrize(("line", "wanted"), ODD)
def test_times_that_people_meet(write, line, wanted):
    text = f"1\n00:00:00,000 --> 00:00:00,500\nfirst\n\n2\n{line}\nhere\n"
    found = subtitles.read(write("a.srt", text))
    assert sorted(rows(found)) == [(0, 0.5, "first")] + ([(*wanted, "here")] if wanted else [])
    assert sum(found.counts[name] for name in ("broken", "no_end", "backward")) == (wanted is None or line in MENDED)


def test_words_with_arrows_are_text(write):
    found = subtitles.read(
        write("a.srt", SRT.format("go A --> B now\nthen -->\n<-- back", "he says --> 10:30 is late"))
    )
    assert [cue.text for cue in found.cues] == ["go A --> B now then --> <-- back", "he says --> 10:30 is late"]


def test_order_overlaps_and_ends(write):
    text = ("1\n00:00:10,000 --> 00:00:12,000\nlate\n\n2\n00:00:01,000 --> 00:00:05,000\nlong\n\n"
            "3\n00:00:02,000 --> 00:00:03,000\ninside\n\n\n4\n00:00:13,000 --> 00:00:14,000\n\n\n5\n")  # fmt: skip
    found = subtitles.read(write("a.srt", text))
    assert rows(found) == [(1, 5, "long"), (2, 3, "inside"), (10, 12, "late")]
    assert found.counts["unordered"] == found.counts["overlapping"] == found.counts["empty"] == 1


def test_cues_end_with_the_video(write):
    text = SRT.format("in", "cut") + "\n3\n00:00:09,000 --> 00:00:10,000\nafter\n"
    found = subtitles.read(write("a.srt", text), duration=3.5)
    assert rows(found) == [(1, 2.5, "in"), (3, 3.5, "cut")]
    assert found.counts["outside"] == 1
    far = subtitles.read(write("b.srt", "1\n00:00:01,000 --> 00:30:00,000\nx\n"), duration=10)
    assert rows(far) == [(1, 10, "x")] and far.counts["clipped"] == 1


@pytest.mark.parametrize("hours", [1, 10])
def test_times_of_a_broadcast_are_shifted_back(write, hours):
    text = "".join(f"{i}\n{hours:02}:00:{i:02},000 --> {hours:02}:00:{i:02},900\nline {i}\n\n" for i in range(30))
    found = subtitles.read(write("a.srt", text), duration=31)
    assert rows(found)[3] == (3, 3.9, "line 3") and len(found.cues) == 30
    assert f"{hours} h ahead" in found.notes[0]
    assert not subtitles.read(write("a.srt", text)).notes  # where nothing tells the length of the video


def test_late_subtitles_of_a_long_film_stay(write):
    text = "1\n01:10:00,000 --> 01:10:02,000\nstill\n"
    assert rows(subtitles.read(write("a.srt", text), duration=5400)) == [(4200, 4202, "still")]
    other = "1\n03:10:00,000 --> 03:10:02,000\nof another film\n"
    found = subtitles.read(write("b.srt", other), duration=100)  # not even an hour makes them fit
    assert not found.cues and found.counts["outside"] == 1 and "after the end" in found.notes[0]


# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<font color='red'>red</font> <i>truck</i>", ["red truck"]),
        ("{\\an8}{\\i1}top{\\i0}\\Nnext\\hline", ["top", "next line"]),
        ("{laughs} a {b", ["{laughs} a {b"]),
        ("a < b and c > d, 3<4", ["a < b and c > d, 3<4"]),
        ("&lt;i&gt;x&lt;/i&gt; &amp;amp; &#233; &nbsp;", ["x &amp; é"]),
        ("a\x00b\x07c\u202ed\ufeff \u200e", ["a b cd"]),
        ("{\\p1}m 0 0 l 5 5", []),
        ("{\\p1}m 0 0{\\p0}word", ["word"]),
        ("  \n\n \t two   words \n", ["two words"]),
        ("👩\u200d🚀 & co", ["👩\u200d🚀 & co"]),
    ],
)
def test_tags_and_overrides_are_taken_out(text, wanted):
    assert plain(text) == wanted


@pytest.mark.parametrize(
    "piece", ["{\\p1", "<a", "&#9", "&lt;", "{", "<", "\\N", "{\\k1}", "-->", "</", "{}", "&amp;" * 2]
)
def test_long_markup_is_read_in_linear_time(piece):
    collector = Collector()
    for at in range(40):
        collector.add(float(at), at + 1.0, piece * 200_000)
    assert len(collector.finish()[0]) <= 40


def test_lines_of_chinese_are_joined_without_a_space():
    collector = Collector()
    collector.add(0.0, 1.0, "红色\n卡车 and\na truck")
    assert collector.finish()[0][0].text == "红色卡车 and a truck"


def rolling(lines, mark):
    """Captions as video sites make them: two lines, the upper one repeated, and a still of 10 ms between."""
    out, before = [], " "
    for i, line in enumerate(lines):
        out += [f"00:00:{2 * i:02}.000 --> 00:00:{2 * i + 2:02}.000\n{before}\n{line[:3]}{mark}{line[3:]}\n",
                f"00:00:{2 * i + 2:02}.000 --> 00:00:{2 * i + 2:02}.010\n{line}\n \n"]  # fmt: skip
        before = line
    return "WEBVTT\nKind: captions\nLanguage: en\n\n" + "\n".join(out)


def test_rolling_captions_are_said_once(write):
    lines = ["so today we talk", "about red trucks", "and blue ones", "and red trucks"]
    found = subtitles.read(write("a.vtt", rolling(lines, "<00:00:00.500><c>")))
    assert [cue.text for cue in found.cues] == lines
    assert [cue.start for cue in found.cues] == [0, 2, 4, 6] and found.counts["repeated"]


def test_words_that_are_said_again_later_stay():
    collector = Collector()
    for at, text in ((0, "No."), (1, "No."), (20, "No."), (21, "Why not?")):
        collector.add(float(at), at + 1.0, text)
    assert [(c.start, c.end, c.text) for c in collector.finish()[0]] == [
        (0, 2, "No."),
        (20, 21, "No."),
        (21, 22, "Why not?"),
    ]


def test_captions_that_grow_by_a_word_are_one():
    collector = Collector()
    words = "we go to the bridge".split()
    for i in range(len(words)):
        collector.add(i * 0.5, i * 0.5 + 0.5, " ".join(words[: i + 1]))
    assert [(c.start, c.end, c.text) for c in collector.finish()[0]] == [(0, 2.5, "we go to the bridge")]


def test_effects_of_many_frames_are_one_cue(write):
    lines = [f"Dialogue: {i % 5},0:00:0{i // 100}.{i % 100:02},0:00:0{(i + 1) // 100}.{(i + 1) % 100:02},S,,0,0,0,,{{\\frz{i}}}spin\n"
             for i in range(500)]  # fmt: skip
    found = subtitles.read(write("a.ass", ASS.split("Dialogue")[0] + "".join(lines)))
    assert rows(found) == [(0, 5, "spin")] and found.counts["repeated"] == 499


# ------------------------------------------------------------------------------------------------ sizes and junk


def test_huge_files_are_bounded(write, monkeypatch):
    monkeypatch.setattr(cues, "MOST_CUES", 1000)
    monkeypatch.setattr(subtitles, "MOST_CUES", 1000)
    text = "".join(f"{i}\n{i // 3600:02}:{i // 60 % 60:02}:{i % 60:02},0 --> \nline {i}\n\n" for i in range(3000))
    read = []
    lines = subtitles._lines
    monkeypatch.setattr(subtitles, "_lines", lambda *given: (read.append(line) or line for line in lines(*given)))
    found = subtitles.read(write("a.srt", text))
    assert len(found.cues) == 1000 and "more than 1,000 cues" in found.notes[0]
    assert len(read) < 4 * 1002 + subtitle_files.HEAD  # what follows is not even read


def test_a_file_of_endless_lines_ends(write, monkeypatch):
    monkeypatch.setattr(subtitles, "MOST_LINES", 1000)
    found = subtitles.read(write("a.srt", SRT.format("red", "truck") + "x\n" * 5000))
    assert len(found.cues) == 2 and any("is too long: only its first" in note for note in found.notes)


def test_a_line_without_end_is_read_in_pieces(write):
    found = subtitles.read(write("a.srt", "1\n00:00:01,000 --> 00:00:02,000\n" + "<b>x{ " * 400_000))
    assert len(found.cues) == 1 and len(found.cues[0].text) <= cues.LONGEST and found.counts["shortened"] == 1


@pytest.mark.parametrize(
    "data",
    [
        os.urandom(3000), b"\0" * 5000, b"\0\0\1\xba" + b"x" * 3000, b"PG" + b"\0" * 100, b"hello\nworld\n", b"GIF89a" + b"\0" * 100,
        b"# VobSub index file, v7", b"{}", b"<html><body>404</body></html>", b"\xff\xfe", b"\n\n\n",
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(write, data):
    with pytest.raises(MediaError, match="is no subtitle file|as pictures"):
        subtitles.read(write("a.srt", data))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.srt")
    (tmp_path / "empty.srt").touch()
    for name in ("pipe.srt", "empty.srt", "missing.srt", "."):
        with pytest.raises(MediaError):
            subtitles.read(tmp_path / name)


def test_mutations_never_fail(tmp_path):
    chance, path = random.Random(17), tmp_path / "a.srt"
    seeds = [SRT.format("<i>red</i>", "truck").encode(), *(text.encode() for text, _ in FORMATS.values())]
    for _ in range(400):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(len(data))
            part = bytes(data[at : at + chance.randrange(1, 40)])
            data[at : at + len(part) * chance.randrange(2)] = chance.choice(
                [
                    b"",
                    part * 3,
                    bytes([chance.randrange(256)]),
                    b"99999999999999999999",
                    b"-->",
                    b"\0",
                    b"NaN",
                    b"\xff\xfe",
                    b"{\\p1}",
                ]
            )
        path.write_bytes(bytes(data) or b"x")
        try:
            found = subtitles.read(path, duration=100)
        except MediaError:
            continue
        assert all(0 <= cue.start <= cue.end <= 100 and cue.text.strip() for cue in found.cues)
        assert [cue.start for cue in found.cues] == sorted(cue.start for cue in found.cues)
