"""`ivlite run`: asks a model about videos and images, and streams its answer."""

import argparse
import signal
import sys

from ivlite.cli import answer, arguments, say
from ivlite.cli.progress import Progress
from ivlite.errors import EXIT_INTERRUPTED, IvliteError, UsageError
from ivlite.evaluate.dataset import ASK

VIDEO_ONLY = (
    "fps",
    "max_frames",
    "start",
    "end",
    "stream",
)  # settings of a message's video part, named as the flags
PIXELS = ("min_pixels", "max_pixels")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")

EPILOG = """\
examples:
  ivlite run model.gguf --video clip.mp4
  ivlite run model.gguf --video match.mp4 --start 1:02:00 --end 1:05:00 --fps 2 "Who scores, and when?"
  ivlite run model.gguf --image before.jpg --image after.jpg "What has changed?"
  ivlite run model.gguf --video talk.mp4 --json "List the chapters." | python -m json.tool
  echo "Is it raining?" | ivlite run model.gguf --video street.mp4 -

The answer goes to standard output; progress, warnings and the closing line of figures go to standard error.
Ctrl-C stops the answer and keeps what there is (exit code 130).
"""


def add_parser(commands):
    parser = commands.add_parser(
        "run",
        help="ask about videos and images",
        description="Asks a model about videos and images and streams the answer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a GGUF file made by `ivlite quantize`")
    add(
        "prompt",
        metavar="PROMPT",
        nargs="?",
        help='the question; "-" reads it from standard input (default: describe)',
    )
    _media_arguments(parser.add_argument_group("media, in the order given"))
    _sampling_arguments(parser.add_argument_group("answer (defaults: the model file's)"))
    _machine_arguments(parser.add_argument_group("machine"))
    output = parser.add_argument_group("output").add_argument
    output(
        "--json",
        action="store_true",
        help="print one JSON object and nothing else on standard output",
    )
    output("--quiet", action="store_true", help="no progress, no closing line")
    output(
        "--verbose",
        action="store_true",
        help="plain progress lines, what each video became, tracebacks of defects",
    )


def _media_arguments(group):
    add = group.add_argument
    for article, kind in (("a", "video"), ("an", "image")):
        add(
            f"--{kind}",
            dest="media",
            action=arguments.InOrder,
            metavar="FILE",
            help=f"{article} {kind}; may be repeated",
        )
    add(
        "--fps",
        type=arguments.number(0, 1000, above=True),
        help="frames taken per second of video (default: 1)",
    )
    add(
        "--max-frames",
        type=arguments.whole(1),
        metavar="N",
        help="most frames taken from one video",
    )
    add(
        "--min-pixels",
        type=arguments.whole(1),
        metavar="N",
        help="fewest pixels of a frame or an image",
    )
    add(
        "--max-pixels",
        type=arguments.whole(1),
        metavar="N",
        help="most pixels of a frame (default: 131072) or an image",
    )
    add(
        "--start",
        type=arguments.moment,
        metavar="TIME",
        help="where in the video to begin, seconds or HH:MM:SS",
    )
    add("--end", type=arguments.moment, metavar="TIME", help="where in the video to stop")
    add(
        "--stream",
        type=arguments.whole(0),
        metavar="N",
        help="the video track to use, by its stream number in the file (default: the largest of those marked as default)",
    )


def _sampling_arguments(group):
    add = group.add_argument
    add(
        "--max-new-tokens",
        type=arguments.whole(1),
        default=1024,
        metavar="N",
        help="longest answer (default: 1024)",
    )
    add(
        "--temperature",
        type=arguments.number(0, 100),
        metavar="T",
        help="0 always takes the likeliest token",
    )
    add(
        "--top-k",
        type=arguments.whole(0, 2**31),
        metavar="K",
        help="draw among the K likeliest tokens (0: all)",
    )
    add(
        "--top-p",
        type=arguments.number(0, 1),
        metavar="P",
        help="draw among the likeliest that add up to P",
    )
    add(
        "--min-p",
        type=arguments.number(0, 1),
        metavar="P",
        help="drop tokens less likely than P times the likeliest",
    )
    add(
        "--repetition-penalty",
        type=arguments.number(0.01, 100),
        metavar="R",
        help="above 1 discourages repetition",
    )
    add(
        "--seed",
        type=arguments.whole(0, 2**64 - 1),
        default=0,
        help="same seed, same threads: same text (default: 0)",
    )
    add(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the answer before this text; may be given several times",
    )
    add("--system", metavar="TEXT", help="a system message")
    add("--think", action="store_true", help="let the model think before it answers")


