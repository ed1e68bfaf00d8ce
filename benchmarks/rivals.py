"""The engines that `versus.py` puts beside ivlite: llama.cpp over a written model of random weights, OpenVINO's int4 matmul.

llama.cpp does not run InternVideo3; it gets Qwen3-VL-8B, from which InternVideo3 descends: the same widths with
grouped-query attention in place of the latent one, about 10 % fewer weights. Its vision is in `mtmd.py`.
"""

import ctypes
import functools
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, INNER, VOCAB = 36, 4096, 32, 8, 128, 12288, 151936
# Weights of a block, its bytes, where its 16-bit scales are, and what a scale of one makes of random codes.
BLOCKS = {
    "Q4_0": (32, 18, ((0, 4.6),)),
    "Q4_K": (256, 144, ((0, 36.5 * 8.8), (2, 36.5 * 8.8 / 7.5))),
    "Q6_K": (256, 210, ((208, 18.5 * 73.6),)),
}
FILE_TYPES = ("Q4_0", "Q4_K_M")
STRETCH = 4096  # tokens, a multiple of four
DEEPSTACK, ROPE_SECTIONS = 3, (24, 20, 20, 0)


def random_blocks(rng, name, rows, cols):
    """Random codes under a scale that keeps activations near one; returns uint8 (rows, row bytes)."""
    block, size, scales = BLOCKS[name]
    one = np.frombuffer(rng.bytes(4096 * size), np.uint8).reshape(-1, size).copy()
    for at, rms in scales:
        one[:, at : at + 2] = np.frombuffer(np.float16(1 / (rms * cols**0.5)).tobytes(), np.uint8)
    return np.resize(one, (rows * cols // block, size)).reshape(rows, -1)


def more_bits(layer, layers):
    """The layers whose value and down projections Q4_K_M keeps in 6 bits."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def tensors(file_type, layers):
    """(name, (type, shape)) of every tensor, as llama.cpp's own quantiser chooses types."""
    body = "Q4_0" if file_type == "Q4_0" else "Q4_K"
    yield "token_embd.weight", (body, (VOCAB, WIDTH))
    yield "output.weight", ("Q6_K", (VOCAB, WIDTH))
    yield "output_norm.weight", ("F32", (WIDTH,))
    for i in range(layers):
        better = "Q6_K" if file_type == "Q4_K_M" and more_bits(i, layers) else body
        for name, n in (("attn_norm", WIDTH), ("ffn_norm", WIDTH), ("attn_q_norm", HEAD), ("attn_k_norm", HEAD)):
            yield f"blk.{i}.{name}.weight", ("F32", (n,))
        for name, kind, shape in (
            ("attn_q", body, (HEADS * HEAD, WIDTH)),
            ("attn_k", body, (KV_HEADS * HEAD, WIDTH)),
            ("attn_v", better, (KV_HEADS * HEAD, WIDTH)),
            ("attn_output", body, (WIDTH, HEADS * HEAD)),
            ("ffn_gate", body, (INNER, WIDTH)),
            ("ffn_up", body, (INNER, WIDTH)),
            ("ffn_down", better, (WIDTH, INNER)),
        ):
            yield f"blk.{i}.{name}.weight", (kind, shape)


def written(folder, file_type, layers=LAYERS):
    """The path of the rival's model file, written the first time."""
    name = f"qwen3vl-{file_type.lower()}{'' if layers == LAYERS else f'-{layers}-layers'}.gguf"
    return once(folder, name, write_model, file_type, layers)


def vocabulary_only(folder):
    """The path of a model that is a vocabulary only, which is all that encoding frames needs."""
    return once(folder, "qwen3vl-vocabulary.gguf", lambda path: finish(header(path), ()))


def once(folder, name, write, *args):
    """The path of a file, which `write(path, *args)` writes the first time."""
    path = Path(folder) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(f"{path}.part", *args)
        os.replace(f"{path}.part", path)
    return str(path)


def header(path, layers=LAYERS):
    """A GGUFWriter that knows Qwen3-VL-8B's shape and a vocabulary."""
    import words
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "qwen3vl")
    for add, value in (
        ("block_count", layers), ("context_length", 262144), ("embedding_length", WIDTH), ("feed_forward_length", INNER),
        ("head_count", HEADS), ("head_count_kv", KV_HEADS), ("key_length", HEAD), ("value_length", HEAD),
        ("rope_freq_base", 5e6), ("rope_dimension_sections", ROPE_SECTIONS), ("layer_norm_rms_eps", 1e-6),
        ("num_deepstack_layers", DEEPSTACK), ("vocab_size", VOCAB),
    ):  # fmt: skip
        getattr(writer, f"add_{add}")(value)
    words.add_to(writer, VOCAB)
    return writer


def finish(writer, data):
    """Writes the header, and then the tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in data:
        writer.write_tensor_data(tensor)
    writer.close()


def write_model(path, file_type, layers):
    """A GGUF of Qwen3-VL-8B's text shape, with so many layers, written tensor by tensor."""
    from gguf import GGMLQuantizationType

    writer, rng, all_tensors = header(path, layers), np.random.default_rng(0), dict(tensors(file_type, layers))
    for name, (kind, shape) in all_tensors.items():
        if kind == "F32":
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            row = random_blocks(rng, kind, 1, shape[1]).shape[1]
            stored = (shape[0], row)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), shape[0] * row, GGMLQuantizationType[kind])
    finish(writer, (tensor(rng, name, *about) for name, about in all_tensors.items()))


