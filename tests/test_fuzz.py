"""The fuzzers' targets without a fuzzer: their corpora, and plain mutations of these, the same in every run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("fuzz")))
import targets  # noqa: E402

SEEDS = [(name, path) for name in targets.TARGETS for path in sorted((targets.CORPUS / name).iterdir())]
COUNT = 40  # mutations of each seed; `make fuzz` runs for as long as is wanted


@pytest.mark.parametrize("name, path", SEEDS, ids=lambda v: getattr(v, "name", v))
def test_the_corpus_is_taken(name, path):
    assert targets.once(name, path.read_bytes())


@pytest.mark.parametrize("name, path", SEEDS, ids=lambda v: getattr(v, "name", v))
def test_mutations_are_taken_or_refused(name, path):
    data = path.read_bytes()
    made = [targets.mutate(name, data, seed) for seed in range(COUNT)]
    assert made == [targets.mutate(name, data, seed) for seed in range(COUNT)] and len({data, *made}) > COUNT // 2
    for changed in made:
        targets.once(name, changed)
