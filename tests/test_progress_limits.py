"""How often progress is told, and other moments and counts at their limits."""

import asyncio
import io
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from av.stream import Disposition
from made_videos import numbered
from PIL import Image
from test_budget import packed

import ivlite
from ivlite.cli.chat import terminal
from ivlite.cli.chat.lines import Lines
from ivlite.engine.meter import Meter
from ivlite.errors import ContextError, MediaError, SessionFileError
from ivlite.media import container, frames, memory, scan, stills
from ivlite.plan.speeds import Speeds
from ivlite.prompt.layout import Draft
from ivlite.session.packing import unpack
from ivlite.stop import Stop


def test_progress_of_a_scan_is_told_now_and_then(tmp_path):
    path, told = str(packed(tmp_path / "a.ts", 600, 25)), []
    scan.scan(path, "a", progress=lambda *args: told.append(args))
    size = os.path.getsize(path)
    assert len(told) == 4 and told[-1] == ("scan", size, size)  # after packets 0, 256 and 512, and at the end
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and told[0][1] < size / 10 < told[1][
        1
    ] < told[2][1]


@pytest.mark.parametrize(
    "running, ended, left", [(True, False, True), (True, True, False), (False, False, False), (False, True, False)]
)
def test_a_prompt_ends_with_its_stop_once(running, ended, left):
    """Not where the line was sent, or the terminal is gone, in the same moment."""
    started, ends, stop = [], [], Stop()
    app = SimpleNamespace(
        create_background_task=started.append,
        is_running=running,
        future=SimpleNamespace(done=lambda: ended),
        exit=lambda exception: ends.append(exception),
    )
    terminal.watch(app, stop)
    stop.set("terminated")
    asyncio.run(started[0])
    assert [error.reason for error in ends] == ["terminated"] * left


@pytest.mark.parametrize("times, interval", [(None, 0.5), ([3.0], 0.5), ([3.0, 7.0], 4.0), ([0.0, 1.0, 9.0], 4.5)])
def test_the_usual_distance_of_frames_with_times(times, interval):
    made = frames.clock(memory.Frames([1] * len(times or [1, 2]), times), 2.0)
    assert made.interval == interval and made.rate == (2.0 if times is None else None)


@pytest.mark.parametrize(
    "count, named", [(1 << 24, "positions"), ((1 << 24) + 1, "tokens"), (17, "tokens"), (18, "positions")]
)
def test_the_longest_conversation_of_a_file(count, named):
    """Its tokens are counted before anything of their number is made."""
    arrays = {
        "tokens": np.broadcast_to(np.int32(0), count),
        "positions": np.zeros((3, 1), np.int32),
        "spans": np.zeros((0, 3), np.int64),
    }
    damaged = SessionFileError
    file = SimpleNamespace(
        table=SimpleNamespace(
            meta={"messages": [], "media": [], "turns": [], "tail": "", "tools": []}, arrays=arrays, length=18
        ),
        damaged=damaged,
    )
    with pytest.raises(SessionFileError, match=named):
        unpack(file)


def stream(width, height, disposition=0, codec=True):
    return SimpleNamespace(
        codec_context=SimpleNamespace(width=width, height=height) if codec else None,
        disposition=Disposition(disposition),
    )


@pytest.mark.parametrize("streams, shown", [
    ([stream(64, 48), stream(640, 480)], 1), ([stream(640, 480), stream(64, 48, Disposition.default)], 1), ([stream(64, 48), stream(48, 64)], 0), ([stream(1, 1), stream(9, 9, Disposition.default, codec=False)], 0),
    ([stream(9, 9, Disposition.attached_pic), stream(1, 1)], 1), ([stream(9, 9, Disposition.timed_thumbnails | Disposition.default), stream(1, 1)], 1), ([stream(8, 8, Disposition.default), stream(4, 17, Disposition.default)], 1), ([stream(1, 1, codec=False)], 0),
])  # fmt: skip
def test_the_track_that_a_player_shows(streams, shown):
    found = SimpleNamespace(streams=SimpleNamespace(video=streams, audio=[]))
    assert container.pick(found, "a") is streams[shown]


@pytest.mark.parametrize("audio, words", [([1], "sound and no pictures"), ([], "no video stream")])
def test_files_without_pictures(audio, words):
    for video in ([], [stream(9, 9, Disposition.attached_pic)]):
        with pytest.raises(MediaError, match=words):
            container.pick(SimpleNamespace(streams=SimpleNamespace(video=video, audio=audio)), "a")


def test_a_context_that_holds_the_prompt_and_one_token():
    question = [{"role": "user", "content": "Hi"}]
    with ivlite.load("demo", threads=1) as model:
        tokens = len(model.prepare(question).token_ids)
    for room, fits in ((tokens + 1, True), (tokens, False)):
        with ivlite.load("demo", threads=1, context=room) as model:
            if fits:
                assert model.chat(question, temperature=0, max_new_tokens=9).usage["new_tokens"] <= 1
            else:
                with pytest.raises(ContextError, match=f"{tokens} tokens"):
                    model.chat(question, temperature=0, max_new_tokens=9)


def test_a_conversation_that_ends_with_an_answer_goes_on_after_it():
    """Its turns stay apart: the second can be taken back alone."""
    with ivlite.load("demo", threads=1) as model, model.session() as session:
        first = [{"role": "user", "content": "Hi"}]
        for number in (1, 2):
            answer = session.stream(first, temperature=0, max_new_tokens=3)
            for _ in answer:
                pass
            assert len(session.messages) == 1 + number
            before, first = first, list(session.messages)
        session.undo()
        assert list(session.messages) == before and len(before) == 2


