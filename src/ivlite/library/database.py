"""The SQLite file of a library: opened, locked, repaired. A fault of the file or its disk never costs an answer.

Every write is one transaction. What cannot be used (damaged, of a newer version; of another program where the place is the
default one) is set aside under another name and never deleted. Where nothing can be written, the work goes on in memory, with
one warning.
"""

import contextlib
import fcntl
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ivlite.errors import DiskError, UsageError, sentence
from ivlite.files import WRITING, expanded, identity, reason
from ivlite.library import schema
from ivlite.stop import checkpoint

T = TypeVar("T")
BUSY = 30.0  # seconds that another program may hold the file
SLICE = 0.2  # seconds of one wait for it
SAID = 2.0  # seconds after which a wait is said
CHECKED = 64 << 20  # bytes of a file that is checked when it is opened
COPIED = 512 << 20  # bytes of a file that goes on in memory
NAMES = (".sqlite", ".sqlite3", ".db")  # ends of the names of libraries, which may have lost their first bytes
FAULTS = (sqlite3.DatabaseError, UnicodeDecodeError)
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
UNWRITABLE = (
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_PROTOCOL,
)  # fmt: skip


class Malformed(sqlite3.DatabaseError):
    """A row that is not of its table's kind."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class Database:
    """One connection. path: of the file; None: in memory. warn: called with each sentence for the user.

    strict: what cannot be written is a DiskError; otherwise the work goes on in memory. kept: whether it is on the disk.
    named: a person named the file, which may be anything: what is clearly no library stays where it is.
    """

    def __init__(
        self, path: str | None, warn: Callable[[str], None], strict: bool = False, named: bool = False
    ) -> None:
        self.path, self.warn, self.strict, self.kept, self.named = path, warn, strict, path is not None, named
        self._identity: tuple[int, int] | None = None  # of the file that is open
        self._lock = threading.RLock()
        self.connection = self._opened() if path is not None else _in_memory()
        self.indexes = self._indexes()

    def close(self) -> None:
        with self._lock:
            self.connection.close()

    def rows(self, sql: str, parameters: Sequence[Any] = (), make: Callable[..., Any] = lambda *row: row) -> list[Any]:
        """make(*row) for the rows of a query; where that fails, the file is damaged."""

        def made(connection: sqlite3.Connection) -> list[Any]:
            found = connection.execute(sql, parameters).fetchall()
            try:
                return [make(*row) for row in found]
            except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
                raise Malformed(f"a row is malformed: {error}") from error

        return self._tried(made)

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Calls work(connection) in a transaction of its own; it may be called again. Raises DiskError, Stopped."""

        def transaction(connection: sqlite3.Connection) -> T:
            if connection.in_transaction:
                return work(connection)
            connection.execute("BEGIN IMMEDIATE")
            try:
                found = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            return found

        return self._tried(transaction)

    def _tried(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """work(connection), once more after each fault that can be mended."""
        with self._lock:
            for _ in range(3):
                try:
                    return self._patiently(lambda: work(self.connection))
                except FAULTS as error:
                    self._mend(error)
            raise DiskError(f"the library {self.path} cannot be used: give another file with --library")

    def _patiently(self, work: Callable[[], T]) -> T:
        """work(), as often as another program holds the file, for a while."""
        began, said = time.monotonic(), False
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                waited = time.monotonic() - began
                if _code(error) not in LOCKED or waited > BUSY:
                    raise
                if waited > SAID and not said:
                    self.warn(f"waiting for another program that writes to the library {self.path}")
                    said = True
                checkpoint()
                time.sleep(0.02)

    def _mend(self, error: Exception) -> None:
        """Makes a fault good, so that the work can be tried again. Raises what is no fault of the file."""
        code = _code(error)
        if code == sqlite3.SQLITE_CONSTRAINT and _whole(self.connection):
            raise UsageError("the library has no such video, segment or run") from error
        if not self.kept:
            raise error
        if code in (*DAMAGE, sqlite3.SQLITE_CONSTRAINT) or (
            code == sqlite3.SQLITE_ERROR and not schema.intact(self.connection)
        ):
            self.connection.close()
            self._set_aside("is damaged")
            self.connection = self._opened()
        elif code in LOCKED:
            self._to_memory(
                f"another program has held the library {self.path} for {BUSY:.0f} s; wait for it, or use --library"
            )
        elif code in UNWRITABLE:
            self._to_memory(_why(error, self.path))
        else:
            raise error
        self.indexes = self._indexes()

    # -------------------------------------------------------------------------------------------- opening

    def _opened(self) -> sqlite3.Connection:
        """A connection to the file, made if it is missing; to a copy in memory where it cannot be written."""
        assert self.path is not None
        for _ in range(3):
            connection = None
            try:
                self._identity = _made(self.path)
                connection = _plain(self.path)
                if not (wrong := self._patiently(partial(_prepared, connection, self.path))):
                    return connection
            except FAULTS as error:
                code = _code(error)
                if code in UNWRITABLE or code in LOCKED:
                    return self._memory(connection, error)
                if code not in (*DAMAGE, sqlite3.SQLITE_ERROR):
                    raise
                wrong = "is damaged" if _is_database(self.path) else "is no library of ivlite"
            if connection is not None:
                connection.close()
            if self.named and (wrong == schema.OTHERS or not _named_so(self.path)):
                raise UsageError(f"the library {self.path} {wrong}: name another file")
            self._set_aside(wrong)
        raise DiskError(f"the library {self.path} cannot be made: use another file")

    def _memory(self, connection: sqlite3.Connection | None, error: Exception) -> sqlite3.Connection:
        """A connection to a copy in memory of a file that cannot be written. Raises DiskError if that is not wanted."""
        if connection is not None:
            connection.close()
        why = (
            f"another program holds the library {self.path}; wait for it, or use --library"
            if _code(error) in LOCKED else _why(error, self.path)
        )  # fmt: skip
        self._not_kept(why)
        assert self.path is not None
        for flags in ("mode=ro", "mode=ro&immutable=1"):
            with contextlib.suppress(sqlite3.Error):
                source = sqlite3.connect(f"file:{quote(os.fsencode(self.path))}?{flags}", uri=True, timeout=SLICE)
                try:
                    if not schema.state(source) and os.path.getsize(self.path) <= COPIED:
                        copy = _plain(":memory:")
                        source.backup(copy)
                        return copy
                except OSError:
                    pass
                finally:
                    source.close()
        return _in_memory()

    def _to_memory(self, why: str) -> None:
        """Goes on with a copy of the database in memory. Raises DiskError if that is not wanted."""
        self._not_kept(why)
        copy = _plain(":memory:")
        try:
            pages, size = (
                self.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
            )
            if pages * size > COPIED:
                raise sqlite3.DatabaseError("too large")
            self.connection.backup(copy)
        except sqlite3.Error:
            copy.close()
            copy = _in_memory()
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()
        self.connection = copy

    def _not_kept(self, why: str) -> None:
        self.kept = False
        if self.strict:
            raise DiskError(f"the library cannot be written: {why}")
        self.warn(f"what is found out is not kept in the library: {why}")

    def _set_aside(self, wrong: str) -> None:
        """Renames a file that cannot be used, unless another program has done it just now."""
        assert self.path is not None
        with _turn(self.path):
            if identity(self.path) != self._identity:
                return
            name = aside(self.path)
            try:
                for suffix in ("", "-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(self.path + suffix, name + suffix)
            except OSError as error:
                raise DiskError(
                    f"the library {self.path} {wrong}, and cannot be set aside: {reason(error, WRITING)}"
                ) from None
        self.warn(f"the library {self.path} {wrong}: it is set aside as {os.path.basename(name)}, and a new one begins")

    def _indexes(self) -> list[str]:
        """The full-text indexes of the file that this SQLite can use."""
        names = [
            name
            for (name,) in self.connection.execute("SELECT name FROM sqlite_master WHERE name IN ('words', 'grams')")
        ]
        return [name for name in names if name in schema.usable()]


def aside(path: str) -> str:
    """A name that is free, for a file that is set aside."""
    base = f"{path}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (base if n == 0 else f"{base}-{n}" for n in range(1000))
    return next(name for name in names if not os.path.lexists(name))


@contextlib.contextmanager
def _turn(path: str) -> Iterator[None]:
    """One process at a time, where the filesystem has locks."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _plain(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=SLICE, isolation_level=None, check_same_thread=False)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")  # of a damaged file
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _made(path: str) -> tuple[int, int] | None:
    """The identity of a file, which is made for its owner only if it is missing: it tells what was watched and asked."""
    try:
        # opens nothing: closing the file would drop the locks that this process's other threads have on it
        os.mknod(path, 0o600)
    except FileExistsError:
        pass
    except OSError:  # not for everybody on every system
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return identity(path)


def _in_memory() -> sqlite3.Connection:
    connection = _plain(":memory:")
    schema.create(connection)
    return connection


def _prepared(connection: sqlite3.Connection, path: str) -> str:
    """Makes the tables of an empty file; returns what is wrong with any other, "" for nothing."""
    wrong = schema.state(connection)
    if wrong == "empty":
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if schema.state(connection) == "empty":  # another program may have made them
                schema.create(connection)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        wrong = schema.state(connection)
    elif not wrong:
        if not _sound(connection, path):
            return "is damaged"
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")  # a file or a folder that is read-only is found out now
        connection.execute("ROLLBACK")
    if not wrong:
        connection.execute("PRAGMA synchronous = NORMAL")
    return wrong


def _sound(connection: sqlite3.Connection, path: str) -> bool:
    """Whether SQLite finds a small file whole."""
    try:
        large = os.path.getsize(path) > CHECKED
    except OSError:
        return True
    return large or [row[0] for row in connection.execute("PRAGMA quick_check(1)")] == ["ok"]


def _whole(connection: sqlite3.Connection) -> bool:
    """Whether SQLite finds a database whole, its indexes included."""
    try:
        return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
    except FAULTS:
        return False


def _named_so(path: str) -> bool:
    """Whether a file is a database by its first bytes, or by its name, so that it may be a library that is damaged."""
    return _is_database(path) or os.path.splitext(path)[1].lower() in NAMES


def _is_database(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return True


def _code(error: Exception) -> int:
    """The primary result code of SQLite's error."""
    if isinstance(error, UnicodeDecodeError):  # a message about damage that quotes it
        return sqlite3.SQLITE_CORRUPT
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _why(error: Exception, path: str | None) -> str:
    """What happened and what to do, for an error of writing."""
    words = {
        sqlite3.SQLITE_FULL: "the disk is full; free some space",
        sqlite3.SQLITE_IOERR: "its disk reports an error, or is full",
    }
    said = words.get(_code(error), f"{sentence(error, 100)}; check its permissions")
    return f"{path}: {said}, or use --library FILE on another disk"


# ------------------------------------------------------------------------------------------------ where it lies


def place(path: Any, warn: Callable[[str], None]) -> str | None:
    """The path of a library: the one given, else in the user's data folder. None, with a warning, where there is none.

    Raises UsageError, DiskError for a given path that cannot be one.
    """
    if path is not None:
        return _given(os.fsdecode(expanded(path)))
    try:
        home, base = os.environ.get("HOME"), os.environ.get("XDG_DATA_HOME", "")
        if not os.path.isabs(base):
            if not home or not os.path.isdir(home):
                raise OSError(2, f"there is no home folder {home}" if home else "HOME is not set")
            base = os.path.join(home, ".local", "share")
        folder = Path(base) / "ivlite"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder / "library.sqlite")
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        name = f"{found}: " if isinstance(found := getattr(error, "filename", None), str) else ""
        warn(f"what is found out is not kept in the library: {name}{words}; set XDG_DATA_HOME, or use --library FILE")
        return None


def _given(path: str) -> str:
    if not path or "\0" in path:
        raise UsageError("the path of the library is empty: name a file")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise DiskError(f"the library {path} cannot be made: there is no folder {folder}; make it first")
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return os.path.abspath(path)
    if stat.S_ISDIR(mode):
        raise UsageError(f"the library {path} is a folder: name a file in it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"the library {path} is not a regular file: name a file on a disk")
    return os.path.realpath(path)
