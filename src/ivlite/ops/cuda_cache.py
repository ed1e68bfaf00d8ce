"""The latent cache in the memory of a card, with the bytes of the CPU's."""

import numpy as np

from ivlite import _C

LEAST_BUCKET = 1024  # tokens of the smallest capacity that attention is split for
PLACE = 4  # int64 words of csrc/kernels/cuda/attention.h: LayerPlace


class Cache:
    """A latent cache as `ivlite.ops` describes it. Kernels read its length, and where its layers lie, from the card's memory:
    in a step (`cuda_step.Step`) that of the step, where `inside` is set, else its own.

    places: the words of where its layers are. recorded: the steps that were last taken over it, by their number of tokens.
    """

    def __init__(self, ops, ranks, rope_dim, capacity, kind):
        if capacity <= 0:
            raise ValueError("a cache needs layers, a rope dimension and a capacity")
        self.ops, self.memory, self.ranks, self.rope_dim = ops, ops.memory, list(ranks), rope_dim
        self.kind = "f16" if kind == "bf16" else kind
        self.token_bytes = _C.cache_token_bytes(self.ranks, rope_dim, kind)
        self.row_bytes = [ops.memory.kernels.cache_row_bytes(self.kind, rank, rope_dim) for rank in self.ranks]
        self.capacity, self.length, self.pending = capacity, 0, 0
        self.given = None, None, None  # the layer appended last; its latents and keys before they were rounded
        self.layers = [self._empty(row, capacity) for row in self.row_bytes]
        self._at, self._told = self.memory.zeros(1, "int32"), 0  # its length on the card, and which that is
        self.places = self._words()
        self._places = self.memory.put(self.places)
        self.recorded, self.inside = {}, None

    def _empty(self, row_bytes, capacity):
        """The arrays of one layer: latents, scales (or None), keys."""
        return [self.memory.empty(capacity * n, "uint8") if n else None for n in row_bytes]

    @property
    def nbytes(self):
        return self.capacity * self.token_bytes

    @property
    def bucket(self):
        """The power of two of tokens that decides how attention is split."""
        return max(LEAST_BUCKET, 1 << (self.capacity - 1).bit_length())

    @property
    def shape(self):
        """What launches over it depend on, besides its length and the places of its layers."""
        return self.kind, tuple(self.ranks), self.rope_dim, self.bucket

    def _words(self):
        """The words of all layers' LayerPlace: addresses of latents, scales (0 for none) and keys, and the capacity."""
        words = [
            [*(0 if part is None else self.memory.pointer(part) for part in layer), self.capacity]
            for layer in self.layers
        ]
        return np.array(words, np.int64).view(np.int32).reshape(-1)

    def place(self, layer):
        """The address of a layer's LayerPlace."""
        return (self.memory.pointer(self._places) if self.inside is None else self.inside.places) + 8 * PLACE * layer

    @property
    def at(self):
        """The address of its length."""
        if self.inside is not None:
            return self.inside.at
        if self._told != self.length:
            self.ops.launch("fill", self.memory.pointer(self._at), self.length, 1)
            self._told = self.length
        return self.memory.pointer(self._at)

    def room(self, tokens):
        """Raises ValueError where so many rows do not fit."""
        if tokens > self.capacity - self.length:
            raise ValueError("the cache is full")

    def append(self, layer, latent, k_rope, norm=None, eps=0.0, turn=None, interleaved=False, queries=None):
        """norm: (rank), where the latent's RMS norm is to be taken first; turn: (cos, sin) by which keys are to be rotated.
        queries: those of the rows, see `cuda_attention.Queries`.
        """
        if not 0 <= layer < len(self.ranks):
            raise ValueError("there is no such layer in the cache")
        if latent.shape[1] != self.ranks[layer] or tuple(k_rope.shape) != (len(latent), self.rope_dim):
            raise ValueError("rows do not have the widths of the cache")
        self.room(len(latent))
        given = [None, None]
        if self.kind != "f32":
            given = [self.memory.empty((len(latent), n)) for n in (self.ranks[layer], self.rope_dim)]
        self.ops.append(self, layer, latent, k_rope, norm, eps, turn, interleaved, given, queries)
        self.pending, self.given = len(latent), (layer, *given)

    def fresh(self, layer):
        """The pending rows of a layer as they were given, (latents, keys); (None, None) where they are only stored."""
        return self.given[1:] if self.pending and self.given[0] == layer else (None, None)

    def advance(self, tokens):
        if tokens != self.pending:
            raise ValueError(f"the number of tokens to advance by is {tokens}; it must be {self.pending}")
        self._settle(self.length + tokens)

    def truncate(self, length):
        if not 0 <= length <= self.length:
            raise ValueError("a cache can only be cut to a length it has")
        self._settle(length)

    def _settle(self, length):
        self.length, self.pending, self.given = length, 0, (None, None, None)

    def read(self, layer, s0, s1):
        if not 0 <= s0 <= s1 <= self.length + self.pending:
            raise ValueError("there are no such rows in the cache")
        return tuple(self.memory.get(x) for x in self.ops.rows_of(self, layer, s0, s1))

    def reserve(self, capacity):
        if capacity <= self.capacity:
            return
        rows = self.length + self.pending
        try:
            for i, row in enumerate(self.row_bytes):
                larger = self._empty(row, capacity)
                for old, new, n in zip(self.layers[i], larger, row, strict=True):
                    if n:
                        new[: rows * n] = old[: rows * n]
                self.layers[i] = larger
            self.capacity = capacity
        finally:  # where memory ended, some layers have moved
            self.places = self._words()
            self.memory.copy(self._places, self.places)

    def _pieces(self, first, last):
        """The bytes of rows [first, last), array by array."""
        for layer, row in zip(self.layers, self.row_bytes, strict=True):
            yield from (part[first * n : last * n] for part, n in zip(layer, row, strict=True) if n)

    def dump(self, first, last):
        if not 0 <= first <= last <= self.length:
            raise ValueError("there are no such rows in the cache")
        out, at = np.empty((last - first) * self.token_bytes, np.uint8), 0
        for piece in self._pieces(first, last):
            part = self.memory.get(piece)
            out[at : at + len(part)] = part
            at += len(part)
        return out

    def restore(self, first, data):
        tokens, rest = divmod(data.size, self.token_bytes)
        if first != self.length:
            raise ValueError(f"the row that restored rows begin at is {first}; it must be {self.length}")
        if rest:
            raise ValueError("restored data is not whole rows of this cache")
        self.room(tokens)
        at = 0
        for piece in self._pieces(first, first + tokens):
            self.memory.copy(piece, data[at : at + len(piece)])
            at += len(piece)
        self._settle(first + tokens)
