"""`ivlite eval`: compares models with a reference, on text, images and videos."""

import argparse
import os
from functools import partial

from ivlite.cli import arguments, json_line, printable, prompts, say
from ivlite.errors import EXIT_INTERRUPTED, Stopped, UsageError, sentence
from ivlite.numbers import jsonable

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

ANSWER_TOKENS = 32
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
        metavar="N",
        help=f"longest answer compared (default: {ANSWER_TOKENS}, or those of a stored reference)",
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
    results, interrupted, failure = [], False, None
    try:
        for result, stopped in _evaluations(args, progress):
            results += [result] if result else []
            interrupted = stopped
    except Stopped as stop:
        say("note", f"{stop.word} before all was known of {args.against}")
        interrupted = True
    except Exception as error:  # the hours before it are not lost
        if not results:
            raise
        failure = error
    finally:
        if progress:
            progress.clear()
    if args.json:
        print(json_line(jsonable({"reference": args.against, "interrupted": interrupted, "models": results})))
    elif results or not interrupted:
        print(printable("\n".join(_lines(args, results))))
    if args.report and results:
        from ivlite.cli import chart

        chart.write(args.report, args.against, results)
    if failure:
        raise failure
    return EXIT_INTERRUPTED if interrupted else 0


def _evaluations(args, progress):
    """Yields (the result of a model or None, whether a Stop cut it short) until one does."""
    samples = prompts.samples(args)
    prompts.check_outputs([args.save_reference, args.report], [*args.models, args.against], args, samples)
    samples, remark = samples[: args.limit], prompts.Remarks()
    reference = _reference(args, samples, progress, remark)
    for path in args.models:
        scores, interrupted = _evaluated(args, path, samples, reference, progress, remark)
        result = {"file": path, "bits_per_weight": _bits(path), "kinds": _kinds(scores)} if scores else None
        yield result, interrupted
        if interrupted:
            return


def _reference(args, samples, progress, remark):
    """The stored reference, or a new one of the --against model; saved with --save-reference. All models are checked before."""
    from ivlite.evaluate import compare

    reference = compare.Reference.load(args.against)
    vocabulary = reference.vocabulary if reference else _vocabulary(args.against)
    for path in args.models:
        if (own := _vocabulary(path)) < vocabulary:
            raise UsageError(
                f"{path} has a vocabulary of {own:,} tokens and the reference {args.against} one of {vocabulary:,}: "
                "compare models of one vocabulary"
            )
    if reference:
        _check_stored(args, samples, reference)
        return reference
    if not args.save_reference:
        return _recorded(args, samples, progress, remark)
    from ivlite.output import Claim

    with Claim(args.save_reference):
        reference = _recorded(args, samples, progress, remark)
        _save(args, reference)
    return reference


def _vocabulary(path):
    """The size of a model file's vocabulary, once all but its weights is checked. Raises ModelFileError."""
    from ivlite.gguf import GGUFFile
    from ivlite.loading import understood

    with GGUFFile(path) as file:
        return understood(file)[0].text.vocab_size


def _check_stored(args, samples, reference):
    """Raises UsageError where a stored reference is not what the arguments ask for."""
    if args.save_reference:
        raise UsageError(f"{args.against} is a stored reference already: --save-reference needs a model")
    if args.answer_tokens not in (None, reference.answer_tokens):
        made = f"{args.against} was made with --answer-tokens {reference.answer_tokens}"
        raise UsageError(f"{made}: leave the option out, or make the reference again")
    left = sum(s.key in reference.skipped for s in samples)
    if missing := sum(s.key not in reference.records for s in samples) - left:
        why = "it was made with other --data or --limit, or interrupted"
        raise UsageError(f"{args.against} lacks {missing} of the {len(samples)} prompts: {why}; make it again")
    if left == len(samples):
        raise UsageError(
            f"{args.against} has none of the prompts: they were left out when it was made; give other --data"
        )
    if left:
        say("warning", f"{left} of the {len(samples)} prompts were left out when {args.against} was made")


def _recorded(args, samples, progress, remark):
    """The Reference of the --against model. After a Stop, what is done is kept where --save-reference names a new file."""
    from ivlite.evaluate import compare

    most = ANSWER_TOKENS if args.answer_tokens is None else args.answer_tokens
    with prompts.load(args, args.against, progress) as model:  # freed before the next one is loaded
        reference = compare.Reference(model.config.name, model.config.text.vocab_size, most)
        skipped, done = prompts.Skipped(), 0
        if progress:
            progress.verb = "reference"
            progress.begin(0, len(samples))
        try:
            for sample in samples:
                with skipped(sample):
                    warn = partial(remark, sample)
                    reference.records[sample.key] = compare.record(model, sample, most, progress, warn)
                if sample.key not in reference.records:
                    reference.skipped.append(sample.key)
                done += 1
                if progress:
                    progress.finished()
        except Stopped:
            if args.save_reference and reference.records and not os.path.exists(args.save_reference):
                _save(args, reference)
                first = f"the first {done} of the {len(samples)} prompts"
                say("note", f"{args.save_reference} has {first}: --limit {done} compares these")
            raise
    if not reference.records:
        raise skipped.last
    return reference


def _save(args, reference):
    for note in reference.save(args.save_reference):
        say("warning", note)


def _evaluated(args, path, samples, reference, progress, remark):
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
                    warn = partial(remark, sample)
                    found = compare.score(model, sample, reference.records[sample.key], progress, warn)
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
