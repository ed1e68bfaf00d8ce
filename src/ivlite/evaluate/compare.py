"""Compares a model with a reference: both run the same prompts, followed by the reference's greedy answer.

Of the reference, only the likeliest tokens of every position are stored. So two models are never in memory together,
and the file is small. KL is computed over these tokens and one for all others: a lower bound of the true KL, and equal
to it if the vocabulary is not larger.
"""

import math
from dataclasses import dataclass, field, fields, replace

import numpy as np

from ivlite.engine.divergence import kl_of_likeliest
from ivlite.engine.sampling import Sampler, SamplingParams
from ivlite.errors import ModelFileError, UsageError
from ivlite.gguf import GGUFFile
from ivlite.gguf.writer import GGUFWriter

ARCHITECTURE = "internvideo3-reference"
TOP = 256  # tokens kept per position


@dataclass
class Record:
    """The reference's output for one sample.

    tokens: int32 (T,), the prompt and the greedy answer; given: the number of prompt tokens. ids, logp (n, top): the
    likeliest next tokens at each evaluated position, likeliest first, and their log-probabilities. loss (n,): the
    negative log-probability of the actual next token, NaN after the last.
    """

    key: str
    kind: str
    given: int
    tokens: np.ndarray
    ids: np.ndarray
    logp: np.ndarray
    loss: np.ndarray

    @property
    def answer(self):
        return self.tokens[self.given :].tolist()


@dataclass
class Scores:
    """Metrics over samples, one value per evaluated position; answers and flips are counts of samples."""

    prompts: int = 0
    answers: int = 0
    flips: int = 0
    kl: list = field(default_factory=list)
    answer_kl: list = field(default_factory=list)
    same: list = field(default_factory=list)
    loss: list = field(default_factory=list)
    reference_loss: list = field(default_factory=list)

    def add(self, other):
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def summary(self):
        """Plain data: counts, mean_kl, p99_kl, answer_kl (answers only), top1 (agreement, 0 to 1), and perplexity and
        reference_perplexity of the prompts."""
        kl, answers = np.concatenate(self.kl), np.concatenate(self.answer_kl)
        losses = [np.concatenate(x) for x in (self.loss, self.reference_loss)]
        own, reference = (math.exp(min(x.mean(), 700)) if len(x) else None for x in losses)
        return {
            "prompts": self.prompts, "tokens": len(kl), "mean_kl": float(kl.mean()),
            "p99_kl": float(np.quantile(kl, 0.99)), "answer_kl": float(answers.mean()) if len(answers) else None,
            "top1": float(np.concatenate(self.same).mean()),
            "perplexity": own, "reference_perplexity": reference, "answers": self.answers, "flips": self.flips,
        }  # fmt: skip


# ------------------------------------------------------------------------------------------------ one sample


def counted(prompt, tokens):
    """The evaluated positions, int (n,): their next token is text, the answer or its end, not media or a timestamp."""
    keep = np.ones(tokens, bool)
    for medium in range(len(prompt.media)):
        spans = [(start, start + count) for index, start, count in prompt.spans if index == medium]
        keep[max(0, spans[0][0] - 2) : spans[-1][1]] = False
    return np.flatnonzero(keep)


def followed(prompt, answer):
    """The Prompt followed by the tokens of the answer."""
    at = np.tile(prompt.next_position + np.arange(len(answer)), (3, 1))
    return replace(
        prompt, token_ids=[*prompt.token_ids, *answer], positions=np.concatenate([prompt.positions, at], 1),
        next_position=prompt.next_position + len(answer),
    )  # fmt: skip


def greedy(model, prompt, limit, progress=None):
    """The token ids of the model's greedy answer, at most `limit`."""
    limit = min(limit, model.context - len(prompt.token_ids))
    if limit < 1:
        return []
    runner = model.runner(len(prompt.token_ids) + limit, progress)
    return list(runner.answer(prompt, Sampler(SamplingParams()), model.config.tokens.eos, limit))


def log_probabilities(logits):
    """log softmax of float32 (n, vocab) rows."""
    logits = logits - logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, dtype=np.float64))[:, None].astype(np.float32)


