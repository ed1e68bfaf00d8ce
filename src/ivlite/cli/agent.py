"""`ivlite agent`: answers a question about videos by looking again where it matters, with evidence."""

import argparse
import contextlib
import re
import sys

from ivlite.cli import arguments, exports, json_line, printable, say
from ivlite.cli.progress import capable, display
from ivlite.errors import UsageError
from ivlite.stop import checkpoint

EPILOG = """\
examples:
  ivlite agent model.gguf --video lecture.mp4 "When is the error on the slide corrected?"
  ivlite agent model.gguf --video a.mp4 --video b.mp4 "In which one does the dog appear first?"
  ivlite agent model.gguf --video match.mp4 --max-wait 10m --report goals.html "Find all goals."
  ivlite agent model.gguf --video talk.mp4 --json "Who speaks last?" | python -m json.tool
  ivlite agent model.gguf --resume                         # goes on with the last run, after a kill
  ivlite agent model.gguf --resume 3f2a "And before that?" # asks more about what was seen

The answer goes to standard output, what it does on the way to standard error. [E3] is a piece of evidence; its times are those of
the frames that were shown. Ctrl-C stops the work and prints what was found (exit code 130).
"""

DIM, PLAIN = "\x1b[2m", "\x1b[0m"

UNTRAINED = "the demo model has not been trained to use these tools: its calls are well formed, and its answers mean nothing yet"


def add_parser(commands):
    parser = commands.add_parser(
        "agent",
        help="answer a question by looking again where it matters",
        description="Answers a question about videos: looks, searches, looks closer, verifies what it says, and cites evidence.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    add("question", metavar="QUESTION", nargs="?", help='the question; "-" reads it from standard input')
    add("--video", action="append", type=arguments.path, metavar="FILE", help="a video; may be repeated")
    group = parser.add_argument_group("what it may take")
    whole = arguments.whole
    group.add_argument("--rounds", type=whole(1, 1000), metavar="N", help="most replies of the model (default: 12)")
    group.add_argument("--frames", type=whole(2), metavar="N",
                       help="most frames that are looked at (default: 1024, or what this machine sees in ten minutes)")  # fmt: skip
    group.add_argument(
        "--max-new-tokens", type=whole(16), metavar="N", help="most new tokens of all replies (default: 8192)"
    )
    group.add_argument(
        "--max-wait", type=arguments.duration, metavar="TIME", help="about how long it may take: 90, 2m or 1:30"
    )
    group.add_argument(
        "--think", type=whole(0, 1 << 20), metavar="N", help="tokens of thought before each call (default: 96)"
    )
    group.add_argument("--no-verify", action="store_true", help="do not verify what it says")
    group.add_argument(
        "--mcp", action="append", metavar="COMMAND", help="use the tools of an MCP server, such as 'server --option'"
    )
    group = parser.add_argument_group("answer")
    group.add_argument("--temperature", type=arguments.number(0, 100), metavar="T", default=0.0,
                       help="0 (default) always takes the likeliest token")  # fmt: skip
    group.add_argument("--seed", type=arguments.SEED, metavar="N", default=0, help="of what is drawn (default: 0)")
    group = parser.add_argument_group("memory")
    group.add_argument("--resume", nargs="?", const="", metavar="RUN", help="go on with a run, by default the last one")
    group.add_argument(
        "--library", type=arguments.path, metavar="FILE", help="what is known of videos (default: the user's)"
    )
    arguments.add_machine(parser.add_argument_group("machine"))
    group = parser.add_argument_group("output")
    exports.add(group)
    arguments.add_shared(group, "--json", "--quiet", "--verbose", quiet="nothing but the answer",
                         verbose="what it does also where standard error is no terminal")  # fmt: skip


def check(args):
    """Raises UsageError or MediaError for contradictory arguments and videos that cannot be found."""
    if args.library is not None and args.no_store:
        raise UsageError("--no-store keeps nothing, and reads nothing of a library: leave --library or --no-store out")
    if args.resume and args.question is None and not re.fullmatch("[0-9a-f]{1,8}", args.resume):
        args.resume, args.question = "", args.resume  # a question where the run may stand
    if args.resume is None and not args.video:
        raise UsageError("there is no video: name one with --video FILE, or go on with a run by --resume")
    if args.resume is None and args.question is None:
        raise UsageError("there is no question: write it after the videos")
    if args.resume is not None:
        if args.video:
            raise UsageError("--resume goes on with the videos of its run: leave --video out")
        if args.no_store:
            raise UsageError("--resume needs what was stored, and --no-store keeps nothing")
    from ivlite.media.source import local_path

    exports.check(args, [local_path(path, "video")[0] for path in args.video or ()], read(args))


def read(args):
    """The files that are read besides videos: no output may replace them."""
    from ivlite.gguf.file import located

    return [located(args.model), args.library]


def run(args):
    check(args)
    from ivlite.cli import videos
    from ivlite.cli.run import question

    asked = None if args.question is None else question(argparse.Namespace(prompt=args.question, media=[]))
    from ivlite.gguf import SHIPPED
    from ivlite.library import Library

    progress = display(args.quiet, args.verbose)
    with Library.in_memory() if args.no_store else videos.open_library(args) as library:
        checkpoint()
        model = arguments.load(args, progress)
        if args.model in SHIPPED and not args.quiet:
            say("warning", UNTRAINED)
        with model, contextlib.ExitStack() as open_:
            extra = [tool for server in servers(args, progress) for tool in open_.enter_context(server).tools]
            agent = open_.enter_context(agent_of(args, model, library, progress, extra))
            if args.resume is not None:  # now it is known of which videos
                exports.check(args, [film.file for film in agent.case.films.values() if film.file], read(args))
            return answered(args, agent, asked, progress)


def servers(args, progress):
    """The servers of --mcp."""
    if not args.mcp:
        return
    from ivlite.agent.servers import Server

    ask = person(args, progress)
    confirm = ask and (lambda sentence: ask(f"{sentence} [y/N]").lower() in ("y", "yes"))
    for command in args.mcp:
        yield Server(command, confirm=confirm, remark=lambda text: say("note", text))


def agent_of(args, model, library, progress, extra):
    """The Agent of the command line."""
    from ivlite.agent import Agent, Budget

    names = {
        "rounds": "rounds",
        "frames": "frames",
        "max_new_tokens": "new_tokens",
        "max_wait": "seconds",
        "think": "thinking",
    }
    budget = Budget(**{name: value for flag, name in names.items() if (value := getattr(args, flag)) is not None})
    more = {"progress": progress, "budget": budget, "ask_user": person(args, progress), "extra": extra}
    if args.resume is not None:
        return Agent.resume(model, library, args.resume or None, **more)
    return Agent(model, args.video, library=library, temperature=args.temperature, seed=args.seed, verify=not args.no_verify,
                 **more)  # fmt: skip


def person(args, progress):
    """A function that asks the person at the terminal; None where nobody is there."""
    if args.json or args.quiet or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question):
        if progress:
            progress.clear()
        print(printable(f"\n{question}\n> "), end="", file=sys.stderr, flush=True)
        return typed()

    return ask


