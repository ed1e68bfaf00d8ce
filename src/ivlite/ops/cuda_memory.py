"""The memory of a card as torch tensors: what `ivlite.ops.cuda` needs of an array library, and no more.

Tests pass another class with the same methods, whose arrays are numpy's and whose kernels are compiled for the host.
"""

import math
import threading
from contextlib import contextmanager, suppress

import numpy as np
import torch

from ivlite import _C
from ivlite.errors import DeviceError, OutOfMemoryError, UsageError
from ivlite.machine import gigabytes
from ivlite.ops import cards

STAGED = 1 << 20  # bytes from which on an array goes to the card through pinned memory
DTYPES = {name: getattr(torch, name) for name in ("float32", "int32", "uint8")}


class TorchMemory:
    """Arrays of the card with that index. Work of every thread goes to that thread's current stream of torch; where that is
    another than before, it waits for what was launched there.

    kernels: the launchers. Every method raises OutOfMemoryError or DeviceError for what the card refuses.
    """

    kernels = _C.cuda
    _switch, _last, _recording = threading.Lock(), None, None  # streams: of the newest work, and one that is recorded

    def __init__(self, index):
        self.device, self.index = torch.device("cuda", index), index
        card = torch.cuda.get_device_properties(self.device)
        self.name, self.multiprocessors = card.name, card.multi_processor_count
        self._stage, self._lock = None, threading.Lock()

    def launch(self, kernel, *args):
        """Calls a launcher. Meanwhile the card is the thread's, of torch and of the runtime that is linked into the kernels: a driver has
        one for both, and a model on another card, or the program around it, changes it.
        """
        with self._asked(0), torch.cuda.device(self.device):
            self.kernels.use_card(self.index)
            getattr(self.kernels, kernel)(*args)

    def send(self, to, pinned):
        """Starts to copy an array of `pinned` over one of the card; it must stay as it is until a later result is here."""
        with self._asked(0):
            self.stream()
            to.copy_(torch.from_numpy(pinned), non_blocking=True)

    def stream(self):
        """The stream that the calling thread launches on."""
        stream = torch.cuda.current_stream(self.device)
        if stream != self._recording:
            with self._switch:
                if self._last is not None and stream != self._last:
                    with self._asked(0):
                        stream.wait_stream(self._last)
                self._last = stream
        return stream.cuda_stream

    def empty(self, shape, dtype="float32"):
        with self._asked(size(shape, dtype)):
            return torch.empty(shape, dtype=DTYPES[dtype], device=self.device)

    def zeros(self, shape, dtype="float32"):
        with self._asked(size(shape, dtype)):
            return torch.zeros(shape, dtype=DTYPES[dtype], device=self.device)

    def put(self, x):
        """A numpy array on the card."""
        out = self.empty(x.shape, x.dtype.name)
        self.copy(out, x)
        return out

    def copy(self, to, x):
        """Copies a numpy array over a contiguous one of the card. The caller may change it as soon as this returns."""
        x = np.ascontiguousarray(x)
        source = torch.from_numpy(x if x.flags.writeable else x.copy())  # torch warns of others
        with self._asked(0):
            self.stream()
            if x.nbytes < STAGED:
                to.copy_(source.reshape(to.shape))
                return
            with self._lock:
                self._staged(to.reshape(-1).view(torch.uint8), source.reshape(-1).view(torch.uint8))

    def _staged(self, to, source):
        """Copies bytes through two pinned buffers in turn: one is filled while the other is on its way."""
        if self._stage is None:
            self._stage = [
                (torch.empty(8 << 20, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in (0, 1)
            ]
        size = len(self._stage[0][0])
        for number, first in enumerate(range(0, len(source), size)):
            buffer, sent = self._stage[number % 2]
            part = source[first : first + size]
            sent.synchronize()
            buffer[: len(part)].copy_(part)
            to[first : first + len(part)].copy_(buffer[: len(part)], non_blocking=True)
            sent.record(torch.cuda.current_stream(self.device))

    def get(self, x):
        """An array of the card as numpy, once what was launched before has run."""
        with self._asked(0):
            self.stream()
            return x.cpu().numpy()

    def pinned(self, shape, dtype):
        """A numpy array from which small copies to the card are quick."""
        with self._asked(0):
            return torch.empty(shape, dtype=DTYPES[dtype], pin_memory=True).numpy()

    def pointer(self, x):
        return x.data_ptr()

    def strides(self, x):
        """Elements from one to the next along each axis."""
        return x.stride()

    def contiguous(self, x):
        return x.contiguous()

    def wait(self):
        """Waits until everything that was launched has run."""
        with self._asked(0):
            torch.cuda.synchronize(self.device)

    def mark(self):
        """A function that waits until what was launched before now has run."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))

        def wait():
            with self._asked(0):
                event.synchronize()

        return wait

    def seconds(self, run):
        """Seconds of the card for what run() launches."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in (0, 1))
        with self._asked(0):
            first.record(torch.cuda.current_stream(self.device))
            run()
            last.record(torch.cuda.current_stream(self.device))
            last.synchronize()
            return first.elapsed_time(last) / 1000

    def stopwatch(self):
        """(lap, seconds): lap() marks a moment of the stream; seconds() waits, and lists the seconds between the moments."""
        events = []

        def lap():
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record(torch.cuda.current_stream(self.device))

        def seconds():
            with self._asked(0):
                events[-1].synchronize()
                return [a.elapsed_time(b) / 1000 for a, b in zip(events, events[1:], strict=False)]

        return lap, seconds

    def free(self):
        """(bytes that may still be allocated, bytes of the card)."""
        with self._asked(0):
            free, total = torch.cuda.mem_get_info(self.device)
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + held, total

    def capture(self, run, pool=None):
        """Records what run() launches; returns (replay, its result, pool). Arrays made in run belong to the recording.

        pool: of recordings that never run at the same time, and whose results are not used after another's replay.
        """
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        try:
            return self._captured(run, pool)
        except OutOfMemoryError:  # a recording takes no memory that is kept for other arrays
            torch.cuda.empty_cache()
            return self._captured(run, pool)

    def _captured(self, run, pool):
        self.stream()
        here = torch.cuda.current_stream(self.device)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        stream.wait_stream(here)
        self._recording = stream
        try:
            with self._asked(0), torch.cuda.stream(stream):
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    result = run()
                except BaseException:
                    with suppress(RuntimeError):
                        graph.capture_end()
                    raise
                graph.capture_end()
        finally:
            self._recording = None
        here.wait_stream(stream)
        return graph.replay, result, pool

    @contextmanager
    def _asked(self, nbytes):
        """Says in one sentence what the card refused."""
        try:
            yield
        except torch.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info(self.device)
            raise full(self.name, nbytes, free, total) from None
        except RuntimeError as error:
            raise DeviceError(f"{self.name}: {str(error).splitlines()[0]}") from None


def size(shape, dtype):
    """Bytes of an array."""
    return math.prod(shape if isinstance(shape, (tuple, list)) else (shape,)) * DTYPES[dtype].itemsize


def full(name, nbytes, free, total):
    """The error for memory that a card does not have."""
    return OutOfMemoryError(
        f"{name} has {gigabytes(free)} of {gigabytes(total)} free and {gigabytes(nbytes)} more are needed",
        ("fewer or smaller frames (fps, max_frames, max_pixels)", "a smaller --context", "--kv q4", "--device cpu"),
    )


def opened(index):
    """The TorchMemory of a card. Raises UsageError where torch cannot use it."""
    try:
        torch.cuda.init()
        return TorchMemory(index)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"device cuda cannot be used: PyTorch says: {reason}: {cards.INSTALL}, or --device cpu"
        ) from None
