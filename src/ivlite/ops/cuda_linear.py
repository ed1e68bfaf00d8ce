"""Linear layers on a card: few rows over packed weights, many rows on tensor cores."""

FEW = 16  # rows that kernels of few rows take
COUNTERS = 4096  # of blocks, see `Next`
HEAD_ROWS = 128  # of which rows of a head are a multiple where a product of many rows takes heads
ROUNDED = 64  # columns of rounded activations come in multiples of so many
ACTIVATIONS = {name: i for i, name in enumerate(("none", "gelu_tanh", "gelu_erf", "silu_mul"))}
NORMS = {"none": 0, "rms": 1, "layer": 2}
F32, BF16, HEADS_F32, HEADS_F16 = range(4)  # what a product of many rows writes


class Few:
    """Rows as a product of few rows takes them: int8 with a scale per 32 columns, or the floats that they were, or both."""

    def __init__(self, ops, x, *weights, norm=None, eps=0.0):
        """x (T, cols), or (T, H, cols). norm: (cols,), whose RMS norm comes first. weights: those that will multiply it."""
        memory = ops.memory
        if memory.strides(x)[-1] != 1:
            x = memory.contiguous(x)
        self.tokens, heads, cols = len(x), x.shape[1] if x.ndim == 3 else 1, x.shape[-1]
        self.heads, self.cols = heads, cols
        if norm is not None and any(w.floats for w in weights):
            x, norm = ops.rms_norm(x, norm, eps), None
        self.x = x
        self.ldx, self.ldh = (*memory.strides(x), 0)[:2] if x.ndim == 3 else (memory.strides(x)[0], 0)
        self.codes = None
        if not all(w.floats for w in weights):
            self.codes = memory.empty(memory.kernels.int8_bytes(heads, self.tokens, cols), "uint8")
            scales = 0 if norm is None else memory.pointer(norm)
            ops.launch(
                "quantize", memory.pointer(self.codes), memory.pointer(x), self.ldx, self.ldh, heads, self.tokens, cols,
                scales, eps,
            )  # fmt: skip

    @classmethod
    def of_floats(cls, ops, x):
        """x (T, cols) or (T, H, cols) for float weights."""
        few, strides = cls.__new__(cls), ops.memory.strides(x)
        few.tokens, few.heads, few.cols = len(x), x.shape[1] if x.ndim == 3 else 1, x.shape[-1]
        few.x, few.codes, few.ldx, few.ldh = x, None, strides[0], strides[1] if x.ndim == 3 else 0
        return few

    @classmethod
    def to_come(cls, ops, tokens, heads, cols):
        """Rows for quantized weights, whose codes another launch will write."""
        few = cls.__new__(cls)
        few.tokens, few.heads, few.cols, few.x, few.ldx, few.ldh = tokens, heads, cols, None, 0, 0
        few.codes = ops.memory.empty(ops.memory.kernels.int8_bytes(heads, tokens, cols), "uint8")
        return few

    def args(self, memory):
        codes, x = (0 if a is None else memory.pointer(a) for a in (self.codes, self.x))
        return codes, x, self.ldx, self.ldh, self.tokens


class Next:
    """What a product of few rows makes of its outputs as it ends: rows for the products with `weights`, behind a norm or not.

    few: those rows. args: how the launcher takes it.
    """

    def __init__(self, ops, tokens, outputs, floats, norm=None, eps=0.0):
        pointer, rows = ops.memory.pointer, None
        if floats:
            rows = ops.memory.empty((tokens, outputs))
            self.few = Few.of_floats(ops, rows)
        else:
            self.few = Few.to_come(ops, tokens, 1, outputs)
        codes, rows, norm = (0 if a is None else pointer(a) for a in (self.few.codes, rows, norm))
        self.args = pointer(ops.arrived), codes, rows, norm, eps


