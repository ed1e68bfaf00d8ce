"""Fuzzes the targets with coverage feedback, through atheris (libFuzzer for Python): `pip install '.[fuzz]'`.

    python tests/fuzz/run.py                       # every target in turn, a minute in all, a new seed
    python tests/fuzz/run.py media --seconds 600   # one target
    python tests/fuzz/run.py gguf --input FILE     # one input again, with its traceback

An input that ends in anything but success or an IvliteError, takes over 20 seconds or 2 GiB is written to build/fuzz/ and
ends the run with code 1. New inputs that reach new code are kept in build/fuzz/TARGET, beside the corpora in tests/fuzz/.
The seed is printed: `--seed N` draws the same mutations again.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import targets

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
LONGEST = 1 << 16  # bytes of an input


def fuzz(name, seconds, seed):
    """Runs one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["ivlite"]):
        import ivlite.gguf.tokenizer
        import ivlite.library
        import ivlite.media
        import ivlite.media.subtitles
        import ivlite.models.internvideo3
        import ivlite.prompt
        import ivlite.quantize.checkpoint
        import ivlite.session.packing  # noqa: F401

    def mutator(data, most, seed):
        return targets.mutate(name, data, seed)[:most]

    found = BUILD / name
    found.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}", "-timeout=20", "-rss_limit_mb=2048",
               f"-artifact_prefix={BUILD}/{name}-", "-print_final_stats=1", "-verbosity=0"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(found), str(targets.CORPUS / name)], lambda data: targets.once(name, data),
                  custom_mutator=mutator)  # fmt: skip
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(targets.TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="of all targets together")
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--input", type=Path, help="run one input, and do not fuzz")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.targets or list(targets.TARGETS)
    for name in names:
        if name not in targets.TARGETS:
            parser.error(f"there is no target {name!r}: there are {', '.join(targets.TARGETS)}")
    if args.input:
        return print("taken" if targets.once(names[0], args.input.read_bytes()) else "refused")
    each = max(1, args.seconds // len(names))
    if args.here:
        fuzz(names[0], args.seconds, args.seed)
    for name in names:  # libFuzzer ends its process
        print(f"fuzz {name}: {each} s, seed {args.seed}", flush=True)
        command = [sys.executable, __file__, name, "--here", f"--seconds={each}", f"--seed={args.seed}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        facts = [line for line in done.stdout.splitlines() if "number_of_executed_units" in line or "peak_rss" in line]
        print("\n".join(facts) if not done.returncode else done.stdout[-6000:], flush=True)
        for folder in Path("/dev/shm").glob("ivlite-fuzz-*"):
            shutil.rmtree(folder, ignore_errors=True)
        if done.returncode:
            raise SystemExit(f"{name} failed: see {BUILD}; run it again with --input")


if __name__ == "__main__":
    os.environ.setdefault("AV_LOG_FORCE_NOCOLOR", "1")
    main()
