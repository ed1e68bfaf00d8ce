"""Atomic output files: checks of their paths, and the hidden file that is written and then renamed.

The hidden file is locked, can be resumed after a kill, and is renamed when it is complete. It is sparse and has its final
size from the start. A mark follows its data: MAGIC and 32 bytes that identify the work. Before the mark is truncated,
the file gets a second hidden name that contains it, so that at every moment there is the older output, a file that can be
resumed, or the new output.
"""

import errno
import fcntl
import os
import stat
import zlib
from pathlib import Path

from ivlite.errors import DiskError, IvliteError, UsageError
from ivlite.files import WRITING, expanded, identity, path_text, reason
from ivlite.machine import gigabytes

PACKAGED = Path(__file__).parent / "data"  # the folder of the models that ship in the package: no place for outputs
MAGIC = b"ivlite unfinished"
NAME_LIMIT = 200  # bytes of an output's name used in the hidden name, whose limit is 255
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPROTONOSUPPORT}
UNLOCKABLE = UNSUPPORTED | {errno.ENOLCK}  # of flock: this filesystem has no locks
# errno of a folder's fsync that filesystem or permissions do not allow; the file itself is synced by then
UNSYNCED = UNSUPPORTED | {errno.EBADF, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR}


# ------------------------------------------------------------------------------------------------ places


def check_outputs(outputs, inputs=()):
    """Checks before any work that outputs can be written and replace no input.

    outputs, inputs: paths; None and missing inputs are skipped. An output, or its hidden file, must not be an input or
    another output, also through links. Raises UsageError, DiskError.
    """
    outputs = [path_text(path) for path in outputs if path]
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
    """The Path of the output `name`, with links resolved. Raises UsageError, DiskError if no file can be created there."""
    name = path_text(name)
    if name == "-":
        raise UsageError(
            '"-" is no file, and this is not written to standard output: name the file to write (./- for one of that name)'
        )
    with disk(name):
        path = Path(os.path.realpath(expanded(name)))
        if path.parent == PACKAGED.resolve():
            raise UsageError(f"{name} lies in the folder of the models that ivlite brings along: write elsewhere")
        folder, found = _stat(path.parent), _stat(expanded(name))  # /dev/stdout leads to a pipe that has no path
        if folder is None or not stat.S_ISDIR(folder.st_mode):
            raise DiskError(f"{name} cannot be written: there is no folder {Path(name).parent}; make it first")
        if found and stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{name} is a folder: name the file to write")
        if found and not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{name} is not a regular file: name a file on a disk")
        _stat(partial_path(name))  # a path may be too long with its hidden name only
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise DiskError(f"{name} cannot be written: its folder allows no new files; write elsewhere")
        return path


def _stat(path):
    """os.stat of a path, None if there is no file."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def partial_path(path):
    """The hidden file of the output `path`, in the same folder, or in that of a link's target."""
    real = Path(os.path.realpath(expanded(path)))
    name = real.name
    if len(os.fsencode(name)) > NAME_LIMIT:
        name = f"{name[:40]}.{zlib.crc32(os.fsencode(name)):08x}"
    return real.with_name(f".{name}.partial")


def ready_path(path, mark):
    """The second hidden name: of a complete output with this mark, while the mark is truncated."""
    partial = partial_path(path)
    return partial.with_name(f"{partial.name}.{mark[:8].hex()}")


def ready_paths(path):
    """All files with such names beside an output, with any mark."""
    partial = partial_path(path)
    try:
        names = os.listdir(partial.parent)
    except PermissionError:  # a folder that can be written but not listed
        return []
    size = len(partial.name) + 17
    return [partial.with_name(n) for n in names if n.startswith(f"{partial.name}.") and len(n) == size]


def unfinished(path):
    """The hidden files left behind by unfinished work on an output."""
    return [p for p in (partial_path(path), *ready_paths(path)) if p.exists()]


def marked(path, mark):
    """Whether the file at `path` ends with the mark, so that the same work can resume it."""
    wanted = MAGIC + mark
    try:
        with open(path, "rb") as file:
            file.seek(-len(wanted), os.SEEK_END)
            return file.read() == wanted
    except OSError:
        return False


def write(path, data):
    """Writes a small file at once; replaces an older one atomically. Raises UsageError, DiskError."""
    file = Partial(path, len(data))
    try:
        file.put(data, 0)
        file.finish()
    finally:
        file.close(keep=False)


# ------------------------------------------------------------------------------------------------ the hidden file


