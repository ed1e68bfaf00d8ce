"""Session files: what is saved is restored, whatever is damaged is found, and a kill leaves the older or the newer state."""

import os
import resource

import pytest
from session_fakes import PlainCache, contents, layout, rest

from ivlite.errors import SessionFileError
from ivlite.session.file import BLOCK, DATA, HEADER, MAGIC, ORDER, PAGE, ROOT, ROOTS, SessionFile, page
from ivlite.session.table import ROWS_LIMIT, Table


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
        with pytest.raises(SessionFileError, match="damaged" if size >= len(MAGIC) else "no(t a)? session file"):
            SessionFile.open(path)
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
