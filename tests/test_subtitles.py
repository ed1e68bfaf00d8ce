"""Subtitles of tracks and files: every format and character set, damaged ones above all."""

import os
import random
from fractions import Fraction

import av
import numpy as np
import pytest

from ivlite.errors import MediaError
from ivlite.media import charset, cues, subtitle_files, subtitles
from ivlite.media.cues import Collector, Cue, plain

SRT = "1\n00:00:01,000 --> 00:00:02,500\n{}\n\n2\n00:00:03,000 --> 00:00:04,000\n{}\n"

TEXTS = {
    "fr": ("cp1252", "Bonjour à tous, ça va être une journée très agréable."),
    "de": ("cp1252", "Über die Brücke fährt ein großer Lastwagen. Schöne Grüße!"),
    "es": ("cp1252", "¿Qué pasó ayer por la mañana? El camión llegó tarde, ¡señor!"),
    "sv": ("cp1252", "Jag är på väg till sjön för att åka skridskor."),
    "pl": ("cp1250", "Czerwona ciężarówka jedzie przez miasto, a kierowca śpi. Zażółć gęślą jaźń."),
    "cs": ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy. Děkuji, hezké město."),
    "hu": ("cp1250", "Jó reggelt, hölgyeim és uraim! Köszönöm a segítséget, főnök úr."),
    "tr": ("cp1254", "Günaydın, bugün hava çok güzel ve güneşli. Şoför nerede?"),
    "lt": ("cp1257", "Šiandien labai gražus oras, sunkvežimis važiuoja per tiltą. Ačiū už pagalbą."),
    "ru": ("cp1251", "Привет, как дела? Красный грузовик едет по мосту. Ёлка стоит."),
    "uk": ("cp1251", "Привіт, як справи? Червона вантажівка їде мостом."),
    "ru-koi8": ("koi8-r", "Привет, как дела? Красный грузовик едет по мосту."),
    "ru-dos": ("cp866", "Привет, как дела? Красный грузовик едет по мосту."),
    "el": ("cp1253", "Καλημέρα, τι κάνεις; Το κόκκινο φορτηγό περνάει τη γέφυρα."),
    "he": ("cp1255", "שלום, מה שלומך? המשאית האדומה עוברת את הגשר."),
    "ar": ("cp1256", "مرحبا، كيف حالك؟ الشاحنة الحمراء تعبر الجسر."),
    "th": ("cp874", "สวัสดีครับ วันนี้อากาศดีมาก รถบรรทุกสีแดงข้ามสะพาน"),
    "zh": ("gb18030", "你好，今天天气很好。红色的卡车正在过桥。"),
    "zh-tw": ("big5", "你好，今天天氣很好。紅色的卡車正在過橋。"),
    "ja": ("shift_jis", "こんにちは、今日はいい天気ですね。赤いトラックが橋を渡っています。"),
    "ja-euc": ("euc_jp", "こんにちは、今日はいい天気ですね。赤いトラックが橋を渡っています。"),
    "ja-iso": ("iso2022_jp", "こんにちは、今日はいい天気ですね。"),
    "ko": ("euc_kr", "안녕하세요, 오늘 날씨가 참 좋네요. 빨간 트럭이 다리를 건너고 있습니다."),
}


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def rows(found):
    return [(cue.start, cue.end, cue.text) for cue in found.cues]


# ------------------------------------------------------------------------------------------------ character sets


@pytest.mark.parametrize("name", TEXTS)
def test_character_sets_are_guessed_and_said(write, name):
    codec, text = TEXTS[name]
    found = subtitles.read(write("talk.srt", SRT.format(text, "ok").encode(codec)))
    assert rows(found) == [(1.0, 2.5, text), (3.0, 4.0, "ok")]
    assert found.charset.endswith("(guessed)") and "a guess" in found.notes[0]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_unicode_is_known(write, codec, newline):
    text = SRT.format("Привет, red truck", "你好 🎉").replace("\n", newline)
    found = subtitles.read(write("talk.srt", text.encode(codec)))
    assert rows(found) == [(1.0, 2.5, "Привет, red truck"), (3.0, 4.0, "你好 🎉")]
    assert "guess" not in found.charset and not found.notes


