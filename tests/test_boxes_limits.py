"""Structures of containers, written byte by byte: what they say, and None or False for every one that is a byte off."""

import io
import struct

import numpy as np
import pytest

from ivlite.media import boxes


def box(kind, *parts, wide=False, size=None):
    """An mp4 box; wide: with a size of 64 bits; size: another than it has."""
    data = b"".join(parts)
    if wide:
        return struct.pack(">I4sQ", 1, kind, len(data) + 16 if size is None else size) + data
    return struct.pack(">I4s", len(data) + 8 if size is None else size, kind) + data


def words(*values, form=">I"):
    return b"".join(struct.pack(form, v) for v in values)


def table(kind, *rows, count=None, form=">I"):
    """A full box with a number of entries: version and flags, count, rows."""
    values = [v for row in rows for v in (row if isinstance(row, tuple) else (row,))]
    return box(kind, words(0, len(rows) if count is None else count), words(*values, form=form))


def movie(*stbl, number=1, version=0, wide=False):
    header = words(*([0] * (5 if version else 3)), number, 0, 0, 0)
    header = bytes([version]) + header[1:]
    inside = box(b"mdia", box(b"hdlr"), box(b"minf", box(b"dinf"), box(b"stbl", *stbl, wide=wide)))
    return box(b"ftyp", b"isom") + box(b"moov", box(b"mvhd"), box(b"trak", box(b"tkhd", header), inside, wide=wide))


@pytest.fixture
def opened(tmp_path):
    files = []

    def make(data):
        path = tmp_path / f"{len(files)}"
        path.write_bytes(data)
        files.append(open(path, "rb"))
        return files[-1]

    yield make
    for file in files:
        file.close()


# ------------------------------------------------------------------------------------------------ boxes


def test_boxes_of_every_size():
    data = box(b"aaaa", b"12345") + box(b"bbbb", wide=True) + box(b"cccc") + box(b"dddd", b"123", size=0)
    found = [(b"aaaa", 8, 13), (b"bbbb", 29, 29), (b"cccc", 37, 37), (b"dddd", 45, 48)]
    assert list(boxes.children(io.BytesIO(data), 0, len(data))) == found
    assert list(boxes.children(io.BytesIO(data + bytes(40)), 0, len(data))) == found  # the last one goes up to the end
    assert list(boxes.children(io.BytesIO(data), 0, len(data) - 2)) == [*found[:3], (b"dddd", 45, 46)]
    assert list(boxes.children(io.BytesIO(data), 13, 29)) == [found[1]]
    assert list(boxes.children(io.BytesIO(data), 13, 20)) == [] and list(boxes.children(io.BytesIO(data), 29, 36)) == []
    assert list(boxes.children(io.BytesIO(data[:44]), 0, 1000)) == found[:3]


@pytest.mark.parametrize(
    "size, wide, found", [(7, False, 0), (8, False, 1), (15, True, 0), (16, True, 1), (1 << 62, True, 1)]
)
def test_sizes_smaller_than_their_heads(size, wide, found):
    data = box(b"aaaa", bytes(20), wide=wide, size=size)
    assert len(list(boxes.children(io.BytesIO(data), 0, len(data)))) >= found
    assert bool(found) == any(True for _ in boxes.children(io.BytesIO(data), 0, len(data)))


def test_many_boxes(monkeypatch):
    monkeypatch.setattr(boxes, "MAX_BOXES", 10)
    data = box(b"aaaa") * 12
    assert len(list(boxes.children(io.BytesIO(data), 0, len(data)))) == 10
    short = struct.pack(">I4s", 1, b"aaaa") + bytes(7)  # a size of 64 bits that is cut off
    assert list(boxes.children(io.BytesIO(short), 0, 100)) == []


def test_boxes_in_boxes():
    data = box(b"aaaa") + box(b"bbbb", box(b"cccc", b"1"), box(b"dddd", b"23"), box(b"dddd", b"456"))
    file = io.BytesIO(data)
    whole = (0, len(data))
    assert boxes.find(file, whole, b"bbbb", b"dddd") == (33, 35) and boxes.find(file, whole) == whole
    assert boxes.find(file, whole, b"dddd") is None and boxes.find(file, whole, b"aaaa", b"cccc") is None
    assert boxes.find(file, (0, 34), b"bbbb", b"dddd") == (33, 34)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("wide", [False, True])
