"""Trains the demo model on two CPU cores. Resumes from its last checkpoint.

    python train.py --work /tmp/demo

Every batch follows from the seed and the number of its step, so a resumed run sees what an undisturbed one sees.
"""

import argparse
import itertools
import math
import multiprocessing
import time
from collections import defaultdict
from pathlib import Path

import data
import numpy as np
import torch
import world
from model import HINTS, PROBED, InternVideo3, Layer, patchified
from tokenizers import Tokenizer
from torch.nn import functional as F

SEED = 3
DIGIT = 3.0
LEAD = 0.45  # share of a batch, of two processes, that falls to the one which also steps: both are ready together then


# ------------------------------------------------------------------------------------------------ optimiser


class Muon:
    """Momentum whose matrices are made orthogonal (five Newton-Schulz steps), equal shapes in one go."""

    def __init__(self, params, lr, momentum=0.95, decay=0.01):
        self.groups, self.lr, self.momentum, self.decay = {}, lr, momentum, decay
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.velocity = {s: torch.zeros(len(ps), *s) for s, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, share):
        for shape, params in self.groups.items():
            grad, v = torch.stack([p.grad for p in params]), self.velocity[shape]
            v.lerp_(grad, 1 - self.momentum)
            update = orthogonal(torch.lerp(grad, v, self.momentum))
            lr = self.lr * share
            scale = max(1, shape[0] / shape[1]) ** 0.5
            for p, u in zip(params, update, strict=True):
                p.mul_(1 - lr * self.decay).add_(u, alpha=-lr * scale)


def orthogonal(x):
    """(n, a, b) -> nearly orthogonal matrices of the same directions, in bfloat16."""
    tall = x.shape[1] > x.shape[2]
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    x = x.mT if tall else x
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    """Muon for the inner matrices, AdamW for tables, head, norms and biases."""

    def __init__(self, named, lr, table_lr):
        def is_inner(name, p):
            return p.ndim == 2 and not any(s in name for s in ("embed", "lm_head", "probe", "hint"))

        self.muon = Muon([p for n, p in named if is_inner(n, p)], lr)
        rest = [p for n, p in named if not is_inner(n, p)]
        self.adam = torch.optim.AdamW(rest, table_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.table_lr = table_lr

    def step(self, share):
        self.muon.step(share)
        for group in self.adam.param_groups:
            group["lr"] = self.table_lr * share
        self.adam.step()

    def state(self):
        return {"adam": self.adam.state_dict(), "muon": self.muon.velocity}

    def load(self, state):
        self.adam.load_state_dict(state["adam"])
        self.muon.velocity = state["muon"]


# ------------------------------------------------------------------------------------------------ losses


def made(args, speaker, step, rank):
    """The batch of a step and a process: looks in the first stage, then conversations, about single moments first."""
    rng, size = np.random.default_rng([SEED, step, rank]), portion(args, rank)
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


def tensors(b):
    """A batch as the arguments of the model, the targets, and the ids that are left out of the softmax of each."""
    ids, segment = torch.from_numpy(b["ids"]), torch.from_numpy(b["segment"])
    n = ids.shape[1]
    before = torch.ones(n, n, dtype=torch.bool).tril()
    same = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == 0)
    targets = torch.from_numpy(b["targets"]).view(-1)
    rows = (targets != data.IGNORE).nonzero()[:, 0]
    inputs = (ids, torch.from_numpy(b["positions"]), (same & before)[:, None], [torch.from_numpy(b["frames"])],
              torch.from_numpy(b["at"]), rows)  # fmt: skip
    return inputs, targets[rows], torch.from_numpy(b["barred"]).view(-1, data.UNHEARD)[rows]


def spoken(logits, targets, barred, digits):
    """Loss of the answers (rows,); a digit counts DIGIT times, being the rarest and the hardest of what is said."""
    weight = 1 + (DIGIT - 1) * torch.isin(targets, digits)
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
    return classified(seen.float().masked_fill(BARRED[labels.clamp(min=0).unbind(-1)], -1e9), PROBED, labels)


