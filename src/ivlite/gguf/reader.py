"""Reads a file at given offsets; every failure raises a ModelFileError that names its cause."""

import os
import stat
from dataclasses import dataclass

import numpy as np

from ivlite.errors import ModelFileError, UsageError
from ivlite.files import reason
from ivlite.stop import checkpoint


@dataclass(frozen=True)
class Kind:
    """What is told of files of a kind. make: how one is made. again: what to do about one that is damaged."""

    make: str
    again: str


MODEL = Kind(
    "make it with `ivlite quantize`", "download it again, or convert the checkpoint again with `ivlite quantize`"
)


class Reader:
    """An open regular file: `path`, `size` in bytes when it was opened. Any thread may read, and close().

    The constructor raises ModelFileError; so do reads of a file that was shortened or changed. Reads of a closed file raise
    Stopped where that has ended the work as well, else UsageError.
    """

    def __init__(self, path, kind=MODEL):
        self.path, self.kind, self._fd = path, kind, None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # do not wait for the other end of a pipe
            info = os.fstat(self._fd)
        except FileNotFoundError:
            raise ModelFileError(_missing(path, kind)) from None
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            self.close()
            raise ModelFileError(f"{path} cannot be opened: {reason(error)}") from None
        if not stat.S_ISREG(info.st_mode):
            self.close()
            raise ModelFileError(_no_file(path, info.st_mode, kind))
        self.size, self._mtime, self._ctime = info.st_size, info.st_mtime_ns, info.st_ctime_ns

    def __del__(self):
        self.close()

    def close(self):
        """Closes the file; reads fail afterwards. A second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    @property
    def stamp(self):
        """(name, size, mtime, ctime): differs after the file is written to.

        Programs can set mtime back, as `cp -p` does, but not ctime.
        """
        return os.path.basename(self.path), self.size, self._mtime, self._ctime

    def read(self, offset, count):
        """`count` bytes from an offset, uint8 (count,)."""
        out = np.empty(count, np.uint8)
        self.fill(out, offset)
        return out

    def fill(self, out, offset):
        """Fills an array of uint8 with the bytes from an offset on."""
        try:
            self._fill(out, offset)
        except (ModelFileError, TypeError):  # TypeError: there is no descriptor
            if self._fd is not None:
                raise
        if self._fd is None:  # closed meanwhile: the descriptor may have been another file's already
            checkpoint()
            raise UsageError(f"{self.path} is closed: load it again")

    def _fill(self, out, offset):
        view = memoryview(out)
        done = 0
        try:
            while done < len(view):  # one call reads 2 GiB at most
                got = os.preadv(self._fd, [view[done : done + (1 << 30)]], offset + done)
                if not got:
                    break
                done += got
            info = os.fstat(self._fd)
        except OSError as error:
            raise ModelFileError(f"{self.path} cannot be read: {reason(error)}") from None
        if info.st_size < self.size or done < len(view):
            raise ModelFileError(f"{self.path} became shorter while it was in use; {self.kind.again}")
        if info.st_mtime_ns != self._mtime:
            raise ModelFileError(f"{self.path} was changed while it was in use; load it again when it is complete")


def _missing(path, kind):
    if os.path.islink(path):
        return (
            f"{path} is a link to {os.readlink(path)}, where nothing is: put that file there, or download it again (a snapshot "
            "of the Hugging Face cache needs its folder blobs)"
        )
    return f"there is no file {path}: check the path, or {kind.make}"


def _no_file(path, mode, kind):
    if stat.S_ISDIR(mode) and kind is not MODEL:
        return f"{path} is a folder: give a file, or {kind.make}"
    if stat.S_ISDIR(mode):
        return f"{path} is a folder: give a GGUF file, or make one with `ivlite quantize {path} -o model.gguf`"
    return f"{path} is not a regular file: give the path of a file on a disk"
