"""Speech to text: the sound of a video in pieces, an engine that transcribes each, and the cues they add up to.

The engine is whisper.cpp (`pip install 'ivlite[speech]'`) with a model file that the user names. It runs in a process of its
own, `python -m ivlite.media.speech`: a damaged model file ends that process and not this one.
"""

import importlib.util
import json
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Any, BinaryIO, Protocol, Self

import av
import numpy as np
from av.stream import Discard

from ivlite import files
from ivlite.errors import MediaError, ModelFileError, UsageError, sentence
from ivlite.media.container import ERRORS, OPTIONS
from ivlite.media.cues import Collector, Cue
from ivlite.media.source import local_path
from ivlite.media.subtitles import first_time
from ivlite.stop import checkpoint

RATE = 16_000  # samples a second that whisper.cpp takes
PIECE = 300  # seconds that are transcribed at once, at most
SEARCHED = 30  # seconds at the end of a piece in which the quietest moment is looked for: words are not cut
QUIET = RATE // 2  # samples that are judged together
GAP = 0.2  # seconds without sound, from which on silence stands in
MAGIC = b"lmgg"  # of a model file of whisper.cpp
NOTHING = ("[BLANK_AUDIO]", "[ Silence ]", "(silence)", "[silence]")
NEEDED = "speech needs whisper.cpp: pip install 'ivlite[speech]'"


class Engine(Protocol):
    """Something that writes down speech. name: what the library calls it."""

    name: str

    def transcribe(self, samples: np.ndarray, rate: int) -> list[Cue]:
        """The Cues in float32 (n,) samples; times count from the first. Raises ModelFileError, Stopped."""


def transcribe(path: Any, engine: Engine, duration: float | None = None, progress: Any = None) -> tuple[Cue, ...]:
    """The Cues of what is said in a video file, () where it has no sound.

    duration: seconds of the video, within which cues are cut. progress("speech", done, total): seconds of sound. Raises
    MediaError (the file), ModelFileError (the engine), Stopped.
    """
    collector, total = Collector(), duration or 0.0
    with closing(pieces(path)) as found:
        for start, samples in found:
            if np.abs(samples).max(initial=0) > 0:
                for cue in engine.transcribe(samples, RATE):
                    if cue.text.strip() not in NOTHING:
                        collector.add(start + cue.start, start + cue.end, cue.text)
            if progress:
                done = start + len(samples) / RATE
                progress("speech", round(done), round(max(done, total)))
    return collector.finish(duration)[0]


def pieces(path: Any) -> Generator[tuple[float, np.ndarray], None, None]:
    """Yields (seconds in the video's time, float32 (n,) samples): the sound of a video, cut where it is quiet."""
    held, start = np.zeros(0, np.float32), 0.0
    for at, samples in _sound(path):
        gap = at - (start + len(held) / RATE)
        if not len(held) or gap > PIECE:
            if len(held):
                yield start, held
            held, start = samples, at
        else:
            silence = np.zeros(int(gap * RATE) if gap > GAP else 0, np.float32)
            held = np.concatenate([held, silence, samples])
        while len(held) > PIECE * RATE:
            cut = quietest(held)
            yield start, held[:cut]
            held, start = held[cut:], start + cut / RATE
    if len(held):
        yield start, held


def quietest(samples: np.ndarray) -> int:
    """The index of the middle of the quietest moment near the end of a piece."""
    end, first = PIECE * RATE, (PIECE - SEARCHED) * RATE
    loud = np.abs(samples[first:end]).reshape(-1, QUIET).mean(1)
    return first + int(loud.argmin()) * QUIET + QUIET // 2