def test_the_language_in_the_name_decides_what_bytes_leave_open(write):
    short = SRT.format("红色卡车", "ok").encode("gb18030")
    found = subtitles.read(write("talk.zh.srt", short))
    assert found.cues[0].text == "红色卡车" and found.language == "zh"


@pytest.mark.parametrize(
    "text", ["Müller", "It’s “fine”… ok", "£5 and 20°C", "façade", "¿qué?", "Ångström – déjà vu", "5€ to 10€"]
)
def test_a_few_western_characters_are_western(write, text):
    assert (
        subtitles.read(write("talk.srt", SRT.format(f"hello, {text}, and more", "ok").encode("cp1252"))).cues[0].text
        == f"hello, {text}, and more"
    )


def test_accents_far_into_a_file_count(write):
    lines = [
        f"{i}\n00:{i // 60:02}:{i % 60:02},000 --> 00:{i // 60:02}:{i % 60:02},900\nline {i}\n" for i in range(3000)
    ]
    lines.append("3001\n00:59:00,000 --> 00:59:01,000\nça va être très agréable, mon chéri\n")
    found = subtitles.read(write("talk.srt", "\n".join(lines).encode("cp1252")))
    assert found.cues[-1].text == "ça va être très agréable, mon chéri"


def test_a_few_damaged_bytes_leave_utf8(write):
    data = SRT.format("Привет, красный грузовик едет по мосту", "x\udc99y").encode("utf-8", "surrogateescape")
    found = subtitles.read(write("talk.srt", data))
    assert found.cues[0].text == "Привет, красный грузовик едет по мосту"
    assert found.charset == "utf-8 (with 1 damaged characters)" and found.counts["damaged"] == 1


def test_noise_reads_like_nothing():
    noise = bytes(random.Random(5).choices(range(128, 256), k=4000))
    good = charset.guess(TEXTS["ru"][1].encode("cp1251"))[1]
    assert charset.guess(noise)[1] < 0.6 * good


# ------------------------------------------------------------------------------------------------ formats

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


# ------------------------------------------------------------------------------------------------ beside a video


def test_files_beside_a_video_are_found(write, tmp_path):
    video = write("my talk.mp4", b"x")
    mine = [
        "my talk.srt",
        "my talk.en.srt",
        "my talk.pt-BR.forced.vtt",
        "my talk.mp4.ass",
        "my talk.SRT",
        "my talk.zh.sub",
    ]
    others = [
        "my talk 2.srt",
        "my talking.srt",
        "other.srt",
        "my talk.jpg",
        "my talk.part2.srt",
        "my talk.idx",
    ]
    for name in mine + others:
        write(name, b"x")
    write("my talk.part2.mkv", b"x")
    assert sorted(map(os.path.basename, subtitles.beside(video))) == sorted(mine)


@pytest.mark.parametrize(
    ("name", "language"),
    [("a.en.srt", "en"), ("a.eng.sdh.srt", "en"), ("a.pt-BR.srt", "pt"), ("English.srt", ""), ("a.German.srt", "de"),
     ("a [ja].srt", "ja"), ("a.srt", ""), ("a.it.is.srt", "is"), ("a.chs.ass", "zh")],
)  # fmt: skip
def test_languages_in_names(name, language):
    assert subtitles.language_of(name) == language


# ------------------------------------------------------------------------------------------------ tracks

HEADER = b"[Script Info]\n[V4+ Styles]\nFormat: Name\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"


