"""`ivlite quantize`: makes one model file of a Hugging Face checkpoint."""

import argparse
import sys

from ivlite.quantize.recipes import TYPES

EPILOG = f"""\
types:
{chr(10).join(f"  {name:<6} {recipe.help}" for name, recipe in TYPES.items())}

examples:
  ivlite quantize InternVideo3-8B-Instruct -o model.gguf
  ivlite quantize InternVideo3-8B-Instruct -o model-q8.gguf --type q8_0
  ivlite inspect model.gguf

OUT appears when it is complete; an older OUT stays as it is until then. It takes some 0.3 GB of memory.
Exit code 3 when the checkpoint cannot be used, 6 when OUT cannot be written.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "quantize",
        help="make a model file of a checkpoint",
        description="Converts a Hugging Face checkpoint of InternVideo3 (safetensors) to one GGUF file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("src", metavar="SRC", help="the folder of the checkpoint, with its config.json")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the GGUF file to write")
    parser.add_argument("--type", metavar="T", default="q4_0", help=f"{', '.join(TYPES)} (default: q4_0)")
    parser.add_argument("--quiet", action="store_true", help="no progress, no closing line")
    parser.add_argument("--verbose", action="store_true", help="plain progress lines, tracebacks of defects")


def run(args):
    from ivlite.machine import gigabytes
    from ivlite.quantize import quantize

    progress = None if args.quiet else _progress(live=sys.stderr.isatty() and not args.verbose)
    try:
        done = quantize(args.src, args.output, type=args.type, progress=progress)
    finally:
        if progress:
            progress.clear()
    if not args.quiet:
        from ivlite.cli import printable

        bits = 8 * done.nbytes / done.parameters
        print(
            printable(
                f"{done.path}: {gigabytes(done.nbytes)}, type {done.type}, {bits:.2f} bits per weight, "
                f"from {gigabytes(done.source_bytes)} in {done.tensors} tensors"
            ),
            file=sys.stderr,
        )
    return 0


def _progress(live):
    """The progress line of the other commands, under this one's verb."""
    from ivlite.cli.progress import Progress

    class Converting(Progress):
        def __call__(self, stage, done, total):
            super().__call__("load", done, total)  # the stage that it counts in bytes

        def describe(self, stage):
            return super().describe(stage).replace("load", "convert", 1)

    return Converting(live)