def test_tracks_by_their_numbers(opened, version, wide):
    file = opened(movie(box(b"stsd"), number=7, version=version, wide=wide))
    ((number, (start, end)),) = boxes.tables(file)
    assert number == 7 and end - start == 8 and boxes.track(file, 7) == (start, end) and boxes.track(file, 8) is None
    assert list(boxes.tables(opened(b""))) == [] and list(boxes.tables(opened(box(b"moov", box(b"trak"))))) == []
    assert list(boxes.tables(opened(box(b"moov", box(b"trak", box(b"tkhd", bytes(23))))))) == []
    assert list(boxes.tables(opened(box(b"moov", box(b"trak", box(b"tkhd", bytes(24))))))) == [(0, None)]


# ------------------------------------------------------------------------------------------------ tables

PLAIN = dict(
    stts=((3, 10), (2, 20)), stsz=(0, 5, 7, 1, 2, 4), stsc=((1, 2, 1), (2, 1, 1)), stco=(100, 300, 400, 500), stss=(1, 4), ctts=((2, 0), (3, -5)),
)  # fmt: skip


def tables(**changes):
    """The boxes of a sample table of five frames: two in the first of four chunks, one in each of the others."""
    parts = PLAIN | changes
    made = [table(b"stsd"), table(b"stts", *parts["stts"])] if parts["stts"] is not None else [table(b"stsd")]
    if parts["stsz"] is not None:
        same, *sizes = parts["stsz"]
        made.append(box(b"stsz", words(0, same, changes.get("entries", len(sizes) or 5), *sizes)))
    for name in ("stsc", "stco", "stss"):
        if parts[name] is not None:
            made.append(table(name.encode(), *parts[name]))
    if changes.get("co64"):
        made.append(table(b"co64", *changes["co64"], form=">q"))
    if parts["ctts"] is not None:
        made.append(
            box(b"ctts", words(0, len(parts["ctts"])), b"".join(struct.pack(">Ii", *row) for row in parts["ctts"]))
        )
    return movie(*made)


ENDS = [105, 112, 301, 402, 504]


def test_what_the_tables_of_a_track_say(opened):
    dts, ends, keys = boxes.samples(opened(tables()), 1, 5)
    assert dts.tolist() == [0, 10, 20, 30, 50] and ends.tolist() == ENDS and keys.tolist() == [1, 0, 0, 1, 0]
    assert {dts.dtype, ends.dtype} == {np.dtype(np.int64)} and keys.dtype == bool
    assert boxes.compositions(opened(tables()), 1, 5).tolist() == [0, 0, -5, -5, -5]
    assert boxes.compositions(opened(tables(ctts=None)), 1, 5).tolist() == [0] * 5
    _, ends, keys = boxes.samples(opened(tables(stss=None, stsz=(9,), stco=None, co64=(1 << 33, 300, 400, 500))), 1, 5)
    assert keys.all() and ends.tolist() == [(1 << 33) + 9, (1 << 33) + 18, 309, 409, 509]
    assert boxes.samples(opened(tables()), 2, 5) is None and boxes.compositions(opened(tables()), 2, 5) is None


WRONG = [
    dict(stts=None), dict(stts=((3, 10), (3, 20))), dict(stts=((3, 10), (1, 20))), dict(stts=((1, 1),) * 6), dict(stts=()),
    dict(stsz=None), dict(stsz=(0, 5, 7, 1, 2)), dict(stsz=(0, 5, 7, 1, 2, 4, 4)), dict(stsz=(0, 5, 7, 0, 2, 4)), dict(stsz=(9,), entries=4),
    dict(stsz=(9,), entries=6), dict(stsz=(0, 5, 7, 1, 2, 4), entries=4),
    dict(stsc=None), dict(stsc=()), dict(stsc=((2, 2, 1),)), dict(stsc=((1, 2, 1), (1, 1, 1))), dict(stsc=((1, 2, 1), (5, 1, 1))),
    dict(stsc=((1, 1, 1),)), dict(stsc=((1, 2, 1), (2, 0, 1), (3, 1, 1))), dict(stsc=((1, 2, 1), (3, 1, 1), (2, 1, 1))), dict(stsc=((0, 2, 1), (2, 1, 1))),
    dict(stco=None), dict(stco=(100, 300, 400)), dict(stco=(1, 2, 3, 4, 5)), dict(stco=(1,) * 6),
    dict(stss=()), dict(stss=(0, 4)), dict(stss=(1, 6)), dict(stss=(1, 2, 3, 4, 5, 5)),
]  # fmt: skip


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_tables_that_contradict_each_other(opened, change):
    assert boxes.samples(opened(tables(**change)), 1, 5) is None


