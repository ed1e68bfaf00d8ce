"""Several answers at once: tokens per second of 1, 2, 4 and 8 streams, and the first token of a short question beside a long prefill.

    python benchmarks/batch.py --random 8b --type q4_k_m
    python benchmarks/batch.py --layers 4            # four text layers of InternVideo3-8B's widths, a small vocabulary

Streams have caches of their own, of `--depth` tokens each and a little more from one to the next. Rounds of all numbers are interleaved;
a ratio is the median over rounds of the rate to that of one stream in the same round. A short question of `--short` tokens is asked of an
Engine that is idle, then of one that has a prompt of `--long` tokens in prefill; the steps after it show how decoding goes on beside that.
"""

import argparse
import json
import statistics
import threading
import time

import numpy as np

import ivlite
from ivlite.engine.step import Step, run_together
from ivlite.evaluate.synthetic import SIZES, fill, random_model, text_prompt

STREAMS = (1, 2, 4, 8)


def runners(model, depth):
    """Runners of the most streams, whose caches hold some made-up tokens."""
    random, made = np.random.default_rng(0), []
    for n in range(max(STREAMS)):
        rows = depth + 13 * n
        runner = model.runner(rows + 4096)
        fill(runner.cache, model.config, rows, random)
        runner.held.append([7] * rows, np.tile(np.arange(rows), (3, 1)))
        made.append(runner)
    return made


def steps(runners, count):
    """Seconds of `count` steps of all runners."""
    began = time.perf_counter()
    for _ in range(count):
        if len(runners) == 1:
            np.argmax(runners[0].step(7))
            continue
        together = [Step(runner, [7], 1) for runner in runners]
        run_together(together)
        for step in together:
            np.argmax(step.run()[0])
    return time.perf_counter() - began


def rates(model, depth, new, rounds):
    """Tokens per second of all streams together, by their number, and the ratio to one stream."""
    made, found, ratios = runners(model, depth), {n: [] for n in STREAMS}, {n: [] for n in STREAMS}
    steps(made, 1)
    for r in range(rounds):
        for n in STREAMS if r % 2 else STREAMS[::-1]:
            found[n].append(n * new / steps(made[:n], new))
        for n in STREAMS:
            ratios[n].append(found[n][-1] / found[1][-1])
    return {n: (statistics.median(found[n]), statistics.median(ratios[n])) for n in STREAMS}


def first_token(engine, model, tokens, seed):
    """(seconds until the first token, median seconds of the steps after it) of a question that nobody has asked."""
    times, random = [], np.random.default_rng(seed)
    prompt = text_prompt(random.integers(8, 440, tokens).tolist())
    stream = asked(
        model, prompt, 12, lambda stage, *_: times.append(time.perf_counter()) if stage == "generate" else None
    )
    began = time.perf_counter()
    list(engine.add(stream, client=str(seed)))
    return times[0] - began, statistics.median(np.diff(times))


def asked(model, prompt, new, progress):
    """A Stream of `new` tokens after a Prompt."""
    prepared = model._prepared
    model._prepared = lambda *_, **__: prompt
    try:
        return model.stream([], max_new_tokens=new, progress=progress, temperature=1.0)
    finally:
        model._prepared = prepared


def beside(model, short, long, rounds):
    """[seconds of the first token, of a step] of a short question alone and beside a long prefill, medians."""
    with ivlite.Engine(model) as engine:
        first_token(engine, model, short, 1)
        alone = [first_token(engine, model, short, 2 + r) for r in range(rounds)]
        begun = threading.Event()

        def progress(stage, done, total):
            begun.set()

        random = np.random.default_rng(0)
        film = engine.add(asked(model, text_prompt(random.integers(8, 440, long).tolist()), 1, progress), client="film")
        begun.wait()
        both = []
        while len(both) < rounds and not film.reply.token_ids:
            both.append(first_token(engine, model, short, 100 + len(both)))
        film.close()
    median = lambda rows: [statistics.median(column) for column in zip(*rows, strict=True)]  # noqa: E731
    return {
        "alone": median(alone),
        "beside": median(both),
        "worst": max(first for first, _ in both),
        "asked": len(both),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", choices=("8b", "4b", "demo", "tiny"))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--kv", default="q8")
    parser.add_argument("--depth", type=int, default=300)
    parser.add_argument("--new", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", type=int, default=40)
    parser.add_argument("--long", type=int, default=20000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.layers or not args.random:
        hidden, _, heads, rank, head, ffn, *_ = SIZES["8b"]
        SIZES["layers"] = (hidden, args.layers or 4, heads, rank, head, ffn, 448, *SIZES["tiny"][-6:])
        args.random = "layers"
    tokenizer = ivlite.load("demo", threads=1).tokenizer
    model = random_model(args.random, args.type, threads=args.threads, context=65536, kv=args.kv, tokenizer=tokenizer)
    found = {"rates": rates(model, args.depth, args.new, args.rounds)}
    found["first"] = beside(model, args.short, args.long, args.rounds) if args.long else None
    if args.json:
        return print(json.dumps(found))
    print(f"{model.config.name} {args.type}, {model.threads} threads, caches of {args.depth} tokens")
    for n, (rate, ratio) in found["rates"].items():
        print(f"{n} streams: {rate:7.2f} tokens/s together, {ratio:.2f} x one; a step {n / rate * 1000:.0f} ms")
    if first := found["first"]:
        for name in ("alone", "beside"):
            print(
                f"a short question {name}: first token after {first[name][0]:.2f} s, then one every {first[name][1] * 1000:.0f} ms"
            )
        print(f"the slowest of {first['asked']} beside a prefill: {first['worst']:.2f} s")


if __name__ == "__main__":
    main()
