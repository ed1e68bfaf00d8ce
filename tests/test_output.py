"""Outputs: every place where writing can be cut off or refused, and every name that may not be written to."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ivlite import output
from ivlite.errors import DiskError, UsageError
from ivlite.gguf import GGUFFile
from ivlite.gguf.writer import GGUFWriter
from ivlite.output import check_outputs, partial_path, ready_path, ready_paths, unfinished

TENSORS = [("a", (3000,), "f32"), ("b", (500,), "f32")]
MARK = bytes(range(32))
MEDIA = Path(__file__).parent / "data" / "golden_media"
DATA = [np.arange(count[0], dtype=np.float32) for _, count, _ in TENSORS]

# Writes a file of two tensors, resuming, and is killed before the n-th call that changes something on the disk. Prints
# how many tensors were there already.
PROGRAM = """
import os, signal, sys
import numpy as np
count = 0
def dying(name):
    real = getattr(os, name)
    def call(*args, **more):
        global count
        count += 1
        if count == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(os, name, call)
for name in ("open", "pwrite", "ftruncate", "fsync", "replace", "unlink", "close"):
    dying(name)
from ivlite.gguf.writer import GGUFWriter
tensors = [("a", (3000,), "f32"), ("b", (500,), "f32")]
with GGUFWriter(sys.argv[1], {"k": 1}, tensors, bytes(range(32)), resume=True) as out:
    print(len(out.written), flush=True)
    for i, (_, shape, _) in enumerate(tensors):
        if i not in out.written:
            out.write(np.arange(shape[0], dtype=np.float32))
print("calls", count, flush=True)
"""


def attempt(path, kill, older=None):
    """Runs PROGRAM in a process of its own; returns its exit status and the last number it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, str(kill)], capture_output=True, text=True, cwd=path.parent, timeout=60
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode, [int(line.split()[-1]) for line in done.stdout.splitlines()]


@pytest.fixture
def whole(tmp_path):
    with GGUFWriter(tmp_path / "whole.gguf", {"k": 1}, TENSORS, MARK) as out:
        for x in DATA:
            out.write(x)
    return (tmp_path / "whole.gguf").read_bytes()


def test_killed_before_every_step(tmp_path, whole):
    """Whatever the moment: the older output or the new one stands under the name, and what was done is not lost."""
    folder = tmp_path / "out"
    folder.mkdir()
    path, kill, complete = folder / "m.gguf", 0, 0
    while True:
        kill += 1
        for name in os.listdir(folder):
            (folder / name).unlink()
        path.write_bytes(b"older")
        status, before = attempt(path, kill)
        assert path.read_bytes() in (b"older", whole)
        if status == 0:
            assert path.read_bytes() == whole and os.listdir(folder) == ["m.gguf"]
            break
        if path.read_bytes() == whole:
            assert os.listdir(folder) == ["m.gguf"]
            continue
        status, printed = attempt(path, 0)
        assert status == 0 and path.read_bytes() == whole and os.listdir(folder) == ["m.gguf"]
        assert printed[0] == 2 or not complete, (
            f"killed before step {kill}, all tensors were written, {printed[0]} found"
        )
        complete += printed[0] == 2
    assert complete >= 5 and kill > 15


def test_a_ready_file_of_other_work_is_dropped(tmp_path, whole):
    path = tmp_path / "m.gguf"
    for mark, resume in ((MARK, False), (bytes(32), True)):
        ready_path(path, MARK).write_bytes(whole)
        assert unfinished(path) == ready_paths(path) == [ready_path(path, MARK)]
        with GGUFWriter(path, {"k": 1}, TENSORS, mark, resume) as out:
            assert not out.written
            for x in DATA:
                out.write(x)
        assert sorted(os.listdir(tmp_path)) == ["m.gguf", "whole.gguf"]


# ------------------------------------------------------------------------------------------------ what a disk refuses


def failing(monkeypatch, name, number, when=lambda *a: True):
    real = getattr(fcntl if name == "flock" else os, name)

    def call(*args):
        if when(*args):
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(fcntl if name == "flock" else os, name, call)


def is_folder(fd):
    return os.path.isdir(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_filesystem_without_locks(tmp_path, monkeypatch, number):
    failing(monkeypatch, "flock", number)
    file = output.Partial(tmp_path / "x", 3)
    file.put(b"abc", 0)
    file.finish()
    assert (tmp_path / "x").read_bytes() == b"abc" and len(file.notes) == 1 and "no locks" in file.notes[0]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_other_errors_of_locking_are_named(tmp_path, monkeypatch, number):
    failing(monkeypatch, "flock", number)
    with pytest.raises(DiskError, match=f"cannot be locked: {os.strerror(number)}"):
        output.Partial(tmp_path / "x", 3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.ENOSYS])
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, number):
    failing(monkeypatch, "fsync", number, is_folder)
    output.write(tmp_path / "x", b"abc")
    assert (tmp_path / "x").read_bytes() == b"abc" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("folder", [True, False])
def test_a_disk_that_fails_while_it_is_flushed(tmp_path, monkeypatch, folder):
    failing(monkeypatch, "fsync", errno.EIO, lambda fd: is_folder(fd) == folder)
    with pytest.raises(DiskError, match="Input/output error.*check the disk"):
        output.write(tmp_path / "x", b"abc")
    assert os.listdir(tmp_path) == (["x"] if folder else [])


def test_a_filesystem_that_does_not_say_how_large_it_is(tmp_path, monkeypatch):
    nothing = type("S", (), {"f_bavail": 0, "f_frsize": 4096, "f_blocks": 0})
    monkeypatch.setattr(os, "statvfs", lambda path: nothing)
    output.write(tmp_path / "x", b"abc")
    failing(monkeypatch, "statvfs", errno.ENOSYS)
    output.write(tmp_path / "y", b"abc")


