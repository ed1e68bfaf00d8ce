"""Outputs: where one may go, and the hidden file in which it grows until it is whole.

The hidden file is locked, recognised again after a kill, and renamed when it is complete. It has its final size from the
start; what is not written yet takes no space. Behind its end stands a mark: MAGIC and 32 bytes that say what is being
made of what. Before the mark is cut off, the file takes a second hidden name that repeats it, so that at every moment
there is an older output, or a file that a resumed work recognises, or the new output.
"""

import errno
import fcntl
import os
import stat
import zlib
from pathlib import Path

from ivlite.errors import DiskError, IvliteError, UsageError
from ivlite.files import WRITING, expanded, identity, reason
from ivlite.machine import gigabytes

MAGIC = b"ivlite unfinished"
NAME_LIMIT = 200  # bytes of an output's name that fit into the hidden one, whose limit is 255
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPROTONOSUPPORT}
UNLOCKABLE = UNSUPPORTED | {errno.ENOLCK}  # of flock: this filesystem has no locks
# Of a folder's fsync: the filesystem, or the folder's permissions, do not allow it. The file itself is safe by then.
UNSYNCED = UNSUPPORTED | {errno.EBADF, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR}


# ------------------------------------------------------------------------------------------------ places


def check_outputs(outputs, inputs=()):
    """Refuses outputs that cannot be written, or that would replace what the command reads, before any work.

    outputs, inputs: paths; None and inputs that do not exist are passed over. An output is refused when it, through
    links too, or its hidden file is an input or another output. Raises UsageError, DiskError.
    """
    outputs = [path for path in outputs if path]
    known = {identity(path): path for path in inputs if path}
    known.pop(None, None)
    places = {}
    for name in outputs:
        real = check_place(name)
        for path in (real, *unfinished(name)):
            if (found := known.get(identity(path))) is not None:
                what = "is" if path == real else "grows in a hidden file that is"
                raise UsageError(f"{name} {what} {found}, which is being read; choose another name")
        if real in places:
            raise UsageError(f"{name} and {places[real]} are one file; choose two names")
        places[real] = name


def check_place(name):
    """The Path that the output `name` leads to, through links. Raises UsageError, DiskError where no file can be made."""
    with disk(name):
        path = Path(os.path.realpath(expanded(name)))
        folder, found = _stat(path.parent), _stat(path)
        if folder is None or not stat.S_ISDIR(folder.st_mode):
            raise DiskError(f"{name} cannot be written: there is no folder {Path(name).parent}; make it first")
        if found and stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{name} is a folder: name the file to write")
        if found and not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{name} is not a regular file: name a file on a disk")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise DiskError(f"{name} cannot be written: its folder allows no new files; write elsewhere")
        return path


