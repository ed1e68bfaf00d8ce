"""How often progress is told."""

import os

from test_budget import packed

from ivlite.media import scan


def test_progress_of_a_scan_is_told_now_and_then(tmp_path):
    path, told = str(packed(tmp_path / "a.ts", 600, 25)), []
    scan.scan(path, "a", progress=lambda *args: told.append(args))
    size = os.path.getsize(path)
    assert len(told) == 4 and told[-1] == ("scan", size, size)  # after packets 0, 256 and 512, and at the end
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and told[0][1] < size / 10 < told[1][
        1
    ] < told[2][1]
