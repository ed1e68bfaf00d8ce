"""Plans prompts for one model on this machine."""

from dataclasses import replace

from ivlite import models, ops
from ivlite.errors import ContextError
from ivlite.gguf.config import ARCHITECTURE
from ivlite.machine import available_memory, gigabytes, two_sizes
from ivlite.numbers import number, whole
from ivlite.plan import Plan, measure, nearest, store
from ivlite.plan import memory as memory_of
from ivlite.plan.work import before, decoding, vision_seconds
from ivlite.prompt import deduped

BASE = 90 << 20  # bytes of the process without a model
SAME = 0.05  # of a prompt's tokens: a run that reused so many more than planned says nothing about speed
OPENED = 0.03  # seconds of loading a model that has no weights
WORTH_MEASURING = 1024  # tokens of a prompt whose time is worth a second of measuring


class Planner:
    """What is known of a model: its Config, TensorInfos by name, cache kind, and this machine's speed.

    sample: a function that returns a measure.Sample, None where nothing can be measured. settings: all else that decides
    the speed. loaded: whether the weights are in memory; streamed: one layer at a time is. byte: seconds that loading took
    for each byte, if it is known.
    """

    def __init__(self, config, tensors, kv, token_bytes, threads, sample, *, settings=(), loaded=True, streamed=False,
                 byte=None):  # fmt: skip
        self.config, self.tensors, self.kv, self.token_bytes = config, tensors, kv, token_bytes
        self.sample, self.loaded, self.streamed = sample, loaded, streamed
        self.name = store.key(tensors, threads, kv, *settings)
        self._speeds, self._byte = None, byte
        self.context = config.text.context_length  # or fewer tokens, as stated

    @classmethod
    def of(cls, source, config, kv, operations, load="repack", vit="file", network=None, seconds=None):
        """The Planner of a source of weights. network: made of them, if it is loaded; seconds: that loading took."""
        streamed, size = load == "mmap", sum(t.nbytes for t in source.tensors.values())

        def sample():
            if network is not None and not streamed:
                return measure.of_network(network)
            architecture = models.module(ARCHITECTURE, getattr(source, "path", ""))
            return measure.of_source(source, config, architecture, operations, streamed)

        device = getattr(operations, "device", operations.name)
        return cls(
            config, source.tensors, kv, ops.cache_token_bytes(config.text.kv_lora_rank, config.text.qk_rope_head_dim, kv),
            operations.threads, sample, settings=(device, load, vit), loaded=network is not None, streamed=streamed,
            byte=None if seconds is None or streamed else seconds / size,
        )  # fmt: skip

    def room(self, memory=None):
        """Most tokens of prompt and answer beside weights that are yet to be loaded. memory: bytes, None for what is free."""
        free, longest = available_memory() if memory is None else memory, self.config.text.context_length
        return longest if free is None else max(0, min(longest, (free - self.peak(1, 0)) // self.token_bytes))

    def speeds(self, measuring=True):
        """The Speeds of the model: kept, or else measured; None if they are not known and not to be measured."""
        self._speeds = self._speeds or store.load(self.name)
        if self._speeds is None and measuring and self.sample is not None:
            found = measure.speeds(self.sample(), self.kv)
            self._speeds = found if self._byte is None else replace(found, byte=self._byte)
            store.save(self.name, self._speeds)
        return self._speeds

    @property
    def weights(self):
        """Bytes of the weights in memory."""
        if not self.streamed:
            return sum(t.nbytes for name, t in self.tensors.items() if self._kept(name)) + self._transposed()
        layers = {}
        for name, t in self.tensors.items():
            part = ".".join(name.split(".")[:3] if name.startswith("v.") else name.split(".")[:2])
            layers[part] = layers.get(part, 0) + t.nbytes
        return 2 * max(size for part, size in layers.items() if "blk." in part)

    def _kept(self, name):
        return name != "token_embd.weight" or "output.weight" not in self.tensors

    def _transposed(self):
        """Bytes of W_UK^T, which the file does not have: q8_0."""
        text = self.config.text
        return int(sum(text.kv_lora_rank) * text.num_heads * text.qk_nope_head_dim * 34 / 32)

    def peak(self, tokens, capacity, seen=0, decoding=0):
        """Bytes of memory of the process: weights, cache, and the activations of a chunk.

        seen: vision tokens whose features are made, and kept up to a bound. decoding: bytes for files while they are decoded.
        """
        working = memory_of.activations(self.config, tokens, seen) + memory_of.kept(self.config, seen) + decoding
        return BASE + self.weights + capacity * self.token_bytes + 32 * self.config.text.vocab_size + working

    def plan(self, draft, laid, answer, room, *, measuring=True, wait=None, memory=None, foreseen=None):
        """The Plan of a Prompt that `draft` laid out. answer: most tokens of the answer. wait, memory: limits, or None.

        foreseen(prompt): the number of its tokens that need no work; None: those of the conversation before it.
        """
        speeds = self.speeds(measuring)
        tokens, choices = len(laid.token_ids), tuple(laid.choices)
        vision = sum(count for _, _, count in laid.spans)
        limits = nearest.Limits(min(answer, max(1, room // 2)), wait, memory, answer)
        answer = max(1, min(answer, room - tokens))
        images, held = sum(m.kind == "image" for m in laid.media), foreseen(laid) if foreseen else before(draft)
        made = Plan(
            choices, images, tokens, vision, answer, room, (tokens + answer) * self.token_bytes, self.weights,
            self.peak(tokens, tokens + answer, vision, decoding(laid, held)),
            None if speeds is None else self.seconds(speeds, draft, laid, answer, measuring, held),
            held=held, linear=speeds.linear(tokens - held, held) if speeds else 1.0,
        )  # fmt: skip
        problem = self.problem(made, wait, memory)
        made = replace(made, fits=not problem, problem=problem)
        return replace(made, nearest=tuple(nearest.settings(self, draft, laid, made, limits)))

    def seconds(self, speeds, draft, laid, answer, measuring, held):
        """Seconds of each stage."""
        tokens = len(laid.token_ids)
        scan, decode = draft.cost(laid, measuring and tokens >= WORTH_MEASURING, held)
        load = {} if self.loaded else {"load": OPENED + speeds.byte * sum(t.nbytes for t in self.tensors.values())}
        return load | {
            "scan": scan, "decode": decode * speeds.ratio("decode"), "vision": vision_seconds(speeds, laid, held),
            "prefill": speeds.prefill(tokens - held, held), "generate": speeds.generate(answer, tokens),
        }  # fmt: skip

    def without_repeats(self, made, draft, laid, few, foreseen=None):
        """The Plan `made` of `laid`, for the Prompt `few` that dedupe left of it: all frames were decoded to find it."""
        held = foreseen(few) if foreseen else before(draft)
        places = [next(i for i, m in enumerate(laid.media) if m is medium) for medium in draft.opened]
        videos = tuple(choice.of(few.media[place]) for choice, place in zip(made.videos, places, strict=True))
        tokens, speeds, seconds = len(few.token_ids), self.speeds(False), made.seconds
        vision = sum(count for _, _, count in few.spans)
        answer = max(1, min(made.max_new_tokens, made.room - tokens))
        if seconds is not None and speeds is not None:
            frames = [sum(len(m.frames) for m in p.media if m.kind == "video") for p in (laid, few)]
            left = sum(
                len(m.frames[n * m.temporal :])
                for m, n in zip(few.media, few.firsts(held), strict=True)
                if m.kind == "video"
            )
            decode = seconds["decode"]
            if made.held > before(draft):
                decode = draft.cost(laid)[1] * speeds.ratio("decode")
            seconds = seconds | {
                "scan": seconds["scan"] + decode, "decode": decode * left / max(1, frames[0]),
                "vision": vision_seconds(speeds, few, held),
                "prefill": speeds.prefill(tokens - held, held), "generate": speeds.generate(answer, tokens),
            }  # fmt: skip
        return replace(
            made, videos=videos, prompt_tokens=tokens, vision_tokens=vision,
            max_new_tokens=answer, cache_bytes=(tokens + answer) * self.token_bytes, seconds=seconds,
            peak_memory=self.peak(tokens, tokens + answer, vision, decoding(few, 0)), held=held,
            linear=speeds.linear(tokens - held, held) if speeds else 1.0,
        )  # fmt: skip

    def too_long(self, made):
        """Whether the prompt of a Plan has more tokens than the context, or the memory that a loaded model left, holds."""
        return made.prompt_tokens + 1 > made.room and (made.room >= self.context or self.loaded)

    def problem(self, made, wait, memory):
        """Why a Plan cannot be followed, with the numbers; "" if it can."""
        if self.too_long(made):
            text = made.prompt_tokens - made.vision_tokens
            holds = "context" if made.room >= self.context else "free memory"
            return (
                f"the prompt has {made.prompt_tokens:,} tokens ({made.vision_tokens:,} of vision, "
                f"{text:,} of text and marks) and the {holds} holds {made.room:,}"
            )
        free = None if self.loaded else available_memory()
        most, whose = (memory, "stated") if memory is not None else (free, "free")
        if most is not None and (made.peak_memory > most or made.prompt_tokens + 1 > made.room):
            need, most = two_sizes(made.peak_memory, most)
            return (
                f"{need} of memory are needed ({gigabytes(made.weight_bytes)} of weights, "
                f"{gigabytes(made.cache_bytes)} of cache) and {most} are {whose}"
            )
        if wait is not None and made.wait is not None and made.wait > wait:
            parts = ", ".join(
                f"{stage} {s:.1f} s" for stage, s in made.seconds.items() if s >= 0.05 and stage != "generate"
            )
            parts = f" ({parts})" if parts else ""
            after = f"{made.wait:.1f}" if round(made.wait, 1) > wait else f"{made.wait:.3g}"
            return f"the first token comes after {after} s{parts} and the wait is to be {wait:g} s at most"
        return ""

    def ask(self, draft, budget, room, answer, wait=None, memory=None, dedupe=False, foreseen=None):
        """The Plan of a Draft within limits, which are checked: see Model.plan. answer: None for all of the room."""
        budget = None if budget is None else whole("budget", budget, 1)
        wait = None if wait is None else number("max_wait", wait, 0, above=True)
        memory = None if memory is None else whole("memory", memory, 1, 1 << 60)
        answer = max(1, room) if answer is None else whole("max_new_tokens", answer, 1, 2**63)
        if dedupe:
            draft.settle(None, budget)
        made = self._trusted(draft, budget, room, answer, wait, memory, foreseen)
        if not dedupe:
            return made
        laid = draft.lay(budget, room, answer, most=sum(video.tokens for video in made.videos))
        return self.without_repeats(made, draft, laid, deduped(laid), foreseen)

    def _trusted(self, draft, budget, *limits):
        """As search(), but what the files' declared lengths would refuse is planned again from their frames' own times."""
        try:
            made = self.search(draft, budget, *limits)
            if made.fits or not draft.estimated:
                return made
        except ContextError:
            if not draft.estimated:
                raise
        draft.settle(None, budget)
        return self.search(draft, budget, *limits)

    def search(self, draft, budget, room, answer, wait=None, memory=None, foreseen=None):
        """The Plan within the limits: videos whose number of frames is open are thinned until it fits, if it can."""
        laid = draft.lay(budget, room, answer)
        made = self.plan(draft, laid, answer, room, wait=wait, memory=memory, foreseen=foreseen)
        if made.fits or (wait is None and memory is None):
            return made
        low, high, best = 0, made.vision_tokens, None
        while low + 1 < high:
            middle = (low + high) // 2
            tried = draft.lay(budget, room, answer, most=middle)
            found = self.plan(draft, tried, answer, room, wait=wait, memory=memory)
            low, high, best = (middle, high, middle) if found.fits else (low, middle, best)
            if best and high - low < max(d.pair for d in draft.videos or ()):
                break
        if best is None:
            return made
        tried = draft.lay(budget, room, answer, most=best)
        return self.plan(draft, tried, answer, room, wait=wait, memory=memory, foreseen=foreseen)

    def record(self, made, seconds, cached, new):
        """Corrects the speeds by a run that followed a Plan: seconds of its stages, cached and new tokens."""
        if self._speeds is None or made.seconds is None or abs(cached - made.held) > SAME * made.prompt_tokens:
            return
        planned = {**made.seconds, "generate": self._speeds.generate(new, made.prompt_tokens)}
        self._speeds = self._speeds.corrected(planned, seconds)
        store.save(self.name, self._speeds)

    def advice(self, made, stated):
        """What to do about a Plan that does not fit. stated: the context was."""
        flags = [setting.flag for setting in made.nearest]
        need, longest = made.prompt_tokens + 1, self.config.text.context_length
        if stated and made.room < need <= longest:
            flags.append(f"--context {min(longest, -(-(made.prompt_tokens + made.max_new_tokens) // 256) * 256)}")
        if flags:
            return f"use {' or '.join(flags)}"
        if made.problem and not self.too_long(made):  # a limit of time or memory: weights take both as well
            return "ask for less"
        return "give fewer videos" if made.videos else "shorten the text"
