"""Every number in a session file and in a session's state, at its limit and one beyond."""

import json
import struct
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from session_fakes import PlainCache, layout

from ivlite.errors import SessionFileError, UsageError
from ivlite.session import state, table
from ivlite.session.file import SessionFile
from ivlite.session.packing import held_by, pack, unpack
from ivlite.session.state import SessionState
from ivlite.session.table import Block, Layout, Table, Wrong, blocks_at, check_blocks

LAYOUT = Layout("m", "q8", (8, 9), 4, 10, "tiny")
ROOM, OWN = range(4096, 10**6), range(500_000, 501_000)


# ------------------------------------------------------------------------------------------------ layouts


def good(**change):
    try:
        return Layout.checked(json.loads(json.dumps(asdict(LAYOUT))) | change) is not None
    except Wrong:
        return False


@pytest.mark.parametrize("key, fine, bad", [
    ("ranks", [[1], [1 << 20], [5] * 1024], [[], [0], [(1 << 20) + 1], [5] * 1025, [1.0], [True], None, "88", {"0": 1}]),
    ("rope_dim", [1, 1 << 20], [0, (1 << 20) + 1, -1, None, "4", True, 4.0]), ("token_bytes", [1, 1 << 40], [0, (1 << 40) + 1, None, 1.5]),
    *((key, ["", "x"], [None, 5, ["x"]]) for key in ("model", "kind", "name")), ("more", [], [1]),
])  # fmt: skip
def test_numbers_of_a_layout(key, fine, bad):
    assert all(good(**{key: value}) for value in fine) and not any(good(**{key: value}) for value in bad)
    if key != "more":
        data = asdict(LAYOUT)
        del data[key]
        with pytest.raises(Wrong):
            Layout.checked(data)


def test_which_rows_can_be_exchanged():
    LAYOUT.check_same(replace(LAYOUT, name="other"), "a")
    for change, words in (
        (dict(model="n"), r"belongs to another model, tiny \(a file of that name with other weights\): open"), (dict(model="n", name="b"), "belongs to another model, tiny: open"),
        (dict(kind="q4"), "has a q8 cache and this model is loaded with q4: load it with kv=q8"), (dict(rope_dim=5), "another form"), (dict(token_bytes=11), "another form"), (dict(ranks=(8,)), "another form"),
    ):  # fmt: skip
        with pytest.raises(SessionFileError, match=f"^a .*{words}.*, or choose another name"):
            LAYOUT.check_same(replace(LAYOUT, **change), "a")


# ------------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize(
    "first, last, sizes",
    [
        (0, 0, []),
        (0, 1, [1]),
        (0, 256, [256]),
        (0, 257, [256, 1]),
        (255, 513, [1, 256, 1]),
        (300, 310, [10]),
        (256, 512, [256]),
    ],
)
def test_rows_in_blocks_of_256(first, last, sizes):
    got = blocks_at(7000, first, last, 10)
    assert [b.rows for b in got] == sizes and [b.size for b in got] == [10 * n for n in sizes]
    at = first
    for block in got:
        assert (block.first, block.offset, block.last, block.sum) == (at, 7000 + 10 * (at - first), at + block.rows, 0)
        at = block.last
    assert at == last


def sound(*blocks, length, room=range(100, 1000), own=range(500, 600)):
    try:
        check_blocks([Block(*b) for b in blocks], length, room, own)
        return True
    except Wrong:
        return False


