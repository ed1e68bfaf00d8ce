"""The Python API: load a model file, ask it about text, images and videos, look at every stage."""

import math
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from ivlite import models, ops, prompt
from ivlite.engine.reply import Reply, TextFilter
from ivlite.engine.runner import Runner, VisionFeed, too_long
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import ContextError, OutOfMemoryError, UsageError
from ivlite.gguf import GGUFFile
from ivlite.gguf import config as configuration
from ivlite.gguf.loading import Loader, Streaming
from ivlite.gguf.tokenizer import Tokenizer, check_ids
from ivlite.machine import MARGIN, available_memory, gigabytes

DEVICES = {"auto": "cpu", "cpu": "cpu", "reference": "reference"}
CACHE_BYTES = {"f32": (4, 0, 4), "bf16": (2, 0, 2), "q8": (1, 4, 2)}  # per latent value, per row, per rope value
VIT = ("file", "fp32")
LOADS = {"repack": Loader, "mmap": Streaming}
CONTEXT = 8192  # tokens, unless the model holds fewer
MEDIA_DEFAULTS = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels")


def cache_bytes_per_token(text, kv):
    """Bytes that one token takes in a cache of that kind, over all layers of a TextConfig."""
    latent, row, rope = CACHE_BYTES[kv]
    return sum(rank * latent + row + text.qk_rope_head_dim * rope for rank in text.kv_lora_rank)


def _checked(name, value, allowed):
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
    return value


def _whole(name, value, low, high):
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return value


def check_memory(weights, text, context, kv, otherwise="use a smaller --type or a machine with more memory"):
    """Raises OutOfMemoryError when weights and cache cannot fit, naming the largest context that would, or `otherwise`."""
    free = available_memory()
    per_token = cache_bytes_per_token(text, kv)
    need = weights + context * per_token + MARGIN
    if free is None or need <= free:
        return
    room = (free - weights - MARGIN) // per_token
    advice = f"use --context {room // 256 * 256} or less" if room >= 256 else otherwise
    raise OutOfMemoryError(
        f"the model needs {gigabytes(need)} ({gigabytes(weights)} of weights, "
        f"{gigabytes(context * per_token)} of {kv} cache for {context} tokens) and {gigabytes(free)} are free: {advice}"
    )


def _check_fit(tensors, load, text, context, kv):
    """Raises OutOfMemoryError for a model that does not fit as it is loaded: whole, or one layer at a time."""
    if load == "repack":
        advice = "use --load mmap, which is slower, a smaller --type or a machine with more memory"
        return check_memory(sum(t.nbytes for t in tensors), text, context, kv, advice)
    layers = Counter()
    for t in tensors:
        if layer := re.match(r"(v\.)?blk\.\d+\.", t.name):
            layers[layer[0]] += t.nbytes
    check_memory(2 * max(layers.values()), text, context, kv)  # as it is stored, and packed


class FloatVision:
    """A model file whose vision matrices read as float32: nothing on the way from pixels to features is rounded again."""

    def __init__(self, source, decode):
        self.source, self.decode, self.read_rows = source, decode, source.read_rows
        self.tensors = {
            name: replace(info, format="f32", nbytes=4 * math.prod(info.shape)) if name.startswith("v.") else info
            for name, info in source.tensors.items()
        }

    def read(self, name, *rows):
        stored, data = self.source.tensors[name], self.source.read(name, *rows)
        if self.tensors[name].format == stored.format:
            return data
        count = len(data) * math.prod(stored.shape) // stored.nbytes
        return self.decode(stored.format, data, count).view(np.uint8)