def tensor(rng, name, kind, shape):
    """The bytes of a tensor. Of the head only the first tokens are ever likely: they are characters, so a server streams texts."""
    if kind == "F32":
        return np.ones(shape, np.float32)
    data = random_blocks(rng, kind, *shape)
    if name == "output.weight":
        data[64:] = 0
    return data


def loaded(path, vocabulary_only=False, extra=True):
    """A model of llama.cpp's, or the vocabulary of one. extra: weights may be packed again for the processor."""
    import llama_cpp

    llama_cpp.llama_log_set(silent(), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only, params.use_extra_bufts = vocabulary_only, extra
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    return model


@functools.cache  # llama.cpp calls it as long as the process lives
def silent():
    """A log that says nothing."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)


# What a user can set, the default first; a cache that is quantised needs flash attention.
LLAMA_AXES = {"extra": (True, False), "flash": (True, False), "ubatch": (512, 256, 128)}


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python, where nothing happens between two tokens.

    extra: use_extra_bufts, weights packed again for the processor. flash: flash attention. ubatch: n_ubatch, tokens that go
    through the layers together.
    """

    name = "llama.cpp"

    def __init__(self, path, threads, context, cache="f16", extra=True, flash=True, ubatch=512):
        import llama_cpp

        self.lib, self.version = llama_cpp, llama_cpp.__version__
        self.model = loaded(path, extra=extra)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, ubatch
        params.n_seq_max, params.kv_unified = 2, True  # one more sequence, for `stretch`
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = {"f16": 1, "q8_0": 8}[cache]
        params.flash_attn_type = int(flash)
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        # A thread of its own: llama.cpp sets up AMX tiles once per thread and expects to find them so, ivlite gives them back.
        self.thread = ThreadPoolExecutor(1)

    def close(self):
        """Gives the memory back."""
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)
        self.thread.shutdown()

    def reset(self, depth=0):
        """Empties the cache, or leaves `depth` synthetic tokens in it."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        if depth:
            self.feed([1, 2, 3, 4])
            self.stretch(depth)

    def stretch(self, depth):
        """Repeats the cache's rows to `depth` tokens through a saved state, which it edits.

        Another sequence takes STRETCH tokens at a time, and the first shares them: a state of all would not fit beside them.
        """
        memory = self.lib.llama_get_memory(self.context)
        state = (ctypes.c_uint8 * self.lib.llama_state_seq_get_size(self.context, 0))()
        if not self.lib.llama_state_seq_get_data(self.context, state, len(state), 0):
            raise SystemExit("llama.cpp does not save its state")
        self.lib.llama_memory_clear(memory, True)
        for first in range(0, depth, STRETCH):
            longer = stretched(bytes(state), min(STRETCH, depth - first), first)
            buffer = (ctypes.c_uint8 * len(longer)).from_buffer_copy(longer)
            if not self.lib.llama_state_seq_set_data(self.context, buffer, len(longer), 1):
                raise SystemExit("llama.cpp does not take the edited state")
            self.lib.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            self.lib.llama_memory_seq_rm(memory, 1, -1, -1)
        if self.lib.llama_memory_seq_pos_max(memory, 0) != depth - 1:
            raise SystemExit("llama.cpp does not hold the stretched sequence")

    def feed(self, tokens):
        """Runs tokens and waits for the logits of the last."""
        self.thread.submit(self._feed, tokens).result()

    def _feed(self, tokens):
        for first in range(0, len(tokens), 512):
            part = (self.lib.llama_token * len(tokens[first : first + 512]))(*tokens[first : first + 512])
            if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(part, len(part))):
                raise SystemExit("llama_decode failed")
        self.lib.llama_get_logits_ith(self.context, -1)[0]

    prefill = feed

    def step(self, token):
        self.feed([token])


def stretched(state, depth, first):
    """A saved sequence of llama.cpp whose cells and rows are repeated up to `depth`, at positions from `first` on.

    The layout that this reads: streams, cells; each cell's position, number of sequences, place in a grid (two
    coordinates and a token) and sequence; whether values are transposed, layers, and twice per layer a type, the bytes of
    a row, and a row per cell.
    """
    at = 0

    def take(form):
        nonlocal at
        values = struct.unpack_from(f"<{form}", state, at)
        at += struct.calcsize(f"<{form}")
        return values

    start = state.index(struct.pack("<II", 1, 4))  # one stream of four cells
    out = [state[:start], struct.pack("<II", 1, depth)]
    at = start + 8
    cells = [take("iIiiii") for _ in range(4)]
    places = range(first, first + depth)
    out += [struct.pack("<iIiiii", place, 1, place, place, *cells[0][4:]) for place in places]
    transposed, layers = take("II")
    if transposed:
        raise SystemExit("llama.cpp keeps values transposed: flash attention is off")
    out.append(struct.pack("<II", transposed, layers))
    for _ in range(2 * layers):
        kind, row = take("iQ")
        rows, at = state[at : at + 4 * row], at + 4 * row
        out += [struct.pack("<iQ", kind, row), rows * (depth // 4)]
    return b"".join([*out, state[at:]])


class Best:
    """llama.cpp at two settings: that of the fastest prefill, and that of the fastest decoding."""

    name = "llama.cpp"

    def __init__(self, path, context, prefill, decode):
        self.first = LlamaCpp(path, context=context, **prefill)
        self.second = self.first if prefill == decode else LlamaCpp(path, context=context, **decode)
        self.version, self.prefill, self.step = self.first.version, self.first.prefill, self.second.step

    def close(self):
        self.first.close()
        if self.second is not self.first:
            self.second.close()

    def reset(self, depth=0):
        for engine in {self.first, self.second}:
            engine.reset(depth)

    def settle(self, tokens):
        """Gives the prompt to the setting that decodes, outside of what is timed."""
        if self.second is not self.first:
            self.second.prefill(tokens)


# The precision of the arithmetic between the int4 weights and the float result is OpenVINO's to choose; f32 is its default
# for f32 models where no matrix unit is there.
OPENVINO_AXES = {
    "dynamic": (32, 0, 128), "group": (32, 128), "hint": ("LATENCY", "THROUGHPUT"), "precision": ("f32", "bf16", "f16"),
    "pinning": (True, False),
}  # fmt: skip


class OpenVino:
    """int4 matrices of OpenVINO, used in turn: 4-bit weights under f16 scales per `group` columns, f32 in and out.

    dynamic: columns of activations that share a scale in 8 bits, 0 for none.
    """

    name = "OpenVINO"

    def __init__(self, rows, cols, threads, count, group, dynamic, hint, precision, pinning):
        import openvino as ov

        rng = np.random.default_rng(0)
        self.version, self.turn = ov.__version__, 0
        # OpenVINO may read codes where they lie, so that each matrix has its own.
        self.codes = [rng.integers(0, 256, rows * cols // 2, np.uint8) for _ in range(count)]
        settings = {
            "INFERENCE_NUM_THREADS": threads, "DYNAMIC_QUANTIZATION_GROUP_SIZE": dynamic, "PERFORMANCE_HINT": hint,
            "INFERENCE_PRECISION_HINT": precision, "ENABLE_CPU_PINNING": pinning, "NUM_STREAMS": 1,
        }  # fmt: skip
        core = ov.Core()
        made = (matrix(codes, rows, cols, group) for codes in self.codes)
        self.requests = [core.compile_model(m, "CPU", settings).create_infer_request() for m in made]

    def __call__(self, x):
        self.turn = (self.turn + 1) % len(self.requests)
        self.requests[self.turn].infer({0: x}, share_inputs=True, share_outputs=True)


def matrix(codes, rows, cols, group):
    """An OpenVINO model: x times one 4-bit matrix."""
    import openvino as ov
    from openvino import opset13 as op

    shape = [rows, cols // group, group]
    weight = op.convert(ov.op.Constant(ov.Tensor(codes, shape, ov.Type.u4)), np.float16)
    weight = op.subtract(weight, op.convert(op.constant(np.array([[[8]]], np.uint8)), np.float16))
    scale = np.full((*shape[:2], 1), 1 / (4.6 * cols**0.5), np.float16)
    weight = op.reshape(op.multiply(weight, op.constant(scale)), [rows, cols], False)
    x = op.parameter([-1, cols], np.float32)
    return ov.Model([op.matmul(x, op.convert(weight, np.float32), False, True)], [x])
