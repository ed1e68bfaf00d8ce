"""What a search makes of the spans that a model names."""

from types import SimpleNamespace

import pytest

from ivlite.agent.search import Span, marked, merged

FILM = SimpleNamespace(config=SimpleNamespace(vision=SimpleNamespace(temporal_patch_size=2)))
TIMES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # marks: 0.5, 2.5, 4.5, 6.0


@pytest.mark.parametrize("start, end, frames", [
    (2.5, 2.5, (2.0, 3.0)),  # a mark names both frames of its pair
    (2.5, 4.5, (2.0, 3.0, 4.0, 5.0)),
    (2.0, 3.0, (2.0, 3.0)),
    (3.0, 4.0, (3.0, 4.0)),  # times of frames name frames
    (6.0, 6.0, (6.0,)),  # a frame without another
    (3.3, 3.4, (2.0, 3.0)),  # nothing there: the nearest pair
])  # fmt: skip
def test_spans_name_frames(start, end, frames):
    assert marked(FILM, TIMES, start, end) == frames


def test_marks_are_read_with_one_decimal():
    times = (10.0, 10.5, 11.0, 11.5)  # marks 10.25 and 11.25, which prompts write as 10.2 and 11.2
    assert marked(FILM, times, 10.2, 10.2) == times[:2] and marked(FILM, times, 11.2, 11.2) == times[2:]


def test_what_goes_on_over_the_border_of_two_segments_is_one():
    """Pairs of the two segments lie two frames apart, their marks twice as far."""
    before, after = Span((60.0, 61.0, 62.0, 63.0), 0.7), Span((64.0, 65.0), 0.9)
    assert merged([after, before], 1.5) == [Span((60.0, 61.0, 62.0, 63.0, 64.0, 65.0), 0.9)]
    later = Span((67.0, 68.0), 0.4)
    assert merged([later, after], 1.5) == [after, later]
