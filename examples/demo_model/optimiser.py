"""What the weights are changed by: Muon for the inner matrices, AdamW for the rest."""

import torch


class Muon:
    """Momentum whose matrices are made orthogonal (five Newton-Schulz steps), equal shapes in one go."""

    def __init__(self, params, lr, momentum=0.95, decay=0.01):
        self.groups, self.lr, self.momentum, self.decay = {}, lr, momentum, decay
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.velocity = {s: torch.zeros(len(ps), *s, device=ps[0].device) for s, ps in self.groups.items()}

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


def halved(device):
    """Whether products are computed in bfloat16: on a card, and on a processor with AVX-512; others take 28 times as long."""
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX"))


def orthogonal(x):
    """(n, a, b) -> nearly orthogonal matrices of the same directions, in bfloat16 where that is quick."""
    tall = x.shape[1] > x.shape[2]
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if halved(x.device) else x
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
