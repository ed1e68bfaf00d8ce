"""TTML and DFXP: every form of times, structures, and damage that costs a cue and not the file."""

import random
import time

import pytest
from subtitle_rows import SRT, rows

from ivlite.media import subtitles, ttml

NAMESPACE = 'xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="http://www.w3.org/ns/ttml#parameter" xmlns:tts="http://www.w3.org/ns/ttml#styling"'


def file(body, head="", declaration='<?xml version="1.0" encoding="UTF-8"?>\n', names=NAMESPACE, prefix=""):
    tt = f"{prefix}tt"
    return f"{declaration}<{tt} {names} {head}>\n<head><metadata><title>a</title></metadata></head>\n{body}\n</{tt}>\n"


def cues(*paragraphs, **more):
    return file("<body><div>\n" + "\n".join(paragraphs) + "\n</div></body>", **more)


def plain(begin, end, text="Hi"):
    return f'<p begin="{begin}" end="{end}">{text}</p>'


TIMES = (  # attributes of <tt>, begin, end, and their seconds
    ("", "00:00:01.000", "00:00:02.5", (1, 2.5)), ("", "00:00:01,000", "01:00:00", (1, 3600)), ("", "1.5s", "2500ms", (1.5, 2.5)),
    ("", "1h", "61m", (3600, 3660)), ("", "1.5", "2", (1.5, 2)), ("", "00:01", "00:02.25", (1, 2.25)),
    ('ttp:tickRate="10000000"', "10000000t", "80000000t", (1, 8)), ("", "1t", "3t", (1, 3)), ('ttp:frameRate="25"', "25t", "75t", (1, 3)),
    ('ttp:frameRate="25"', "00:00:10:12", "00:00:11:00", (10.48, 11)), ('ttp:frameRate="25"', "25f", "50f", (1, 2)),
    ('ttp:frameRate="24" ttp:frameRateMultiplier="1000 1001"', "24f", "00:00:10:12", (1.001, 10.5005)),
    ('ttp:frameRate="24" ttp:frameRateMultiplier="1000:1001"', "48f", "72f", (2.002, 3.003)),
    ("", "30f", "00:00:02:15", (1, 2.5)), ('ttp:frameRate="0" ttp:tickRate="x"', "30f", "3t", (1, 3)),
    ('ttp:frameRateMultiplier="1 0"', "30f", "60f", (1, 2)), ("ttp:tickRate='10'", "10t", "20t", (1, 2)),
)  # fmt: skip


@pytest.mark.parametrize(("head", "begin", "end", "wanted"), TIMES)
def test_times_of_every_form(write, head, begin, end, wanted):
    found = subtitles.read(write("a.ttml", cues(plain(begin, end), head=head)))
    assert [(c.start, c.end) for c in found.cues] == [pytest.approx(wanted, abs=1e-3)] and not found.notes


def test_frames_are_those_of_the_video_where_the_file_does_not_say(write):
    assert rows(subtitles.read(write("a.ttml", cues(plain("50f", "00:00:02:25"))), rate=50)) == [(1, 2.5, "Hi")]