def test_blocks_have_places_of_their_own():
    assert (
        sound(length=0)
        and not sound(length=1)
        and sound((0, 5, 100, 50), length=5)
        and not sound((0, 5, 100, 50), length=6)
    )
    assert (
        not sound((0, 5, 100, 50), length=4)
        and not sound((1, 5, 100, 50), length=6)
        and not sound((0, 0, 100, 0), length=0)
    )
    for rows, fine in ((4096, True), (4097, False)):
        assert sound((0, rows, 100, 50), length=rows) == fine
    for offset, size, fine in (
        (100, 400, True),
        (99, 400, False),
        (100, 401, False),
        (600, 400, True),
        (600, 401, False),
        (599, 400, False),
        (550, 10, False),
    ):
        assert sound((0, 5, offset, size), length=5) == fine, (offset, size)
    two = (0, 5, 100, 50)
    assert (
        sound(two, (5, 1, 150, 9), length=6)
        and not sound(two, (5, 1, 149, 9), length=6)
        and not sound(two, (6, 1, 150, 9), length=7)
    )
    assert sound((0, 5, 700, 50), (5, 1, 100, 9), length=6)  # in any order


# ------------------------------------------------------------------------------------------------ tables


def packed(**more):
    facts = dict(
        layout=LAYOUT,
        length=300,
        meta={"a": 1},
        arrays={"x": np.arange(6.0).reshape(2, 3)},
        blocks=blocks_at(5000, 0, 300, 10),
    )
    return Table(**facts | more).packed()


def parses(data, room=ROOM, own=OWN):
    try:
        return Table.parsed(data, room, own)
    except Wrong:
        return None


def rewritten(change, rest=None):
    """The bytes of a table whose JSON is change(facts); rest: what follows it."""
    data = packed()
    (count,) = struct.unpack_from("<Q", data)
    facts = json.loads(data[8 : 8 + count])
    text = json.dumps(change(facts) or facts).encode()
    return struct.pack("<Q", len(text)) + text + (data[8 + count :] if rest is None else rest)


def put(key, value):
    return lambda facts: facts.update({key: value})


def test_a_table_comes_back():
    got = parses(packed())
    assert (got.layout, got.length, got.meta) == (LAYOUT, 300, {"a": 1}) and got.arrays["x"].tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    assert got.blocks == blocks_at(5000, 0, 300, 10) and got.arrays["x"].flags.writeable
    big = parses(packed(arrays={"x": np.arange(3, dtype=">i4")}))
    assert big.arrays["x"].tolist() == [0, 1, 2] and big.arrays["x"].dtype == "<i4"
    assert [table.plain(v) for v in (np.float32(0.5), np.int64(3), "x", None)] == [0.5, 3, "x", "None"] and type(
        table.plain(np.int64(3))
    ) is int


def test_tables_that_are_cut_or_go_on():
    data = packed()
    assert (
        not any(parses(data[:n]) for n in range(0, len(data), 7))
        and parses(data[:-1]) is None
        and parses(data + b"\0") is None
    )
    (count,) = struct.unpack_from("<Q", data)
    assert (
        parses(struct.pack("<Q", len(data) - 7) + data[8:]) is None
        and parses(struct.pack("<Q", len(data) - 8) + data[8:]) is None
    )
    assert parses(data[:7]) is None and parses(b"") is None
    empty = Table(LAYOUT, 0, {}, {}, []).packed()
    assert parses(empty).length == 0  # the JSON ends the table


FACTS = [
    ("length", 299, False), ("length", 301, False), ("length", True, False), ("length", 300.0, False), ("length", -1, False), ("meta", [], False), ("meta", {}, True),
    ("blocks", 1, False), ("blocks", 3, False), ("blocks", -1, False), ("blocks", 301, False), ("arrays", [], False), ("arrays", {}, False), ("more", 1, False),
    *(("arrays", [["x", dtype, shape]], fine) for dtype, shape, fine in (
        ("<f8", [2, 3], True), ("<f8", [6], True), ("<f8", [1, 1, 2, 3], True), ("<f8", [1, 1, 1, 2, 3], False), ("<f8", [2, 4], False), ("<f8", [2, 2], False),
        ("<i8", [6], True), ("<u8", [6], True), ("<f4", [12], True), ("<i4", [12], True), ("|u1", [48], True), (">f8", [6], False), ("<f2", [24], False), ("|O", [6], False),
        ("<f8", "6", False), ("<f8", [-6], False), ("<f8", [6.0], False), ("<f8", [True], False), ("<f8", [1 << 40, 0], False), ("<f8", [(1 << 40) + 1, 0], False),
    )),
    ("arrays", [["x", "<f8", [6], 1]], False), ("arrays", [["x", "<f8"]], False), ("arrays", [[5, "<f8", [6]]], False), ("arrays", ["x"], False), ("arrays", [{"x": 1}], False),
    ("arrays", [["x", "<f8", [3]], ["x", "<f8", [3]]], False), ("arrays", [["x", "<f8", [3]], ["y", "<f8", [3]]], True), ("arrays", [["", "<f8", [6]]], False),
    ("arrays", [["x", "<f8", [6]], *[[str(n), "|u1", [0]] for n in range(63)]], True), ("arrays", [["x", "<f8", [6]], *[[str(n), "|u1", [0]] for n in range(64)]], False),
]  # fmt: skip