def test_a_meter_begins_at_nothing():
    meter = Meter()
    assert set(meter.seconds.values()) == {0.0} and meter.drafted == meter.accepted == 0


def test_a_heic_file_is_read_from_its_beginning(monkeypatch):
    asked = []
    monkeypatch.setattr(
        stills, "heif_class", lambda what: lambda file, name: asked.append((file.tell(), name)) or "made"
    )
    for brand in (b"heic", b"mif1"):
        assert stills.identified(io.BytesIO(b"\0\0\0\x18ftyp" + brand + bytes(40)), "a") == "made"
    assert asked == [(0, "")] * 2
    with pytest.raises(Image.UnidentifiedImageError):
        stills.identified(io.BytesIO(b"\0\0\0\x18ftypqt  " + bytes(40)), "a")


@pytest.mark.parametrize(
    "estimated, firsts, cost",
    [
        (False, [0], (2.0, 3.0)),
        (True, [0], (2.0, 3.0)),
        (True, [2], (2.0, 0.0)),
        (False, [2], (0.0, 0.0)),
        (False, [1], (2.0, 3.0)),
    ],
)
def test_what_media_cost_of_which_nothing_is_left(estimated, firsts, cost):
    """Times that are not known yet are read all the same; frames that are held are not decoded."""
    asked = []
    probe = SimpleNamespace(
        estimated=estimated, cost=lambda chosen, size, measuring: asked.append(chosen.tolist()) or (2.0, 3.0)
    )
    medium = object()
    draft = SimpleNamespace(
        looking=0.0,
        measuring=0.0,
        videos=[SimpleNamespace(probe=probe, shape={"temporal": 2}, size=(64, 64))],
        opened=[medium],
    )
    laid = SimpleNamespace(media=[medium], frames=[[5, 6, 7, 8]], firsts=lambda held: firsts)
    scan, decode = Draft.cost(draft, laid)
    assert (scan - draft.measuring, decode) == (pytest.approx(cost[0]), cost[1]) and 0 <= draft.measuring < 60
    assert Draft.cost(draft, laid)[0] == pytest.approx(scan, abs=60)  # measured once
    del asked[1:]
    assert asked == ([] if cost == (0, 0) else [[7, 8]] if firsts == [1] else [[5, 6, 7, 8]])


@pytest.mark.parametrize("low, high, seeks", [
    (0, 1e9, [0, 60, 130, 190, 260, 320, 390, 450, 520, 580, 650, 710, 780, 840, 910, 980]), (0, 159, [0]), (155, 304, [150]), (5, 165, None), (300, 1e9, None),
])  # fmt: skip
def test_runs_of_a_long_range_that_are_read(monkeypatch, low, high, seeks):
    """Sixteen of them, the first and the last but one key frame included; a short range is read as a whole."""
    asked, cues = [], np.arange(0, 1000, 10)
    monkeypatch.setattr(scan, "read", lambda container, stream, until: until)
    container = SimpleNamespace(seek=lambda at, stream: asked.append(at))
    ends = list(scan.between(container, None, cues, low, high))
    begin, last = int(np.searchsorted(cues, low, "right")) - 1, int(np.searchsorted(cues, high, "right"))
    if seeks is not None:
        assert asked == seeks
    assert len(asked) == (1 if last - begin <= 16 else 16) and asked[0] == cues[begin]
    if len(asked) > 1:
        assert asked[-1] == cues[last - 2]
        packet = SimpleNamespace(is_keyframe=True, pts=asked[0] + 10)
        assert (
            ends[0](packet)
            and not ends[0](SimpleNamespace(is_keyframe=True, pts=asked[0] + 9))
            and not ends[0](SimpleNamespace(is_keyframe=False, pts=asked[0] + 10))
        )
    else:
        assert (
            not ends[0](SimpleNamespace(is_keyframe=True, pts=high))
            and ends[0](SimpleNamespace(is_keyframe=True, pts=high + 1))
            and ends[0](SimpleNamespace(is_keyframe=True, pts=None))
        )


@pytest.mark.parametrize("data, lines", [
    (b"\xef\xbb\xbfone\r\ntwo\n", ["one", "two"]), (b"one\n\xef\xbb\xbftwo", ["one", "\ufefftwo"]), (b"\n\n", ["", ""]), (b"", []), (b"a\xff\r\r\n", ["a\udcff\r"]), (b'"""a\nb"""\nc', ['"""a\nb"""', "c"]),
])  # fmt: skip
def test_lines_of_standard_input(monkeypatch, data, lines):
    """A byte order mark is one at the beginning alone."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with open(read, "rb", buffering=0) as file:
        monkeypatch.setattr(sys, "stdin", file)
        given = Lines()
        assert list(iter(given.read, None)) == lines


def test_an_index_of_a_codec_that_reorders_is_enough(tmp_path, monkeypatch):
    """Frames come later than they are decoded, and the packets are not read for that."""
    path = str(numbered(tmp_path / "a.mp4", 60, options={"bf": "3"}))
    whole = scan.scan(path, "a")
    monkeypatch.setattr(scan, "read", lambda *_: pytest.fail("packets are read"))
    times = scan.indexed(path, "a")
    assert len(times.times) == 60 and times.pts.tolist() == whole.pts.tolist() and times.rate == 25.0


def test_images_of_a_plan_are_counted():
    image, video = (
        {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)},
        {"type": "video", "video": [np.zeros((64, 64, 3), np.uint8)] * 4, "fps": 2},
    )
    with ivlite.load("demo", threads=1) as model:
        model._planning()._speeds = Speeds(*[1e-6] * 7)
        for parts, count in (([image, image, video], 2), ([video], 0), ([image], 1), ([], 0)):
            made = model.plan([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}])
            assert made.images == count and len(made.videos) == sum(part is video for part in parts)
