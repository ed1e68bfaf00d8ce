"""`ivlite eval`: compares models with a reference, on text, images and videos."""

import argparse
import json
import os

from ivlite.cli import arguments, printable, prompts, say
from ivlite.errors import EXIT_INTERRUPTED, Stopped, UsageError, sentence

EPILOG = """\
examples:
  ivlite eval q4.gguf --against bf16.gguf --data clips
  ivlite eval q4.gguf q5.gguf q6.gguf --against bf16.gguf --data held-out.jsonl --report quants.html
  ivlite eval --against bf16.gguf --data clips --save-reference clips.ref
  ivlite eval q4.gguf --against clips.ref --data clips --json

KL is counted over the text of the prompts and over the answer that the reference gives (greedy, --answer-tokens), not
over the tokens of images and videos; "answer KL" is that of the answers alone, the better figure for models that never
learned to write questions. An answer is flipped when the model, greedy too, would have given another one. Perplexity is
that of the prompts' text. --data as for `ivlite calibrate`. Models are loaded one after the other.
"""

COLUMNS = ("prompts", "tokens", "mean KL", "99 % KL", "answer KL", "top-1", "perplexity", "reference", "flips")


def add_parser(commands):
    parser = commands.add_parser(
        "eval",
        help="evaluate model files against a reference",
        description="Measures how far model files are from a reference model, on the same prompts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="*", type=arguments.path, help="GGUF files to evaluate")
    add("--against", metavar="REF", type=arguments.path, required=True,
        help="the reference: a GGUF model, or what --save-reference wrote")  # fmt: skip
    add("--save-reference", metavar="FILE", type=arguments.path,
        help="keep what the reference says, about 2 KB per token, for later runs")  # fmt: skip
    add(
        "--answer-tokens",
        type=arguments.whole(0, 4096),
        default=32,
        metavar="N",
        help="longest answer compared (default: 32)",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--report", metavar="FILE", type=arguments.path, help="draw KL against bits per weight, as .html or .png")
    prompts.add_arguments(parser, "prompts: videos, images, text (default: built-in texts)")


def check(args):
    """Raises UsageError for arguments that cannot work."""
    if not args.models and not args.save_reference:
        raise UsageError("there is nothing to do: give a MODEL, or --save-reference FILE")
    if args.report and os.path.splitext(args.report)[1].lower() not in (".html", ".png"):
        raise UsageError(f"--report {args.report} must end in .html or .png")
    if args.report and not args.models:
        raise UsageError("--report draws models, and there is no MODEL")


def run(args):
    check(args)
    progress = prompts.meter(args, "eval")
    results, interrupted = [], False
    try:
        samples = prompts.samples(args)
        prompts.check_outputs([args.save_reference, args.report], [*args.models, args.against], args, samples)
        samples = samples[: args.limit]
        reference = _reference(args, samples, progress)
        for path in args.models:
            scores, interrupted = _evaluated(args, path, samples, reference, progress)
            if scores:
                results.append({"file": path, "bits_per_weight": _bits(path), "kinds": _kinds(scores)})
            if interrupted:
                break
    except Stopped as stopped:
        say("note", f"{stopped.word} before all was known of {args.against}")
        interrupted = True
    finally:
        if progress:
            progress.clear()
    if args.json:
        print(json.dumps({"reference": args.against, "interrupted": interrupted, "models": results}))
    elif results or not interrupted:
        print(printable("\n".join(_lines(args, results))))
    if args.report and results:
        from ivlite.cli import chart

        chart.write(args.report, args.against, results)
    return EXIT_INTERRUPTED if interrupted else 0


def _reference(args, samples, progress):
    """The stored reference, or a new one of the --against model; saved with --save-reference."""
    from ivlite.evaluate import compare

    reference = compare.Reference.load(args.against)
    if reference is None:
        with prompts.load(args, args.against, progress) as model:  # freed before the next one is loaded
            reference, skipped = compare.Reference(model.config.name), prompts.Skipped()
            if progress:
                progress.verb = "reference"
                progress.begin(0, len(samples))
            for sample in samples:
                with skipped(sample):
                    reference.records[sample.key] = compare.record(model, sample, args.answer_tokens, progress)
                if progress:
                    progress.finished()
        if not reference.records:
            raise skipped.last
        if args.save_reference:
            for note in reference.save(args.save_reference):
                say("warning", note)
    elif args.save_reference:
        raise UsageError(f"{args.against} is a stored reference already: --save-reference needs a model")
    elif missing := sum(s.key not in reference.records for s in samples):
        raise UsageError(f"{args.against} lacks {missing} of the {len(samples)} prompts: it was made with other --data")
    return reference


def _evaluated(args, path, samples, reference, progress):
    """(Scores of one model by kind, whether a Stop cut them short)."""
    from ivlite.evaluate import compare

    scores, skipped = {}, prompts.Skipped()
    todo = [s for s in samples if s.key in reference.records]
    try:
        with prompts.load(args, path, progress) as model:
            if progress:
                progress.verb = "eval"
                progress.begin(0, len(todo))
            for sample in todo:
                with skipped(sample):
                    found = compare.score(model, sample, reference.records[sample.key], progress)
                    scores.setdefault(sample.kind, compare.Scores()).add(found)
                if progress:
                    progress.finished()
    except Stopped as stopped:
        say("note", f"{stopped.word} after {sum(s.prompts for s in scores.values())} of {len(todo)} prompts of {path}")
        return scores, True
    if not scores:
        raise skipped.last
    return scores, False


def _kinds(scores):
    """Summaries per kind, and of all together if there are several kinds."""
    from ivlite.evaluate.compare import Scores
    from ivlite.evaluate.dataset import KINDS

    out = {kind: scores[kind].summary() for kind in KINDS if kind in scores}
    if len(out) > 1:
        total = Scores()
        for found in scores.values():
            total.add(found)
        out["all"] = total.summary()
    return out


def _bits(path):
    """Bits per weight of a model file."""
    import math

    from ivlite.gguf import GGUFFile

    with GGUFFile(path) as file:
        tensors = file.tensors.values()
        return round(8 * sum(t.nbytes for t in tensors) / sum(math.prod(t.shape) for t in tensors), 3)


def _lines(args, results):
    """The table of every model."""
    if not results:
        yield f"{sentence(args.save_reference or args.against)}: the reference is ready"
    for result in results:
        yield f"{sentence(result['file'])}: {result['bits_per_weight']:.2f} bits per weight, against {args.against}"
        yield f"{'':<6}" + "".join(f"{name:>12}" for name in COLUMNS)
        for kind, s in result["kinds"].items():
            values = [
                f"{s['prompts']:,}", f"{s['tokens']:,}", f"{s['mean_kl']:.5f}", f"{s['p99_kl']:.4f}",
                "-" if s["answer_kl"] is None else f"{s['answer_kl']:.5f}", f"{100 * s['top1']:.2f} %",
                _number(s["perplexity"]), _number(s["reference_perplexity"]), f"{s['flips']} of {s['answers']}",
            ]  # fmt: skip
            yield f"{kind:<6}" + "".join(f"{value:>12}" for value in values)


def _number(value):
    return "-" if value is None else f"{value:.3f}" if value < 1e4 else f"{value:.3g}"
