"""ivlite beside llama.cpp and OpenVINO: the same work in turn, on the same threads.

    pip install . && CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf openvino
    python benchmarks/versus.py                       # every section; about 16 GB of memory and 13 GB of disk
    python benchmarks/versus.py text --type q4_0      # prefill and decoding at that type
    python benchmarks/versus.py depth --depths 6144   # prefill and decoding after 6144 tokens; --prompt 2048 for long prompts
    python benchmarks/versus.py matmul                # one int4 matrix against OpenVINO
    python benchmarks/versus.py vision                # a pair of frames through the vision tower
    python benchmarks/versus.py clip                  # a clip of 10 s, from a cold start to the last token

Models are InternVideo3-8B's shape and that of `rivals.py`, with random weights. The order alternates, so that a machine
that slows down harms both; what counts is the median of the rounds' ratios. Tokens before a depth are synthetic.

A rival runs at its best setting, which each section looks for first, in the same run, and prints: llama.cpp's packing of weights
(use_extra_bufts), flash attention, n_ubatch, cache types and threads, each axis in turn; OpenVINO's groups, hints and
precisions. Prefill and decoding may use two settings. Matrices are used in turn, more of them than the last cache holds.

All sections but `clip` share a process. Both towers make one grid of tokens of two frames, so `vision` is the same number
of patches on both sides: ivlite in the recipe's type and from pixels, llama.cpp in F16 and from pixels that it has
normalised before. In `clip` both see 10 frames of 640x360, shrunk to at most the pixels of 128 tokens (which makes 120),
read the same number of tokens and write as many, whatever they say. Its peak is what was resident at most, which counts
the pages of the model file where it is mapped, as llama.cpp's is.
GCC 12 compiles llama.cpp's tile configuration into a crash on AMX machines: build it with another compiler there.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import tuning
from rivals import (
    FILE_TYPES,
    LLAMA_AXES,
    OPENVINO_AXES,
    VOCAB,
    WIDTH,
    Best,
    LlamaCpp,
    OpenVino,
    loaded,
    once,
    vocabulary_only,
    written,
)

INNER = 12288
# Of 5.0, 4.9 and 5.2 bits a weight that a token reads.
RIVAL = {"q4_0": "Q4_0", "q4_k_s": "Q4_K_M", "q4_k_m": "Q4_K_M"}
ANSWER = 32  # tokens that clip writes


class Ivlite:
    name = "ivlite"

    def __init__(self, type, threads, context):
        import ivlite
        from ivlite.evaluate.synthetic import random_model

        self.model = random_model("8b", type, threads=threads, context=context)
        self.version = ivlite.__version__

    def reset(self, depth=0):
        from ivlite.evaluate.synthetic import fill

        self.runner = self.model.runner()
        fill(self.runner.cache, self.model.config, depth, np.random.default_rng(0))

    def prefill(self, tokens):
        from ivlite.evaluate.synthetic import text_prompt

        self.runner.prefill(text_prompt(tokens))

    def settle(self, tokens):
        """Everything is ready to decode."""

    def step(self, token):
        self.runner.step(token)


def seconds(call, *args):
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def speeds(engine, tokens, new, depth):
    """Tokens per second of a prefill after `depth` tokens, and of `new` steps after it: medians of steps."""
    engine.reset(depth)
    time.sleep(0.3)  # worker threads of the other side spin for a while after their last task
    prefill = len(tokens) / seconds(engine.prefill, tokens)
    engine.settle(tokens)
    return prefill, 1 / statistics.median(seconds(engine.step, token) for token in tokens[:new])


def compare(engines, tokens, args, depth=0):
    """Alternates two engines; prints every round, and the median of the rounds' ratios."""
    print(f"{'':<9}" + "".join(f"{e.name + ' prefill':>20}{'decode':>10}" for e in engines) + "   tokens/s")
    ratios = []
    for i in range(args.rounds):
        rates = {e.name: speeds(e, tokens, args.new, depth) for e in (engines if i % 2 == 0 else engines[::-1])}
        cells = "".join(f"{rates[e.name][0]:>20.2f}{rates[e.name][1]:>10.2f}" for e in engines)
        print(f"round {i + 1:<3}{cells}", flush=True)
        ratios.append([a / b for a, b in zip(*(rates[e.name] for e in engines), strict=True)])
    for name, column in zip(("prefill", "decode"), zip(*ratios, strict=True), strict=True):
        print(f"{name} after {depth:,}: {engines[0].name} / {engines[1].name} {statistics.median(column):.2f}")


