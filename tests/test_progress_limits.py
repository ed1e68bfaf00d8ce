"""How often progress is told, and other moments and counts at their limits."""

import asyncio
import os
from types import SimpleNamespace

import numpy as np
import pytest
from test_budget import packed

from ivlite.cli.chat import terminal
from ivlite.errors import SessionFileError
from ivlite.media import frames, memory, scan
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
