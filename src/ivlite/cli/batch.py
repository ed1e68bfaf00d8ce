"""`ivlite batch`: many videos, one line of JSON each, in their order; goes on after a kill."""

import argparse
import os
import sys

from ivlite.cli import arguments, json_line, printable, say, videos
from ivlite.cli.progress import Progress, display, seconds
from ivlite.errors import Stopped, UsageError

LIST_LIMIT = 1 << 30  # bytes of a list of inputs
EPILOG = """\
examples:
  ivlite batch model.gguf "videos/*.mp4" --prompt "What happens?" -o out.jsonl
  ivlite batch model.gguf ~/Videos --prompt "List the chapters." --schema chapters.json -o out.jsonl
  ivlite batch model.gguf talks/ --agent --prompt "When is the first question asked?" -o out.jsonl
  ivlite batch model.gguf --inputs questions.jsonl -o out.jsonl   # {"video": F, "prompt": P, "id": NAME} in each line
  find / -name '*.mp4' | ivlite batch model.gguf - --prompt "What happens?" -o out.jsonl
  ivlite batch model.gguf videos/ --engine ray --address 10.0.0.1:6379 -o out.jsonl

Each input is a line of the output, in their order: {"id", "video", "prompt", "text", "usage", ..., "error", "task"}; "error" is null,
or what failed. Run the same command again after a kill or Ctrl-C: it goes on, and finished lines stay. "task" tells what was asked of
which contents: a video that has changed is answered again, and an output with lines of another prompt or model is refused. The same
inputs give the same bytes. Lines survive a kill at once, and a power cut but for those of the last second.

Exit codes: 0 all are answered; otherwise that of the first line that failed (4: its video cannot be used), the others are answered;
6 if the output cannot be written, 8 if there is no Ray cluster, 130 after Ctrl-C.
"""


def add_parser(commands):
    parser = commands.add_parser(
        "batch",
        help="ask about many videos, a line of JSON each",
        usage="%(prog)s MODEL VIDEO ... --prompt TEXT -o OUT [options]",
        description="Asks about many videos and writes one line of JSON each; goes on after a kill.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=arguments.path, help="a GGUF file made by `ivlite quantize`")
    add("videos", metavar="VIDEO", nargs="*", type=arguments.path,
        help='videos, folders, patterns in quotes; "-" reads a list from standard input')  # fmt: skip
    add("--inputs", metavar="FILE", type=arguments.path,
        help="a list: in each line a path, an object, or a request of OpenAI's Batch API")  # fmt: skip
    add("--prompt", metavar="TEXT", help="what is asked of each (default: describe)")
    add("-o", "--output", metavar="OUT", type=arguments.path, required=True, help="the file to write, or to continue")
    group = parser.add_argument_group("who answers")
    add = group.add_argument
    add("--agent", action="store_true", help="the agent: looks again where it matters, and gives evidence")
    add(
        "--rounds",
        type=arguments.whole(1, 1000),
        metavar="N",
        help="of the agent: most replies of the model (default: 12)",
    )
    add(
        "--frames",
        type=arguments.whole(2),
        metavar="N",
        help="of the agent: most frames that are looked at (default: 1024)",
    )
    add("--no-verify", action="store_true", help="of the agent: do not verify what it says")
    add("--parallel", type=arguments.whole(1, 256), metavar="N", help="answers that are computed together (default: 8)")
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="this machine (default: local), or the nodes of a Ray cluster",
    )
    add("--address", metavar="A", help="of the Ray cluster (default: the one that this machine belongs to)")
    arguments.add_media_settings(parser.add_argument_group("videos"))
    arguments.add_answer(parser.add_argument_group("answer (defaults: the model file's)"))
    parser.set_defaults(max_new_tokens=None)
    arguments.add_machine(parser.add_argument_group("machine"))
    arguments.add_shared(
        parser.add_argument_group("output"), "--json", "--quiet", "--verbose",
        json="print one JSON object with the counts on standard output", quiet="nothing but errors",
        verbose="a line for every input, tracebacks of defects",
    )  # fmt: skip


BY_AGENT = ("rounds", "frames", "no_verify")
NOT_BY_AGENT = (
    "budget", "fps", "max_frames", "dedupe", "min_pixels", "max_pixels", "start", "end", "stream", "top_k", "top_p", "min_p",
    "repetition_penalty", "stop", "schema", "tools", "system", "think", "thinking_budget",
)  # fmt: skip
NEW_TOKENS = 1024  # of an answer, as `ivlite run` has it


