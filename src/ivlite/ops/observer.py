"""Forward hooks: calls a function with the inputs of every weight of a backend."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Named:
    """A weight of a linear layer with the names of its tensors."""

    weight: Any
    names: tuple[str, ...]


class Observed:
    """Wraps a backend and calls the hook; see `ivlite.ops.observed`."""

    same_rows = 1  # the hook sees tokens of the text and no guesses
    step = embedding = None  # a step that is replayed shows no inputs
    together = False

    def __init__(self, ops, observe):
        self.ops, self.observe = ops, observe
        self.latents = []  # names of the weights that multiply latents, one per layer

    def __getattr__(self, name):
        return getattr(self.ops, name)

    def weight(self, fmt, data, shape, *names):
        weight = self.ops.weight(fmt, data, shape, *names)
        if names and len(shape) == 3:
            self.latents.append(names)
        return Named(weight, names) if names and len(shape) == 2 else weight

    def linear(self, x, w, bias=None, into=None, activation="none"):
        if isinstance(w, Named):
            self.observe(w.names, self.ops.numpy(x))
            w = w.weight
        return self.ops.linear(x, w, bias, into, activation)

    def mlp(self, x, up, activation, down, into=None):
        return self.linear(self.linear(x, *up, activation=activation), *down, into)

    def decoder_layer(self, **operands):
        return None

    def cache(self, ranks, rope_dim, capacity, kind):
        return ObservedCache(self.ops.cache(ranks, rope_dim, capacity, kind), self)


class ObservedCache:
    """A cache that passes appended latents to the hook: they are the inputs of the layer's kv_b weight in both attentions."""

    def __init__(self, cache, observed):
        self.cache, self.observed = cache, observed

    def __getattr__(self, name):
        return getattr(self.cache, name)

    def append(self, layer, latent, k_rope):
        ops = self.observed
        if ops.latents:
            ops.observe(ops.latents[layer], ops.ops.numpy(latent))
        self.cache.append(layer, latent, k_rope)