def load(path, device="auto", threads=None, context=CONTEXT, kv="q8", *, vit="file", load="repack", fps=None,
         min_frames=None, max_frames=None, min_pixels=None, max_pixels=None, progress=None, observe=None):  # fmt: skip
    """Loads a GGUF file made by `ivlite quantize`; returns a Model.

    device: "auto", "cpu", or "reference" (float32 torch, slow, for comparison). threads: None for one per usable
    physical core. context: tokens of prompt and answer together (the default is lowered to what the model holds).
    kv: how the latent cache is stored, "f32", "bf16" (16 bits, as float16, which is finer) or "q8" (int8). vit: "fp32"
    computes the vision tower in float32 whatever the file's types are: slower, and 4 bytes per vision weight of memory.
    load: "repack" holds every weight in memory as the kernels want it; "mmap" reads and packs each layer when its turn
    comes and drops it again: the same answers in the memory of one layer, and a pass over the file per token.
    fps, min_frames, max_frames: defaults for videos whose message says nothing; min_pixels, max_pixels: for a frame and
    for an image; None keeps the file's.
    progress(stage, done, total) is called while loading, stage "load" in bytes. observe(names, x) sees the inputs of
    every linear layer, x numpy (T, columns), with the names of its weight's tensors; None costs nothing.

    Raises UsageError, ModelFileError (the file), OutOfMemoryError.
    """
    start = time.perf_counter()
    _checked("device", device, DEVICES)
    _checked("kv", kv, CACHE_BYTES)
    _checked("vit", vit, VIT)
    _checked("load", load, LOADS)
    if observe and load == "mmap":
        raise UsageError("observe follows weights that stay in memory: use it with load='repack'")
    if threads is not None:
        _whole("threads", threads, 1, 1024)
    source = GGUFFile(path)
    metadata = source.metadata
    cfg = configuration.Config.from_metadata(metadata, source.path)
    architecture = models.module(str(metadata["general.architecture"]), source.path)
    configuration.check_tensors(source.tensors, architecture.tensor_names(cfg), source.path)
    tokenizer = Tokenizer(metadata["tokenizer.huggingface.json"], f"{source.path}: the tokenizer")
    check_ids(tokenizer, cfg, source.path)
    context = min(context, cfg.text.context_length) if context == CONTEXT else context
    _whole("context", context, 1, cfg.text.context_length)
    operations = ops.get(DEVICES[device], threads)
    if vit == "fp32":
        source = FloatVision(source, operations.decode)
    if device != "reference":
        _check_fit(source.tensors.values(), load, cfg.text, context, kv)
    operations = ops.observed(operations, observe) if observe else operations
    progress = progress if load == "repack" else None  # there is no end to what is read a layer at a time
    network = architecture.Network(cfg, source, operations, progress, LOADS[load])
    given = dict(zip(MEDIA_DEFAULTS, (fps, min_frames, max_frames, min_pixels, max_pixels), strict=True))
    model = Model(cfg, network, tokenizer, path=Path(path), context=context, kv=kv, media_defaults=given)
    model.load_seconds = time.perf_counter() - start
    return model


class Model:
    """A loaded model. Calls do not share state: each one is a conversation of its own."""

    def __init__(self, config, network, tokenizer, *, path=None, context=8192, kv="q8", media_defaults=None):
        self.config, self.network, self.tokenizer, self.path = config, network, tokenizer, path
        self.context, self.kv = context, kv
        self.media_defaults = {k: v for k, v in (media_defaults or {}).items() if v is not None}
        self.load_seconds = 0.0

    @property
    def threads(self):
        return self.network.ops.threads

    @property
    def nbytes(self):
        """Bytes of the weights as the file stores them."""
        return sum(t.nbytes for t in self.network.source.tensors.values())

    @property
    def cache_nbytes(self):
        """Bytes of a full cache."""
        return self.context * cache_bytes_per_token(self.config.text, self.kv)

    def prepare(self, messages, *, tools=None, enable_thinking=False, add_vision_id=False):
        """Turns messages into a Prompt: token ids, positions and media opened but not yet decoded.

        Raises UsageError (a message), MediaError (a file).
        """
        return prompt.build(
            messages, self.tokenizer, self.config, tools=tools, enable_thinking=enable_thinking,
            add_vision_id=add_vision_id, **self.media_defaults,
        )  # fmt: skip

    def runner(self, capacity=None, progress=None):
        """A new Runner: an empty cache of `capacity` tokens (None: the whole context)."""
        return Runner(self.network, self.context if capacity is None else capacity, self.kv, progress)

    def logits(self, prompt):
        """float32 (T, vocab): the logits after every token of a Prompt. Raises ContextError, MediaError."""
        self._check_context(prompt, 0)
        return self.runner(len(prompt.token_ids)).prefill(prompt, every_logit=True)

    def each_logits(self, prompt, rows=64, progress=None):
        """Yields the same logits in pieces: (first token, float32 (at most `rows`, vocab)), for long prompts."""
        self._check_context(prompt, 0)
        yield from self.runner(len(prompt.token_ids), progress).each_logits(prompt, rows)

    def encode_vision(self, prompt):
        """float32 (merged (N, hidden), deepstack (K, N, hidden)) of a Prompt's images and videos in token order."""
        return VisionFeed(self.runner(1), prompt).all()

    def chat(self, messages, **settings):
        """The whole Reply to messages; takes what `stream` takes."""
        stream = self.stream(messages, **settings)
        for _ in stream:
            pass
        return stream.reply

    def stream(self, messages, *, max_new_tokens=256, temperature=None, top_k=None, top_p=None, min_p=None,
               repetition_penalty=None, seed=None, stop=None, enable_thinking=False, tools=None,
               add_vision_id=False, progress=None):  # fmt: skip
        """A Stream of Pieces; its `.reply` holds what there is so far, and the whole Reply at the end.

        Sampling settings that are None take the file's generation defaults; seed None is 0. temperature 0 is greedy.
        stop: a string or several; the text ends before the first that appears. tools: function signatures as
        published for chat templates. progress(stage, done, total): stages "decode", "vision", "prefill", "generate".
        """
        _whole("max_new_tokens", max_new_tokens, 1, 2**31)
        params = SamplingParams.over(
            self.config.generation, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed,
        )  # fmt: skip
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        if not all(isinstance(s, str) and s for s in stops):
            raise UsageError("stop must be a non-empty string or a list of them")
        start = time.perf_counter()
        built = self.prepare(messages, tools=tools, enable_thinking=enable_thinking, add_vision_id=add_vision_id)
        return Stream(self, built, params, max_new_tokens, stops, progress, start)

    def _check_context(self, prompt, extra):
        if len(prompt.token_ids) + extra > self.context:
            raise ContextError(too_long(len(prompt.token_ids), self.context))


