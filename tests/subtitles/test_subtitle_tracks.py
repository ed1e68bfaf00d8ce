"""Subtitles of a video: the files beside it, and its own tracks."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from subtitle_rows import SRT, rows

from ivlite.errors import MediaError
from ivlite.media import subtitles
from ivlite.media.cues import Cue


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
