"""How many threads there are when nothing is said."""

import math

import pytest

from ivlite import _C


@pytest.mark.parametrize(
    "listing, files, quota",
    [
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),  # a container
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000", "user/cpu.max": "50000 100000"}, 0.5),
        ("0::/user/job\n", {"user/job/cpu.max": "200000 100000", "user/cpu.max": "300000 100000"}, 2),
        (
            "4:memory:/a\n3:cpuacct,cpu:/a/b\n",
            {"cpu/a/b/cpu.cfs_quota_us": "100000", "cpu/a/b/cpu.cfs_period_us": "50000"},
            2,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:cpu:/elsewhere\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("1:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, math.inf),
        ("nonsense\n0::nowhere\n::\n", {"cpu.max": "a b"}, math.inf),
    ],
)
def test_the_quota_is_the_least_of_the_groups(tmp_path, listing, files, quota):
    (tmp_path / "listing").write_text(listing)
    for name, text in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(text + "\n")
    assert _C.cpu_quota(str(tmp_path / "listing"), str(tmp_path / "mount")) == quota
