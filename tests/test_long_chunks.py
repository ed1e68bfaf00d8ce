"""Chunks of a prefill behind many tokens are twice as long, and need no more DeepStack features in memory than others."""

from pathlib import Path

import numpy as np
import pytest

import ivlite
from ivlite.engine import runner
from ivlite.engine.meter import Meter
from ivlite.engine.runner import Runner
from ivlite.errors import Stopped
from ivlite.gguf import SHIPPED
from ivlite.models.internvideo3 import Network
from ivlite.stop import Stop, using

pytestmark = pytest.mark.skipif(not SHIPPED["demo"].is_file(), reason="the demo model is not in the package")
CLIP = str(Path(__file__).parents[1] / "examples" / "clip.mp4")
VIDEO = [
    {"role": "user", "content": [{"type": "video", "video": CLIP}, {"type": "text", "text": "What happens? " * 9}]}
]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(runner, "CHUNK", 16)
    monkeypatch.setattr(runner, "DEEP", 32)


@pytest.fixture
def calls(monkeypatch):
    """(tokens, cached tokens before, vision rows, first and last layer) of each call of forward."""
    made, forward = [], Network.forward

    def watched(self, x, positions, cache, deepstack=(), layers=slice(None), each=None):
        made.append((len(x), cache.length, sum(len(deep[0]) for _, deep in deepstack), layers.start, layers.stop))
        return forward(self, x, positions, cache, deepstack, layers, each)

    monkeypatch.setattr(Network, "forward", watched)
    return made


def prefilled(load="repack"):
    """Logits of the last token and the cache's rows, in float32."""
    with ivlite.load("demo", kv="f32", load=load) as model:
        prompt = model.prepare(VIDEO)
        made = Runner(model.network, len(prompt.token_ids), "f32")
        logits = made.extend(prompt)
        return prompt, logits, made.cache.dump(0, made.cache.length).view(np.float32)


def test_how_long_a_chunk_is(short):
    assert [runner.chunk_at(depth) for depth in (0, 31, 32, 1000)] == [16, 16, 32, 32]


def test_long_chunks_of_vision_go_through_early_layers_in_parts(short, calls):
    prompt, logits, rows = prefilled()
    assert prompt.spans[-1][1] > 64 and len(prompt.token_ids) > 96
    assert calls[0][:2] + calls[0][3:] == (16, 0, None, None) and calls[1][:2] == (16, 16)
    parts = [call for call in calls if call[3:] != (None, None)]
    assert parts[:3] == [(16, 32, parts[0][2], None, 3), (16, 48, parts[1][2], None, 3), (32, 32, 0, 3, None)]
    assert all(call[2] <= 16 for call in calls)
    text = [call for call in calls if call[1] > prompt.spans[-1][1] + prompt.spans[-1][2]]
    assert text and all(call[3:] == (None, None) for call in text)  # has no features that take memory
    *same, streamed = prefilled("mmap")
    assert np.array_equal(same[1], logits) and np.array_equal(streamed, rows)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_long_chunk_that_is_stopped_leaves_what_was_before(short, monkeypatch, count):
    stop, seen, forward = Stop(), [], Network.forward

    def stopping(self, x, positions, cache, deepstack=(), layers=slice(None), each=None):
        seen.append(layers)
        if len(seen) == 2 + count:
            stop.set()
        return forward(self, x, positions, cache, deepstack, layers, each)

    with ivlite.load("demo", kv="f32") as model:
        prompt = model.prepare(VIDEO)
        made = Runner(model.network, len(prompt.token_ids), "f32")
        expected = Runner(model.network, len(prompt.token_ids), "f32").extend(prompt)
        monkeypatch.setattr(Network, "forward", stopping)
        with using(stop), pytest.raises(Stopped):
            made.extend(prompt)
        assert made.cache.length == made.held.length == (64 if count == 4 else 32)
        again = made.extend(prompt)  # frame pairs are encoded in other batches
        assert np.abs(again - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("every", [0.0, 1e6])
def test_progress_within_a_chunk(short, monkeypatch, every):
    """Chunks of 8B take minutes; between their ends, every few seconds."""
    monkeypatch.setattr(runner, "EVERY", every)
    told = []
    with ivlite.load("demo", kv="f32") as model:
        prompt = model.prepare(VIDEO)
        total = len(prompt.token_ids)
        meter = Meter(lambda stage, done, of: stage == "prefill" and told.append((done, of)))
        Runner(model.network, total, "f32", meter).extend(prompt)
    done = [n for n, _ in told]
    ends = [16, 32, *range(64, prompt.cut, 32), *range(prompt.cut, total, 32), total]
    assert done == sorted(done) and {of for _, of in told} == {total} and set(ends) <= set(done)
    assert done == ends if every else {3, 6, 9, 12} <= set(done) and {35, 38, 41, 44, 51, 57} <= set(done)
