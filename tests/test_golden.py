"""The whole path, from messages to greedy tokens, against what transformers computed (tests/data/make_golden.py)."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.engine import runner
from ivlite.errors import UsageError
from ivlite.evaluate.compare import followed
from ivlite.quantize import quantize

DATA = Path(__file__).parent / "data"
NAMES = ("plain", "variant")
CASES = ("text", "turns", "odd", "mixed")
OPS = ["cpu", pytest.param("reference", marks=pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the reference operations need torch"))]  # fmt: skip
# Largest |logit - golden| in standard deviations of the logits. The weights are exact in bfloat16 and the arithmetic is
# float32 in both, so f32 leaves summation order only; a bf16 cache rounds latents and keys to 11 bits.
LIMIT = {"f32": 2e-3, "bf16": 2e-2}


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """path(name, type): the golden checkpoint of that name as a GGUF file of that type, made once."""
    folder, made = tmp_path_factory.mktemp("golden"), {}

    def path(name, type):
        if (name, type) not in made:
            out = folder / f"{name}-{type}.gguf"
            quantize(DATA / f"golden_{name}" / "hf", out, type=type)
            made[name, type] = out
        return made[name, type]

    return path


def messages_of(case):
    conversation = json.loads((DATA / "golden_media" / "cases.json").read_text())[case]
    for message in conversation:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] != "text":
                part[part["type"]] = str(DATA / "golden_media" / part[part["type"]])
    return conversation


def golden(name, case):
    return np.load(DATA / f"golden_{name}" / f"{case}.npz")


def worst(logits, expected):
    """Largest error in standard deviations of the expected logits."""
    return np.abs(logits - expected).max() / expected.std()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_prompt(converted, name, case):
    prompt = ivlite.load(converted(name, "f32")).prepare(messages_of(case))
    expected = golden(name, case)
    assert prompt.token_ids == expected["token_ids"].tolist()
    assert np.array_equal(prompt.positions, expected["positions"])
    assert np.array_equal(prompt.grid_thw, expected["grid_thw"].reshape(-1, 3))


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("case", CASES[1:])
@pytest.mark.parametrize("name", NAMES)
def test_vision(converted, name, case, ops):
    model = ivlite.load(converted(name, "f32"), device=ops)
    merged, deepstack = model.encode_vision(model.prepare(messages_of(case)))
    expected = golden(name, case)
    assert worst(merged, expected["vision"]) < 1e-4
    assert worst(deepstack, expected["deepstack"]) < 1e-4


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("kv", LIMIT)
@pytest.mark.parametrize("type", ["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_logits(converted, name, case, type, kv, ops):
    model = ivlite.load(converted(name, type), device=ops, kv=kv)
    expected = golden(name, case)
    logits = model.logits(model.prepare(messages_of(case)))
    assert logits.dtype == np.float32 and logits.shape[0] == len(expected["token_ids"])
    assert worst(logits[expected["rows"]], expected["logits"]) < LIMIT[kv]


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_forms_agree(converted, monkeypatch, name, expand, chunk, ops):
    """One token at a time or many, absorbed or expanded, twice as many behind the third chunk: the same logits."""
    monkeypatch.setattr(runner, "CHUNK", chunk)
    monkeypatch.setattr(runner, "DEEP", 3 * chunk)
    model = ivlite.load(converted(name, "f32"), device=ops, kv="f32")
    for layer in model.network.layers:
        layer.expand_from = 0 if expand else 10**9
    expected = golden(name, "mixed")
    logits = model.logits(model.prepare(messages_of("mixed")))
    assert worst(logits[expected["rows"]], expected["logits"]) < LIMIT["f32"]


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_greedy(converted, name, case, ops):
    model = ivlite.load(converted(name, "bf16"), device=ops, kv="f32")
    expected = golden(name, case)["greedy"].tolist()
    stops = [i for i, token in enumerate(expected) if token in model.config.tokens.eos]
    reply = model.chat(messages_of(case), max_new_tokens=len(expected), temperature=0)
    assert reply.token_ids == expected[: stops[0] if stops else None]
    assert reply.usage["prompt_tokens"] == len(golden(name, case)["token_ids"])


def mean_kl(expected, logits):
    """Mean over rows of KL(softmax(expected) || softmax(logits)), in float64."""
    p, q = (x.astype(np.float64) - x.max(1, keepdims=True) for x in (expected, logits))
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
    return (np.exp(p) * (p - q)).sum(1).mean()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_q8_0_divergence(converted, name, case):
    model = ivlite.load(converted(name, "q8_0"), kv="f32")
    expected = golden(name, case)
    logits = model.logits(model.prepare(messages_of(case)))
    assert 0 < mean_kl(expected["logits"], logits[expected["rows"]]) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_q4_0_is_worse_than_q8_0_and_still_close(converted, name):
    expected, kl = golden(name, "mixed"), {}
    for type in ("q8_0", "q4_0"):
        model = ivlite.load(converted(name, type), kv="f32")
        logits = model.logits(model.prepare(messages_of("mixed")))
        kl[type] = mean_kl(expected["logits"], logits[expected["rows"]])
    assert kl["q8_0"] < kl["q4_0"] < 0.5


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize(("kv", "limit"), [("f32", 1e-9), ("bf16", 1e-4), ("q8", 1e-3), ("q4", 2e-2)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_cache_adds(converted, monkeypatch, name, case, kv, limit, ops):
    """Token by token, so that every row but the newest is read back from the cache."""
    monkeypatch.setattr(runner, "CHUNK", 1)
    model = ivlite.load(converted(name, "f32"), device=ops, kv=kv)
    expected = golden(name, case)
    logits = model.logits(model.prepare(messages_of(case)))
    assert mean_kl(expected["logits"], logits[expected["rows"]]) < limit
    assert kv in ("q8", "q4") or worst(logits[expected["rows"]], expected["logits"]) < LIMIT[kv]


def test_a_smaller_cache_adds_more(converted, monkeypatch):
    expected, kl = golden("plain", "mixed"), []
    monkeypatch.setattr(runner, "CHUNK", 1)
    for kv in ("f32", "bf16", "q8", "q4"):
        model = ivlite.load(converted("plain", "f32"), kv=kv)
        logits = model.logits(model.prepare(messages_of("mixed")))
        kl.append(mean_kl(expected["logits"], logits[expected["rows"]]))
    assert kl[0] < kl[1] < kl[2] < kl[3]


@pytest.mark.parametrize("case", ["mixed", "odd"])
def test_vision_in_float32(converted, case):
    """vit="fp32" leaves what the weights alone cost: features are those of the float reference on the same file."""
    path = converted("plain", "q8_0")
    exact, fast = (ivlite.load(path, vit=vit) for vit in ("fp32", "file"))
    prompt = exact.prepare(messages_of(case))
    got, approximate = exact.encode_vision(prompt)[0], fast.encode_vision(fast.prepare(messages_of(case)))[0]
    cosine = (got * approximate).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(approximate, axis=1)
    assert cosine.min() > 0.998
    if importlib.util.find_spec("torch"):
        reference = ivlite.load(path, device="reference")
        expected = reference.encode_vision(reference.prepare(messages_of(case)))[0]
        assert np.abs(got - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("device", OPS)
def test_logprobs_of_a_text(converted, device):
    """They are rows of the log-softmax of a plain pass over prompt and text."""
    messages, text = messages_of("mixed"), "a red square and then a blue one, 12"
    with ivlite.load(converted("plain", "f32"), kv="f32", device=device) as model:
        entries = model.logprobs(messages, text, top=2)
        prompt = model.prepare(messages)
        ids = model.tokenizer.encode(text)
        assert [entry.token for entry in entries] == ids and len(ids) > 16  # more than a call of some tokens takes
        logits = model.logits(followed(prompt, ids))[len(prompt.token_ids) - 1 : -1].astype(np.float64)
    expected = logits - logits.max(1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    got = [entry.logprob for entry in entries]
    assert np.abs(got - expected[np.arange(len(ids)), ids]).max() < LIMIT["f32"] * logits.std()
    assert [entry.top[0][0] for entry in entries] == logits.argmax(1).tolist()


def test_vit_is_checked(converted):
    with pytest.raises(UsageError, match="vit"):
        ivlite.load(converted("plain", "q8_0"), vit="int4")
