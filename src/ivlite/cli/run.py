"""`ivlite run`: asks a model about videos and images, and streams its answer."""

import argparse
import os
import select
import sys

from ivlite.cli import answer, arguments, say
from ivlite.cli.progress import Progress
from ivlite.engine.reply import Reply
from ivlite.errors import Stopped, UsageError
from ivlite.evaluate.dataset import ASK
from ivlite.stop import checkpoint

VIDEO_ONLY = ("fps", "max_frames", "start", "end", "stream")  # settings of a message's video part, named as the flags
PIXELS = ("min_pixels", "max_pixels")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
INPUT_LIMIT = 64 << 20  # bytes of a question

EPILOG = """\
examples:
  ivlite run model.gguf --video clip.mp4
  ivlite run model.gguf --video match.mp4 --start 1:02:00 --end 1:05:00 --fps 2 "Who scores, and when?"
  ivlite run model.gguf --image before.jpg --image after.jpg "What has changed?"
  ivlite run model.gguf --video talk.mp4 --json "List the chapters." | python -m json.tool
  echo "Is it raining?" | ivlite run model.gguf --video street.mp4 -

The answer goes to standard output; progress, warnings and the closing line of figures go to standard error.
Ctrl-C stops the answer and keeps the text so far (exit code 130).
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
    add("model", metavar="MODEL", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    add("prompt", metavar="PROMPT", nargs="?",
        help='the question; "-" reads it from standard input (default: describe)')  # fmt: skip
    _media_arguments(parser.add_argument_group("media, in the order given"))
    _sampling_arguments(parser.add_argument_group("answer (defaults: the model file's)"))
    group = parser.add_argument_group("machine")
    arguments.add_shared(group, "--context", "--kv")
    for name, choices, text in MACHINE:
        group.add_argument(name, choices=choices, default=choices[0], help=text)
    arguments.add_shared(group, "--threads", "--device")
    arguments.add_shared(
        parser.add_argument_group("output"), "--json", "--quiet", "--verbose",
        verbose="plain progress lines, what each video became, tracebacks of defects",
    )  # fmt: skip


MACHINE = (
    ("--vit", ("file", "fp32"),
     "how the vision tower computes: in the file's types (default), or in float32, slower"),
    ("--load", ("repack", "mmap"),
     "repack: all weights in memory (default); mmap: one layer at a time, where memory matters more than speed, a pass "
     "over the file per token"),
)  # fmt: skip
ANSWER = (
    ("--temperature", arguments.number(0, 100), "T", "0 always takes the likeliest token"),
    ("--top-k", arguments.whole(0, 2**31), "K", "draw among the K likeliest tokens (0: all)"),
    ("--top-p", arguments.number(0, 1), "P", "draw among the likeliest that add up to P"),
    ("--min-p", arguments.number(0, 1), "P", "drop tokens less likely than P times the likeliest"),
    ("--repetition-penalty", arguments.number(0.01, 100), "R", "above 1 discourages repetition"),
)


def _media_arguments(group):
    add = group.add_argument
    for article, kind in (("a", "video"), ("an", "image")):
        add(f"--{kind}", dest="media", type=arguments.path, action=arguments.InOrder, metavar="FILE",
            help=f"{article} {kind}; may be repeated")  # fmt: skip
    arguments.add_shared(group, "--fps", "--max-frames", fps="frames taken per second of video (default: 1)")
    add("--min-pixels", type=arguments.whole(1), metavar="N", help="fewest pixels of a frame or an image")
    arguments.add_shared(group, "--max-pixels", max_pixels="most pixels of a frame (default: 131072) or an image")
    add("--start", type=arguments.moment, metavar="TIME", help="where in the video to begin, seconds or HH:MM:SS")
    add("--end", type=arguments.moment, metavar="TIME", help="where in the video to stop")
    add(
        "--stream",
        type=arguments.whole(0),
        metavar="N",
        help="the video track to use, by its stream number in the file (default: the largest of those marked as default)",
    )


def _sampling_arguments(group):
    add = group.add_argument
    add("--max-new-tokens", type=arguments.whole(1), default=1024, metavar="N", help="longest answer (default: 1024)")
    for name, kind, metavar, text in ANSWER:
        add(name, type=kind, metavar=metavar, help=text)
    add("--seed", type=arguments.whole(0, 2**64 - 1), default=0,
        help="same seed, same threads: same text (default: 0)")  # fmt: skip
    add("--stop", action="append", metavar="TEXT",
        help="end the answer before this text; may be given several times")  # fmt: skip
    add("--system", metavar="TEXT", help="a system message")
    add("--think", action="store_true", help="let the model think before it answers")


def check(args):
    """Raises UsageError or MediaError for contradictory arguments and unusable media."""
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
    """The prompt from the command line or standard input, or the default for the given media."""
    if args.prompt == "-":
        return standard_input()
    if args.prompt is not None:
        if not args.prompt.strip():
            raise UsageError("the prompt is empty: leave it out to ask for a description")
        return args.prompt
    kinds = {kind for kind, _ in args.media or []}
    return ASK["video" if "video" in kinds else "image" if kinds else "text"]


def standard_input():
    """The text of standard input. Raises UsageError if there is none, Stopped while waiting for it."""
    data = b""
    try:
        source = sys.stdin.fileno()
        while True:
            while not select.select([source], [], [], 0.1)[0]:
                checkpoint()  # the system goes on waiting after Ctrl-C
            part = os.read(source, 1 << 20)
            data += part
            if not part or len(data) > INPUT_LIMIT:
                break
        text = "" if len(data) > INPUT_LIMIT else data.decode("utf-8-sig").strip()
    except (AttributeError, OSError, ValueError) as error:  # closed, a folder, no UTF-8
        raise UsageError(f'the prompt is "-", and standard input {_unreadable(error)}') from None
    if len(data) > INPUT_LIMIT:
        raise UsageError(f'the prompt is "-", and standard input has more than {INPUT_LIMIT >> 20} MB')
    if not text:
        raise UsageError('the prompt is "-", and standard input is empty')
    return text


def _unreadable(error):
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}): convert it"
    return f"cannot be read: {getattr(error, 'strerror', None) or 'it is closed'}"


def messages(args):
    """The messages for ivlite.Model.chat from the command line."""
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
    live = sys.stderr.isatty() and not args.verbose
    progress = None if args.quiet or not (live or args.verbose) else Progress(live)
    model = None
    try:
        checkpoint()  # a signal may have come while modules were imported
        conversation = messages(args)
        model = _loaded(args, progress)
        return _answer(args, model, conversation, progress)
    except Stopped as stopped:  # before there was a prompt
        if args.json:
            print(answer.as_json(model, None, Reply.empty(stopped.reason)), flush=True)
        raise
    finally:
        if progress:
            progress.clear()


def _loaded(args, progress):
    import ivlite

    return ivlite.load(
        args.model,
        device=args.device,
        threads=args.threads,
        context=args.context,
        kv=args.kv,
        vit=args.vit,
        load=args.load,
        progress=progress,
    )


def _answer(args, model, conversation, progress):
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
    with stream:
        _show(stream, args, progress)
    reply = stream.reply
    for warning in reply.warnings:
        if warning not in warned:
            say("warning", warning)
    if args.json:
        print(answer.as_json(model, stream.prompt, reply), flush=True)
    if not args.quiet:
        print(answer.closing_line(reply), file=sys.stderr)
    return 0


def _show(stream, args, progress):
    """Streams the answer to standard output, unless --json."""
    screen = answer.Screen(sys.stdout, sys.stderr if args.verbose else None)
    try:
        for delta in stream:
            if progress:
                progress.clear()
            if not args.json:
                screen(delta)
    finally:
        if progress:
            progress.clear()
        screen.end()
