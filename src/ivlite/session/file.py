"""Session files (.ivs): what a conversation consists of, and the rows of its cache. docs/sessions.md has the format.

A file grows by appending: blocks of rows, then a table of everything, then two roots in turn that name the table. So a
kill at any moment leaves the older state or the newer one. Checksums cover every byte that is used, and every size is
checked against the file before memory is allocated for it.
"""

import contextlib
import hashlib
import os
import struct
import time
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ivlite.errors import OvertakenError, SessionFileError, UsageError
from ivlite.files import expanded, identity, opened, reason
from ivlite.output import Busy, Partial, check_place, disk, flush, lock
from ivlite.session.table import BLOCK, TABLE_LIMIT, Table, Wrong, blocks_at
from ivlite.stop import checkpoint
from ivlite.workers import Workers

MAGIC = b"\x89IVS\r\n\x1a\n"
VERSION = 1
ORDER = struct.pack("=I", 0x01020304)  # of the machine that wrote the rows
PAGE = 4096  # bytes of the header and of each root; a disk writes a page wholly or not at all
HEADER = struct.Struct("<8sI4s16s")  # magic, version, byte order, a random name of the file's contents
ROOT = struct.Struct("<QQQQ32s")  # sequence, table: offset, size; end of what is in use; SHA-256 of the table
ROOTS = (PAGE, 2 * PAGE)
DATA = 3 * PAGE
AHEAD = 4  # blocks in memory at a time
WAIT = 30.0  # seconds to wait for another process that saves the same file
END = "use a copy of it, or delete it"


def page(structure, *values):
    """A page: the packed values, their SHA-256, zeros."""
    data = structure.pack(*values)
    return (data + hashlib.sha256(data).digest()).ljust(PAGE, b"\0")


def unpaged(structure, data):
    """The values of a page, or None if any of its bytes is not as it was written."""
    values = structure.unpack_from(data)
    return values if data == page(structure, *values) else None


@dataclass(frozen=True)
class Root:
    """The state that a save has left: where its table is, and where the next save goes on."""

    sequence: int
    offset: int
    size: int
    end: int
    digest: bytes

    def page(self):
        return page(ROOT, self.sequence, self.offset, self.size, self.end, self.digest)


class Damaged(SessionFileError):
    """A session file breaks the format."""


def absolute(path):
    """A path, with ~ for the home folder, that means the same file wherever the process goes."""
    path = expanded(path)
    try:
        full = Path(path).absolute() if os.fspath(path) else path
    except OSError:  # the working folder is gone: so is what the path meant
        return path
    return full if isinstance(path, Path) else os.fspath(full)


def added(cache, first, data):
    """Restores a block of rows from row `first` on; those of them that the cache holds already stay as they are."""
    held = cache.length
    own = cache.dump(first, held) if first < held else None
    cache.truncate(first)
    cache.restore(first, data)
    if own is not None:
        rest = cache.dump(held, cache.length)
        cache.truncate(first)
        cache.restore(first, own)
        cache.restore(held, rest)


