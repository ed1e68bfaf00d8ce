"""`ivlite plan`: what a question about videos costs (frames, tokens, memory, time), before it is asked."""

import argparse
import re

from ivlite.cli import arguments, json_line, say
from ivlite.cli.progress import seconds
from ivlite.errors import ContextError, OutOfMemoryError, shown
from ivlite.numbers import whole

EPILOG = """\
examples:
  ivlite plan model.gguf --video talk.mp4
  ivlite plan model.gguf --video talk.mp4 --budget 64k
  ivlite plan model.gguf --video talk.mp4 --max-wait 2m --memory 8G     # as much as fits both
  ivlite plan model.gguf --video talk.mp4 --fps 1 --json | python -m json.tool

Neither loads the model nor decodes the video: it reads the file's header and the container's index, and decodes a moment.
The speed of this machine is measured with a few layers of the model, once, and corrected by every real run.
What is stated (--fps, --max-frames) is planned exactly; if it does not fit, the nearest settings that do are listed, and the
exit code is 7 (context, wait) or 5 (memory). What is left open is thinned until it fits.
"""


LIMITED = {  # by Choice.by
    "": "all", "stated": "as stated", "least": "as few as the model file allows",
    "repeats": "the rest repeats or is thinned", "budget": "thinned to the budget",
    "model": "thinned to the model file's max_frames", "context": "thinned to the room there is", "limit": "thinned to the limits",
}  # fmt: skip


def add_parser(commands):
    parser = commands.add_parser(
        "plan",
        help="say what a question will cost: frames, tokens, memory, time",
        description="Says what a question about videos and images costs on this machine, before anything is computed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    add("prompt", metavar="PROMPT", nargs="?", help="the question (default: describe)")
    arguments.add_media(parser.add_argument_group("media, in the order given"))
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-wait", type=arguments.duration, metavar="TIME",
                        help="longest wait for the first token, as 90, 2m or 1:30")  # fmt: skip
    limits.add_argument("--memory", type=size, metavar="SIZE", help="most memory of the process, as 8G")
    limits.add_argument("--max-new-tokens", type=arguments.whole(1), default=1024, metavar="N",
                        help="longest answer (default: 1024)")  # fmt: skip
    limits.add_argument("--system", metavar="TEXT", help="a system message")
    limits.add_argument("--think", action="store_true", help="let the model think before it answers")
    arguments.add_machine(parser.add_argument_group("machine"))
    arguments.add_shared(parser.add_argument_group("output"), "--json", "--quiet", "--verbose")


def size(text):
    """An argparse type: a number of bytes, "8G", "800M"; returns bytes."""
    plain = re.fullmatch(r"(\d+|\d*\.\d+)([kKmMgGtT]?)[bB]?", text)
    value = float(plain[1]) * 1000 ** " kmgt".index(plain[2].lower() or " ") if plain else 0
    if not 1 <= value < 1e18:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no size of memory: write 8G or 800M")
    return int(value)


def run(args):
    arguments.check_media(args)
    from ivlite.cli.run import question

    content = [*arguments.media_parts(args), {"type": "text", "text": question(args)}]
    system = [{"role": "system", "content": args.system}] if args.system else []
    messages = [*system, {"role": "user", "content": content}]
    with arguments.called(messages):
        made, planner = planned(args, messages)
    if args.json:
        print(json_line(made.as_data()), flush=True)
    else:
        print("\n".join(lines(made)), flush=True)
    check(made, planner, args.context is not None)
    return 0


def check(made, planner, stated):
    """Raises ContextError or OutOfMemoryError for a Plan of a Planner that does not fit. stated: the context was."""
    if not made.fits:
        error = OutOfMemoryError if "of memory are needed" in made.problem else ContextError
        raise error(f"{made.problem}: {planner.advice(made, stated)}")


def planned(args, messages):
    """(Plan, Planner) of messages for the model file of the command line, whose weights stay on the disk."""
    from ivlite import prompt
    from ivlite.gguf import GGUFFile
    from ivlite.loading import FloatVision, chosen_device, understood
    from ivlite.plan.planner import Planner
    from ivlite.session.store import user_store

    operations, _ = chosen_device(args.device, args.threads, lambda operations: None)
    with GGUFFile(args.model) as source:
        config, _, tokenizer = understood(source)
        weights = FloatVision(source, operations.decode) if args.vit == "fp32" else source
        planner = Planner.of(weights, config, args.kv, operations, args.load, args.vit)
        longest = config.text.context_length
        if args.context is not None:
            planner.context = whole("context", args.context, 1, longest)
        room = planner.room(args.memory) if args.context is None else planner.context
        draft = prompt.draft(messages, tokenizer, config, enable_thinking=args.think)
        store = None if args.no_store else user_store(lambda warning: say("warning", warning))
        keeper = store and store.keeper_of(weights, config, operations, args.kv)
        made = planner.ask(
            draft, args.budget, room, args.max_new_tokens, args.max_wait, args.memory, args.dedupe,
            keeper and keeper.foreseen,
        )  # fmt: skip
        return made, planner


def clock(value):
    """Formats seconds: "0.4 s", "12 s", "4:02"."""
    return f"{value:.1f} s" if value < 9.95 else seconds(value)


def lines(made):
    """The plan as text."""
    from ivlite.machine import gigabytes
    from ivlite.plan import WORTH_SAYING

    for video in made.videos:
        height, width = video.size
        thinned = f" of {video.possible:,} possible" if video.frames < video.possible else ""
        every = f", one every {video.interval:.2f} s" if video.interval else ""
        frames = f"{video.frames:,}{thinned} frame{'s' if thinned or video.frames > 1 else ''}{every}"
        estimated = ", estimated" if video.estimated else ""
        yield f"{video.name}: {frames}, {width}x{height} ({LIMITED[video.by]}{estimated}): {video.tokens:,} tokens"
    held = f", {made.held:,} computed already" if made.held >= WORTH_SAYING else ""
    yield (
        f"{'prompt':<8}{made.prompt_tokens:,} tokens, {made.vision_tokens:,} of vision{held}; "
        f"answer up to {made.max_new_tokens:,}"
    )
    yield (
        f"{'memory':<8}{gigabytes(made.peak_memory)} at most: {gigabytes(made.weight_bytes)} of weights, "
        f"{gigabytes(made.cache_bytes)} of cache"
    )
    if made.seconds is not None:
        stages = ", ".join(f"{s} {clock(t)}" for s, t in made.seconds.items() if s != "generate" and t >= 0.05)
        yield f"{'time':<8}first token after {clock(made.wait)}{f' ({stages})' if stages else ''}"
        yield f"{'':<8}a full answer after another {clock(made.seconds['generate'])}"
    if any(video.by == "limit" for video in made.videos):
        yield f"{'run':<8}with --budget {sum(video.tokens for video in made.videos)} to take these frames"
    for setting in made.nearest:
        wait = "" if setting.wait is None else f", first token after {clock(setting.wait)}"
        yield f"{'or' if made.fits else 'fits':<8}{setting.flag}: {setting.frames:,} frames, {setting.tokens:,} tokens{wait}"
