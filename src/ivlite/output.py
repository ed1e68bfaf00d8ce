"""The hidden file in which an output grows: locked, recognised again after a kill, renamed when it is complete.

The file has its final size from the start; what is not written yet takes no space. Behind its end stands a mark: MAGIC
and 32 bytes that say what is being made of what. The mark is cut off before the file takes its name.
"""

import fcntl
import os
import zlib
from pathlib import Path

from ivlite.errors import DiskError, UsageError
from ivlite.machine import gigabytes

MAGIC = b"ivlite unfinished"
ADVICE = "free some space or write elsewhere"
NAME_LIMIT = 200  # bytes of an output's name that fit into the hidden one, whose limit is 255


def partial_path(path):
    """Where the output `path` grows: beside what it is or, through a link, what it points to."""
    real = Path(os.path.realpath(path))
    name = real.name
    if len(os.fsencode(name)) > NAME_LIMIT:
        name = f"{name[:40]}.{zlib.crc32(os.fsencode(name)):08x}"
    return real.with_name(f".{name}.partial")


def marked(path, mark):
    """Whether the file at `path` ends with the mark: an unfinished output of the same work."""
    wanted = MAGIC + mark
    try:
        with open(path, "rb") as file:
            file.seek(-len(wanted), os.SEEK_END)
            return file.read() == wanted
    except OSError:
        return False


class Partial:
    """An output of `size` bytes that grows in a hidden file. Raises UsageError, DiskError (the place, the disk).

    mark: bytes (32,) of work that can be resumed, or None. resume: go on where an unfinished file with the mark is.
    `resumed` says whether there was one; any other unfinished file of this output is dropped.
    """

    def __init__(self, path, size, mark=None, resume=False):
        self.name, self.size, self.mark = Path(path), size, mark
        self.path = Path(os.path.realpath(path))  # through a link: replace what it points to, not the link
        self.partial = partial_path(path)
        check_place(self.name, self.path)
        self._lock()
        try:
            whole = size + len(MAGIC) + len(mark or b"")
            self.resumed = resume and os.fstat(self.fd).st_size == whole and marked(self.partial, mark)
            with disk(self.name):
                if not self.resumed:
                    os.ftruncate(self.fd, 0)
                self._check_space()
                if not self.resumed:
                    os.ftruncate(self.fd, size)
                    self.put((MAGIC + mark) if mark else b"", size)
        except BaseException:
            self.close(keep=False)
            raise

    def put(self, data, offset):
        """Writes bytes at an offset."""
        view = memoryview(data).cast("B")
        with disk(self.name):
            while len(view):
                done = os.pwrite(self.fd, view[: 1 << 30], offset)
                view, offset = view[done:], offset + done

    def get(self, count, offset):
        """`count` bytes from an offset; fewer at the end of the file."""
        with disk(self.name):
            return os.pread(self.fd, count, offset)

    def finish(self):
        """Gives the file its name, in place of an older one: whole, and safe from a power cut."""
        with disk(self.name):
            os.fsync(self.fd)  # with the mark still on: this takes long, and until it is done the work can be resumed
            os.ftruncate(self.fd, self.size)
            os.fsync(self.fd)
            os.replace(self.partial, self.path)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # so that the new name, too, survives
            finally:
                os.close(folder)
        self.close(keep=True)

    def close(self, keep):
        """Ends the work and the lock; removes the hidden file unless it is kept. A second call does nothing."""
        if self.fd is None:
            return
        if not keep and self._in_place():
            self.partial.unlink()
        os.close(self.fd)
        self.fd = None

    def _in_place(self):
        """Whether the hidden name still stands for the open file: not once that is finished or dropped."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.partial))
        except FileNotFoundError:
            return False

    def _lock(self):
        """Opens the hidden file and locks it. A lock ends with its process, so that none is ever stale."""
        while True:
            with disk(self.name):
                self.fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.close(keep=True)
                raise DiskError(
                    f"{self.name} is being written by another process: wait for it, or choose another name"
                ) from None
            if self._in_place():
                return
            self.close(keep=True)  # another process has just finished or dropped it

    def _check_space(self):
        info, state = os.statvfs(self.path.parent), os.fstat(self.fd)
        free = info.f_bavail * info.f_frsize
        need = self.size - state.st_blocks * 512
        if free < need:
            raise DiskError(f"{self.name} needs {gigabytes(need)} and {gigabytes(free)} are free on its disk; {ADVICE}")


def check_place(name, path):
    """Refuses what cannot become a file, before any work."""
    if path.is_dir():
        raise UsageError(f"{name} is a folder: name the file to write")
    if path.exists() and not path.is_file():
        raise UsageError(f"{name} is not a regular file: name a file on a disk")
    if not path.parent.is_dir():
        raise DiskError(f"{name} cannot be written: there is no folder {name.parent}; make it first")


class disk:
    """Turns an OSError of the block into a DiskError that names the output."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, OSError) and not isinstance(error, DiskError):
            raise DiskError(f"{self.path} cannot be written: {error.strerror or error}; {ADVICE}") from None
