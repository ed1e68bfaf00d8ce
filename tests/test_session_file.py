"""Session files: what is saved is restored, whatever is damaged is found, and a kill leaves the older or the newer state."""

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
from session_fakes import PlainCache, contents, layout, rest

from ivlite import output
from ivlite.errors import DiskError, SessionFileError, Stopped, UsageError
from ivlite.session import file as module
from ivlite.session.file import BLOCK, DATA, HEADER, MAGIC, ORDER, PAGE, ROOT, ROOTS, SessionFile, page
from ivlite.session.table import ROWS_LIMIT, Table
from ivlite.stop import Stop, using


def save(file, cache, unchanged=0, note="", **changes):
    file.save(layout(cache, **changes), *rest(cache, note), cache, cache.length, unchanged)


def state(cache, note="", **changes):
    """What contents() gives of a file to which `cache` was saved."""
    meta, arrays = rest(cache, note)
    return layout(cache, **changes), meta, {k: a.tolist() for k, a in arrays.items()}, cache.data.tobytes()


def read(path):
    with SessionFile.open(path) as file:
        return contents(file)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "talk.ivs"


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 7])
def test_what_is_saved_is_restored(path, length):
    cache = PlainCache().grow(length)
    save(SessionFile(path), cache, note="\udcff é")  # a file name that is no UTF-8
    assert read(path) == state(cache, "\udcff é")
    with SessionFile.open(path) as file:
        for count in {0, 1, length // 2, length}:
            for held in {0, min(count, BLOCK), min(count, 3 * BLOCK + 5)}:
                part = PlainCache().grow(held)
                file.restore(part, count)
                assert (
                    (part.data == cache.data[:count]).all() if count > held else (part.data == cache.data[:held]).all()
                )


def test_a_file_grows_by_what_is_new(path):
    cache, file = PlainCache(1000).grow(3 * BLOCK + 10), SessionFile(path)
    save(file, cache)
    for added in (0, 1, 300, BLOCK * 2):
        before, size, inode = cache.length, path.stat().st_size, path.stat().st_ino
        save(file, cache.grow(added), unchanged=before, note=str(added))
        assert read(path) == state(cache, str(added))
        assert path.stat().st_ino == inode
        assert path.stat().st_size - size < (added + BLOCK) * 1000 + 20_000


def test_rolled_back_rows_are_replaced(path):
    cache, file = PlainCache().grow(5 * BLOCK), SessionFile(path)
    save(file, cache)
    for length in (4 * BLOCK + 3, 3 * BLOCK, 70, 0):
        cache.truncate(length)
        save(file, cache.grow(100, seed=length + 1), unchanged=length)
        assert read(path) == state(cache)
    with SessionFile.open(path) as again:  # saving goes on from a file that was opened
        save(again, cache.grow(BLOCK), unchanged=100)
    assert read(path) == state(cache)


def test_dead_space_stays_below_half(path):
    cache, file, inodes = PlainCache(400).grow(4 * BLOCK), SessionFile(path), set()
    for turn in range(40):
        save(file, cache, unchanged=BLOCK)
        inodes.add(path.stat().st_ino)
        live = DATA + cache.length * 400 + len(file.table.packed())
        assert path.stat().st_size <= 2 * live
        cache.truncate(BLOCK)
        cache.grow(3 * BLOCK, seed=turn)
    assert 1 < len(inodes) < 40 and os.listdir(path.parent) == [path.name]


# ------------------------------------------------------------------------------------------------ damage


def outcome(path, data):
    """The state in a file with these bytes; None if it is refused."""
    path.write_bytes(data)
    try:
        return read(path)
    except SessionFileError as error:
        assert str(path) in str(error) and len(str(error)) <= 500
        return None


def test_every_damaged_byte_is_found(path):
    cache, file = PlainCache(2).grow(BLOCK + 20), SessionFile(path)
    save(file, cache)
    save(file, cache.grow(10), unchanged=BLOCK + 20)  # the older last block and table are out of use
    data, right = path.read_bytes(), read(path)
    live = {*range(DATA), *range(file.table.blocks[0].offset, file.table.blocks[0].offset + BLOCK * 2)}
    live |= set(range(file.table.blocks[1].offset, len(data)))
    refused, tried = set(), [at for at in range(len(data)) if at >= DATA or at % PAGE < 120 or at % 31 == 0]
    with open(path, "r+b", buffering=0) as disk:
        for at in tried:
            os.pwrite(disk.fileno(), bytes([data[at] ^ 1 << at % 8]), at)
            try:
                assert read(path) == right, at  # the newest state or none, never another one
            except SessionFileError:
                refused.add(at)
            os.pwrite(disk.fileno(), data[at : at + 1], at)
    roots = set(range(ROOTS[0], DATA))  # each root repeats the other
    assert refused == (live - roots) & set(tried)


def test_cut_files_and_other_files(path):
    cache = PlainCache().grow(BLOCK + 2)
    save(SessionFile(path), cache)
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 100, PAGE, ROOTS[1], DATA - 1, DATA, DATA + 1, len(data) - 1):
        assert outcome(path, data[:size]) is None, size
    for other in (b"GGUF" + bytes(20000), b"x" * 20000, bytes(20000), MAGIC + bytes(20000)):
        assert outcome(path, other) is None
    assert outcome(path, data + b"the tail of a killed save") == state(cache)
    both = bytearray(data)
    both[ROOTS[0] + 3] ^= 1
    both[ROOTS[1] + 3] ^= 1
    assert outcome(path, bytes(both)) is None


