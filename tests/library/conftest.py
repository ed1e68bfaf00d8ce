"""A library in a file, and files that stand for videos."""

import pytest

from ivlite.library import Library


@pytest.fixture
def said():
    return []


@pytest.fixture
def path(tmp_path):
    return tmp_path / "library.sqlite"


@pytest.fixture
def library(path, said):
    with Library.open(path, warn=said.append) as library:
        yield library
    assert not said


@pytest.fixture
def clip(tmp_path):
    """clip(name, content) writes a file that stands for a video."""

    def clip(name="a.mp4", content=b"frames"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return clip