def _sound(path: Any) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (seconds in the video's time, float32 samples at RATE), about a second each."""
    path, name = local_path(path, "video")
    try:
        with av.open("file:" + path, options=dict(OPTIONS), metadata_errors="replace") as container:
            streams = [s for s in container.streams.audio if s.codec_context is not None]
            if not streams:
                return
            stream, zero = streams[0], first_time(container)
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = Discard.all
            yield from _decoded(container, stream, zero)
    except ERRORS as error:
        raise MediaError(f"the sound of video {name} cannot be read: {sentence(error, 100)}") from error


def _decoded(container: Any, stream: Any, zero: float) -> Iterator[tuple[float, np.ndarray]]:
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    held: list[np.ndarray] = []
    first = clock = 0.0
    for frame in _frames(container, stream):
        at = clock if frame.time is None else frame.time - zero
        if held and (abs(at - clock) > GAP or sum(map(len, held)) >= RATE):
            yield first, np.concatenate(held)
            held = []
        if not held:
            first = at
        clock = at + frame.samples / (frame.sample_rate or RATE)
        frame.pts = None
        held += [part.to_ndarray().reshape(-1) for part in resampler.resample(frame)]
    held += [part.to_ndarray().reshape(-1) for part in resampler.resample(None)]
    if held:
        yield first, np.concatenate(held)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames of a stream; damaged packets are passed over, and damage of the file ends it."""
    try:
        for packet in container.demux(stream):
            checkpoint()
            try:
                yield from packet.decode()
            except ERRORS:
                continue
    except ERRORS:
        return


# ------------------------------------------------------------------------------------------------ whisper.cpp


class Whisper:
    """An Engine: whisper.cpp with a model file, in a process of its own that ends with close().

    threads: 0 for as many as whisper.cpp takes. Raises UsageError (the package is missing), ModelFileError.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 0) -> None:
        self.path, self.name = os.path.abspath(path), os.path.basename(os.fspath(path))
        _check(self.path)
        if importlib.util.find_spec("pywhispercpp") is None:
            raise UsageError(NEEDED)
        self._process = started([sys.executable, "-m", "ivlite.media.speech", self.path, str(threads)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    def transcribe(self, samples: np.ndarray, rate: int) -> list[Cue]:
        if rate != RATE:
            raise UsageError(f"whisper.cpp takes {RATE} samples a second, not {rate}")
        data = np.ascontiguousarray(samples, np.float32).tobytes()
        answer = exchange(self._process, struct.pack("<q", len(data)) + data)
        if answer is None:
            code = self._process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise ModelFileError(
                f"speech model {self.name} cannot be used: whisper.cpp ended ({how}); download it again"
            )
        return [Cue(start, end, text) for start, end, text in json.loads(answer)]


def _check(path: str) -> None:
    """Raises ModelFileError for what is no model file of whisper.cpp."""
    try:
        with files.opened(path) as file:
            magic = file.read(4)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"speech model {path} cannot be read: {files.reason(error)}") from error
    if magic != MAGIC:
        raise ModelFileError(f"speech model {path} is no model of whisper.cpp: give a file such as ggml-base.bin")


def started(command: list[str]) -> subprocess.Popen[bytes]:
    """A process with which pieces of sound and texts are exchanged; Ctrl-C of a terminal does not reach it."""
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, start_new_session=True, bufsize=0, **quiet)  # type: ignore[call-overload]


def exchange(process: subprocess.Popen[bytes], data: bytes) -> bytes | None:
    """Sends data and returns the line that answers it, None where the process has ended. Raises Stopped."""
    assert process.stdin and process.stdout
    into, out = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(into, False)
    left, answer = memoryview(data), b""
    while not answer.endswith(b"\n"):
        checkpoint()
        readable, writable, _ = select.select([out], [into] if left else [], [], 0.1)
        try:
            if writable:
                left = left[os.write(into, left[: 1 << 16]) :]
            if readable:
                part = os.read(out, 1 << 20)
                if not part:
                    return None
                answer += part
        except BlockingIOError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return None
    return answer


def main(path: str, threads: int, into: BinaryIO, out: BinaryIO) -> None:
    """The process: reads pieces of samples, writes a line of JSON for each."""
    from pywhispercpp.model import Model

    settings: dict[str, Any] = {"n_threads": threads} if threads else {}
    model = Model(path, print_progress=False, print_realtime=False, redirect_whispercpp_logs_to=None, **settings)
    while len(head := into.read(8)) == 8:
        samples = np.frombuffer(into.read(struct.unpack("<q", head)[0]), np.float32)
        found = model.transcribe(samples, language="auto")
        rows = [(part.t0 / 100, part.t1 / 100, part.text) for part in found]  # hundredths of a second
        out.write(json.dumps(rows).encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what whisper.cpp prints is no answer
    main(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, answers)
