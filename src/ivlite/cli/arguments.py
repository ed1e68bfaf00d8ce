"""Argument types, and a table of the arguments that several commands share."""

import argparse
import contextlib
import re
import sys

from ivlite.errors import UsageError, sentence, shown
from ivlite.files import expanded, opened, reason
from ivlite.numbers import LARGEST

LONGEST_JSON = 1 << 20  # bytes of a schema or a list of tools


def whole(low, high=2**63):
    """An argparse type: a whole number from low to high."""

    def parse(text):
        try:
            value = int(text)
        except ValueError:  # also for more digits than Python reads
            value = None
        if value is None and not re.fullmatch(r"\s*[+-]?\d{1000,}\s*", text):
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number")
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{sentence(text, 40)} is out of range: at least {low}, at most {high}")
        return value

    return parse


def number(low, high=float("inf"), above=False):
    """An argparse type: a finite number from low (or above it) to high."""

    def parse(text):
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
        if not low <= value <= high or (above and value == low) or value == float("inf"):
            limit = f"above {low:g}" if above else f"at least {low:g}"
            limit += f" and at most {high:g}" if high != float("inf") else ""
            raise argparse.ArgumentTypeError(f"{sentence(text, 40)} is out of range: it must be {limit}")
        return value

    return parse


def finite(text):
    """A text as a float of at most LARGEST. Raises ValueError for other texts, NaN, infinity, and numbers of many digits."""
    value = float(text)
    if not abs(value) <= LARGEST:
        raise ValueError
    return value


def tokens(text):
    """An argparse type: a number of tokens, "32768" or "32k" (of 1024)."""
    plain = re.fullmatch(r"(\d+|\d*\.\d+)([kKmM])", text)
    if not plain:
        return whole(1)(text)
    try:
        return whole(1)(str(int(finite(plain[1]) * 1024 ** " km".index(plain[2].lower()))))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{sentence(text, 40)} tokens are more than any model can read") from None


def moment(text):
    """An argparse type: a time as seconds ("90.5"), minutes ("1:30.5") or hours ("0:01:30.5"); returns seconds."""
    parts = text.split(":")
    try:
        values = [finite(p) for p in parts]
        plain = all(p and p.replace(".", "", 1).isdigit() for p in parts)
    except ValueError:
        plain = False
    if not plain or len(parts) > 3 or any(v != int(v) for v in values[:-1]) or any(v >= 60 for v in values[1:]):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a time: write seconds or HH:MM:SS")
    return sum(v * 60**i for i, v in enumerate(reversed(values)))


