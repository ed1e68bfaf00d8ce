"""The folder of what can be computed again, and the digest that identifies a model file."""

import os
import stat

import pytest

from ivlite.files import cache_folder
from ivlite.gguf import GGUFFile
from ivlite.gguf.writer import GGUFWriter


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def test_folder_is_made_for_its_owner_only(home, monkeypatch):
    assert cache_folder() == home / ".cache" / "ivlite"
    assert stat.S_IMODE(os.stat(cache_folder()).st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "a" / "b"))
    assert cache_folder() == home / "a" / "b" / "ivlite"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: to be ignored
    assert cache_folder() == home / ".cache" / "ivlite"


@pytest.mark.parametrize("value", [None, "", "{}/none", "{}/file", "/proc", "\0"])
def test_no_home_is_one_sentence(home, monkeypatch, value):
    (home / "file").write_text("x")
    if value is None:
        monkeypatch.delenv("HOME")
    elif "\0" in value:
        monkeypatch.setattr(os, "environ", {"HOME": "/tmp", "XDG_CACHE_HOME": "/tmp/\0"})
    else:
        monkeypatch.setenv("HOME", value.format(home))
    said = []
    assert cache_folder(said.append) is None and cache_folder() is None
    assert len(said) == 1 and "nothing is kept" in said[0] and "\n" not in said[0]
    assert not (home / "none").exists()


def model(path, values=b"\0" * 40000, key=1):
    with GGUFWriter(path, {"k": key}, [("a", (5000,), "f32"), ("b", (5000,), "f32")]) as out:
        out.write(bytes(20000))
        out.write(values[:20000])
    with GGUFFile(path) as file:
        return file.digest


def test_digest_of_a_model_file(tmp_path):
    first = model(tmp_path / "a.gguf")
    assert first == model(tmp_path / "b.gguf")  # of the contents, not of the name
    assert first != model(tmp_path / "a.gguf", key=2)
    for at in (0, 10000, 19999):  # beginning, middle and end of a tensor
        values = bytearray(20000)
        values[at] = 1
        assert first != model(tmp_path / "a.gguf", bytes(values))
    with GGUFFile(tmp_path / "a.gguf") as file:
        info = file.tensors["b"]
    data = (tmp_path / "b.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(data + b"\0" * 64)
    with GGUFFile(tmp_path / "b.gguf") as file:
        assert file.digest != first and info.nbytes == 20000