@pytest.mark.parametrize("key, value, fine", FACTS)
def test_facts_of_a_table(key, value, fine):
    assert (parses(rewritten(put(key, value))) is not None) == fine


def test_large_numbers_of_a_table():
    empty = [["", "<u8", [0, 4]]]
    for shape, fine in (([1 << 40, 0], True), ([(1 << 40) + 1, 0], False), ([], True)):
        rest = bytes(8) if not shape else b""
        data = rewritten(lambda f, shape=shape: f.update(length=0, blocks=0, arrays=[["x", "<f8", shape]]), rest)
        assert (parses(data) is not None) == fine and empty
    for length in (1 << 24, (1 << 24) + 1):
        count = -(-length // 4096)
        rows = np.array([(4096 * i, min(4096, length - 4096 * i), 40960 * i, 0) for i in range(count)], "<u8").tobytes()
        data = rewritten(lambda f, n=length, c=count: f.update(length=n, blocks=c, arrays=[]), rows)
        assert (parses(data, range(0, 1 << 40), range(1 << 39, (1 << 39) + 1)) is not None) == (length == 1 << 24)


# ------------------------------------------------------------------------------------------------ conversations

CONFIG = SimpleNamespace(
    text=SimpleNamespace(vocab_size=50, context_length=20), vision=SimpleNamespace(spatial_merge_size=2)
)


def medium(**more):
    return (
        dict(
            kind="video",
            source="a",
            size=[64, 96],
            grid=[2, 4, 6],
            frames=[0, 5, 9],
            timestamps=[0.0, 1.5],
            duration=2.0,
            temporal=2,
        )
        | more
    )


def said(**more):
    """Messages of two turns, the first of which shows a video. more: instead of those of the third message."""
    parts = [{"type": "video", "video": "a", "fps": 2}, {"type": "text", "text": "x"}]
    answers = {"role": "assistant", "content": "y"}, {"role": "assistant", "content": "", "thinking": "z"}
    return [{"role": "user", "content": parts}, answers[0], {"role": "user", "content": "x"} | more, answers[1]]


def conversation(**more):
    facts = dict(
        messages=said(), tools=["{}"], token_ids=list(range(20)),
        positions=np.tile(np.arange(20), (3, 1)), rows=18, spans=[(0, 2, 6), (0, 10, 6)], keys=[b"a" * 16, b"b" * 16], media=[medium()],
        ends=[(18, np.zeros(50, np.float32))], turns=[(2, 10, 9, 1), (4, 20, 18, 1)], tail="t",
    )  # fmt: skip
    return SessionState(**facts | more)


def places(*values):
    p = np.tile(np.arange(20), (3, 1))
    p[0, : len(values)] = values
    return p


IMAGE = dict(spans=[(0, 2, 6)], keys=[b"a" * 16])
CHANGES = [  # a change, and which part is named; "" for none
    ({}, ""), (dict(token_ids=[0] * 19 + [49]), ""), (dict(token_ids=[0] * 19 + [50]), "tokens"), (dict(token_ids=[0] * 19 + [-1]), "tokens"),
    (dict(rows=21), "tokens"), (dict(rows=-1), "tokens"), (dict(rows=True), "tokens"), (dict(rows=1.0), "tokens"),
    (dict(token_ids=[0] * 21, positions=np.zeros((3, 21), np.int64)), "tokens"), (dict(token_ids=[0] * 19), "positions"),
    (dict(positions=places(0)), ""), (dict(positions=places(-1)), "positions"), (dict(positions=places((1 << 40) - 1)), ""), (dict(positions=places(1 << 40)), "positions"),
    (dict(positions=places(0).astype(np.int32)), "positions"), (dict(positions=places(0)[:2]), "positions"), (dict(positions=None), "positions"),
    (dict(spans=[(0, 2, 6), (0, 8, 6)]), ""), (dict(spans=[(0, 2, 6), (0, 7, 6)]), "frame pairs"), (dict(spans=[(0, 0, 6), (0, 14, 6)]), ""),
    (dict(spans=[(0, 2, 6), (0, 15, 6)]), "frame pairs"), (dict(spans=[(0, -1, 6), (0, 14, 6)]), "frame pairs"), (dict(spans=[(0, 2, 0), (0, 10, 6)]), "frame pairs"),
    (dict(spans=[(0, 2, 6), (1, 10, 6)]), "frame pairs"), (dict(spans=[(-1, 2, 6), (0, 10, 6)]), "frame pairs"), (dict(keys=[b"a" * 16]), "frame pairs"),
    (dict(keys=[b"a" * 16, b"b" * 15]), "frame pairs"), (dict(keys=[b"a" * 16, "b" * 16]), "frame pairs"), (dict(spans=[(0, 2, 6)]), "frame pairs"),
    (dict(IMAGE), "media"), (dict(spans=[(0, 2, 5), (0, 10, 6)]), "media"), (dict(spans=[(0, 2, 7), (0, 10, 7)]), "media"),
    (IMAGE | dict(media=[medium(kind="image", grid=[1, 4, 6], timestamps=[])]), ""), (IMAGE | dict(media=[medium(kind="image", grid=[1, 4, 6], timestamps=[0.0])]), "media"),
    (dict(messages=said(role="developer")), "messages"), (dict(messages=said(role="tool")), ""),
    (dict(messages=said(content=5)), "messages"), (dict(messages=said(content=[1])), "messages"), (dict(messages=said(more=1)), "messages"), (dict(tail=None), "messages"), (dict(tools=[5]), "messages"), (dict(tools=[]), ""),
    (dict(ends=[(1, np.zeros(50, np.float32))]), ""), (dict(ends=[(0, np.zeros(50, np.float32))]), "logits"), (dict(ends=[(19, np.zeros(50, np.float32))]), "logits"),
    (dict(ends=[(18, np.zeros(49, np.float32))]), "logits"), (dict(ends=[(18, np.zeros(50))]), "logits"), (dict(ends=[(18, np.full(50, np.nan, np.float32))]), "logits"), (dict(ends=[]), ""),
    (dict(turns=[(4, 20, 18, 1)]), ""), (dict(turns=[]), "turns"), (dict(turns=[(2, 20, 18, 1)]), "turns"), (dict(turns=[(4, 19, 18, 1)]), "turns"), (dict(turns=[(4, 20, 17, 1)]), "turns"),
    (dict(turns=[(4, 20, 18, 0)]), "turns"), (dict(turns=[(2, 10, 10, 1), (4, 20, 18, 1)]), ""), (dict(turns=[(2, 10, 10, 0), (4, 20, 18, 1)]), "messages"),
    (dict(turns=[(1, 10, 10, 1), (4, 20, 18, 1)]), "messages"), (dict(turns=[(2, 10, 11, 0), (4, 20, 18, 1)]), "turns"),
    (dict(turns=[(0, 10, 9, 0), (4, 20, 18, 1)]), "turns"), (dict(turns=[(2, 0, 0, 0), (4, 20, 18, 1)]), "turns"), (dict(turns=[(2, 20, 9, 0), (4, 20, 18, 1)]), "turns"),
    (dict(turns=[(4, 10, 9, 0), (4, 20, 18, 1)]), "turns"), (dict(turns=[(2, 10, 9, 2), (4, 20, 18, 1)]), "turns"), (dict(turns=[(2, 10, 9), (4, 20, 18, 1)]), "turns"),
    *((dict(media=[medium(**change)]), "" if fine else "media") for change, fine in (
        (dict(kind="audio"), False), (dict(source=5), False), (dict(size=[64]), False), (dict(size=[64, 96, 3]), False), (dict(size=[0, 96]), False), (dict(size=[1, 1 << 24]), True),
        (dict(size=[1, (1 << 24) + 1]), False), (dict(temporal=0), False), (dict(temporal=1), True), (dict(grid=[1, 4, 6]), False), (dict(grid=[2, 4, 5]), False), (dict(grid=[2, 5, 7]), True),
        (dict(grid=[2, 4]), False), (dict(frames=[]), True), (dict(frames=[0, 1 << 50]), True), (dict(frames=[(1 << 50) + 1]), False), (dict(frames=[-1]), False), (dict(frames=[0.5]), False),
        (dict(timestamps=[0.0]), False), (dict(timestamps=[0.0, 1, 2]), False), (dict(timestamps=[0, "1"]), False), (dict(duration=None), True), (dict(duration="2"), False),
    )),
    (dict(media=[]), "frame pairs"), (dict(media=[{}]), "media"),
]  # fmt: skip


@pytest.mark.parametrize("change, named", CHANGES)
def test_parts_of_a_conversation(change, named):
    made = conversation(**change)
    if not named:
        assert state.checked(made, CONFIG) is made
    else:
        with pytest.raises(UsageError, match=f"session's {named} are not"):
            state.checked(made, CONFIG)


def test_an_empty_conversation():
    state.checked(SessionState(), CONFIG)
    assert SessionState().rows == 0 and SessionState().positions.shape == (3, 0)


def file(meta, arrays, length=18):
    damaged = lambda what: SessionFileError(f"damaged: {what}")  # noqa: E731
    return SimpleNamespace(
        table=SimpleNamespace(meta=json.loads(json.dumps(meta)), arrays=arrays, length=length), damaged=damaged
    )


def test_what_is_saved_comes_back():
    before = conversation(turns=[(1, 10, 9, 1), (2, 20, 18, 1)], chunks={0: 8, 8: 16})
    after = unpack(file(*pack(before)))
    for name in ("messages", "tools", "token_ids", "rows", "spans", "keys", "media", "turns", "tail", "chunks"):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.positions == before.positions).all() and after.positions.dtype == np.int64 and after.ends[0][0] == 18
    none = pack(SessionState())[1]
    assert none["spans"].shape == (0, 3) and none["keys"].shape == (0, 16) and len(none["logits"]) == 0
    held = held_by(after)
    assert held.length == 18 and [(s.first, s.count, s.key) for s in held.spans] == [
        (2, 6, b"a" * 16),
        (10, 6, b"b" * 16),
    ]
    assert (
        [n for n, _ in held.ends] == [18]
        and len(held_by(replace(after, rows=10)).spans) == 1
        and len(held_by(replace(after, rows=11)).spans) == 2
    )
    assert held.chunks == {0: 8, 8: 16} and held_by(replace(after, rows=10)).chunks == {0: 8}
    meta, arrays = pack(before)
    del arrays["chunks"]  # a file of an older version
    assert unpack(file(meta, arrays)).chunks == {}


