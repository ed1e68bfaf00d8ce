"""`ivlite calibrate`: runs prompts through a model and stores the importance of each input channel."""

import argparse
import os
import sys
import time

from ivlite.cli import arguments, printable, prompts, say
from ivlite.errors import EXIT_INTERRUPTED, Stopped, UsageError, sentence

EPILOG = """\
examples:
  ivlite calibrate model-bf16.gguf --data clips -o stats.gguf
  ivlite calibrate model-q8.gguf --data prompts.jsonl --fps 2 -o stats.gguf
  ivlite calibrate model-q8.gguf -o stats.gguf
  ivlite quantize InternVideo3-8B-Instruct -o model.gguf --type q4_k_m --calibration stats.gguf

--data is a folder, whose videos and images are described, or a file of JSON lines, each {"messages": [...]} or
{"video": "clip.mp4", "prompt": "..."}, {"image": ...}, {"prompt": ...}, with paths relative to the file. Without it a
built-in set of texts is used; calibrate on what the model will see. Ctrl-C keeps the prompts that are done (exit code
130); the same command again continues there.
"""

SAVE_EVERY = 60  # seconds of work that a crash may lose


def add_parser(commands):
    parser = commands.add_parser(
        "calibrate",
        help="learn from prompts which weights matter, for quantize",
        description="Runs prompts through a model and stores each channel's importance for every linear layer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=arguments.path, help="a GGUF file, of bf16 or q8_0 best")
    add("-o", "--output", metavar="STATS", type=arguments.path, required=True, help="the file to write, or to continue")
    add("--restart", action="store_true", help="begin anew though STATS exists")
    prompts.add_arguments(parser, "prompts: videos, images, text (default: built-in texts)")


def run(args):
    from ivlite.evaluate.importance import Statistics

    samples = prompts.samples(args)
    prompts.check_outputs([args.output], [args.model], args, samples)
    samples = samples[: args.limit]
    before = Statistics.load(args.output) if os.path.exists(args.output) and not args.restart else None
    progress = prompts.meter(args, "calibrate")
    stats = Statistics("")
    try:
        with prompts.load(args, args.model, progress, observe=lambda names, x: stats.observe(names, x)) as model:
            stats.model = model.config.name
            if before:
                stats = _continued(before, stats, args)
            done = set(stats.prompts)
            todo = [s for s in samples if s.key not in done]
            if progress:
                progress.begin(len(samples) - len(todo), len(samples))
            stopped = _calibrate(model, stats, todo, args.output, progress)
    finally:
        if progress:
            progress.clear()
    if not args.quiet:
        print(printable(_closing(args.output, stats, samples, stopped)), file=sys.stderr)
    return EXIT_INTERRUPTED if stopped else 0


def _continued(before, new, args):
    """The statistics of an earlier run, if they are of this model. Raises UsageError."""
    if before.model != new.model:
        raise UsageError(
            f"{args.output} was made with {before.model!r} and this model is {new.model!r}: "
            "name another file, or give --restart"
        )
    return before


def _calibrate(model, stats, samples, path, progress):
    """Runs the samples and saves what they gave, whatever ends it; the Stopped that did, or None."""
    saved, skipped = time.monotonic(), prompts.Skipped()
    kept = len(stats.prompts)
    try:
        for sample in samples:
            with skipped(sample):
                prompt = model.prepare(sample.messages)
                for _ in model.each_logits(prompt, progress=progress):
                    pass  # the head, too, has inputs
                stats.keep(sample.key, len(prompt.token_ids))
            stats.drop()  # of an unfinished prompt
            if progress:
                progress.finished()
            if time.monotonic() - saved > SAVE_EVERY:
                stats.save(path)
                saved = time.monotonic()
    except Stopped as stopped:
        return stopped
    finally:
        stats.drop()
        if len(stats.prompts) > kept:
            for note in stats.save(path):
                say("warning", note)
    if skipped.count and not stats.prompts:
        raise skipped.last
    return None


def _closing(path, stats, samples, stopped):
    path = sentence(path)
    done = sum(sample.key in set(stats.prompts) for sample in samples)
    if stopped and not stats.prompts:
        return f"{stopped.word} before the first prompt ended; {path} was not written"
    text = f"{path}: {len(stats.rows)} layers over {len(stats.prompts)} prompts, {stats.tokens:,} tokens"
    if done < len(samples):
        text += f"; {len(samples) - done} of the {len(samples)} given are not in it"
    return text + ("; the same command again continues" if stopped else "")
