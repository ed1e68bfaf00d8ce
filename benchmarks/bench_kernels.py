"""Each kernel at InternVideo3-8B's shapes: how fast, beside what the machine can do, and how far from the reference.

    python benchmarks/bench_kernels.py                              # every kernel, instruction set in use: a minute
    python benchmarks/bench_kernels.py --isa avx2 --isa avx512vnni  # in turn, so that both meet the same neighbours
    python benchmarks/bench_kernels.py --only linear --rounds 9     # kernels whose line contains "linear"

Read bandwidth (GB/s) and int8 peak (GOPS) are probed beside each kernel, once per round; a line shows the medians. What
reads weights, or little else than memory, counts bytes; the rest counts operations, a multiplication and an addition
being two. Floating-point kernels stand beside the int8 peak too: no share of it is their limit. Small arrays stay in
the cache and may pass the read bandwidth. T: tokens. Distance: max |y - reference| / rms(reference) over a few tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ivlite import _C

COLD = 512 << 20  # weights of one case: more than a cache holds
WIDTH, INNER, HEADS, RANK, HEAD = 4096, 12288, 32, 896, 128
PIXELS, VISION, VISION_HEADS, VISION_INNER = 352, 1152, 16, 4304
K_FORMATS = ("q4_k", "q5_k", "q6_k")
FORMATS = {f["name"]: f for f in _C.formats()}
rng = np.random.default_rng(0)


@dataclass
class Case:
    """One kernel at one shape. run(i) leaves its result in `out`; i walks through copies of the weights."""

    unit: str
    work: float  # bytes or operations of one run
    run: Callable
    out: np.ndarray


def floats(*shape):
    return rng.standard_normal(shape, np.float32)


def weight(fmt, heads, rows, cols):
    info, count = FORMATS[fmt], heads * rows * cols
    if not info["quantized"]:
        return _C.Weight(fmt, _C.encode(fmt, floats(count) / np.float32(cols**0.5)), heads, rows, cols)
    padded = -(-cols // info["block"]) * info["block"]
    one = _C.encode(fmt, floats(info["block"] * 1024) / np.float32(cols**0.5))
    nbytes = heads * rows * padded // info["block"] * info["block_bytes"]
    return _C.Weight(fmt, np.resize(one, nbytes), heads, rows, cols)


def linear(fmt, rows, cols, tokens, heads=None):
    """Counts bytes for a few tokens, operations for many."""

    def build(small):
        n = min(tokens, 6) if small else tokens
        few = tokens <= 8
        w = [weight(fmt, heads or 1, rows, cols)]
        while few and not small and w[0].nbytes * len(w) < COLD:
            w.append(weight(fmt, heads or 1, rows, cols))
        if heads:
            x, y = floats(n, heads, cols), np.zeros((n, heads, rows), np.float32)
            run = lambda i: _C.linear_heads(y, x, w[i % len(w)])  # noqa: E731
        else:
            x, y = floats(n, cols), np.zeros((n, rows), np.float32)
            run = lambda i: _C.linear(y, x, w[i % len(w)], None, False)  # noqa: E731
        return Case("GB/s" if few else "GOPS", w[0].nbytes if few else 2.0 * n * rows * cols * (heads or 1), run, y)

    kernel, many = ("linear_heads", f" x {heads}") if heads else ("linear", "")
    return f"{kernel} {fmt} {rows}x{cols}{many}, T={tokens}", build


def rowwise(name, call, cols, out_cols, tokens):
    """call(y, x) on rows; counts bytes read and written."""

    def build(small):
        n = 6 if small else tokens
        x, y = floats(n, cols), np.zeros((n, out_cols), np.float32)
        return Case("GB/s", x.nbytes + y.nbytes, lambda i: call(y, x), y)

    return f"{name} {cols}, T={tokens}", build


def rope(tokens):
    def build(small):
        n = 6 if small else tokens
        x, y = floats(n, HEADS, HEAD), np.zeros((n, HEADS, HEAD), np.float32)
        angle = floats(n, HEAD // 2)
        cos, sin = np.cos(angle), np.sin(angle)
        return Case("GB/s", x.nbytes + y.nbytes, lambda i: _C.rope(y, x, cos, sin, True), y)

    return f"rope {HEADS} x {HEAD}, T={tokens}", build


def vision_attention():
    dim, patches = VISION // VISION_HEADS, (PIXELS // 16) ** 2

    def build(small):
        n = 64 if small else patches
        q, k, v, y = (floats(n, VISION_HEADS, dim) for _ in range(4))
        work = 4.0 * n * n * dim * VISION_HEADS
        return Case("GOPS", work, lambda i: _C.attention(y, q, k, v, dim**-0.5, n, False), y)

    return f"attention {VISION_HEADS} x {dim}, {patches} patches", build


def filled_cache(kind, tokens):
    cache = _C.LatentCache([RANK], HEAD, tokens + 8, kind)
    latent, rope = floats(tokens, RANK), floats(tokens, HEAD)
    cache.append(0, latent, rope)
    cache.advance(tokens)
    return cache, latent, rope


def absorbed(kind, cached):
    def build(small):
        n = 64 if small else cached
        cache, _, _ = filled_cache(kind, n)
        q, r, y = floats(1, HEADS, RANK), floats(1, HEADS, HEAD), np.zeros((1, HEADS, RANK), np.float32)
        work = 2.0 * n * HEADS * (2 * RANK + HEAD)
        return Case("GOPS", work, lambda i: _C.absorbed_attention(y, q, r, cache, 0, 0.0625), y)

    return f"absorbed_attention {kind}, T=1, {cached} cached", build


def expanded(tokens):
    def build(small):
        n = 24 if small else tokens
        cache, _, _ = filled_cache("q8", n)
        w = weight("q8_0", HEADS, 2 * HEAD, RANK)
        q, r, y = floats(n, HEADS, HEAD), floats(n, HEADS, HEAD), np.zeros((n, HEADS, HEAD), np.float32)
        work = 2.0 * HEADS * (n * RANK * 2 * HEAD + n * (n + 1) / 2 * 3 * HEAD)
        return Case("GOPS", work, lambda i: _C.expanded_attention(y, q, r, cache, 0, w, 0.0625), y)

    return f"expanded_attention q8, T={tokens}", build


def cache_write(kind, tokens):
    def build(small):
        cache, latent, rope = filled_cache(kind, 6 if small else tokens)
        n = len(latent)
        y = np.zeros((n, RANK), np.float32)

        def run(i):
            cache.truncate(0)
            cache.append(0, latent, rope)
            cache.advance(n)
            if small:
                y[:] = cache.read(0, 0, n)[0]

        return Case("GB/s", latent.nbytes + rope.nbytes + n * cache.nbytes / cache.capacity, run, y)

    return f"cache append {kind}, T={tokens}", build


def patchify():
    frames = rng.integers(0, 256, (2, PIXELS, PIXELS, 3), np.uint8)

    def build(small):
        y = np.zeros(((PIXELS // 16) ** 2, 3 * 2 * 16 * 16), np.float32)
        half = [0.5] * 3
        return Case("GB/s", frames.nbytes + y.nbytes, lambda i: _C.patchify(y, frames, 16, 2, half, half), y)

    return f"patchify 2 x {PIXELS} x {PIXELS}", build


def all_cases():
    vector, ones = floats(WIDTH), np.ones(VISION, np.float32)
    yield from (linear("q4_0", rows, cols, 1) for rows, cols in ((2 * INNER, WIDTH), (WIDTH, INNER), (WIDTH, WIDTH)))
    yield from (linear(fmt, WIDTH, INNER, 1) for fmt in K_FORMATS)
    yield linear("q8_0", RANK + HEAD, WIDTH, 1)
    yield linear("q8_0", RANK, HEAD, 1, HEADS)
    yield linear("q8_0", HEAD, RANK, 1, HEADS)
    yield linear("q4_0", WIDTH, WIDTH, 4)
    yield from (linear(fmt, WIDTH, WIDTH, 1) for fmt in ("bf16", "f16", "f32"))
    yield from (linear("q4_0", rows, cols, 256) for rows, cols in ((2 * INNER, WIDTH), (WIDTH, INNER), (WIDTH, WIDTH)))
    yield from (linear(fmt, WIDTH, INNER, 256) for fmt in K_FORMATS)
    yield linear("q8_0", RANK + HEAD, WIDTH, 256)
    yield from (linear("q8_0", *s, 512) for s in ((3 * VISION, VISION), (VISION_INNER, VISION), (VISION, VISION_INNER)))
    yield from (linear(fmt, VISION, 1536, 512) for fmt in ("bf16", "f16", "f32"))
    yield vision_attention()
    yield from (absorbed(kind, 1024) for kind in ("f32", "bf16", "q8", "q4"))
    yield from (absorbed(kind, 16384) for kind in ("q8", "q4"))
    yield expanded(256)
    yield rowwise("rms_norm", lambda y, x: _C.rms_norm(y, x, vector, 1e-6), WIDTH, WIDTH, 512)
    yield rowwise("layer_norm", lambda y, x: _C.layer_norm(y, x, ones, ones, 1e-6), VISION, VISION, 512)
    yield rope(512)
    yield rowwise("silu_mul", _C.silu_mul, 2 * INNER, INNER, 512)
    for form in ("tanh", "erf"):
        yield rowwise(
            f"gelu {form}", lambda y, x, f=form: _C.testing.gelu(y, x, f == "erf"), VISION_INNER, VISION_INNER, 512
        )
    yield from (cache_write(kind, 1024) for kind in ("f32", "bf16", "q8", "q4"))
    yield patchify()


def rate(case, seconds=0.03):
    """Work per second, in units of 1e9: the median of runs that take `seconds` together."""
    took, spent, i = [], 0.0, 0
    while spent < seconds or i < 3:
        start = time.perf_counter()
        case.run(i)
        took.append(time.perf_counter() - start)
        spent, i = spent + took[-1], i + 1
    return case.work / statistics.median(took) / 1e9


def probe(unit):
    return (_C.probe_read_bandwidth(128 << 20, 2) if unit == "GB/s" else _C.probe_int8_peak(0.1)) / 1e9


def distance(build, isa):
    case, results = build(True), []
    for name in ("ref", isa):
        _C.testing.use_isa(name)
        case.run(0)
        results.append(case.out.astype(np.float64))
    plain, own = results
    return np.abs(own - plain).max() / np.sqrt((plain**2).mean())


def measure(name, build, isas, rounds):
    case, taken = build(False), {isa: [] for isa in isas}
    for _ in range(rounds):
        for isa in isas:
            _C.testing.use_isa(isa)
            taken[isa].append((rate(case), probe(case.unit)))
    for isa, pairs in taken.items():
        got, limit = (statistics.median(column) for column in zip(*pairs, strict=True))
        far = distance(build, isa) if isa != "ref" else 0
        print(f"{name:44s} {isa:11s} {got:8.1f} {case.unit} {limit:8.1f} {got / limit:6.0%} {far:10.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", action="append", choices=list(_C.isas()), help="may be repeated")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose line contains TEXT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=_C.num_threads())
    args = parser.parse_args()
    _C.set_num_threads(args.threads)
    isas = args.isa or [_C.isa()]
    print(f"{_C.cpu_info()['name']}, {args.threads} threads\n")
    print(f"{'kernel':44s} {'set':11s} {'rate':>13s} {'probed':>8s} {'share':>6s} {'distance':>10s}")
    for name, build in all_cases():
        if args.only in name:
            measure(name, build, isas, args.rounds)


if __name__ == "__main__":
    main()
