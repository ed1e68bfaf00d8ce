"""Decoding beside FFmpeg: frames a second of chosen frames, decoded and resized, each beside what does the same with FFmpeg.

    python benchmarks/decode.py                      # makes its videos in a temporary folder: a few minutes
    python benchmarks/decode.py --folder DIR         # keeps them there for the next run
    python benchmarks/decode.py --only "1080p sparse" --rounds 9

Every case runs in turn with its rivals, with as many threads; a line shows the medians of the rounds, and of their ratios, by the
clock and by processor time (ms per frame), which other work on the machine changes less.
dense: every frame, beside `ffmpeg -i F -vf scale=W:H -f null -`. sparse: one frame a second, beside a loop that seeks to the
key frame before each and decodes up to it (libav through PyAV, all threads, resized by swscale), and beside
`ffmpeg -skip_frame nokey`, which decodes key frames and no others.
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ivlite import media

CASES = {  # size, frames, key frames every n frames, rate, sampled frames a second (None: all)
    "1080p dense": ((1080, 1920), 750, 250, 25, None),
    "1080p sparse, a key frame a second": ((1080, 1920), 750, 25, 25, 1),
    "1080p sparse, a key frame every 10 s": ((1080, 1920), 750, 250, 25, 1),
    "240p dense": ((240, 320), 3000, 250, 25, None),
    "240p sparse, a key frame a second": ((240, 320), 3000, 25, 25, 1),
    "240p sparse, a key frame every 10 s": ((240, 320), 3000, 250, 25, 1),
}
PIXELS = 128 << 10  # of each resized frame


def make(path, size, count, gop, rate):
    """An H.264 file with B-frames: texture that moves, and some noise."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    height, width = size
    low = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    texture = np.kron(low, np.ones((16, 16, 1), np.uint8))
    texture += rng.integers(0, 12, texture.shape, np.uint8)
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"preset": "veryfast", "bf": "3", "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0"}
        for i in range(count):
            picture = np.roll(texture, (i % 16 * 3, i * 2), (0, 1))[:height, :width].copy()
            picture[height // 4 : height // 2, (7 * i) % (width // 2) :][:, : width // 4] //= 2
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return part.rename(path)


def opened(path, fps):
    return media.open_video(
        str(path), fps=fps or 1000, min_frames=1, max_frames=1 << 20, min_pixels=PIXELS, max_pixels=PIXELS
    )


def ours(medium):
    pairs = sum(1 for _ in medium.pairs())
    assert pairs == medium.grid[0]
    return len(medium.frames)


def seeking(path, medium):
    """Seeks to the key frame before each wanted frame, decodes up to it, and resizes it."""
    height, width = medium.size
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first = stream.start_time or 0
        for index in medium.frames:
            moment = first + int(Fraction(index) / stream.average_rate / stream.time_base)
            container.seek(moment, stream=stream)
            frame = next(f for f in container.decode(stream) if f.pts >= moment)
            frame.to_ndarray(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    return len(medium.frames)


def program(path, size, *before):
    """Runs the ffmpeg program, which starts in about 50 ms; returns the number of frames."""
    command = [
        "ffmpeg",
        "-v",
        "info",
        "-nostdin",
        *before,
        "-i",
        path,
        "-an",
        "-vf",
        f"scale={size[1]}:{size[0]}",
        "-f",
        "null",
        "-",
    ]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    return int(done.stderr.rsplit("frame=", 1)[1].split()[0])


def timed(run):
    """(seconds, processor seconds) per frame of what run() does, child processes included."""
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    start = time.perf_counter()
    frames = run()
    seconds = time.perf_counter() - start
    after = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds / frames, (after - used) / frames


def rivals(path, fps, medium):
    has = shutil.which("ffmpeg")
    if fps is None:
        return {"ffmpeg": lambda: program(path, medium.size)} if has else {}
    keys = {"ffmpeg -skip_frame nokey": lambda: program(path, medium.size, "-skip_frame", "nokey")} if has else {}
    return {"seeking": lambda: seeking(path, medium), **keys}


def measured(name, folder, rounds):
    """(seconds, processor seconds) per frame of each round, of ivlite and of each rival, in turn."""
    size, count, gop, rate, fps = CASES[name]
    path = make(folder / f"{size[0]}-{count}-{gop}.mp4", size, count, gop, rate)
    medium = opened(path, fps)
    runs = {"ivlite": lambda: ours(medium), **rivals(path, fps, medium)}
    taken = {who: [] for who in runs}
    for _ in range(rounds):
        for who, run in runs.items():
            taken[who].append(timed(run))
    return taken


def ratios(taken, who):
    """Medians of a rival's time divided by ours: by the clock, and by processor time."""
    return [statistics.median(b[i] / a[i] for a, b in zip(taken["ivlite"], taken[who], strict=True)) for i in (0, 1)]


def measure(name, folder, rounds):
    taken = measured(name, folder, rounds)
    print(name)
    for who, each in taken.items():
        clock, processor = (1e3 * statistics.median(t[i] for t in each) for i in (0, 1))
        line = f"    {who:28} {1e3 / clock:9.1f} frames/s {processor:9.2f} ms of processor"
        if who != "ivlite":
            clock, processor = ratios(taken, who)
            line += f"    ivlite {clock:5.2f} x by the clock, {processor:5.2f} x by processor time"
        print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the videos are made, and kept")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in CASES:
            if args.only in name:
                measure(name, folder, args.rounds)


if __name__ == "__main__":
    main()