def film(path, tracks, seconds=5, first=0):
    """A video of 64x48 with subtitle tracks: (codec, language, [(start, end, text)], disposition)."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        streams = []
        for codec, language, *_ in tracks:
            stream = out.add_stream(codec)
            stream.time_base = Fraction(1, 1000)
            stream.metadata["language"] = language
            stream.codec_context.subtitle_header = HEADER
            streams.append(stream)
        for i in range(seconds * 10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i * 4 % 255, np.uint8))
            frame.pts = i + first * 10
            out.mux(video.encode(frame))
        out.mux(video.encode())
        for stream, (_, _, lines) in zip(streams, tracks, strict=True):
            for start, end, text in lines:
                data = text.encode()
                packet = av.Packet(
                    len(data).to_bytes(2, "big") + data if stream.codec_context.name == "mov_text" else data
                )
                packet.pts = packet.dts = int((start + first) * 1000)
                packet.duration, packet.time_base, packet.stream = int((end - start) * 1000), Fraction(1, 1000), stream
                out.mux(packet)
    return path


def test_text_tracks_are_read_with_their_languages(tmp_path):
    ass = "0,0,Default,,0,0,0,,{\\an8}Moin\\NX"
    path = film(tmp_path / "a.mkv", [
        ("subrip", "eng", [(1, 2, "Hello <i>you</i>"), (2.5, 3, "a\nb"), (4.5, 9, "end")]),
        ("webvtt", "ger", [(1, 2, "Guten Tag")]), ("ass", "jpn", [(1, 2, ass)]),
    ])  # fmt: skip
    tracks, skipped = subtitles.of_tracks(path, 5.0)
    assert [(t.source, t.language) for t in tracks] == [("track 1", "en"), ("track 2", "de"), ("track 3", "ja")]
    assert rows(tracks[0]) == [(1, 2, "Hello you"), (2.5, 3, "a b"), (4.5, 5, "end")]
    assert [rows(t) for t in tracks[1:]] == [[(1, 2, "Guten Tag")], [(1, 2, "Moin X")]]
    assert not skipped
    assert rows(subtitles.read(path, 5.0)) == rows(tracks[0])


def test_tracks_of_mp4_follow_the_time_of_the_video(tmp_path):
    path = film(tmp_path / "a.mp4", [("mov_text", "eng", [(1, 2, "Hello"), (2.5, 3, "a\nb")])])
    tracks, _ = subtitles.of_tracks(path)
    assert rows(tracks[0]) == [(1, 2, "Hello"), (2.5, 3, "a b")] and tracks[0].format == "mov_text"
    late = film(tmp_path / "b.mkv", [("subrip", "eng", [(1, 2, "Hello")])], first=7)
    assert rows(subtitles.of_tracks(late)[0][0]) == [(1, 2, "Hello")]  # the first picture is at 0


def test_tracks_of_pictures_are_named_and_left_out(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mkv", [("subrip", "eng", [(1, 2, "Hello")])])
    monkeypatch.setattr(subtitles, "PICTURES", ("srt", "subrip"))
    tracks, skipped = subtitles.of_tracks(path)
    assert not tracks and len(skipped) == 1
    assert "track 1 (en)" in skipped[0] and "pictures" in skipped[0]


def test_files_of_pictures_are_named_and_left_out(tmp_path, write):
    path = film(tmp_path / "a.mkv", [])
    write("a.sub", b"\0\0\1\xba" + bytes(3000))
    write("a.idx", "# VobSub index file, v7\n")
    write("a.en.sup", b"PG" + bytes(3000))
    found = subtitles.of_video(path, 5.0)
    assert not found.tracks and len(found.skipped) == 2 and all("as pictures" in s for s in found.skipped)
    assert "a.en.sup" in found.skipped[0] and "a.sub" in found.skipped[1]


def test_a_video_has_its_tracks_and_the_files_beside_it(tmp_path, write):
    path = film(tmp_path / "a.mkv", [("subrip", "eng", [(1, 2, "Hello")])])
    write("a.de.srt", SRT.format("Hallo", "Welt"))
    write("a.srt", os.urandom(2000))
    found = subtitles.of_video(path, 5.0)
    assert [(t.source, t.language) for t in found.tracks] == [("track 1", "en"), ("a.de.srt", "de")]
    assert len(found.skipped) == 1 and "a.srt" in found.skipped[0]
    assert found.tracks[0].cues[0] == Cue(1.0, 2.0, "Hello")


def test_videos_cut_off_give_what_is_there(tmp_path):
    path = film(tmp_path / "a.mkv", [("subrip", "eng", [(i / 10, i / 10 + 0.1, f"line {i}") for i in range(40)])])
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 100):
        path.write_bytes(data[:size])
        tracks, _ = subtitles.of_tracks(path)
        assert len(tracks) == 1 and all(cue.text.startswith("line") for cue in tracks[0].cues)
    path.write_bytes(b"no video at all")
    with pytest.raises(MediaError):
        subtitles.of_tracks(path)
