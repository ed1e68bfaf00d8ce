"""Trains the demo model on two CPU cores, or on a card where there is one. Resumes from its last checkpoint.

    python train.py --work /tmp/demo                  # from nothing: it learns to see, to answer, and to play the agent
    python train.py --work /tmp/demo --warm demo      # the last of these alone, from the weights of a model file

Every batch follows from the seed and the number of its step, so a resumed run sees what an undisturbed one sees.
"""

import argparse
import itertools
import math
import multiprocessing
import time
from collections import defaultdict, deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import agent_stage
import data
import numpy as np
import packed
import torch
import traces
import warm
import world
from model import HINTS, PROBED, InternVideo3, Layer, patchified
from optimiser import Optimiser, halved
from tokenizers import Tokenizer
from torch.nn import functional as F

SEED = 3
DIGIT, NAME = 3.0, 3.0
LEAD = 0.45  # share of a batch, of two processes, that falls to the one which also steps: both are ready together then


# ------------------------------------------------------------------------------------------------ losses


def made(args, speaker, step, rank):
    """The batch of a step and a process: looks in the first stage, then conversations, about single moments first, then the agent."""
    rng, size = np.random.default_rng([SEED, step, rank]), portion(args, rank)
    if step >= args.look + args.steps:
        roll = np.random.default_rng([SEED, step]).random()
        return agent_stage.made(rng, speaker, roll, size, args)
    if step < args.look:
        return data.glance(rng, 8 * size)
    if step < args.look + args.name:
        return data.naming(rng, speaker, 2 * size)
    done = (step - args.look - args.name) / (args.steps - args.name)
    return data.batch(rng, speaker, size, min(1.0, done / args.easy))


def portion(args, rank):
    """How much of a batch is a process's."""
    lead = round(args.batch * 2 * LEAD / args.processes) if args.processes > 1 else args.batch
    return lead if rank == 0 else (args.batch - lead) // (args.processes - 1)


def tensors(b, device="cpu"):
    """A batch as the arguments of the model, the targets, and the ids that are left out of the softmax of each.

    b: as `data.packed` gives it. "prefix": ids of what stands before every sequence, if anything does; "sample": some of them,
    which a processor takes for all.
    """
    ids, segment, positions, targets, at, barred = (
        torch.from_numpy(b[k]).to(device) for k in ("ids", "segment", "positions", "targets", "at", "barred")
    )
    prefix = len(b.get("prefix", ()))
    if device != "cpu":
        seen = packed.mask(segment, prefix)
    else:
        seen = b["sample"].blocks(b["segment"]) if "sample" in b else packed.Blocks(b["segment"], prefix)
    targets = targets.view(-1)
    rows = (targets != data.IGNORE).nonzero()[:, 0]
    frames = b["frames"] if isinstance(b["frames"], list) else [b["frames"]]
    inputs = (ids, positions, seen, [torch.from_numpy(f).to(device) for f in frames], at, rows)
    return inputs, targets[rows], barred.view(-1, data.UNHEARD)[rows]


def spoken(logits, targets, barred, rare):
    """Loss of the answers (rows,). rare: (ids, how often they count): digits, being the rarest and the hardest of what is said;

    while the agent is played also the colours and shapes, of which two in a question are mixed most easily.
    """
    weight = 1 + sum((often - 1) * torch.isin(targets, ids) for ids, often in rare)
    logits = F.pad(logits.float(), (0, 1)).scatter(1, barred % (logits.shape[1] + 1), -math.inf)[:, :-1]
    return (weight * F.cross_entropy(logits, targets, reduction="none")).sum() / weight.sum()


def barred_classes():
    """Bool (7, 5, 6, 18): for a colour, shape and motion, the probe's classes that would make it a held-out one."""
    out = torch.zeros(*PROBED, sum(PROBED), dtype=torch.bool)
    colors, motions = list(world.COLORS), world.MOTIONS
    for c, s, m in itertools.product(*(range(1, n) for n in PROBED)):
        ways = [motions[m - 1]] if m < 5 else motions[4:]  # the probe calls pictures still

        def new(c, s, ways=ways):
            return any(world.held_out(colors[c - 1], world.SHAPES[s - 1], w) for w in ways)

        others = [new(i, s) and i != c for i in range(1, 7)], [new(c, i) and i != s for i in range(1, 5)]
        turns = [new(c, s, [w] if w != "still" else motions[4:]) and i != m for i, w in enumerate(motions[:5], 1)]
        out[c, s, m] = torch.tensor([False, *others[0], False, *others[1], False, *turns])
    return out


