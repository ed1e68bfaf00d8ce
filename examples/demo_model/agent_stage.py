"""The last stage of training: the agent's conversations, what its tools ask apart, and everything learnt before."""

from functools import cache

import asides
import data
import numpy as np
import packed
import torch
import traces

from ivlite.gguf import SHIPPED, GGUFFile
from ivlite.gguf.config import Config


@cache
def config():
    """Of the demo model in the package: its settings for videos are those of the product."""
    with GGUFFile(SHIPPED["demo"]) as source:
        return Config.from_metadata(source.metadata, SHIPPED["demo"])


def made(rng, speaker, roll, size, args):
    """The batch of a step: of what was learnt before, of questions apart, or of conversations.

    roll: from 0 to 1, decides which. size: of an earlier batch. args: with the shares `earlier` and `apart` of the first two, and
    that of conversations which see a sample of the instructions.
    """
    if roll < args.earlier:
        return data.batch(rng, speaker, size, 1.0)
    if roll < args.earlier + args.apart:
        return asides.batch(rng, speaker, config(), rows(size, asides.LENGTH))
    b = traces.batch(rng, speaker, config(), rows(size, traces.LENGTH))
    if rng.random() < args.sampled:
        b["sample"] = packed.Sample(rng, len(b["prefix"]))
    return b


def rows(size, length):
    """How many rows of a length are as much work as `size` of an earlier batch."""
    return max(1, round(size * data.LENGTH / length))


def logits(model, b, inputs):
    """What the model gives for the inputs of a batch, which may go on from a prefix."""
    if not len(b.get("prefix", ())):
        return model(*inputs)
    before = model.recalled(torch.from_numpy(b["prefix"]).to(inputs[0].device))
    if isinstance(inputs[2], packed.Blocks) and "sample" in b:
        before = [tuple(x[:, :, b["sample"].keys] for x in layer) for layer in before]
    return model(*inputs, before)


def tests(speaker, seed):
    """Batches of films and wordings that training never shows."""
    rngs = [np.random.default_rng([seed, number]) for number in (100, 101)]
    return [
        traces.batch(rngs[0], speaker, config(), 12, test=True),
        asides.batch(rngs[1], speaker, config(), 12, test=True),
    ]