STRUCTURES = {
    "dur": ('<p begin="1s" dur="1.5s">Hi</p>', [(1, 2.5, "Hi")]),
    "dur and end": ('<p begin="1s" dur="5s" end="3s">Hi</p>', [(1, 3, "Hi")]),
    "end alone": ('<p end="3s">Hi</p>', [(0, 3, "Hi")]),
    "no end": ('<p begin="1s">Hi</p>', [(1, 2, "Hi")]),
    "single quotes": ("<p\n begin='1s'\n\tend = '2s' >Hi</p >", [(1, 2, "Hi")]),
    "markup": ('<p begin="1s" end="2s">a <span tts:color="red">b</span><br/>c &amp; d&#233;<br></br>e\n   f</p>', [(1, 2, "a b c & dé e f")]),
    "ids": ('<p xml:id="x" tts:begin="9s" begin="1s" region="end" end="2s">Hi</p>', [(1, 2, "Hi")]),
    "hidden": ('<p begin="1s" end="2s"><metadata><ttm:desc>no</ttm:desc></metadata>Hi</p>', [(1, 2, "Hi")]),
    "comment": ('<!-- <p begin="1s" end="2s">no</p> --><p begin="1s" end="2s">H<!-- > -->i</p><!--x-->', [(1, 2, "Hi")]),
    "cdata": ('<p begin="1s" end="2s"><![CDATA[Hi & co]]></p>', [(1, 2, "Hi & co")]),
    "spans": ('<p><span begin="1s" end="2s">a</span> <span begin="2s" dur="1s">b <i>c</i></span></p>', [(1, 2, "a"), (2, 3, "b c")]),
    "spans within times": ('<p begin="1s" end="3s">a <span begin="0s" end="1s">b</span> c</p>', [(1, 3, "a b c")]),
    "empty": ('<p/><p></p><p begin="1s" end="2s">Hi</p>', [(1, 2, "Hi")]),
    "around": ('<div begin="10s"><div begin="5s"><p begin="1s" end="2s">a</p></div><p begin="1s" end="2s">b</p></div><p begin="1s" end="2s">c</p>',
               [(1, 2, "c"), (11, 12, "b"), (16, 17, "a")]),
    "inherited": ('<div begin="10s" end="12s"><p>a</p></div>', [(10, 12, "a")]),
}  # fmt: skip


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(write, name):
    body, wanted = STRUCTURES[name]
    assert rows(subtitles.read(write("a.dfxp", cues(body)))) == wanted


def test_times_of_the_body_are_added(write):
    text = file('<body begin="1h"><div>' + plain("1s", "2s") + "</div></body>")
    assert rows(subtitles.read(write("a.ttml", text))) == [(3601, 3602, "Hi")]


@pytest.mark.parametrize("names", [
    "", 'xmlns="http://www.w3.org/2006/10/ttaf1"', 'xmlns="http://www.w3.org/2006/04/ttaf1" xmlns:ttp="x"', NAMESPACE, "xmlns:tt='undeclared",
])  # fmt: skip
def test_any_namespace(write, names):
    assert rows(subtitles.read(write("a.dfxp", cues(plain("1s", "2s"), names=names)))) == [(1, 2, "Hi")]


def test_any_prefix(write):
    body = '<tt:body><tt:div><tt:p begin="1s" end="2s">Hi<tt:br/>x</tt:p></tt:div></tt:body>'
    assert rows(subtitles.read(write("a.ttml", file(body, prefix="tt:")))) == [(1, 2, "Hi x")]


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_any_unicode_with_its_declaration(write, codec):
    text = cues(plain("1s", "2s", "Grüße 你好"), declaration='<?xml version="1.0" encoding="UTF-16"?>')
    assert rows(subtitles.read(write("a.ttml", text.encode(codec)))) == [(1, 2, "Grüße 你好")]


