"""The folders whose files clients may name."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ivlite.errors import Stopped
from ivlite.media.folders import inside
from ivlite.stop import checkpoint, using, within

FILE = re.compile("file:", re.IGNORECASE)


class Roots:
    """Folders, whose links must be resolved. A name is a path relative to one of them; the first that has it counts."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)

    def allowed(self, path: str) -> str | None:
        """The path with its links resolved, of a regular file that lies in the folders and may be read; else None."""
        try:
            real = os.path.realpath(path)
            under = any(Path(real).is_relative_to(folder) for folder in self.folders)
            if under and stat.S_ISREG(os.stat(real).st_mode) and os.access(real, os.R_OK):
                return real
        except (OSError, ValueError):  # gone, a loop of links, a null
            pass
        return None

    def uri(self, uri: str) -> str | None:
        """The same of a file:// URI."""
        try:
            parts = urlsplit(uri)
            path = unquote(parts.path, errors="surrogateescape")
        except ValueError:
            return None
        return self.allowed(path) if os.path.isabs(path) and parts.netloc in ("", "localhost") else None

    def find(self, name: str) -> str | None:
        """The path of a name, a path or a URI: None whether the file does not exist or lies elsewhere."""
        if FILE.match(name):
            return self.uri(name)
        return next((real for folder in self.folders if (real := self.allowed(os.path.join(folder, name)))), None)

    def name(self, path: str) -> str:
        """What a file is called: its path in the first folder that holds it."""
        for folder in self.folders:
            if Path(path).is_relative_to(folder):
                return os.path.relpath(path, folder).encode("utf-8", "replace").decode()
        return os.path.basename(path).encode("utf-8", "replace").decode()

    def videos(self, most: int, seconds: float) -> list[str]:
        """The paths of videos in the folders, in order: at most so many, and those that are found within so many seconds."""
        stop, found = within(), list[str]()
        stop.after(seconds)
        try:
            with using(stop):
                for path in self._inside():
                    if len(found) == most:
                        break
                    found.append(path)
        except Stopped:
            checkpoint()  # the work itself was stopped, not only the search
        return sorted(found)

    def _inside(self) -> Iterator[str]:
        for folder in self.folders:
            with suppress(OSError):  # it cannot be read, which clients are not told
                yield from (path for path in inside(os.fspath(folder)) if self.allowed(path))


def uri_of(path: str) -> str:
    """The file:// URI of a path."""
    return "file://" + quote(os.fsencode(path))
