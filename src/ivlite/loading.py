"""Opens a model file: checks what is asked for, whether it fits, and makes a Model of it."""

import hashlib
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ivlite import models, ops
from ivlite.engine import vision
from ivlite.engine.meter import Progress
from ivlite.errors import DeviceError, OutOfMemoryError, UsageError
from ivlite.gguf import GGUFFile, TensorInfo
from ivlite.gguf import config as configuration
from ivlite.gguf.loading import Loader
from ivlite.gguf.streaming import StreamingLoader
from ivlite.gguf.tokenizer import Tokenizer, check_ids
from ivlite.machine import MARGIN, available_memory, gigabytes
from ivlite.media.source import limits
from ivlite.model import MediaLimits, Model, cache_bytes_per_token
from ivlite.numbers import shown, whole
from ivlite.plan.planner import Planner
from ivlite.session.store import Store, chosen
from ivlite.stop import Stop, using, within

CACHE_KINDS = {kind: kind for kind in ops.CACHE_KINDS} | {"bf16": "f16"}  # "bf16": an older name of "f16"
VIT = ("file", "fp32")
LOADS = {"repack": Loader, "mmap": StreamingLoader}
MORE = "a machine with more memory"
LEAST_CONTEXT = 1024  # tokens that must fit beside the weights where no context is stated


def _checked(name: str, value: object, allowed: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f"{name} is {shown(value)}; it must be one of {', '.join(allowed)}")
    return value


def check_memory(weights: int, text: configuration.TextConfig, context: int, kv: str, ways: Sequence[str] = (MORE,),
                 free: int | None = None, where: str = "") -> None:  # fmt: skip
    """Raises OutOfMemoryError when weights and cache do not fit; it names the largest context that would, and `ways`.

    free: bytes of a card, called `where`; None for those of the machine.
    """
    free = available_memory() if free is None else free
    per_token = cache_bytes_per_token(text, kv)
    need = weights + context * per_token + MARGIN
    if free is None or need <= free:
        return
    room = (free - weights - MARGIN) // per_token
    smaller = [f"--context {room // 256 * 256} or less"] if room >= 256 else []
    raise OutOfMemoryError(
        f"the model needs {gigabytes(need)} ({gigabytes(weights)} of weights, "
        f"{gigabytes(context * per_token)} of {kv} cache for {context} tokens) and {gigabytes(free)} are free{where}",
        [*smaller, "a model file of a smaller type", *ways],
    )


def check_fit(operations: Any, tensors: Iterable[TensorInfo], load: str, text: configuration.TextConfig, context: int,
               kv: str) -> None:  # fmt: skip
    """Raises OutOfMemoryError for a model that does not fit when loaded whole ("repack") or layer by layer ("mmap")."""
    tensors, on_card = list(tensors), getattr(operations, "free_memory", None)
    room: dict[str, Any] = {"free": on_card(), "where": f" on {operations.device}"} if on_card else {}
    if load == "repack":
        ways = ("--load mmap (slower)", "--device cpu" if on_card else MORE)
        return check_memory(sum(t.nbytes for t in tensors), text, context, kv, ways, **room)
    layers: Counter[str] = Counter()
    for t in tensors:
        if layer := re.match(r"(v\.)?blk\.\d+\.", t.name):
            layers[layer[0]] += t.nbytes
    check_memory(2 * max(layers.values()), text, context, kv, **room)  # one layer twice: as stored, and packed


def chosen_device(device: str, threads: int | None, check: Callable[[Any], None]) -> tuple[Any, str]:
    """(operations, a sentence about a card that is not used, or "") of a device. check(operations) says whether all fits.

    "auto": the first card that can be used and holds the model, else the CPU. Raises UsageError, OutOfMemoryError, DeviceError.
    """
    name, number = ops.cards.named(device)
    reasons = [ops.cards.fault()] if name == "auto" and ops.cards.fault() else []
    for card in range(ops.cards.count() if name == "auto" else 0):
        reasons.append(ops.cards.refusal(card))
        if not reasons[-1]:
            try:
                operations = ops.get("cuda", threads, card)
                check(operations)
            except (UsageError, OutOfMemoryError, DeviceError) as error:
                reasons[-1] = str(error.problem)  # the CPU computes: nothing has to be done
            else:
                return operations, ""
    operations = ops.get("cpu" if name == "auto" else name, threads, number or 0)
    if name != "reference":
        check(operations)
    return operations, f"the CPU computes: {reasons[0]}" if reasons else ""


class FloatVision:
    """A model file whose vision matrices are dequantized to float32, so that the vision tower computes in float32."""

    def __init__(self, source: GGUFFile, decode: Callable[[str, np.ndarray, int], np.ndarray]) -> None:
        self.source, self.decode, self.read_rows, self.close = source, decode, source.read_rows, source.close
        self.digest = hashlib.sha256(f"{source.digest} vit fp32".encode()).hexdigest()  # its features are others
        self.tensors = {
            name: replace(info, format="f32", nbytes=4 * math.prod(info.shape)) if name.startswith("v.") else info
            for name, info in source.tensors.items()
        }

    def read(self, name: str, *rows: int) -> np.ndarray:
        stored, data = self.source.tensors[name], self.source.read(name, *rows)
        if self.tensors[name].format == stored.format:
            return data
        count = len(data) * math.prod(stored.shape) // stored.nbytes
        return self.decode(stored.format, data, count).view(np.uint8)


