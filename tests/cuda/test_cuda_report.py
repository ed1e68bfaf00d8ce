"""benchmarks/card.py: what it makes of what a card measured, and of stages that fail."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/card.py"


@pytest.fixture(scope="module")
def card():
    spec = importlib.util.spec_from_file_location("card_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decode(depth, rate):
    parts = {"few_rows": {"launches": 180, "seconds": 1e-3}, "absorbed_attention": {"launches": 72, "seconds": 2e-4}}
    return {
        "depth": depth, "per_second": rate, "bytes": 6e9,
        "card": {"launches": 331, "seconds": 1.5e-3, "gap_seconds": 3e-4, "parts": parts},
    }  # fmt: skip


def facts(rate=600.0, share=0.6, **changed):
    return {
        "failed": {},
        "bench": {"device": "cuda:0 (NVIDIA H200)", "model": "m", "type": "q4_0", "kv": "q8",
                  "limits": {"read": 4e12, "int8": 1e15, "matrix": 6e14}, "decode": [decode(n, rate) for n in (1024, 32768, 261120)]},
        "prefill": {"prefill": [{"count": 32768, "share": share}], "vision": {"share": share}},
        "answers": [["q", "a", "a"]], "leaked": 0, "tests": [0, "9 passed"], "sanitizer": {"memcheck": 0},
    } | changed  # fmt: skip


def judged(card, found):
    return {what: reached for what, *_, reached in card.verdicts(found)}


def test_all_is_reached(card):
    rows = judged(card, facts())
    assert all(rows.values()) and len(rows) == 12
    assert "decoding at 1,024, tokens/s, beside the card's 4.8 TB/s" in rows
    text = "\n".join(card.report(facts()))
    assert "| 1,024 | 1.500 | 331 | 0.300 | few_rows 1.000, absorbed_attention 0.200 |" in text and "| no |" not in text


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (dict(rate=399.9), 5),  # three beside the copy, two beside the card's own bandwidth
        (dict(rate=310.0), 6), (dict(share=0.49), 2), (dict(answers=[["q", "a", "b"], ["r", "a", "a"]]), 1), (dict(leaked=1), 1),
        (dict(tests=[1, "1 failed"]), 1), (dict(sanitizer={"memcheck": 9, "racecheck": 0}), 1),
    ],
)  # fmt: skip
def test_what_is_not_reached_is_said(card, change, missed):
    rows = judged(card, facts(**change))
    assert list(rows.values()).count(False) == missed
    assert "\n".join(card.report(facts(**change))).count("| no |") == missed


def test_a_stage_that_fails_costs_nothing_but_itself(card, tmp_path):
    good = facts()

    def broken():
        raise RuntimeError("the card is lost")

    found = card.measured(
        tmp_path, {"bench": broken, "leaked": lambda: 0, "sanitizer": dict, "answers": lambda: good["answers"]}
    )
    assert json.loads((tmp_path / "card.json").read_text()) == found
    assert judged(card, found) == {
        "the stage `bench`": False,
        "answers equal to the CPU's": True,
        "bytes left by requests": True,
    }
    text = "\n".join(card.report(found))
    assert (
        "| the stage `bench` | RuntimeError: the card is lost |  | no |" in text
        and "nothing was looked at by it" in text
    )


def test_a_bench_that_fails_is_its_last_line(card, monkeypatch):
    class Done:
        returncode, stderr = 2, "ivlite: \nivlite: device cuda cannot be used: there is no NVIDIA driver here\n"

    monkeypatch.setattr(card, "run", lambda *args, **settings: Done)
    arguments = type("A", (), {"random": "8b", "type": "q4_0", "kv": "q8", "vision": "64x64x2"})
    with pytest.raises(RuntimeError, match="there is no NVIDIA driver here$"):
        card.bench(arguments, 1, 1, [0])
