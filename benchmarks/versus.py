"""ivlite beside llama.cpp: an 8B model of random 4-bit weights in each, prefill and decode in turn, in one process.

    pip install . && CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf
    python benchmarks/versus.py                    # about 16 GB of memory and 5 GB of disk

ivlite runs InternVideo3-8B's shape, llama.cpp that of Qwen3-8B, from which InternVideo3 descends: the same widths with
grouped-query attention in place of the latent one, 10 % fewer weights per layer. llama.cpp does not run InternVideo3.
Types are those of each side's own q4_0 recipe. The order alternates, so that a machine that slows down harms both.
"""

import argparse
import ctypes
import os
import statistics
import time
from pathlib import Path

import numpy as np

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, INNER, VOCAB = 36, 4096, 32, 8, 128, 12288, 151936


def random_blocks(rng, name, rows, cols):
    """Random codes with a scale that keeps activations near one; returns uint8 (rows, row bytes)."""
    block, size, scale_at, rms = {"Q4_0": (32, 18, 0, 4.6), "Q6_K": (256, 210, 208, 18.5 * 73.6)}[name]
    one = np.frombuffer(rng.bytes(4096 * size), np.uint8).reshape(-1, size).copy()
    one[:, scale_at : scale_at + 2] = np.frombuffer(np.float16(1 / (rms * cols**0.5)).tobytes(), np.uint8)
    return np.resize(one, (rows * cols // block, size)).reshape(rows, -1)


def write_rival(path):
    """A GGUF of Qwen3-8B's shape without vocabulary, written tensor by tensor."""
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, "qwen3")
    writer.add_block_count(LAYERS)
    writer.add_context_length(40960)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_freq_base(5e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")
    rng, tensors = np.random.default_rng(0), dict(rival_tensors())
    for name, (kind, shape) in tensors.items():
        if kind == "F32":
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
        else:
            data = random_blocks(rng, kind, 1, shape[1])
            writer.add_tensor_info(
                name,
                (shape[0], data.shape[1]),
                np.dtype(np.uint8),
                shape[0] * data.shape[1],
                GGMLQuantizationType[kind],
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for kind, shape in tensors.values():
        writer.write_tensor_data(np.ones(shape, np.float32) if kind == "F32" else random_blocks(rng, kind, *shape))
    writer.close()


def rival_tensors():
    yield "token_embd.weight", ("Q4_0", (VOCAB, WIDTH))
    yield "output.weight", ("Q6_K", (VOCAB, WIDTH))
    yield "output_norm.weight", ("F32", (WIDTH,))
    for i in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{i}.{name}.weight", ("F32", (WIDTH,))
        for name in ("attn_q_norm", "attn_k_norm"):
            yield f"blk.{i}.{name}.weight", ("F32", (HEAD,))
        yield f"blk.{i}.attn_q.weight", ("Q4_0", (HEADS * HEAD, WIDTH))
        yield f"blk.{i}.attn_k.weight", ("Q4_0", (KV_HEADS * HEAD, WIDTH))
        yield f"blk.{i}.attn_v.weight", ("Q4_0", (KV_HEADS * HEAD, WIDTH))
        yield f"blk.{i}.attn_output.weight", ("Q4_0", (WIDTH, HEADS * HEAD))
        yield f"blk.{i}.ffn_gate.weight", ("Q4_0", (INNER, WIDTH))
        yield f"blk.{i}.ffn_up.weight", ("Q4_0", (INNER, WIDTH))
        yield f"blk.{i}.ffn_down.weight", ("Q4_0", (WIDTH, INNER))


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python: its high-level class wants a vocabulary."""

    name = "llama.cpp"

    def __init__(self, path, threads, context):
        import llama_cpp

        self.lib = llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.version = llama_cpp.__version__

    def reset(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def feed(self, tokens):
        """Runs tokens and waits for the logits of the last."""
        for first in range(0, len(tokens), 512):
            part = (self.lib.llama_token * len(tokens[first : first + 512]))(*tokens[first : first + 512])
            if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(part, len(part))):
                raise SystemExit("llama_decode failed")
        self.lib.llama_get_logits_ith(self.context, -1)[0]

    prefill = feed

    def step(self, token):
        self.feed([token])


class Ivlite:
    name = "ivlite"

    def __init__(self, size, threads, context):
        import ivlite
        from ivlite.cli.synthetic import random_model

        self.model = random_model(size, "q4_0", threads=threads, context=context)
        self.version = ivlite.__version__

    def reset(self):
        self.runner = self.model.runner()

    def prefill(self, tokens):
        from ivlite.cli.bench import text_prompt

        self.runner.prefill(text_prompt(tokens))

    def step(self, token):
        self.runner.step(token)


def measure(engine, tokens, new):
    """Tokens per second of one prefill and of `new` decode steps after it."""
    engine.reset()
    time.sleep(0.5)  # worker threads of the other side spin for a while after their last task
    start = time.perf_counter()
    engine.prefill(tokens)
    prefill = len(tokens) / (time.perf_counter() - start)
    start = time.perf_counter()
    for token in tokens[:new]:
        engine.step(token)
    return prefill, new / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--file",
        default="build/rival-q4_0.gguf",
        help="where llama.cpp's model is written and kept",
    )
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="default: one per usable physical core")
    args = parser.parse_args()
    if not os.path.exists(args.file):
        Path(args.file).parent.mkdir(parents=True, exist_ok=True)
        write_rival(args.file + ".part")
        os.replace(args.file + ".part", args.file)
    context = args.prompt + args.new + 8
    ours = Ivlite("8b", args.threads, context)
    engines = [ours, LlamaCpp(args.file, ours.model.threads, context)]
    tokens = np.random.default_rng(1).integers(1000, VOCAB - 1000, args.prompt).tolist()
    for engine in engines:
        measure(engine, tokens[:64], 4)  # pages touched, clocks up
    compare(engines, tokens, args)


def compare(engines, tokens, args):
    """Alternates the engines, prints every round and the median of the rounds' ratios."""
    print(", ".join(f"{e.name} {e.version}" for e in engines) + f", {engines[0].model.threads} threads")
    print(f"{'':<8}" + "".join(f"{e.name + ' prefill':>20}{'decode':>10}" for e in engines) + "   tokens/s")
    ratios = []
    for i in range(args.rounds):
        order = engines if i % 2 == 0 else engines[::-1]
        rates = {e.name: measure(e, tokens, args.new) for e in order}
        print(f"round {i + 1:<2}" + "".join(f"{rates[e.name][0]:>20.2f}{rates[e.name][1]:>10.2f}" for e in engines))
        ratios.append([ours / theirs for ours, theirs in zip(*(rates[e.name] for e in engines), strict=True)])
    prefill, decode = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"{engines[0].name} / {engines[1].name}, median of rounds: prefill {prefill:.2f}, decode {decode:.2f}")


if __name__ == "__main__":
    main()
