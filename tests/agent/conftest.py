"""The demo model and a film, for all tests of the agent."""

import agent_scripts
import pytest

import ivlite


@pytest.fixture(scope="session")
def demo():
    with ivlite.load("demo", store=False) as model:
        yield model


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A film of 30 seconds, 5 frames a second."""
    return agent_scripts.film(tmp_path_factory.mktemp("films") / "clip.mp4")


@pytest.fixture
def apart(monkeypatch):
    agent_scripts.scripted_apart(monkeypatch)
