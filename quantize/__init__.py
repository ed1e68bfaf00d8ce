"""Turns a Hugging Face checkpoint of InternVideo3 into one GGUF file: weights, tokenizer and every setting."""

__all__ = ["quantize"]


def quantize(src, out, type="q4_0", progress=None):
    """Converts the checkpoint in folder `src` to the file `out`; returns a Summary of what was written.

    type: one of ivlite.quantize.recipes.TYPES. progress(stage, done, total): stage "convert", in bytes of the
    checkpoint. The file appears under its name only when it is complete; an older one stays as it is until then.
    Memory stays below 1.5 GiB whatever the size.

    Raises UsageError (type, or an output inside the checkpoint), ModelFileError (the checkpoint), DiskError (the
    output).
    """
    from ivlite.quantize.convert import convert  # imports numpy, for which --help does not wait

    return convert(src, out, type, progress)