BARRED = barred_classes()


def probed(seen, labels):
    """`classified` of the probe (tokens, 18), with what training never shows left out of it."""
    return classified(
        seen.float().masked_fill(BARRED.to(seen.device)[labels.clamp(min=0).unbind(-1)], -1e9), PROBED, labels
    )


def classified(scores, classes, labels):
    """Loss of several classifications side by side, and the share right of each where the label is above nothing."""
    parts = scores.float().split(classes, -1)
    loss = sum(F.cross_entropy(part, labels[:, i], ignore_index=data.IGNORE, reduction="sum")
               / (labels[:, i] != data.IGNORE).sum().clamp(min=1) for i, part in enumerate(parts))  # fmt: skip
    return loss, [(part.argmax(-1) == labels[:, i])[labels[:, i] > 0].float().mean() for i, part in enumerate(parts)]


def looking(model, b, device="cpu"):
    """Loss of the probe alone, with nothing but the vision tower run, and the shares it names right."""
    seen = model.named(*model.model.visual(*patchified(torch.from_numpy(b["frames"]).to(device))))
    return probed(seen, torch.from_numpy(b["labels"]).to(device)[:, :3])


def talking(model, b, weight, rare, device="cpu"):
    """Loss of the answers plus `weight` times those of probe and hint, and what is right: tokens, then labels."""
    inputs, targets, barred = tensors(b, device)
    logits, seen, hint = agent_stage.logits(model, b, inputs)
    right = (logits.argmax(-1) == targets).float().mean()
    loss = spoken(logits, targets, barred, rare)
    known = torch.from_numpy(b["labels"]).to(device)
    (probe, named), (clue, told) = probed(seen, known[:, :3]), classified(hint, HINTS, known[:, 3:])
    return loss + weight * (probe + clue), [right, *named, *told]


@torch.no_grad()
def held_out(model, speaker, agent=False):
    """Share of held-out answers right token by token, per kind, as text. agent: its own, too."""
    hits, device = defaultdict(list), next(model.parameters()).device
    batches = [data.batch(np.random.default_rng([SEED + 1, seed]), speaker, 32, 1.0, test=True) for seed in range(3)]
    for b in batches + agent * agent_stage.tests(speaker, SEED + 1):
        inputs, targets, _ = tensors(b, device.type)
        with torch.autocast(device.type, torch.bfloat16, halved(device)):
            right = (agent_stage.logits(model, b, inputs)[0].argmax(-1) == targets).cpu().numpy()
        rows, length = inputs[5].cpu().numpy(), b["ids"].shape[1]
        number = b["segment"].reshape(-1)[rows]
        for at, part, kind in b["kinds"]:
            hits[kind].append(right[(rows // length == at) & (number == part)].all())
    return "  ".join(f"{kind} {100 * np.mean(h):.0f}" for kind, h in sorted(hits.items()))


# ------------------------------------------------------------------------------------------------ the loop


def share_of_rate(progress, warm=0.02, flat=0.45):
    """The learning rate's share at a share of the steps: warm-up, a plateau, a cosine down."""
    if progress < warm:
        return progress / warm
    return 1.0 if progress < flat else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - flat) / (1 - flat)))


def train(args):
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args)
    torch.manual_seed(SEED)
    model, saved = InternVideo3(), {"step": 0, "optimiser": []}
    if (args.work / "last.pt").exists():
        saved = torch.load(args.work / "last.pt", map_location=args.device, weights_only=True)
        model.load_state_dict(saved["model"])
        print(f"resumed at step {saved['step']}", flush=True)
    elif args.warm:
        warm.load(model, warm.located(args.warm), Tokenizer.from_file(str(args.work / "tokenizer.json")))
        saved["step"] = args.look + args.steps
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.2f} M parameters", flush=True)
    if args.device != "cpu":
        return learn_on_card(args, model.to(args.device), saved)
    model.share_memory()
    grads = torch.zeros(args.processes, count).share_memory_()
    context = multiprocessing.get_context("spawn")
    meet = context.Barrier(args.processes)
    others = [context.Process(target=learn, args=(r, args, model, grads, meet, saved["step"], []), daemon=True)
              for r in range(1, args.processes)]  # fmt: skip
    for other in others:
        other.start()
    learn(0, args, model, grads, meet, saved["step"], saved["optimiser"])