def check(args):
    """Raises UsageError for contradictory arguments."""
    if not args.videos and args.inputs is None:
        named = (
            "name the model first, then the videos"
            if videos.is_glob(args.model)
            else "name videos, or a list with --inputs FILE"
        )
        raise UsageError(f"there are no inputs: {named}")
    wrong = NOT_BY_AGENT if args.agent else BY_AGENT
    for name in wrong:
        if arguments.given(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} is not for the agent: leave it out"
                if args.agent
                else f"{flag} is about the agent: give --agent, too"
            )
    if args.thinking_budget is not None and not args.think:
        raise UsageError("--thinking-budget is about thinking: give --think as well")
    if args.address is not None and args.engine != "ray":
        raise UsageError("--address is that of a Ray cluster: give --engine ray, too")
    if args.prompt is not None and not args.prompt.strip():
        raise UsageError("the prompt is empty: leave it out to ask for descriptions")
    args.media = None  # videos that are missing are lines of the output
    arguments.check_media(args, later=(*arguments.VIDEO_ONLY, *arguments.PIXELS, "budget", "dedupe"))
    arguments.check_answer(args)


# ------------------------------------------------------------------------------------------------ inputs


def defaults(args):
    """What an input takes that states nothing itself."""
    from ivlite.batch.inputs import Defaults

    if args.agent:
        # what the agent takes by itself depends on the machine's speed, and lines must not
        from ivlite.agent.budget import FRAMES

        budget = {"rounds": args.rounds, "frames": args.frames or FRAMES, "new_tokens": args.max_new_tokens}
        settings = {"temperature": args.temperature or 0.0, "seed": args.seed, "verify": not args.no_verify}
        return Defaults(args.prompt, None, settings, agent={name: n for name, n in budget.items() if n is not None})
    args.max_new_tokens = args.max_new_tokens or NEW_TOKENS
    settings = {
        k: value for k, value in arguments.answer_settings(args).items() if value is not None and value is not False
    }
    part = arguments.media_part(args, "video", "", (*arguments.VIDEO_ONLY, *arguments.PIXELS))
    pixels = {name: part[name] for name in arguments.PIXELS if name in part}
    part = {name: value for name, value in part.items() if name not in ("type", "video")}
    return Defaults(args.prompt, args.system, settings, {"video": part, "image": pixels})


def tasks_of(args):
    """The inputs as Tasks. Raises UsageError, MediaError for a folder or pattern without videos."""
    from ivlite.batch import inputs

    given, here = defaults(args), working_folder()
    inputs.check(given)
    lists = [(word, here) for word in dict.fromkeys(args.videos) if word == "-"]
    if args.inputs is not None:
        lists.append((args.inputs, here if args.inputs == "-" else os.path.dirname(os.path.join(here, args.inputs))))
    if [word for word, _ in lists].count("-") > 1:
        raise UsageError("standard input is named twice")

    def all_of_them():
        yield from inputs.of_paths(named(args.videos), given, here)
        for word, base in lists:
            name = "standard input" if word == "-" else word
            yield from inputs.of_list(listed(word, name), name, given, base)

    found = inputs.checked(all_of_them())
    if not found:
        raise UsageError(f"there are no inputs: {'standard input' if lists[0][0] == '-' else lists[0][0]} is empty")
    if args.prompt is not None and all(task.batch_api for task in found):
        raise UsageError(
            "--prompt plays no part: each input is a request of the Batch API, which asks something itself; leave it out"
        )
    return found


