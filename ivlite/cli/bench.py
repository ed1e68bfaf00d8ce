"""`ivlite bench`: how fast a model decodes, prefills and sees, beside what this machine's memory and cores allow."""

import argparse
import json
import math
import statistics
import sys
import time

from ivlite.cli import arguments
from ivlite.cli.progress import Progress
from ivlite.errors import UsageError

EPILOG = """\
examples:
  ivlite bench model.gguf
  ivlite bench --random 8b --type q4_0            # InternVideo3-8B's shape, no file: about 6 GB of memory
  ivlite bench --random 8b --depth 4096 --new 16  # decoding with 4096 tokens in the cache
  ivlite bench --random tiny --json

Decoding is bound by reading weights, prefill and vision by 8-bit arithmetic. The limits are probed in the same run,
before and after, with as many threads: read bandwidth over fresh memory, and the highest int8 rate of the
instruction set in use. "of the probe" is how much of the limit is reached. Float types have no int8 limit to compare.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "bench",
        help="measure speed beside the machine's limits",
        description="Measures prefill, decoding and vision of a model file, or of a random model built in memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", help="a model file")
    add(
        "--random",
        choices=("8b", "4b", "tiny"),
        help="a model of random weights of that size instead of a file",
    )
    add("--type", metavar="T", help="type of the random weights (default: q4_0)")
    add(
        "--kv",
        choices=("f32", "bf16", "q8"),
        default="q8",
        help="how the cache is stored (default: q8)",
    )
    add(
        "--threads",
        type=arguments.whole(1, 1024),
        metavar="N",
        help="default: one per usable physical core",
    )
    add(
        "--prompt",
        type=arguments.whole(1, 2**20),
        default=512,
        metavar="N",
        help="tokens of prefill (default: 512)",
    )
    add(
        "--new",
        type=arguments.whole(1, 2**20),
        default=32,
        metavar="N",
        help="tokens decoded (default: 32)",
    )
    add(
        "--depth",
        type=arguments.whole(0, 2**20),
        default=0,
        metavar="N",
        help="tokens in the cache before (default: 0)",
    )
    add("--json", action="store_true", help="print one JSON object")


def run(args):
    if (args.file is None) == (args.random is None):
        raise UsageError("bench wants a model FILE or --random SIZE, one of the two")
    if args.file and args.type:
        raise UsageError("--type is for --random: a file has its types already")
    progress = Progress(live=True) if sys.stderr.isatty() else None
    try:
        model = loaded(args, progress)
    finally:
        if progress:
            progress.clear()
    if args.random and not args.json:
        print(
            f"The weights are random ({model.config.name}, {args.type or 'q4_0'}): the speeds are real, the text is not."
        )
    facts = measure(model, args)
    print(json.dumps(facts) if args.json else "\n".join(lines(facts)))
    return 0


def loaded(args, progress):
    context = args.depth + args.prompt + args.new
    if args.file:
        import ivlite

        return ivlite.load(args.file, threads=args.threads, context=context, kv=args.kv, progress=progress)
    from ivlite.cli.synthetic import random_model

    kind = args.type or "q4_0"
    return random_model(args.random, kind, threads=args.threads, context=context, kv=args.kv, progress=progress)


def text_prompt(tokens):
    """A Prompt of those token ids without any medium."""
    import numpy as np

    from ivlite.prompt import Prompt

    positions = np.tile(np.arange(len(tokens), dtype=np.int64), (3, 1))
    return Prompt(
        token_ids=list(tokens), positions=positions, next_position=len(tokens), grid_thw=np.zeros((0, 3), np.int64),
        timestamps=[], frames=[], media=[], warnings=[], spans=[],
    )  # fmt: skip


def fill(cache, config, tokens, random):
    """Puts `tokens` random rows into every layer of an empty cache: what they hold does not change the time."""
    import numpy as np

    for first in range(0, tokens, 4096):
        n = min(4096, tokens - first)
        for layer, rank in enumerate(config.text.kv_lora_rank):
            latent = random.standard_normal((n, rank), np.float32)
            cache.append(layer, latent, random.standard_normal((n, config.text.qk_rope_head_dim), np.float32))
        cache.advance(n)


def measure(model, args):
    """Runs every stage once after a short warm-up; returns plain data: seconds, rates, and the probed limits."""
    import numpy as np

    from ivlite.cli import probe
    from ivlite.machine import peak_memory

    random = np.random.default_rng(0)
    tokens = random.integers(0, model.config.text.vocab_size, args.prompt).tolist()
    limits = [probe.limits(model.threads)]
    model.runner().prefill(text_prompt(tokens[:16]))
    runner = model.runner()
    fill(runner.cache, model.config, args.depth, random)
    start = time.perf_counter()
    runner.prefill(text_prompt(tokens))
    prefill = time.perf_counter() - start
    steps = []
    for i in range(args.new):
        start = time.perf_counter()
        runner.step(tokens[i % len(tokens)])
        steps.append(time.perf_counter() - start)
    vision = vision_seconds(model, random)
    limits.append(probe.limits(model.threads))
    best = {name: max(pair[name] for pair in limits) for name in limits[0]}
    work = workload(model, args.depth, args.prompt, args.new, vision["patches"])
    return {
        "model": model.config.name,
        "type": args.type or ("q4_0" if args.random else None),
        "synthetic": bool(args.random),
        "machine": probe.machine(model.threads),
        "limits": best,
        "weights": model.nbytes,
        "kv": model.kv,
        "depth": args.depth,
        "load_seconds": model.load_seconds,
        "prefill": stage(args.prompt, prefill, ops=work["prefill_ops"]),
        "decode": stage(args.new, sum(steps), step=statistics.median(steps), bytes=work["decode_bytes"]),
        "vision": vision | stage(1, vision["seconds"], ops=work["vision_ops"]),
        "peak_memory": peak_memory(),
    }


def stage(count, seconds, step=None, bytes=None, ops=None):
    """A stage as plain data. The rate of decoding is that of its median step, which one hiccup does not move."""
    out = {
        "count": count,
        "seconds": seconds,
        "per_second": count / seconds if step is None else 1 / step,
    }
    if bytes is not None:
        out |= {"bytes": bytes, "bytes_per_second": bytes / step}
    if ops is not None:
        out |= {"ops": ops, "ops_per_second": ops / seconds}
    return out


def vision_seconds(model, random):
    """Encodes one random frame pair at the default size of a video frame, the second time is the one that counts."""
    import numpy as np

    vision, video = model.config.vision, model.config.video
    unit = vision.patch_size * vision.spatial_merge_size
    side = max(1, int(math.sqrt(video.max_pixels)) // unit) * unit
    pair = random.integers(0, 256, (vision.temporal_patch_size, side, side, 3), np.uint8)
    for _ in range(2):
        start = time.perf_counter()
        model.network.vision([pair], video.mean, video.std)
        seconds = time.perf_counter() - start
    return {"size": [side, side], "patches": (side // vision.patch_size) ** 2, "seconds": seconds}


def workload(model, before, prompt, new, patches):
    """Bytes that decoding one token reads, and arithmetic operations (a multiplication and an addition are two)."""
    from ivlite.model import cache_bytes_per_token

    text, vision = model.config.text, model.config.vision
    tensors = model.network.source.tensors.values()
    matrices = {t.name: t for t in tensors if len(t.shape) == 2}
    layers = [t for name, t in matrices.items() if name.startswith("blk.")]
    head = matrices.get("output.weight") or matrices["token_embd.weight"]
    cached = before + prompt + new // 2  # tokens, on average over the steps
    read = sum(t.nbytes for t in layers) + head.nbytes + cached * cache_bytes_per_token(text, model.kv)
    per_token = sum(math.prod(t.shape) for t in layers)
    attention = text.num_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim) * text.num_layers
    seen = before * prompt + prompt * (prompt + 1) // 2  # pairs of a query and a key it sees
    merged = sum(math.prod(t.shape) for n, t in matrices.items() if n.startswith(("v.merger", "v.deepstack")))
    tower = sum(math.prod(t.shape) for n, t in matrices.items() if n.startswith(("v.blk", "v.patch")))
    inside = 2 * patches * patches * vision.hidden_size * vision.depth
    return {
        "decode_bytes": read,
        "prefill_ops": 2 * (per_token * prompt + math.prod(head.shape) + attention * seen),
        "vision_ops": 2 * (tower * patches + inside + merged * patches // vision.spatial_merge_size**2),
    }


def lines(facts):
    """The facts as text."""
    from ivlite.machine import gigabytes

    limits, machine = facts["limits"], facts["machine"]
    yield f"{facts['model']}, {gigabytes(facts['weights'])} of weights, {facts['kv']} cache, ready in {facts['load_seconds']:.1f} s"
    yield f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}"
    yield f"probed here: memory {limits['read'] / 1e9:.1f} GB/s, int8 {limits['int8'] / 1e9:.0f} GOPS"
    yield ""
    yield f"{'':<34}{'seconds':>9}{'per second':>16}{'reached':>16}{'of the probe':>14}"
    prefill, decode, vision = facts["prefill"], facts["decode"], facts["vision"]
    after = f" after {facts['depth']:,}" if facts["depth"] else ""
    yield row(f"prefill {prefill['count']:,} tokens{after}", prefill, "tokens", limits)
    yield row(f"decode {decode['count']:,} tokens", decode, "tokens", limits)
    width, height = vision["size"]
    yield row(f"vision, a pair of {width}x{height}", vision, "pairs", limits)
    yield ""
    yield f"peak memory {gigabytes(facts['peak_memory'])}"


def row(name, facts, unit, limits):
    if "bytes_per_second" in facts:
        reached, limit, measure = facts["bytes_per_second"], limits["read"], "GB/s"
    else:
        reached, limit, measure = facts["ops_per_second"], limits["int8"], "GOPS"
    share = f"{100 * reached / limit:.0f} %" if limit else "-"
    speed = f"{facts['per_second']:.2f} {unit}"
    return f"{name:<34}{facts['seconds']:>9.3f}{speed:>16}{f'{reached / 1e9:.1f} {measure}':>16}{share:>14}"
