"""Everything that only a card can tell, measured and judged: writes card.json and card.md into a folder. What fails is a row of the
table, and the rest is measured all the same.

    python benchmarks/card.py OUT                    # InternVideo3-8B's shape, 4-bit weights, 8-bit cache
    python benchmarks/card.py OUT --random tiny      # a try of the script itself

Speeds of `ivlite bench` beside the card's own copy and matrix products, at each depth; tests/cuda on the card; the same under
compute-sanitizer where it is; answers of the demo model beside those of the CPU; memory before and after a thousand requests.
"""

import argparse
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

import ivlite

ROOT = Path(__file__).parents[1]
DEPTHS = 1024, 32768, 131072, 261120  # cached tokens that decoding is measured behind
PUBLISHED = 32768, 39.96  # depth and tokens per second of transformers in bf16 on an H200
# Tokens per second that are asked for there, of the 8B model in 4 bits with an 8-bit cache.
H200 = {1024: 550, 32768: 460, 131072: 290}
PROMPTS = "Please introduce yourself.", "Count from one to twenty.", "What is a video?"
REQUESTS = 1000
SANITIZED = "fill weight linear fused gemm elementwise sampling cache latent attention".split()  # of tests/cuda/


def run(words, **settings):
    print("+", *words, flush=True)
    return subprocess.run([str(word) for word in words], cwd=ROOT, text=True, **settings)


def bench(args, prompt, new, depths):
    """The facts of `ivlite bench` on the card."""
    done = run([
        sys.executable, "-m", "ivlite", "bench", "--random", args.random, "--type", args.type, "--kv", args.kv, "--device",
        "cuda", "--prompt", prompt, "--new", new, "--depth", ",".join(map(str, depths)), "--vision", args.vision, "--json",
    ], capture_output=True)  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout)


def doctor():
    """What `ivlite doctor` says of CUDA here, and torch's version."""
    done = run([sys.executable, "-m", "ivlite", "doctor", "--json"], capture_output=True, check=True)
    import torch

    return json.loads(done.stdout)["cuda"] | {"torch": torch.__version__}


def tested():
    """(exit status, last line) of the kernels' tests on the card."""
    done = run([sys.executable, "-m", "pytest", "-q", "tests/cuda", "-m", "card"], capture_output=True)
    return done.returncode, done.stdout.strip().splitlines()[-1]


def sanitized():
    """{tool: exit status} of compute-sanitizer over those of the kernels; {} where it is not installed."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {}
    test = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        *(f"tests/cuda/test_cuda_{name}.py" for name in SANITIZED),
        "-m",
        "card",
    ]
    tools = "memcheck", "racecheck", "synccheck", "initcheck"
    return {tool: run([program, "--tool", tool, "--error-exitcode", 9, *test]).returncode for tool in tools}


def answers():
    """[prompt, text on the CPU, text on the card] of the demo model, greedy."""
    models = [ivlite.load("demo", device=device, kv="q8") for device in ("cpu", "cuda")]
    asked = [[{"role": "user", "content": text}] for text in PROMPTS]
    return [
        [text, *(model.chat(messages, temperature=0, max_new_tokens=48).text for model in models)]
        for text, messages in zip(PROMPTS, asked, strict=True)
    ]


def leaked(requests):
    """Bytes of the card's memory that are in use after so many requests beyond those after the first ten."""
    import torch

    model, found = ivlite.load("demo", device="cuda", context=512), []
    for i in range(requests):
        messages = [{"role": "user", "content": f"{PROMPTS[i % len(PROMPTS)]} {i % 7}"}]
        model.chat(messages, temperature=i % 2, seed=i, max_new_tokens=4)
        if i in (9, requests - 1):
            gc.collect()
            found.append(torch.cuda.memory_allocated())
    return found[-1] - found[0]


