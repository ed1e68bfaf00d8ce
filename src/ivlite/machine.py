"""Memory of this machine: how much is available, and the peak of this process."""

import math
import resource
import sys
from pathlib import Path

MARGIN = 512 << 20  # bytes left for the rest of the machine and for buffers not counted one by one


NO_LIMIT = 1 << 60  # bytes: cgroup v1 writes a huge number where there is no limit
# Keys of memory.stat: memory in use that the kernel reclaims on demand, counted as in MemAvailable, without swap. In
# cgroup v1 the sums over subgroups, which count against the limit, have names with total_.
GIVEN_BACK = ("inactive_file", "active_file", "slab_reclaimable")


def _text(path):
    """The text of a file of the kernel; empty if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _number(path):
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() else None  # "max" is no number


def _listed(path, key):
    """The bytes listed under a key of a /proc file, or None."""
    for line in _text(path).splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _group_left(folder, limit, usage):
    """Bytes left under the limit of one control group; None without a limit."""
    most, used = _number(folder / limit), _number(folder / usage)
    if most is None or used is None or most >= NO_LIMIT:
        return None
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    sizes = (stat.get(f"total_{key}", stat.get(key, "")).strip() for key in GIVEN_BACK)
    back = sum(int(size) for size in sizes if size.isascii() and size.isdigit())
    return max(0, most - max(0, used - back))


def _groups(listing, mount):
    """(folder, version) of every control group of this process that counts memory, from its own up to the root.

    In a container the listing may name a path of the host that is not mounted; the root of the mount is then its group.
    """
    yield from ((mount, 2), (mount / "memory", 1))
    for line in _text(listing).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        top, version = (mount, 2) if not controllers else (mount / "memory", 1)
        if version == 1 and "memory" not in controllers.split(","):
            continue
        names = [name for name in path.split("/") if name and name != ".."]
        yield from ((top.joinpath(*names[:n]), version) for n in range(len(names), 0, -1))


def group_memory(listing="/proc/self/cgroup", mount="/sys/fs/cgroup"):
    """Bytes left under the tightest limit of this process's control groups; None without a limit."""
    files = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
    left = (_group_left(folder, *files[version]) for folder, version in _groups(listing, Path(mount)))
    return min((n for n in left if n is not None), default=None)


def _address_space_left():
    """Bytes left under `ulimit -v`; None without a limit."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _text("/proc/self/statm").split()
    if most == resource.RLIM_INFINITY or not pages:
        return None
    return max(0, most - int(pages[0]) * resource.getpagesize())


def total_memory():
    """Bytes of memory of the machine, or None if the system does not report it."""
    return _listed("/proc/meminfo", "MemTotal")


def available_memory():
    """Bytes this process may still allocate under the tightest known limit; None if none is known."""
    known = (_listed("/proc/meminfo", "MemAvailable"), group_memory(), _address_space_left())
    return min((n for n in known if n is not None), default=None)


def peak_memory():
    """Peak resident memory of this process in bytes."""
    own = _listed("/proc/self/status", "VmHWM")
    if own is not None:  # on Linux getrusage includes the peak of the parent process
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gigabytes(n):
    """Formats bytes: "5.31 GB", "340 MB"; "12 KB" where megabytes would be none."""
    if 0 < n < 5e5:
        return f"{math.ceil(n / 1e3)} KB"
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def two_sizes(one, other):
    """Formats two different numbers of bytes as gigabytes() does, or exactly where they would read alike."""
    texts = gigabytes(one), gigabytes(other)
    return texts if texts[0] != texts[1] else (f"{one:,} bytes", f"{other:,} bytes")


def give_back():
    """Returns freed memory to the system, which the C library else keeps (glibc has a function for it)."""
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass
