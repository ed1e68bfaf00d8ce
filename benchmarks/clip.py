"""A clip from a cold start to the last token of an answer: what `versus.py clip` runs, and llama.cpp's side of it.

Each side is a process of its own that imports, loads, decodes the video, sees, reads and writes, as
`ivlite run` and `llama-mtmd-cli` do. Model files are in the page cache. llama.cpp's side is this file run as a program:

    python benchmarks/clip.py MODEL PROJECTOR VIDEO QUESTION --threads N --new N
"""

import argparse
import json
import subprocess
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np

SECONDS, RATE, SIZE = 10, 25, (360, 640)
FRAME_PIXELS = 128 * 32 * 32


def cold(command):
    """Seconds from the start to the end of a command, and the JSON object that it prints."""
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command[1]} ended with code {done.returncode}")
    return seconds, json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------ files


def write_video(path):
    """A square that crosses a gradient, H.264."""
    import av

    height, width = SIZE
    y, x = np.mgrid[0:height, 0:width]
    background = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], -1).astype(np.uint8)
    with av.open(path, "w", format="mp4") as out:
        stream = out.add_stream("h264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(SECONDS * RATE):
            frame = background.copy()
            frame[120:240, 2 * t : 2 * t + 120] = (230, 40, 40)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


def write_model(path, type, size="8b"):
    """InternVideo3-8B's shape, or another size, with random weights and a small vocabulary."""
    import words

    from ivlite.evaluate.synthetic import RandomSource, config
    from ivlite.gguf.config import TOKENIZER, TokenIds
    from ivlite.gguf.writer import GGUFWriter

    ids = {name: words.token_id(f"<|{name}|>") for name in
           ("image_pad", "video_pad", "vision_start", "vision_end", "im_start", "im_end")}  # fmt: skip
    cfg = replace(config(size), tokens=TokenIds(**ids, eos=(ids["im_end"],)))
    source = RandomSource(cfg, type)
    metadata = cfg.to_metadata() | {TOKENIZER: words.tokenizer_json(), "general.alignment": 32}
    with GGUFWriter(path, metadata, [(t.name, t.shape, t.format) for t in source.tensors.values()]) as out:
        for name, info in source.tensors.items():
            data = source.read(name)
            if name == "output.weight":  # only the first tokens, which are characters, are ever likely: no answer ends
                data.reshape(info.shape[0], -1)[64:] = 0
            out.write(data)


# ------------------------------------------------------------------------------------------------ llama.cpp's side


def frames(path):
    """One frame per second as uint8 (height, width, 3), and the seconds at which they are."""
    import av

    wanted = [Fraction(second) for second in range(SECONDS)]
    out, times = [], []
    with av.open(path) as file:
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in file.decode(stream):
            if frame.pts * stream.time_base >= wanted[len(out)]:
                out.append(frame.to_ndarray(format="rgb24"))
                times.append(float(frame.pts * stream.time_base))
            if len(out) == len(wanted):
                return out, times
    raise SystemExit(f"{path} is shorter than {SECONDS} s")


def prompt(question, times, marker):
    """The chat that ivlite writes: a time mark before each pair of frames."""
    marks = (f"<{(a + b) / 2:.1f} seconds>{marker}{marker}" for a, b in zip(times[::2], times[1::2], strict=True))
    return f"<|im_start|>user\n{''.join(marks)}{question}<|im_end|>\n<|im_start|>assistant\n"


def answer(args):
    """Counts, seconds and peak memory of one answer by llama.cpp, named as `ivlite run --json` names them."""
    from mtmd import Mtmd
    from rivals import LlamaCpp

    from ivlite.machine import peak_memory

    marks = [time.perf_counter()]
    flash = bool(args.flash)
    llama = LlamaCpp(args.model, args.threads, 2048, extra=bool(args.extra), flash=flash, ubatch=args.ubatch)
    mtmd = Mtmd(args.projector, llama.model, args.threads, flash)
    marks.append(time.perf_counter())
    pictures, times = frames(args.video)
    read = mtmd.prefill(llama, mtmd.chunks(prompt(args.question, times, "<__media__>"), pictures))
    marks.append(time.perf_counter())
    count, made = llama.lib.llama_vocab_n_tokens(llama.lib.llama_model_get_vocab(llama.model)), []
    while len(made) < args.new:
        if made:
            llama.step(made[-1])
        logits = llama.lib.llama_get_logits_ith(llama.context, -1)
        made.append(int(np.argmax(np.ctypeslib.as_array(logits, (count,)))))
    marks.append(time.perf_counter())
    seconds = dict(zip(("load", "prefill", "generate"), np.diff(marks).tolist(), strict=True))
    usage = {"prompt_tokens": read, "new_tokens": len(made)}
    return {"usage": usage, "timings": seconds, "peak_memory": peak_memory()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "projector", "video", "question"):
        parser.add_argument(name, metavar=name.upper())
    for name in ("threads", "new"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name, usual in (("extra", 1), ("flash", 1), ("ubatch", 512)):  # see rivals.LlamaCpp
        parser.add_argument(f"--{name}", type=int, default=usual)
    print(json.dumps(answer(parser.parse_args())))


if __name__ == "__main__":
    main()
