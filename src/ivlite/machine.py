"""What this machine's memory allows: how much is free, how much this process has used at most."""

import resource
import sys
from pathlib import Path

MARGIN = 512 << 20  # left to the rest of the machine and to buffers that are not counted one by one


def _number(path):
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _listed(path, key):
    """The bytes that a file of /proc lists under a key, or None."""
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cgroup_left():
    """Bytes left under the control group's limit, version 2 then 1; None without a limit."""
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, used = _number(limit), _number(usage)
        if most is not None and used is not None and most < 1 << 60:
            return max(0, most - used)
    return None


def _address_space_left():
    """Bytes left under `ulimit -v`; None without a limit."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = Path("/proc/self/statm")
    if most == resource.RLIM_INFINITY or not pages.exists():
        return None
    return max(0, most - int(pages.read_text().split()[0]) * resource.getpagesize())


def total_memory():
    """Bytes of memory of the machine, or None where the system does not say."""
    return _listed("/proc/meminfo", "MemTotal")


def available_memory():
    """Bytes that this process may still take, by the tightest of the limits there are; None if none is known."""
    known = (_listed("/proc/meminfo", "MemAvailable"), _cgroup_left(), _address_space_left())
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
