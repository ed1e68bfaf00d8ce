"""A rival's best setting, found in the run that uses it: what is best differs from machine to machine."""

import os
from pathlib import Path


def best(axes, measure, label):
    """Coordinate search: each axis in turn takes the value at which `measure` is highest; prints what was tried.

    axes: name -> values, the rival's default first. measure(**settings) -> a rate, or None where they do not go together.
    Returns (settings, rate). Nothing is measured twice.
    """
    settings, known = {name: values[0] for name, values in axes.items()}, {}

    def rate(candidate):
        key = tuple(candidate.items())
        if key not in known:
            known[key] = measure(**candidate)
            shown = "does not work" if known[key] is None else f"{known[key]:.4g}"
            print(f"  {label}: {written(candidate)}: {shown}", flush=True)
        return known[key] or 0.0

    for name, values in axes.items():
        settings = max(({**settings, name: value} for value in values), key=rate)
    print(f"  {label}: best is {written(settings)}", flush=True)
    return settings, rate(settings)


def written(settings):
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def thread_counts(threads):
    """As many threads as ivlite takes, and one for each logical processor where that is more."""
    logical = len(os.sched_getaffinity(0))
    return (threads, logical) if logical > threads else (threads,)


def last_level_cache():
    """Bytes of the largest cache of the first processor, 64 MB where the system does not say."""
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number, unit = file.read_text().strip()[:-1], file.read_text().strip()[-1]
        sizes.append(int(number) * {"K": 1 << 10, "M": 1 << 20}.get(unit, 1))
    return max(sizes) or 64 << 20


def copies(nbytes):
    """How many operands of so many bytes, used in turn, no cache holds: four times the largest, 4 GB at most."""
    return max(1, min(-(-4 * last_level_cache() // nbytes), (4 << 30) // nbytes))