class Stream:
    """An answer being written: iterate for Pieces, read `.reply` at any time. Closing it stops the work."""

    def __init__(self, model, prompt, params, max_new_tokens, stop, progress, start):
        model._check_context(prompt, 1)
        self.model, self.prompt, self.params, self.start = model, prompt, params, start
        self.limit = min(max_new_tokens, model.context - len(prompt.token_ids))
        self.progress = progress or (lambda stage, done, total: None)
        self.filter = TextFilter(stop, prompt.thinks)
        self.runner = model.runner(len(prompt.token_ids) + self.limit, progress)
        self.opened = time.perf_counter() - start
        vision = sum(count for _, _, count in prompt.spans)
        frames = sum(len(m.frames) if m.kind == "video" else 1 for m in prompt.media)
        self._reply = Reply(
            usage={"prompt_tokens": len(prompt.token_ids), "vision_tokens": vision, "new_tokens": 0, "frames": frames}
        )
        self.pieces = self._run()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pieces)

    def close(self):
        self.pieces.close()

    @property
    def reply(self):
        reply, timings = self._reply, dict(self.runner.timings)
        timings["decode"] += self.opened  # opening the files and scanning their packet times
        reply.timings = {"load": self.model.load_seconds, **timings, "total": time.perf_counter() - self.start}
        reply.usage["new_tokens"] = len(reply.token_ids)
        reply.warnings = list(self.prompt.warnings) + [w for m in self.prompt.media for w in m.warnings]
        return reply

    def _run(self):
        logits = self.runner.prefill(self.prompt)
        text = self.model.tokenizer.stream()
        sampler = Sampler(self.params, self.prompt.token_ids)
        tokens = self.runner.generate(logits, sampler, self.model.config.tokens.eos, self.limit)
        while True:
            try:
                token = next(tokens)
            except StopIteration as end:
                finish = end.value
                break
            self._reply.token_ids.append(token)
            self.progress("generate", len(self._reply.token_ids), self.limit)
            yield from self._kept(self.filter.push(text.push(token)))
            if self.filter.stopped:
                self._reply.finish_reason = "stop"
                return
        yield from self._kept(self.filter.push(text.flush()) + self.filter.flush())
        self._reply.finish_reason = "stop" if self.filter.stopped else finish

    def _kept(self, pieces):
        for piece in pieces:
            if piece.thinking:
                self._reply.thinking += piece.text
            else:
                self._reply.text += piece.text
            yield piece
