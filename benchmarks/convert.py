"""Conversion of a synthetic checkpoint: time beside a plain copy of its weights, peak memory, and ten kills.

    python benchmarks/convert.py /tmp/work                  # 6 layers, 6 GB; the folder is made, and emptied at the end
    python benchmarks/convert.py /tmp/work --layers 36      # InternVideo3-8B's size: 19 GB, and 40 GB of disk

The checkpoint has InternVideo3-8B's shapes in shards of 2 GB and random weights. A copy reads the shards and writes them
to one file, 8 MB at a time, and ends like the conversion with an fsync. Copies and conversions take turns. With --kills
the conversion to the last type is killed so often at random moments, resumed each time, and compared with an
undisturbed one byte by byte.
"""

import argparse
import filecmp
import importlib.util
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SHARD, PIECE, GIB = 2_000_000_000, 1 << 24, 1 << 30


def example():
    """The module of the toy checkpoint, at InternVideo3-8B's sizes."""
    path = Path(__file__).parents[1] / "examples" / "tiny_checkpoint.py"
    spec = importlib.util.spec_from_file_location("tiny_checkpoint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_checkpoint(folder, layers, vocabulary=151936, depth=27):
    """The whole folder, with so many layers of text and vision; returns the bytes of its weights."""
    toy = example()
    toy.TEXT |= {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": layers, "num_attention_heads": 32,
        "vocab_size": vocabulary, "kv_lora_rank": 896, "qk_rope_head_dim": 128, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    }  # fmt: skip
    toy.VISION |= {
        "depth": depth, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304,
        "num_position_embeddings": 2304, "deepstack_visual_indexes": [depth * i // 10 for i in (3, 6, 9)],
        "out_hidden_size": 4096,
    }  # fmt: skip
    toy.write_safetensors = lambda path, seed: None  # the settings and the tokenizer only
    toy.write_checkpoint(folder)
    index, total = {}, 0
    for number, names in enumerate(shards(toy.shapes())):
        file = f"model-{number:05}.safetensors"
        total += write_shard(folder / file, names, number)
        index |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return total


def shards(shapes):
    """Runs of {name: shape} of about SHARD bytes."""
    run, size = {}, 0
    for name, shape in shapes.items():
        run[name] = shape
        size += 2 * int(np.prod(shape))
        if size >= SHARD:
            yield run
            run, size = {}, 0
    if run:
        yield run


def write_shard(path, shapes, seed):
    """One file of bfloat16 normal numbers: a piece of them, begun at another place for each tensor. Norms weigh with ones."""
    rng, header, offset = np.random.default_rng(seed), {}, 0
    piece = (rng.standard_normal(PIECE, np.float32) * np.float32(0.02)).view("<u4") >> 16
    piece = piece.astype("<u2")
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            left, at = int(np.prod(shape)), int(rng.integers(PIECE // 2))
            if len(shape) == 1 and name.endswith("weight"):  # of a norm
                file.write(np.full(left, 0x3F80, "<u2"))
                left = 0
            while left:
                part = piece[at : at + left]
                file.write(part)
                left, at = left - len(part), 0
    return offset


# ------------------------------------------------------------------------------------------------ measuring


def copy(folder, out):
    """Seconds of a plain copy of the weights into one file."""
    start, buffer = time.perf_counter(), bytearray(8 << 20)
    with open(out, "wb", buffering=0) as target:
        for path in sorted(folder.glob("*.safetensors")):
            with open(path, "rb", buffering=0) as source:
                while count := source.readinto(buffer):
                    target.write(memoryview(buffer)[:count])
        os.fsync(target.fileno())
    seconds = time.perf_counter() - start
    out.unlink()
    return seconds


def start(folder, out, type, *more):
    command = [sys.executable, "-m", "ivlite", "quantize", folder, "-o", out, "--type", type, "--quiet", *more]
    return subprocess.Popen([str(word) for word in command])


def convert(folder, out, type, *more):
    """Seconds and peak bytes of a conversion in a process of its own."""
    begin = time.perf_counter()
    child = start(folder, out, type, *more)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, f"exit code {child.returncode}"
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def killed(folder, whole, type, kills, seconds, seed):
    """Kills a conversion at random moments, resumes it each time, and compares it with `whole`."""
    out, rng, before = whole.with_name("killed.gguf"), random.Random(seed), time.perf_counter()
    number = 0
    while number < kills:
        child = start(folder, out, type, "--resume")
        wait = rng.uniform(0.3, 2 * seconds / kills)
        try:
            child.wait(wait)
            print(f"  done before it was killed, begun again after {number} kills")
            out.unlink()
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            number += 1
            assert not out.exists()
    convert(folder, out, type, "--resume")
    equal = filecmp.cmp(out, whole, shallow=False)
    rest = sorted(path.name for path in whole.parent.iterdir() if "partial" in path.name)
    print(
        f"  {kills} kills, {time.perf_counter() - before:.0f} s in all: {'equal' if equal else 'DIFFERENT'}, left over: {rest or 'nothing'}"
    )
    out.unlink()
    return equal and not rest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--types", nargs="+", default=["bf16", "q4_k_m", "q4_0", "q8_0"])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint, and use it again if it is there")
    args = parser.parse_args()
    checkpoint, out = args.folder / "checkpoint", args.folder / "model.gguf"
    weights = [*checkpoint.glob("*.safetensors")]
    size = sum(p.stat().st_size for p in weights) if weights else write_checkpoint(checkpoint, args.layers)
    print(f"{size / GIB:.2f} GiB in {len([*checkpoint.glob('*.safetensors')])} shards")
    whole = True
    for i, type in enumerate(args.types):
        plain = copy(checkpoint, args.folder / "copy")
        seconds, peak = convert(checkpoint, out, type)
        plain = (plain + copy(checkpoint, args.folder / "copy")) / 2
        print(
            f"{type:<7} {seconds:7.1f} s, copy {plain:6.1f} s: {seconds / plain:.2f} x, "
            f"peak {peak / GIB:.2f} GiB, {out.stat().st_size / GIB:.2f} GiB written",
            flush=True,
        )
        if i + 1 == len(args.types) and args.kills:
            whole = killed(checkpoint, out, type, args.kills, seconds, args.seed)
    out.unlink()
    if not args.keep:
        shutil.rmtree(checkpoint)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
