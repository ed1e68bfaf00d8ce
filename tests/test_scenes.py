"""Scenes of a video: cuts are found where they are, and nowhere else."""

import av
import numpy as np
import pytest

from ivlite import media
from ivlite.media import scenes as module
from ivlite.media.scenes import cuts, scenes, segments


def film(path, parts, rate=10, size=(96, 160), moving=3):
    """A video of scenes, (seconds, colour seed) each: a textured background with a square that moves."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=rate)
        video.width, video.height, video.pix_fmt, video.bit_rate = size[1], size[0], "yuv420p", 2_000_000
        n = 0
        for seconds, seed in parts:
            chance = np.random.default_rng(seed)
            ground = chance.integers(30, 225, 3)
            texture = chance.integers(-30, 30, (size[0] // 8, size[1] // 8, 3)).repeat(8, 0).repeat(8, 1)
            for i in range(round(seconds * rate)):
                picture = np.clip(ground + texture, 0, 255).astype(np.uint8)
                x = i * moving % (size[1] - 20)
                picture[30:60, x : x + 20] = 255 - ground
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, n = n, n + 1
                out.mux(video.encode(frame))
        out.mux(video.encode())
    return path


@pytest.mark.parametrize("lengths", [[10], [5, 7.5, 3, 6], [3] * 10, [0.3], [2.5, 2.5]])
def test_cuts_are_found_within_the_spacing(tmp_path, lengths):
    found = scenes(media.probe(film(tmp_path / "a.mkv", [(s, n) for n, s in enumerate(lengths)]), fps=2))
    edges = np.cumsum([0, *lengths])
    assert found.cuts == len(lengths) - 1 and found.every <= 0.5
    assert np.allclose([start for start, _ in found.spans], edges[:-1], atol=0.5 + 0.1)
    assert found.spans[-1][1] == pytest.approx(edges[-1], abs=0.11)
    assert all(a[1] == b[0] for a, b in zip(found.spans, found.spans[1:], strict=False))


@pytest.mark.parametrize("moving", [0, 3, 17])
def test_motion_is_no_cut(tmp_path, moving):
    assert scenes(media.probe(film(tmp_path / "a.mkv", [(20, 5)], moving=moving), fps=2)).cuts == 0


def test_noise_everywhere_is_no_cut():
    chance = np.random.default_rng(1)
    assert cuts(chance.uniform(20, 30, 200)) == []
    assert cuts([1.0] * 10 + [40.0] + [1.0] * 10) == [10]
    assert cuts([]) == [] and cuts([50.0]) == [0] and cuts([5.0]) == []


def test_segments_cover_a_video():
    for starts, duration in (([], 0.1), ([], 100), ([1, 3, 50, 99.5], 100), (list(range(1, 60)), 60), ([0.5], 1)):
        spans = segments(starts, duration)
        assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(duration)
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))
        assert all(end - start <= module.LONGEST + 0.01 for start, end in spans)
        assert all(end - start >= module.SHORTEST - 0.01 for start, end in spans) or duration < 2 * module.SHORTEST


def test_long_videos_are_compared_at_a_bounded_number_of_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 20)
    seen = []
    found = scenes(media.probe(film(tmp_path / "a.mkv", [(10, 1), (10, 2)]), fps=2), lambda *state: seen.append(state))
    assert seen[-1] == ("scenes", 20, 20) and found.every == 1.0 and found.cuts == 1