def working_folder():
    """The folder that relative paths start from, "" where it was removed: absolute paths need none."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def named(words):
    """The files that words name, as they name them; each once."""
    found = []
    for word in words:
        if word == "-":
            continue
        if os.path.isdir(word):
            found += [os.path.join(word, os.path.relpath(path, word)) for path in videos.in_folder(word)]
        elif videos.is_glob(word):
            found += videos.matching(word)
        else:
            found.append(word)
    return list(dict.fromkeys(found))


def listed(path, name):
    """The bytes of a list. Raises UsageError, Stopped."""
    from ivlite.files import opened, reason

    if path == "-":
        return standard_input()
    try:
        with opened(path) as file:
            data = file.read(LIST_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"the list {name} cannot be read: {reason(error)}") from None
    return limited(data, name)


def limited(data, name):
    """The bytes of a list. Raises UsageError for too many."""
    if len(data) > LIST_LIMIT:
        raise UsageError(f"the list {name} has more than {LIST_LIMIT >> 30} GB: give it in parts")
    return data


def standard_input():
    """All bytes of standard input. Raises UsageError, Stopped."""
    import select

    from ivlite.cli.run import unreadable
    from ivlite.stop import checkpoint

    parts, size = [], 0
    try:
        source = sys.stdin.fileno()
        while size <= LIST_LIMIT:
            while not select.select([source], [], [], 0.1)[0]:
                checkpoint()  # the system goes on waiting after Ctrl-C
            part = os.read(source, 1 << 20)
            if not part:
                break
            parts.append(part)
            size += len(part)
    except (AttributeError, OSError, ValueError) as error:  # closed, a folder
        raise UsageError(f'the list is "-", and standard input {unreadable(error)}') from None
    return limited(b"".join(parts), "standard input")


# ------------------------------------------------------------------------------------------------ the command


class Going(Progress):
    """Progress of a batch: how many are done, how fast, and the time left."""

    counts = None

    def line(self, now):
        counts = self.counts
        if counts is None:
            return super().line(now)
        text = f"{counts.done:,} of {counts.inputs:,}"
        new, took = counts.answered + counts.failed, counts.seconds
        if counts.failed:
            text += f" · {counts.failed:,} failed"
        if new and took >= 1:
            text += f" · {counts.tokens[1] / took:.1f} tokens/s · {seconds(took / new * (counts.inputs - counts.done))} left"
        return text

    def describe(self, stage):
        done, total = self.stages[stage]
        return f"read again {done:,} of {total:,} videos" if stage == "check" else super().describe(stage)


def run(args):
    check(args)
    from ivlite.batch.journal import Journal
    from ivlite.batch.resume import resumed
    from ivlite.files import cache_folder, keep_digests
    from ivlite.output import check_outputs

    tasks = tasks_of(args)
    machine = machine_of(args)
    keep_digests(cache_folder())  # videos are read once for all commands
    paths = {path for task in tasks for path in task.paths().values()}
    check_outputs([args.output], [machine.settings["path"], args.inputs if args.inputs != "-" else None, *paths])
    progress = display(args.quiet, args.verbose, kind=Going)
    try:
        identity = machine.identity()
        with Journal(args.output) as journal:
            known = resumed(journal, tasks, identity, progress)
            for sentence in remembered(known, journal):
                if not args.quiet:
                    say("note", sentence)
            return answered(args, machine, journal, tasks, known, progress)
    finally:
        if progress:
            progress.clear()


def remembered(known, journal):
    """What is said of an earlier run."""
    if known.kept:
        failures = f", {known.failed:,} of them failures" if known.failed else ""
        yield f"{known.kept:,} {'line stays' if known.kept == 1 else 'lines stay'} as an earlier run left them{failures}"
    for id in map(videos.one_line, known.changed[:8]):
        yield f"{id} has changed since it was answered: it is answered again"
    if len(known.changed) > 8:
        yield f"{len(known.changed) - 8:,} more have changed and are answered again"
    if known.again:
        yield f"{known.again:,} that failed for what may be over (memory, a decoder that died) are tried again"
    yield from journal.notes


def machine_of(args):
    """The Machine of the command line."""
    from ivlite.batch.answering import Machine
    from ivlite.gguf import SHIPPED, located

    path = (
        args.model if args.model in SHIPPED else os.path.normpath(os.path.join(working_folder(), located(args.model)))
    )
    settings = {name: getattr(args, name) for name in ("device", "threads", "context", "kv", "vit", "load")}
    return Machine({"path": path, **settings}, args.parallel)


def answered(args, machine, journal, tasks, known, progress):
    """Answers what is missing; returns the exit code."""
    from ivlite.batch.running import Counts, run

    counts = Counts(len(tasks), known.kept, code=known.code)

    def told(task, line):
        if progress:
            progress.clear()
        name = videos.one_line(task.id)
        if line.error is not None and not args.quiet:
            message = line.error["message"]
            say("failed", message if name in message else f"{name}: {message}")
        elif args.verbose:
            say("done", f"{name} ({counts.done:,} of {counts.inputs:,})")

    try:
        run(journal, tasks, known, engine(args, machine, progress, counts), counts, told)
    except Stopped:
        say("note", f"{counts.done:,} of {counts.inputs:,} are done and kept: the same command goes on")
        raise
    finally:
        if progress:
            progress.clear()
    if args.json:
        print(json_line(as_data(args, counts)), flush=True)
    if not args.quiet:
        print(printable(closing(counts)), file=sys.stderr)
    return counts.exit_code


def engine(args, machine, progress, counts):
    """Who answers: a function of work that yields lines as they come."""

    def tick():
        counts.start()
        if progress and progress.live:
            progress.counts = counts
            progress("inputs", counts.done, counts.inputs)

    if args.engine == "ray":
        from ivlite.batch import cluster

        return lambda work: cluster.answers(machine, work, args.address, lambda text: say("note", text), tick)
    from ivlite.batch import local

    def answers(work):
        with machine.opened(lambda text: say("warning", text), progress) as answerer:
            yield from local.answers(answerer, work, tick)

    return answers


def as_data(args, counts):
    """The counts as plain data."""
    return {
        "output": args.output, "inputs": counts.inputs, "answered": counts.answered, "failed": counts.failed, "kept": counts.kept,
        "prompt_tokens": counts.tokens[0], "new_tokens": counts.tokens[1], "seconds": round(counts.seconds, 3),
        "exit_code": counts.exit_code,
    }  # fmt: skip


def closing(counts):
    """Counts, tokens and speed in one line."""
    from ivlite.cli.answer import span
    from ivlite.machine import gigabytes, peak_memory

    failed = f", {counts.failed:,} failed" if counts.failed else ""
    kept = f", {counts.kept:,} from before" if counts.kept else ""
    took = counts.seconds
    time = seconds(took) if took >= 60 else span(took)
    speed = f"{counts.tokens[1] / took:.2f} tokens/s" if took else ""
    return (
        f"[{counts.answered:,} answered{failed}{kept} | {counts.tokens[0]:,} prompt tokens, {counts.tokens[1]:,} new | "
        f"{time} | {speed} | peak {gigabytes(peak_memory())}]"
    )
