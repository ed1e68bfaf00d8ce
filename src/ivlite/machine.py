"""What this machine's memory allows: how much is free, how much this process has used at most."""

import resource
import sys
from pathlib import Path

MARGIN = 512 << 20  # left to the rest of the machine and to buffers that are not counted one by one


NO_LIMIT = 1 << 60  # bytes: version 1 writes its largest number where there is no limit
# Of a control group's memory in use, what the kernel gives back on demand, as MemAvailable counts it for the machine: lines
# of memory.stat. In version 1 the sums over subgroups, which count against the limit, stand under total_ names. No swap.
GIVEN_BACK = ("inactive_file", "active_file", "slab_reclaimable")


def _text(path):
    """What a file of the kernel holds; nothing where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _number(path):
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdigit() else None  # "max" is no number


def _listed(path, key):
    """The bytes that a file of /proc lists under a key, or None."""
    for line in _text(path).splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _group_left(folder, limit, usage):
    """Bytes left under the limit of one control group; None where it has none."""
    most, used = _number(folder / limit), _number(folder / usage)
    if most is None or used is None or most >= NO_LIMIT:
        return None
    stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    sizes = (stat.get(f"total_{key}", stat.get(key, "")).strip() for key in GIVEN_BACK)
    back = sum(int(size) for size in sizes if size.isascii() and size.isdigit())
    return max(0, most - max(0, used - back))


def _groups(listing, mount):
    """(folder, version) of every control group of this process that counts memory, from its own up to the root.

    In a container the listing may name a path of the host that its mount does not show; the root of the mount is its own.
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
    """Bytes that control groups still allow this process, by the tightest of their limits; None without one."""
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
    """Bytes of memory of the machine, or None where the system does not say."""
    return _listed("/proc/meminfo", "MemTotal")


def available_memory():
    """Bytes that this process may still take, by the tightest of the limits there are; None if none is known."""
    known = (_listed("/proc/meminfo", "MemAvailable"), group_memory(), _address_space_left())
    return min((n for n in known if n is not None), default=None)


def peak_memory():
    """The most bytes that this process has held in memory so far."""
    own = _listed("/proc/self/status", "VmHWM")
    if own is not None:  # on Linux getrusage counts what the process that started this one had held as well
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gigabytes(n):
    """Bytes as a person reads them: "5.31 GB", "340 MB"."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
