"""What follows the last packet that FFmpeg read of a file: nothing more, damage, or another file that was joined to it.

As in boxes.py every size is checked, and what is malformed in a way that says nothing gives None.
"""

import os
import struct

import numpy as np

from ivlite.media.boxes import ASF_HEADER, MAX_BOXES, children, objects, segment_end

# Matroska's elements that may follow a block: on the level of the file, of a segment, of a cluster, and of a group of blocks.
ENTERED = frozenset((0x18538067, 0x1F43B675, 0xA0))
KNOWN = ENTERED | {
    0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1941A469, 0x1043A770, 0xEC, 0xBF, 0xE7, 0xAB, 0xA7,
    0x5854, 0xAF, 0xA3, 0xA1, 0x9B, 0xFB, 0xFA, 0xFD, 0x75A1, 0x75A2, 0xA4, 0xA2, 0x8E, 0xC8,
}  # fmt: skip
BLOCKS = (0xA3, 0xA1)
CODE = b"\0\0\1"  # begins each packet of a program stream
PACK, OVER = 0xBA, 0xB9
PADDING = 1 << 16  # zeros at the end of a program stream that are looked at
TAGS = (8, 9, 18)  # of FLV: sound, pictures, data
WINDOW = 188 << 14  # bytes of a transport stream that are searched for a program's packets


def unread(path, form, last):
    """Whether damage or the end of a file that was cut follows the packet at the offset `last`, the last that was read.

    False where all that follows is what the format `form` of FFmpeg holds, None where this is not known.
    """
    check = {"matroska": unread_matroska, "mpeg": unread_program}.get(form.split(",")[0])
    if check is None or last is None:
        return None
    try:
        with open(path, "rb") as file:
            return check(file, os.fstat(file.fileno()).st_size, last)
    except OSError:
        return None


def unread_matroska(file, size, last):
    """As unread(). last: where the content of the block begins, behind its number and its size of one to eight bytes."""
    end = segment_end(file)
    over = size if end is None or end <= last else min(end, size)
    back = min(9, last)
    file.seek(last - back)
    head, ends = file.read(back), []
    for count in range(1, back):
        length = variable(head[back - count :])
        if length and length[1] == count and head[back - count - 1] in BLOCKS:
            ends.append(last + length[0])
    return None if not ends else not any(elements_fill(file, at, over) for at in ends)


def variable(data):
    """(value, bytes that it takes) of Matroska's numbers of variable length; None if it is none. The value -1: unknown."""
    if not data or not data[0]:
        return None
    count = 9 - data[0].bit_length()
    value, ones = int.from_bytes(data[:count], "big"), (1 << 7 * count) - 1
    return None if len(data) < count else (-1 if value & ones == ones else value & ones, count)


def elements_fill(file, at, over):
    """Whether known elements of Matroska follow each other from an offset to `over`."""
    for _ in range(MAX_BOXES):
        if at >= over:
            return at == over
        file.seek(at)
        head = file.read(12)
        skip = 9 - head[0].bit_length() if head and head[0] else 9
        length = variable(head[skip:])
        number = int.from_bytes(head[:skip], "big")
        if skip > 4 or number not in KNOWN or length is None or (length[0] < 0 and number not in ENTERED):
            return False
        at += skip + length[1] + (0 if number in ENTERED else length[0])
    return True


def unread_program(file, size, last):
    """As unread(), of a program stream: packets follow each other, and perhaps zeros at the end."""
    at = last
    for _ in range(MAX_BOXES):
        file.seek(at)
        head = file.read(14)
        if len(head) < 4:
            return at > size
        if not head.startswith(CODE) or head[3] < OVER:
            file.seek(at)
            return any(file.read(PADDING))
        if head[3] == OVER:
            at += 4
        elif head[3] == PACK:
            at += 14 + (head[13] & 7) if len(head) == 14 and head[4] >> 6 == 1 else 12
        else:
            length = int.from_bytes(head[4:6], "big")
            if not length:
                return None
            at += 6 + length
    return False


def unseen(name, path, form, places, last, others):
    """Sentences about parts of a file that are not read, since files were joined that FFmpeg does not take for one.

    places: int64, the offsets of the packets that were read (negative where unknown), or None. last: the largest. others: the
    identifiers of a transport stream's other videos.
    """
    second = again(path, form, last, others)
    if second is not None:
        yield f"video {name} begins again at byte {second:,}: only its first part is read"
    known = places[places >= 0] if places is not None and form == "mpegts" and others else ()
    if len(known) and preceded(path, int(known.min()), others):
        yield f"video {name} has another video before byte {known.min():,}: only what follows is read"


def again(path, form, last, others=()):
    """The offset at which a file begins once more, behind the last packet that was read; None if it does not.

    last, others: as for unseen().
    """
    checks = {"mov": again_mp4, "flv": again_flv, "asf": again_asf, "ivf": again_ivf}
    check = checks.get(form.split(",")[0])
    if last is None or (check is None and not (form == "mpegts" and others)):
        return None
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return check(file, size, last) if check else again_transport(file, size, last, others)
    except (OSError, struct.error):
        return None


def again_mp4(file, size, last):
    heads = []
    end = 0
    for kind, _, over in children(file, 0, size):
        if kind == b"ftyp":
            heads.append(end)
        end = over
    return next((at for at in heads[1:] if at > last), None)


def again_flv(file, size, last):
    at = last
    for _ in range(MAX_BOXES):
        file.seek(at)
        head = file.read(4)
        if head == b"FLV\1":
            return at
        if len(head) < 4 or head[0] & 31 not in TAGS:
            return None
        at += 15 + int.from_bytes(head[1:], "big")
    return None


def again_asf(file, size, last):
    return next((at for at, kind, _ in objects(file, size) if at and kind == ASF_HEADER), None)


def again_ivf(file, size, last):
    """A frame has its size and its time before it."""
    at = 32
    while at < size:
        file.seek(at)
        head = file.read(12)
        if head.startswith(b"DKIF"):
            return at
        if len(head) < 12:
            return None
        at += 12 + struct.unpack_from("<I", head)[0]
    return None


def again_transport(file, size, last, others):
    """Another video whose packets begin only where those of the first end."""
    edges = last % 188, max(last % 188, last - WINDOW)
    before = np.concatenate([identifiers(file, at, min(last - at, WINDOW)) for at in edges])
    late = [number for number in others if not (before == number).any()]
    found = np.flatnonzero(np.isin(identifiers(file, last, WINDOW), late))
    return last + 188 * int(found[0]) if len(found) else None


def preceded(path, first, others):
    """Whether a transport stream begins with packets of another video that end where those of the one that is read begin."""
    try:
        with open(path, "rb") as file:
            early = identifiers(file, first % 188, min(first - first % 188, WINDOW))
            later = identifiers(file, first, WINDOW)
    except OSError:
        return False
    return any((early == number).any() and not (later == number).any() for number in others)


def identifiers(file, at, length):
    """int64 (packets,): the identifiers of a transport stream's packets in a range; -1 for what is no packet."""
    file.seek(at)
    data = np.frombuffer(file.read(length), np.uint8)
    rows = data[: len(data) // 188 * 188].reshape(-1, 188)[:, :3].astype(np.int64)
    return np.where(rows[:, 0] == 0x47, (rows[:, 1] & 31) << 8 | rows[:, 2], -1)
