"""Argument types, and a table of the arguments that several commands share."""

import argparse
import sys

from ivlite.errors import sentence
from ivlite.files import expanded


def whole(low, high=2**63):
    """An argparse type: a whole number from low to high."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is out of range: at least {low}, at most {high}")
        return value

    return parse


def number(low, high=float("inf"), above=False):
    """An argparse type: a finite number from low (or above it) to high."""

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high or (above and value == low) or value == float("inf"):
            limit = f"above {low:g}" if above else f"at least {low:g}"
            limit += f" and at most {high:g}" if high != float("inf") else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {limit}")
        return value

    return parse


def moment(text):
    """An argparse type: a time as seconds ("90.5"), minutes ("1:30.5") or hours ("0:01:30.5"); returns seconds."""
    parts = text.split(":")
    try:
        values = [float(p) for p in parts]
        plain = all(p and p.replace(".", "", 1).isdigit() for p in parts)
    except ValueError:
        plain = False
    if not plain or len(parts) > 3 or any(v != int(v) for v in values[:-1]) or any(v >= 60 for v in values[1:]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write seconds or HH:MM:SS")
    return sum(v * 60**i for i, v in enumerate(reversed(values)))


def path(text):
    """An argparse type: a path with a leading ~ expanded, as shells do if it is not quoted."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return expanded(text)


class InOrder(argparse.Action):
    """Appends (option name, value) to one list, which keeps the order of --video and --image."""

    def __call__(self, parser, namespace, values, option_string=None):
        items = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*items, (self.option_strings[-1].lstrip("-"), values)])


def cache_kind(text):
    """An argparse type: the name of a cache format, in lower case; bf16 is f16."""
    return {"bf16": "f16"}.get(text.lower(), text.lower())


SHARED = {
    "--fps": {"type": number(0, 1000, above=True), "help": "frames taken per second of video (default: the file's)"},
    "--max-frames": {"type": whole(1), "metavar": "N", "help": "most frames taken from one video"},
    "--max-pixels": {"type": whole(1), "metavar": "N", "help": "most pixels of a frame or an image"},
    "--context": {"type": whole(1), "default": 8192, "metavar": "N", "help": "tokens of prompt and answer (default: 8192)"},
    "--threads": {"type": whole(1, 1024), "metavar": "N", "help": "default: one per usable physical core"},
    "--kv": {"choices": ("f32", "f16", "q8"), "type": cache_kind, "default": "q8",
             "help": "how the cache is stored (default: q8, int8)"},
    "--device": {"choices": ("auto", "cpu", "reference"), "default": "auto", "help": "reference: float32 torch, slow"},
    "--json": {"action": "store_true", "help": "print one JSON object and nothing else on standard output"},
    "--quiet": {"action": "store_true", "help": "no progress, no closing line"},
    "--verbose": {"action": "store_true", "help": "plain progress lines, tracebacks of defects"},
}  # fmt: skip


def add_shared(parser, *names, **helps):
    """Adds arguments of SHARED to a parser or a group; `helps` replaces help texts, by name without dashes."""
    for name in names:
        more = SHARED[name]
        own = helps.get(name.lstrip("-").replace("-", "_"))
        parser.add_argument(name, **(more | {"help": own} if own else more))


class Parser(argparse.ArgumentParser):
    """Reports usage errors in one line."""

    def error(self, message):
        self.exit(2, f"ivlite: error: {sentence(message, 400)}; see `{self.prog} --help`\n")

    def _print_message(self, message, file=None):
        """Like argparse, but a failure to write the help (a full disk) raises an error."""
        if file is not sys.stdout:
            super()._print_message(message, file)
        elif message:
            file.write(message)
            file.flush()


class CommandParser(Parser):
    """Allows options between positional arguments: `run MODEL --video F PROMPT`."""

    inside = False

    def parse_known_args(self, args=None, namespace=None):
        if self.inside:  # the intermixed parser calls this method again for its two passes
            return super().parse_known_args(args, namespace)
        self.inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.inside = False
