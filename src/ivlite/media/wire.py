"""Messages between a process and the one that decodes for it: JSON and arrays of bytes, nothing that runs code."""

import json
import os
import struct

MOST_HEAD, MOST_DATA = 64 << 20, 1 << 30  # bytes of the JSON of a message, and of each array


def packed(head, arrays=()):
    """The byte strings of a message: head, a dict for JSON; arrays, objects of bytes."""
    arrays = [memoryview(array).cast("B") for array in arrays]
    text = json.dumps(head | {"arrays": [len(array) for array in arrays]}).encode()
    return [struct.pack("<q", len(text)), text, *arrays]


def unpacked(read):
    """(head, arrays) of the next message; read(n) returns exactly n bytes. Raises ValueError for what is no message."""
    size = struct.unpack("<q", read(8))[0]
    if not 0 < size <= MOST_HEAD:
        raise ValueError("a message has no head")
    head = json.loads(bytes(read(size)))
    sizes = head.pop("arrays")
    if not all(isinstance(n, int) and 0 <= n <= MOST_DATA for n in sizes):
        raise ValueError("a message has arrays without sizes")
    return head, [read(n) for n in sizes]


def write(descriptor, parts):
    """Writes byte strings to a pipe."""
    for part in parts:
        rest = memoryview(part)
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]