class Products:
    """The linear layers of `ivlite.ops.cuda.Ops`."""

    def linear(self, x, w, bias=None, into=None, activation="none"):
        y = self._output(x, w, into, activation)
        if not len(x):
            return y
        if len(x) <= FEW:
            self.few(Few(self, x, w), [(w, y, bias)], activation, into is not None)
        else:
            self._many(self._rounded(x, w), len(x), w, bias, y, into is not None, activation)
        return y

    def mlp(self, x, up, activation, down, into=None):
        if (
            len(x) <= FEW
            or "f32" in (up[0].format, down[0].format)
            or (up[0].format == "f16") != (down[0].format == "f16")
        ):
            return self.linear(self.linear(x, *up, activation=activation), *down, into)
        if down[0].format == "f16":  # halves are scaled by row, which a product cannot do as it writes them
            return self.linear(self.linear(x, *up, activation=activation), *down, into)
        rows = up[0].rows // 2 if activation == "silu_mul" else up[0].rows
        between = self.memory.empty((len(x), 2 * padded(rows)), "uint8")
        self._many(self._rounded(x, up[0]), len(x), *up, between, False, activation, BF16)
        y = self._output(x, down[0], into, "none")
        self._many((self.memory.pointer(between), padded(rows), 0, between), len(x), *down, y, into is not None, "none")
        return y

    def linear_heads(self, x, w):
        tokens, heads, cols = x.shape
        y = self.memory.empty((tokens, heads, w.rows))
        if tokens > FEW and w.rows % HEAD_ROWS == 0 and w.format not in ("f32", "f16"):
            flat, width = x.reshape(tokens * heads, cols), padded(cols)
            at, _, _, kept = self._rounded(flat, w)
            self._many((at, heads * width, 0, kept), tokens, w, None, y, False, "none", head_x=width)
            return y
        for first in range(0, tokens, FEW):
            part = x[first : first + FEW]
            self.few(Few(self, part, w), [(w, y[first : first + FEW], None)])
        return y

    def _output(self, x, w, into, activation):
        rows = w.rows // 2 if activation == "silu_mul" else w.rows
        return self.memory.empty((len(x), rows)) if into is None else into

    def few(self, x, parts, activation="none", accumulate=False, after=None):
        """Products of the same Few with one weight or two: parts (weight, y, bias or None). after: a `Next` of one weight."""
        memory, args = self.memory, []
        for w, y, bias in parts:
            strides = memory.strides(y)
            args += [(*w.args, memory.pointer(y), strides[0], strides[1] if len(strides) == 3 else 0,
                      0 if bias is None else memory.pointer(bias))]  # fmt: skip
        self.launch("few_rows", args, *x.args(memory), ACTIVATIONS[activation], accumulate,
                    None if after is None else after.args)  # fmt: skip

    def after(self, tokens, heads, outputs, *weights, norm=None, eps=0.0):
        """A `Next` for products with these weights of what a product of `heads` leaves, (tokens, outputs) together; None where
        a launch of its own has to make those rows.
        """
        floats = {w.floats for w in weights}
        if tokens > self.memory.kernels.NEXT_ROWS or len(floats) > 1 or outputs % (32 * heads if heads > 1 else 1):
            return None
        if floats == {True} and norm is None or self.memory.kernels.next_runs(outputs) > COUNTERS:
            return None
        return Next(self, tokens, outputs, floats == {True}, norm, eps)

    def _rounded(self, x, w, norm="none", vectors=(None, None), eps=0.0):
        """(address, elements from row to row, address of scales or 0, arrays) of rows as a product of many takes them."""
        memory = self.memory
        at, ld, x = self.rows(x)
        if w.format == "f32":
            return at, ld, 0, x
        width = padded(x.shape[1])
        out = memory.empty((len(x), 2 * width), "uint8")
        scale = memory.empty(len(x)) if w.format == "f16" else None
        scale_at, *norms = (0 if v is None else memory.pointer(v) for v in (scale, *vectors))
        self.launch(
            "round_rows", memory.pointer(out), width, scale_at, at, ld, len(x), x.shape[1], NORMS[norm], *norms, eps
        )
        return memory.pointer(out), width, scale_at, (out, scale)

    def _many(self, x, tokens, w, bias, y, accumulate, activation, kind=F32, heads=None, head_x=0):
        """heads: (values, rows of a head, of which keys) where y takes keys and the other array takes values. head_x: elements
        between the rows of a token's heads, where each head has its own.
        """
        memory = self.memory
        at, ld, scale, _kept = x
        values, head_rows, nope = heads or (None, 0, 0)
        partial = 0 if head_x else memory.kernels.gemm_partial_bytes(w.args[0], w.heads * w.rows, w.cols, tokens)
        work = memory.empty(partial, "uint8") if partial else None
        pointers = [0 if a is None else memory.pointer(a) for a in (y, values, bias, work)]
        ldy = memory.strides(y)[0] // (2 if kind == BF16 else 1)
        self.launch(
            "gemm", *w.args, at, ld, tokens, kind, ACTIVATIONS[activation], accumulate, pointers[0], ldy, pointers[1],
            head_rows, nope, pointers[2], scale, pointers[3], head_x,
        )  # fmt: skip


def padded(cols):
    return -(-cols // ROUNDED) * ROUNDED
