"""`ivlite clip`: a part of a video as a file of its own."""

import argparse
import os

from ivlite.cli import arguments, json_line, printable, say
from ivlite.cli.progress import display
from ivlite.errors import UsageError
from ivlite.numbers import clock

EPILOG = """\
examples:
  ivlite clip lecture.mp4 --start 41:12 --end 41:40
  ivlite clip lecture.mp4 --start 41:12 --end 41:40 -o proof.mp4
  ivlite clip stream.ts --start 90 --end 95 --exact

Pictures and sound are copied, not encoded, wherever that is right. In mp4 and mov a clip then begins exactly at the start in
every player that heeds edit lists; in mkv, and of AV1 and VP9, it begins at the key frame before, and the command says by how much.
--exact encodes the pictures, so that the file holds nothing from before the start.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "clip",
        help="cut a part of a video into a file",
        description="Cuts a part of a video, with its sound and subtitles, into a file of its own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("video", metavar="FILE", type=arguments.path, help="a video or an animated image")
    add("--start", type=arguments.moment, default=0.0, metavar="TIME", help="where to begin, seconds or HH:MM:SS")
    add("--end", type=arguments.moment, metavar="TIME", help="where to stop (default: the end of the video)")
    add("-o", "--output", type=arguments.path, metavar="OUT",
        help="a name that ends in .mp4, .mov or .mkv (default: FILE_00-41-12.000.mp4 in this folder)")  # fmt: skip
    add("--exact", action="store_true", help="encode the pictures, to begin exactly at the start in every player")
    add(
        "--stream",
        type=arguments.whole(0),
        metavar="N",
        help="the video track to use, by its stream number in the file",
    )
    arguments.add_shared(parser, "--json", "--quiet", "--verbose")


def run(args):
    if args.end is not None and args.end <= args.start:
        raise UsageError(f"--end ({args.end:g} s) must come after --start ({args.start:g} s)")
    from ivlite.media.cut import cut, suffix

    output = args.output
    if output is None:
        stem = os.path.splitext(os.path.basename(args.video))[0]
        output = f"{stem}_{clock(args.start).replace(':', '-')}{suffix(args.video, args.stream)}"
    progress = display(args.quiet or args.json, args.verbose)
    try:
        made = cut(args.video, output, args.start, args.end, exact=args.exact, stream=args.stream, progress=progress)
    finally:
        if progress:
            progress.clear()
    for note in made.notes:
        say("warning", note)
    if args.json:
        print(json_line(vars(made) | {"notes": list(made.notes)}))
    elif not args.quiet:
        print(printable(line(made)))
    return 0


def line(made):
    """What was written, in one line."""
    how = "copied" if made.copied else "encoded"
    early = f", which is {made.early:.2f} s early: a copy begins with a key frame" if made.early >= 0.005 else ""
    return f"{made.path}: {clock(made.start)} to {clock(made.end)}, {how}{early}"
