"""The table of a session file: what its rows mean, where they are, and everything else that a conversation consists of."""

import json
import math
import struct
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np

from ivlite.errors import ModelFileError, SessionFileError
from ivlite.gguf import jsontext
from ivlite.numbers import scalar
from ivlite.ops import cache_token_bytes

BLOCK = 256  # tokens of a block
TABLE_LIMIT = 1 << 28  # bytes of a table; that of 262,144 tokens of video has 2 million
ROWS_LIMIT = 4096  # tokens of a block in a file
LENGTH_LIMIT = 1 << 24  # tokens of a conversation
LAYERS_LIMIT = 1024
ARRAYS_LIMIT = 64
DTYPES = ("|u1", "<i4", "<i8", "<u8", "<f4", "<f8")
LENGTH = struct.Struct("<Q")


class Wrong(ValueError):
    """What is wrong with a table."""


def need(condition, what):
    if not condition:
        raise Wrong(what)


@dataclass(frozen=True)
class Layout:
    """What the rows of a cache mean. Only caches with equal layouts can exchange rows.

    model: identifies the weights (GGUFFile.digest). kind: of the cache. ranks: the latent rank of each layer. rope_dim:
    values of a rotary key. token_bytes: of all layers. name: of the model, for messages.
    """

    model: str
    kind: str
    ranks: tuple[int, ...]
    rope_dim: int
    token_bytes: int
    name: str = field(default="", compare=False)

    @classmethod
    def of(cls, network, kind):
        """The Layout of a network's caches of a kind."""
        return cls.of_source(network.source, network.config, kind)

    @classmethod
    def of_source(cls, source, config, kind):
        """The Layout of the caches of a model whose weights come from a source."""
        ranks, rope_dim = tuple(config.text.kv_lora_rank), config.text.qk_rope_head_dim
        return cls(source.digest, kind, ranks, rope_dim, cache_token_bytes(ranks, rope_dim, kind), config.name)

    @classmethod
    def checked(cls, data):
        """A Layout from JSON data. Raises Wrong."""
        need(isinstance(data, dict) and set(data) == set(cls.__dataclass_fields__), "its layout")
        ranks = data["ranks"]
        need(isinstance(ranks, list) and 0 < len(ranks) <= LAYERS_LIMIT, "its layers")
        need(all(isinstance(data[key], str) for key in ("model", "kind", "name")), "its layout")
        need(all(whole(n, 1, 1 << 20) for n in [*ranks, data["rope_dim"]]), "its layout")
        need(whole(data["token_bytes"], 1, 1 << 40), "its layout")
        return cls(**data | {"ranks": tuple(ranks)})

    def check_same(self, other, path):
        """Raises SessionFileError that says why rows of this layout, from the file at `path`, are none of `other`."""
        if self.model != other.model:
            same = " (a file of that name with other weights)" if self.name == other.name else ""
            why = f"belongs to another model, {self.name}{same}: open it with that one"
        elif self.kind != other.kind:
            how = f"load it with kv={self.kind} (--kv {self.kind})"  # in Python, and on the command line
            why = f"has a {self.kind} cache and this model is loaded with {other.kind}: {how}"
        elif self != other:
            why = "has a cache of another form: open it with the ivlite that saved it"
        else:
            return
        raise SessionFileError(f"{path} {why}, or choose another name")


class Block(NamedTuple):
    """Rows [first, last) of a cache, as Cache.dump gives them: at an offset of the file, with their CRC-32."""

    first: int
    rows: int
    offset: int
    size: int
    sum: int = 0

    @property
    def last(self):
        return self.first + self.rows


def blocks_at(offset, first, last, token_bytes):
    """The Blocks of rows [first, last), one after the other from `offset` of a file on."""
    out = []
    while first < last:
        rows = min(BLOCK - first % BLOCK, last - first)
        out.append(Block(first, rows, offset, rows * token_bytes))
        first, offset = first + rows, offset + rows * token_bytes
    return out