def tuned(path, threads, tokens, depth=0, caches=("f16",)):
    """llama.cpp's settings with the fastest prefill of the tokens and with the fastest steps, after `depth` where given."""
    axes = {"threads": tuning.thread_counts(threads)} | LLAMA_AXES
    if depth:  # a cache is stretched with flash attention only
        axes = {"cache": tuple(caches), **axes, "flash": (True,)}
    context = depth + len(tokens) + 8
    rates = {}

    def measure(**settings):
        key = tuple(settings.items())
        if key not in rates:
            engine = LlamaCpp(path, context=context, **settings)
            engine.feed(tokens[:16])  # pages touched
            engine.reset(depth)
            prefill = len(tokens) / seconds(engine.feed, tokens)
            rates[key] = prefill, 1 / statistics.median(seconds(engine.step, token) for token in tokens[:8])
            engine.close()
        return rates[key]

    after = f" after {depth:,}" if depth else ""
    prefill, _ = tuning.best(axes, lambda **s: measure(**s)[0], f"llama.cpp, prefill{after}, tokens/s")
    decode, _ = tuning.best(
        axes | {"ubatch": (prefill["ubatch"],)}, lambda **s: measure(**s)[1], f"llama.cpp, decoding{after}, tokens/s"
    )
    return prefill, decode


def text(args):
    """Prefill and decoding with an empty cache."""
    context = args.prompt + args.new + 8
    tokens = np.random.default_rng(1).integers(1000, VOCAB - 1000, args.prompt).tolist()
    path = written(args.folder, RIVAL[args.type])
    settings = tuned(path, usual_threads(args), tokens[:256])
    ours = Ivlite(args.type, args.threads, context)
    rival = Best(path, context, *settings)
    for engine in (ours, rival):
        speeds(engine, tokens[:64], 4, 0)  # pages touched, clocks up
    print(f"{args.type}: ivlite {ours.version}, llama.cpp {rival.version}, {ours.model.threads} threads")
    compare([ours, rival], tokens, args)
    rival.close()


def usual_threads(args):
    """The threads that ivlite takes."""
    from ivlite import _C

    return args.threads or _C.num_threads()


def depth(args):
    """Prefill and decoding after many tokens, each against the faster of llama.cpp's caches."""
    path = written(args.folder, RIVAL[args.type])
    tokens = np.random.default_rng(1).integers(1000, VOCAB - 1000, args.prompt).tolist()
    for n in args.depths:
        settings, context = (
            tuned(path, usual_threads(args), tokens[:256], n, args.caches),
            n + args.prompt + args.new + 8,
        )
        ours, rival = Ivlite(args.type, args.threads, context), Best(path, context, *settings)
        caches = " and ".join(dict.fromkeys(s["cache"] for s in settings))
        print(f"{args.type} after {n:,}: ivlite {ours.version} q8, llama.cpp {rival.version} {caches}")
        compare([ours, rival], tokens, args, n)
        rival.close()


