"""Checks a model file against the checksums and golden activations that its conversion stored."""

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from ivlite import ops
from ivlite.errors import ModelFileError
from ivlite.gguf import GGUFFile
from ivlite.gguf.config import Config, check_tensors
from ivlite.gguf.writer import HEADER_SUM, TENSOR_SUMS
from ivlite.models import internvideo3
from ivlite.quantize import golden
from ivlite.quantize.source import ModelFile
from ivlite.stop import bound, checkpoint
from ivlite.workers import Workers

CHUNK = 1 << 22  # bytes read at a time


@dataclass(frozen=True)
class Report:
    """The result: the parts with wrong checksums, and the recomputed golden Stages (none if the file has no golden)."""

    path: Path
    tensors: int
    nbytes: int
    damaged: tuple[str, ...]
    stages: tuple[golden.Stage, ...]

    @property
    def ok(self):
        return not self.damaged and all(stage.ok for stage in self.stages)


def check(path, threads=None, progress=None):
    """See ivlite.quantize.verify."""
    with GGUFFile(path) as file:
        path = os.fsdecode(path)
        if TENSOR_SUMS not in file.metadata:
            raise ModelFileError(
                f"{path} has no checksums, so nothing can be verified: `ivlite quantize {path} -o NEW.gguf --type T` "
                "makes a file that has them"
            )
        weights = ModelFile(file)
        damaged = [] if _header_sum(weights) == file.metadata.get(HEADER_SUM) else ["the header"]
        damaged += _damaged_tensors(weights, file.metadata[TENSOR_SUMS], progress)
        config = Config.from_metadata(file.metadata, file.path)
        check_tensors(file.tensors, internvideo3.tensor_names(config), file.path)
        stages = []
        if not damaged and any(key.startswith(golden.PREFIX) for key in file.metadata):
            stages = golden.compare(config, file, threads, progress)
        return Report(file.path, len(file.tensors), file.size, tuple(damaged), tuple(stages))


def _header_sum(weights):
    """CRC-32 of all bytes before the data, with the stored checksums zeroed."""
    start = bytearray(weights.header())
    for key, before, count in ((TENSOR_SUMS, 16, 4 * len(weights.tensors)), (HEADER_SUM, 4, 4)):
        name = struct.pack("<Q", len(key)) + key.encode()
        at = start.find(name) + len(name) + before
        start[at : at + count] = bytes(count)
    return zlib.crc32(start)


def _damaged_tensors(weights, expected, progress):
    """Names of the tensors whose bytes do not match their checksums."""
    if getattr(expected, "dtype", None) != "uint32" or len(expected) != len(weights.tensors):
        return ["the list of checksums"]
    tensors = list(weights.tensors.values())
    total, done, out = sum(t.nbytes for t in tensors), 0, []
    with Workers(ops.get("cpu").threads) as pool:  # zlib releases the GIL
        sums = pool.map(bound(lambda t: _sum(weights, t)), tensors)
        for t, found, wanted in zip(tensors, sums, expected, strict=True):
            done += t.nbytes
            if progress:
                progress("read", done, total)
            out += [t.name] if found != wanted else []
    return out


def _sum(weights, t):
    total = 0
    for at in range(0, t.nbytes, CHUNK):
        checkpoint()
        total = zlib.crc32(weights.raw(t.name, at, min(CHUNK, t.nbytes - at)), total)
    return total
