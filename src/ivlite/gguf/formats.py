"""The tensor formats of ggml, and the description of one tensor in a file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A ggml format: its type id, weights per block, bytes per block, and whether ivlite computes with it."""

    ggml_type: int
    block: int
    block_bytes: int
    runs: bool = False


# All types of ggml, so that any file can be inspected.
FORMATS = {
    "f32": Format(0, 1, 4, runs=True),
    "f16": Format(1, 1, 2, runs=True),
    "q4_0": Format(2, 32, 18, runs=True),
    "q4_1": Format(3, 32, 20),
    "q5_0": Format(6, 32, 22),
    "q5_1": Format(7, 32, 24),
    "q8_0": Format(8, 32, 34, runs=True),
    "q8_1": Format(9, 32, 36),
    "q2_k": Format(10, 256, 84),
    "q3_k": Format(11, 256, 110),
    "q4_k": Format(12, 256, 144, runs=True),
    "q5_k": Format(13, 256, 176, runs=True),
    "q6_k": Format(14, 256, 210, runs=True),
    "q8_k": Format(15, 256, 292),
    "iq2_xxs": Format(16, 256, 66),
    "iq2_xs": Format(17, 256, 74),
    "iq3_xxs": Format(18, 256, 98),
    "iq1_s": Format(19, 256, 50),
    "iq4_nl": Format(20, 32, 18),
    "iq3_s": Format(21, 256, 110),
    "iq2_s": Format(22, 256, 82),
    "iq4_xs": Format(23, 256, 136),
    "i8": Format(24, 1, 1),
    "i16": Format(25, 1, 2),
    "i32": Format(26, 1, 4),
    "i64": Format(27, 1, 8),
    "f64": Format(28, 1, 8),
    "iq1_m": Format(29, 256, 56),
    "bf16": Format(30, 1, 2, runs=True),
    "tq1_0": Format(34, 256, 54),
    "tq2_0": Format(35, 256, 66),
    "mxfp4": Format(39, 32, 17),
    "nvfp4": Format(40, 64, 36),
    "q1_0": Format(41, 128, 18),
}
RETIRED = (4, 5, 31, 32, 33, 36, 37, 38)  # type ids that ggml has given up; it never uses one again
BY_TYPE = {f.ggml_type: name for name, f in FORMATS.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: row-major shape (the last dimension is the row), a name in FORMATS, offset and size in bytes."""

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int

    @property
    def block(self):
        """Weights per block of its format; divides the row length."""
        return FORMATS[self.format].block

    @property
    def runs(self):
        """Whether ivlite computes with its format."""
        return FORMATS[self.format].runs
