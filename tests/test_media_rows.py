"""Faults of long videos, sessions and machines, by the rows of the fault table: where the tests of each are, and those here.

row  what                                      tests
34   a video beyond the context                test_plan_contexts: test_what_is_stated_and_does_not_fit_is_refused_with_what_does
                                               test_budget: test_prompt_and_answer_fit_the_room
35   a text beyond the context                 test_plan_contexts: test_a_megabyte_of_text_is_refused_with_both_counts
36   an answer that uses the context up        test_plan_contexts: test_an_answer_that_uses_the_context_up_keeps_its_text
                                               test_session_ends: test_a_full_context_says_so
37   endless repetition                        test_speculation: test_an_endless_answer_ends
38   missing, empty, a text                    test_media_faults: test_bad_videos_are_a_sentence
39   an mp4 without its index                  test_media_faults: test_any_cut_is_a_video_or_a_sentence
40   cut off, but decodable                    test_media_faults: test_a_video_cut_off_is_used_as_far_as_it_goes
                                               test_media_faults: test_the_end_of_a_video_cut_off_is_what_can_be_decoded
41   damage in the middle                      test_media_faults: test_a_damaged_video_gives_every_pair_and_says_so
42   a stream without frames                   test_media_rows: test_row_42_a_stream_without_frames
43   sound alone                               test_media_rows: test_rows_43_and_44_cover_art_is_no_video
44   cover art                                 test_media_rows: test_rows_43_and_44_cover_art_is_no_video
45   one frame, shorter than a sampling step   test_media: test_videos_of_few_frames
46   a rate that varies                        test_time: test_every_frame_is_at_its_true_time
                                               test_time: test_samples_are_laid_over_time
47   a start that is not 0, times that wrap    test_media_rows: test_row_47_time_begins_at_the_first_frame
                                               test_time: test_time_stamps_that_wrap
48   turned, mirrored, pixels that are oblong  test_media: test_turned_videos_stand_upright
                                               test_display: test_pixels_that_are_not_square
49   HDR, ranges, matrices                     test_display: test_hdr_videos_are_tone_mapped
                                               test_display: test_matrices_and_ranges_are_those_of_the_tags
50   8K, far too large, odd sizes              test_media_rows: test_row_50_above_the_limit_is_refused_before_it_is_decoded
                                               test_media: test_odd_sizes
51   24 hours                                  test_media_rows: test_row_51_a_day_is_planned_from_its_index
                                               test_budget: test_the_demo_takes_anything_from_a_frame_to_a_day
52   several tracks, sizes that change         test_containers: test_the_largest_track_is_taken_and_any_other_on_demand
                                               test_seeking: test_a_size_that_changes_in_the_middle
70   a video that changed since it was seen    test_store: test_a_video_that_changed_is_not_used_and_it_is_said
                                               test_reuse: test_a_video_that_changes_while_it_is_read_is_not_reused
71   a full disk while a session is saved      test_session_file_faults: test_a_full_disk_keeps_the_older_state
                                               cli/test_chat: test_a_disk_that_is_full_costs_no_answer
                                               cli/test_stored_answers: test_a_full_disk
78   clocks, time zones, comma decimals        cli/test_locales: test_what_run_says
                                               cli/test_stored_answers: test_a_clock_that_jumps
79   no HOME, one that is read-only or full    cli/test_stored_answers: test_without_a_home
                                               cli/test_chat_terminal: test_without_a_home
"""

import os
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from made_videos import bits, numbered, opened, paired, said
from test_time import timed

from ivlite.errors import MediaError
from ivlite.media import lanes, scan


def test_every_row_names_tests_that_are_there():
    named = re.findall(r"([\w/]+): (test_\w+)", __doc__)
    assert len(named) > 30 and len(re.findall(r"^\d\d ", __doc__, re.MULTILINE)) == 23
    for file, test in named:
        assert f"def {test}(" in (Path(__file__).parent / f"{file}.py").read_text(), (file, test)


