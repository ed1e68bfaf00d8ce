"""The command line: parses arguments, runs one command, and turns errors into one sentence and an exit code.

Imports numpy and the model only when a command needs them, so that help and usage errors are immediate.
"""

import argparse
import contextlib
import importlib
import os
import sys

from ivlite._version import __version__
from ivlite.cli.arguments import CommandParser, Parser
from ivlite.errors import EXIT_INTERRUPTED, DiskError, IvliteError, OutOfMemoryError, Stopped, UsageError, sentence
from ivlite.files import WRITING, reason
from ivlite.interrupt import Interrupts
from ivlite.stop import using

# name, module, one line of help; each module has add_parser(subparsers) and run(args) -> exit code
COMMANDS = {
    "run": "ivlite.cli.run",
    "chat": "ivlite.cli.chat",
    "agent": "ivlite.cli.agent",
    "plan": "ivlite.cli.plan",
    "serve": "ivlite.cli.serve",
    "mcp": "ivlite.cli.mcp",
    "batch": "ivlite.cli.batch",
    "clip": "ivlite.cli.clip",
    "index": "ivlite.cli.index",
    "find": "ivlite.cli.find",
    "sessions": "ivlite.cli.sessions",
    "quantize": "ivlite.quantize.cli",
    "calibrate": "ivlite.cli.calibrate",
    "eval": "ivlite.cli.eval",
    "inspect": "ivlite.cli.inspect",
    "verify": "ivlite.cli.verify",
    "doctor": "ivlite.cli.doctor",
    "bench": "ivlite.cli.bench",
}

MEMORY = ("a smaller --context", "a smaller --max-frames", "a smaller --max-pixels", "a machine with more memory")

DESCRIPTION = "Ask InternVideo3 questions about videos and images, on this machine."

EPILOG = """\
examples:
  ivlite quantize InternVideo3-8B-Instruct -o model.gguf
  ivlite run model.gguf --video clip.mp4 "What happens after the goal?"
  ivlite inspect model.gguf
  ivlite doctor

exit codes:
  0 done                    4 an image or video cannot be used
  1 a defect; find: nothing 5 does not fit in memory
  2 wrong usage             6 a file cannot be written
  3 a model or session      7 the prompt is longer than the context
    file cannot be used     8 a GPU failed, or a port is in use
                          130 interrupted (Ctrl-C), 143 by SIGTERM, 129 by SIGHUP
"""


def parser():
    """The whole command line as an argparse parser."""
    top = Parser(
        prog="ivlite",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"ivlite {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    for name in COMMANDS.values():
        importlib.import_module(name).add_parser(commands)
    return top


def printable(text):
    """Escapes control characters, so that file names and metadata cannot control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def json_line(data):
    """JSON text in one line. Names of files that are no text, and what standard output cannot show, are escaped, not lost."""
    import json  # not needed for help

    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(data, allow_nan=False)
    return text


def say(kind, sentence=""):
    """One line on standard error: "ivlite: error: ...", "ivlite: warning: ...", "ivlite: interrupted"."""
    print(printable(f"ivlite: {kind}: {sentence}" if sentence else f"ivlite: {kind}"), file=sys.stderr, flush=True)


def main(argv=None):
    """Runs the command line of `argv` (default: sys.argv) and returns the exit code.

    Ctrl-C, SIGTERM and SIGHUP stop the command cleanly, unless the calling program handles them itself.
    """
    signals = Interrupts()
    try:
        return command(argv, signals)
    finally:
        signals.restore()


def command(argv, signals):
    """Runs the command line of `argv` under the Stop that signals set; returns the exit code."""
    _open_missing_streams()
    with contextlib.redirect_stderr(Aside(sys.stderr)), contextlib.redirect_stdout(Output(sys.stdout)):
        code = _run(argv, signals.stop)
    return signals.exit_code or code  # also where a signal came when there was nothing left to stop


class OutputError(DiskError):
    """Standard output cannot be written: nothing that follows would be seen."""


class Output:
    """Standard output whose failures to write are OutputErrors; a pipe that nobody reads stays a BrokenPipeError."""

    def __init__(self, stream):
        self.stream = stream

    @contextlib.contextmanager
    def failures(self):
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            _drop(sys.stdout)
            raise OutputError(f"cannot write the output: {reason(error, WRITING, 'write elsewhere')}") from None

    def write(self, text):
        with self.failures():
            return self.stream.write(text)

    def flush(self):
        with self.failures():
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


class Aside(Output):
    """Standard error whose failures to write are passed over (a full disk, a closed pipe): the answer goes on."""

    def failures(self):
        return contextlib.suppress(OSError)


def _run(argv, stop):
    for stream in (sys.stdout, sys.stderr):  # a character the terminal lacks must not end an answer
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    args = None
    try:
        args = parser().parse_args(argv)
        if getattr(args, "quiet", False) and getattr(args, "verbose", False):
            raise UsageError("--quiet and --verbose contradict each other")
        with _quiet_pillow(), using(stop):
            code = importlib.import_module(COMMANDS[args.command]).run(args)
        sys.stdout.flush()
        return code or 0
    except SystemExit as end:  # argparse has already printed the help or the sentence
        return end.code or 0
    except BrokenPipeError:
        return _pipe_closed()
    except Stopped as stopped:
        say(stopped.word)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:  # of a program that calls main() and raises it itself
        say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        return failed(error, vars(args) if args else {})


def _open_missing_streams():
    """Replaces closed standard streams, which are None in Python, so that output to them is discarded."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))


@contextlib.contextmanager
def _quiet_pillow():
    """Context manager that silences Pillow's warnings of odd metadata; our own warnings report what matters."""
    import warnings  # not needed for help

    before = list(warnings.filters)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    added = warnings.filters[0]
    try:
        yield
    finally:
        if added not in before and added in warnings.filters:  # a program that calls main() goes on
            warnings.filters.remove(added)


def _drop(stream):
    """After a failed write, redirects a standard stream, so that Python's flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def drop_unwritten():
    """Drops what standard error could not take, before the process exits: Python's own flush would make its exit code 120."""
    try:
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _pipe_closed():
    """The reader closed the pipe: exits without a message."""
    _drop(sys.stdout)
    return 0


def failed(error, options):
    """Prints an error as one sentence; returns its exit code. options: the command's arguments, by their names."""
    if isinstance(error, MemoryError) and not isinstance(error, IvliteError):
        error = OutOfMemoryError("memory ran out", MEMORY)
    if isinstance(error, IvliteError):
        say("error", error.fitted(options))
        return error.exit_code
    if isinstance(error, OSError) and any(error.errno in numbers for numbers, _ in WRITING):
        say("error", f"{f'{error.filename}: ' if error.filename else ''}{reason(error, WRITING)}")
        return DiskError.exit_code
    if options.get("verbose"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, ImportError | AttributeError | TypeError):
        from ivlite.cli.packages import wanting

        if wanted := wanting():  # what is missing in an older version shows anywhere
            say("error", f"{wanted[0]} ({type(error).__name__}: {sentence(error, 200)})")
            return UsageError.exit_code
    more = {True: "", False: "; run it again with --verbose to see where, and report it"}.get(
        options.get("verbose"), "; report it"
    )
    say("error", f"this is a defect of ivlite ({type(error).__name__}: {sentence(error, 300)}){more}")
    return 1
