"""Reads the structure of containers: frame times of mp4 files, encryption, and whether a file is complete.

Every size is checked against the file. The result for malformed structures is None, and the caller reads packets instead.
"""

import os
import struct

import numpy as np

SAMPLE_TABLE = (b"mdia", b"minf", b"stbl")
ENCRYPTED = (b"encv", b"drmi")  # sample entries of Common Encryption and FairPlay
ASF_ENCRYPTION = ("fbb3112223bdd211b4b700a0c955fc6e", "14e68a292226174cb935dae07ee9289c")  # plain and extended
ASF_HEADER, ASF_DATA = (bytes.fromhex(f"{n}26b2758e66cf11a6d900aa0062ce6c") for n in (30, 36))
MAX_BOXES = 1 << 16  # of one level
SEGMENT = b"\x18\x53\x80\x67"  # Matroska


def children(file, start, end):
    """Yields (type, start, end) of the content of each mp4 box in a range of a file. `end` may lie beyond the file."""
    for _ in range(MAX_BOXES):
        file.seek(start)
        head = file.read(16)
        if start + 8 > end or len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        skip = 8
        if size == 1 and len(head) == 16:
            size, skip = struct.unpack(">Q", head[8:])[0], 16
        elif size == 0:
            size = end - start
        if size < skip:
            return
        yield kind, start + skip, start + size
        start += size


def find(file, part, *path):
    """(start, end) of the first box at a path of types within the range `part`, or None."""
    for kind in path:
        part = next(((a, min(b, part[1])) for k, a, b in children(file, *part) if k == kind), None)
        if part is None:
            return None
    return part


def tables(file):
    """Yields (id, (start, end) of the sample table or None) of each track."""
    moov = find(file, (0, os.fstat(file.fileno()).st_size), b"moov")
    for kind, start, end in children(file, *moov) if moov else ():
        header = find(file, (start, end), b"tkhd") if kind == b"trak" else None
        if header:
            file.seek(header[0])
            data = file.read(24)
            if len(data) == 24:
                number = struct.unpack_from(">I", data, 20 if data[0] == 1 else 12)[0]
                yield number, find(file, (start, end), *SAMPLE_TABLE)


def track(file, number):
    """(start, end) of the sample table of the track with that id, or None."""
    return next((table for found, table in tables(file) if found == number), None)


def encrypted(file, number=None):
    """Whether the first sample entry of an mp4 track, or of any, is encrypted."""
    for found, table in tables(file):
        entries = find(file, table, b"stsd") if table and number in (None, found) else None
        first = next(children(file, entries[0] + 8, entries[1]), None) if entries else None
        if first is not None and first[0] in ENCRYPTED:
            return True
    return False


