"""Session files under kills, power failures, full disks, races: the older state or the newer one, never a broken one."""

import errno
import itertools
import os
import random
import resource
import signal
import struct
import time

import numpy as np
import pytest
from session_fakes import PlainCache, contents
from test_session_file import outcome, read, save, state

from ivlite import output
from ivlite.errors import DiskError, SessionFileError, Stopped, UsageError
from ivlite.session import file as module
from ivlite.session.file import BLOCK, PAGE, SessionFile
from ivlite.stop import Stop, using


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.ivs"


# ------------------------------------------------------------------------------------------------ kills and full disks

CALLS = ("open", "pwrite", "ftruncate", "fsync", "replace", "unlink", "close")


def forked(work):
    """Runs work() in a forked process, which ends without cleaning up; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(9)
    return pid


def killed_at(call, work):
    """Kills a forked process before its n-th call that changes something on the disk; whether there was such a call."""
    count = 0

    def dying():
        def wrapped(real):
            def function(*args, **more):
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            return function

        for name in CALLS:
            setattr(os, name, wrapped(getattr(os, name)))
        work()
        os._exit(0)

    status = os.waitpid(forked(dying), 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize("way", ["first", "append", "replace"])
def test_killed_at_every_moment(path, way):
    """Before every call of the system that changes something: the older or the newer state, and the next save works."""
    old, seen = PlainCache().grow(3 * BLOCK + 5), set()
    new = PlainCache().grow(3 * BLOCK + 5).grow(2 * BLOCK) if way != "replace" else PlainCache().grow(9, seed=1)
    unchanged = {"first": 0, "append": old.length, "replace": 0}[way]
    for call in range(1, 200):
        for name in os.listdir(path.parent):
            os.unlink(path.parent / name)
        if way != "first":
            save(SessionFile(path), old)
        file = SessionFile.open(path) if path.exists() else SessionFile(path)
        if not killed_at(call, lambda file=file: save(file, new, unchanged)):
            assert read(path) == state(new)
            break
        found = read(path) if path.exists() else None
        assert found in (state(new), None if way == "first" else state(old)), call
        seen.add(found == state(new))
        save(file, new, unchanged)
        assert read(path) == state(new) and os.listdir(path.parent) == [path.name]
    else:
        raise AssertionError("the work never ended")
    assert seen == {False, True} and call > 9


def killed_at_random(path, kills, rng):
    """Kills a process that saves again and again, at random moments; each time the file has one of its states.

    How far it comes is counted in saves that it has begun, and a random moment within the one at hand comes on top:
    a clock alone would kill a slow machine's every process before its first save. Returns the states seen.
    """
    token_bytes = 4000

    def saving():
        file = SessionFile.open(path)
        cache = PlainCache(token_bytes)
        file.restore(cache)
        while True:
            keep = cache.length if rng.random() < 0.7 else rng.randrange(cache.length + 1)
            cache.truncate(keep)
            cache.grow(rng.randrange(1, 300), seed=rng.random()) if keep < 2000 else cache.truncate(10)
            os.write(told, b"x")
            save(file, cache, min(keep, cache.length), note=str(cache.data.sum()))

    cache = PlainCache(token_bytes).grow(10)
    began = time.perf_counter()
    save(SessionFile(path), cache, note=str(cache.data.sum()))
    span = time.perf_counter() - began
    seen = set()
    for kill in range(kills):
        rng.seed(rng.random())
        heard, told = os.pipe()
        pid = forked(saving)
        os.close(told)  # where the process ends by itself, reading ends too
        for _ in range(1 + kill % 3):  # at the second and the third, an earlier save is whole
            os.read(heard, 1)
        time.sleep(rng.random() * span)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        os.close(heard)
        _, meta, arrays, rows = read(path)
        assert meta["messages"][0]["content"] == str(np.frombuffer(rows, np.uint8).sum())
        assert len(arrays["tokens"]) * token_bytes == len(rows)
        seen.add(rows)
    return len(seen)


def test_killed_at_random_moments(path):
    assert killed_at_random(path, 20, random.Random(15)) > 6


def what_may_be_left(base, log):
    """The contents that a file may have after a power failure: what was flushed, and of the rest anything.

    log: ("write", offset, data), ("cut", size) and ("flush",) in order. A page is written wholly or not at all.
    """
    flushed = max((i for i, entry in enumerate(log) if entry[0] == "flush"), default=0)
    changes = [(i < flushed, entry) for i, entry in enumerate(log) if entry[0] != "flush"]
    sure = [
        (1.0,) if early else (0.0, 1.0) if e[0] == "cut" or len(e[2]) == PAGE else (0.0, 0.5, 1.0)
        for early, e in changes
    ]
    for parts in itertools.product(*sure):
        out = bytearray(base)
        for part, (_, (kind, at, *data)) in zip(parts, changes, strict=True):
            if kind == "cut" and part:
                del out[at:]
            elif kind == "write" and part:
                written = data[0][: int(len(data[0]) * part)]
                out.extend(bytes(max(0, at + len(written) - len(out))))
                out[at : at + len(written)] = written
        yield bytes(out)


def test_power_failures(path, monkeypatch):
    """Between any two calls of two saves, whatever the disk has written by then: the older state or the newer one."""
    cache, file, states, log = PlainCache().grow(BLOCK + 5), SessionFile(path), [], []
    save(file, cache)
    base, states, done, inode = path.read_bytes(), [state(cache)], [0], path.stat().st_ino
    real = {name: getattr(os, name) for name in ("pwrite", "ftruncate", "fsync")}

    def recorded(name, entry):
        def call(*args):
            log.append(entry(*args))
            return real[name](*args)

        monkeypatch.setattr(os, name, call)

    recorded("pwrite", lambda fd, data, at: ("write", at, bytes(data)))
    recorded("ftruncate", lambda fd, size: ("cut", size))
    recorded("fsync", lambda fd: ("flush",))
    for keep, more in ((BLOCK + 5, BLOCK), (2 * BLOCK - 20, 30)):
        cache.truncate(keep)
        save(file, cache.grow(more, seed=more), unchanged=keep)
        states.append(state(cache))
        done.append(len(log))
    monkeypatch.undo()
    assert path.stat().st_ino == inode
    seen = set()
    for count in range(len(log) + 1):
        least = max(i for i, end in enumerate(done) if end <= count)
        for data in set(what_may_be_left(base, log[:count])):
            found = outcome(path, data)
            assert found in states[least:], (count, least)
            seen.add(states.index(found))
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", "EDQUOT"])
def test_a_full_disk_keeps_the_older_state(path, monkeypatch, fault):
    old = PlainCache(400).grow(2 * BLOCK)
    save(SessionFile(path), old)
    size, number, real = path.stat().st_size, getattr(errno, fault), os.pwrite
    for way, new in (("append", PlainCache(400).grow(6 * BLOCK)), ("replace", PlainCache(400).grow(40, seed=1))):
        for good in range(4):
            file, left = SessionFile.open(path), [good]

            def failing(fd, data, offset, left=left):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(number, os.strerror(number))
                return real(fd, data[: max(1, len(data) // 2)], offset)

            with monkeypatch.context() as patch, pytest.raises(DiskError) as raised:
                patch.setattr(os, "pwrite", failing)
                save(file, new, unchanged=old.length if way == "append" else 0)
            assert raised.value.exit_code == 6 and str(path) in str(raised.value)
            assert read(path) == state(old) and path.stat().st_size == size
            assert os.listdir(path.parent) == [path.name]
    save(file, new)  # there is space again
    assert read(path) == state(new)


def test_a_file_size_limit(path):
    old, new = PlainCache(400).grow(2 * BLOCK), PlainCache(400).grow(6 * BLOCK)
    save(SessionFile(path), old)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9000, resource.RLIM_INFINITY))
        for unchanged in (old.length, 0):
            try:
                save(SessionFile.open(path), new, unchanged)
            except DiskError:
                continue
            os._exit(1)
        os._exit(0)

    assert os.waitpid(forked(work), 0)[1] == 0
    assert read(path) == state(old)


def test_a_stop_keeps_the_older_state(path):
    old, new = PlainCache().grow(2 * BLOCK), PlainCache().grow(30 * BLOCK)
    save(SessionFile(path), old)
    for unchanged in (0, old.length):
        stop, file = Stop(), SessionFile.open(path)
        dump, calls = new.dump, []

        def stopping(*rows, stop=stop, calls=calls, dump=dump):
            calls.append(rows)
            if len(calls) == 5:
                stop.set()
            return dump(*rows)

        new.dump = stopping
        with using(stop), pytest.raises(Stopped):
            save(file, new, unchanged)
        new.dump = dump
        assert len(calls) == 5 and read(path) == state(old) and os.listdir(path.parent) == [path.name]
    stop = Stop()
    stop.set()
    with using(stop), SessionFile.open(path) as file, pytest.raises(Stopped):
        file.restore(PlainCache())


# ------------------------------------------------------------------------------------------------ places and races


def test_places(path, tmp_path):
    cache = PlainCache().grow(5)
    other = tmp_path / "notes.txt"
    other.write_text("do not lose this")
    with pytest.raises(UsageError, match="no session file"):
        save(SessionFile(other), cache)
    assert other.read_text() == "do not lose this"
    with pytest.raises(UsageError, match="folder"):
        save(SessionFile(tmp_path), cache)
    with pytest.raises(DiskError, match="no folder"):
        save(SessionFile(tmp_path / "none" / "a.ivs"), cache)
    for name in (tmp_path, "/dev/null", tmp_path / "none", tmp_path / "none" / "x", "a\0b"):
        with pytest.raises(SessionFileError):
            SessionFile.open(name)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SessionFileError, match="regular"):
        SessionFile.open(tmp_path / "pipe")
    (tmp_path / "empty.ivs").touch()  # as mktemp makes it
    save(SessionFile(tmp_path / "empty.ivs"), cache)
    assert read(tmp_path / "empty.ivs") == state(cache)


def test_links_are_followed(path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere" / "real.ivs")
    cache, file = PlainCache().grow(300), SessionFile(path)
    for _ in range(3):
        save(file, cache, unchanged=cache.length)
        assert path.is_symlink() and read(tmp_path / "elsewhere" / "real.ivs") == state(cache)
        cache.grow(10)
    save(file, PlainCache().grow(2, seed=3))
    assert path.is_symlink() and read(path) == state(PlainCache().grow(2, seed=3))


def test_a_read_only_file_stays(path, monkeypatch):
    cache = PlainCache().grow(5)
    save(SessionFile(path), cache)
    path.chmod(0o444)
    real = os.open

    def refusing(name, flags, *more):  # the super-user may write it
        if flags & os.O_RDWR and str(name) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return real(name, flags, *more)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(DiskError, match="Permission denied"):
        save(SessionFile.open(path), cache.grow(3), unchanged=5)
    assert read(path) == state(PlainCache().grow(5))


def test_the_last_of_two_sessions_wins_whole(path):
    base = PlainCache().grow(BLOCK + 7)
    save(SessionFile(path), base)
    one, two = SessionFile.open(path), SessionFile.open(path)
    first, second = (PlainCache().grow(BLOCK + 7).grow(50, seed=s) for s in (1, 2))
    save(one, first, unchanged=BLOCK + 7)
    save(two, second, unchanged=BLOCK + 7)
    assert read(path) == state(second)
    save(one, first.grow(3), unchanged=first.length - 3)
    assert read(path) == state(first)
    os.unlink(path)  # or the file is moved away
    save(one, first.grow(3), unchanged=first.length - 3)
    assert read(path) == state(first)
    with SessionFile.open(path) as reader:  # a file that is replaced stays readable
        save(two, second)
        assert contents(reader) == state(first)


def test_processes_that_save_at_once(path):
    """Every state in the file is that of one process, whole."""
    save(SessionFile(path), PlainCache().grow(0), note="0")

    def saving(seed):
        file, cache = SessionFile.open(path), PlainCache()
        for turn in range(12):
            keep = cache.length if turn % 3 else 0
            cache.truncate(keep)
            save(file, cache.grow(100, seed=seed), unchanged=keep, note=str(seed))
        os._exit(0)

    pids = [forked(lambda seed=seed: saving(seed)) for seed in (1, 2, 3)]
    running, seen = set(pids), set()
    while running:
        _, meta, _, rows = read(path)
        seed = meta["messages"][0]["content"]
        assert rows == PlainCache().grow(len(rows) // 40, seed=seed).data.tobytes()
        seen.add(seed)
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0
                running.discard(pid)
    assert len(seen) > 1 and os.listdir(path.parent) == [path.name]


def test_a_file_that_stays_locked(path, monkeypatch):
    cache = PlainCache().grow(5)
    save(SessionFile(path), cache)
    monkeypatch.setattr(module, "WAIT", 0.05)
    with open(path, "rb") as holder:
        assert output.lock(holder.fileno(), path) is None
        with pytest.raises(output.Busy, match="another process"):
            save(SessionFile.open(path), cache.grow(1), unchanged=5)
        stop = Stop()
        stop.after(0)
        with using(stop), pytest.raises(Stopped):
            save(SessionFile.open(path), cache, unchanged=5)
    save(SessionFile.open(path), cache, unchanged=5)
    assert read(path) == state(cache)


def test_filesystems_without_locks_and_flushes(path, monkeypatch):
    cache, file = PlainCache().grow(5), SessionFile(path)

    def lacking(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(output.fcntl, "flock", lacking)
    monkeypatch.setattr(os, "fsync", lacking)
    save(file, cache)
    save(file, cache.grow(2), unchanged=5)
    assert read(path) == state(cache) and len(file.notes) == 2


def test_header_and_root_have_their_documented_forms(path):
    """docs/sessions.md, read with nothing but struct."""
    save(SessionFile(path), PlainCache().grow(BLOCK + 1))
    data = path.read_bytes()
    magic, version, order, _ = struct.unpack_from("<8sI4s16s", data)
    assert (magic, version, order) == (b"\x89IVS\r\n\x1a\n", 1, b"\4\3\2\1")
    sequence, offset, size, end, _ = struct.unpack_from("<QQQQ32s", data, 4096)
    assert (sequence, end) == (1, len(data)) and data[4096:8192] == data[8192:12288]
    (length,) = struct.unpack_from("<Q", data, offset)
    blocks = np.frombuffer(data[offset + size - 64 : offset + size], "<u8").reshape(2, 4)
    assert blocks[:, :3].tolist() == [[0, 256, 12288], [256, 1, 12288 + 256 * 40]] and length < size