def test_row_42_a_stream_without_frames(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    with pytest.raises(MediaError, match="a.mp4") as caught:
        opened(tmp_path / "a.mp4")
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def with_cover(path):
    """Sound, and a picture of its record."""
    with av.open(str(path), "w", format="mp4") as out:
        heard, cover = out.add_stream("aac", rate=8000), out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        out.mux(cover.encode(av.VideoFrame.from_ndarray(bits(1), format="rgb24")))
        out.mux(cover.encode())
        out.mux([*heard.encode(frame), *heard.encode()])


def test_rows_43_and_44_cover_art_is_no_video(tmp_path):
    with_cover(tmp_path / "a.m4a")
    with pytest.raises(MediaError, match="sound and no pictures"):
        opened(tmp_path / "a.m4a")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
@pytest.mark.parametrize("begin", [-900, 0, 3_600_000])
def test_row_47_time_begins_at_the_first_frame(tmp_path, name, begin):
    """Frames before 0 are not shown in an mp4: its edit list cuts them away."""
    moments = [begin + 40 * i for i in range(60)]
    medium = opened(timed(tmp_path / name, moments, codec="libx264", bf=2), fps=5)
    first = 23 if begin < 0 and name in ("a.mp4", "a.mov") else 0
    assert len(medium.times.times) == 60 - first and medium.times.times[0] == 0 and medium.warnings == []
    assert [said(f) - first for p in medium.pairs() for f in p] == paired(medium.frames)


def test_row_50_above_the_limit_is_refused_before_it_is_decoded(tmp_path):
    """A header that says 16000 x 16000: nothing of that size is allocated."""
    path = numbered(tmp_path / "a.mkv", 3, codec="ffv1", pix_fmt="bgr0")
    data = path.read_bytes()
    for tag, size in ((b"\xb0", 64), (b"\xba", 48)):
        for old in (tag + b"\x81" + bytes([size]), tag + b"\x82" + struct.pack(">H", size)):
            if old in data:
                data = data.replace(
                    old, tag + (b"\x81\xff" if len(old) == 3 else b"\x82" + struct.pack(">H", 16000)), 1
                )
    path.write_bytes(data)
    try:
        assert len(list(opened(path).pairs())) == 2
    except MediaError as error:
        assert "a.mkv" in str(error)


def test_row_50_8k_is_scaled(tmp_path):
    medium = opened(
        numbered(tmp_path / "a.mkv", 2, size=(4320, 7680), codec="mjpeg", pix_fmt="yuvj420p"), max_pixels=1 << 16
    )
    assert [said(f) for p in medium.pairs() for f in p] == [0, 1] and medium.size[0] * medium.size[1] <= 1 << 16


# ------------------------------------------------------------------------------------------------ 24 hours


def day(path, hours, gop=60):
    """A long recording, one frame a second, in which every second shows its number in its minute; muxed, hardly encoded."""
    piece = numbered(path.with_name("piece.mp4"), gop, rate=1, options={"x264-params": f"bframes=2:keyint={gop}"})
    with av.open(str(piece)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        made = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in source.demux(stream) if p.size]
        copy, second = out.add_stream_from_template(stream), int(1 / stream.time_base)
        for n in range(hours * 3600 // gop):
            for data, pts, dts, key in made:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + n * gop * second, dts + n * gop * second
                packet.duration, packet.time_base, packet.is_keyframe, packet.stream = (
                    second,
                    stream.time_base,
                    key,
                    copy,
                )
                out.mux(packet)
    return path


def test_row_51_a_day_is_planned_from_its_index(tmp_path, monkeypatch):
    path = day(tmp_path / "day.mp4", 24)
    monkeypatch.setattr(scan, "read", None)  # packets
    medium = opened(path, fps=1, max_frames=40)
    assert medium.duration == 86400 and len(medium.times.times) == 86400 and medium.times.rate == 1
    assert [said(f) for p in medium.pairs() for f in p] == [i % 60 for i in medium.frames]
    assert medium.frames[-1] == 86399 and not medium.warnings


def test_row_51_the_table_of_an_mp4_is_ffmpegs(tmp_path, monkeypatch):
    """What is read with numpy is what FFmpeg lists, and what it lists is taken where they differ."""
    path = numbered(tmp_path / "a.mp4", 200, options={"bf": "3"}, gop=30)
    first = scan.scan(str(path), "it")
    asked, plain = [], scan.listed
    monkeypatch.setattr(scan, "listed", lambda *args: asked.append(True) or plain(*args))
    scan.scan(str(path), "it")
    assert not asked
    monkeypatch.setattr(scan, "agree", lambda *args: False)
    second = scan.scan(str(path), "it")
    assert asked and np.array_equal(first.times, second.times) and np.array_equal(first.pts, second.pts)
    assert np.array_equal(first.keys, second.keys)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_row_51_a_scan_tells_how_far_it_is(tmp_path, name):
    path = day(tmp_path / name, 1)
    seen = []
    times = scan.scan(str(path), "it", progress=lambda *said: seen.append(said))
    size = os.path.getsize(path)
    assert len(times.times) == 3600 and len(seen) > 10
    assert seen[-1] == ("scan", size, size) and [s[1] for s in seen] == sorted(s[1] for s in seen)


@pytest.mark.parametrize("start, end", [(None, None), (1000, None), (None, 3000), (600, 660)])
def test_row_51_a_large_matroska_file_is_planned_from_its_cues(tmp_path, monkeypatch, start, end):
    path = day(tmp_path / "a.mkv", 1)
    whole = scan.scan(str(path), "it")
    monkeypatch.setattr(scan, "LARGE", 1)
    packets, plain = [], scan.read
    monkeypatch.setattr(scan, "read", lambda *args: packets.append(plain(*args)) or packets[-1])
    times = scan.indexed(str(path), "it", None, start, end)
    assert times.rate == whole.rate == 1 and np.array_equal(times.pts, whole.pts) and times.duration == whole.duration
    assert sum(len(p.pts) for p in packets) < 0.35 * 3600
    medium = opened(path, nframes=11, start=start, end=end)
    assert [said(f) for p in medium.pairs() for f in p] == [
        i % 60 for i in paired(medium.frames)
    ] and not medium.warnings


def test_memory_of_decoders_is_bounded(monkeypatch):
    """One decoder for a day of frames or for pictures of 8K, and one thread that resizes those; several for small ones."""
    used = []
    monkeypatch.setattr(lanes, "processors", lambda: 16)

    def kept(name):
        def run(*args):
            used.append((name, args[-1]))
            yield from ()

        return run

    monkeypatch.setattr(lanes, "side_by_side", kept("apart"))
    monkeypatch.setattr(lanes, "in_one", kept("one"))

    class Times:
        seekable = True
        keys = np.arange(0, 1000, 10)

    for shape, frames in (((240, 320), 10**4), ((1080, 1920), 10**4), ((240, 320), 10**7), ((4320, 7680), 10**4)):
        Times.times = np.empty(frames)
        list(lanes.pictures(("", "", None), Times, list(range(0, 1000, 20)), None, shape, (256, 480)))
    list(lanes.pictures(("", "", None), Times, list(range(1000)), None, (240, 320), (256, 480)))
    assert [lanes.resizers(shape) for shape in ((240, 320), (1080, 1920), (4320, 7680))] == [4, 4, 1]
    (a, few), (b, hd), (c, _), (d, threads), (e, _) = used
    assert (a, b, c, d, e) == ("apart", "apart", "one", "one", "one") and few == 8 and 2 <= hd <= 8 and threads == 1
