"""The folder of what can be computed again, and the digest that identifies a model file."""

import os
import stat

import pytest

from ivlite import files
from ivlite.files import RECORD, REMEMBERED, cache_folder, content_digest, keep_digests
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


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A file that has not changed for a while, and a folder in which digests are kept; a list of the files that are read."""
    video, folder, reads = tmp_path / "a.mp4", tmp_path / "cache", []
    video.write_bytes(b"a video")
    folder.mkdir()
    hashed = files._hashed

    def reading(path, *more):
        reads.append(path)
        return hashed(path, *more)

    monkeypatch.setattr(files, "_hashed", reading)
    monkeypatch.setattr(files, "RACY", -(10**18))
    monkeypatch.setattr(files, "_digests", {})
    keep_digests(folder)
    yield video, folder, reads
    keep_digests(None)


def anew(path):
    """content_digest in a process that has no digests in memory."""
    files._digests.clear()
    return content_digest(path)


def test_digests_of_files_are_kept_for_later_processes(kept):
    video, folder, reads = kept
    first = anew(video)
    assert anew(video) == first and len(reads) == 1
    info = os.stat(video)
    video.write_bytes(b"another")  # same name, length and time of change
    os.utime(video, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert anew(video) != first and len(reads) == 2
    assert os.path.getsize(folder / "digests") <= RECORD * REMEMBERED
    assert stat.S_IMODE(os.stat(folder / "digests").st_mode) == 0o600
    keep_digests(None)
    anew(video)
    assert len(reads) == 3


def test_damaged_digests_are_not_used(kept):
    video, folder, reads = kept
    first, table = anew(video), folder / "digests"
    data = table.read_bytes()
    for at in range(len(data) - RECORD, len(data)):
        table.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert anew(video) == first
    assert len(reads) == RECORD + 1
    table.write_bytes(data[:-1])
    assert anew(video) == first and anew(video) == first and len(reads) == RECORD + 2  # and it was kept again


def test_digests_that_cannot_be_kept(kept):
    video, folder, reads = kept
    (folder / "digests").mkdir()
    assert anew(video) == anew(video) and len(reads) == 2
    (folder / "digests").rmdir()
    (folder / "digests").symlink_to(video)  # never written through
    assert anew(video) == anew(video) and video.read_bytes() == b"a video"
    (folder / "digests").unlink()
    os.mkfifo(folder / "digests")
    assert anew(video) == anew(video)
    keep_digests(folder / "none")
    assert anew(video) == anew(video)
