"""`ivlite bench`: the speed of decoding, prefill and vision, beside the machine's probed limits and what a plan foresees."""

import argparse
import math

from ivlite.cli import arguments, json_line
from ivlite.cli.limits import CardLimits, Limits
from ivlite.cli.progress import display
from ivlite.errors import OutOfMemoryError, Stopped, UsageError
from ivlite.numbers import jsonable

EPILOG = """\
examples:
  ivlite bench model.gguf
  ivlite bench --random 8b --type q4_0            # InternVideo3-8B's shape, no file: about 6 GB of memory
  ivlite bench --random 8b --depth 0,4096,32768   # after so many tokens, each in turn
  ivlite bench --random 8b -p 2048 -d 0,6144,30720 -n 8   # long prompts: how prefill slows down with depth
  ivlite bench --random 8b --vision 640x352x8     # eight frames of that size
  ivlite bench --random demo --json               # the shape of the model in the package

Decoding is bound by reading weights, prefill and vision by 8-bit arithmetic. The limits are probed in the same run with
as many threads: read bandwidth over memory that no cache holds between the steps of decoding, and before and after the rest
the highest int8 rate of the instruction set's vectors. "of the probe" is how much of what was probed beside it a stage
reaches; of decoding, the median of the steps. A matrix unit, whose rate of bytes is printed too, takes prefill and vision
beyond 100 %. Float types have no such limit to compare.
"planned" is what `ivlite plan` would foresee on a machine that it measures for the first time, which takes it about a second.
Tokens of --depth are random rows put into the cache: the time is that of real ones. A second question is 24 tokens after
all that came before, up to the first token of its answer: what a session, or a cache that is kept, has to do.
"""

QUESTION = 24  # tokens