def prepare(args):
    """Makes the tokenizer: that of the model that it starts from, or a new one, and more words for the agent."""
    file = args.work / "tokenizer.json"
    if not file.exists():
        before = warm.opened(warm.located(args.warm))[1] if args.warm else data.new_tokenizer()
        traces.wider(before, agent_stage.config()).save(str(file))


def end_of(args):
    return args.look + args.steps + args.agent


def progress(args, step):
    """The share of its stage that is done at a step; the first stage is the tower's alone."""
    if step < args.look + args.steps:
        return (step - args.look) / args.steps
    return (step - args.look - args.steps) / args.agent


def share(args, model, b, step, rare):
    """(loss, what is right) of a batch of a step."""
    with torch.autocast(args.device, torch.bfloat16, halved(args.device)):
        if step < args.look:
            return looking(model, b, args.device)
        weight = args.probe * max(0.1, 1 - 1.2 * progress(args, step))
        names = step >= args.look + args.steps
        return talking(model, b, weight, rare if names else rare[:1], args.device)


def counting(speaker, device):
    """What counts more often than the rest of what is said, as `spoken` takes it: digits, then the words of names."""
    words = [word for name in (*world.COLORS, *world.SHAPES) for word in (name, f" {name}")]
    names = {speaker.encode(word)[0] for word in words if len(speaker.encode(word)) == 1}
    digits = [speaker.encode(d)[0] for d in "0123456789"]
    return [(torch.tensor(sorted(ids), device=device), often) for ids, often in ((digits, DIGIT), (names, NAME))]


def learn(rank, args, model, grads, meet, step, state):
    """One of the processes: each runs a batch of its own, the first one sums the gradients and steps for all."""
    torch.set_num_threads(1)
    if args.compile:  # a fifth faster; needs a C++ compiler
        Layer.forward = torch.compile(Layer.forward, dynamic=False)
    parts = grads[rank].split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.grad = part.view_as(p)
    speaker = data.Speaker(Tokenizer.from_file(str(args.work / "tokenizer.json")))
    rare, end = counting(speaker, "cpu"), end_of(args)
    lead = Lead(args, model, speaker, step, state) if rank == 0 else None
    b = made(args, speaker, step, rank)
    while step < end:
        grads[rank].zero_()
        loss, right = share(args, model, b, step, rare)
        (loss * (portion(args, rank) / args.batch)).backward()
        meet.wait()
        step += 1
        if lead:
            grads[0].copy_(grads.sum(0))
            torch.set_num_threads(args.processes)  # the other processes wait
            lead.step(step, loss, right)
            torch.set_num_threads(1)
        b = made(args, speaker, step, rank) if step < end else None
        meet.wait()


def learn_on_card(args, model, saved):
    """The same steps on a card; the batches are made by other processes ahead of time."""
    speaker = data.Speaker(Tokenizer.from_file(str(args.work / "tokenizer.json")))
    rare, step = counting(speaker, args.device), saved["step"]
    lead = Lead(args, model, speaker, step, saved["optimiser"])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, starting, (args,)) as pool:
        ahead = deque()
        asked = itertools.product(range(step, end_of(args)), range(args.processes))
        while step < end_of(args):
            while len(ahead) < 2 * args.workers and (place := next(asked, None)):
                ahead.append(pool.submit(made_ahead, *place))
            model.zero_grad()
            for rank in range(args.processes):
                loss, right = share(args, model, ahead.popleft().result(), step, rare)
                (loss * (portion(args, rank) / args.batch)).backward()
            step += 1
            lead.step(step, loss, right)


def starting(args):
    """Of a process that makes batches."""
    torch.set_num_threads(1)
    made_ahead.args = args
    made_ahead.speaker = data.Speaker(Tokenizer.from_file(str(args.work / "tokenizer.json")))


def made_ahead(step, rank):
    return made(made_ahead.args, made_ahead.speaker, step, rank)


