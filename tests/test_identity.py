"""What makes two pairs of frames the same: content, frames and size; never a name, a length or a time of change."""

import base64
import io
import os
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ivlite import files, media
from ivlite.errors import Stopped
from ivlite.media import medium as identity
from ivlite.stop import Stop, using

VIDEO = {"fps": 5, "min_frames": 4, "max_frames": 8, "min_pixels": 1024, "max_pixels": 1 << 14}
IMAGE = {"min_pixels": 1024, "max_pixels": 1 << 14}
RNG = np.random.default_rng(7)


def clip(path, shade=0, count=20, size=(64, 96)):
    """A lossless video of moving stripes; `shade` changes a few of its pixels and neither its length nor its size."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("rawvideo", rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "rgb24"
        for i in range(count):
            picture = np.full((*size, 3), 7 * i % 256, np.uint8)
            picture[:8, :8] = shade
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def keys(source, **more):
    return media.open_video(source, **VIDEO | more).pair_keys()


@pytest.fixture
def old(monkeypatch):
    """old(path): its changes are long past, so that its digest may be remembered."""

    def age(path):
        monkeypatch.setattr(files.time, "time_ns", lambda: max(files.signature(path)[3:]) + 10 * files.RACY)
        return path

    return age


def test_a_pair_has_a_key_of_16_bytes(tmp_path):
    medium = media.open_video(clip(tmp_path / "a.avi"), **VIDEO)
    found = medium.pair_keys()
    assert len(found) == medium.grid[0] == len(set(found)) and {len(k) for k in found} == {16}
    assert found == keys(tmp_path / "a.avi")


def test_content_counts_and_names_do_not(tmp_path):
    first = keys(clip(tmp_path / "a.avi", 0))
    (tmp_path / "b.avi").write_bytes((tmp_path / "a.avi").read_bytes())
    assert keys(tmp_path / "b.avi") == first == keys((tmp_path / "a.avi").read_bytes())
    length = os.path.getsize(tmp_path / "a.avi")
    times = os.stat(tmp_path / "a.avi").st_mtime_ns
    clip(tmp_path / "a.avi", 255)  # the same name, length and time
    os.utime(tmp_path / "a.avi", ns=(times, times))
    assert os.path.getsize(tmp_path / "a.avi") == length and not set(keys(tmp_path / "a.avi")) & set(first)


@pytest.mark.parametrize("more", [{"fps": 2.5}, {"max_pixels": 1 << 12}, {"start": 0.5}])
def test_other_frames_and_sizes_are_other_pairs(tmp_path, more):
    path = clip(tmp_path / "a.avi")
    assert keys(path, **more) != keys(path)


def test_pixels_in_memory_are_known_by_their_pixels():
    frames = RNG.integers(0, 256, (4, 64, 96, 3), np.uint8)
    first = keys(frames)
    assert first == keys(frames.copy()) == keys([Image.fromarray(f) for f in frames])
    frames[3, 0, 0, 0] ^= 128
    second = keys(frames)
    assert second[0] == first[0] and second[1] != first[1]
    assert media.open_image(frames[0], **IMAGE).pair_keys()[0] not in second  # images are normalised otherwise


def test_pixels_are_known_as_they_were_decoded():
    frames = RNG.integers(0, 256, (4, 64, 96, 3), np.uint8)
    medium, before = media.open_video(frames, **VIDEO), keys(frames)
    for _ in medium.pairs():
        pass
    frames[:] = 0
    assert medium.pair_keys() == before != keys(frames)


@pytest.mark.parametrize("form", ["path", "bytes", "base64", "open"])
def test_pictures_in_files_are_known_by_their_content(tmp_path, form):
    path = tmp_path / "a.png"

    def given():
        data = path.read_bytes()
        base = base64.b64encode(data).decode()
        return {"path": path, "bytes": data, "base64": f"data:image/png;base64,{base}", "open": io.BytesIO(data)}[form]

    def key():
        return media.open_image(given(), **IMAGE).pair_keys(), keys([given(), given()])

    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(path)
    first = key()
    assert first == key() and first[0] != first[1]
    Image.fromarray(np.ones((64, 96, 3), np.uint8)).save(path)
    assert key()[0] != first[0] and key()[1] != first[1]


def test_animations_have_keys(tmp_path):
    pictures = [Image.fromarray(np.full((64, 96, 3), 40 * i, np.uint8)) for i in range(4)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=200)
    found = keys(tmp_path / "a.png")
    assert len(set(found)) == 2 and found == keys((tmp_path / "a.png").read_bytes())


def test_a_part_of_the_pairs_is_decoded(tmp_path):
    sources = (clip(tmp_path / "a.avi"), RNG.integers(0, 256, (7, 64, 96, 3), np.uint8))
    for medium in (media.open_video(source, **VIDEO) for source in sources):
        every = list(medium.pairs())
        for first in range(1, len(every)):
            assert all(np.array_equal(a, b) for a, b in zip(medium.pairs(first), every[first:], strict=True))


def test_a_file_that_changed_since_it_was_opened_is_like_no_other(tmp_path):
    path = clip(tmp_path / "a.avi")
    medium = media.open_video(path, **VIDEO)
    clip(path, 9)
    assert not set(medium.pair_keys()) & set(keys(path))
    gone = media.open_video(path, **VIDEO)
    path.unlink()
    assert len(gone.pair_keys()) == gone.grid[0]


def test_what_changes_after_its_keys_were_made_has_others_once_it_is_decoded(tmp_path):
    frames = RNG.integers(0, 256, (6, 64, 96, 3), np.uint8)
    path = clip(tmp_path / "a.avi")
    for source, change in ((frames, lambda: frames.fill(0)), (path, lambda: clip(path, 9))):
        medium = media.open_video(source, **VIDEO)
        before = medium.pair_keys()
        assert list(medium.pairs(1)) and medium.pair_keys() == before
        change()
        for _ in medium.pairs(1):
            pass
        after = medium.pair_keys()
        assert after[0] == before[0] and not set(after[1:]) & set(before[1:])
    assert medium.warnings == [
        f"video {path} has changed since it was opened: its frames may be others than those planned"
    ]


# ------------------------------------------------------------------------------------------------ digests of files


@pytest.fixture
def reads(monkeypatch):
    """The paths that were read for a digest."""
    seen, opened = [], files.opened
    monkeypatch.setattr(files, "_table", [])  # what other tests keep for later processes
    monkeypatch.setattr(files, "opened", lambda path: seen.append(os.fspath(path)) or opened(path))
    return seen


def test_a_file_is_read_once_until_it_changes(tmp_path, old, reads):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = files.content_digest(old(path))
    assert first == files.content_digest(path) and len(first) == 32 and len(reads) == 1
    path.write_bytes(b"two")
    assert files.content_digest(old(path)) != first and len(reads) == 2


def test_a_file_that_has_just_changed_is_read_again(tmp_path, reads):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert files.content_digest(path) == files.content_digest(path) and len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, old, reads):
    path = old(tmp_path / "a") if (tmp_path / "a").write_bytes(b"x" * 100) else None
    files.content_digest(path, lambda done, total: path.write_bytes(b"y" * 100))
    files.content_digest(path)
    assert len(reads) == 2


def test_two_threads_read_a_file_once(tmp_path, old, reads, monkeypatch):
    path = old(tmp_path / "a") if (tmp_path / "a").write_bytes(b"x" * 100) else None
    begun, go, found = threading.Event(), threading.Event(), []
    first = threading.Thread(
        target=lambda: found.append(files.content_digest(path, lambda *_: begun.set() or go.wait(60)))
    )
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=lambda: found.append(files.content_digest(path)))
    second.start()
    stop = Stop()
    stop.set()
    with using(stop), pytest.raises(Stopped):  # who waits can be stopped
        files.content_digest(path)
    go.set()
    first.join(60), second.join(60)
    assert len(reads) == 1 and found[0] == found[1]


def test_who_waits_for_a_thread_that_fails_reads_itself(tmp_path, old, reads):
    path = old(tmp_path / "a") if (tmp_path / "a").write_bytes(b"x" * 100) else None
    begun, stop, found = threading.Event(), Stop(), []

    def fails(*_):
        begun.set()
        time.sleep(0.1)
        raise OSError("gone")

    def first():
        with pytest.raises(OSError, match="gone"):
            files.content_digest(path, fails)

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert begun.wait(60)
    threads.append(threading.Thread(target=lambda: found.append(files.content_digest(path))))
    threads[1].start()
    for t in threads:
        t.join(60)
    assert len(found) == 1 and len(reads) == 2 and not stop


def test_few_are_remembered(tmp_path, old, monkeypatch):
    monkeypatch.setattr(files, "REMEMBERED", 3)
    monkeypatch.setattr(files, "_digests", {})
    for i in range(5):
        (tmp_path / str(i)).write_bytes(b"x")
        files.content_digest(old(tmp_path / str(i)))
    assert len(files._digests) == 3


def test_large_files_are_read_while_other_work_goes_on(tmp_path, old, reads, monkeypatch):
    monkeypatch.setattr(identity, "LARGE", 1)
    medium = media.open_video(old(clip(tmp_path / "a.avi")), **VIDEO)
    medium.identify()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if files.signature(tmp_path / "a.avi") in files._digests:
            break
        time.sleep(0.01)
    assert len(reads) == 1 and len(medium.pair_keys()) == medium.grid[0] and len(reads) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_wait_for_its_parents_thread(tmp_path, old):
    path = old(tmp_path / "a") if (tmp_path / "a").write_bytes(b"x" * 100) else None
    begun, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: files.content_digest(path, lambda *_: begun.set() or go.wait(120)))
    thread.start()
    assert begun.wait(60)
    child = os.fork()
    if not child:
        os._exit(0 if len(files.content_digest(Path(path))) == 32 else 1)
    ended = [0, 0]
    end = time.monotonic() + 60
    while time.monotonic() < end:
        ended = os.waitpid(child, os.WNOHANG)
        if ended[0]:
            break
        time.sleep(0.01)
    go.set()
    thread.join(60)
    assert ended == (child, 0)