def duration(text):
    """An argparse type: "90", "90s", "2m", "1.5h" or "1:30"; returns seconds."""
    plain = re.fullmatch(r"(\d+|\d*\.\d+)([smh])", text)
    value = float(plain[1]) * {"s": 1, "m": 60, "h": 3600}[plain[2]] if plain else moment(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no time to wait: write 90, 2m or 1:30")
    return value


def path(text):
    """An argparse type: a path with a leading ~ expanded, as shells do if it is not quoted."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return expanded(text)


def schema(text):
    """An argparse type: a JSON schema, or the path of a file with one; returns a dict."""
    return json_data("the schema", text, dict, "object")


def tools(text):
    """An argparse type: a list of signatures of functions as JSON, or the path of a file with one."""
    return json_data("the list of tools", text, list, "list")


def json_data(what, text, kind, named):
    """JSON data of a kind, of the text itself or of the file that it names."""
    import json

    data = text
    if not text.lstrip().startswith({dict: "{", list: "["}[kind]):
        what += f" {text!r:.200}"
        try:
            with opened(path(text)) as file:
                data = file.read(LONGEST_JSON + 1)
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{what} cannot be read: {reason(error)}") from None
    if len(data) > LONGEST_JSON:
        raise argparse.ArgumentTypeError(f"{what} is longer than {LONGEST_JSON >> 20} MB")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{what} is not JSON ({error!s:.100})") from None
    if not isinstance(found, kind):
        raise argparse.ArgumentTypeError(f"{what} is not a JSON {named}")
    return found


def tool_choice(text):
    """An argparse type: when tools are called, as Model.stream takes it."""
    words = ("auto", "none", "required")
    return text if text in words else {"type": "function", "function": {"name": text}}


class InOrder(argparse.Action):
    """Appends (option name, value) to one list, which keeps the order of --video and --image."""

    def __call__(self, parser, namespace, values, option_string=None):
        items = getattr(namespace, self.dest) or []
        setattr(namespace, self.dest, [*items, (self.option_strings[-1].lstrip("-"), values)])


def cache_kind(text):
    """An argparse type: the name of a cache format, in lower case; bf16 is f16."""
    return {"bf16": "f16"}.get(text.lower(), text.lower())


def device(text):
    """An argparse type: the name of a device."""
    if not re.fullmatch(r"auto|cpu|reference|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: choose from auto, cpu, cuda, cuda:1, reference")
    return text


SHARED = {
    "--fps": {"type": number(0, 1000, above=True), "help": "frames taken per second of video (default: the file's)"},
    "--max-frames": {"type": whole(1), "metavar": "N", "help": "most frames taken from one video"},
    "--max-pixels": {"type": whole(1), "metavar": "N", "help": "most pixels of a frame or an image"},
    "--budget": {"type": tokens, "metavar": "N", "help": "most vision tokens of all videos, as 32k (default: 16k)"},
    "--context": {"type": tokens, "metavar": "N",
                  "help": "most tokens of prompt and answer (default: as many as they need)"},
    "--threads": {"type": whole(1, 1024), "metavar": "N", "help": "default: one per usable physical core"},
    "--kv": {"choices": ("f32", "f16", "q8", "q4"), "type": cache_kind, "default": "q8",
             "help": "how the cache is stored (default: q8, int8; q4 takes half as much memory)"},
    "--device": {"type": device, "default": "auto", "metavar": "D",
                 "help": "auto (default: a GPU that can, else the CPU), cpu, cuda, cuda:1, or reference (float32 torch, slow)"},
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


# ------------------------------------------------------------------------------------------------ run and chat

VIDEO_ONLY = ("fps", "max_frames", "start", "end", "stream")  # settings of a message's video part, named as the flags
PIXELS = ("min_pixels", "max_pixels")
ANY_VIDEO = ("fps", "max_frames", *PIXELS)  # those that a conversation has for all its media
MOST_SEED = 2**64 - 1
SEED = whole(0, MOST_SEED)
MACHINE = (
    ("--vit", ("file", "fp32"),
     "how the vision tower computes: in the file's types (default), or in float32, slower"),
    ("--load", ("repack", "mmap"),
     "repack: all weights in memory (default); mmap: one layer at a time, where memory matters more than speed, a pass "
     "over the file per token"),
)  # fmt: skip
ANSWER = (
    ("--temperature", number(0, 100), "T", "0 always takes the likeliest token"),
    ("--top-k", whole(0, 2**31), "K", "draw among the K likeliest tokens (0: all)"),
    ("--top-p", number(0, 1), "P", "draw among the likeliest that add up to P"),
    ("--min-p", number(0, 1), "P", "drop tokens less likely than P times the likeliest"),
    ("--repetition-penalty", number(0.01, 100), "R", "above 1 discourages repetition"),
)


def add_media(group):
    """Adds --video, --image and their settings to a group of arguments."""
    add = group.add_argument
    for article, kind in (("a", "video"), ("an", "image")):
        add(f"--{kind}", dest="media", type=path, action=InOrder, metavar="FILE",
            help=f"{article} {kind}; may be repeated")  # fmt: skip
    add_media_settings(group)


def add_media_settings(group):
    """Adds the settings of videos and images to a group of arguments."""
    add = group.add_argument
    add_shared(group, "--budget", "--fps", "--max-frames",
               fps="frames taken per second of video, exactly (default: at most 1, as the budget allows)",
               max_frames="most frames taken from one video, instead of the budget")  # fmt: skip
    add("--dedupe", action="store_true", help="leave out frames that show nearly what those before them show")
    add("--min-pixels", type=whole(1), metavar="N", help="fewest pixels of a frame or an image")
    add_shared(group, "--max-pixels", max_pixels="most pixels of a frame (default: 131072) or an image")
    add("--start", type=moment, metavar="TIME", help="where in the video to begin, seconds or HH:MM:SS")
    add("--end", type=moment, metavar="TIME", help="where in the video to stop")
    add(
        "--stream",
        type=whole(0),
        metavar="N",
        help="the video track to use, by its stream number in the file (default: the largest of those marked as default)",
    )


def add_answer(group):
    """Adds the settings of an answer to a group of arguments."""
    add = group.add_argument
    add("--max-new-tokens", type=whole(1), default=1024, metavar="N", help="longest answer (default: 1024)")
    for name, kind, metavar, text in ANSWER:
        add(name, type=kind, metavar=metavar, help=text)
    add("--seed", type=SEED, default=0,
        help="same seed, same threads: same text (default: 0)")  # fmt: skip
    add("--stop", action="append", metavar="TEXT",
        help="end the answer before this text; may be given several times")  # fmt: skip
    add("--schema", type=schema, metavar="FILE|JSON", help="answer with JSON that follows this JSON schema")
    add("--tools", type=tools, metavar="FILE|JSON",
        help="functions that the answer may call: a JSON list of their names, descriptions and parameters")  # fmt: skip
    add("--tool-choice", type=tool_choice, default="auto", metavar="WHEN",
        help="auto, none, required, or the name of the function to call (default: auto)")  # fmt: skip
    add("--system", metavar="TEXT", help="a system message")
    add("--think", action="store_true", help="let the model think before it answers")
    add("--thinking-budget", type=whole(0), metavar="N", help="let it think for N tokens at most")


def add_machine(group):
    """Adds the settings with which a model is loaded to a group of arguments."""
    add_shared(group, "--context", "--kv")
    for name, choices, text in MACHINE:
        group.add_argument(name, choices=choices, default=choices[0], help=text)
    add_shared(group, "--threads", "--device")
    group.add_argument("--no-store", action="store_true",
                       help="keep nothing of videos for later commands, and use nothing that is kept (see `ivlite sessions`)")  # fmt: skip


def given(args, name):
    """Whether a setting is on the command line: 0 is one that is, too."""
    value = getattr(args, name)
    return value is not None and value is not False


def check_media(args, later=()):
    """Raises UsageError for contradictory settings of media, MediaError for media that cannot be found.

    later: the settings that are also for media which are added later.
    """
    media = args.media or []
    kinds = {kind for kind, _ in media}
    for name in (*VIDEO_ONLY, "budget", "dedupe") if "video" not in kinds else ():
        if name not in later and given(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is about videos, and there is no --video")
    for name in PIXELS if not media else ():
        if name not in later and getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is about videos and images, and there are none")
    if args.end is not None and args.end <= (args.start or 0):
        raise UsageError(f"--end ({args.end:g} s) must come after --start ({args.start or 0:g} s)")
    if None not in (args.min_pixels, args.max_pixels) and args.min_pixels > args.max_pixels:
        raise UsageError(f"--min-pixels ({args.min_pixels}) is above --max-pixels ({args.max_pixels})")
    if media:
        from ivlite.media.source import is_base64, local_path
    for kind, path in media:  # before the minutes that loading may take
        if not is_base64(path):
            local_path(path, kind)


def check_answer(args):
    """Raises UsageError for settings of an answer that mean nothing without others."""
    if args.tool_choice not in ("auto", "none") and not args.tools:
        raise UsageError("--tool-choice is about tools, and there are no --tools")


def media_parts(args):
    """The media of the command line as parts of a message, with their settings."""
    return [media_part(args, kind, path, (*VIDEO_ONLY, *PIXELS)) for kind, path in args.media or []]


def media_part(args, kind, path, names):
    """One medium as a part of a message, with those settings of `names` that are given and that its kind has."""
    given = {name: getattr(args, name) for name in names if kind == "video" or name in PIXELS}
    return {"type": kind, kind: path, **{name: value for name, value in given.items() if value is not None}}


WHERE = re.compile(r"message (\d+)(?:, part (\d+))?")


@contextlib.contextmanager
def called(messages):
    """Refusals inside name the file or the question instead of the message and part: nobody has typed messages."""
    try:
        yield
    except UsageError as error:
        raise UsageError(WHERE.sub(lambda found: thing(messages, *found.groups()), str(error), 1)) from error


def thing(messages, message, part):
    """What a part of messages is to the person who gave it: "video clip.mp4", or the question."""
    try:
        content = messages[int(message)]["content"]
        one = content[int(part)] if part else {"type": "text"}
        return "the question" if one["type"] == "text" else f"{one['type']} {str(one[one['type']])[:200]}"
    except (IndexError, KeyError, TypeError):
        return "the question"


def answer_settings(args):
    """The settings of an answer on the command line, as arguments of Model.stream."""
    names = [flag.lstrip("-").replace("-", "_") for flag, *_ in ANSWER]
    names += ["seed", "max_new_tokens", "stop", "budget", "dedupe", "tools", "tool_choice", "thinking_budget"]
    given = {name: getattr(args, name) for name in names}
    wanted = None if args.schema is None else {"type": "json_schema", "schema": args.schema}
    return {**given, "enable_thinking": args.think, "response_format": wanted}


def load(args, progress):
    """Loads the model of the command line."""
    import ivlite

    return ivlite.load(
        args.model, device=args.device, threads=args.threads, context=args.context, kv=args.kv, vit=args.vit,
        load=args.load, store=not args.no_store, progress=progress,
    )  # fmt: skip


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
