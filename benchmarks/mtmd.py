"""llama.cpp's vision: a projector of random weights, and its multimodal library over llama-cpp-python's C interface.

The projector is Qwen3-VL-8B's tower in F16, as llama.cpp's users have it; InternVideo3's tower is the same. Two frames of
a video that are marked as mergeable go through it together and become one grid of tokens, as a pair does in ivlite.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from rivals import finish, once, silent

DEPTH, WIDTH, HEADS, INNER, PATCH, MERGE, SIDE, OUT = 27, 1152, 16, 4304, 16, 2, 48, 4096
DEEPSTACK = (8, 16, 24)
MERGED = WIDTH * MERGE**2
FRAME_TOKENS = 128  # of one grid at most: the pixels of ivlite's default for a video's frame


def linear(name, rows, cols):
    yield f"{name}.weight", np.float16, (rows, cols)
    yield f"{name}.bias", np.float32, (rows,)


def norm(name, width):
    yield f"{name}.weight", np.float32, (width,)
    yield f"{name}.bias", np.float32, (width,)


def tensors():
    """(name, type, shape) of every tensor."""
    for part in ("weight", "weight.1"):  # the first frame of a pair, and the second
        yield f"v.patch_embd.{part}", np.float16, (WIDTH, 3, PATCH, PATCH)
    yield "v.patch_embd.bias", np.float32, (WIDTH,)
    yield "v.position_embd.weight", np.float32, (SIDE**2, WIDTH)
    for i in range(DEPTH):
        yield from norm(f"v.blk.{i}.ln1", WIDTH)
        yield from norm(f"v.blk.{i}.ln2", WIDTH)
        yield from linear(f"v.blk.{i}.attn_qkv", 3 * WIDTH, WIDTH)
        yield from linear(f"v.blk.{i}.attn_out", WIDTH, WIDTH)
        yield from linear(f"v.blk.{i}.ffn_up", INNER, WIDTH)
        yield from linear(f"v.blk.{i}.ffn_down", WIDTH, INNER)
    for i in DEEPSTACK:
        yield from norm(f"v.deepstack.{i}.norm", MERGED)
        yield from linear(f"v.deepstack.{i}.fc1", MERGED, MERGED)
        yield from linear(f"v.deepstack.{i}.fc2", OUT, MERGED)
    yield from norm("v.post_ln", WIDTH)
    yield from linear("mm.0", MERGED, MERGED)
    yield from linear("mm.2", OUT, MERGED)


def projector(folder):
    """The path of the projector's file, written the first time."""
    return once(folder, "qwen3vl-mmproj-f16.gguf", write_projector)


def write_projector(path):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "qwen3vl_merger")
    writer.add_bool("clip.use_gelu", True)
    for key, value in (
        ("image_size", SIDE * PATCH), ("patch_size", PATCH), ("embedding_length", WIDTH), ("feed_forward_length", INNER),
        ("block_count", DEPTH), ("projection_dim", OUT), ("attention.head_count", HEADS), ("spatial_merge_size", MERGE),
    ):  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.is_deepstack_layers", [i in DEEPSTACK for i in range(DEPTH)])
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5] * 3)
    for name, kind, shape in tensors():
        writer.add_tensor_info(name, shape, np.dtype(kind), int(np.prod(shape)) * np.dtype(kind).itemsize)
    rng = np.random.default_rng(0)
    finish(writer, (random_tensor(rng, *tensor) for tensor in tensors()))


def random_tensor(rng, name, kind, shape):
    """Normal weights that keep activations near one, a piece of them over and over; norms of one, biases of zero."""
    if len(shape) == 1:
        return np.full(shape, name.endswith("weight"), kind)
    piece = rng.standard_normal(1 << 18, np.float32) / np.prod(shape[1:]) ** 0.5
    return np.resize(piece.astype(kind), shape)


class Mtmd:
    """The library over a projector and a loaded llama.cpp model, of which the vocabulary is enough to encode frames."""

    def __init__(self, path, model, threads, flash=True):
        from llama_cpp import mtmd_cpp

        self.lib = mtmd_cpp
        mtmd_cpp.mtmd_helper_log_set(silent(), ctypes.c_void_p(0))
        params = mtmd_cpp.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.warmup = False, False, False
        params.n_threads, params.image_max_tokens, params.flash_attn_type = threads, FRAME_TOKENS, int(flash)
        self.context = mtmd_cpp.mtmd_init_from_file(path.encode(), model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        # As in LlamaCpp: ivlite must not compute in the thread that does.
        self.thread = ThreadPoolExecutor(1)

    def chunks(self, text, frames):
        """What becomes of a text with a marker per frame, uint8 (height, width, 3): runs of tokens and grids."""
        lib = self.lib
        bitmaps = (ctypes.c_void_p * len(frames))()
        for i, frame in enumerate(frames):
            pixels = np.ascontiguousarray(frame).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            bitmaps[i] = lib.mtmd_bitmap_init(frame.shape[1], frame.shape[0], pixels)
            lib.mtmd_bitmap_set_mergeable(bitmaps[i], True)
        out, data = lib.mtmd_input_chunks_init(), text.encode()
        given = lib.mtmd_input_text(data, len(data), False, True)
        if lib.mtmd_tokenize(self.context, out, ctypes.byref(given), bitmaps, len(frames)):
            raise SystemExit("mtmd_tokenize failed")
        for bitmap in bitmaps:
            lib.mtmd_bitmap_free(bitmap)
        return out

    def grids(self, chunks):
        """The grids among the chunks."""
        every = (self.lib.mtmd_input_chunks_get(chunks, i) for i in range(self.lib.mtmd_input_chunks_size(chunks)))
        return [c for c in every if self.lib.mtmd_input_chunk_get_type(c) == self.lib.MTMD_INPUT_CHUNK_TYPE_IMAGE]

    def tokens(self, chunk):
        return self.lib.mtmd_input_chunk_get_n_tokens(chunk)

    def encode(self, grid):
        """Runs the tower over one grid."""
        if self.thread.submit(self.lib.mtmd_encode_chunk, self.context, grid).result():
            raise SystemExit("mtmd_encode_chunk failed")

    def prefill(self, llama, chunks):
        """Runs the chunks through tower and layers, one after another as llama-mtmd-cli does; returns their tokens."""
        end = ctypes.c_int32(0)
        args = self.context, llama.context, chunks, 0, 0, 512, True, ctypes.byref(end)
        if llama.thread.submit(self.lib.mtmd_helper_eval_chunks, *args).result():
            raise SystemExit("mtmd_helper_eval_chunks failed")
        return self.lib.mtmd_helper_get_n_tokens(chunks)
