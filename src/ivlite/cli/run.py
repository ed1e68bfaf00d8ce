"""`ivlite run`: asks a model about videos and images, and streams its answer."""

import argparse
import os
import select
import sys

from ivlite.cli import answer, arguments
from ivlite.cli.progress import display
from ivlite.engine.reply import Reply
from ivlite.errors import Stopped, UsageError
from ivlite.evaluate.dataset import ASK
from ivlite.stop import checkpoint

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
    arguments.add_media(parser.add_argument_group("media, in the order given"))
    arguments.add_answer(parser.add_argument_group("answer (defaults: the model file's)"))
    arguments.add_machine(parser.add_argument_group("machine"))
    arguments.add_shared(
        parser.add_argument_group("output"), "--json", "--quiet", "--verbose",
        verbose="plain progress lines, what each video became, tracebacks of defects",
    )  # fmt: skip


def check(args):
    """Raises UsageError or MediaError for contradictory arguments and unusable media."""
    arguments.check_media(args)
    arguments.check_answer(args)
    if args.thinking_budget is not None and not args.think:
        raise UsageError("--thinking-budget is about thinking: give --think as well")


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
        raise UsageError(f'the prompt is "-", and standard input {unreadable(error)}') from None
    if len(data) > INPUT_LIMIT:
        raise UsageError(f'the prompt is "-", and standard input has more than {INPUT_LIMIT >> 20} MB')
    if not text:
        raise UsageError('the prompt is "-", and standard input is empty')
    return text


def unreadable(error):
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}): convert it"
    return f"cannot be read: {getattr(error, 'strerror', None) or 'it is closed'}"


def messages(args):
    """The messages for ivlite.Model.chat from the command line."""
    content = [*arguments.media_parts(args), {"type": "text", "text": question(args)}]
    system = [{"role": "system", "content": args.system}] if args.system else []
    return [*system, {"role": "user", "content": content}]


def run(args):
    check(args)
    progress = display(args.quiet, args.verbose)
    model = None
    try:
        checkpoint()  # a signal may have come while modules were imported
        conversation = messages(args)
        model = arguments.load(args, progress)
        return _answer(args, model, conversation, progress)
    except Stopped as stopped:  # before there was a prompt
        if args.json:
            print(answer.as_json(model, None, Reply.empty(stopped.reason)), flush=True)
        raise
    finally:
        if progress:
            progress.clear()


def _answer(args, model, conversation, progress):
    with arguments.called(conversation):
        stream = model.stream(conversation, progress=progress, **arguments.answer_settings(args))
    answer.show(model, stream, args, progress, text=not args.json)
    reply = stream.reply
    if args.json:
        print(answer.as_json(model, stream.prompt, reply), flush=True)
    if not args.quiet:
        print(answer.closing_line(reply, device=model.device), file=sys.stderr)
    return 0
