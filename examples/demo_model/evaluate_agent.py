"""Asks the agent about long films that no training saw, and the same model in one pass, on real H.264 files with subtitles.

    python evaluate.py --agent --work work --type q8_0      # 420 questions about 60 films of 5 to 60 minutes

One pass gets as many frames as the agent looked at, or those of the default plan. Films have combinations of colour, shape
and motion that training never shows, and questions wordings that it never shows.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field

import film_questions
import films
import numpy as np
from film_questions import ROWS

import ivlite
from ivlite.agent import Agent, Budget
from ivlite.errors import ContextError
from ivlite.library import Library

SEED = 2099
EACH = (*ROWS, "needle")  # questions about one film
FRAMES = 60000  # that a question may take: a search of an hour takes 3600 of them
PASSES = ("agent", "same frames", "default plan")


@dataclass
class Score:
    """Of one way to answer: whether each answer is right, by row; and what the questions cost."""

    right: dict = field(default_factory=lambda: defaultdict(list))
    cost: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, row, right, **cost):
        self.right[row].append(right)
        for name, value in cost.items():
            self.cost[name].append(value)


def made(folder, count):
    """The films of the evaluation with their files, made anew with a fixed seed: [(film, path)]."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for i in range(count):
        rng = np.random.default_rng([SEED, i])
        film, path = films.new_film(rng, test=True), folder / f"{i:04d}.mp4"
        if not path.with_suffix(".srt").exists():  # it is written last
            films.write_film(path, film, int(rng.integers(22, 31)))
        out.append((film, path))
    return out


def asked(film, number):
    """The questions about a film, each with one that follows it, or None."""
    rng = np.random.default_rng([SEED, number, 1])
    for row in EACH:
        question = film_questions.ask(rng, film, row, test=True)
        yield question, film_questions.follow_up(rng, film, question, test=True)


def seen(answer):
    """(start, end) of the evidence that an answer rests on."""
    return [(e.start, e.end) for e in answer.cited()]


# ------------------------------------------------------------------------------------------------ one question


def by_agent(model, path, question, following, thinking):
    """(Answer, that to the question that follows, or None)."""
    budget = Budget(frames=FRAMES, thinking=thinking)
    with Library.in_memory() as library, Agent(model, [str(path)], budget=budget, library=library) as agent:
        answer = agent.ask(question.text)
        return answer, following and agent.ask(following.text)


def in_one_pass(model, path, question, **more):
    """(text, usage) of an answer from the frames alone."""
    part = {"type": "video", "video": str(path), **more}
    message = {"role": "user", "content": [part, {"type": "text", "text": question.text}]}
    reply = model.chat([message], temperature=0, max_new_tokens=60)
    return reply.text, reply.usage


def with_frames(model, path, question, frames):
    """One pass with as many frames, or with half as often as the context demands: (text, frames)."""
    while frames >= 2:
        try:
            return in_one_pass(model, path, question, nframes=frames)[0], frames
        except ContextError:
            frames //= 2
    return "", 0


def timed(question, text):
    """Whether the text of one pass is right: it writes its times itself."""
    if question.kind != "when" or question.absent:
        return (
            film_questions.right(question, text)
            or text.strip() == f"No, {question.truth[0].lower()}{question.truth[1:]}"
        )
    words = text.replace(" seconds.", "").split(" at ")
    if len(words) != 2 or not words[0] == question.truth.removesuffix(" at."):
        return False
    try:
        return abs(float(words[1]) - question.events[0].shown[0]) <= film_questions.WITHIN
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------ the table


def evaluated(args):
    """(scores by way, what is reported beside them, answers that are wrong or a second off)."""
    model = ivlite.load(args.model or args.work / f"demo-{args.type}.gguf")
    scores, wrong, notes = {name: Score() for name in PASSES}, [], defaultdict(list)
    for number, (film, path) in enumerate(made(args.work / "films", args.films)):
        for at, (question, following) in enumerate(asked(film, number)):
            follow = following if at < args.follow else None
            answer, next_answer = by_agent(model, path, question, follow, args.thinking)
            right = film_questions.right(question, answer.text)
            scores["agent"].add(question.row, right, **costs(answer.usage))
            if question.absent:
                notes["not there, said so"].append(right)
            within = film_questions.in_time(question, seen(answer)) if right else None
            if within is not None:
                notes["times within 1 s"].append(within)
            if next_answer is not None:
                notes["follow-up right"].append(film_questions.right(follow, next_answer.text))
                notes["follow-up seconds"].append(next_answer.usage["seconds"] / max(1e-6, answer.usage["seconds"]))
                notes["follow-up tokens"].append(spent(next_answer.usage) / max(1, spent(answer.usage)))
            if not right or within is False:
                wrong.append({"row": question.row, "file": path.name, "question": question.text, "said": answer.text,
                              "true": question.truth, "end": answer.finish_reason, "cited": seen(answer),
                              "events": [event.shown for event in question.events]})  # fmt: skip
            if args.passes:
                one_pass(model, path, question, answer.usage["frames"], scores)
        if not (number + 1) % 5:
            print(f"{number + 1} films: {percent(sum(scores['agent'].right.values(), [])):.1f} %", flush=True)
    return scores, notes, wrong


def one_pass(model, path, question, frames, scores):
    """The answers of one pass, with as many frames as the agent's and by the default plan."""
    start = time.time()
    text, taken = with_frames(model, path, question, frames)
    scores["same frames"].add(question.row, timed(question, text), frames=taken, seconds=time.time() - start)
    start = time.time()
    text, usage = in_one_pass(model, path, question)
    seconds, tokens = time.time() - start, usage["prompt_tokens"] + usage["new_tokens"]
    scores["default plan"].add(
        question.row, timed(question, text), frames=usage["frames"], seconds=seconds, tokens=tokens
    )


def costs(usage):
    return {"frames": usage["frames"], "seconds": usage["seconds"], "tokens": spent(usage)}


def spent(usage):
    """Tokens that an agent's question took, in and out, those that it had computed before apart."""
    return usage["prompt_tokens"] + usage["new_tokens"]


def percent(hits):
    return 100 * sum(hits) / max(1, len(hits))


def report(args):
    start = time.time()
    scores, notes, wrong = evaluated(args)
    print("| | " + " | ".join([*ROWS, "all", "frames", "tokens", "seconds"]) + " |")
    print("|" + "---|" * (len(ROWS) + 5))
    for name, score in scores.items():
        if score.right:
            shares = [percent(score.right[row]) for row in ROWS] + [percent(sum(score.right.values(), []))]
            means = [f"{np.mean(score.cost[c]):.1f}" if score.cost[c] else "" for c in ("frames", "tokens", "seconds")]
            print(f"| {name} | " + " | ".join([*(f"{s:.1f}" for s in shares), *means]) + " |")
    for name, values in notes.items():
        share = (
            f"{100 * np.mean(values):.1f} %"
            if "follow-up" not in name or "right" in name
            else f"{np.median(values):.3f} of the first"
        )
        print(f"{name}: {share} ({len(values)})")
    print(f"{time.time() - start:.0f} s")
    out = {n: {r: [round(percent(h), 1), len(h)] for r, h in s.right.items()} for n, s in scores.items()}
    (args.work / "scores-agent.json").write_text(json.dumps({"scores": out, "wrong": wrong}, indent=1))
