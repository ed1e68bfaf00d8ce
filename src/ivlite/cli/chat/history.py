"""The history of a terminal's lines: a file that only its owner may read, bounded; in memory where there is no place for one."""

import json
import os
from collections import deque

from prompt_toolkit.history import History, InMemoryHistory

from ivlite.files import cache_folder

NAME = "chat_history"  # a line of JSON per entry
MOST, KEPT = 1 << 20, 1 << 19  # bytes at which the file is cut, and what then stays


def history(remember=True):
    """The history file of this user; in memory where nothing can be kept, or shall be."""
    folder = cache_folder() if remember else None
    try:
        return FileHistory(folder / NAME) if folder else InMemoryHistory()
    except OSError:
        return InMemoryHistory()


class FileHistory(History):
    """Entries of earlier conversations and of this one. Raises OSError if the file cannot be opened."""

    def __init__(self, path):
        self.path = path
        with self._open() as file:  # also makes it
            self._cut(file)
        super().__init__()

    def _open(self):
        """The file, made or made private: mode 0600; a link in its place is not followed."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        file = os.fdopen(fd, "r+b", buffering=0)
        os.fchmod(fd, 0o600)
        return file

    def _cut(self, file):
        """Drops the oldest entries of a file that has grown long."""
        size = os.fstat(file.fileno()).st_size
        if size > MOST:
            tail = os.pread(file.fileno(), KEPT, size - KEPT)
            file.truncate(0)
            file.write(tail[tail.find(b"\n") + 1 :])

    def load_history_strings(self):
        """Entries, the newest first."""
        found = deque()
        try:
            with self._open() as file:
                lines = file.read(4 * MOST).splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # cut, or another program's
                continue
            if isinstance(entry, str):
                found.appendleft(entry)
        return found

    def store_string(self, string):
        line = json.dumps(string[: MOST // 16]).encode() + b"\n"
        try:
            with self._open() as file:
                file.write(line)  # one write with O_APPEND: several programs may share the file
        except OSError:
            pass  # a full disk costs the history and nothing else
