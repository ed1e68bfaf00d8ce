"""`ivlite chat`: a conversation with a model about videos and images."""

import argparse
import contextlib
import sys

from ivlite.cli import arguments
from ivlite.cli.progress import capable, display

EPILOG = """\
examples:
  ivlite chat model.gguf --video talk.mp4
  ivlite chat model.gguf --session talk.ivs
  printf 'Who speaks?\\nWhat about?\\n' | ivlite chat model.gguf --video talk.mp4 --quiet

/help lists the commands of the conversation: /video FILE, /undo, /regen, /save FILE and others. Ctrl-C stops the answer and keeps
the conversation; Ctrl-D ends it.

From a pipe every line is a question or a command. Answers go to standard output, everything else to standard error. What cannot
be done is one sentence, and the next line is read; the exit code is that of the last such line. Ctrl-C ends the program.

With --tools, an answer may end with a call, a line of JSON; the next line is what it returns.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "chat",
        help="a conversation about videos and images",
        description="Holds a conversation about videos and images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    add("--session", type=arguments.path, metavar="FILE",
        help="go on with the conversation in FILE, with its kind of cache where --kv is left open, and keep it there after "
             "every answer; made if it is missing")  # fmt: skip
    arguments.add_media(parser.add_argument_group("media of the first question, in the order given"))
    arguments.add_answer(parser.add_argument_group("answers (defaults: the model file's)"))
    arguments.add_machine(parser.add_argument_group("machine"))
    parser.set_defaults(kv=None)  # left open, it is the session's
    arguments.add_shared(
        parser.add_argument_group("output"), "--json", "--quiet", "--verbose",
        json="print every answer as a JSON object in a line of its own, and nothing else on standard output",
        verbose="plain progress lines, what each video became, tracebacks of defects",
    )  # fmt: skip


def run(args):
    arguments.check_media(args, later=(*arguments.ANY_VIDEO, "budget", "dedupe"))
    arguments.check_answer(args)
    lines = entries(args)
    progress = display(args.quiet, args.verbose)
    try:
        from ivlite.cli.chat.conversation import Conversation

        args.kv = args.kv or kind_of(args.session)
        model = arguments.load(args, progress)
        if progress:
            progress.clear()
        with Conversation(args, model, progress, lines.interactive) as conversation:
            return conversation.hold(lines)
    finally:
        if progress:
            progress.clear()


def kind_of(path):
    """The kind of cache of the session file at a path; the usual one for None, a file that is missing or is refused later."""
    from ivlite.errors import SessionFileError
    from ivlite.ops import CACHE_KINDS
    from ivlite.session.file import SessionFile

    kind = None
    if path is not None:
        with contextlib.suppress(SessionFileError), SessionFile.open(path) as file:
            kind = file.table.layout.kind
    return kind if kind in CACHE_KINDS else arguments.SHARED["--kv"]["default"]


def entries(args):
    """Where lines come from: an editor on a terminal that can show one, else standard input as it is."""
    from ivlite.cli.chat.lines import Lines

    lines = Lines()
    if lines.interactive and capable(sys.stdout):
        from ivlite.cli.chat.terminal import Terminal

        return Terminal(remember=not args.no_store)
    return lines
