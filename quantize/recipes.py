"""Which format each tensor gets under each --type. Adding a type is one row of TYPES."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The formats of one --type.

    text: the decoder's linear layers. delicate: what loses most from few bits for the space it saves (the latent
    projections, embeddings, head, vision). floats: tables that are not multiplied as matrices of activations.
    file_type: the number GGUF gives such a file in general.file_type.
    """

    text: str
    delicate: str
    floats: str
    file_type: int
    help: str


TYPES = {
    "f32": Recipe("f32", "f32", "f32", 0, "as exact as the checkpoint, 4 bytes per weight"),
    "f16": Recipe("f16", "f16", "f16", 1, "2 bytes per weight; refuses weights beyond 65504"),
    "bf16": Recipe("bf16", "bf16", "bf16", 32, "the checkpoint's own precision, 2 bytes per weight"),
    "q8_0": Recipe("q8_0", "q8_0", "bf16", 7, "8.5 bits per weight, hardly distinguishable from bf16"),
    "q4_0": Recipe("q4_0", "q8_0", "bf16", 2, "4.5 bits per weight in the decoder, 8.5 elsewhere; the fastest"),
}

DELICATE = ("token_embd.", "output.", "v.")
DELICATE_PARTS = (".attn_kv_a.", ".attn_kv_b.")
MOST_PADDING = 0.02  # of a row: 4304 columns become 4320, and 48 do not become 64
FALLBACKS = ("q8_0", "bf16")  # for rows that a format's blocks do not divide


def plan_tensor(spec, type):
    """Format name and stored shape of a TensorSpec under a --type; the shape's rows are padded to whole blocks."""
    recipe = TYPES[type]
    if spec.kind == "vector":
        return "f32", spec.shape
    if spec.kind == "float_matrix":
        return recipe.floats, spec.shape
    delicate = spec.gguf.startswith(DELICATE) or any(part in spec.gguf for part in DELICATE_PARTS)
    for fmt in (recipe.delicate if delicate else recipe.text, *FALLBACKS):
        columns = _padded(spec.shape[-1], fmt)
        if columns <= spec.shape[-1] * (1 + MOST_PADDING):
            return fmt, (*spec.shape[:-1], columns)
    raise AssertionError(f"bf16 fits every row, and {spec} got nothing")


def _padded(columns, fmt):
    from ivlite.gguf import FORMATS  # here, because --help reads TYPES and must not wait for numpy

    block = FORMATS[fmt].block
    return -(-columns // block) * block