def _machine_arguments(group):
    add = group.add_argument
    add(
        "--context",
        type=arguments.whole(1),
        default=8192,
        metavar="N",
        help="tokens of prompt and answer (default: 8192)",
    )
    add(
        "--kv",
        choices=("f32", "bf16", "q8"),
        default="q8",
        help="how the cache is stored (default: q8, int8)",
    )
    add(
        "--vit",
        choices=("file", "fp32"),
        default="file",
        help="how the vision tower computes: in the file's types (default), or in float32, slower",
    )
    add(
        "--load",
        choices=("repack", "mmap"),
        default="repack",
        help="repack: all weights in memory (default); mmap: one layer at a time, where memory matters more than speed, "
        "a pass over the file per token",
    )
    add(
        "--threads",
        type=arguments.whole(1, 1024),
        metavar="N",
        help="default: one per usable physical core",
    )
    add(
        "--device",
        choices=("auto", "cpu", "reference"),
        default="auto",
        help="reference: float32 torch, slow",
    )


def check(args):
    """Refuses arguments that contradict one another. Raises UsageError, MediaError."""
    media = args.media or []
    kinds = {kind for kind, _ in media}
    for name in VIDEO_ONLY if "video" not in kinds else ():
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is about videos, and there is no --video")
    for name in PIXELS if not media else ():
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is about videos and images, and there are none")
    if args.end is not None and args.end <= (args.start or 0):
        raise UsageError(f"--end ({args.end:g} s) must come after --start ({args.start or 0:g} s)")
    if None not in (args.min_pixels, args.max_pixels) and args.min_pixels > args.max_pixels:
        raise UsageError(f"--min-pixels ({args.min_pixels}) is above --max-pixels ({args.max_pixels})")
    if args.quiet and args.verbose:
        raise UsageError("--quiet and --verbose contradict each other")
    if media:
        from ivlite.media.source import is_base64, local_path
    for kind, path in media:  # before the minutes that loading may take
        if not is_base64(path):
            local_path(path, kind)


def question(args):
    """The prompt of the command line, of standard input, or the default for the media there are."""
    if args.prompt == "-":
        text = sys.stdin.read().strip()
        if not text:
            raise UsageError('the prompt is "-", and standard input is empty')
        return text
    if args.prompt is not None:
        if not args.prompt.strip():
            raise UsageError("the prompt is empty: leave it out to ask for a description")
        return args.prompt
    kinds = {kind for kind, _ in args.media or []}
    return ASK["video" if "video" in kinds else "image" if kinds else "text"]


def messages(args):
    """The conversation that the command line describes, as ivlite.Model.chat takes it."""
    content = []
    for kind, path in args.media or []:
        names = (*VIDEO_ONLY, *PIXELS) if kind == "video" else PIXELS
        settings = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        content.append({"type": kind, kind: path, **settings})
    content.append({"type": "text", "text": question(args)})
    system = [{"role": "system", "content": args.system}] if args.system else []
    return [*system, {"role": "user", "content": content}]


def run(args):
    check(args)
    conversation = messages(args)
    _second_interrupt_kills()
    live = sys.stderr.isatty() and not args.verbose
    progress = None if args.quiet or not (live or args.verbose) else Progress(live)
    try:
        return _answer(args, conversation, progress)
    finally:
        if progress:
            progress.clear()


def _second_interrupt_kills():
    """The first Ctrl-C is an exception that ends the answer in order; a second one ends the process at once."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored by whoever started us, or handled by a program that calls main() itself

    def interrupted(number, frame):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)


def _answer(args, conversation, progress):
    import ivlite

    model = ivlite.load(
        args.model,
        device=args.device,
        threads=args.threads,
        context=args.context,
        kv=args.kv,
        vit=args.vit,
        load=args.load,
        progress=progress,
    )
    sampling = {name: getattr(args, name) for name in SAMPLING}
    stream = model.stream(
        conversation,
        max_new_tokens=args.max_new_tokens,
        stop=args.stop,
        enable_thinking=args.think,
        progress=progress,
        **sampling,
    )
    warned = list(stream.reply.warnings)  # what was found when the files were opened is said before the answer
    if progress:
        progress.clear()
    for warning in warned:
        say("warning", warning)
    if args.verbose:
        for line in answer.description(model, stream.prompt):
            say("note", line)
    interrupted = _show(stream, args, progress)
    reply = stream.reply
    if interrupted:
        reply.finish_reason = "interrupted"
    for warning in reply.warnings:
        if warning not in warned:
            say("warning", warning)
    if args.json:
        print(answer.as_json(model, stream.prompt, reply), flush=True)
    if not args.quiet:
        print(answer.closing_line(reply), file=sys.stderr)
    return EXIT_INTERRUPTED if interrupted else 0


def _show(stream, args, progress):
    """Prints the answer as it comes, unless --json; true when Ctrl-C ended it."""
    screen = answer.Screen(sys.stdout, sys.stderr if args.verbose else None)
    try:
        for piece in stream:
            if progress:
                progress.clear()
            if not args.json:
                screen(piece)
    except KeyboardInterrupt:
        if progress:
            progress.clear()
        screen.end()
        return True
    except IvliteError:
        screen.end()
        raise
    screen.end()
    return False
