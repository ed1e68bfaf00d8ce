"""Expands paths, finds the folder of caches, explains the system's errors of reading and writing, tells contents apart."""

import errno
import os
import stat
import threading
import time

from ivlite.errors import UsageError, shown
from ivlite.stop import checkpoint

# (error numbers, advice); the first row with the number applies. One table for reading, one for writing.
MANY = ((errno.EMFILE, errno.ENFILE), "close other files or models, or raise the limit (`ulimit -n`)")
DISK = ((errno.EIO, errno.ESTALE, errno.ENXIO), "check the disk or the connection to it")
READING = (
    MANY,
    DISK,
    ((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP), "check the path"),
    ((errno.EACCES, errno.EPERM), "check its permissions"),
    ((errno.ENOMEM,), "close other programs"),
)
WRITING = (
    MANY,
    DISK,
    ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or write elsewhere"),
    ((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions or write elsewhere"),
)


def reason(error, table=READING, otherwise="check the path"):
    """The system's message of an OSError or ValueError, and advice: "Too many open files; close other ..."."""
    number = getattr(error, "errno", None)
    advice = next((advice for numbers, advice in table if number in numbers), otherwise)
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{words:.200}; {advice}"


def opened(path):
    """Opens a regular file for reading bytes. Raises OSError for anything else: pipes and devices may have no end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # a pipe would wait
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "It is not a regular file", path)
    return file


def path_text(path):
    """A path of any type as a text. Raises UsageError for what is no path."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise UsageError(f"the path is {shown(path)}; it must be a text, bytes or a Path") from None


def expanded(path):
    """Expands a leading ~ in a path, as a shell does; one of bytes becomes a text, another stays as it is. Raises UsageError."""
    text = path_text(path)
    path = text if isinstance(os.fspath(path), bytes) else path
    if not text.startswith("~"):
        return path
    own = text.split("/", 1)[0] == "~"
    if own and not os.environ.get("HOME"):  # unset or empty
        import pwd

        try:
            return pwd.getpwuid(os.getuid()).pw_dir + text[1:]
        except KeyError:
            return path
    try:
        return os.path.expanduser(text)
    except ValueError:  # a null, a surrogate: no user has such a name
        return path


def identity(path):
    """(device, inode) of the file at a path; None if there is none or it cannot be accessed."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return info.st_dev, info.st_ino


def cache_folder(warn=None):
    """The Path of ivlite's own folder, $XDG_CACHE_HOME/ivlite or ~/.cache/ivlite, made if it is missing.

    It holds only what can be computed again. None where nothing can be kept: no HOME, a read-only or full disk; then
    warn(sentence) is called with the reason.
    """
    try:
        return _cache_folder()
    except (OSError, ValueError) as error:  # ValueError: a null in a path
        if warn is not None:
            name = f"{error.filename:.200}: " if isinstance(getattr(error, "filename", None), str) else ""
            words = getattr(error, "strerror", None) or str(error)
            warn(
                f"nothing is kept for later commands: {name}{words}; set XDG_CACHE_HOME to a folder that can be written"
            )
        return None


def _cache_folder():
    from pathlib import Path  # not needed for --help

    home, base = os.environ.get("HOME"), os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # unset, or to be ignored
        if not home:
            raise OSError(errno.ENOENT, "HOME is not set")
        if not os.path.isdir(home):  # never made here: it may be mounted later
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), home)
        base = os.path.join(home, ".cache")
    folder = Path(base) / "ivlite"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # 0o700: it tells what was watched and asked
    if not os.access(folder, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))
    return folder


# ------------------------------------------------------------------------------------------------ contents of files


PIECE = 4 << 20  # bytes read at a time
RACY = 2_000_000_000  # nanoseconds: a file that changed so recently may change again under the same times
REMEMBERED = 4096  # files
_digests: dict[tuple[int, ...], bytes] = {}  # by signature, the oldest first
_hashing: dict[tuple[int, ...], threading.Event] = {}  # signatures of files that a thread is reading
_lock = threading.Lock()


def _forked():
    global _lock
    _lock = threading.Lock()
    _hashing.clear()  # their threads stayed with the parent


os.register_at_fork(after_in_child=_forked)


def signature(path):
    """(device, inode, size, mtime_ns, ctime_ns) of the file at a path or descriptor: changes when its content does."""
    info = os.stat(path)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def has_digest(mark):
    """Whether the digest of a file with this signature is remembered, here or by another process."""
    return mark in _digests or _recalled(mark) is not None


def content_digest(path, report=None):
    """The BLAKE2b digest (32 bytes) of a file's content; remembered while the file's signature stays the same.

    Later processes remember it as well, after keep_digests(). A file that changed less than 2 seconds ago is read again
    at every call. Two threads that want the same file read it once. report(done, total) counts bytes. Raises OSError,
    Stopped.
    """
    while True:
        mark = signature(path)
        with _lock:
            if (found := _digests.get(mark) or _recalled(mark)) is not None:
                return found
            other = _hashing.get(mark)
            if other is None:
                mine = _hashing[mark] = threading.Event()
                break
        while not other.wait(0.02):
            checkpoint()
    try:
        return _hashed(path, mark, report)
    finally:
        with _lock:
            _hashing.pop(mark, None)
        mine.set()


def _hashed(path, mark, report):
    import hashlib  # --help does without it

    began, done, digest = time.time_ns(), 0, hashlib.blake2b(digest_size=32)
    with opened(path) as file:
        while piece := file.read(PIECE):
            checkpoint()
            digest.update(piece)
            done += len(piece)
            if report:
                report(min(done, mark[2]), mark[2])
        steady = signature(file.fileno()) == mark
    if steady and began - max(mark[3], mark[4]) > RACY:
        with _lock:
            _digests[mark] = digest.digest()
            while len(_digests) > REMEMBERED:
                del _digests[next(iter(_digests))]
        _keep(mark, digest.digest())
    return digest.digest()


# Digests are kept in a table of REMEMBERED records, each in the place that its key says: no index, no lock, no growth.
RECORD = 80  # bytes: 16 of a digest of the signature (the key), 32 of the file's digest, 32 of a digest of these 48
_table: list[str] = []  # the path of the table, if digests are kept


def keep_digests(folder):
    """Keeps digests of files for later processes, in a file of a folder; None: no longer."""
    _table[:] = [] if folder is None else [os.path.join(folder, "digests")]


def _key(mark):
    import hashlib

    return hashlib.blake2b(repr(mark).encode(), digest_size=16).digest()


def _sealed(data):
    import hashlib

    return data + hashlib.blake2b(data, digest_size=RECORD - len(data)).digest()


def _place(key):
    return int.from_bytes(key[:8], "little") % REMEMBERED * RECORD


def _recalled(mark):
    """The digest that another process has kept for a signature, or None."""
    key = _key(mark)
    for path in _table:
        try:
            with opened(path) as file:
                record = os.pread(file.fileno(), RECORD, _place(key))
        except OSError:
            continue
        if record[:16] == key and record == _sealed(record[:48]):
            return record[16:48]
    return None


def _keep(mark, digest):
    key = _key(mark)
    for path in _table:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            try:
                os.pwrite(fd, _sealed(key + digest), _place(key))
            finally:
                os.close(fd)
        except OSError:
            pass  # the file is read again the next time
