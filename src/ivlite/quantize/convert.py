"""The conversion: plans every tensor, then reads, quantizes and writes it slice by slice."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ivlite._version import __version__
from ivlite.files import path_text
from ivlite.gguf.writer import GGUFWriter, header, with_checksums
from ivlite.output import unfinished
from ivlite.quantize import encode, golden, recipe_file, recipes, source
from ivlite.quantize.calibration import Calibration
from ivlite.quantize.encode import Plan
from ivlite.quantize.partial import check_output, golden_of_unfinished


@dataclass(frozen=True)
class Settings:
    """The settings of a conversion: the arguments of `ivlite.quantize.quantize`."""

    type: str | None = None
    recipe: str | bytes | Path | None = None
    vision: str | None = None
    tensor_types: tuple[str, ...] = ()
    calibration: str | bytes | Path | None = None
    golden: bool = False
    allow_nan: bool = False
    resume: bool = False


@dataclass(frozen=True)
class Summary:
    """The result of a conversion or dry run: path, recipe's name, plans, bytes of the source's weights and of the file.

    resumed: number of tensors that an interrupted conversion had already written. warnings: sentences.
    """

    path: Path
    type: str
    plans: tuple[Plan, ...]
    source_bytes: int
    nbytes: int
    resumed: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def tensors(self):
        return len(self.plans)

    @property
    def parameters(self):
        return sum(p.rows * p.columns for p in self.plans)


def convert(src, out, settings, progress=None):
    """See ivlite.quantize.quantize."""
    out = path_text(out)
    with source.open_source(src) as origin:
        check_output(out, origin, settings)
        work = Work(origin, settings)
        metadata, mark = work.metadata, work.mark()
        if settings.golden:
            known = golden_of_unfinished(out, mark) if settings.resume else {}
            metadata |= known or golden.make(origin, progress, settings.allow_nan)
        encoder = encode.Encoder(origin.weights, work.calibration, settings.allow_nan)
        left = settings.resume and unfinished(out)
        with GGUFWriter(out, metadata, work.tensors, mark, settings.resume) as writer:
            resumed = len(writer.written)
            encode.stream(encoder, work.plans, writer, progress)
        warnings = [*work.warnings(), *writer.notes]
        if left and not writer.file.resumed:
            warnings.append("the unfinished file was of another source or other settings, so the conversion began anew")
        if encoder.replaced:
            warnings.append(f"{sum(encoder.replaced)} weights that were no numbers became zero")
        return work.summary(out, resumed, warnings)


def dry_run(src, settings):
    """The Summary of a conversion, without converting."""
    with source.open_source(src) as origin:
        work = Work(origin, settings)
        return work.summary("", 0, work.warnings())


class Work:
    """A planned conversion: recipe, plans, calibration, metadata."""

    def __init__(self, origin, settings):
        self.origin, self.settings = origin, settings
        recipe = recipe_file.read(settings.recipe) if settings.recipe else recipes.named(settings.type)
        self.recipe = recipes.adjusted(recipe, settings.tensor_types, settings.vision)
        recipes.check_used(origin.specs, self.recipe.rows[: self.recipe.own])
        choices = recipes.plan(origin.specs, self.recipe)
        self.plans = [_plan(origin.source(choice.spec), choice) for choice in choices]
        self.tensors = [(p.name, p.shape, p.format) for p in self.plans]
        found = Calibration(settings.calibration, origin.specs) if settings.calibration else None
        weighed = [p.name for p in self.plans if self._searches(p)]
        self.calibration = found if found and any(name in found.vectors for name in weighed) else None
        self.unweighed = [name for name in weighed if found and name not in found.vectors]
        self.metadata = origin.config.to_metadata() | {
            "general.alignment": 32,
            "general.file_type": recipes.file_type(recipe, choices),
            "general.quantization_version": 2,
            "ivlite.recipe": recipe_file.text(self.recipe, choices),
            **origin.metadata,
            **(self.calibration.metadata if self.calibration else {}),
        }

    def mark(self):
        """A digest, 32 bytes, of source, plan, calibration and version: a conversion with an equal mark can be resumed."""
        facts = [
            __version__, self.settings.golden, self.settings.allow_nan, self.tensors,
            sorted((key, repr(value)) for key, value in self.metadata.items()),
            self.origin.weights.stamps,
            [(p.source.name, p.source.offset, p.source.format) for p in self.plans],
            self.calibration.checksum if self.calibration else None,
        ]  # fmt: skip
        return hashlib.blake2b(repr(facts).encode(), digest_size=32).digest()

    def summary(self, out, resumed, warnings):
        """The Summary of this conversion to `out`."""
        start, data, _ = header(with_checksums(self.metadata, len(self.tensors)), self.tensors)
        sizes = sum(p.source.nbytes for p in self.plans)
        return Summary(
            Path(out), self.recipe.name, tuple(self.plans), sizes, len(start) + data, resumed, tuple(warnings)
        )

    def warnings(self):
        """Warnings about these settings for this source."""
        yield from self.origin.notes
        twice = Counter(
            p.source.format for p in self.plans if p.source.format != p.format and p.source.format not in encode.BITS
        )
        if twice:
            yield (
                f"{twice.total()} tensors are {', '.join(twice)} already, and what that lost stays lost: "
                "convert the checkpoint itself where you have it"
            )
        if self.settings.calibration and not self.calibration:
            yield (
                f"the calibration has no effect: no layer that it knows is encoded anew in {', '.join(recipes.SEARCHING)}, "
                "the formats whose encoders weigh errors"
            )
        elif self.calibration and self.calibration.model != self.origin.config.name:
            yield (
                f"{self.calibration.path} was made with {self.calibration.model!r:.80} and this model is "
                f"{self.origin.config.name!r:.80}: if they are two models, calibrate this one"
            )
        if self.calibration and self.unweighed:
            yield f"{len(self.unweighed)} layers have no statistics and are encoded unweighted, {self.unweighed[0]} for one"

    def _searches(self, p):
        """Whether importance affects a tensor: a linear layer (not the embedding table) encoded in a format of SEARCHING."""
        table = p.name == "token_embd.weight" and not self.origin.config.text.tie_word_embeddings
        copied = p.source.format == p.format and p.source_columns == p.shape[-1]
        return p.format in recipes.SEARCHING and not table and not copied


def _plan(found, choice):
    shape = choice.spec.shape
    rows = shape[0] if len(shape) == 2 else 1
    return Plan(found, choice.spec.gguf, rows, shape[-1], choice.format, choice.shape, choice.note)