def _stat(path):
    """What the system says of a path, None where there is nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def partial_path(path):
    """Where the output `path` grows: beside what it is or, through a link, what it points to."""
    real = Path(os.path.realpath(expanded(path)))
    name = real.name
    if len(os.fsencode(name)) > NAME_LIMIT:
        name = f"{name[:40]}.{zlib.crc32(os.fsencode(name)):08x}"
    return real.with_name(f".{name}.partial")


def ready_path(path, mark):
    """The second hidden name: of a whole output of this mark, while the mark behind its end is cut off."""
    partial = partial_path(path)
    return partial.with_name(f"{partial.name}.{mark[:8].hex()}")


def ready_paths(path):
    """The files under such names beside an output, of any mark."""
    partial = partial_path(path)
    try:
        names = os.listdir(partial.parent)
    except PermissionError:  # a folder that one may write to and not list
        return []
    size = len(partial.name) + 17
    return [partial.with_name(n) for n in names if n.startswith(f"{partial.name}.") and len(n) == size]


def unfinished(path):
    """The hidden files of an output that its work has left behind, if any."""
    return [p for p in (partial_path(path), *ready_paths(path)) if p.exists()]


def marked(path, mark):
    """Whether the file at `path` ends with the mark: an unfinished output of the same work."""
    wanted = MAGIC + mark
    try:
        with open(path, "rb") as file:
            file.seek(-len(wanted), os.SEEK_END)
            return file.read() == wanted
    except OSError:
        return False


def write(path, data):
    """Writes a whole small file; an older one is replaced at once or not at all. Raises UsageError, DiskError."""
    file = Partial(path, len(data))
    try:
        file.put(data, 0)
        file.finish()
    finally:
        file.close(keep=False)


# ------------------------------------------------------------------------------------------------ the hidden file


class Partial:
    """An output of `size` bytes that grows in a hidden file. Raises UsageError, DiskError (the place, the disk).

    mark: bytes (32,) of work that can be resumed, or None. resume: go on where an unfinished file with the mark is.
    `resumed` says whether there was one; any other unfinished file of this output is dropped. notes: sentences about
    what the filesystem does not offer.
    """

    def __init__(self, path, size, mark=None, resume=False):
        self.name, self.size, self.mark = expanded(path), size, mark
        self.path = check_place(self.name)  # through a link: replace what it points to, not the link
        self.partial, self.notes = partial_path(self.name), []
        self._clear_ready(resume)
        self._lock()
        try:
            whole = size + len(MAGIC) + len(mark or b"")
            with disk(self.name):
                self.resumed = resume and os.fstat(self.fd).st_size == whole and marked(self.partial, mark)
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
            self._sync()  # with the mark still on: this takes long, and until it is done the work can be resumed
            if self.mark:
                self._rename(ready_path(self.name, self.mark))
                os.ftruncate(self.fd, self.size)
                self._sync()
        try:
            with disk(self.name):
                self._rename(self.path)
        except DiskError as error:
            if self.mark is None:
                raise
            self.close(keep=True)  # hours of work, and whole: only its name is missing
            raise DiskError(
                f"{error}; {self.partial.name} beside it is finished, and --resume gives it the name"
            ) from None
        self.close(keep=True)
        self._sync_folder()

    def close(self, keep):
        """Ends the work and the lock; removes the hidden file unless it is kept. A second call does nothing."""
        if self.fd is None:
            return
        try:
            if not keep and self._in_place():
                self.partial.unlink()
        except OSError:
            pass  # what ends the work is the error to report
        finally:
            os.close(self.fd)
            self.fd = None

    # -------------------------------------------------------------------------------------------- names

    def _rename(self, path):
        os.replace(self.partial, path)
        self.partial = path

    def _clear_ready(self, resume):
        """Makes a finished file of this work that lacks its name an unfinished one again; removes those of other works."""
        with disk(self.name):
            for found in ready_paths(self.name):
                try:
                    fd = os.open(found, os.O_RDWR | os.O_NOFOLLOW)
                except FileNotFoundError:  # it got its name just now
                    continue
                try:
                    self._flock(fd)
                    same = self.mark and found == ready_path(self.name, self.mark)
                    if resume and same and os.fstat(fd).st_size >= self.size:
                        os.pwrite(fd, MAGIC + self.mark, self.size)
                        os.replace(found, self.partial)
                    else:
                        found.unlink(missing_ok=True)
                finally:
                    os.close(fd)

    def _in_place(self):
        """Whether the hidden name still stands for the open file: not once that is finished or dropped."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.partial))
        except FileNotFoundError:
            return False

    # -------------------------------------------------------------------------------------------- the system

    def _lock(self):
        """Opens the hidden file and locks it. A lock ends with its process, so that none is ever stale."""
        while True:
            with disk(self.name):
                self.fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                try:
                    self._flock(self.fd)
                    if self._in_place():
                        return
                except BaseException as error:
                    self.close(keep=isinstance(error, Busy) or os.fstat(self.fd).st_size > 0)
                    raise
            self.close(keep=True)  # another process has just finished or dropped it

    def _flock(self, fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{self.name} is being written by another process: wait for it, or choose another name"
            ) from None
        except OSError as error:
            if error.errno not in UNLOCKABLE:
                raise DiskError(f"{self.name} cannot be locked: {reason(error, WRITING, 'write elsewhere')}") from None
            self._note(
                f"the filesystem of {self.name} has no locks ({error.strerror}): write it with one command at a time"
            )

    def _sync(self):
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._note(
                f"the filesystem of {self.name} cannot flush files ({error.strerror}): a power cut may damage it"
            )

    def _sync_folder(self):
        """So that the new name, too, survives a power cut."""
        try:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno not in UNSYNCED | {errno.EMFILE, errno.ENFILE}:
                raise DiskError(
                    f"{self.name} is written, but its folder cannot be flushed: {reason(error, WRITING)}"
                ) from None

    def _note(self, sentence):
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _check_space(self):
        """Refuses what the disk cannot hold, where the filesystem says how much that is."""
        try:
            info = os.statvfs(self.path.parent)
        except OSError:
            return
        free = info.f_bavail * info.f_frsize
        need = self.size - os.fstat(self.fd).st_blocks * 512
        if info.f_blocks and free < need:
            raise DiskError(
                f"{self.name} needs {gigabytes(need)} and {gigabytes(free)} are free on its disk; "
                "free some space or write elsewhere"
            )


class Busy(DiskError):
    """Another process writes the output."""


class disk:
    """Turns an OSError of the block into a DiskError that names the output."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, (OSError, ValueError)) and not isinstance(
            error, IvliteError
        ):  # ValueError: a null in a path
            why = reason(error, WRITING, "write elsewhere")
            raise DiskError(f"{self.path} cannot be written: {why}") from None
