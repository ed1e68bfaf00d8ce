"""Greedy decoding with and without prompt-lookup speculation, in turn in one process, on texts that repeat and that do not.

    python benchmarks/speculation.py demo
    python benchmarks/speculation.py --random 8b --type q4_k_m --new 200
    python benchmarks/speculation.py --layers 4 --type q4_k_m       # four text layers of InternVideo3-8B's widths, a small vocabulary

The model runs for every token and its logits are thrown away: the answers are texts written here, tokenized by the demo model, so that
models of random weights answer like trained ones. What is drafted and what comes is decided as in any answer.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import ivlite
from ivlite.engine import speculate
from ivlite.evaluate.synthetic import SIZES, random_model, text_prompt

DOCS = Path(__file__).resolve().parent.parent / "docs"
WORDS = "the player ball runs left right red blue shirt scores goal stops camera turns crowd waits near line then passes".split()


def values(count):
    """JSON records of the same keys."""
    rng = random.Random(1)
    for i in range(count):
        yield json.dumps({"start": round(3.7 * i, 1), "end": round(3.7 * i + rng.random() * 3, 1), "label": rng.choice(WORDS),
                          "confidence": round(rng.random(), 2), "visible": rng.random() < 0.5}) + ",\n"  # fmt: skip


def transcript(count):
    """Lines of a transcript: time marks and speakers repeat, what is said does not."""
    rng = random.Random(2)
    for i in range(count):
        said = " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9)))
        yield f"[00:{i // 10:02}:{6 * i % 60:02}] Speaker {rng.randint(1, 2)}: {said}.\n"


def quotation(count):
    """An answer that quotes from its question."""
    yield from prose(count, 0)


def prose(count, first=2000):
    """Sentences of this project's documents, which repeat little."""
    text = (DOCS / "DESIGN.md").read_text() + (DOCS / "log.md").read_text()
    yield text[first : first + 40 * count]


TEXTS = {"JSON records": values, "transcript": transcript, "quotation": quotation, "prose": prose}


class Scripted:
    """Takes the tokens of a text, whatever the logits are."""

    greedy = True

    def __init__(self, ids):
        self.ids = iter(ids)

    def __call__(self, logits):
        int(logits.argmax())
        return next(self.ids)


def answered(model, question, answer, rows):
    """(seconds, drafted, accepted) of decoding an answer with at most `rows` tokens in a call."""
    before, speculate.ROWS = speculate.ROWS, rows
    try:
        runner = model.runner(len(question) + len(answer))
        tokens = runner.answer(text_prompt(question), Scripted(answer), (), len(answer))
        next(tokens)  # prefill
        start = time.perf_counter()
        assert sum(1 for _ in tokens) == len(answer) - 1
        return time.perf_counter() - start, runner.meter.drafted, runner.meter.accepted
    finally:
        speculate.ROWS = before


def measure(model, tokenizer, text, new, rounds):
    """Rates without and with speculation, their ratio in each round, and what was drafted and came."""
    ids = tokenizer.encode("".join(text(1 + new // 4)))[: 2 * new]
    vocabulary = model.config.text.vocab_size
    question = [i % vocabulary for i in (ids if text is quotation else tokenizer.encode("".join(prose(100, 0)))[:512])]
    answer = [i % vocabulary for i in ids[:new]]
    plain, drafted, ratios = [], [], []
    for i in range(rounds):
        both = {rows: answered(model, question, answer, rows) for rows in ((1, 16) if i % 2 else (16, 1))}
        plain.append(both[1][0])
        drafted.append(both[16][0])
        ratios.append(both[1][0] / both[16][0])
    steps = len(answer) - 1
    return {"plain": steps / statistics.median(plain), "speculative": steps / statistics.median(drafted),
            "ratio": statistics.median(ratios), "drafted": both[16][1], "accepted": both[16][2], "tokens": steps}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="demo")
    parser.add_argument("--random", choices=("8b", "4b", "demo", "tiny"))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--new", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tokenizer = ivlite.load("demo", threads=1).tokenizer
    if args.layers:
        hidden, _, heads, rank, head, ffn, _, *_ = SIZES["8b"]
        SIZES["layers"] = (hidden, args.layers, heads, rank, head, ffn, 8192, *SIZES["tiny"][-6:])
        args.random = "layers"
    if args.random:
        model = random_model(args.random, args.type, threads=args.threads)
    else:
        model = ivlite.load(args.file, threads=args.threads)
    found = {name: measure(model, tokenizer, text, args.new, args.rounds) for name, text in TEXTS.items()}
    if args.json:
        return print(json.dumps(found))
    print(
        f"{model.config.name}, {model.threads} threads, at most {min(speculate.ROWS, model.network.same_rows)} tokens in a call"
    )
    print(f"{'answer':<14}{'plain':>10}{'drafting':>10}  tokens/s{'ratio':>8}{'drafted':>9}{'came':>7}{'of':>6}")
    for name, row in found.items():
        print(
            f"{name:<14}{row['plain']:>10.2f}{row['speculative']:>10.2f}{row['ratio']:>18.2f}{row['drafted']:>9}{row['accepted']:>7}{row['tokens']:>6}"
        )


if __name__ == "__main__":
    main()
