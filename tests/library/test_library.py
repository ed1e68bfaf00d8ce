"""The library: videos by their content, their texts, segments and notes, and runs."""

import os
import sqlite3

import pytest
from library_files import cues, found

from ivlite.errors import MediaError, UsageError
from ivlite.library import Library, Step


def test_a_video_is_known_by_its_content(library, clip, tmp_path):
    first = library.add_video(clip(), duration=60, title="one")
    assert library.add_video(clip("copy.mp4"), duration=60.5) == first  # the same content under another name
    video = library.find(tmp_path / "a.mp4")
    assert (video.id, video.path, video.duration, video.meta) == (
        first,
        str(tmp_path / "copy.mp4"),
        60.5,
        {"title": "one"},
    )
    assert library.find(clip("other.mp4", b"others")) is None
    assert [v.id for v in library.videos()] == [first]
    with pytest.raises(MediaError):
        library.add_video(tmp_path / "gone.mp4")
    with pytest.raises(UsageError):
        library.video(99)


def test_the_memory_of_a_changed_video_is_kept_and_not_used(library, clip):
    path = clip()
    first = library.add_video(path, duration=60)
    library.add_texts(first, "subtitle", cues("an old line"), "a.srt")
    assert not library.changed(path)
    clip(content=b"another film")
    assert library.changed(path) and library.find(path) is None
    second = library.add_video(path, duration=70)
    assert second != first and not library.changed(path)
    assert found(library, "old line", videos=[second]) == [] and found(library, "old line", videos=[first]) == [
        "an old line"
    ]
    assert found(library, "old line") == [] and [video.id for video in library.current()] == [second]
    clip()  # the old file is back
    assert library.find(path).id == first
    library.add_video(path, duration=60)
    assert found(library, "old line") == ["an old line"] and [video.id for video in library.current()] == [first]


def test_names_that_are_no_text_come_back(library, tmp_path):
    name = os.fsdecode(b"caf\xe9 \n\xff.mp4")
    (tmp_path / name).write_bytes(b"x")
    library.add_video(tmp_path / name, title="\udcff")
    assert library.videos()[0].path == str(tmp_path / name)


def test_texts_of_a_source_replace_its_earlier_ones(library, clip):
    video = library.add_video(clip())
    assert library.add_texts(video, "subtitle", cues("one", "two", " \n "), "a.srt", "m1", language="en") == 2
    library.add_texts(video, "subtitle", cues("three"), "b.srt", "m2")
    library.add_texts(video, "subtitle", cues("four"), "a.srt", "m3")
    assert (
        library.sources(video, "subtitle") == {"a.srt": "m3", "b.srt": "m2"} and library.sources(video, "speech") == {}
    )
    assert sorted(hit.text for hit in library.texts(video)) == ["four", "three"]
    assert found(library, "one") == [] and found(library, "four") == ["four"]
    library.forget_texts(video, "subtitle", "b.srt")
    assert [hit.text for hit in library.texts(video)] == ["four"]
    with pytest.raises(UsageError, match="subtitle, speech"):
        library.add_texts(video, "song", [], "x")


def test_segments_and_captions(library, clip):
    video = library.add_video(clip())
    segments = library.add_segments(video, [(0, 10), (10, 25.5)])
    assert [(s.start, s.end, s.maker) for s in segments] == [(0, 10, None), (10, 25.5, None)]
    assert library.add_segments(video, [(0, 99)]) == segments  # those that are there stay
    library.caption(segments[0], video, "a dog\nruns", "m")
    library.caption(segments[1], video, "", "m")
    assert [(s.maker, s.caption) for s in library.segments(video)] == [("m", "a dog runs"), ("m", "")]
    library.caption(segments[0], video, "a cat", "n")
    assert found(library, "dog") == [] and found(library, "cat", kinds=["caption"]) == ["a cat"]


def test_notes_are_searched_and_kept_once(library, clip):
    video = library.add_video(clip())
    note = library.note(video, "the truck is red", ["E1", "E3"], start=3, end=5, run="r")
    assert library.note(video, "the truck is red", ["E9"], start=3, end=5) == note
    (hit,) = library.search("red truck")
    assert (hit.id, hit.kind, hit.start, hit.end, hit.score) == (note, "note", 3, 5, 1.0)
    with pytest.raises(UsageError, match="empty"):
        library.note(video, " \n")


def test_a_forgotten_video_leaves_nothing(library, clip, path):
    video = library.add_video(clip())
    library.add_texts(video, "subtitle", cues("one"), "a.srt")
    library.caption(library.add_segments(video, [(0, 1)])[0], video, "two", "m")
    library.note(video, "three")
    run = library.begin_run("why?")
    library.step(run, 1, "call", {}, [{"id": "E1", "video": video, "start": 0, "end": 1, "kind": "frames"}])
    library.forget(video)
    assert not any(found(library, query) for query in ("one", "two", "three"))
    assert library.evidence(run)[0]["video"] is None
    with sqlite3.connect(path) as other:
        for table in ("video", "segment", "source", "text", "note"):
            assert other.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


# ------------------------------------------------------------------------------------------------ runs


def test_runs_go_on_after_their_last_step(path, clip):
    with Library.open(path) as library:
        video = library.add_video(clip())
        run = library.begin_run("Who wins?\ud800", videos=["a.mp4"], budget={"rounds": 12})
        library.step(run, 1, "call", {"name": "watch"}, [
            {"id": "E1", "video": video, "start": 1, "end": 2, "kind": "frames", "frames": [1.0, 1.5]}, {"id": "E10", "start": 0, "end": 0, "kind": "x"},
        ])  # fmt: skip
        library.step(
            run,
            2,
            "call",
            {"name": "look", "path": "\udcff"},
            [{"id": "E2", "video": video, "start": 3, "end": 3, "kind": "text"}],
        )
        library.step(run, 2, "call", {"name": "again"})
    with Library.open(path) as library:
        found = library.run(run[:4])
        assert (found.id, found.question, found.state, found.data["budget"]) == (
            run,
            "Who wins??",
            "running",
            {"rounds": 12},
        )
        assert found.steps == (Step(1, "call", {"name": "watch"}), Step(2, "call", {"name": "again"}))
        evidence = library.evidence(run)
        assert [item["id"] for item in evidence] == ["E1", "E2", "E10"] and evidence[0]["frames"] == [1.0, 1.5]
        other = library.begin_run("And now?")
        assert library.run().id == other and [r.id for r in library.runs()] == [other, run]
        library.end_run(run, answer="red")
        assert library.run(run).state == "done" and library.run().data["answer"] == "red"
        assert [r.id for r in library.runs(state="running")] == [other]
        for wrong in ("", "zz"):
            with pytest.raises(UsageError):
                library.run(wrong)
        with pytest.raises(UsageError, match="plain data"):
            library.step(run, 3, "call", {"x": object()})
        with pytest.raises(UsageError, match="plain data"):
            library.step(run, 3, "call", float("nan"))
