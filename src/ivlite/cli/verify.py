"""`ivlite verify`: checks a model file against the checksums and golden activations that its conversion stored."""

import argparse

from ivlite.cli import arguments, json_line
from ivlite.errors import ModelFileError, sentence
from ivlite.numbers import jsonable

EPILOG = """\
examples:
  ivlite verify model.gguf
  ivlite verify model.gguf --json

Checksums find damage in the file. Golden activations, which `ivlite quantize --golden` stores, are computed again stage
by stage: they find a machine, a build or a conversion that computes something else. The error is that of the weights'
type as well; the limits are wide enough for it. In --json an error that is no number is null.
Exit code 3 when something is off.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "verify",
        help="check a model file against its checksums",
        description="Reads a whole model file, compares it with its checksums, and computes its golden activations again.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress, print only what is off")
    parser.add_argument(
        "--threads", type=arguments.whole(1, 1024), metavar="N", help="default: one per usable physical core"
    )


def run(args):
    from ivlite.cli import printable
    from ivlite.cli.progress import display
    from ivlite.quantize import verify

    progress = display(args.quiet)
    try:
        report = verify(args.file, threads=args.threads, progress=progress)
    finally:
        if progress:
            progress.clear()
    if args.json:
        print(json_line(jsonable(facts(report))))
    elif not args.quiet:
        print(printable("\n".join(lines(report))))
    if not report.ok:
        raise ModelFileError(failure(report))
    return 0


def facts(report):
    """The report as plain data."""
    stages = [{"stage": s.name, "error": s.error, "limit": s.limit, "ok": s.ok} for s in report.stages]
    return {
        "file": str(report.path), "ok": report.ok, "size": report.nbytes, "tensors": report.tensors,
        "damaged": list(report.damaged), "stages": stages,
    }  # fmt: skip


def lines(report):
    from ivlite.machine import gigabytes

    state = f"{len(report.damaged)} damaged" if report.damaged else "as they were written"
    yield f"{sentence(report.path)}: {gigabytes(report.nbytes)}, {report.tensors} tensors, {state}"
    if report.stages:
        yield ""
        yield f"  {'stage':<14}{'error':>12}{'limit':>10}"
        for s in report.stages:
            yield f"  {s.name:<14}{s.error:>12.3g}{s.limit:>10.3g}   {'ok' if s.ok else 'OFF'}"
    elif not report.damaged:
        yield "  no golden activations are stored: `ivlite quantize --golden` makes them"


def failure(report):
    """The error message for a failed check."""
    if report.damaged:
        names = ", ".join(report.damaged[:3])
        more = f" and {len(report.damaged) - 3} more" if len(report.damaged) > 3 else ""
        return f"{report.path} is damaged in {names}{more}; download it again, or convert the checkpoint again"
    off = next(s for s in report.stages if not s.ok)
    return (
        f"{report.path}: {off.name} is off by {off.error:.3g} where {off.limit:.3g} is allowed, and the file is whole: "
        "this machine or this build computes something else; report it"
    )