DAMAGE = (
    '<p begin="xx" end="2s">bad</p>', '<p begin="00:00:0', '<p begin="5s" end="6s">& < "</p', "</div></div></span>", "<p>no time</p>", "\ufffd\ufffd<",
    '<p begin="5s" end="xx">bad</p>', "<span></i>", "&nothing;", '<p begin="99999999999999999h" end="6s">bad</p>', "<p <p <p",
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_costs_a_cue_and_not_the_file(write, damage):
    text = cues(plain("1s", "2s", "a"), damage, plain("10s", "11s", "b"), plain("12s", "13s", "c"))
    found = rows(subtitles.read(write("a.ttml", text)))
    assert found[0] == (1, 2, "a") and (12, 13, "c") in found and len(found) <= 4
    assert (10, 11, "b") in found or "<p" in damage


def test_a_file_cut_off_gives_what_is_there(write):
    text = cues(*(plain(f"{i}s", f"{i}.5s", f"line {i}") for i in range(100)))
    for share in (0.3, 0.5, 0.77, 0.9):
        size = int(len(text) * share)
        found = rows(subtitles.read(write("a.ttml", text[:size])))
        whole = text[:size].count("</p>")
        assert whole <= len(found) <= whole + 1 and found[:whole] == [(i, i + 0.5, f"line {i}") for i in range(whole)]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_tags_may_go_over_lines(size):
    text = cues(*(plain(f"{i}s", f"{i}.5s", f"a<br/>{i}") for i in range(50)), "<!-- <p begin='0s' end='9s'>no</p> -->")
    found = list(ttml.cues(text[i : i + size] for i in range(0, len(text), size)))
    assert found == [(i, i + 0.5, f"a\n{i}") for i in range(50)]


@pytest.mark.parametrize("text, notes", [
    (cues(), "gives 0 cues"), (cues('<p begin="1s" end="2s"><image/></p>'), "gives 0 cues; it has 1 without text"),
    (cues('<p begin="x">Hi</p>'), "gives 0 cues; it has 1 without a time that can be read"), ("WEBVTT\n\nnothing\n", "gives 0 cues"),
])  # fmt: skip
def test_a_file_without_cues_says_so(write, text, notes):
    found = subtitles.read(write("a.ttml", text))
    assert not found.cues and len(found.notes) == 1 and notes in found.notes[0]


HOSTILE = (
    "<", "<p ", "<p>", "<p begin='1s'>", "<p begin=", "<p begin='", "<!--", "<!-- -->", "<![CDATA[", "a", "a=", "a='", "a=\"b'", " ", "&amp;", "<br/>",
    "<span begin='1s'>", "</span>", "<b>", "</i>", "<div begin='1s'>", "</div>", "<tt>", "<x:", "a:", "<p\n", "\n", "1:", "<span begin='1s'>x</span>y",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_files_are_read_in_linear_time(piece):
    """A megabyte takes a second or so; with the square of its length it would take minutes."""
    began = time.process_time()
    for start in ("<tt><p begin='1s' end='2s'>", "<tt><p ", "<tt><p><span>"):
        text = start + piece * ((1 << 20) // 3 // len(piece))
        lines = (
            text.splitlines(keepends=True) if "\n" in piece else [text[i : i + 8192] for i in range(0, len(text), 8192)]
        )
        for _, _, said in ttml.cues(lines):
            assert len(said) < 1 << 20
    assert time.process_time() - began < 20


def test_mutations_never_fail(write):
    chance = random.Random(5)
    seed = cues(
        *(body for body, _ in STRUCTURES.values()), plain("00:00:10:12", "80000000t"), head='ttp:frameRate="25"'
    )
    for _ in range(300):
        data = bytearray(seed.encode())
        for _ in range(chance.randrange(1, 12)):
            at = chance.randrange(seed.index("<head>"), len(data))
            data[at : at + chance.randrange(30)] = chance.choice(
                [b"", b"<", b">", b'"', b"\xff", b"<p ", b"</p>", b"9" * 30, b"<!--", b"\0"]
            )
        found = subtitles.read(write("a.ttml", bytes(data)), duration=100)
        assert all(0 <= cue.start <= cue.end <= 100 and cue.text.strip() for cue in found.cues)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("gap", ["", "\n"])
def test_files_that_were_joined(write, codec, gap):
    """The mark that begins the second file is no part of a cue before it."""
    later = SRT.format("c", "d").replace("00:00:0", "00:01:0")
    found = subtitles.read(write("a.srt", (SRT.format("a", "b") + gap).encode(codec) + later.encode(codec)))
    assert [cue.text for cue in found.cues] == ["a", "b", "c", "d"]
    vtt = "WEBVTT\n\nx\n00:0{}.000 --> 00:0{}.500\n{}\n"
    both = (vtt.format(1, 1, "a") + gap).encode(codec) + vtt.format(2, 2, "b").encode(codec)
    assert rows(subtitles.read(write("a.vtt", both))) == [(1, 1.5, "a"), (2, 2.5, "b")]
    micro = "{10}{20}a\n".encode(codec) + "{30}{40}b\n".encode(codec)
    assert rows(subtitles.read(write("a.sub", micro), rate=10)) == [(1, 2, "a"), (3, 4, "b")]