@dataclass
class Table:
    """The state of a session. length: tokens in its cache. meta: JSON data. arrays: {name: numpy array}. blocks: in order."""

    layout: Layout
    length: int
    meta: dict
    arrays: dict
    blocks: list

    def packed(self):
        """The table as bytes: the length of its JSON, the JSON, the arrays, the blocks."""
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        arrays = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}
        text = json.dumps(
            {
                "layout": asdict(self.layout),
                "length": self.length,
                "meta": self.meta,
                "arrays": [[name, a.dtype.str, a.shape] for name, a in arrays.items()],
                "blocks": len(self.blocks),
            },
            default=plain,
        ).encode()
        rows = np.array([(b.first, b.rows, b.offset, b.sum) for b in self.blocks], "<u8")
        return b"".join([LENGTH.pack(len(text)), text, *(a.tobytes() for a in arrays.values()), rows.tobytes()])

    @classmethod
    def parsed(cls, data, room, own):
        """A Table from bytes. room: the range of offsets where blocks may be; own: that of the table. Raises Wrong."""
        need(len(data) >= LENGTH.size, "it is too short")
        (count,) = LENGTH.unpack_from(data)
        at = LENGTH.size + count
        need(at <= len(data), "it is too short")
        try:
            facts = jsontext.parse(bytes(data[LENGTH.size : at]).decode(), "its JSON")
        except (ModelFileError, UnicodeDecodeError) as error:
            raise Wrong(str(error)) from None
        need(set(facts) == {"layout", "length", "meta", "arrays", "blocks"}, "its JSON")
        layout, length = Layout.checked(facts["layout"]), facts["length"]
        need(whole(length, 0, LENGTH_LIMIT) and isinstance(facts["meta"], dict), "its JSON")
        arrays = {}
        need(isinstance(facts["arrays"], list) and len(facts["arrays"]) <= ARRAYS_LIMIT, "its arrays")
        need(whole(facts["blocks"], 0, length), "its blocks")
        for entry in [*facts["arrays"], ["", "<u8", [facts["blocks"], 4]]]:
            name, array = array_in(data, at, entry)
            need(name not in arrays, "two arrays have one name")
            arrays[name], at = array, at + array.nbytes
        need(at == len(data), "it is too long")
        rows = [Block(*r[:3], r[1] * layout.token_bytes, r[3]) for r in arrays.pop("").tolist()]
        check_blocks(rows, length, room, own)
        return cls(layout, length, facts["meta"], arrays, rows)


def plain(value):
    """A value of a message that JSON does not know: a number of any library as a float or int, others as text."""
    number = scalar(value)
    return str(value) if number is None else number if isinstance(number, int) else float(number)


def whole(value, low, high):
    return type(value) is int and low <= value <= high


def array_in(data, at, entry):
    """(name, array) of one entry of a table, whose values begin at data[at]. Raises Wrong."""
    need(isinstance(entry, list) and len(entry) == 3, "its arrays")
    name, dtype, shape = entry
    need(isinstance(name, str) and isinstance(shape, list) and len(shape) <= 4, "its arrays")
    need(dtype in DTYPES and all(whole(n, 0, 1 << 40) for n in shape), "its arrays")
    count = math.prod(shape)
    need(count * np.dtype(dtype).itemsize <= len(data) - at, f"its array {name!r:.40}")
    return name, np.frombuffer(data, dtype, count, at).reshape(shape).copy()


def check_blocks(blocks, length, room, own):
    """Raises Wrong unless the blocks hold tokens 0 to `length` in order, each in a place of its own."""
    at = 0
    for block in blocks:
        need(block.first == at and 1 <= block.rows <= ROWS_LIMIT, f"the block of token {at}")
        need(room.start <= block.offset and block.offset + block.size <= room.stop, f"the block of token {at}")
        at = block.last
    need(at == length, "its blocks")
    places = sorted([(b.offset, b.offset + b.size) for b in blocks] + [(own.start, own.stop)])
    for (_, end), (start, _) in zip(places, places[1:], strict=False):
        need(end <= start, "its blocks overlap")