def classified(scores, classes, labels):
    """Loss of several classifications side by side, and the share right of each where the label is above nothing."""
    parts = scores.float().split(classes, -1)
    loss = sum(F.cross_entropy(part, labels[:, i], ignore_index=data.IGNORE) for i, part in enumerate(parts))
    return loss, [(part.argmax(-1) == labels[:, i])[labels[:, i] > 0].float().mean() for i, part in enumerate(parts)]


def looking(model, b):
    """Loss of the probe alone, with nothing but the vision tower run, and the shares it names right."""
    seen = model.named(*model.model.visual(*patchified(torch.from_numpy(b["frames"]))))
    return probed(seen, torch.from_numpy(b["labels"])[:, :3])


def talking(model, b, weight, digits):
    """Loss of the answers plus `weight` times those of probe and hint, and what is right: tokens, then labels."""
    inputs, targets, barred = tensors(b)
    logits, seen, hint = model(*inputs)
    known = torch.from_numpy(b["labels"])
    (probe, named), (clue, told) = probed(seen, known[:, :3]), classified(hint, HINTS, known[:, 3:])
    right = (logits.argmax(-1) == targets).float().mean()
    return spoken(logits, targets, barred, digits) + weight * (probe + clue), [right, *named, *told]


@torch.no_grad()
def held_out(model, speaker):
    """Share of held-out answers right token by token, per kind, as text."""
    hits = defaultdict(list)
    for seed in range(3):
        b = data.batch(np.random.default_rng([SEED + 1, seed]), speaker, 32, 1.0, test=True)
        inputs, targets, _ = tensors(b)
        with torch.autocast("cpu", torch.bfloat16):
            right = (model(*inputs)[0].argmax(-1) == targets).numpy()
        rows, length = inputs[-1].numpy(), b["ids"].shape[1]
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
    if not (args.work / "tokenizer.json").exists():
        data.new_tokenizer().save(str(args.work / "tokenizer.json"))
    torch.manual_seed(SEED)
    model, saved = InternVideo3(), {"step": 0, "optimiser": []}
    if (args.work / "last.pt").exists():
        saved = torch.load(args.work / "last.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        print(f"resumed at step {saved['step']}", flush=True)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.2f} M parameters", flush=True)
    model.share_memory()
    grads = torch.zeros(args.processes, count).share_memory_()
    context = multiprocessing.get_context("spawn")
    meet = context.Barrier(args.processes)
    others = [context.Process(target=learn, args=(r, args, model, grads, meet, saved["step"], []), daemon=True)
              for r in range(1, args.processes)]  # fmt: skip
    for other in others:
        other.start()
    learn(0, args, model, grads, meet, saved["step"], saved["optimiser"])


def learn(rank, args, model, grads, meet, step, state):
    """One of the processes: each runs a batch of its own, the first one sums the gradients and steps for all."""
    torch.set_num_threads(1)
    if args.compile:  # a fifth faster; needs a C++ compiler
        Layer.forward = torch.compile(Layer.forward, dynamic=False)
    parts = grads[rank].split([p.numel() for p in model.parameters()])
    for p, part in zip(model.parameters(), parts, strict=True):
        p.grad = part.view_as(p)
    speaker = data.Speaker(Tokenizer.from_file(str(args.work / "tokenizer.json")))
    digits = torch.tensor([speaker.encode(d)[0] for d in "0123456789"])
    end = args.look + args.steps
    lead = Lead(args, model, grads, speaker, step, state) if rank == 0 else None
    b = made(args, speaker, step, rank)
    while step < end:
        grads[rank].zero_()
        with torch.autocast("cpu", torch.bfloat16):
            weight = args.probe * max(0.1, 1 - 1.2 * max(0, step - args.look) / args.steps)
            loss, right = looking(model, b) if step < args.look else talking(model, b, weight, digits)
        (loss * (portion(args, rank) / args.batch)).backward()
        meet.wait()
        step += 1
        if lead:
            lead.step(step, loss, right)
        b = made(args, speaker, step, rank) if step < end else None
        meet.wait()