def load(
    path: str | bytes | os.PathLike[str], device: str = "auto", threads: int | None = None, context: int | None = None,
    kv: str = "q8", *, vit: str = "file", load: str = "repack", fps: float | None = None,
    min_frames: int | None = None, max_frames: int | None = None, min_pixels: int | None = None, max_pixels: int | None = None,
    store: bool | str | os.PathLike[str] | Store = False, progress: Progress | None = None,
    observe: Callable[[tuple[str, ...], np.ndarray], object] | None = None, stop: Stop | None = None,
) -> "Model":  # fmt: skip
    """Loads a GGUF file made by `ivlite quantize`; returns a Model, which is also a context manager that closes it.

    device: "auto" (a GPU that can be used and holds the model, else the CPU; a reply has a warning where a GPU is not used),
    "cpu", "cuda", "cuda:1" (the second GPU), or "reference" (float32 torch, slow, for comparison). threads: None for one per
    usable physical core. context: most tokens of prompt and answer together; None: as many as a prompt and its answer need, up
    to what the model and the free memory hold.
    kv: the format of the latent cache, "f32", "f16", "q8" (int8) or "q4" (4 bits, for contexts that q8 has no memory
    for). vit: "fp32" computes the vision tower in float32 whatever the file's formats: slower, and 4 bytes of memory per
    vision weight. load: "repack" packs all weights for the kernels and keeps them in memory; "mmap" reads and packs each
    layer before it runs and frees it afterwards: the same answers in the memory of one layer, but it reads the whole file
    for every token.
    fps, min_frames, max_frames: defaults for videos whose message sets none; min_pixels, max_pixels: for each frame and
    image; None keeps the file's.
    store: True keeps what prompts of over 20 seconds leave in the cache in the user's cache folder, and uses it again in
    later processes; a path or a Store: in a folder of its own. Where that cannot be done, a reply has a warning.
    progress(stage, done, total) is called while loading, stage "load" in bytes. observe(names, x) is a forward hook: it
    gets the input of every linear layer, x numpy (T, columns), and the names of its weight's tensors; None costs nothing.
    stop: a Stop that ends the loading.

    Raises UsageError, ModelFileError (the file), OutOfMemoryError, DeviceError (a GPU), Stopped.
    """
    began = time.perf_counter()
    ops.cards.named(device)
    kv = CACHE_KINDS[_checked("kv", kv, CACHE_KINDS)]
    _checked("vit", vit, VIT)
    _checked("load", load, LOADS)
    if observe and load == "mmap":
        raise UsageError("observe follows weights that stay in memory: use it with load='repack'")
    threads = None if threads is None else whole("threads", threads, 1, 1024)
    given = MediaLimits(fps, min_frames, max_frames, min_pixels, max_pixels).given()
    media = MediaLimits(**limits(given, given))  # now, not at the first video
    remarks: list[str] = []
    kept = chosen(store, remarks.append)
    with using(within(stop)):
        source = GGUFFile(path)
        try:
            cfg, architecture, tokenizer = understood(source)
            longest = cfg.text.context_length
            context = None if context is None else whole("context", context, 1, longest)
            weights = FloatVision(source, lambda *data: operations.decode(*data)) if vit == "fp32" else source
            least = context or min(LEAST_CONTEXT, longest)
            operations, remark = chosen_device(
                device, threads, lambda o: check_fit(o, weights.tensors.values(), load, cfg.text, least, kv)
            )
            remarks += [remark] if remark else []
            operations = ops.observed(operations, observe) if observe else operations
            progress = progress if load == "repack" else None  # "mmap" reads again for every token: it has no total
            network = architecture.Network(cfg, weights, operations, progress, LOADS[load])
            network.seen = None if observe else vision.Seen()  # who observes wants every pair
        except BaseException:
            source.close()
            raise
    given_path = Path(os.fsdecode(path))
    model = Model(cfg, network, tokenizer, path=given_path, context=context, kv=kv, media=media, store=kept)
    model.remarks += remarks
    model.load_seconds = time.perf_counter() - began
    model.planner = Planner.of(weights, cfg, kv, operations, load, vit, network, model.load_seconds)
    if observe:
        model.planner.sample = None  # measuring would be observed, too
    return model


def understood(source: GGUFFile) -> tuple[configuration.Config, Any, Tokenizer]:
    """(Config, model module, Tokenizer) of an open model file. Raises ModelFileError if they do not fit together."""
    metadata, path = source.metadata, source.path
    cfg = configuration.Config.from_metadata(metadata, path)
    architecture = models.module(str(metadata["general.architecture"]), path)
    configuration.check_tensors(source.tensors, architecture.tensor_names(cfg), path)
    tokenizer = Tokenizer(metadata[configuration.TOKENIZER], f"{path}: the tokenizer")
    check_ids(tokenizer, cfg, path)
    return cfg, architecture, tokenizer