class Partial:
    """An output of `size` bytes, written to a hidden file. Raises UsageError, DiskError.

    mark: 32 bytes that identify resumable work, or None. resume: continue an unfinished file with the mark; `resumed`
    is whether there was one. Any other unfinished file of this output is deleted. sync: flush the complete file to the
    disk, so that it survives a power failure. notes: sentences about what the filesystem does not support.
    """

    def __init__(self, path, size, mark=None, resume=False, sync=True):
        self.name, self.size, self.mark, self.sync = expanded(path), size, mark, sync
        self.path = check_place(self.name)  # through a link: replace what it points to, not the link
        self.partial, self.notes = partial_path(self.name), []
        self.resumed = False
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
            self.close(keep=self.resumed)  # hours of work are no less worth because the disk is full now
            raise

    def put(self, data, offset):
        """Writes bytes at an offset."""
        view = memoryview(data).cast("B")
        with disk(self.name):
            while len(view):
                done = os.pwrite(self.fd, view[: 1 << 30], offset)
                view, offset = view[done:], offset + done

    def get(self, count, offset):
        """Reads `count` bytes from an offset; fewer at the end of the file."""
        with disk(self.name):
            return os.pread(self.fd, count, offset)

    def finish(self):
        """Syncs the complete file to the disk and renames it, replacing an older one."""
        with disk(self.name):
            self._sync()  # takes long; the mark is still there, so that the work can be resumed
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
            self.close(keep=True)  # the file is complete and only lacks its name
            raise DiskError(
                f"{error}; {self.partial.name} beside it is finished, and --resume gives it the name"
            ) from None
        self.close(keep=True)
        self._sync_folder()

    def close(self, keep):
        """Closes and unlocks the hidden file; deletes it unless `keep`. A second call does nothing."""
        if self.fd is None:
            return
        try:
            if not keep and self._in_place():
                self.partial.unlink()
        except OSError:
            pass  # the error that ended the work is the one to report
        finally:
            os.close(self.fd)
            self.fd = None

    # -------------------------------------------------------------------------------------------- names

    def _rename(self, path):
        os.replace(self.partial, path)
        self.partial = path

    def _clear_ready(self, resume):
        """Turns a complete file of this work under its second name back into an unfinished one; deletes those of other works."""
        with disk(self.name):
            for found in ready_paths(self.name):
                try:
                    fd = os.open(found, os.O_RDWR | os.O_NOFOLLOW)
                except FileNotFoundError:  # it was renamed meanwhile
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
        """Whether the hidden name still refers to the open file: not after it is finished or deleted."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.partial))
        except FileNotFoundError:
            return False

    # -------------------------------------------------------------------------------------------- the system

    def _lock(self):
        """Opens the hidden file and locks it. A lock ends with its process, so it is never stale."""
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
            self.close(keep=True)  # another process has just finished or deleted it

    def _flock(self, fd):
        self._note(lock(fd, self.name))

    def _sync(self):
        if self.sync:
            self._note(flush(self.fd, self.name))

    def _sync_folder(self):
        """Syncs the folder, so that the new name survives a power failure."""
        if not self.sync:
            return
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
        if sentence and sentence not in self.notes:
            self.notes.append(sentence)

    def _check_space(self):
        """Raises DiskError if the disk has too little free space; not if the filesystem does not report it."""
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


class Claim(Partial):
    """Keeps other claims of the output `path` away until `close` or the end of the `with` block. Raises Busy, UsageError, DiskError.

    For work that takes long and writes the output as a whole, perhaps several times. The lock is an empty hidden file of its
    own, which is deleted at the end. notes: as those of a Partial.
    """

    def __init__(self, path):
        self.name, self.path, self.notes = expanded(path), check_place(path), []
        self.partial = partial_path(path).with_suffix(".lock")
        self._lock()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close(keep=False)


class Busy(DiskError):
    """Another process writes the output."""


def lock(fd, name):
    """Locks an open file until it is closed; returns a sentence if the filesystem has no locks. Raises Busy, DiskError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"{name} is being written by another process: wait for it, or choose another name") from None
    except OSError as error:
        if error.errno not in UNLOCKABLE:
            raise DiskError(f"{name} cannot be locked: {reason(error, WRITING, 'write elsewhere')}") from None
        return f"the filesystem of {name} has no locks ({error.strerror}): write it with one command at a time"


def flush(fd, name):
    """Flushes an open file to the disk; returns a sentence if the filesystem cannot. Raises OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return f"the filesystem of {name} cannot flush files ({error.strerror}): a power cut may damage it"


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