class Lead:
    """What the first process does beside learning: the optimisers, the log, checkpoints."""

    def __init__(self, args, model, grads, speaker, step, state):
        self.args, self.model, self.grads, self.speaker = args, model, grads, speaker
        self.learners = optimisers(args, model, step < args.look)
        for optimiser, saved in zip(self.learners, state, strict=False):
            optimiser.load(saved)
        self.last, self.sums = time.time(), []

    def step(self, step, loss, right):
        """The `step`-th step, with the gradients of all processes."""
        args, looks = self.args, step <= self.args.look
        self.grads[0].copy_(self.grads.sum(0))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        done = (step - 1) / args.look if looks else (step - 1 - args.look) / args.steps
        torch.set_num_threads(args.processes)  # the other processes wait
        for optimiser in self.learners:
            optimiser.step(share_of_rate(done))
        torch.set_num_threads(1)
        self.sums.append((loss.item(), *(r.item() for r in right)))
        if step % 50 == 0 or step == args.look:
            self.log(step, looks)
        if step == args.look:
            self.learners = optimisers(args, self.model, False)
        if step % 250 == 0 or step in (args.look, args.look + args.steps):
            self.save(step)
            if not looks and step % 500 == 0:
                print(f"held out: {held_out(self.model, self.speaker)}", flush=True)

    def log(self, step, looks):
        words = ("tokens", "colors", "shapes", "motions", "tens", "ones", "tenths", "first")[1 if looks else 0 :]
        pace = (time.time() - self.last) / len(self.sums)
        loss, *right = np.nanmean(self.sums, 0)
        shares = "  ".join(f"{w} {r:.3f}" for w, r in zip(words, right, strict=False))
        print(f"step {step:5d}  {pace:.2f} s  loss {loss:.4f}  right: {shares}", flush=True)
        self.last, self.sums = time.time(), []

    def save(self, step):
        work, states = self.args.work, [o.state() for o in self.learners]
        torch.save({"model": self.model.state_dict(), "optimiser": states, "step": step}, work / "next.pt")
        (work / "next.pt").rename(work / "last.pt")


def optimisers(args, model, looks):
    """One of what sees, and when the whole model learns, a calmer one and one of what answers."""
    sees, answers = [], []
    for name, p in model.named_parameters():
        (sees if name.startswith(("model.visual.", "probe.")) else answers).append((name, p))
    if looks:
        return [Optimiser(sees, args.look_lr, args.look_table_lr)]
    return [Optimiser(sees, args.calm * args.lr, args.calm * args.table_lr), Optimiser(answers, args.lr, args.table_lr)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path("work"), help="folder for checkpoints and the tokenizer")
    add("--look", type=int, default=800, help="steps in which the vision tower alone learns to name what it sees")
    add("--steps", type=int, default=3300, help="steps in which the whole model learns to answer")
    add("--name", type=int, default=350, help="the first of these, about pictures and single pairs of frames")
    add("--batch", type=int, default=20)
    add("--processes", type=int, default=2, help="that share a batch, one thread each")
    add("--lr", type=float, default=0.006, help="of what answers, inner matrices; three times that is too much")
    add("--table-lr", type=float, default=1e-3, help="of what answers, tables, norms and biases")
    add("--look-lr", type=float, default=0.02, help="of the tower while it learns alone, inner matrices")
    add("--look-table-lr", type=float, default=3e-3, help="of the tower while it learns alone, the rest")
    add("--calm", type=float, default=0.15, help="the tower's share of the rates while the whole model learns")
    add("--probe", type=float, default=0.5, help="weight of the probe's loss at the start")
    add("--easy", type=float, default=0.15, help="share of the steps in which scenes grow from easy to everything")
    add("--compile", action=argparse.BooleanOptionalAction, default=True)
    train(parser.parse_args())
