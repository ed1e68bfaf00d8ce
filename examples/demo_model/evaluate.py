"""Asks the demo model about clips and pictures it has never seen, through ivlite, on real H.264 and JPEG files.

    python evaluate.py --work /tmp/demo --type q8_0            # accuracy per question type, and two controls
    python evaluate.py --work /tmp/demo --type q8_0 --agent    # the agent, about long films

Every clip and picture has a combination of colour, shape and motion that training never shows, and every question a
wording that it never shows.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import av
import evaluate_agent
import numpy as np
import questions
import world
from PIL import Image

import ivlite
from ivlite.agent import Budget
from ivlite.agent.tools import ZOOM

SEED = 99
ZOOMS, THOUGHTS = 60, 60  # questions with the zoom tool, and questions asked with thinking
VIDEO_KINDS = ("describe", "color", "shape", "count", "direction", "first", "when", "absent")
PICTURE_KINDS = ("describe", "color", "shape", "count", "absent")


# ------------------------------------------------------------------------------------------------ files


def sizes(rng, aspect):
    """(height, width) of a source file of that aspect, even numbers."""
    short = int(rng.choice([128, 160, 192, 240, 320]))
    wide, high = short * max(1.0, aspect), short * max(1.0, 1 / aspect)
    return round(high / 2) * 2, round(wide / 2) * 2


def write_video(path, scene, height, width, crf):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=scene.rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.thread_count = width, height, "yuv420p", 1
        for first in range(0, scene.total, 16):
            times = np.arange(first, min(first + 16, scene.total)) / scene.rate
            for picture in world.draw(scene, times, height, width):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


def write_picture(path, scene, height, width, quality):
    Image.fromarray(world.draw(scene, scene.times, height, width)[0]).save(path, quality=quality)


def clip(path):
    """Writes the example clip of the documentation; returns its scene. 320 x 240, 25 frames a second, 9 seconds."""
    rng = np.random.default_rng(16)
    while True:
        scene = world.new_video(rng, test=True, begin=0)
        names = [a.motion for a in scene.actors]
        if (
            scene.rate == 25
            and 8 < scene.total / 25 < 10
            and scene.aspect == 4 / 3
            and len(set(names) - {"still"}) == 2
        ):
            write_video(path, scene, 240, 320, 23)
            return scene


def later(scene, seconds):
    """The same clip with empty seconds before it, which the model does not see."""
    frames = seconds * scene.rate
    out = replace(scene, total=scene.total + frames, begin=frames, times=scene.times + seconds)
    out.actors = [
        replace(a, start=a.start + seconds, end=a.end + seconds, shown=tuple(s + seconds for s in a.shown))
        for a in scene.actors
    ]
    index = world.sampled(out.total, out.rate, frames)
    index = np.append(index, index[-1:]) if len(index) % 2 else index
    out.marks = [f"{(a / out.rate + b / out.rate) / 2:.1f}" for a, b in index.reshape(-1, 2)]
    return out


def made(folder, videos, pictures):
    """The scenes of the evaluation with their files, drawn anew with a fixed seed: [(scene, path)]."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, out = np.random.default_rng(SEED), []
    news = [lambda r: world.new_video(r, test=True, begin=0)] * videos + [
        lambda r: world.new_picture(r, test=True)
    ] * pictures
    for i, new in enumerate([*news, *[lambda r: world.new_zoomable(r, test=True)] * ZOOMS]):
        scene = new(rng)
        height, width = sizes(rng, scene.aspect)
        path, quality = folder / f"{i:04d}.{'mp4' if scene.is_video else 'jpg'}", int(rng.integers(0, 15))
        if not path.exists() and scene.is_video:
            write_video(path, scene, height, width, 20 + quality)
        elif not path.exists():
            write_picture(path, scene, height, width, 95 - 3 * quality)
        out.append((scene, path))
    return out


# ------------------------------------------------------------------------------------------------ asking


@dataclass
class Question:
    """group: its row of the table. kind: how its answer is checked. item: index of the clip or picture, None for none."""

    group: str
    kind: str
    text: str
    truth: str
    item: int | None = None
    call: dict | None = None  # the arguments of the zoom that the answer needs


def message(path, question, **more):
    parts = [{"type": "text", "text": question}]
    if path is not None:
        kind = "video" if path.suffix == ".mp4" else "image"
        parts = [{"type": kind, kind: str(path), **more}, *parts]
    return {"role": "user", "content": parts}


def ask(model, question, path, **more):
    """What the model says, and whether it is right."""
    first = message(path, question.text, **more)
    settings = {"temperature": 0, "max_new_tokens": 120}
    if question.call is not None:
        return zoomed(model, question, path, first, settings)
    reply = model.chat([first], enable_thinking=question.group == "think", **settings)
    right = questions.right(question.kind, reply.text, question.truth)
    return reply.text, right and bool(reply.thinking) == (question.group == "think")


