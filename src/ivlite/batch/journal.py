"""The output of a batch: lines in the order of the inputs, whatever the order in which they come.

A line whose turn has not come yet goes to a hidden file beside the output at once, so that nothing that was answered is lost. A line
is one write. What is written survives a kill at once; a power cut takes what was written within the last second.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Self

from ivlite.errors import DiskError
from ivlite.output import check_place, disk, flush, lock, partial_path

EVERY = 1.0  # seconds between two flushes to the disk
BEGIN = b'{"id": '  # of every line
PIECE = 1 << 20


class File:
    """Lines at the end of a file. name: for messages."""

    def __init__(self, path: os.PathLike[str], name: str, flags: int = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) -> None:
        self.path, self.name = path, name
        with disk(name):
            self.fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
            self.end = os.fstat(self.fd).st_size
        self.dirty = False

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(offset, line) of all lines with an end, and the rest behind the last one, if there is one."""
        with disk(self.name), open(os.dup(self.fd), "rb") as file:
            file.seek(0)
            at = 0
            for line in file:
                yield at, line
                at += len(line)

    def cut(self, size: int) -> None:
        with disk(self.name):
            os.ftruncate(self.fd, size)
        self.end, self.dirty = size, True

    def add(self, line: bytes) -> int:
        """Writes a line; returns its offset. Raises DiskError, without a half line left behind where that can be helped."""
        at, done = self.end, 0
        try:
            with disk(self.name):
                while done < len(line):
                    done += os.pwrite(self.fd, line[done:], at + done)
        except DiskError:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, at)
            raise
        self.end, self.dirty = at + len(line), True
        return at

    def get(self, at: int, size: int) -> bytes:
        with disk(self.name):
            return os.pread(self.fd, size, at)

    def sync(self) -> str | None:
        """Flushes what is new to the disk; returns a sentence where the filesystem cannot."""
        if not self.dirty:
            return None
        with disk(self.name):
            told = flush(self.fd, self.name)
        self.dirty = False
        return told

    def close(self) -> None:
        os.close(self.fd)


class Journal:
    """The output file and its hidden file, locked. Raises UsageError, DiskError (another process writes one of them).

    put(index, line): the line of input `index`. held: offset and size of lines in the hidden file whose turn has not come.
    """

    def __init__(self, name: str) -> None:
        self.name, place = name, check_place(name)  # through a link: what it points to
        made = not place.exists()
        self.next, self.held = 0, dict[int, tuple[int, int]]()
        self.notes: list[str] = []
        self._synced = time.monotonic()
        with contextlib.ExitStack() as opened:
            self.main = File(place, name)
            opened.callback(self.main.close)
            self._note(lock(self.main.fd, name))
            self.ahead = File(partial_path(name), name)
            opened.callback(self.ahead.close)
            self._note(lock(self.ahead.fd, name))  # unfinished files of other commands have such names, too
            opened.pop_all()
        # What goes at the end if it is of no use: of files that were there before nothing, until `keep` has taken over what they hold.
        self._spare = [file for file, new in ((self.ahead, not self.ahead.end), (self.main, made)) if new]

    def called(self, file: File) -> str:
        """The name of the output or of its hidden file, for messages about what is in it."""
        return self.name if file is self.main else str(file.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.sync()
        except DiskError:
            self._spare = [file for file in self._spare if not file.end]  # the disk may have no other copy of its lines
            if error is None:
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Closes and unlocks. The hidden file goes once nothing in it waits, and an output that never had a line, too."""
        for file in self._spare if not self.held else ():
            if file is self.ahead or not self.main.end:
                with contextlib.suppress(OSError):
                    os.unlink(file.path)
        self.ahead.close()
        self.main.close()

    def put(self, index: int, line: bytes) -> None:
        """Takes a line. Raises DiskError."""
        if index == self.next:
            self.main.add(line)
            self.next += 1
            self.forward()
        else:
            self.held[index] = self.ahead.add(line), len(line)
        if time.monotonic() - self._synced >= EVERY:
            self.sync()

    def forward(self) -> None:
        """Writes the lines whose turn has come."""
        while (place := self.held.get(self.next)) is not None:
            self.main.add(self.ahead.get(*place))
            del self.held[self.next]
            self.next += 1

    def keep(self, first: int, places: dict[int, tuple[File, int, int]]) -> None:
        """Begins with lines of an earlier run: the first `first` stay in the output, the others wait for their turn.

        places: file, offset and size of each other one.
        """
        size = 0
        for number, (at, line) in enumerate(self.main.lines(), 1):
            if number > first:
                break
            size = at + len(line)
        for index, (file, at, count) in sorted(places.items()):
            self.held[index] = (self.ahead.add(file.get(at, count)) if file is self.main else at), count
        self._note(self.ahead.sync())  # before they leave the output
        if size < self.main.end:
            self.main.cut(size)
        self.next = first
        self.forward()
        self._spare = [self.ahead, self.main]

    def sync(self) -> None:
        """Flushes what is new to the disk. Raises DiskError."""
        with disk(self.name):
            gone = os.fstat(self.main.fd).st_nlink == 0
        if gone:
            raise DiskError(f"{self.name} was removed while it was written: run the same command again")
        for file in (self.ahead, self.main):
            self._note(file.sync())
        self._synced = time.monotonic()

    def _note(self, sentence: str | None) -> None:
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)
