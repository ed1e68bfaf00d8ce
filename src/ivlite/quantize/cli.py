"""`ivlite quantize`: converts a Hugging Face checkpoint, or another model file, to a model file."""

import argparse
import sys

from ivlite.cli.arguments import path
from ivlite.quantize.recipes import TYPES, WRITTEN

DEFAULT = "q4_k_m"

EPILOG = f"""\
types (recipes, which give each tensor a format):
{chr(10).join(f"  {name:<8} {recipe.help}" for name, recipe in TYPES.items())}

formats (of one tensor): {", ".join(WRITTEN)}

examples:
  ivlite quantize InternVideo3-8B-Instruct -o model.gguf
  ivlite quantize InternVideo3-8B-Instruct -o model.gguf --type q4_k_m --calibration stats.gguf --golden
  ivlite quantize InternVideo3-8B-Instruct -o model.gguf --type q4_k_m --tensor-type 'ffn_down=q6_k' --dry-run
  ivlite quantize model-bf16.gguf -o model-q8.gguf --type q8_0
  ivlite verify model.gguf

A recipe file is TOML or JSON: rows of a regular expression searched in tensor names, layers (all; first 4, last 1/8,
every 3, 0-3) and a format; the first row that fits decides, and `base` names a type whose rows follow:
  base = "q4_k_m"
  rows = [["ffn_down", "first 4, last 4", "q8_0"], ["attn_output", "all", "q6_k"]]

OUT appears when it is complete; an older OUT stays as it is until then. Ctrl-C or a kill leaves a hidden file beside
OUT, in which --resume goes on; without --resume, the next conversion to OUT replaces it. An error removes it.
Exit code 3 when SRC cannot be used, 6 when OUT cannot be written or another process is writing it.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "quantize",
        help="convert a checkpoint to a model file",
        description="Converts a Hugging Face checkpoint of InternVideo3 (safetensors), or a model file, to one GGUF file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("src", type=path, metavar="SRC", help="the folder of a checkpoint, with its config.json, or a GGUF file")
    add("-o", "--output", type=path, metavar="OUT", help="the GGUF file to write")
    add("--type", metavar="T", help=f"{', '.join(TYPES)} (default: {DEFAULT})")
    add("--recipe", type=path, metavar="FILE", help="a recipe of your own instead of --type")
    add("--vision", metavar="FORMAT", help="format of the vision tower (default: q8_0, under float types theirs)")
    add("--tensor-type", metavar="REGEX=FORMAT", action="append", default=[],
        help="format of the tensors whose names match; can be repeated, the first that matches counts")  # fmt: skip
    add(
        "--calibration",
        type=path,
        metavar="FILE",
        help="statistics of `ivlite calibrate`, which weigh the encoders' errors",
    )
    add("--golden", action="store_true", help="store reference activations, which `ivlite verify` computes again")
    add("--allow-nan", action="store_true", help="make weights that are no numbers zeros instead of refusing them")
    add("--resume", action="store_true", help="go on where an interrupted conversion to OUT stopped")
    add("--dry-run", action="store_true", help="print what each tensor would become, and write nothing")
    add("--quiet", action="store_true", help="no progress, no closing line")
    add("--verbose", action="store_true", help="plain progress lines, tracebacks of defects")


def run(args):
    from ivlite.errors import UsageError

    if args.type and args.recipe:
        raise UsageError("--type and --recipe are both given; a recipe file names its base type itself")
    if args.dry_run:
        return show_plan(args)
    if not args.output:
        raise UsageError("quantize wants -o OUT, or --dry-run to show the plan")
    done = convert(args)
    for sentence in done.warnings:
        warn(sentence)
    if not args.quiet:
        from ivlite.cli import printable

        print(printable(closing(done)), file=sys.stderr)
    return 0


def convert(args):
    """The Summary of the conversion; after Ctrl-C, prints how to resume."""
    from ivlite.errors import Stopped
    from ivlite.quantize import quantize

    progress = None if args.quiet else _progress(args.verbose)
    try:
        return quantize(
            args.src, args.output, type=args.type or DEFAULT, recipe=args.recipe, vision=args.vision,
            tensor_types=args.tensor_type, calibration=args.calibration, golden=args.golden,
            allow_nan=args.allow_nan, resume=args.resume, progress=progress,
        )  # fmt: skip
    except (Stopped, KeyboardInterrupt):
        if progress:
            progress.clear()
        from ivlite.output import unfinished

        for left in unfinished(args.output):
            warn(f"{left} keeps what is done: the same command with --resume goes on, or delete it")
        raise
    finally:
        if progress:
            progress.clear()


def warn(sentence):
    from ivlite.cli import say

    say("warning", sentence)


def closing(done):
    """What was written, in one line."""
    from ivlite.errors import sentence
    from ivlite.machine import gigabytes

    bits = 8 * done.nbytes / done.parameters
    resumed = f", {done.resumed} of them from before" if done.resumed else ""
    return (
        f"{sentence(done.path)}: {gigabytes(done.nbytes)}, type {done.type}, {bits:.2f} bits per weight, "
        f"from {gigabytes(done.source_bytes)} in {done.tensors} tensors{resumed}"
    )


def _progress(verbose):
    from ivlite.cli.progress import Progress, capable

    return Progress(live=capable(sys.stderr) and not verbose)


# ------------------------------------------------------------------------------------------------ the plan


def show_plan(args):
    """Prints the format of each tensor; layers with the same formats share a line."""
    from ivlite.cli import printable
    from ivlite.quantize.convert import Settings, dry_run
    from ivlite.stop import checkpoint

    checkpoint()
    settings = Settings(args.type or DEFAULT, args.recipe, args.vision, tuple(args.tensor_type), args.calibration)
    done = dry_run(args.src, settings)
    for line in plan_lines(done):
        print(printable(line))
    for sentence in done.warnings:
        warn(sentence)
    return 0


def plan_lines(done):
    from ivlite.gguf.writer import nbytes
    from ivlite.machine import gigabytes

    yield f"{'tensors':<32} {'layers':<20} {'format':<6} {'rows x columns':>16} {'size':>9} {'bits':>6}"
    for (name, shape, fmt, note), plans in grouped(done.plans).items():
        size = sum(nbytes(p.shape, p.format) for p in plans)
        bits = 8 * size / sum(p.rows * p.columns for p in plans)
        layers = ranges([layer_of(p.name)[1] for p in plans])
        where = f"{'x'.join(map(str, shape)):>16} {gigabytes(size):>9} {bits:>6.2f}"
        yield f"{name:<32} {layers:<20} {fmt:<6} {where}  {note}".rstrip()
    bits = 8 * done.nbytes / done.parameters
    yield (
        f"{done.type}: {gigabytes(done.nbytes)}, {bits:.2f} bits per weight, {done.tensors} tensors, "
        f"from {gigabytes(done.source_bytes)}"
    )


def grouped(plans):
    """Groups plans by name, shape, format and note, over all layers."""
    out = {}
    for p in plans:
        out.setdefault((layer_of(p.name)[0], p.shape, p.format, p.note), []).append(p)
    return out


def layer_of(name):
    """("blk.*.ffn_up.weight", 3) for "blk.3.ffn_up.weight"; None for a tensor outside layers."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return name, None
    return ".".join([*parts[:at], "*", *parts[at + 1 :]]), int(parts[at])


def ranges(numbers):
    """Formats [0, 1, 2, 5] as "0-2,5"."""
    if numbers[0] is None:
        return ""
    runs = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
