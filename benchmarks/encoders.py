"""Our encoders beside llama.cpp's: error and speed per type on the same rows, one thread each, in turn.

    pip install . llama-cpp-python
    python benchmarks/encoders.py                        # or --weights model.gguf for rows of real weights as well

The error is the root of the mean squared error over the root mean square of the weights; with importance both means
are weighted by it, one number per column, as calibration gives it. llama.cpp encodes through `ggml_quantize_chunk`. A
ratio below 1 is in our favour for errors, above 1 for speed.
"""

import argparse
import ctypes
import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np

from ivlite import _C
from ivlite.gguf import GGUFFile

TYPES = ("q8_0", "q6_k", "q5_k", "q4_k", "q4_0")
FORMATS = {f["name"]: f for f in _C.formats()}
LIBRARIES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


class LlamaCpp:
    """The encoder of llama.cpp's shared library."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        self.call = self.lib.ggml_quantize_chunk
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        self.call.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
        self.call.restype = ctypes.c_size_t

    def encode(self, name, rows, importance):
        info = FORMATS[name]
        out = np.empty(rows.size // info["block"] * info["block_bytes"], np.uint8)
        costs = None if importance is None else importance.ctypes.data
        done = self.call(info["ggml_type"], rows.ctypes.data, out.ctypes.data, 0, *rows.shape, costs)
        assert done == len(out), "llama.cpp wrote another size"
        return out


class Ivlite:
    def encode(self, name, rows, importance):
        return _C.encode(name, rows.reshape(-1), importance)


def library():
    """The path of llama-cpp-python's ggml library; importing the package would load everything else too."""
    spec = importlib.util.find_spec("llama_cpp")
    found = [] if spec is None else [p for name in LIBRARIES for p in Path(spec.origin).parent.rglob(name)]
    if not found:
        raise SystemExit("llama.cpp's library is missing: pip install llama-cpp-python, or give --library")
    return found[0]


def synthetic(rng, rows, cols):
    """(name, float32 (rows, cols)) of every kind of row."""
    plain = rng.standard_normal((rows, cols), np.float32)
    yield "gaussian", plain * np.float32(0.02)
    yield "heavy tails", (0.02 * rng.standard_t(4, (rows, cols))).astype(np.float32)
    columns = np.where(rng.random(cols) < 0.01, 10, 1).astype(np.float32)
    yield "outlier columns", plain * columns * np.float32(0.02)


def real(path, rows, limit=6):
    """(name, rows) of the first rows of some matrices of a GGUF file, spread over it."""
    with GGUFFile(path) as file:
        fit = [t for t in file.tensors.values() if len(t.shape) == 2 and t.shape[1] % 256 == 0 and t.runs]
        for info in fit[:: max(1, len(fit) // limit)][:limit]:
            count = min(rows, info.shape[0])
            data = file.read_rows(info.name, np.arange(count)).reshape(-1)
            yield info.name, _C.decode(info.format, data, count * info.shape[1]).reshape(count, -1)


def importance(rng, cols):
    """Mean squares of activations as networks have them: spread over decades, a few channels far above the rest."""
    costs = rng.lognormal(0, 1.2, cols)
    costs[rng.random(cols) < 0.005] *= 100
    return costs.astype(np.float32)


def error(name, rows, blocks, costs):
    """Relative RMSE of encoded rows, weighted by costs (cols,) or None."""
    decoded = _C.decode(name, blocks, rows.size).reshape(rows.shape)
    weights = np.ones(rows.shape[1]) if costs is None else costs.astype(np.float64)
    squared = ((rows.astype(np.float64) - decoded) ** 2 @ weights).sum()
    return (squared / (rows.astype(np.float64) ** 2 @ weights).sum()) ** 0.5


def rate(encoder, name, rows, costs):
    """Million weights per second of this thread's own time, of which a busy machine takes none."""
    start = time.thread_time()
    encoder.encode(name, rows, costs)
    return rows.size / (time.thread_time() - start) / 1e6


def compare(ours, theirs, name, rows, costs, rounds):
    """(our error, theirs, our speed, theirs, the median of the rounds' speed ratios)."""
    errors = [error(name, rows, e.encode(name, rows, costs), costs) for e in (ours, theirs)]
    rates = []
    for i in range(rounds):
        pair = (ours, theirs) if i % 2 else (theirs, ours)
        taken = {e: rate(e, name, rows, costs) for e in pair}
        rates.append((taken[ours], taken[theirs]))
    ratio = statistics.median(a / b for a, b in rates)
    return *errors, *(statistics.median(r) for r in zip(*rates, strict=True)), ratio


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="ggml's base library (default: the one of llama-cpp-python)")
    parser.add_argument("--weights", help="a GGUF file, for rows of real weights")
    parser.add_argument("--type", action="append", choices=TYPES, help="default: all")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--cols", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    data = list(synthetic(rng, args.rows, args.cols)) + list(real(args.weights, args.rows) if args.weights else [])
    ours, theirs = Ivlite(), LlamaCpp(args.library or library())
    _C.set_num_threads(1)
    print(f"{'':<32}{'ivlite':>10}{'llama.cpp':>10}{'ratio':>7}{'ivlite':>10}{'llama.cpp':>10}{'ratio':>7}")
    print(f"{'':<32}{'relative error':>27}{'million weights/s':>27}")
    for name in args.type or TYPES:
        for kind, rows in data:
            for costs in (None, importance(np.random.default_rng(1), rows.shape[1])):
                a, b, fast, slow, ratio = compare(ours, theirs, name, rows, costs, args.rounds)
                label = f"{name:<6}{kind[:22]}{'' if costs is None else ', w.'}"
                print(
                    f"{label:<32}{a:>10.5f}{b:>10.5f}{a / b:>7.3f}{fast:>10.1f}{slow:>10.1f}{ratio:>7.2f}", flush=True
                )


if __name__ == "__main__":
    main()