def add_parser(commands):
    parser = commands.add_parser(
        "bench",
        help="measure speed against the machine's limits",
        description="Measures prefill, decoding and vision of a model file, or of a random model built in memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    count = arguments.whole(1, 2**20)
    add("file", metavar="FILE", nargs="?", type=arguments.path, help="a model file")
    add("--random", choices=("8b", "4b", "demo", "tiny"),
        help="a model of random weights of that size instead of a file")  # fmt: skip
    add("--type", metavar="T", help="type of the random weights (default: q4_k_m)")
    arguments.add_shared(parser, "--kv", "--threads", "--device")
    add("-p", "--prompt", type=count, default=512, metavar="N", help="tokens of prefill (default: 512)")
    add("-n", "--new", type=count, default=32, metavar="N", help="tokens decoded (default: 32)")
    add("-d", "--depth", type=depths, default=(0,), metavar="N[,N...]",
        help="random tokens in the cache before prefill and decoding, each in turn (default: 0)")  # fmt: skip
    add("--vision", type=frames, metavar="WxHxF",
        help="width, height and number of frames encoded (default: a pair of a video's usual size)")  # fmt: skip
    arguments.add_shared(parser, "--json")


def depths(text):
    """Parses "0,4096" to (0, 4096)."""
    return tuple(arguments.whole(0, 2**20)(part) for part in text.split(","))


def frames(text):
    """Parses "640x352x8" to (640, 352, 8)."""
    parts = tuple(arguments.whole(1, 2**16)(part) for part in text.split("x"))
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHTxFRAMES")
    return parts


def run(args):
    if (args.file is None) == (args.random is None):
        raise UsageError("bench wants a model FILE or --random SIZE, one of the two")
    if args.file and args.type:
        raise UsageError("--type is for --random: a file has its types already")
    progress = display()
    try:
        model = loaded(args, progress)
    finally:
        if progress:
            progress.clear()
    if args.random and not args.json:
        print(
            f"The weights are random ({model.config.name}, {args.type or 'q4_k_m'}): the speeds are real, the text is not."
        )
    facts = measure(model, args)
    print(json_line(jsonable(facts)) if args.json else "\n".join(lines(facts)))
    return 0


def loaded(args, progress):
    """The Model, with a context for all that is measured. Raises UsageError, OutOfMemoryError."""
    import ivlite
    from ivlite.evaluate.synthetic import random_model

    context, longest = max(args.depth) + args.prompt + args.new + QUESTION, longest_context(args)
    if context > longest:
        raise UsageError(
            f"--depth {max(args.depth)}, --prompt {args.prompt}, --new {args.new} and the {QUESTION} tokens of a second question "
            f"are {context:,} tokens, and the model's context holds {longest:,}: give fewer"
        )
    settings = {"device": args.device, "threads": args.threads, "context": context, "kv": args.kv, "progress": progress}
    try:
        return (
            ivlite.load(args.file, **settings)
            if args.file
            else random_model(args.random, args.type or "q4_k_m", **settings)
        )
    except OutOfMemoryError as error:
        ways = ["a smaller --depth or --prompt" if "--context" in way else way for way in error.ways]
        raise OutOfMemoryError(error.problem, ways) from None


def longest_context(args):
    """Tokens of the longest context of the model that is measured."""
    from ivlite.evaluate.synthetic import config
    from ivlite.gguf import GGUFFile
    from ivlite.gguf.config import Config

    if args.random:
        return config(args.random).text.context_length
    with GGUFFile(args.file) as file:
        return Config.from_metadata(file.metadata, file.path).text.context_length


def measure(model, args):
    """Runs every stage once after a short warm-up; returns plain data: seconds, rates, and the probed limits.

    After a Stop, the remaining stages are missing: "prefill", "decode" and "question" are shorter, "vision" is None.
    """
    import numpy as np

    from ivlite.cli import probe
    from ivlite.evaluate.synthetic import text_prompt, usual_pair
    from ivlite.machine import peak_memory
    from ivlite.plan.measure import of_network, speeds

    operations = model.network.ops
    random = np.random.default_rng(0)
    limits = CardLimits(operations) if operations.name == "cuda" else Limits(operations.pool)
    stages = {"prefill": [], "decode": [], "question": [], "vision": None}
    try:
        tokens = random.integers(0, model.config.text.vocab_size, args.prompt).tolist()
        model.runner().prefill(text_prompt(tokens[:16]))
        plan = speeds(of_network(model.network), model.kv)
        text_stages(model, args, tokens, random, limits, plan, stages)
        stages["vision"] = vision_stage(model, args.vision or usual_pair(model.config), random, limits, plan)
    except Stopped:
        if not stages["prefill"]:
            raise
    return {
        "model": model.config.name,
        "type": args.type or ("q4_k_m" if args.random else None),
        "synthetic": bool(args.random),
        "device": model.device,
        "machine": probe.machine(model.threads),
        "limits": limits.best(),
        "weights": model.nbytes,
        "kv": model.kv,
        "load_seconds": model.load_seconds,
        **stages,
        "peak_memory": peak_memory(),
    }


def card_facts(model, runner):
    """Where the time of the recorded step goes: launches, gaps, each kernel; nothing where no card computes."""
    if model.network.ops.name != "cuda" or (step := runner.cache.recorded.get(1)) is None or step.replay is None:
        return {}
    from ivlite.ops import cuda_probe

    return {"card": cuda_probe.step_facts(model.network.ops, step, runner.cache)}


def text_stages(model, args, tokens, random, limits, plan, stages):
    """Measures prefill at each depth, decoding and a second question after it; writes the results to `stages`.

    plan: the Speeds that say what each was to take.
    """
    from ivlite.evaluate.synthetic import fill, text_prompt

    for depth in args.depth:
        runner = model.runner()
        fill(runner.cache, model.config, depth, random, model.network.ops.array)
        planned = plan.prefill(args.prompt, depth)
        seconds, peak = limits.timed(lambda runner=runner: runner.prefill(text_prompt(tokens)))
        ops = prefill_ops(model, depth, args.prompt)
        stages["prefill"].append(computed(args.prompt, seconds, ops, peak) | {"depth": depth, "planned": planned})
        depth += args.prompt
        took, reads = limits.steps(lambda i, runner=runner: runner.step(tokens[i % len(tokens)]), args.new)
        nbytes, planned = decode_bytes(model, depth + args.new // 2), plan.generate(args.new + 1, depth)
        found = read(took, nbytes, reads) | {"depth": depth, "planned": planned}
        stages["decode"].append(found | card_facts(model, runner))
        depth += args.new
        question, planned = text_prompt((tokens * QUESTION)[:QUESTION]), plan.prefill(QUESTION, depth)
        seconds, peak = limits.timed(lambda runner=runner, question=question: runner.prefill(question))
        found = computed(QUESTION, seconds, prefill_ops(model, depth, QUESTION), peak)
        stages["question"].append(found | {"depth": depth, "planned": planned, "first": plan.prefill(depth)})


def computed(count, seconds, ops, peak):
    """The result of a compute-bound stage, as plain data."""
    rate = ops / seconds
    share = rate / peak if peak else None
    return {"count": count, "seconds": seconds, "per_second": count / seconds, "ops": ops, "ops_per_second": rate,
            "share": share}  # fmt: skip


def read(took, nbytes, reads):
    """The result of memory-bound steps, as plain data: the rate is that of the median step, robust to outliers."""
    import statistics

    step = statistics.median(took)
    share = statistics.median(nbytes / t / r for t, r in zip(took, reads, strict=True))
    return {"count": len(took), "seconds": sum(took), "per_second": 1 / step, "bytes": nbytes,
            "bytes_per_second": nbytes / step, "share": share}  # fmt: skip


def vision_stage(model, size, random, limits, plan):
    """Encodes random frames twice and reports the second time; batches frame pairs as for a video."""
    import numpy as np

    from ivlite.engine.vision import PATCHES

    vision, video = model.config.vision, model.config.video
    unit = vision.patch_size * vision.spatial_merge_size
    width, height = (max(1, n // unit) * unit for n in size[:2])
    pair = random.integers(0, 256, (vision.temporal_patch_size, height, width, 3), np.uint8)
    count = -(-size[2] // vision.temporal_patch_size)
    patches = (height // vision.patch_size) * (width // vision.patch_size)
    together = max(1, PATCHES // patches)

    def run():
        for first in range(0, count, together):
            model.network.vision([pair] * min(together, count - first), video.mean, video.std)

    run()
    seconds, peak = limits.timed(run)
    ops = count * vision_ops(model, patches)
    planned = plan.vision(count, patches)
    return computed(count, seconds, ops, peak) | {"size": [width, height], "patches": patches, "planned": planned}


def matrices(model, *prefixes):
    """The TensorInfos of the matrices whose names begin with one of `prefixes`."""
    tensors = model.network.source.tensors.values()
    return [t for t in tensors if len(t.shape) == 2 and t.name.startswith(prefixes)]


def head(model):
    return (matrices(model, "output.weight") or matrices(model, "token_embd.weight"))[0]


def decode_bytes(model, cached):
    """Bytes that decoding one token reads, with that many cached tokens."""
    from ivlite.model import cache_bytes_per_token

    weights = sum(t.nbytes for t in matrices(model, "blk.")) + head(model).nbytes
    return weights + cached * cache_bytes_per_token(model.config.text, model.kv)


def prefill_ops(model, before, prompt):
    """Operations (a multiply-add counts as two) of a prompt after `before` tokens."""
    text = model.config.text
    per_token = sum(math.prod(t.shape) for t in matrices(model, "blk."))
    attention = text.num_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim) * text.num_layers
    seen = before * prompt + prompt * (prompt + 1) // 2  # query-key pairs of causal attention
    return 2 * (per_token * prompt + math.prod(head(model).shape) + attention * seen)


def vision_ops(model, patches):
    """Operations of the vision tower on one pair of frames."""
    vision = model.config.vision
    merged = sum(math.prod(t.shape) for t in matrices(model, "v.merger", "v.deepstack"))
    tower = sum(math.prod(t.shape) for t in matrices(model, "v.blk", "v.patch"))
    inside = 2 * patches * patches * vision.hidden_size * vision.depth
    return 2 * (tower * patches + inside + merged * patches // vision.spatial_merge_size**2)


def lines(facts):
    """The facts as text."""
    from ivlite.machine import gigabytes

    limits, machine = facts["limits"], facts["machine"]
    yield f"{facts['model']}, {gigabytes(facts['weights'])} of weights, {facts['kv']} cache, ready in {facts['load_seconds']:.1f} s"
    on_card = facts.get("device", "cpu").startswith("cuda")
    yield f"{facts['device']}" if on_card else f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}"
    matrix = f", matrix unit {limits['matrix'] / 1e9:.0f} GOPS" if limits["matrix"] else ""
    if on_card:
        rates = f"bf16 {limits['matrix'] / 1e12:.1f} TFLOP/s, int8 {limits['int8'] / 1e12:.1f} TOP/s (mma.sync)"
        yield f"probed here, at best: copies {limits['read'] / 1e9:.1f} GB/s, {rates}"
    else:
        yield f"probed here, at best: memory {limits['read'] / 1e9:.1f} GB/s, int8 {limits['int8'] / 1e9:.0f} GOPS{matrix}"
    yield ""
    yield f"{'':<36}{'seconds':>9}{'planned':>9}{'per second':>16}{'reached':>14}{'of the probe':>14}"
    vision = facts["vision"]
    for prefill in facts["prefill"]:
        after = f" after {prefill['depth']:,}" if prefill["depth"] else ""
        yield row(f"prefill {prefill['count']:,} tokens{after}", prefill, "tokens")
    for decode in facts["decode"]:
        yield row(f"decode {decode['count']:,} tokens after {decode['depth']:,}", decode, "tokens")
        yield from card_lines(decode.get("card"))
    for question in facts["question"]:
        yield row(f"second question after {question['depth']:,}", question, "tokens")
    if vision:
        width, height = vision["size"]
        pairs = "a pair" if vision["count"] == 1 else f"{vision['count']} pairs"
        yield row(f"vision, {pairs} of {width}x{height}", vision, "pairs")
    yield ""
    first, *deeper = facts["prefill"]
    for prefill in deeper:
        speed = prefill["per_second"] / first["per_second"]
        yield f"prefill after {prefill['depth']:,} tokens is {speed:.2f} of the speed after {first['depth']:,}"
    for question in facts["question"]:
        first = question["first"]
        yield (
            f"a second question after {question['depth']:,} tokens takes {question['seconds']:.2f} s to its first token, "
            f"{first / question['seconds']:.0f} x less than these do by plan ({first:.0f} s)"
        )
    timed = [*facts["prefill"], *facts["decode"], *facts["question"], *([vision] if vision else [])]
    ratios = [stage["planned"] / stage["seconds"] for stage in timed]
    yield f"planned seconds are {min(ratios):.2f} to {max(ratios):.2f} of those measured"
    yield f"peak memory {gigabytes(facts['peak_memory'])}"


def card_lines(card):
    """Launches, gaps and the dearest kernels of a step on a card."""
    if card:
        parts = sorted(card["parts"].items(), key=lambda part: -part[1]["seconds"])[:4]
        dear = ", ".join(f"{name} {1e6 * of['seconds']:.0f} us in {of['launches']}" for name, of in parts)
        gaps = f"{1e6 * card['gap_seconds']:.0f} us of gaps in {1e6 * card['seconds']:.0f}"
        yield f"  a token: {card['launches']} launches, {gaps}; {dear}"


def row(name, facts, unit):
    if "bytes_per_second" in facts:
        reached = f"{facts['bytes_per_second'] / 1e9:.1f} GB/s"
    else:
        reached = f"{facts['ops_per_second'] / 1e9:.1f} GOPS"
    share = "-" if facts["share"] is None else f"{100 * facts['share']:.0f} %"
    speed = f"{facts['per_second']:.2f} {unit}"
    return f"{name:<36}{facts['seconds']:>9.3f}{facts['planned']:>9.3f}{speed:>16}{reached:>14}{share:>14}"
