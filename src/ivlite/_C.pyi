"""The compiled module: what bindings/ defines. Arrays are C-contiguous in their last axis; outputs come first.

`pool` is what an operation runs on; None: threads of the process, `num_threads()` of them.
"""

from types import ModuleType
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

__version__: str
cuda: ModuleType  # cuda.built: whether this build has CUDA kernels; bindings/cuda.cpp has the rest

class FormatInfo(TypedDict):
    name: str
    ggml_type: int
    block: int
    block_bytes: int
    quantized: bool

def formats() -> list[FormatInfo]: ...
def encode(format: str, x: Floats, importance: Floats | None = None, pool: ThreadPool | None = None) -> Bytes: ...
def decode(format: str, data: Bytes, count: int, pool: ThreadPool | None = None) -> Floats: ...
def transposed(
    format: str, data: Bytes, heads: int, rows: int, cols: int, count: int, into: str, pool: ThreadPool | None = None
) -> Bytes: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def cpu_info() -> dict[str, str | bool]: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def wanted_threads() -> int: ...
def default_threads() -> int: ...
def cpu_quota(listing: str = ..., mount: str = ...) -> float: ...
def probe_int8_peak(seconds: float = 0.3, pool: ThreadPool | None = None) -> float: ...
def probe_matrix_peak(seconds: float = 0.3, pool: ThreadPool | None = None) -> float: ...
def probe_read_bandwidth(bytes: int = ..., repeats: int = 5, pool: ThreadPool | None = None) -> float: ...

class ThreadPool:
    threads: int
    def __init__(self, threads: int | None = None) -> None: ...

class StopFlag:
    def __init__(self) -> None: ...
    def set(self) -> None: ...
    def after(self, seconds: float) -> None: ...
    def is_set(self) -> bool: ...

def use_stop(flag: StopFlag | None) -> StopFlag | None: ...

class Weight:
    heads: int
    rows: int
    cols: int
    nbytes: int
    def __init__(
        self, format: str, data: Bytes | None, heads: int, rows: int, cols: int, pool: ThreadPool | None = None
    ) -> None: ...
    def fill(self, first: int, rows: Bytes, pool: ThreadPool | None = None) -> None: ...

class Resizer:
    def __init__(self, in_h: int, in_w: int, out_h: int, out_w: int, pool: ThreadPool | None = None) -> None: ...
    def run(self, y: Bytes, x: Bytes) -> None: ...

Pair = tuple[Weight, Floats | None]  # a weight and a bias

class DecoderLayer:
    def __init__(
        self,
        attn_norm: Floats,
        q: Pair,
        kv_a: Pair,
        latent_norm: Floats | None,
        uk_t: Weight,
        uv: Weight,
        o: Pair,
        ffn_norm: Floats,
        up: Pair,
        down: Pair,
        interleaved: bool,
        eps: float,
        scale: float,
    ) -> None: ...
    def run(
        self,
        x: Floats,
        cos: Floats,
        sin: Floats,
        caches: list[LatentCache],
        rows: list[int],
        layer: int,
        pool: ThreadPool | None = None,
    ) -> None: ...

class LatentCache:
    length: int
    capacity: int
    nbytes: int
    def __init__(
        self, ranks: list[int], rope_dim: int, capacity: int, kind: str, pool: ThreadPool | None = None
    ) -> None: ...
    def append(self, layer: int, latent: Floats, k_rope: Floats, pool: ThreadPool | None = None) -> None: ...
    def advance(self, tokens: int) -> None: ...
    def truncate(self, length: int) -> None: ...
    def read(self, layer: int, s0: int, s1: int, pool: ThreadPool | None = None) -> tuple[Floats, Floats]: ...

def linear(
    y: Floats,
    x: Floats,
    w: Weight,
    bias: Floats | None,
    accumulate: bool,
    activation: str = "none",
    pool: ThreadPool | None = None,
) -> None: ...
def mlp(
    y: Floats,
    x: Floats,
    up: Weight,
    up_bias: Floats | None,
    activation: str,
    down: Weight,
    down_bias: Floats | None,
    accumulate: bool,
    pool: ThreadPool | None = None,
) -> None: ...
def linear_heads(y: Floats, x: Floats, w: Weight, pool: ThreadPool | None = None) -> None: ...
def rms_norm(y: Floats, x: Floats, w: Floats, eps: float, pool: ThreadPool | None = None) -> None: ...
def layer_norm(y: Floats, x: Floats, w: Floats, b: Floats, eps: float, pool: ThreadPool | None = None) -> None: ...
def rope(y: Floats, x: Floats, cos: Floats, sin: Floats, interleaved: bool, pool: ThreadPool | None = None) -> None: ...
def silu_mul(y: Floats, x: Floats, pool: ThreadPool | None = None) -> None: ...
def attention(
    y: Floats, q: Floats, k: Floats, v: Floats, scale: float, segment: int, exact: bool, pool: ThreadPool | None = None
) -> None: ...
def absorbed_attention(
    y: Floats,
    q_latent: Floats,
    q_rope: Floats,
    cache: LatentCache,
    layer: int,
    scale: float,
    pool: ThreadPool | None = None,
) -> None: ...

class ExpandedAttention:
    def __init__(
        self,
        tokens: int,
        cache: LatentCache,
        layer: int,
        kv_b: Weight,
        scale: float,
        pool: ThreadPool | None = None,
    ) -> None: ...
    def add(self, q_nope: Floats, q_rope: Floats, pool: ThreadPool | None = None) -> None: ...
    def step(self, y: Floats, pool: ThreadPool | None = None) -> bool: ...

def expanded_attention(
    y: Floats,
    q_nope: Floats,
    q_rope: Floats,
    cache: LatentCache,
    layer: int,
    kv_b: Weight,
    scale: float,
    pool: ThreadPool | None = None,
) -> None: ...
def patchify(
    y: Floats,
    frames: Bytes,
    patch: int,
    merge: int,
    mean: list[float],
    std: list[float],
    pool: ThreadPool | None = None,
) -> None: ...
def cache_token_bytes(ranks: list[int], rope_dim: int, kind: str) -> int: ...
