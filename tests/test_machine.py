"""Memory that is free: what control groups of both versions say, from files made here."""

import pytest

from ivlite.machine import group_memory

MB = 1 << 20


def group(folder, version, limit, usage, **stat):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, usage), strict=True):
        if value is not None:
            (folder / name).write_text(f"{value}\n")
    if stat:
        (folder / "memory.stat").write_text("".join(f"{key} {value}\n" for key, value in stat.items()))


def left(tmp_path, listing):
    (tmp_path / "listing").write_text(listing)
    return group_memory(tmp_path / "listing", tmp_path / "mount")


def test_a_page_cache_is_given_back(tmp_path):
    """As in a container: its own group is the root of the mount."""
    cache = dict(anon=60 * MB, file=1900 * MB, inactive_file=1800 * MB, active_file=100 * MB, slab_reclaimable=20 * MB)
    group(tmp_path / "mount", 2, 2048 * MB, 2000 * MB, **cache)
    assert left(tmp_path, "0::/\n") == left(tmp_path, "0::/../../host/path\n") == (48 + 1920) * MB
    group(tmp_path / "mount", 2, 2048 * MB, 2040 * MB, anon=2040 * MB, inactive_file=0)
    assert left(tmp_path, "0::/\n") == 8 * MB
    group(tmp_path / "mount", 2, 2048 * MB, 2100 * MB, anon=1)
    assert left(tmp_path, "0::/\n") == 0


@pytest.mark.parametrize("version, listing", [(2, "0::{}\n"), (1, "3:cpu:/\n7:cpu,memory:{}\n0::/\n")])
def test_every_group_up_to_the_root_counts(tmp_path, version, listing):
    top, path = tmp_path / "mount" / ("" if version == 2 else "memory"), "/user.slice/user-1.slice/run.scope"
    group(top / path[1:], version, "max" if version == 2 else (1 << 63) - 4096, 10 * MB)
    assert left(tmp_path, listing.format(path)) is None
    group(top / "user.slice", version, 900 * MB, 800 * MB, inactive_file=300 * MB)
    assert left(tmp_path, listing.format(path)) == 400 * MB
    group(
        top / "user.slice" / "user-1.slice", version, 500 * MB, 450 * MB, inactive_file=10 * MB, slab_reclaimable="odd"
    )
    assert left(tmp_path, listing.format(path)) == 60 * MB
    group(top / "user.slice" / "other.slice", version, 5 * MB, 5 * MB)
    assert left(tmp_path, listing.format(path)) == 60 * MB


def test_sums_over_subgroups_are_what_counts_in_version_1(tmp_path):
    stat = dict(inactive_file=MB, active_file=MB, total_inactive_file=100 * MB, total_active_file=50 * MB)
    group(tmp_path / "mount" / "memory", 1, 1000 * MB, 900 * MB, **stat)
    assert left(tmp_path, "5:memory:/x\n") == 250 * MB


@pytest.mark.parametrize(
    "limit, usage", [(None, 5), (5, None), ("", 5), ("max", 5), ("-1", 5), ("many", "few"), (5, "²")]
)
def test_files_that_say_nothing(tmp_path, limit, usage):
    group(tmp_path / "mount", 2, limit, usage)
    assert left(tmp_path, "0::/\n") is None and left(tmp_path, "odd\n::\n\n0::\n") is None
    assert group_memory(tmp_path / "none", tmp_path / "none") is None
