"""Converts an InternVideo3 checkpoint, or another model file, to one GGUF file: weights, tokenizer, configuration."""

import pathlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # these modules import numpy, which --help does not need
    from ivlite.quantize.check import Report
    from ivlite.quantize.convert import Summary
    from ivlite.stop import Stop

__all__ = ["quantize", "verify"]
Path = str | bytes | pathlib.Path
Progress = Callable[[str, int, int], object]  # stage, done, total


def quantize(
    src: Path, out: Path, type: str = "q4_k_m", *, recipe: Path | None = None, vision: str | None = None,
    tensor_types: str | Iterable[str] = (), calibration: Path | None = None, golden: bool = False, allow_nan: bool = False,
    resume: bool = False, progress: Progress | None = None, stop: "Stop | None" = None,
) -> "Summary":  # fmt: skip
    """Converts `src`, a Hugging Face folder or a model file, to the file `out`; returns a Summary of what was written.

    type: one of ivlite.quantize.recipes.TYPES. recipe: a .toml or .json file instead. vision: the format of the whole
    vision tower. tensor_types: one "REGEX=FORMAT", or several, with precedence over the recipe. calibration: a file of
    `ivlite calibrate`. golden: store reference activations for `verify`. allow_nan: replace weights that are not finite
    by zeros. resume: continue an interrupted conversion of the same source with the same settings; the result is the
    same byte for byte. progress(stage, done, total): stages "golden" and "convert", in bytes of the source. stop: a Stop
    that ends the conversion.

    The file gets its name only when it is complete; until then an older one is unchanged. After Ctrl-C or a Stop the
    unfinished file stays beside it for `resume`; after an error it is deleted. Memory stays below 1.5 GiB.

    Raises UsageError (settings, an output that is an input), ModelFileError (the source, the statistics), DiskError
    (the output, also where another process is writing it), Stopped.
    """
    from ivlite.quantize.convert import Settings, convert  # imports numpy, which --help does not need
    from ivlite.quantize.recipes import listed_types
    from ivlite.stop import using, within

    settings = Settings(type, recipe, vision, listed_types(tensor_types), calibration, golden, allow_nan, resume)
    with using(within(stop)):
        return convert(src, out, settings, progress)


def verify(
    path: Path, threads: int | None = None, progress: Progress | None = None, *, stop: "Stop | None" = None
) -> "Report":
    """Checks a model file against its checksums and golden values; returns a Report.

    threads: None for one per usable physical core. progress(stage, done, total): stages "read" and "golden", in bytes.
    stop: a Stop that ends the work. Raises ModelFileError for a file that cannot be read or holds nothing to check it
    against, and Stopped.
    """
    from ivlite.quantize.check import check
    from ivlite.stop import using, within

    with using(within(stop)):
        return check(path, threads, progress)