def test_the_last_key_frame_and_the_last_chunk_count(opened):
    _, _, keys = boxes.samples(opened(tables(stss=(5,))), 1, 5)
    assert keys.tolist() == [0, 0, 0, 0, 1]
    _, ends, _ = boxes.samples(
        opened(tables(stsc=((1, 2, 1), (4, 1, 1)), stsz=(0, *[1] * 7), stts=((7, 1),), ctts=None)), 1, 7
    )
    assert ends.tolist() == [101, 102, 301, 302, 401, 402, 501]
    assert boxes.compositions(opened(tables(ctts=((2, 1), (4, 1)))), 1, 5) is None
    assert boxes.compositions(opened(tables(ctts=((1, 1),) * 6)), 1, 5) is None
    assert boxes.compositions(opened(tables(ctts=((1, 1),) * 5)), 1, 5).tolist() == [1] * 5


@pytest.mark.parametrize("entries, there", [(0, 0), (1, 1), (2, 2), (3, None), (1 << 31, None)])
def test_entries_that_are_in_their_box(opened, entries, there):
    data = box(b"stbl", table(b"stco", 8, 9, count=entries), bytes(40))
    got = boxes.column(opened(data), (8, len(data)), b"stco", ">u4", 5)
    assert (got is None) if there is None else got.tolist() == [8, 9][:there]
    assert boxes.column(opened(data), (8, len(data)), b"stsz", ">u4", 5) is None
    cut = data[: len(data) - 41]
    assert boxes.column(opened(cut), (8, len(data)), b"stco", ">u4", 5) is None or entries < 2
    assert boxes.column(opened(data[:23]), (8, 100), b"stco", ">u4", 5) is None
    assert boxes.column(opened(data), (8, len(data)), b"stco", ">u4", entries - 1) is None
    beyond = box(b"stbl", table(b"stco", 8, 9, count=3) + words(10), size=0)
    assert boxes.column(opened(beyond), (8, len(beyond)), b"stco", ">u4", 5) is None


# ------------------------------------------------------------------------------------------------ encryption


def test_sample_entries_that_are_encrypted(opened):
    def entries(*kinds):
        return movie(box(b"stsd", words(0, len(kinds)), *[box(kind, bytes(8)) for kind in kinds]))

    for kinds, found in (
        ((b"encv",), True),
        ((b"drmi",), True),
        ((b"avc1",), False),
        ((b"avc1", b"encv"), False),
        ((), False),
    ):
        file = opened(entries(*kinds))
        assert boxes.encrypted(file) == boxes.encrypted(file, 1) == found and not boxes.encrypted(file, 2)
    assert not boxes.encrypted(opened(movie())) and not boxes.encrypted(opened(b""))
    assert boxes.PROTECTED["mov"] is boxes.encrypted


@pytest.mark.parametrize("size, skip", [(188, 0), (192, 4)])
def test_packets_that_are_scrambled(opened, size, skip):
    def packets(own, scrambled, other=0, damaged=0):
        def packet(program, control):
            head = struct.pack(">BHB", 0x47, program | 0x4000, control)
            return bytes(skip) + head + bytes(size - 4 - skip)

        out = [packet(0x1ABC, 0x40 + n % 64 if n < scrambled else 0x3F) for n in range(own)]
        return b"".join(out + [packet(0x1ABD, 0xC0)] * other) + bytes(size) * damaged

    for data, found in (
        (packets(10, 6), True), (packets(10, 5), False), (packets(10, 10, 30), True), (packets(10, 0, 30), False), (packets(0, 0, 9), False),
        (packets(9, 9, 1, 1), True), (packets(8, 8, 1, 1), False), (b"", False), (bytes(1000), False), (packets(10, 10)[:-1], True),
    ):  # fmt: skip
        assert boxes.scrambled(opened(data), 0x1ABC) == found
    assert not boxes.scrambled(opened(packets(10, 10)), 0x1ABE)