def matmul(args):
    """int4 matrices of the model's largest shape, in turn: 512 rows and one, against OpenVINO's best setting for each."""
    from ivlite import _C

    threads = usual_threads(args)
    _C.set_num_threads(threads)
    piece = np.random.default_rng(0).standard_normal(1 << 20, np.float32) / WIDTH**0.5
    data = np.resize(_C.encode("q4_0", piece), INNER * WIDTH // 32 * 18)
    count = tuning.copies(len(data))
    weights = [_C.Weight("q4_0", data, 1, WIDTH, INNER) for _ in range(count)]
    print(f"{count} matrices of 4096 x 12288 in turn, int4: {count * len(data) / 1e6:.0f} MB, "
          f"last cache {tuning.last_level_cache() / 1e6:.0f} MB")  # fmt: skip
    for rows in (512, 1):
        x, y = np.random.default_rng(1).standard_normal((rows, INNER), np.float32), np.empty((rows, WIDTH), np.float32)
        rival = OpenVino(WIDTH, INNER, threads, count, **openvino_settings(threads, count, x))
        sides = {
            f"ivlite ({_C.isa()})": lambda w, x=x, y=y: _C.linear(y, x, w, None, False),
            f"OpenVINO {rival.version}": lambda _, x=x, rival=rival: rival(x),
        }
        times = {name: [] for name in sides}
        for i in range(args.rounds + 1):
            for name in sides if i % 2 else reversed(sides):
                times[name].append(seconds(lambda call=sides[name]: [call(w) for w in weights]) / count)
        ours, theirs = (column[1:] for column in times.values())  # the first round touches memory
        for name, took in zip(sides, map(statistics.median, (ours, theirs)), strict=True):
            rate = f"{2e-9 * rows * WIDTH * INNER / took:8.0f} GOPS {len(data) / took / 1e9:6.1f} GB/s"
            print(f"rows {rows:<4} {name:<32}{1e3 * took:9.2f} ms {rate}")
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"rows {rows}: ivlite is {ratio:.2f} x", flush=True)


def openvino_settings(threads, count, x):
    """OpenVINO's fastest setting for products with x over as many matrices."""

    def measure(**settings):
        try:
            rival = OpenVino(WIDTH, INNER, threads, count, **settings)
            rival(x)
        except RuntimeError:  # a precision that this processor lacks
            return None
        return 1 / min(seconds(lambda: [rival(x) for _ in range(count)]) / count for _ in range(2))

    return tuning.best(OPENVINO_AXES, measure, f"OpenVINO, {len(x)} rows, products/s")[0]


class Tower:
    """The vision tower alone, of random weights."""

    def __init__(self, type, threads):
        from ivlite import ops
        from ivlite.evaluate.synthetic import RandomSource, config, usual_pair
        from ivlite.gguf import loading
        from ivlite.models.internvideo3 import Vision

        self.config = config("8b")
        load = loading.Loader(RandomSource(self.config, type), ops.get("cpu", threads))
        self.vision, self.threads = Vision(load, self.config), load.ops.threads
        self.format = load.source.tensors["v.blk.0.attn_qkv.weight"].format
        width, height, frames = usual_pair(self.config)
        self.pair = np.random.default_rng(1).integers(0, 256, (frames, height, width, 3), np.uint8)

    def encode(self):
        return self.vision([self.pair], self.config.video.mean, self.config.video.std)[0]


def vision(args):
    """One pair of frames at a video's usual size."""
    from mtmd import Mtmd, projector

    ours = Tower(args.type, args.threads)
    vocabulary = loaded(vocabulary_only(args.folder), True)

    def measure(**settings):
        made = Mtmd(projector(args.folder), vocabulary, **settings)
        (grid,) = made.grids(made.chunks("<__media__>" * 2, ours.pair))
        made.encode(grid)
        return 1 / min(seconds(made.encode, grid) for _ in range(2))

    axes = {"threads": tuning.thread_counts(ours.threads), "flash": (True, False)}
    settings, _ = tuning.best(axes, measure, "llama.cpp, pairs/s")
    rival = Mtmd(projector(args.folder), vocabulary, **settings)
    (grid,) = rival.grids(rival.chunks("<__media__>" * 2, ours.pair))
    tokens, height, width = len(ours.encode()), *ours.pair.shape[1:3]
    if rival.tokens(grid) != tokens:
        raise SystemExit(f"ivlite makes {tokens} tokens of a pair and llama.cpp {rival.tokens(grid)}")
    print(f"a pair of {width}x{height}, {tokens} tokens: ivlite {ours.format}, llama.cpp f16, {ours.threads} threads")
    sides, ratios = {"ivlite": ours.encode, "llama.cpp": lambda: rival.encode(grid)}, []
    for i in range(args.rounds + 1):
        times = {}
        for name in sides if i % 2 else reversed(sides):
            time.sleep(0.3)  # see speeds
            times[name] = min(seconds(sides[name]) for _ in range(3))
        if i:  # the first round touches memory
            ratios.append(times["llama.cpp"] / times["ivlite"])
            print(f"round {i:<3}" + "".join(f"{n:>12}{1e3 * t:9.1f} ms" for n, t in times.items()), flush=True)
    print(f"vision: ivlite is {statistics.median(ratios):.2f} x")