def test_a_root_that_is_not_whole_gives_the_other(path):
    """As after a power failure between the two."""
    cache, file = PlainCache().grow(30), SessionFile(path)
    save(file, cache)
    older = path.read_bytes()
    save(file, cache.grow(5), unchanged=30)
    newer = bytearray(path.read_bytes())
    before, after = state(PlainCache().grow(30)), state(cache)
    for slot, expected in zip(ROOTS, (after, after), strict=True):
        mixed = newer.copy()
        mixed[slot : slot + PAGE] = older[slot : slot + PAGE]
        assert outcome(path, bytes(mixed)) == expected  # one root is newer: it was written first
        mixed[sum(ROOTS) - slot + 9] ^= 1
        assert outcome(path, bytes(mixed)) == before


def forged(cache, change=None, root=None, header=(MAGIC, 1, ORDER, bytes(16)), blocks=None):
    """A session file whose checksums are right; change(facts) edits its JSON."""
    import hashlib
    import json

    from ivlite.session.file import put_rows
    from ivlite.session.table import LENGTH, blocks_at

    out = bytearray(DATA + cache.length * cache.token_bytes)

    def put(data, offset):
        out[offset : offset + len(data)] = bytes(data)

    meta, arrays = rest(cache)
    table = Table(
        layout(cache),
        cache.length,
        meta,
        arrays,
        put_rows(put, blocks_at(DATA, 0, cache.length, cache.token_bytes), cache),
    )
    table.blocks = blocks(table.blocks) if blocks else table.blocks
    data = table.packed()
    if change:
        (size,) = LENGTH.unpack_from(data)
        facts = json.loads(data[8 : 8 + size])
        text = change(facts)
        text = text if isinstance(text, bytes) else json.dumps(facts).encode()
        data = LENGTH.pack(len(text)) + text + data[8 + size :]
    at = len(out)
    values = {
        "sequence": 1,
        "offset": at,
        "size": len(data),
        "end": at + len(data),
        "sum": hashlib.sha256(data).digest(),
    }
    made = page(ROOT, *(values | (root or {})).values())
    out[:DATA] = page(HEADER, *header) + made + made
    return bytes(out) + data


def setting(*keys, value):
    def change(facts):
        for key in keys[:-1]:
            facts = facts[key]
        facts[keys[-1]] = value

    return change


HUGE = 1 << 62
HOSTILE = [
    *({"change": setting("length", value=v)} for v in (-1, 0, HUGE, 1.5, "9", None, True)),
    *({"change": setting("blocks", value=v)} for v in (-1, 0, HUGE, 1 << 20, 0.5, [])),
    *({"change": setting("layout", "token_bytes", value=v)} for v in (-40, 0, HUGE, 41, "x", None)),
    *({"change": setting("layout", "ranks", value=v)} for v in ([], [0], [-1], [HUGE], ["8"], 8, [8] * 5000)),
    *({"change": setting("layout", "kind", value=v)} for v in (0, None, ["q8"])),
    *({"change": setting("layout", value=v)} for v in (0, {}, [], {"kind": "q8"})),
    *({"change": setting("meta", value=v)} for v in (0, [], None)),
    *({"change": setting("arrays", value=v)} for v in (0, {}, [0], [["tokens"]], [["t", "<i4", [-1]]], [["t", "<i4", [HUGE, HUGE]]])),
    *({"change": setting("arrays", 0, 1, value=v)} for v in ("O", "<i9", "|V800", None, ["<i4"], {}, "<i8")),
    *({"change": setting("arrays", 0, 2, value=v)} for v in ([1 << 40], [2.0], "9", [[]], [1] * 99, [0])),
    {"change": lambda facts: facts["arrays"].append(facts["arrays"][0])},
    {"change": lambda facts: b"[" * 100_000},
    {"change": lambda facts: b"[]"},
    {"change": lambda facts: b"\xff\xfe"},
    {"change": lambda facts: b'{"length": 1, "length": 2}'},
    {"change": lambda facts: facts.update(more=1)},
    *({"root": {"offset": v}} for v in (0, 1, DATA - 1, HUGE, (1 << 64) - 1)),
    *({"root": {"size": v}} for v in (0, 1, 7, HUGE, (1 << 64) - 1)),
    *({"root": {"end": v}} for v in (0, DATA, HUGE, (1 << 64) - 1)),
    *({"blocks": lambda b, v=v: [b[0]._replace(**v), *b[1:]]} for v in (
        {"offset": 0}, {"offset": HUGE}, {"offset": (1 << 64) - 1}, {"offset": DATA + 1}, {"offset": DATA - 1}, {"rows": 0},
        {"rows": HUGE}, {"rows": BLOCK - 1}, {"rows": ROWS_LIMIT + 1}, {"first": 1}, {"first": HUGE}, {"sum": HUGE})),
    {"blocks": lambda b: [b[0], b[1]._replace(offset=DATA)]},
    {"blocks": lambda b: [b[1], b[0]]},
    {"blocks": lambda b: [b[0]]},
]  # fmt: skip


