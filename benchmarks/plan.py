"""How near the plan of a prompt is to the time that it takes, on a random model, stage by stage; and the plan of decoding videos.

python benchmarks/plan.py --random 8b --type q4_k_m
python benchmarks/plan.py --video day.mp4 hour.mp4       # of 16, 60 and 300 frames of each, decoding alone
"""

import argparse
import os
import time
from contextlib import closing

import numpy as np

from ivlite.evaluate import synthetic
from ivlite.media.video import VideoProbe
from ivlite.plan import measure


def seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


HEAD = f"{'':<28}{'planned':>10}{'took':>10}{'ratio':>8}"


def row(name, planned, took):
    print(f"{name:<28}{planned:>8.2f} s{took:>8.2f} s{planned / took:>8.2f}", flush=True)


def decoding(path, size=(64, 96)):
    """Rows of decoding a video file, each planned by a probe of its own."""
    for count in (16, 60, 300):
        probe = VideoProbe(path)
        most = len(probe.times.times)
        chosen = np.linspace(0, most - 1, min(count, most)).round().astype(int)
        planned = probe.cost(chosen, size)[1]
        medium = probe.open(chosen, size, patch_size=1, temporal=1)

        def shown(medium=medium):
            with closing(medium.pictures()) as pictures:
                for _ in pictures:
                    pass

        row(f"{os.path.basename(path)[:18]}, {len(chosen)} frames", planned, seconds(shown))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", default="8b", choices=("8b", "4b", "demo", "tiny"))
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of each prefill (default: 2048)")
    parser.add_argument("--depth", default="0,6144", help="cached tokens before it (default: 0,6144)")
    parser.add_argument(
        "--video", nargs="+", metavar="F", help="files whose decoding is planned and timed, and no model"
    )
    args = parser.parse_args()
    if args.video:
        print(HEAD)
        for path in args.video:
            decoding(path)
        return
    depths = [int(n) for n in args.depth.split(",")]
    capacity = max(depths) + args.prompt + 32
    model = synthetic.random_model(args.random, args.type, threads=args.threads, context=capacity)
    network, config, rng = model.network, model.config, np.random.default_rng(0)
    sample = measure.of_network(network)
    began = time.perf_counter()
    speeds = measure.speeds(sample, model.kv)
    print(f"measured in {time.perf_counter() - began:.1f} s\n{HEAD}")

    tokens = rng.integers(0, 400, args.prompt).tolist()
    for depth in depths:
        runner = model.runner(capacity)
        synthetic.fill(runner.cache, config, depth, rng)
        x, at = network.embed(tokens), np.tile(np.arange(depth, depth + args.prompt), (3, 1))
        row(f"prefill {args.prompt} after {depth}", speeds.prefill(args.prompt, depth),
            seconds(lambda x=x, at=at, cache=runner.cache: network.forward(x, at, cache)))  # fmt: skip
        row(f"generate 16 after {runner.cache.length}", speeds.generate(17, runner.cache.length),
            seconds(lambda r=runner: [r.step(5) for _ in range(16)]))  # fmt: skip
    width, height, frames = synthetic.usual_pair(config)
    pair, video = np.zeros((frames, height, width, 3), np.uint8), config.video
    patches = width * height // config.vision.patch_size**2
    network.vision([pair], video.mean, video.std)
    row(f"vision, 4 pairs of {width}x{height}", speeds.vision(4, patches),
        seconds(lambda: network.vision([pair] * 4, video.mean, video.std)))  # fmt: skip


if __name__ == "__main__":
    main()
