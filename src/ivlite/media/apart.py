"""Media of strangers, decoded in another process: one that dies, hangs or takes too much memory costs one question.

`Decoders` has the processes (`media.child`). A file of an `Apart` is a source like any other; its frames come through a
pipe as they are decoded.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from ivlite.errors import MediaError, OutOfMemoryError, UsageError
from ivlite.machine import gigabytes
from ivlite.media import timeline, wire
from ivlite.media.cues import MOST_CUES, Cue
from ivlite.media.image import Still
from ivlite.media.medium import Content, Medium
from ivlite.media.probe import Probe
from ivlite.media.source import MAX_PIXELS, Remote
from ivlite.media.subtitles import Subtitles
from ivlite.media.video import ROW
from ivlite.stop import checkpoint

LOOK = 0.05  # seconds between two looks at the Stop
KEPT = 2  # processes that wait for the next file
CLIP = 64 << 20  # bytes that a clip may have beyond twice those of its video
LOOKS = 4  # files that are looked at side by side; those whose frames are decoded do not count: they wait for the model
ERRORS = {"UsageError": UsageError, "MediaError": MediaError, "OutOfMemoryError": OutOfMemoryError}
FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "4"}  # each reserves addresses, which the limit counts

Message = tuple[dict[str, Any], list[Any]]  # what is said, and arrays of bytes


class Died(Exception):
    """A process ended, or said what makes no sense."""


class DecoderError(MediaError):
    """The process that decoded a file died, or said nothing for long: the file may be why, or the machine."""


class Child:
    """A process that decodes. memory: bytes it may take. patience: seconds without a word after which it hangs."""

    def __init__(self, command: list[str], patience: float) -> None:
        self.patience = patience
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env=os.environ | FEW_THREADS, start_new_session=True,  # Ctrl-C in a terminal is for this process
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._ready = select.poll()
        self._ready.register(self._from, select.POLLIN | select.POLLHUP)

    def ask(self, work: str, **what: Any) -> Iterator[Message]:
        """Yields the messages of the answer. Raises Died, TimeoutError, Stopped, and the errors of the decoders."""
        try:
            wire.write(self._to, wire.packed({"work": work, **what}))
            while True:
                head, arrays = wire.unpacked(self._read)
                if "error" in head:
                    raise ERRORS.get(head["error"], Died)(head["text"])
                if head.get("end"):
                    return
                yield head, arrays
        except (BrokenPipeError, ConnectionError, EOFError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise Died(str(error)) from error

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest, began = memoryview(data), time.monotonic()
        while len(rest):
            checkpoint()
            if not self._ready.poll(LOOK * 1000):
                if time.monotonic() - began > self.patience:
                    raise TimeoutError
                continue
            count = os.readv(self._from, [rest])
            if not count:
                raise EOFError
            rest, began = rest[count:], time.monotonic()
        return data

    def kill(self) -> None:
        """Ends the process at once."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()


class Decoders:
    """The processes, which serve one file after another. Any thread may call any method.

    memory: bytes that each may take. patience: seconds for a word of a process. longest: seconds of a video.
    """

    def __init__(self, memory: int = 4 << 30, patience: float = 30.0, longest: float = 24 * 3600.0,
                 command: list[str] | None = None) -> None:  # fmt: skip
        self.memory, self.patience, self.longest = memory, patience, longest
        self._command = command or [sys.executable, "-m", "ivlite.media.child", str(memory)]
        self._idle: list[Child] = []
        self._lock, self._looks = threading.Lock(), threading.Semaphore(LOOKS)
        self._open = True

    def close(self) -> None:
        """Ends the processes that wait; those that decode end with their work."""
        with self._lock:
            idle, self._idle, self._open = self._idle, [], False
        for child in idle:
            child.kill()

    def warm(self) -> None:
        """Starts a process for the next file: its libraries take a moment to load."""
        self._give(self._child(), True)

    def one(self, source: "Apart", work: str, **what: Any) -> Message:
        """The answer of one message to a short piece of work."""
        while not self._looks.acquire(timeout=LOOK):
            checkpoint()
        try:
            with contextlib.closing(self.all(source, work, **what)) as answer:
                found = [(head, arrays) for head, arrays in answer if "progress" not in head]
            return found[-1]
        finally:
            self._looks.release()

    def all(self, source: "Apart", work: str, told: Callable[..., object] = lambda *counts: None, writes: int = 0,
            **what: Any) -> Generator[Message, None, None]:  # fmt: skip
        """Yields the messages of an answer. writes: bytes of the file that the work may write, in a process of its own.

        Raises MediaError where the process dies or hangs, or the file became another that may not be read, and what it raises.
        """
        if not source.readable():
            raise MediaError(f"{source.name} can no longer be read")
        child = self._started(writes) if writes else self._child()
        try:
            for head, arrays in child.ask(work, **what):
                if "progress" in head:
                    told("scan", *head["progress"])
                yield head, arrays
            sound = True
        except (MediaError, UsageError, OutOfMemoryError) as error:
            sound = True
            raise type(error)(str(error).replace(source.path, source.name)) from None
        except Died as died:
            sound = False
            why = f"{died}; it may take {gigabytes(self.memory)} of memory" if str(died) else "it ended"
            raise DecoderError(f"{source.name} cannot be decoded: its decoder failed ({why})") from None
        except TimeoutError:
            sound = False
            raise DecoderError(
                f"{source.name} cannot be decoded: nothing came of it for {self.patience:g} seconds"
            ) from None
        except BaseException:  # stopped, or nobody wants the rest
            sound = False
            raise
        finally:
            self._give(child, sound and not writes)

    def _child(self) -> Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.process.poll() is None:
                    return child
        return self._started()

    def _started(self, writes: int = 0) -> Child:
        try:
            return Child([*self._command, str(writes)] if writes else self._command, self.patience)
        except OSError as error:  # no more processes or descriptors, no memory
            raise OutOfMemoryError(f"the system starts no process that decodes now ({error.strerror})") from None

    def _give(self, child: Child, sound: bool) -> None:
        with self._lock:
            if sound and self._open and len(self._idle) < KEPT:
                self._idle.append(child)
                return
        child.kill()


