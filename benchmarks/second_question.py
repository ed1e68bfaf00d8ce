"""Time to the first token of a first and a second question over one long prompt, and the speed of session files.

    python benchmarks/second_question.py --random 8b --type q4_k_m --tokens 4096
    python benchmarks/second_question.py demo

The second question is asked in the cache of the first, from a session file, and from the store, each with rows that are
read anew. Beside saving and restoring: a plain file of that size, written and read in the same run.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import ivlite
from ivlite.engine.runner import Runner
from ivlite.evaluate.synthetic import random_model, text_prompt
from ivlite.session.file import SessionFile
from ivlite.session.packing import held_by, pack, unpack
from ivlite.session.store import Store, state_of
from ivlite.session.table import Layout

QUESTION = 24  # tokens


def timed(function, *args):
    """(seconds, result)."""
    began = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - began, result


def plain_file(path, data):
    """(seconds to write, seconds to read) a file that stays in the page cache."""
    wrote, _ = timed(path.write_bytes, data)
    out = np.empty(len(data), np.uint8)
    with open(path, "rb", buffering=0) as file:
        read, _ = timed(file.readinto, out)
    path.unlink()
    return wrote, read


def measured(model, tokens, rounds, folder):
    """The seconds of everything, by name: the first question once, the rest `rounds` times."""
    rng, text = np.random.default_rng(1), model.config.text
    shared = rng.integers(0, text.vocab_size, tokens).tolist()

    def prompt():
        return text_prompt(shared + rng.integers(0, text.vocab_size, QUESTION).tolist())

    capacity, store = tokens + QUESTION, Store(folder / "store", worth=0.0, limit=1 << 50)
    runner, first = Runner(model.network, capacity, model.kv), prompt()
    runs = {"first question": [timed(runner.extend, first)[0]]}
    layout, path, data = Layout.of(model.network, model.kv), folder / "talk.ivs", os.urandom(1 << 20)
    data *= max(1, runner.cache.length * runner.cache.token_bytes >> 20)
    stored = Runner(model.network, capacity, model.kv, store=store)
    keeper = stored.keeper
    keeper.saved = keeper.began = time.monotonic()
    keeper.ended(runner, first)

    def opened():
        other = Runner(model.network, capacity, model.kv)
        with SessionFile.open(path) as file:
            file.restore(other.cache)
            other.held = held_by(unpack(file))
        return other

    def saved():
        SessionFile(path, durable=False).save(
            layout, *pack(state_of(runner.held, first)), runner.cache, runner.held.length
        )

    for _ in range(rounds):
        runner.extend(first)
        save, _ = timed(saved)
        restore, other = timed(opened)
        asked, _ = timed(other.extend, prompt())
        again, _ = timed(Runner(model.network, capacity, model.kv, store=store).extend, prompt())
        memory, _ = timed(runner.extend, prompt())
        wrote, read = plain_file(folder / "plain", data)
        times = {"in memory": memory, "from a session file": restore + asked, "from the store": again, "save": save,
                 "restore": restore, "plain write": wrote, "plain read": read}  # fmt: skip
        for name, value in times.items():
            runs.setdefault(name, []).append(value)
    return runs, runner.cache.length * runner.cache.token_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default="demo")
    parser.add_argument("--random", choices=("8b", "4b", "demo", "tiny"))
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.random:
        model = random_model(args.random, args.type, threads=args.threads, context=args.tokens + QUESTION)
    else:
        model = ivlite.load(args.file, threads=args.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs, nbytes = measured(model, args.tokens, args.rounds, Path(folder))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    if args.json:
        print(json.dumps({"tokens": args.tokens, "bytes": nbytes, "seconds": runs}))
        return
    print(f"{model.config.name}, {args.tokens:,} tokens and a question of {QUESTION}: {nbytes / 1e9:.3f} GB of rows")
    for name, value in medians.items():
        speed = f"{nbytes / 1e9 / value:6.2f} GB/s" if name in ("save", "restore", "plain write", "plain read") else ""
        times = (
            f"{medians['first question'] / value:6.1f} x less than the first" if name.startswith(("in", "from")) else ""
        )
        print(f"  {name:<22}{value:9.3f} s   {speed}{times}")


if __name__ == "__main__":
    main()
