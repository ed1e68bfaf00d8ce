"""Shared by the commands that run a model over many prompts: arguments, progress, loading."""

import time

from ivlite.cli import arguments, say
from ivlite.cli.progress import UNITS, Progress, display, seconds
from ivlite.errors import ContextError, MediaError, UsageError
from ivlite.stop import checkpoint


def add_arguments(parser, data_help):
    """The arguments about prompts and machine."""
    group = parser.add_argument_group("prompts")
    group.add_argument("--data", type=arguments.path, metavar="DIR|FILE", help=data_help)
    group.add_argument("--limit", type=arguments.whole(1), metavar="N", help="use the first N prompts only")
    arguments.add_shared(group, "--fps", "--max-frames", "--max-pixels")
    group = parser.add_argument_group("machine")
    arguments.add_shared(
        group,
        "--context",
        "--threads",
        "--device",
        context="longest prompt in tokens (default: as many as the memory holds)",
    )
    arguments.add_shared(parser.add_argument_group("output"), "--quiet", "--verbose")


def samples(args):
    """All Samples of --data, of which --limit takes the first. Raises UsageError, MediaError, Stopped."""
    from ivlite.evaluate.dataset import read
    from ivlite.prompt import check_message

    found = read(args.data, lambda sentence: args.quiet or say("note", sentence))
    for sample in found:
        checkpoint()
        for index, message in enumerate(sample.messages):
            try:
                check_message(index, message)
            except UsageError as error:
                raise UsageError(f"{sample.label}: {error}") from None
    return found


def check_outputs(outputs, models, args, samples):
    """Checks before hours of work that outputs can be written and replace no input.

    models: paths or names of models and what else is read besides --data and its samples' media, which count though
    --limit leaves them out. Raises UsageError, DiskError, Stopped.
    """
    from ivlite import output
    from ivlite.gguf.file import located

    media = [source for sample in samples for source in sample.sources()]
    output.check_outputs(outputs, [*map(located, models), args.data, *media])


def load(args, path, progress=None, observe=None):
    """Loads the model at `path` with the arguments. The cache is exact, so that only the weights are measured."""
    import ivlite

    model = ivlite.load(
        path, device=args.device, threads=args.threads, context=args.context, kv="f32", fps=args.fps,
        max_frames=args.max_frames, max_pixels=args.max_pixels, progress=progress, observe=observe,
    )  # fmt: skip
    for remark in model.remarks:
        say("warning", remark)
    model.remarks = []
    return model


class Remarks:
    """remarks(sample, sentence): a warning about a sample, said once however many models see it."""

    def __init__(self):
        self.said = set()

    def __call__(self, sample, sentence):
        warning = f"{sample.label}: {sentence}"
        if warning not in self.said:
            self.said.add(warning)
            say("warning", warning)


class Skipped:
    """with skipped(sample): ... prints a warning for a prompt with unusable media or length, and continues."""

    def __init__(self):
        self.count = 0
        self.last = None

    def __call__(self, sample):
        self.sample = sample
        return self

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, UsageError):  # such as a setting of the line
            raise UsageError(f"{self.sample.label}: {error}") from None
        if not isinstance(error, (MediaError, ContextError)):
            return False
        self.count += 1
        self.last = type(error)(*error.args)  # the error itself would keep model and frames alive
        say("warning", f"{self.sample.label} is left out: {error}")
        return True


def meter(args, verb):
    """A PromptProgress for a terminal, with plain lines for --verbose; None if there is no terminal."""
    return display(args.quiet, args.verbose, PromptProgress, verb=verb)


class PromptProgress(Progress):
    """Progress over the prompts and within the current one, and of loading a model."""

    def __init__(self, live, verb, out=None, clock=time.monotonic, least=0):
        super().__init__(live, out, clock, least)
        self.verb, self.done, self.total, self.begun = verb, 0, 0, None

    def begin(self, done, total):
        """There are `total` prompts, of which `done` were finished in an earlier run."""
        self.done, self.total, self.before, self.begun = done, total, done, self.clock()
        self.stages.clear()

    def finished(self):
        """One prompt more is done."""
        self.done += 1
        self.stages.clear()
        if not self.live:
            print(f"ivlite: {self.line(self.clock())}", file=self.out, flush=True)

    def __call__(self, stage, done, total):
        if self.begun is None or stage == "load":
            return super().__call__(stage, done, total)
        self.stages = {stage: (done, total)}
        now = self.clock()
        if self.live and (self.shown is None or now - self.shown >= self.INTERVAL):
            self.shown, self.visible = now, True
            print(f"\r\x1b[K{self.line(now)}", end="", file=self.out, flush=True)

    def line(self, now):
        if self.begun is None or "load" in self.stages:
            return super().line(now)
        text = f"{self.verb} {self.done:,} of {self.total:,} prompts"
        for stage, (done, total) in self.stages.items():
            text += f" · {stage} {done:,} of {total:,} {UNITS.get(stage, '')}".rstrip()
        new, elapsed = self.done - self.before, now - self.begun
        if new and self.done < self.total:
            text += f" · {seconds(elapsed * (self.total - self.done) / new)} left"
        return text