def array(values, dtype=np.int64):
    return np.array(values, dtype)


ARRAYS = [
    (dict(chunks=array([[0, 8], [8, 18]])), True), (dict(chunks=array([[0, 19]])), False), (dict(chunks=array([[-1, 8]])), False), (dict(chunks=array([[8, 8]])), False),
    (dict(chunks=array([0, 8])), False), (dict(chunks=array([[0, 8, 18]])), False), (dict(chunks=array([[0, 8.0]], float)), False),
    (dict(tokens=array([-1] + [0] * 19)), False), (dict(tokens=array([[0] * 20])), False), (dict(tokens=array([0] * 17), positions=np.zeros((3, 17))), False),
    (dict(tokens=array([0] * 18), positions=np.zeros((3, 18))), True), (dict(positions=np.zeros((3, 19))), False), (dict(positions=-np.eye(20)[:3]), False),
    (dict(spans=array([(0, 2, 6), (0, 8, 6)])), True), (dict(spans=array([(0, 2, 6), (0, 7, 6)])), False), (dict(spans=array([(0, 2, 6), (1, 10, 6)])), False),
    (dict(spans=array([(-1, 2, 6), (0, 10, 6)])), False), (dict(spans=array([(0, 2, 0), (0, 10, 6)])), False), (dict(spans=array([(0, 2, 6), (0, 19, 6)])), True),
    (dict(spans=array([(0, 2, 6), (0, 20, 6)])), False), (dict(spans=array([(0, 2, 6), (0, 10, 1 << 24)])), True), (dict(spans=array([(0, 2, 6), (0, 10, (1 << 24) + 1)])), False),
    (dict(spans=array([(0, 2), (0, 10)])), False), (dict(spans=array([0, 2, 6])), False), (dict(keys=np.zeros((2, 15), np.uint8)), False), (dict(keys=np.zeros((1, 16), np.uint8)), False),
    (dict(ends=array([1])), True), (dict(ends=array([0])), False), (dict(ends=array([19])), False), (dict(ends=array([[18]])), False), (dict(ends=array([17, 18])), False),
    (dict(logits=np.zeros(50)), False), (dict(logits=np.zeros((1, 2, 3))), False), (dict(logits=np.zeros((2, 50))), False), (dict(tokens=None), False),
]  # fmt: skip


