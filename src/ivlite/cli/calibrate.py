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

--data is a folder, whose videos and images are described, one of these, or a file of JSON lines, each {"messages": [...]} or
{"video": "clip.mp4", "prompt": "..."}, {"image": ...}, {"prompt": ...}, with paths relative to the file. Without it a
built-in set of texts is used; calibrate on what the model will see. Ctrl-C keeps the prompts that are done (exit code
130); the same command again, without --restart, continues there.
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
    from ivlite.output import Claim

    samples = prompts.samples(args)
    prompts.check_outputs([args.output], [args.model], args, samples)
    samples = samples[: args.limit]
    progress = prompts.meter(args, "calibrate")
    try:
        with Claim(args.output) as claim:  # what another process adds meanwhile would be lost
            for note in claim.notes:
                say("warning", note)
            stats, stopped = _calibrated(args, samples, progress, claim.notes)
    finally:
        if progress:
            progress.clear()
    if not args.quiet:
        print(printable(_closing(args, stats, samples, stopped)), file=sys.stderr)
    return EXIT_INTERRUPTED if stopped else 0


def _calibrated(args, samples, progress, told):
    """(Statistics of the samples and of what was there, the Stopped that ended the work or None). told: notes that were said."""
    from ivlite.evaluate.importance import Statistics

    stats = Statistics.load(args.output) if os.path.exists(args.output) and not args.restart else Statistics("")
    with prompts.load(args, args.model, progress, observe=lambda names, x: stats.observe(names, x)) as model:
        if stats.rows:
            _check_same(stats, model, args)
        stats.model = model.config.name
        done = set(stats.prompts)
        todo = [s for s in samples if s.key not in done]
        if progress:
            progress.begin(len(samples) - len(todo), len(samples))
        return stats, _calibrate(model, stats, todo, args.output, progress, told)


def _check_same(stats, model, args):
    """Raises UsageError where the statistics of an earlier run are those of another model."""
    from ivlite import models
    from ivlite.quantize.calibration import misfit

    name = model.config.name
    wrong = "" if stats.model == name else f"it was made with {stats.model!r:.80} and this model is {name!r:.80}"
    if wrong := wrong or misfit(stats.sums, models.module("internvideo3").tensor_names(model.config)):
        raise UsageError(f"{args.output} is of another model ({wrong}): name another file, or give --restart")


def _calibrate(model, stats, samples, path, progress, told):
    """Runs the samples and saves what they gave, whatever ends it; the Stopped that did, or None."""
    from ivlite.evaluate.compare import remarks

    saved, skipped, remark = time.monotonic(), prompts.Skipped(), prompts.Remarks()
    kept = len(stats.prompts)
    try:
        for sample in samples:
            with skipped(sample):
                prompt = model.prepare(sample.messages)
                for _ in model.each_logits(prompt, progress=progress):
                    pass  # the head, too, has inputs
                stats.keep(sample.key, len(prompt.token_ids))
                for sentence in remarks(prompt):
                    remark(sample, sentence)
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
                if note not in told:
                    say("warning", note)
    if skipped.count and not stats.prompts:
        raise skipped.last
    return None


def _closing(args, stats, samples, stopped):
    path = sentence(args.output)
    done = sum(sample.key in set(stats.prompts) for sample in samples)
    if stopped and not stats.prompts:
        return f"{stopped.word} before the first prompt ended; {path} was not written"
    text = f"{path}: {len(stats.rows)} layers over {len(stats.prompts)} prompts, {stats.tokens:,} tokens"
    if done < len(samples):
        text += f"; {len(samples) - done} of the {len(samples)} given are not in it"
    return text + (
        f"; the same command {'without --restart' if args.restart else 'again'} continues" if stopped else ""
    )