def typed():
    """The next line of the terminal. Raises Stopped: Ctrl-C while nobody types ends the wait."""
    import select

    from ivlite.stop import checkpoint

    while not select.select([sys.stdin], [], [], 0.1)[0]:
        checkpoint()
    return sys.stdin.readline().strip()


def answered(args, agent, asked, progress):
    """Answers what is pending, then what is asked; prints the last answer. Returns the exit code."""
    answer, about = None, asked
    while (pending := agent.pending) is not None:
        about = pending[0]
        answer = worked(args, agent, None, progress)
        if answer.finish_reason not in DONE:
            break
    else:
        if asked is not None and (answer is None or asked != about):
            about, answer = asked, worked(args, agent, asked, progress)
    if answer is None:
        raise UsageError("the run has no question yet: write one")
    if args.json:
        print(json_line(answer.as_dict()), flush=True)
    else:
        from ivlite.agent.export.plain import lines as told

        print(printable("\n".join(told(answer))), flush=True)
        if not args.quiet:
            exports.show(answer)
            print(closing(answer), file=sys.stderr)
    return exports.write(args, answer, about)


DONE = ("finish", "budget", "stalled", "repairs")  # how answers end that nobody stopped


def worked(args, agent, question, progress):
    """The Answer to a question; shows what happens on the way."""
    from ivlite.agent.answer import Answered

    shown = not args.quiet and (args.verbose or sys.stderr.isatty())
    dim, plain = (DIM, PLAIN) if capable(sys.stderr) else ("", "")
    with agent.stream(question) as events:
        for event in events:
            if progress:
                progress.clear()
            if isinstance(event, Answered):
                return event.answer
            for kind, line in lines(event):
                if kind == "warning" and not args.quiet:
                    say("note", line)
                elif shown and kind != "warning":
                    print(f"{dim if kind == 'thought' else ''}{printable(line)}{plain}", file=sys.stderr, flush=True)
    raise AssertionError("a run ends with an answer")


# ------------------------------------------------------------------------------------------------ as text


def lines(event):
    """An event as lines: ("thought", ...), ("call", ...), ("result", ...), ("warning", ...)."""
    from ivlite.agent.answer import Call, Remark, Result, Said, Thought
    from ivlite.agent.export.plain import entry, shortened, verdict

    if isinstance(event, Thought):
        yield "thought", "  " + shortened(event.text, 600)
    elif isinstance(event, Call):
        yield "call", f"> {event.name} {shortened(described(event.arguments), 200)}".rstrip()
    elif isinstance(event, Result):
        for evidence in event.evidence:
            yield "result", f"  {entry(evidence)}"
        if not event.evidence:
            yield "result", f"  {shortened(event.text, 200)}"
    elif isinstance(event, Remark):
        yield "warning", event.text
    elif isinstance(event, Said):
        yield "call", f"= {shortened(event.claim.text, 200)} {verdict(event.claim)}"


def described(arguments):
    """Arguments as a person reads them: times as clocks."""
    from ivlite.numbers import clock

    rest = {name: value for name, value in arguments.items() if name not in ("start", "end", "t", "windows")}
    windows = [w for w in arguments.get("windows") or [arguments] if isinstance(w, dict)]
    parts = []
    for window in windows:
        times = [window[name] for name in ("start", "end", "t") if isinstance(window.get(name), int | float)]
        parts += ["-".join(clock(float(t)) for t in times)] if times else []
    parts += [
        f'"{value}"' if name in ("query", "question", "claim", "text") else str(value) for name, value in rest.items()
    ]
    return " ".join(parts)


def closing(answer):
    """Counts in one line."""
    from ivlite.cli.progress import seconds

    u = answer.usage
    run = f" | run {answer.run}" if answer.run else ""
    return (
        f"[{u['rounds']} rounds, {u['calls']} calls, {u['frames']:,} frames, {u['apart']} looks apart, {u['prompt_tokens']:,} prompt "
        f"tokens, {u['new_tokens']:,} new | {seconds(u['seconds'])}{run}]"
    )
