"""What calibration is worth: one type, encoded without it, with the built-in texts and with videos, on held-out clips.

    python benchmarks/calibration.py --model demo-bf16.gguf --demo                  # the demo model and its own world
    python benchmarks/calibration.py --layers 3 --demo --videos 2 --type q4_k_m     # random weights of InternVideo3-8B's widths
    python benchmarks/calibration.py --model internvideo3-bf16.gguf --calibrate clips --held-out others

MODEL is the reference and what is quantised. --layers makes one with so many random layers of InternVideo3-8B's widths in
text and three in vision, a small vocabulary, small frames and twelve prompts: what formats do to full-size rows. --demo
draws clips and pictures of the world of examples/demo_model, with questions: those that training shows to calibrate, those
with held-out combinations and wordings to judge.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import convert
import numpy as np

DEMO = Path(__file__).parents[1] / "examples" / "demo_model"
COLUMNS = ("mean_kl", "p99_kl", "answer_kl", "top1", "flips", "answers", "tokens")


def ivlite(*args):
    """Runs a command of ivlite; returns its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "ivlite", *map(str, args), "--quiet"], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"ivlite {args[0]} failed")
    return done.stdout


def drawn(folder, seed, test, videos, pictures):
    """Draws clips and pictures of the demo's world into a folder; returns a file of JSON lines with questions about them."""
    sys.path.insert(0, str(DEMO))
    import evaluate
    import questions
    import world

    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(seed), []
    for i in range(videos + pictures):
        scene = world.new_video(rng, test=test, begin=0) if i < videos else world.new_picture(rng, test=test)
        height, width = evaluate.sizes(rng, scene.aspect)
        name, quality = f"{i:04d}.mp4" if i < videos else f"{i:04d}.png", int(rng.integers(20, 35))
        if i < videos:
            evaluate.write_video(folder / name, scene, height, width, quality)
        else:
            evaluate.write_picture(folder / name, scene, height, width, 95)
        for kind in evaluate.VIDEO_KINDS if scene.is_video else evaluate.PICTURE_KINDS:
            if found := questions.ask(rng, scene, test, kind):
                lines.append({"video" if scene.is_video else "image": name, "prompt": found[1]})
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return data


def full_size(folder, layers):
    """A bf16 model file of so many random layers of InternVideo3-8B's widths."""
    out = folder / "random-bf16.gguf"
    if not out.exists():
        convert.write_checkpoint(folder / "checkpoint", layers, vocabulary=288, depth=3)
        ivlite("quantize", folder / "checkpoint", "-o", out, "--type", "bf16")
        shutil.rmtree(folder / "checkpoint")
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="a GGUF file of f32, bf16 or q8_0")
    add("--layers", type=int, help="make a random one of so many layers instead, 3 at least")
    add("--demo", action="store_true", help="draw the prompts")
    add("--calibrate", help="prompts to calibrate with, as `ivlite calibrate --data` takes them")
    add("--held-out", help="prompts to judge with, others than those")
    add("--type", action="append", help="may be repeated (default: q4_k_s)")
    add("--work", type=Path, default=Path("build/calibration"), help="where the files go")
    add("--threads", type=int, help="default: one per usable physical core")
    add("--videos", type=int, default=60, help="clips to draw for each purpose, and a third as many pictures")
    args = parser.parse_args()
    if (args.model is None) == (args.layers is None):
        parser.error("give --model or --layers, one of the two")
    if not args.demo and not (args.calibrate and args.held_out):
        parser.error("give --demo, or --calibrate and --held-out")
    args.work.mkdir(parents=True, exist_ok=True)
    seen, unseen = args.calibrate, args.held_out
    if args.demo:
        seen = drawn(args.work / "seen", 1, False, args.videos, args.videos // 3)
        unseen = drawn(args.work / "unseen", 2, True, args.videos, args.videos // 3)
    model = args.model or full_size(args.work, args.layers)
    more = ["--threads", args.threads] if args.threads else []
    more += ["--max-pixels", 128 * 128, "--max-frames", 8, "--limit", 12] if args.layers else []
    calibrations = {"none": None, "texts": [], "videos": ["--data", seen]}
    for name, data in calibrations.items():
        if data is not None:
            ivlite("calibrate", model, *data, "-o", args.work / f"{name}.stats", "--restart", *more)
    print(f"{'type':<10}{'calibration':<12}{'kind':<7}" + "".join(f"{c:>10}" for c in COLUMNS))
    for kind in args.type or ["q4_k_s"]:
        files = {name: args.work / f"{kind}-{name}.gguf" for name in calibrations}
        for name, out in files.items():
            stats = [] if calibrations[name] is None else ["--calibration", args.work / f"{name}.stats"]
            ivlite("quantize", model, "-o", out, "--type", kind, *stats)
        found = json.loads(ivlite("eval", *files.values(), "--against", model, "--data", unseen, "--json", *more))
        for name, result in zip(files, found["models"], strict=True):
            for prompts, s in result["kinds"].items():
                numbers = "".join(f"{s[c]:>10.5f}" if isinstance(s[c], float) else f"{s[c]:>10}" for c in COLUMNS)
                print(f"{kind:<10}{name:<12}{prompts:<7}{numbers}", flush=True)


if __name__ == "__main__":
    main()