def test_hostile_files_are_refused_before_memory_is_taken(path):
    cache = PlainCache().grow(BLOCK + 9)
    assert outcome(path, forged(cache)) == state(cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        for index, case in enumerate(HOSTILE):
            assert outcome(path, forged(cache, **case)) is None, (index, case)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_why_a_file_is_refused(path):
    cache = PlainCache().grow(9)

    def why(**forgery):
        path.write_bytes(forged(cache, **forgery))
        with pytest.raises(SessionFileError) as raised:
            read(path)
        assert raised.value.exit_code == 3
        return str(raised.value)

    assert "version 2" in why(header=(MAGIC, 2, ORDER, bytes(16)))
    assert "byte order" in why(header=(MAGIC, 1, ORDER[::-1], bytes(16)))
    mine = layout(cache)
    for other, word in (
        (layout(cache, model="b", name="other"), "another model, tiny"),
        (layout(cache, model="b"), "other weights"),
        (layout(cache, kind="f32"), "kv=q8"),
        (layout(cache, ranks=(8, 9)), "another form"),
    ):
        with pytest.raises(SessionFileError, match=word):
            mine.check_same(other, path)
    mine.check_same(layout(cache, name="renamed"), path)
    with pytest.raises(SessionFileError, match="another form"):
        path.write_bytes(forged(cache))
        with SessionFile.open(path) as file:
            file.restore(PlainCache(41))


def test_a_damaged_block_leaves_the_rows_before_it(path):
    cache = PlainCache().grow(20 * BLOCK)
    save(SessionFile(path), cache)
    with open(path, "r+b") as file:
        file.seek(DATA + 11 * BLOCK * 40 + 5)
        file.write(b"\0\1\2")
    part = PlainCache()
    with (
        SessionFile.open(path) as file,
        pytest.raises(SessionFileError, match=f"tokens {11 * BLOCK} to {12 * BLOCK - 1}"),
    ):
        file.restore(part)
    assert part.length == 11 * BLOCK and (part.data == cache.data[: 11 * BLOCK]).all()


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
    """Kills a process that saves again and again, at random moments; each time the file has one of its states."""
    token_bytes = 4000

    def saving():
        file = SessionFile.open(path)
        cache = PlainCache(token_bytes)
        file.restore(cache)
        while True:
            os.write(told, b"x")
            keep = cache.length if rng.random() < 0.7 else rng.randrange(cache.length + 1)
            cache.truncate(keep)
            cache.grow(rng.randrange(1, 300), seed=rng.random()) if keep < 2000 else cache.truncate(10)
            save(file, cache, min(keep, cache.length), note=str(cache.data.sum()))

    cache = PlainCache(token_bytes).grow(10)
    began = time.perf_counter()
    save(SessionFile(path), cache, note=str(cache.data.sum()))
    span = 3 * (time.perf_counter() - began)
    seen = set()
    for _ in range(kills):
        rng.seed(rng.random())
        heard, told = os.pipe()
        pid = forked(saving)
        os.read(heard, 1)  # it has begun
        time.sleep(rng.random() * span)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        os.close(heard), os.close(told)
        _, meta, arrays, rows = read(path)
        assert meta["messages"][0]["content"] == str(np.frombuffer(rows, np.uint8).sum())
        assert len(arrays["tokens"]) * token_bytes == len(rows)
        seen.add(rows)
    return len(seen)


def test_killed_at_random_moments(path):
    assert killed_at_random(path, 20, random.Random(15)) > 1


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