def measured(out, stages):
    """{name: what stages[name]() found}, in a file after each of them; "failed" has a sentence for each that raised an exception."""
    facts = {"failed": {}}
    for name, stage in stages.items():
        try:
            facts[name] = stage()
        except Exception as error:
            facts["failed"][name] = f"{type(error).__name__}: {error}"
        (out / "card.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def speeds(facts):
    """[(what, measured, least)]."""
    limits = facts["bench"]["limits"]
    full = "H200" in facts["bench"]["device"] and (facts["bench"]["type"], facts["bench"]["kv"]) == ("q4_0", "q8")
    for decode in facts["bench"]["decode"]:
        depth, rate = decode["depth"], decode["per_second"]
        yield f"decoding at {depth:,}, tokens/s, beside the copy", rate, 0.6 * limits["read"] / decode["bytes"]
        if full and depth in H200:
            yield f"decoding at {depth:,}, tokens/s, beside the card's 4.8 TB/s", rate, H200[depth]
        if depth == PUBLISHED[0]:
            yield f"the same beside the published {PUBLISHED[1]}", rate / PUBLISHED[1], 8


def verdicts(facts):
    """[(what, measured, asked for, whether it is reached)]: what the project asks of a card."""
    rows = [(f"the stage `{name}`", why, "", False) for name, why in facts["failed"].items()]
    rates = list(speeds(facts)) if "bench" in facts else []
    if "prefill" in facts:
        for prefill in facts["prefill"]["prefill"]:
            rates.append((f"prefill of {prefill['count']:,}, of mma.sync in bf16", prefill["share"], 0.5))
        rates.append(("the tower, of mma.sync in bf16", facts["prefill"]["vision"]["share"], 0.5))
    rows += [(what, got, least, got >= least) for what, got, least in rates]
    if "answers" in facts:
        same = sum(cpu == card for _, cpu, card in facts["answers"])
        rows.append(("answers equal to the CPU's", same, len(facts["answers"]), same == len(facts["answers"])))
    if "leaked" in facts:
        rows.append(("bytes left by requests", facts["leaked"], 0, facts["leaked"] <= 0))
    if "tests" in facts:
        rows.append(("exit status of tests/cuda", facts["tests"][0], 0, facts["tests"][0] == 0))
    rows += [
        (f"compute-sanitizer {tool}", status, 0, status == 0) for tool, status in facts.get("sanitizer", {}).items()
    ]
    return rows


def number(value):
    return value if isinstance(value, str) else f"{value:.4g}"


def report(facts):
    """Lines of Markdown."""
    bench = facts.get("bench")
    yield f"# {bench['device'] if bench else 'A card'}, ivlite {ivlite.__version__}"
    if bench:
        yield f"\n{bench['model']}, {bench['type']} weights, {bench['kv']} cache; " + ", ".join(
            f"{name} {value:.4g} a second" for name, value in bench["limits"].items() if value
        )
    yield "\n| | measured | asked for | |\n|---|---|---|---|"
    for what, got, least, reached in verdicts(facts):
        yield f"| {what} | {number(got)} | {number(least)} | {'yes' if reached else 'no'} |"
    if facts.get("sanitizer") == {}:
        yield "\ncompute-sanitizer is not installed here: nothing was looked at by it."
    yield "\n| decoding at | ms | launches | gaps, ms | kernels, ms |\n|---|---|---|---|---|"
    for decode in bench["decode"] if bench else ():
        if card := decode.get("card"):
            parts = sorted(card["parts"].items(), key=lambda item: -item[1]["seconds"])
            words = ", ".join(f"{name} {1e3 * part['seconds']:.3f}" for name, part in parts)
            yield (
                f"| {decode['depth']:,} | {1e3 * card['seconds']:.3f} | {card['launches']} | "
                f"{1e3 * card['gap_seconds']:.3f} | {words} |"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--random", default="8b", help="the model's shape (%(default)s)")
    parser.add_argument("--type", default="q4_0", help="of its weights (%(default)s)")
    parser.add_argument("--kv", default="q8", help="its cache (%(default)s)")
    parser.add_argument("--depths", type=lambda s: [int(n) for n in s.split(",")], default=DEPTHS)
    parser.add_argument("--prompt", type=int, default=32768, help="tokens of a long prefill (%(default)s)")
    parser.add_argument("--vision", default="448x448x64", help="(%(default)s)")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    first = min(args.depths)
    facts = measured(args.out, {
        "doctor": doctor,
        "bench": lambda: bench(args, first, 64, [depth - first for depth in args.depths]),
        "prefill": lambda: bench(args, args.prompt, 1, [0]),
        "answers": answers, "leaked": lambda: leaked(args.requests), "tests": tested, "sanitizer": sanitized,
    })  # fmt: skip
    text = "\n".join(report(facts)) + "\n"
    (args.out / "card.md").write_text(text)
    print(text)
    return 0 if all(reached for *_, reached in verdicts(facts)) else 1


if __name__ == "__main__":
    sys.exit(main())