class SessionFile:
    """A session file by its path, existing or not. Use open() to read an existing one.

    table: the Table last read or saved. durable: saves are flushed to the disk, and survive a power failure.
    notes: sentences about what the filesystem does not support.
    """

    _fd = None

    def __init__(self, path, durable=True):
        self.path, self.durable, self.notes = absolute(path), durable, []
        self.table = self._id = self._root = None

    @classmethod
    def open(cls, path, durable=True):
        """Reads all of a session file but its rows. Raises SessionFileError."""
        file = cls(path, durable)
        try:
            with opened(file.path) as source:
                file._fd = os.dup(source.fileno())
            file._read_state()
            return file
        except FileNotFoundError:
            raise SessionFileError(f"there is no session file {file.path}: check the path") from None
        except (OSError, ValueError) as error:
            file.close()
            raise SessionFileError(f"{file.path} cannot be opened: {reason(error)}") from None
        except BaseException:
            file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        self.close()

    def close(self):
        """Closes the file; it can still be saved."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def damaged(self, what):
        """The error for a file that breaks the format."""
        return Damaged(f"{self.path} is damaged: {what}; {END}")

    # -------------------------------------------------------------------------------------------- reading

    def _read_state(self):
        self._id = self._header(self._read(0, PAGE) if self._size() >= DATA else None)
        self._root = self._newest(self._fd)
        if self._root is None:
            raise self.damaged("both of its root records")
        root, size = self._root, self._size()
        if root.end > size:
            raise self.damaged(f"it has {size} bytes and must have {root.end}")
        if not DATA <= root.offset <= root.offset + root.size <= root.end or root.size > TABLE_LIMIT:
            raise self.damaged("its root record")
        data = self._read(root.offset, root.size)
        if hashlib.sha256(data).digest() != root.digest:
            raise self.damaged("its table")
        try:
            self.table = Table.parsed(data, range(DATA, root.end), range(root.offset, root.offset + root.size))
        except Wrong as error:
            raise self.damaged(f"{error}, in its table") from None

    def _header(self, data):
        """The random name in a header page. data: None for a file that is too short for one."""
        if data is None or data[: len(MAGIC)] != MAGIC:
            size = self._size()
            if size == 0:
                raise SessionFileError(f"{self.path} is empty: it is no session file")
            if len(MAGIC) <= size < DATA and self._read(0, len(MAGIC)) == MAGIC:
                raise self.damaged(f"it has {size} bytes and must have {DATA} at least")
            raise SessionFileError(f"{self.path} is not a session file: name one that ivlite saved, or a new one")
        values = unpaged(HEADER, data)
        if values is None:
            raise self.damaged("its header")
        _, version, order, name = values
        if version != VERSION:
            raise SessionFileError(
                f"{self.path} is a session file of version {version}; this ivlite reads version {VERSION}: "
                "open it with the ivlite that saved it, or choose another name"
            )
        if order != ORDER:
            raise SessionFileError(
                f"{self.path} was saved on a machine of another byte order: open it there, or choose another name"
            )
        return name

    def _newest(self, fd):
        """The newer Root of an open file; None if both are damaged."""
        found = [unpaged(ROOT, os.pread(fd, PAGE, at).ljust(PAGE, b"\0")) for at in ROOTS]
        return max((Root(*values) for values in found if values), key=lambda root: root.sequence, default=None)

    def _size(self):
        return os.fstat(self._fd).st_size

    def _read(self, offset, count):
        """`count` bytes from an offset."""
        return self._fill(bytearray(count), offset)

    def _fill(self, out, offset):
        view, done = memoryview(out).cast("B"), 0
        while done < len(view):
            try:
                got = os.preadv(self._fd, [view[done : done + (1 << 30)]], offset + done)
            except OSError as error:
                raise SessionFileError(f"{self.path} cannot be read: {reason(error)}") from None
            if not got:
                raise SessionFileError(f"{self.path} became shorter while it was read; {END}")
            done += got
        return out

    def restore(self, cache, count=None, report=None):
        """Puts the rows of the first `count` tokens (None: all) into a cache, after those that it holds already.

        The rows held must be those of the same tokens, and stay as they are. If a block is damaged, the cache keeps the rows before it.
        report(done, total) counts bytes. Raises SessionFileError, Stopped.
        """
        table, count = self.table, self.table.length if count is None else min(count, self.table.length)
        if cache.token_bytes != table.layout.token_bytes:
            raise SessionFileError(f"{self.path} has a cache of another form: open it with the ivlite that saved it")
        blocks = [b for b in table.blocks if b.last > cache.length and b.first < count]
        if blocks and blocks[-1].last > count:  # a block comes whole
            cache.reserve(blocks[-1].last)
        buffers = [
            np.empty(max((b.rows for b in blocks), default=0) * table.layout.token_bytes, np.uint8)
            for _ in range(AHEAD)
        ]
        with Workers(max_workers=AHEAD) as workers:
            try:
                self._restore(cache, blocks, buffers, workers, report or nothing)
            finally:
                workers.shutdown(cancel_futures=True)
        if cache.length > count:
            cache.truncate(count)

    def _restore(self, cache, blocks, buffers, workers, report):
        """Reads and checks up to AHEAD blocks at a time, in threads, and restores them in order."""
        waiting, done, total = [], 0, sum(block.size for block in blocks)
        for index, block in enumerate([*blocks, *[None] * AHEAD]):
            if len(waiting) == AHEAD or (block is None and waiting):
                first, future = waiting.pop(0)
                data = future.result()
                added(cache, first, data)
                done += len(data)
                report(done, total)
            if block is not None:
                checkpoint()
                waiting.append((block.first, workers.submit(self._block, block, buffers[index % AHEAD])))

    def _block(self, block, buffer):
        data = self._fill(buffer[: block.size], block.offset)
        if zlib.crc32(data) != block.sum:
            raise self.damaged(f"the rows of tokens {block.first} to {block.last - 1}")
        return data

    # -------------------------------------------------------------------------------------------- writing

    def save(self, layout, meta, arrays, cache, rows, unchanged=0, report=None, replace=True):
        """Saves a state: appends what is new to the state last read or saved, or writes the whole file.

        layout: the Layout of the cache. meta: JSON data. arrays: {name: numpy array}. rows: how many of the cache's rows
        are saved; with 0 there need be no cache. unchanged: how many of these are as they were last read or saved.
        If another process has saved to the path since, its state is replaced, or without `replace` OvertakenError is
        raised. report(done, total) counts bytes. Raises DiskError, UsageError, Stopped; the file then has the older state.
        """
        path = check_place(self.path)
        table = Table(layout, rows, meta, arrays, blocks_at(0, 0, rows, 1))
        size = len(table.packed())
        if size > TABLE_LIMIT:
            raise UsageError(f"{self.path} cannot be saved: its messages are longer than {TABLE_LIMIT >> 20} MB")
        with self._locked(path, replace) as fd:
            if fd is None or not self._append(fd, table, size, cache, unchanged, report or nothing):
                self._replace(table, size, cache, report or nothing)

    def _append(self, fd, table, size, cache, unchanged, report):
        """Appends what is new; returns False if more than half of the file would be out of use."""
        kept, end = self._kept(table.layout, table.length, unchanged), self._root.end
        added = blocks_at(end, kept[-1].last if kept else 0, table.length, table.layout.token_bytes)
        at = end + sum(block.size for block in added)
        if at + size > 2 * (DATA + table.length * table.layout.token_bytes + size):
            return False
        put = partial(self._put, fd)
        try:
            with disk(self.path):
                os.ftruncate(fd, end)  # removes what a killed save has left
            root = self._put_state(put, table, kept, added, at, cache, report)
            self._sync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, end)
            raise
        with disk(self.path):
            found = {slot: unpaged(ROOT, os.pread(fd, PAGE, slot)) for slot in ROOTS}
        older, newer = sorted(ROOTS, key=lambda slot: found[slot][0] if found[slot] else -1)
        put(root.page(), older)
        self.table, self._root = table, root
        self._sync(fd)
        put(root.page(), newer)
        return True

    def _kept(self, layout, length, unchanged):
        """The blocks of the state last read or saved that stay as they are: whole ones, and one that ends with the rows."""
        if self.table.layout != layout:
            return []
        good = [b.last <= min(unchanged, length) and (b.rows == BLOCK or b.last == length) for b in self.table.blocks]
        return self.table.blocks[: (good + [False]).index(False)]

    def _replace(self, table, size, cache, report):
        """Writes a whole new file, which takes the path in one step."""
        name, added = os.urandom(16), blocks_at(DATA, 0, table.length, table.layout.token_bytes)
        at = DATA + table.length * table.layout.token_bytes
        out = patiently(lambda: Partial(self.path, at + size, sync=self.durable))
        try:
            root = self._put_state(out.put, table, [], added, at, cache, report)
            out.put(page(HEADER, MAGIC, VERSION, ORDER, name) + 2 * root.page(), 0)
            out.finish()
        finally:
            out.close(keep=False)
        self.close()
        self.table, self._root, self._id = table, root, name
        self._note(*out.notes)

    def _put_state(self, put, table, kept, added, at, cache, report):
        """Writes blocks of rows, and the table at offset `at`; returns the Root of the new state."""
        table.blocks = kept + put_rows(put, added, cache, report)
        data = table.packed()
        put(data, at)
        sequence = self._root.sequence + 1 if self._root else 1
        return Root(sequence, at, len(data), at + len(data), hashlib.sha256(data).digest())

    def _put(self, fd, data, offset):
        view = memoryview(data).cast("B")
        with disk(self.path):
            while len(view):
                done = os.pwrite(fd, view[: 1 << 30], offset)
                view, offset = view[done:], offset + done

    # -------------------------------------------------------------------------------------------- locks

    @contextlib.contextmanager
    def _locked(self, path, replace):
        """Locks the file at a path while it is changed; yields its descriptor, or None if it has another state than `table`."""
        fd = patiently(lambda: self._lock(path))
        try:
            ours = fd is not None and self._is_ours(fd)
            if fd is not None and not ours and not replace:
                raise OvertakenError(f"{self.path} was saved by another process meanwhile: choose another name")
            yield fd if ours else None
        finally:
            if fd is not None:
                os.close(fd)

    def _lock(self, path):
        """Opens and locks the session file at a path; None if there is none. Raises Busy."""
        while True:
            with disk(self.path):
                try:
                    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
                except FileNotFoundError:
                    return None
                try:
                    self._note(lock(fd, self.path))
                    if identity(path) == identity(fd):
                        if os.pread(fd, len(MAGIC), 0) not in (b"", MAGIC):
                            raise UsageError(f"{self.path} exists and is no session file: choose another name")
                        return fd
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)  # another process has just replaced it

    def _is_ours(self, fd):
        """Whether an open file has the state last read or saved."""
        with disk(self.path):
            values = unpaged(HEADER, os.pread(fd, PAGE, 0).ljust(PAGE, b"\0"))
            return values is not None and values[3] == self._id and self._newest(fd) == self._root

    def _sync(self, fd):
        if self.durable:
            with disk(self.path):
                self._note(flush(fd, self.path))

    def _note(self, *sentences):
        self.notes += [s for s in sentences if s and s not in self.notes]


def nothing(done, total):
    """A report that goes nowhere."""


def put_rows(put, blocks, cache, report=nothing):
    """Writes Blocks of the rows of a cache with put(data, offset), in threads; returns them with their sums."""

    def one(block, data):
        put(data, block.offset)
        return block._replace(sum=zlib.crc32(data))

    done, waiting, total = [], [], sum(block.size for block in blocks)
    with Workers(max_workers=AHEAD) as workers:
        for block in blocks:
            checkpoint()
            if len(waiting) == AHEAD:
                done.append(waiting.pop(0).result())
                report(sum(b.size for b in done), total)
            waiting.append(workers.submit(one, block, cache.dump(block.first, block.last)))
        done += [future.result() for future in waiting]
        report(total, total)
        return done


def patiently(attempt):
    """The result of attempt(), tried again while another process writes the file. Raises Busy after WAIT seconds, Stopped."""
    end = time.monotonic() + WAIT
    while True:
        try:
            return attempt()
        except Busy:
            if time.monotonic() > end:
                raise
        checkpoint()
        time.sleep(0.02)