def rows(model, prompt, positions, progress=None):
    """Yields (slice of positions, log-probabilities (n, vocab)) for the evaluated positions of a Prompt."""
    done = 0
    for first, logits in model.each_logits(prompt, progress=progress):
        count = int(np.searchsorted(positions, first + len(logits))) - done
        if count:
            yield slice(done, done + count), log_probabilities(logits[positions[done : done + count] - first])
            done += count


def likeliest(logp, top):
    """The `top` largest of each row: ids int32 and values float32 (n, top), largest first, ties by id."""
    top = min(top, logp.shape[1])
    ids = np.sort(np.argpartition(-logp, top - 1, 1)[:, :top], 1)
    values = np.take_along_axis(logp, ids, 1)
    order = np.argsort(-values, 1, kind="stable")
    return np.take_along_axis(ids, order, 1).astype(np.int32), np.take_along_axis(values, order, 1)


def losses(logp, tokens, positions):
    """The negative log-probability of the next token at each position, NaN after the last."""
    following = np.append(tokens, -1)[positions + 1]
    loss = -logp[np.arange(len(positions)), following]
    return np.where(following < 0, np.nan, loss).astype(np.float32)


def remarks(prompt):
    """The warnings about a Prompt and its media; those about damaged frames are there once it has been run."""
    return [*prompt.warnings, *(sentence for medium in prompt.media for sentence in medium.warnings)]


def record(model, sample, answer_tokens, progress=None, warn=None):
    """The Record of a sample: a greedy answer if the conversation ends with a question, and the model's predictions.

    warn(sentence) is called with each of its remarks.
    """
    prompt = model.prepare(sample.messages)
    waits = sample.messages[-1]["role"] != "assistant"
    answer = greedy(model, prompt, answer_tokens, progress) if waits else []
    tokens = np.array([*prompt.token_ids, *answer], np.int32)
    positions = counted(prompt, len(tokens))
    ids, logp, loss = [], [], []
    for part, values in rows(model, followed(prompt, answer), positions, progress):
        for out, array in zip((ids, logp), likeliest(values, TOP), strict=True):
            out.append(array)
        loss.append(losses(values, tokens, positions[part]))
    for sentence in remarks(prompt) if warn else ():
        warn(sentence)
    parts = (np.concatenate(x) for x in (ids, logp, loss))
    return Record(sample.key, sample.kind, len(prompt.token_ids), tokens, *parts)


def divergence(reference, logq, ids):
    """KL in nats of each row, float64 (n,): reference (n, top) log-probabilities of `ids`, logq (n, vocab)."""
    return kl_of_likeliest(reference, np.take_along_axis(logq, ids, 1), rest=ids.shape[1] < logq.shape[1])


def score(model, sample, reference, progress=None, warn=None):
    """The Scores of one sample against its Record; warn as for `record`. Raises UsageError if the token ids differ."""
    prompt = model.prepare(sample.messages)
    if prompt.token_ids != reference.tokens[: reference.given].tolist():
        raise UsageError(
            f"{sample.label}: the model and the reference read different tokens; give both the same tokenizer and the "
            "same --fps, --max-frames and --max-pixels"
        )
    positions = counted(prompt, len(reference.tokens))
    kl, same, loss = [], [], []
    for part, values in rows(model, followed(prompt, reference.answer), positions, progress):
        kl.append(divergence(reference.logp[part], values, reference.ids[part]))
        same.append(values.argmax(1) == reference.ids[part, 0])
        loss.append(losses(values, reference.tokens, positions[part]))
    for sentence in remarks(prompt) if warn else ():
        warn(sentence)
    kl, same, loss = (np.concatenate(x) for x in (kl, same, loss))
    text = positions < reference.given - 1  # no perplexity of the answer: it is the reference's own
    answered = len(reference.tokens) > reference.given
    flipped = answered and not same[~text].all()
    own = kl[~text] if answered else kl[:0]
    return Scores(1, int(answered), int(flipped), [kl], [own], [same], [loss[text]], [reference.loss[text]])


# ------------------------------------------------------------------------------------------------ the file