class Lead:
    """What the process that steps does beside learning: the optimisers, the log, checkpoints."""

    def __init__(self, args, model, speaker, step, state):
        self.args, self.model, self.speaker = args, model, speaker
        self.borders = [0, args.look, args.look + args.steps, end_of(args)]
        self.learners = optimisers(args, model, self.stage(step))
        for optimiser, saved in zip(self.learners, state, strict=False):
            optimiser.load(saved)
        self.last, self.sums = time.time(), []

    def stage(self, step):
        """0: the tower alone; 1: all of it, of clips; 2: the agent."""
        return sum(step >= border for border in self.borders[1:3])

    def step(self, step, loss, right):
        """The `step`-th step, with the gradients of all."""
        stage = self.stage(step - 1)
        first, last = self.borders[stage : stage + 2]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.learners:
            optimiser.step(share_of_rate((step - 1 - first) / (last - first)))
        self.sums.append((loss.item(), *(r.item() for r in right), *[np.nan] * (10 - len(right) - (stage == 0))))
        if step % 50 == 0 or step == last:
            self.log(step, stage)
        if step == last and step < self.borders[-1]:
            self.learners = optimisers(self.args, self.model, stage + 1)
        if step % 250 == 0 or step == last:
            self.save(step)
            if stage and (step % 500 == 0 or step == self.borders[-1]):
                print(f"held out: {held_out(self.model, self.speaker, stage == 2)}", flush=True)

    def log(self, step, stage):
        words = ("tokens", "colors", "shapes", "motions", "tens", "ones", "tenths", "first", "across", "down")[
            1 if stage == 0 else 0 :
        ]
        pace = (time.time() - self.last) / len(self.sums)
        sums = np.array(self.sums)
        sums = sums[:, ~np.isnan(sums).all(0)]
        shares = "  ".join(f"{w} {r:.3f}" for w, r in zip(words, np.nanmean(sums[:, 1:], 0), strict=False))
        print(f"step {step:5d}  {pace:.2f} s  loss {sums[:, 0].mean():.4f}  right: {shares}", flush=True)
        self.last, self.sums = time.time(), []

    def save(self, step):
        work, states = self.args.work, [o.state() for o in self.learners]
        torch.save({"model": self.model.state_dict(), "optimiser": states, "step": step}, work / "next.pt")
        (work / "next.pt").rename(work / "last.pt")


def optimisers(args, model, stage):
    """One of what sees, and when the whole model learns, a calmer one and one of what answers."""
    sees, answers = [], []
    for name, p in model.named_parameters():
        slow = name.startswith("model.visual.") or (stage < 2 and name.startswith("probe."))
        (sees if slow else answers).append((name, p))
    if stage == 0:
        return [Optimiser(sees, args.look_lr, args.look_table_lr)]
    less, calm = (args.agent_share, args.agent_calm) if stage == 2 else (1.0, args.calm)
    return [Optimiser(part, share * less * args.lr, share * less * args.table_lr)
            for part, share in ((sees, calm), (answers, 1.0))]  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path("work"), help="folder for checkpoints and the tokenizer")
    add(
        "--warm",
        metavar="MODEL",
        help="`demo` or a model file in bf16 or q8_0: learns the agent alone, from its weights",
    )
    add("--look", type=int, default=800, help="steps in which the vision tower alone learns to name what it sees")
    add("--steps", type=int, default=3300, help="steps in which the whole model learns to answer")
    add("--name", type=int, default=350, help="the first of these, about pictures and single pairs of frames")
    add("--agent", type=int, default=3300, help="steps in which it learns to play the agent")
    add("--earlier", type=float, default=0.24, help="share of these that repeat the stages before")
    add(
        "--apart",
        type=float,
        default=0.44,
        help="share of these about what tools ask apart; the rest are conversations",
    )
    add("--sampled", type=float, default=0.8, help="share of the conversations that see some of the instructions alone")
    add("--batch", type=int, default=20)
    add("--processes", type=int, default=2, help="that share a batch, one thread each")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--workers", type=int, default=12, help="processes that make batches for a card")
    add("--lr", type=float, default=0.006, help="of what answers, inner matrices; three times that is too much")
    add("--table-lr", type=float, default=1e-3, help="of what answers, tables, norms and biases")
    add("--look-lr", type=float, default=0.02, help="of the tower while it learns alone, inner matrices")
    add("--look-table-lr", type=float, default=3e-3, help="of the tower while it learns alone, the rest")
    add("--calm", type=float, default=0.15, help="the tower's share of the rates while the whole model learns")
    add(
        "--agent-calm",
        type=float,
        default=0.3,
        help="the tower's share of these: signs and sizes of frames are new to it",
    )
    add("--agent-share", type=float, default=0.7, help="the agent's share of the rates")
    add("--probe", type=float, default=0.5, help="weight of the probe's loss at the start")
    add("--easy", type=float, default=0.15, help="share of the steps in which scenes grow from easy to everything")
    add("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())
