"""One layer of a latent cache in device memory, for tests of its kernels."""

import numpy as np


class Layer:
    """What a cache of one layer is to its kernels: arrays, a length in device memory, rows that were given last."""

    def __init__(self, device, kind, rank, rope, capacity):
        self.device, self.kind, self.rank, self.rope, self.capacity = device, kind, rank, rope, capacity
        self.row_bytes = device.cuda.cache_row_bytes(kind, rank, rope)
        self.parts = [device.empty(capacity * n, np.uint8) if n else None for n in self.row_bytes]
        addresses = [*(part.pointer if part else 0 for part in self.parts), capacity]
        self.rows = device.array(np.array(addresses, np.int64)).pointer, rank, rope, kind
        self.length = device.array(np.zeros(1, np.int32)).pointer
        self.given, self.pending, self.count = (0, 0), 0, 0

    def append(self, latent, keys, norm=0, eps=0.0, angles=(0, 0), interleaved=False, queries=None):
        """latent (T, rank) and keys (T, rope) -> what was stored, before it was rounded: two buffers."""
        tokens, stride = len(latent), self.rank + self.rope + 3
        # as one product leaves them, with something behind
        joined = self.device.array(np.pad(np.concatenate([latent, keys], 1), ((0, 0), (0, 3)))).pointer
        given = self.device.empty(latent.shape), self.device.empty(keys.shape)
        pointers = given[0].pointer, given[1].pointer
        self.device.cuda.append_rows(
            self.rows, self.length, (joined, stride), norm, eps, (joined + 4 * self.rank, stride), angles, interleaved,
            pointers, tokens, queries, 0,
        )  # fmt: skip
        self.given, self.pending = pointers if self.kind != "f32" else (0, 0), tokens
        return given

    def advance(self):
        self.count += self.pending
        self.device.cuda.fill(self.length, self.count, 1, 0)
        self.given, self.pending = (0, 0), 0

    def stored(self, rows):
        """The bytes of the first rows, as `dump` of a cache writes them."""
        return np.concatenate(
            [part.numpy()[: rows * n] for part, n in zip(self.parts, self.row_bytes, strict=True) if n]
        )

    def read(self, first, count, operand="f32", given=(0, 0), stored=0):
        """Rows as numbers, or the bits of numbers."""
        dtype = np.float32 if operand == "f32" else np.uint16
        latent, key = (self.device.empty((count, n), dtype) for n in (self.rank, self.rope))
        self.device.cuda.read_rows(
            self.rows, first, count, stored, given, operand, (latent.pointer, self.rank),
            (key.pointer, self.rope), 0,
        )  # fmt: skip
        return latent.numpy(), key.numpy()