def clip(args):
    """Ten seconds of video, a question and an answer, each time from the start of a process to its end."""
    from clip import FRAME_PIXELS, cold, write_model, write_video
    from mtmd import projector
    from vocabulary import QUESTION

    from ivlite import _C

    threads = args.threads or _C.num_threads()
    model = once(args.folder, f"random-8b-{args.type}.gguf", write_model, args.type)
    video = once(args.folder, "clip.mp4", write_video)
    rival = [written(args.folder, RIVAL[args.type]), projector(args.folder), video, QUESTION]
    ask = [
        "--video",
        video,
        "--max-pixels",
        FRAME_PIXELS,
        "--temperature",
        0,
        "--json",
        "--quiet",
        "--no-store",
        QUESTION,
    ]
    theirs = [__file__.replace("versus", "clip"), *rival, "--new", ANSWER]

    def options(settings):
        return [word for name, value in settings.items() for word in (f"--{name}", int(value))]

    axes = {"threads": tuning.thread_counts(threads)} | LLAMA_AXES
    settings, _ = tuning.best(
        axes, lambda **s: 1 / cold([sys.executable, *theirs, *options(s)])[0], "llama.cpp, answers/s"
    )
    commands = {
        "ivlite": ["-m", "ivlite", "run", model, *ask, "--threads", threads, "--max-new-tokens", ANSWER],
        "llama.cpp": [*theirs, *options(settings)],
    }
    ratios, peaks = [], []
    for i in range(args.rounds + 1):
        runs = {n: cold([sys.executable, *commands[n]]) for n in (commands if i % 2 else reversed(commands))}
        (mine, ours), (theirs, rivals) = (runs[name] for name in commands)
        if counted(ours) != counted(rivals) or counted(ours)[1] != ANSWER:
            raise SystemExit(f"not the same tokens read and written: {counted(ours)} and {counted(rivals)}")
        if i == 0:  # it brought the files into the page cache
            print(f"{args.type}: {counted(ours)[0]} tokens read, {ANSWER} written, {threads} threads", flush=True)
            continue
        ratios.append(theirs / mine)
        peaks.append((ours["peak_memory"], rivals["peak_memory"]))
        print(f"round {i:<3}" + "".join(f"{n:>12} {line(*run)}" for n, run in runs.items()), flush=True)
    ours, rivals = (max(column) / 1e9 for column in zip(*peaks, strict=True))
    print(f"clip: ivlite is {statistics.median(ratios):.2f} x; peak memory {ours:.2f} GB and {rivals:.2f} GB")


def counted(facts):
    """Tokens read and written."""
    return facts["usage"]["prompt_tokens"], facts["usage"]["new_tokens"]


def line(seconds, facts):
    """A cold run: seconds in all, and of its stages."""
    spent = facts["timings"]
    prompt = sum(spent.get(stage, 0) for stage in ("decode", "vision", "prefill"))
    return f"{seconds:7.2f} s (load {spent['load']:.2f}, prompt {prompt:.2f}, answer {spent['generate']:.2f})"


# clip comes first, while no other section holds memory.
SECTIONS = {"clip": clip, "vision": vision, "text": text, "depth": depth, "matmul": matmul}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (default: all)")
    add("--type", choices=sorted(RIVAL), default="q4_k_m")
    add("--folder", default="build", help=f"where llama.cpp's models ({', '.join(FILE_TYPES)}) are written and kept")
    add("--prompt", type=int, default=512)
    add("--new", type=int, default=24)
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=None, help="default: one per usable physical core")
    add("--depths", type=int, nargs="+", default=[4096, 32768])
    add("--caches", nargs="+", default=["f16", "q8_0"])
    args = parser.parse_args()
    for name in args.sections or SECTIONS:
        if name not in SECTIONS:
            parser.error(f"there is no section {name!r}: there are {', '.join(SECTIONS)}")
        SECTIONS[name](args)


if __name__ == "__main__":
    main()
