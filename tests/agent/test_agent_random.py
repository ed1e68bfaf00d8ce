"""Random weights at temperature 1: whatever is sampled, calls parse, and what is printed is true of the video."""

import re

import pytest
from agent_scripts import film

from ivlite import models
from ivlite.agent import Agent, Budget
from ivlite.agent import apart as aparts
from ivlite.evaluate import synthetic
from ivlite.loading import chosen_device
from ivlite.model import Model

SECONDS = 20


@pytest.fixture(scope="module")
def noise(demo):
    """The demo model's shape and words, with random weights."""
    config = synthetic.config("demo")
    operations, _ = chosen_device("cpu", None, lambda operations: None)
    network = models.module("internvideo3").Network(config, synthetic.RandomSource(config, "q8_0"), operations, None)
    with Model(config, network, demo.tokenizer, context=8192) as model:
        yield model


class Watched(Agent):
    """An Agent that notes each reply of its model, and the times of all frames that were shown to it."""

    def __init__(self, *args, monkeypatch, **more):
        super().__init__(*args, **more)
        self.replies, self.times = [], set()
        ask, stream, apart = self.context.ask, self.context._stream, aparts.Apart._stream

        def noted(limit, **settings):
            self.replies.append(ask(limit, **settings))
            return self.replies[-1]

        def shown(opened):
            for indexes, medium in zip(opened.prompt.frames, opened.prompt.media, strict=True):
                own = self.case.films["v1"].times
                self.times |= {round(float(own[n]), 3) for n in indexes} if len(indexes) > 1 else set()
                self.times |= {round(t, 3) for t in medium.timestamps} if len(indexes) == 1 else set()
            return opened

        self.context.ask = noted
        self.context._stream = lambda *a, **k: shown(stream(*a, **k))
        monkeypatch.setattr(aparts.Apart, "_stream", lambda aside, *a, **k: shown(apart(aside, *a, **k)))


def check(agent, answer, budget, before=0):
    film, by_id = agent.case.films["v1"], {e.id: e for e in answer.evidence}
    for reply in agent.replies:
        assert reply["finish_reason"] == "tool_calls" and len(reply["calls"]) == 1, reply
        assert reply["calls"][0]["name"] in agent.tools
    known = {round(float(t), 3) for t in film.times}
    for e in answer.evidence:
        assert 0 <= e.start <= e.end <= film.duration
        assert set(e.frames) <= known and set(e.frames) <= agent.times
        assert e.kind == "text" or (e.start, e.end) == (e.frames[0], e.frames[-1])
    for claim in answer.claims:
        assert claim.evidence and all(id in by_id for id in claim.evidence)
    assert all(m in by_id for m in re.findall(r"\[(E\d+)\]", answer.text + answer.missing))
    assert not re.search(r"\d\d:\d\d:\d\d", answer.text)
    looked = sum(look.frames for look in answer.looked_at)
    assert looked - before == answer.usage["frames"] <= budget.frames
    assert answer.claims or answer.finish_reason == "repairs"
    return looked


@pytest.mark.parametrize("seed", range(4))
def test_what_is_sampled_at_random_makes_sense(noise, tmp_path, monkeypatch, seed):
    path, budget = film(tmp_path / "film.mp4", seconds=SECONDS), Budget(rounds=8, frames=200, thinking=8 * (seed % 2))
    with Watched(noise, [path], temperature=1.0, seed=seed, budget=budget, monkeypatch=monkeypatch) as agent:
        looked = check(agent, agent.ask("What is on the table?"), budget)
        check(agent, agent.ask("And then?"), budget, looked)