def test_a_name_that_is_refused_at_the_end_keeps_the_work(tmp_path, monkeypatch, whole):
    path = tmp_path / "m.gguf"
    with monkeypatch.context() as patch:
        failing(patch, "replace", errno.EBUSY, lambda _, to: str(to) == str(path))
        with pytest.raises(DiskError, match="busy.*--resume"), GGUFWriter(path, {"k": 1}, TENSORS, MARK) as out:
            for x in DATA:
                out.write(x)
    assert not path.exists()
    with GGUFWriter(path, {"k": 1}, TENSORS, MARK, resume=True) as out:
        assert out.written == {0, 1}
    assert path.read_bytes() == whole and not unfinished(path)


def test_too_many_open_files_are_named(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    failing(monkeypatch, "open", errno.EMFILE)
    from ivlite.errors import ModelFileError

    with pytest.raises(ModelFileError, match="Too many open files; close other files or models, or raise the limit"):
        GGUFFile(tmp_path / "m.gguf")
    with pytest.raises(DiskError, match="Too many open files"):
        output.write(tmp_path / "x", b"")


# ------------------------------------------------------------------------------------------------ names


def test_outputs_are_no_inputs(tmp_path):
    source, other = tmp_path / "in", tmp_path / "other"
    source.write_bytes(b"1")
    (tmp_path / "soft").symlink_to(source)
    os.link(source, tmp_path / "hard")
    for name in ("in", "soft", "hard", "../" + tmp_path.name + "/in"):
        with pytest.raises(UsageError, match="being read; choose another name"):
            check_outputs([other, tmp_path / name], [None, tmp_path / "none", source])
    for hidden in (partial_path(other), ready_path(other, MARK)):
        hidden.write_bytes(b"1")
        with pytest.raises(UsageError, match="hidden file"):
            check_outputs([other], [hidden])
        hidden.unlink()
    with pytest.raises(UsageError, match="one file"):
        check_outputs([other, tmp_path / "." / "other"])
    check_outputs([other, None], [source])
    assert source.read_bytes() == b"1" and sorted(os.listdir(tmp_path)) == ["hard", "in", "soft"]


@pytest.mark.parametrize(("name", "error", "words"), [
    ("none/x", DiskError, "no folder"), (".", UsageError, "is a folder"), ("fifo", UsageError, "regular file"),
    ("file/x", DiskError, "no folder"), ("a\0b", DiskError, "null"), ("n" * 300, DiskError, "too long"),
])  # fmt: skip
def test_places_that_hold_no_file(tmp_path, name, error, words):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(error, match=words) as caught:
        check_outputs([f"{tmp_path}/{name}"])
    assert len(str(caught.value)) <= 500


def test_a_model_of_the_package_is_never_replaced(tmp_path, monkeypatch):
    """By any command, whatever its source, through links and other spellings of the folder."""
    from ivlite.batch.journal import Journal
    from ivlite.media.cut import cut
    from ivlite.quantize import quantize
    from ivlite.session import saving

    package, clip = tmp_path / "real" / "data", next(iter(sorted(MEDIA.glob("*.mkv"))))
    package.mkdir(parents=True)
    (package / "demo.gguf").write_bytes(b"a model")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "demo.gguf").symlink_to(package / "demo.gguf")
    monkeypatch.setattr(output, "PACKAGED", tmp_path / "linked" / "data")
    for path in (package / "demo.gguf", tmp_path / "demo.gguf", f"{tmp_path}/linked/data/../data/demo.gguf"):
        for write in (lambda p: check_outputs([p]), lambda p: output.write(p, b""), Journal, lambda p: saving.SessionFile(p).save(*[None] * 5),
                      lambda p: GGUFWriter(p, {}, TENSORS)):  # fmt: skip
            with pytest.raises(UsageError, match="models that ivlite brings along: write elsewhere"):
                write(path)
    with pytest.raises(UsageError, match="brings along"):
        cut(clip, package / "demo.mp4", 0, 1)
    with pytest.raises(UsageError, match="brings along"):
        quantize(Path(__file__).parent / "data" / "golden_plain" / "hf", package / "demo.gguf")
    assert os.listdir(package) == ["demo.gguf"] and (package / "demo.gguf").read_bytes() == b"a model"


def test_names_of_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    output.write(os.fsencode(tmp_path / "x"), b"1")
    output.write(b"~/y", b"2")
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]
    with pytest.raises(UsageError, match='"-" is no file'):
        check_outputs([b"-"])
    with pytest.raises(DiskError, match=f"^{tmp_path}/none/x cannot be written"):
        check_outputs([os.fsencode(tmp_path / "none" / "x")])


def test_a_disk_that_is_full_costs_no_work_that_is_done(tmp_path, monkeypatch):
    """What was written before goes on once there is space: it is not deleted because the rest does not fit now."""
    path, full = tmp_path / "x.gguf", os.statvfs_result((4096, 4096, 1000, 0, 0, 10, 10, 10, 0, 255))
    begun = output.Partial(path, 1 << 20, MARK)
    begun.put(b"work", 0)
    begun.close(keep=True)
    before = partial_path(path).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: full)
        with pytest.raises(DiskError, match="free"):
            output.Partial(path, 1 << 20, MARK, resume=True)
    assert partial_path(path).read_bytes() == before
    again = output.Partial(path, 1 << 20, MARK, resume=True)
    assert again.resumed and again.get(4, 0) == b"work"
    again.close(keep=False)
