"""What a long video asks of a machine, in one run: prefill at depth, decoding after it, the plan, second questions, frames.

    python benchmarks/long_video.py                     # the demo model, as deep as its context: a minute
    python benchmarks/long_video.py --random 8b         # 30,720 tokens deep: about ten minutes on two cores, and 7 GB
    python benchmarks/long_video.py --only decode       # one of bench, question, decode

bench: `ivlite bench` with rows at depth. question: time to the first token of a first and a second question over one prompt
that is really computed, in memory, from a session file and from the store (second_question.py). decode: frames beside
FFmpeg (decode.py). Rows of the cache before a prefill at depth are random, so that nothing has to be computed to get there.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import decode
import second_question

from ivlite.cli import bench

PARTS = ("bench", "question", "decode")
CASES = ("1080p dense", "1080p sparse, a key frame every 10 s", "240p sparse, a key frame a second")


def settings(args, longest):
    """Settings of `ivlite bench`: a prompt at both ends of what fits in `longest` tokens."""
    new = 8
    prompt = min(2048, longest // 4)
    depth = min(args.depth, longest - prompt - new - bench.QUESTION)
    return SimpleNamespace(file=args.file if args.random is None else None, random=args.random, type=args.type if args.random else None,
                           threads=args.threads, device="cpu", kv="q8", prompt=prompt, new=new, depth=(0, depth), vision=None, json=False)  # fmt: skip


def longest(args):
    """The context of the model, in tokens."""
    from ivlite.evaluate.synthetic import config
    from ivlite.gguf import GGUFFile
    from ivlite.gguf.config import Config

    if args.random:
        return config(args.random).text.context_length
    with GGUFFile(args.file) as file:
        return Config.from_metadata(file.metadata, file.path).text.context_length


def speeds(model, given):
    """Rows of prefill, decoding, a second question and vision, with planned and measured seconds."""
    yield from bench.lines(bench.measure(model, given))


def questions(model, tokens, rounds):
    """Seconds to the first token of a second question, and how many times less than for the first."""
    with tempfile.TemporaryDirectory() as folder:
        runs, nbytes = second_question.measured(model, tokens, rounds, Path(folder))
    first = runs["first question"][0]
    yield f"a first question over {tokens:,} tokens: {first:.2f} s to its first token, {nbytes / 1e6:.0f} MB of rows"
    for way in ("in memory", "from a session file", "from the store"):
        again = statistics.median(runs[way])
        yield f"    the second, {way:<20} {again:8.3f} s, {first / again:5.0f} x less"


def frames(folder, rounds):
    """Frames a second of ivlite, and FFmpeg's time divided by ours."""
    for name in CASES:
        taken = decode.measured(name, folder, rounds)
        rate = 1 / statistics.median(clock for clock, _ in taken["ivlite"])
        beside = "; ".join(
            "{} {:.2f} x by the clock, {:.2f} x by processor time".format(who, *decode.ratios(taken, who))
            for who in taken
            if who != "ivlite"
        )
        yield f"{name}: {rate:.1f} frames/s; {beside or 'no ffmpeg here'}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", default="demo", help="a model file, or demo (default)")
    parser.add_argument("--random", choices=("8b", "4b", "demo", "tiny"))
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--depth", type=int, default=30720, help="tokens before the deep prefill (default: 30720, or what fits)"
    )
    parser.add_argument(
        "--tokens", type=int, default=2048, help="of the prompt that is asked about twice (default: 2048)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--folder", type=Path, help="where the videos are made, and kept")
    args = parser.parse_args()
    wanted = [args.only] if args.only else PARTS
    if "bench" in wanted or "question" in wanted:
        given = settings(args, longest(args))
        with bench.loaded(given, None) as model:
            for part, rows in (
                ("bench", lambda: speeds(model, given)),
                ("question", lambda: questions(model, args.tokens, args.rounds)),
            ):
                for line in rows() if part in wanted else ():
                    print(line, flush=True)
                print()
    if "decode" in wanted:
        with tempfile.TemporaryDirectory() as temporary:
            folder = args.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            for line in frames(folder, args.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