class Apart(Remote):
    """An image or video file that other processes decode. name: for messages. allowed(path): whether a file beside it may be read.

    readable(): whether it may be read itself: a link may have come in its place since the path was checked.
    """

    def __init__(self, path: str, name: str, decoders: Decoders, allowed: Callable[[str], bool] = lambda path: True,
                 readable: Callable[[], bool] = lambda: True) -> None:  # fmt: skip
        self.path, self.name, self.decoders, self.allowed, self.readable = path, name, decoders, allowed, readable

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def cut(self, output: str, start: float, end: float) -> str:
        """Writes the part from `start` to `end` seconds to a file, the path `output` and an ending; returns its path.

        See `media.cut`. Raises MediaError, UsageError, OutOfMemoryError, Stopped.
        """
        what: dict[str, Any] = {
            "video": [self.path, 25, None, None, None],
            "output": output,
            "start": start,
            "end": end,
        }
        most = 2 * os.path.getsize(self.path) + CLIP
        with contextlib.closing(self.decoders.all(self, "cut", writes=most, **what)) as messages:
            found = [head for head, _ in messages if "progress" not in head]
        return str(found[-1]["path"])

    def still(self, kind: str) -> Still:
        return ApartStill(self, kind)

    def probe(self, fps: float, start: float | None, end: float | None, stream: int | None) -> Probe:
        return ApartProbe(self, [self.path, fps, start, end, stream])


class ApartStill(Still):
    """A picture of a file."""

    def __init__(self, source: Apart, kind: str) -> None:
        super().__init__(source.name, kind)
        self._source, self._kind = source, kind

    def content(self) -> Content:
        return Content(self._source.path)

    def look(self) -> list[str]:
        head, _ = self._source.decoders.one(self._source, "look", path=self._source.path, kind=self._kind)
        with sense(self.what):
            self.shape = checked_shape(head["shape"], self.what)
            return texts(head["notes"], self._source)

    def rgb(self, size: tuple[int, int]) -> np.ndarray:
        if self.shape is None:
            self.look()
        what = {"path": self._source.path, "kind": self._kind, "size": [int(side) for side in size]}
        _, arrays = self._source.decoders.one(self._source, "rgb", **what)
        return picture(arrays[0] if arrays else b"", size, self.what)