@dataclass
class Reference:
    """The Records of a model, by the keys of the samples.

    model: its name. vocabulary: its number of tokens. answer_tokens: the most of an answer. skipped: keys of the samples
    that it could not read.
    """

    model: str
    vocabulary: int
    answer_tokens: int
    records: dict = field(default_factory=dict)
    skipped: list = field(default_factory=list)

    def save(self, path):
        """Writes the file; replaces an older one atomically. Returns notes about the disk. Raises DiskError."""
        found = list(self.records.values())
        metadata = {
            "model": self.model, "vocabulary": self.vocabulary, "answer_tokens": self.answer_tokens,
            "prompts": [r.key for r in found], "kinds": [r.kind for r in found], "given": [r.given for r in found],
            "tokens": [len(r.tokens) for r in found], "positions": [len(r.loss) for r in found], "skipped": self.skipped,
        }  # fmt: skip
        metadata = {"general.architecture": ARCHITECTURE} | {
            f"{ARCHITECTURE}.{key}": value for key, value in metadata.items()
        }
        arrays = {name: [getattr(r, name) for r in found] for name in ARRAYS}
        shapes = {name: (sum(map(len, parts)), *parts[0].shape[1:]) for name, parts in arrays.items()}
        with GGUFWriter(path, metadata, [(name, shapes[name], fmt) for name, fmt in ARRAYS.items()]) as out:
            for parts in arrays.values():
                for part in parts:
                    out.write(np.ascontiguousarray(part).tobytes())
        return out.notes

    @classmethod
    def load(cls, path):
        """The reference in a file, or None if it is a file of another kind. Raises ModelFileError."""
        with GGUFFile(path) as file:
            if file.architecture != ARCHITECTURE:
                return None
            try:
                return cls._of(file)
            except (KeyError, ValueError, TypeError, IndexError, AttributeError):
                what = "is damaged or of another version of ivlite"
                raise ModelFileError(f"{path} {what}: make it again with `ivlite eval --save-reference`") from None

    @classmethod
    def _of(cls, file):
        """The reference in an open file. Raises KeyError, ValueError, TypeError, IndexError, AttributeError."""
        meta = {key.removeprefix(f"{ARCHITECTURE}."): value for key, value in file.metadata.items()}
        reference = cls(
            meta["model"], int(meta["vocabulary"]), int(meta["answer_tokens"]), skipped=list(meta["skipped"])
        )
        counts = {name: meta["tokens" if name == "tokens" else "positions"] for name in ARRAYS}
        parts = [_split(_array(file, name, fmt), counts[name]) for name, fmt in ARRAYS.items()]
        for key, kind, given, *arrays in zip(meta["prompts"], meta["kinds"], meta["given"], *parts, strict=True):
            reference.records[key] = _checked(Record(key, kind, int(given), *arrays), reference.vocabulary)
        return reference


def _checked(r, vocabulary):
    """Returns a Record. Raises ValueError if its arrays are inconsistent, or have tokens beyond the vocabulary."""
    n = len(r.loss)
    whole = isinstance(r.key, str) and isinstance(r.kind, str) and 0 <= r.given <= len(r.tokens) == r.tokens.size
    if not whole or r.ids.shape != r.logp.shape or r.ids.ndim != 2 or len(r.ids) != n or r.loss.ndim != 1:
        raise ValueError(r.key)
    if n > len(r.tokens) or not (r.logp <= 0).all():
        raise ValueError(r.key)
    for ids in (r.ids, r.tokens):
        if not 0 <= ids.min(initial=0) <= ids.max(initial=0) < vocabulary:
            raise ValueError(r.key)
    return r


ARRAYS = {"tokens": "i32", "ids": "i32", "logp": "f32", "loss": "f32"}  # of a Record, and their formats


def _array(file, name, fmt):
    info = file.tensors[name]
    if info.format != fmt:
        raise ValueError(name)
    return file.read(name).view({"i32": np.int32, "f32": np.float32}[fmt]).reshape(info.shape)


def _split(array, counts):
    """The parts of an array, with so many rows each. Raises ValueError."""
    ends = np.cumsum(counts, dtype=np.int64)
    if ends.ndim != 1 or ends[-1] != len(array) or min(counts) < 0:
        raise ValueError("rows")
    return np.split(array, ends[:-1])
