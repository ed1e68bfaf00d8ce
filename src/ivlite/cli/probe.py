"""Probes the machine: its speed limits for `ivlite bench`, its features for `ivlite doctor`."""

import math
import os

from ivlite import _C
from ivlite.ops import cards


def read(pool):
    """Read bandwidth in bytes per second of that ThreadPool, from uncached memory."""
    return _C.probe_read_bandwidth(128 << 20, 2, pool)


def peaks(pool):
    """Operations per second now of that ThreadPool: (int8, matrix).

    int8: the multiply instructions of the selected kernels, with operands in registers. matrix: int8 on the matrix unit
    that they use for many tokens, 0 without one.
    """
    return _C.probe_int8_peak(0.1, pool), _C.probe_matrix_peak(0.1, pool)


def limits(threads):
    """{"read": bytes per second, "int8", "matrix": operations per second} with that many threads, see above."""
    pool = _C.ThreadPool(threads)
    int8, matrix = peaks(pool)
    return {"read": read(pool), "int8": int8, "matrix": matrix}


def machine(threads):
    """{"cpu", "threads", "isa"}."""
    return {"cpu": _C.cpu_info()["name"], "threads": threads, "isa": _C.isa()}


def default_threads():
    """The default number of threads: IVLITE_NUM_THREADS, or one per usable physical core."""
    return _C.wanted_threads()


def processors():
    """{"isas", "physical_cores", "affinity", "cpu_quota"}; a quota of None is no limit."""
    return {
        "isas": _C.isas(),
        "physical_cores": physical_cores(),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_quota": cpu_quota(),
    }


def physical_cores():
    """Physical cores among the processors this process may use, or None."""
    cores = set()
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        siblings = _line(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings or str(cpu))
    return len(cores) or None


def cpu_quota():
    """The CPU quota of this process's control groups in processors, or None."""
    quota = _C.cpu_quota()
    return None if quota == math.inf else quota


def huge_pages():
    """The mode of transparent huge pages, "always", "madvise" or "never"; None without support."""
    modes = _line("/sys/kernel/mm/transparent_hugepage/enabled")
    return modes.partition("[")[2].partition("]")[0] or None


def cuda():
    """{"built", "driver", "cards", "problem"}: CUDA, as far as a model can run on it.

    built: whether this build has CUDA kernels. driver: the newest CUDA that the driver knows, as "13.0"; where there are no
    kernels to ask it, the driver's own version; None without one. cards: for each {"name", "capability", "memory": bytes,
    "multiprocessors", "kernels": whether this build has some that run on it now, "problem": why they do not, or None}. problem: why
    the first card cannot be used, or None.
    """
    built = _C.cuda.built
    driver, found, problem = driver_version(), [], cards.refusal()
    try:
        if built:
            version = _C.cuda.driver()
            driver = f"{version // 1000}.{version % 1000 // 10}" if version else None
            found = [card(i) for i in range(cards.count())]
    except _C.cuda.Error as error:
        problem = cards.said(error)
    return {"built": built, "driver": driver, "cards": found, "problem": problem or None}


def card(index):
    found = _C.cuda.card(index)
    return {
        "name": found.name,
        "capability": "{}.{}".format(*found.capability),
        "memory": found.memory,
        "multiprocessors": found.multiprocessors,
        "kernels": found.has_kernels,
        "problem": cards.unfit(found) or None,
    }


def driver_version():
    """The version of NVIDIA's driver as its kernel module gives it, or None."""
    words = _line("/proc/driver/nvidia/version").split()
    return next((word for word in words if word[:1].isdigit()), None)


def ffmpeg():
    """Versions of the FFmpeg libraries, by name; of none where PyAV is missing or too old."""
    try:
        from ivlite.media.libraries import versions
    except ImportError:
        return {}
    return versions()


def _line(path):
    """The first line of a file, or nothing."""
    try:
        with open(path) as file:
            return file.readline().strip()
    except OSError:
        return ""