def zoomed(model, question, path, first, settings):
    """One turn that must be a single call of the tool, and one that answers from what it returns."""
    reply = model.chat([first], tools=[ZOOM], **settings)
    said = reply.text + "".join(f"{call.name} {call.text}" for call in reply.tool_calls)
    if reply.text or [(call.name, call.arguments) for call in reply.tool_calls] != [("zoom", question.call)]:
        return said, False
    call = {"name": "zoom", "arguments": question.call}
    result = message(path, "", **question.call)["content"][:1]
    turns = [first, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": result}]
    answer = model.chat(turns, tools=[ZOOM], **settings).text
    return said + answer, answer.strip() == question.truth


def asked(items):
    """One question of every type about each clip and picture, and what is asked without one."""
    rng, out = np.random.default_rng(SEED + 1), []
    for i, (scene, _) in enumerate(items):
        if scene.zoom:
            text, start, end, truth = questions.between(rng, scene, True)
            out.append(Question("zoom", "zoom", text, truth, i, {"start": start, "end": end}))
            continue
        for kind in VIDEO_KINDS if scene.is_video else PICTURE_KINDS:
            found = next(filter(None, (questions.ask(rng, scene, True, kind) for _ in range(20))), None)
            if found:
                out.append(Question(kind if scene.is_video else "picture", *found, i))
    media = [q for q in out if q.group != "zoom"]
    out += [replace(media[int(i)], group="think") for i in rng.permutation(len(media))[:THOUGHTS]]
    for _, unseen, truth in questions.TEXT:
        out += [Question("text", "text", text, truth) for text in unseen]
    return out


def scores(model, items, listed, report=None, shift=0):
    """Whether each answer is right, per group; with `shift`, each is asked about the item that far along."""
    hits = defaultdict(list)
    for q in listed:
        path = None if q.item is None else items[(q.item + shift) % len(items)][1]
        said, right = ask(model, q, path)
        hits[q.group].append(right)
        if report is not None and not right:
            report.append(
                {"type": q.group, "file": path and path.name, "question": q.text, "said": said, "true": q.truth}
            )
    return hits


def time_shift(model, items, folder, listed, seconds=10, most=60):
    """Whether "when" answers are right when the same clip starts `seconds` later in its file."""
    hits = []
    for q in [q for q in listed if q.group == "when"][:most]:
        scene, path = items[q.item]
        moved, out = later(scene, seconds), folder / f"{path.stem}-later.mp4"
        if not out.exists():
            write_video(out, moved, *sizes(np.random.default_rng(q.item), scene.aspect), 24)
        name, mark = q.truth.split(" appears at ")
        mark = moved.marks[scene.marks.index(mark.split(" ")[0])]
        shifted = replace(q, truth=f"{name} appears at {mark} seconds.")
        hits.append(ask(model, shifted, out, start=seconds)[1])
    return hits


def percent(hits):
    return 100 * sum(hits) / max(1, len(hits))


def evaluated(args):
    """{row: [percent, questions]} and the wrong answers."""
    model = ivlite.load(args.model or args.work / f"demo-{args.type}.gguf")
    items = made(args.work / "clips", args.videos, args.pictures)
    listed, wrong = asked(items), []
    hits = scores(model, items, listed, wrong)
    result = {group: [round(percent(h), 1), len(h)] for group, h in hits.items()}
    result["all"] = [round(percent(sum(hits.values(), [])), 1), len(listed)]
    if args.controls:
        swapped = scores(model, items[: args.videos], [q for q in listed if q.group in VIDEO_KINDS], shift=1)
        result |= {f"wrong video: {g}": [round(percent(h), 1), len(h)] for g, h in swapped.items()}
        shifted = time_shift(model, items, args.work / "clips", listed)
        result["when, 10 s later"] = [round(percent(shifted), 1), len(shifted)]
    return result, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path("work"), help="where export.py left the files, and clips are made")
    add("--model", help="a model file, or `demo` for the one in the package (default: the one of --type in --work)")
    add("--type", default="q8_0", help="bf16, q8_0 or q4_0")
    add("--videos", type=int, default=110)
    add("--pictures", type=int, default=50)
    add("--controls", action=argparse.BooleanOptionalAction, default=True)
    add("--agent", action="store_true", help="asks the agent about long films instead, and one pass as a control")
    add("--films", type=int, default=60, help="with --agent: seven questions about each")
    add("--follow", type=int, default=1, help="with --agent: to how many of these another question follows")
    add("--passes", action=argparse.BooleanOptionalAction, default=True, help="with --agent: one pass, too")
    add(
        "--thinking",
        type=int,
        default=Budget().thinking,
        help="with --agent: tokens of thought before each call (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.agent:
        return evaluate_agent.report(args)
    start = time.time()
    result, wrong = evaluated(args)
    for name, (share, count) in result.items():
        print(f"{name:24s} {share:5.1f} %  of {count}")
    print(f"{time.time() - start:.0f} s")
    report = args.work / f"scores-{Path(args.model).stem if args.model else args.type}.json"
    report.write_text(json.dumps({"scores": result, "wrong": wrong}, indent=1))


if __name__ == "__main__":
    main()