@pytest.mark.parametrize("change, fine", ARRAYS)
def test_arrays_of_a_file(change, fine):
    meta, arrays = pack(conversation())
    try:
        unpack(file(meta, {k: v for k, v in (arrays | change).items() if v is not None}))
        assert fine
    except SessionFileError as error:
        assert not fine and len(str(error)) < 200


@pytest.mark.parametrize("change, fine", [
    (dict(turns=[[0] * 8]), True), (dict(turns=[[0] * 9]), False), (dict(turns=[[1 << 24]]), True), (dict(turns=[[(1 << 24) + 1]]), False), (dict(turns=[[-1]]), False), (dict(turns=[{}]), False),
    (dict(messages=["x"]), False), (dict(media=["x"]), False), (dict(tail=5), False), (dict(tools={}), False), (dict(messages={}), False),
])  # fmt: skip
def test_facts_of_a_file(change, fine):
    meta, arrays = pack(conversation())
    try:
        unpack(file(meta | change, arrays))
        assert fine
    except SessionFileError:
        assert not fine


def test_where_blocks_of_a_file_may_be(tmp_path, monkeypatch):
    """Between the root records and the end of what is in use, but not in the table."""
    cache, asked, plain = PlainCache(1000).grow(300), [], Table.parsed
    path = tmp_path / "s.ivs"
    meta, arrays = pack(SessionState(token_ids=list(range(300)), positions=np.zeros((3, 300), np.int64), rows=300))
    SessionFile(path).save(layout(cache), meta, arrays, cache, 300)
    monkeypatch.setattr(
        Table, "parsed", lambda data, room, own: asked.append((len(data), room, own)) or plain(data, room, own)
    )
    with SessionFile.open(path) as file:
        ((size, room, own),) = asked
        assert (
            len(own) == size > 0
            and room.start == 3 * 4096
            and room.start <= own.start
            and own.stop <= room.stop <= path.stat().st_size
        )
        assert all(b.offset + b.size <= own.start or b.offset >= own.stop for b in file.table.blocks)