def test_headers_with_an_encryption_object(opened):
    for guid in ("fbb3112223bdd211b4b700a0c955fc6e", "14e68a292226174cb935dae07ee9289c"):
        at = (1 << 16) - 16
        assert boxes.licensed(opened(bytes(at) + bytes.fromhex(guid)), 1)
        assert not boxes.licensed(opened(bytes(at + 1) + bytes.fromhex(guid)), 1)


# ------------------------------------------------------------------------------------------------ whether a file is whole


def ebml(value, length, unknown=False):
    number = ((1 << 7 * length) - 1 if unknown else value) | 1 << 7 * length
    return number.to_bytes(length, "big")


SEGMENT = b"\x18\x53\x80\x67"
TAG = b"\x09" + (7).to_bytes(3, "big") + bytes(7) + b"1234567"  # 11 + 7 bytes
FILES = [
    ("mov,mp4", box(b"ftyp") + box(b"mdat", b"123"), True), ("mov,mp4", box(b"ftyp") + box(b"mdat", b"123")[:-1], False),
    ("mov,mp4", box(b"ftyp") + box(b"moof") + box(b"mdat", b"12"), None), ("mov,mp4", box(b"moof") + box(b"mdat", b"12")[:-1], False),
    ("mov,mp4", box(b"mdat", b"1", size=0), True), ("mov,mp4", b"", True),
    *(("matroska,webm", b"head" + SEGMENT + ebml(20, n) + bytes(20), True) for n in range(1, 9)),
    *(("matroska,webm", b"head" + SEGMENT + ebml(20, n) + bytes(19), False) for n in range(1, 9)),
    *(("matroska,webm", b"head" + SEGMENT + ebml(0, n, True) + bytes(20), None) for n in range(1, 9)),
    *(("matroska,webm", b"head" + SEGMENT + ebml(126, n) + bytes(120 + extra), extra == 6) for n in (1, 2) for extra in (5, 6)),
    ("matroska,webm", b"head" + SEGMENT + b"\x00" + bytes(20), None), ("matroska,webm", b"head" + bytes(40), None),
    ("matroska,webm", bytes(4096 - 12) + SEGMENT + ebml(5, 8) + bytes(5), True), ("matroska,webm", bytes(4096 - 11) + SEGMENT + ebml(5, 8) + bytes(5), None),
    ("avi", b"RIFF" + struct.pack("<I", 4) + b"AVI ", True), ("avi", b"RIFF" + struct.pack("<I", 4) + b"AVI", False),
    ("avi", b"RIFF" + struct.pack("<I", 0) + b"AVI ", None), ("avi", b"RIFF\0\0\0", None),
    *(("flv", b"FLV" + bytes([kind]) + TAG[1:] + struct.pack(">I", 18), good) for kind, good in ((8, True), (9, True), (18, True), (41, True), (7, False), (10, False), (19, False))),
    ("flv", TAG + struct.pack(">I", 17), False), ("flv", TAG + struct.pack(">I", 19), False), ("flv", TAG + struct.pack(">I", 18), True),
    ("flv", b"\x09" + bytes(10) + struct.pack(">I", 11), True), ("flv", b"\x09" + bytes(9) + struct.pack(">I", 10), False),
    ("flv", TAG[:-1] + struct.pack(">I", 18), False), ("flv", b"12", None), ("ogg", b"", None),
]  # fmt: skip


@pytest.mark.parametrize("form, data, whole", FILES)
def test_whether_a_file_is_as_long_as_it_says(tmp_path, form, data, whole):
    (tmp_path / "a").write_bytes(data)
    assert boxes.whole(tmp_path / "a", form) is whole
    assert boxes.whole(tmp_path / "none", form) is None
