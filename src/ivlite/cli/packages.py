"""The packages that ivlite leans on: whether they are here, and as new as it needs them.

Imported only where it is needed: importlib.metadata takes a fifth of the time of `ivlite --help`.
"""

import re
from collections.abc import Iterator
from importlib import metadata


def version(name: str) -> str | None:
    """The installed version of a package, None without one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def floors() -> Iterator[tuple[str, str, bool]]:
    """(name, oldest version that ivlite allows, whether it is one of an extra) of each package, from what was installed with ivlite."""
    try:
        listed = metadata.requires("ivlite") or []
    except metadata.PackageNotFoundError:  # not installed, but run from its folder
        listed = []
    for requirement in listed:
        if found := re.match(r"([\w.-]+)\s*(?:\[[^]]*\])?\s*\(?[^;]*?>=\s*([\w.]+)", requirement):
            yield found[1], found[2], "extra" in requirement.partition(";")[2]


def wanting() -> list[str]:
    """A sentence for each package that is missing, or older than ivlite needs it."""
    out = {}
    for name, oldest, optional in floors():
        here = version(name)
        if here is None and not optional:
            out[name] = f"the package {name} is missing: pip install '{name}>={oldest}'"
        elif here is not None and _numbers(here) < _numbers(oldest):
            out[name] = f"{name} {here} is too old, ivlite needs {oldest}: pip install '{name}>={oldest}'"
    return list(out.values())


def _numbers(text: str) -> list[int]:
    """The release of a version, without zeros at its end: [2, 13] of 2.13.0+cpu."""
    release = re.match(r"(?:\d+!)?([\d.]*)", text)
    numbers = [int(part) for part in (release[1] if release else "").split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers
