"""What a library learns of a video, with a fake engine and a fake model: once, in parts, and again where it has changed."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from ivlite import media
from ivlite.errors import Stopped
from ivlite.library import Library, indexing
from ivlite.media.cues import Cue
from ivlite.media.scenes import Scenes

CLIP = Path(__file__).parents[1] / "examples" / "clip.mp4"
SRT = "1\n00:00:01,000 --> 00:00:02,000\n{}\n"


@pytest.fixture
def library(tmp_path):
    with Library.open(tmp_path / "library.sqlite") as library:
        yield library


@pytest.fixture
def clip(tmp_path):
    shutil.copy(CLIP, tmp_path / "clip.mp4")
    return tmp_path / "clip.mp4"


class Seen:
    """A captioner that says where it looked, and stops after some looks."""

    name, together = "fake", 2

    def __init__(self, most=10**6):
        self.looks, self.most = [], most

    def captions(self, source, spans):
        assert 1 <= len(spans) <= self.together
        for i, (start, end) in reversed(list(enumerate(spans))):
            if len(self.looks) == self.most:
                raise Stopped.because("deadline")
            self.looks.append((start, end))
            yield i, self.said(start)

    def said(self, start):
        return f"seen at {start:g}"


def read(library, path, **more):
    probe = media.probe(path, fps=2)
    return indexing.texts(library, path, probe, **more), probe


def test_subtitles_are_read_once(library, clip, monkeypatch):
    (clip.parent / "clip.en.srt").write_text(SRT.format("a red truck"))
    done, _ = read(library, clip)
    assert (done.cues, done.new, done.first) == ({"subtitle": 1}, 1, True)
    monkeypatch.setattr(indexing.subtitles, "of_tracks", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(indexing.subtitles, "read", lambda *_: pytest.fail("read again"))
    done, _ = read(library, clip)
    assert (done.cues, done.new, done.first) == ({"subtitle": 1}, 0, False)
    (hit,) = library.search("truck")
    assert (hit.start, hit.end, hit.kind) == (1, 2, "subtitle")


def test_files_beside_a_video_may_change_and_go(library, clip):
    file = clip.parent / "clip.srt"
    file.write_text(SRT.format("one"))
    read(library, clip)
    file.write_text(SRT.format("two"))
    (clip.parent / "clip.de.srt").write_text(SRT.format("drei"))
    done, _ = read(library, clip)
    assert done.new == 2 and sorted(hit.text for hit in library.texts(done.id)) == ["drei", "two"]
    file.unlink()
    assert read(library, clip)[0].cues == {"subtitle": 1}
    moved = clip.rename(clip.parent / "other.mp4")  # without its files: what was read of them stays
    assert read(library, moved)[0].cues == {"subtitle": 1}


def test_files_that_cannot_be_read_are_said(library, clip):
    (clip.parent / "clip.srt").write_bytes(b"\0\1\2" * 100)
    (clip.parent / "clip.en.srt").write_text(SRT.format("fine"))
    done, _ = read(library, clip)
    assert done.cues == {"subtitle": 1} and len(done.notes) == 1 and "clip.srt" in done.notes[0]


def test_images_have_no_subtitles_and_no_warnings(library, tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    pictures = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    pictures[0].save(tmp_path / "b.webp", save_all=True, append_images=pictures[1:], duration=500)
    for name in ("a.png", "b.webp"):
        done, probe = read(library, tmp_path / name)
        assert (done.notes, done.cues, done.first) == ([], {}, True)
        list(indexing.captions(library, done, probe, Seen()))
        assert done.captioned == done.segments == 1


def test_speech_is_written_down_once_per_engine(library, clip, monkeypatch):
    class Fake:
        name = "ggml-tiny.bin"

    calls = []

    def transcribe(path, engine, duration, progress):
        calls.append(engine.name)
        return (Cue(1.0, 2.0, "hello there"),)

    monkeypatch.setattr(indexing.speech, "transcribe", transcribe)
    for _ in range(2):
        done, _ = read(library, clip, engine=Fake())
    assert calls == ["ggml-tiny.bin"] and done.cues == {"speech": 1}
    assert library.search("hello")[0].kind == "speech"


def test_a_changed_video_is_read_anew_and_said(library, clip):
    (clip.parent / "clip.srt").write_text(SRT.format("one"))
    first, _ = read(library, clip)
    data = bytearray(clip.read_bytes())
    clip.write_bytes(data + b"\0\0\0\x08free")
    second, _ = read(library, clip)
    assert second.id != first.id and "has changed" in second.notes[0] and second.cues == {"subtitle": 1}
    assert read(library, clip)[0].notes == []


@pytest.fixture
def segmented(monkeypatch):
    monkeypatch.setattr(
        indexing, "scenes", lambda probe, progress: Scenes(tuple((float(i), i + 1.0) for i in range(8)), 0.5, 7)
    )


def test_captions_go_on_where_they_were(library, clip, segmented):
    done, probe = read(library, clip)
    model = Seen(3)
    with pytest.raises(Stopped):
        list(indexing.captions(library, done, probe, model))
    assert (done.segments, done.captioned) == (8, 3)
    assert model.looks == [(4, 5), (0, 1), (6, 7)]  # spread over the video
    rest, seen = Seen(), []
    again, probe = read(library, clip)
    list(indexing.captions(library, again, probe, rest, progress=lambda *state: seen.append(state)))
    assert (again.segments, again.captioned, again.new) == (8, 8, 5) and not set(rest.looks) & set(model.looks)
    assert seen[0] == ("caption", 0, 5) and seen[-1] == ("caption", 5, 5)
    last, probe = read(library, clip)
    list(indexing.captions(library, last, probe, Seen(0)))
    assert (last.captioned, last.new) == (8, 0)
    assert [hit.text for hit in library.texts(done.id, ["caption"])] == [f"seen at {i}" for i in range(8)]
    list(indexing.captions(library, last, probe, Seen(), again=True))
    assert last.new == 8 and len(library.texts(done.id, ["caption"])) == 8


def test_what_shows_nothing_to_say_is_not_asked_again(library, clip, segmented):
    class Silent(Seen):
        def said(self, start):
            return " \n"

    done, probe = read(library, clip)
    list(indexing.captions(library, done, probe, Silent()))
    done, probe = read(library, clip)
    list(indexing.captions(library, done, probe, Seen(0)))
    assert done.captioned == 8 and library.texts(done.id) == []


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 100])
def test_any_first_few_are_spread_evenly(count):
    order = indexing.spread(range(count))
    assert sorted(order) == list(range(count))
    for n in range(2, count + 1):
        edges = [0, *sorted(order[:n]), count]
        assert max(b - a for a, b in zip(edges, edges[1:], strict=False)) <= 2 * (2 * count / n)
