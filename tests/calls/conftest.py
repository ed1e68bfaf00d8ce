"""The demo model and its vocabulary, for all tests of tool calls."""

import pytest

import ivlite
from ivlite.engine.grammar import Vocabulary


@pytest.fixture(scope="module")
def demo():
    with ivlite.load("demo", store=False) as model:
        yield model


@pytest.fixture(scope="module")
def vocabulary(demo):
    return Vocabulary(demo.tokenizer, demo.config.text.vocab_size, demo.config.tokens.eos)