def scrambled(file, number):
    """Whether most of the first packets of a transport stream's program `number` are scrambled."""
    data = np.frombuffer(file.read(1 << 20), np.uint8)
    for size, skip in ((188, 0), (192, 4)):
        rows = data[: len(data) // size * size].reshape(-1, size)[:, skip : skip + 4].astype(np.int64)
        if len(rows) and (rows[:, 0] == 0x47).mean() > 0.9:
            own = ((rows[:, 1] & 31) << 8 | rows[:, 2]) == number
            return bool(own.any() and (rows[own, 3] >= 64).mean() > 0.5)
    return False


def licensed(file, number):
    """Whether the header of an ASF file (wmv) has an encryption object."""
    head = file.read(1 << 16)
    return any(bytes.fromhex(guid) in head for guid in ASF_ENCRYPTION)


PROTECTED = {"mov": encrypted, "mpegts": scrambled, "asf": licensed}  # by FFmpeg's names of formats


def column(file, table, kind, form, most, skip=4):
    """The entries of a table of an mp4 track, at most `most`, of the dtype `form`; None if they are not there.

    skip: bytes of the box before the number of entries.
    """
    box = find(file, table, kind)
    if box is None:
        return None
    file.seek(box[0] + skip)
    head = file.read(4)
    if len(head) < 4:
        return None
    (entries,), form = struct.unpack(">I", head), np.dtype(form)
    if entries > most or box[0] + skip + 4 + entries * form.itemsize > min(box[1], os.fstat(file.fileno()).st_size):
        return None
    return np.frombuffer(file.read(entries * form.itemsize), form, entries)


def compositions(file, number, count):
    """int64 (count,): composition offsets (pts - dts) of an mp4 track's frames in ticks; None if unknown."""
    table = track(file, number)
    if table is None:
        return None
    if find(file, table, b"ctts") is None:
        return np.zeros(count, np.int64)
    pairs = column(file, table, b"ctts", ">u4, >i4", count)
    if pairs is None or pairs["f0"].sum(dtype=np.int64) != count:
        return None
    return np.repeat(pairs["f1"].astype(np.int64), pairs["f0"])


def samples(file, number, count):
    """Of the `count` frames of an mp4 track in file order, without edit lists: None if the tables do not say so, or

    int64 decoding times in ticks from the first; int64 offsets at which each ends in the file; whether it is a key frame.
    """
    table = track(file, number)
    times = None if table is None else column(file, table, b"stts", ">u4, >i4", count)
    ends = None if table is None else ends_of(file, table, count)
    if times is None or ends is None or times["f0"].sum(dtype=np.int64) != count:
        return None
    dts = np.zeros(count, np.int64)
    np.cumsum(np.repeat(times["f1"].astype(np.int64), times["f0"])[:-1], out=dts[1:])
    if find(file, table, b"stss") is None:
        return dts, ends, np.ones(count, bool)
    numbers = column(file, table, b"stss", ">u4", count)
    if numbers is None or not len(numbers) or numbers.min() < 1 or numbers.max() > count:
        return None
    keys = np.zeros(count, bool)
    keys[numbers.astype(np.int64) - 1] = True
    return dts, ends, keys


def ends_of(file, table, count):
    """int64 (count,): the offsets at which the frames of a sample table end in the file; None if they are not told."""
    sizes, runs = lengths(file, table, count), column(file, table, b"stsc", ">u4, >u4, >u4", count)
    offsets = column(file, table, b"stco", ">u4", count)
    offsets = column(file, table, b"co64", ">i8", count) if offsets is None else offsets
    if sizes is None or offsets is None or runs is None or not len(runs):
        return None
    first = runs["f0"].astype(np.int64) - 1  # chunk of each run of chunks with as many frames
    if first[0] != 0 or (np.diff(first) <= 0).any() or first[-1] >= len(offsets):
        return None
    frames = np.repeat(runs["f1"].astype(np.int64), np.diff(first, append=len(offsets)))  # of each chunk
    if frames.min() <= 0 or frames.sum() != count:
        return None
    ends = np.cumsum(sizes)
    begin = np.cumsum(frames) - frames
    ends += np.repeat(offsets.astype(np.int64) - (ends[begin] - sizes[begin]), frames)
    return ends


def lengths(file, table, count):
    """int64 (count,): the bytes of each frame of a sample table, none zero; None if they are not told."""
    box = find(file, table, b"stsz")
    if box is None:
        return None
    file.seek(box[0])
    head = file.read(12)
    if len(head) < 12:
        return None
    _, same, entries = struct.unpack(">3I", head)
    if same:
        return np.full(count, same, np.int64) if entries == count else None
    sizes = column(file, table, b"stsz", ">u4", count, 8)
    return sizes.astype(np.int64) if sizes is not None and len(sizes) == count and sizes.min() > 0 else None


def whole(path, form):
    """Whether a file of FFmpeg's format `form` is as long as its structure declares; None if unknown.

    Of ASF and GIF only that it is not: what they declare to last is not what is there.
    """
    checks = {
        "mov": whole_mp4, "matroska": whole_matroska, "avi": whole_avi, "flv": whole_flv, "asf": whole_asf, "gif": whole_gif,
    }  # fmt: skip
    check = checks.get(form.split(",")[0])
    if check is None:
        return None
    try:
        with open(path, "rb") as file:
            return check(file, os.fstat(file.fileno()).st_size)
    except (OSError, struct.error):
        return None


def whole_mp4(file, size):
    kinds = set()
    for kind, _, end in children(file, 0, size):
        kinds.add(kind)
        if end > size:
            return False
    return None if b"moof" in kinds else True  # a fragmented file does not declare the number of its fragments


def fragmented(path):
    """Whether a file is a fragmented mp4: what FFmpeg says to be its length is that of the fragments that are there."""
    with open(path, "rb") as file:
        return any(kind == b"moof" for kind, *_ in children(file, 0, os.fstat(file.fileno()).st_size))


def whole_matroska(file, size):
    end = segment_end(file)
    return None if end is None else end <= size


def segment_end(file):
    """The offset at which a Matroska file's segment says to end; None if it does not say, as in live recordings."""
    file.seek(0)
    head = file.read(4096)
    at = head.find(SEGMENT)
    if at < 0 or at + 12 > len(head):
        return None
    length = 9 - head[at + 4].bit_length()
    value = int.from_bytes(head[at + 4 : at + 4 + length], "big") & ((1 << 7 * length) - 1)
    if length > 8 or value == (1 << 7 * length) - 1:
        return None
    return at + 4 + length + value


def whole_avi(file, size):
    head = file.read(8)
    length = struct.unpack_from("<I", head, 4)[0]
    return length + 8 <= size if length else None


def whole_flv(file, size):
    """The last four bytes hold the size of the tag before them."""
    file.seek(max(0, size - 4))
    back = struct.unpack(">I", file.read(4))[0]
    if not 11 <= back <= size - 4:
        return False
    file.seek(size - 4 - back)
    kind, length = struct.unpack(">B3s", file.read(4))
    return kind & 31 in (8, 9, 18) and int.from_bytes(length, "big") + 11 == back


def objects(file, size):
    """Yields (start, type, end) of the objects on the highest level of an ASF file (wmv). The last end may lie beyond it."""
    at = 0
    for _ in range(MAX_BOXES):
        file.seek(at)
        head = file.read(24)
        length = int.from_bytes(head[16:], "little")
        if len(head) < 24 or length < 24:  # a live recording has no size
            return
        yield at, head[:16], at + length
        at += length


def whole_asf(file, size):
    return False if any(kind == ASF_DATA and end > size for _, kind, end in objects(file, size)) else None


def whole_gif(file, size):
    """A GIF ends with a semicolon; anything may follow."""
    file.seek(max(0, size - 4096))
    if file.read().rstrip(b"\0").endswith(b";"):
        return None
    file.seek(0)
    head = file.read(13)
    file.seek(colours(head[10]) if len(head) == 13 else 0, os.SEEK_CUR)
    while (kind := file.read(1)) and kind in b"!,":
        if kind == b",":
            place = file.read(9)
            file.seek(colours(place[8]) + 1 if len(place) == 9 else 0, os.SEEK_CUR)  # and the size of a code
        else:
            file.read(1)
        while (length := file.read(1)) and length[0]:
            file.seek(length[0], os.SEEK_CUR)
    return None if kind else False


def colours(flags):
    """Bytes of the table of colours that a GIF's flags tell of."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0