class ApartProbe(Probe):
    """A video of a file. video: what the process is asked for it."""

    def __init__(self, source: Apart, video: list[Any]) -> None:
        self._source, self._video = source, video
        super().__init__(source.name, None, None, video[2], video[3])
        self._learn(*source.decoders.one(source, "probe", video=video))

    def _learn(self, head: dict[str, Any], arrays: list[Any]) -> None:
        with sense(self.what):
            self._describe(head, arrays)
        if self.seconds > self._source.decoders.longest:
            most = self._source.decoders.longest / 3600
            raise MediaError(f"{self.what} is longer than the {most:g} hours that are taken: state start and end")

    def _describe(self, head: dict[str, Any], arrays: list[Any]) -> None:
        times = np.frombuffer(arrays[0], np.float64)
        numbers = [head[name] for name in ("rate", "interval", "declared", "last")]
        good = len(times) and np.isfinite(times).all() and (np.diff(times) >= 0).all()
        if not good or not all(n is None or isinstance(n, int | float) for n in numbers):
            raise ValueError("times")
        rate, interval, declared, last = numbers
        self.times = timeline.Timeline(
            times,
            None,
            np.zeros(1, np.int64),
            rate,
            interval,
            declared,
            last,
            notes=tuple(texts(head["notes"], self._source)),
        )
        self.shape, self.estimated = checked_shape(head["shape"], self.what), bool(head["estimated"])
        self.every, self._remarks = bool(head["every"]), texts(head["said"], self._source)

    def settle(self, progress: Any = None) -> None:
        if self.estimated:
            answer = self._source.decoders.all(
                self._source, "settle", progress or (lambda *counts: None), video=self._video
            )
            with contextlib.closing(answer) as messages:
                self._learn(*[found for found in messages if "progress" not in found[0]][-1])

    def cost(self, chosen: Any, size: tuple[int, int], measuring: bool = True) -> tuple[float, float]:
        what = {"video": self._video, "chosen": np.asarray(chosen).tolist(), "size": [int(side) for side in size]}
        head, _ = self._source.decoders.one(self._source, "cost", **what, measuring=measuring)
        with sense(self.what):
            scan, decode = (float(seconds) for seconds in head["cost"])
            return scan, decode

    def tracks(self) -> tuple[list[Subtitles], list[str]]:
        head, arrays = self._source.decoders.one(self._source, "tracks", video=self._video)
        with sense(self.what):
            found = [subtitles(*track) for track in zip(head["tracks"], arrays, strict=True)]
            return found, texts(head["skipped"], self._source)

    def beside(self, path: str) -> list[str]:
        return [file for file in super().beside(path) if self._source.allowed(file)]

    def read(self, path: str) -> Subtitles:
        what = {"path": path, "duration": self.times.duration, "rate": self.times.rate}
        head, arrays = self._source.decoders.one(self._source, "subtitles", **what)
        with sense(f"subtitles {os.path.basename(path)}"):
            return subtitles(head, arrays[0])

    def open(self, chosen: Any, size: tuple[int, int], **shape: int) -> Medium:
        chosen = np.asarray(chosen)
        marks, length = self.times.times[chosen], self.times.duration
        named = "video", self.name, size, chosen, marks, length
        return ApartVideo(self._source, self._video, self.times, *named, warnings=self._remarks, **shape)


class ApartVideo(Medium):
    """A video of a file; every call of pairs() has it decoded again."""

    def __init__(self, source: Apart, video: list[Any], times: timeline.Timeline, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._source, self._video, self._times = source, video, times
        self._shape = {"patch_size": more["patch_size"], "temporal": more["temporal"]}
        self._content = Content(source.path, repr(video[4]).encode())

    def content(self) -> Content:
        return self._content

    def _picture_key(self, content: Content, n: int) -> bytes:  # as of a video.VideoFile: with the time of the frame
        return super()._picture_key(content, n) + np.float64(self._times.times[self.frames[n]]).tobytes()

    def memory(self, decoding: bool = True) -> int:
        return ROW * len(self._times.times)

    def pictures(self, first: int = 0) -> Iterator[np.ndarray]:
        what = {
            "video": self._video,
            "chosen": self.frames,
            "size": [int(side) for side in self.size],
            "shape": self._shape,
        }
        count, answer = 0, self._source.decoders.all(self._source, "frames", **what, first=first)
        with contextlib.closing(answer) as messages:
            for head, arrays in messages:
                for array in arrays:
                    count += 1
                    yield picture(array, self.size, f"video {self.source}")
                for sentence in texts(head.get("notes", ()), self._source):
                    self.warn(sentence)
        if count != len(self.frames) - first:
            raise MediaError(f"video {self.source} can no longer be decoded: check that it has not changed")


@contextlib.contextmanager
def sense(what: str) -> Iterator[None]:
    """Context manager: a message that is none is a MediaError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise MediaError(f"{what} cannot be decoded: what its decoder says makes no sense") from None


def picture(data: Any, size: tuple[int, int], what: str) -> np.ndarray:
    """uint8 (H, W, 3) of bytes. Raises MediaError for another number of them."""
    if len(data) != size[0] * size[1] * 3:
        raise MediaError(f"{what} cannot be decoded: its picture makes no sense")
    return np.frombuffer(data, np.uint8).reshape(*size, 3)


def subtitles(facts: dict[str, Any], data: Any) -> Subtitles:
    """Subtitles of what a process says of them. Raises ValueError, TypeError, KeyError where it makes no sense."""
    cues = tuple(Cue(float(a), float(b), str(text)) for a, b, text in json.loads(bytes(data))[:MOST_CUES])
    if not np.isfinite([(cue.start, cue.end) for cue in cues]).all():
        raise ValueError("times")
    words = {name: str(facts[name]) for name in ("source", "language", "title", "format", "charset")}
    counts = {str(name): int(count) for name, count in facts["counts"].items()}
    return Subtitles(cues, **words, counts=counts, notes=tuple(map(str, facts["notes"])), path=facts["path"])


def checked_shape(shape: Any, what: str) -> tuple[int, int]:
    """(height, width) of a picture. Raises MediaError beyond the pixels that are taken."""
    height, width = (int(side) for side in shape)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise MediaError(f"{what} is {width}x{height}, and {MAX_PIXELS >> 20} megapixels are the most")
    return height, width


def texts(sentences: Any, source: Apart) -> list[str]:
    return [str(sentence).replace(source.path, source.name) for sentence in sentences]
