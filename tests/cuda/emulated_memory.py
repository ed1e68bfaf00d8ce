"""The memory of the emulated card for `ivlite.ops.cuda`: numpy arrays that its kernels may touch, and recordings of launches."""

import time
import weakref

import numpy as np


class Recorder:
    """The launchers of the emulated module. While `launches` is a list, launchers are noted in it instead of called."""

    def __init__(self, cuda):
        self.cuda, self.Error, self.launches, self.count = cuda, cuda.Error, None, 0

    def __getattr__(self, name):
        return getattr(self.cuda, name)

    def call(self, name, *args):
        """Calls a launcher, or notes it."""
        if self.launches is not None:
            self.launches.append((name, args))
            return
        self.count += 1
        getattr(self.cuda, name)(*args)


class EmulatedMemory:
    """Has the methods of `ivlite.ops.cuda_memory.TorchMemory`. limit: bytes of the card."""

    name, index, multiprocessors = "emulated card", 0, 1

    def __init__(self, module, limit=None):
        self.module, self.kernels, self.limit, self.used, self.blocks = module, Recorder(module.cuda), limit, 0, 0
        self.kept = None  # arrays of a recording

    def stream(self):
        return 0

    def launch(self, kernel, *args):
        self.kernels.call(kernel, *args)

    def _made(self, shape, dtype, fill):
        from ivlite.errors import OutOfMemoryError

        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self.limit is not None and self.used + size > self.limit:
            raise OutOfMemoryError(f"{self.name} has {self.limit - self.used} bytes free and {size} more are needed")
        address = self.module.cuda.allocate(max(size, 1))
        block = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * max(size, 1)).from_address(address))
        block[:] = fill
        self.used, self.blocks = self.used + size, self.blocks + 1
        weakref.finalize(block, self._freed, address, size)
        if self.kept is not None:
            self.kept.append(block)
        return block[:size].view(dtype).reshape(shape)

    def _freed(self, address, size):
        self.module.cuda.release(address)
        self.used, self.blocks = self.used - size, self.blocks - 1

    def empty(self, shape, dtype="float32"):
        return self._made(shape, dtype, 0xA5)

    def zeros(self, shape, dtype="float32"):
        assert self.kept is None, "a recorded step must not write from the host"
        return self._made(shape, dtype, 0)

    def put(self, x):
        out = self.empty(x.shape, x.dtype.name)
        self.copy(out, x)
        return out

    def copy(self, to, x):
        assert self.kept is None, "a recorded step must not copy from the host"
        to[...] = x.reshape(to.shape)

    send = copy

    def get(self, x):
        assert self.kept is None, "a recorded step must not wait for results"
        return x.copy()

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def pointer(self, x):
        return x.ctypes.data

    def strides(self, x):
        return tuple(n // x.itemsize for n in x.strides)

    def contiguous(self, x):
        if x.flags.c_contiguous:
            return x
        assert self.kept is None, "a recorded step must not copy outside of kernels"
        out = self.empty(x.shape)
        out[...] = x
        return out

    def wait(self):
        pass

    def mark(self):
        return self.wait

    def seconds(self, run):
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    def stopwatch(self):
        moments = []
        return lambda: moments.append(time.perf_counter()), lambda: np.diff(moments).tolist()

    def free(self):
        total = 24 << 30 if self.limit is None else self.limit
        return total - self.used, total

    def capture(self, run, pool=None):
        self.kept, self.kernels.launches = [], []
        try:
            result = run()
            kept, launches = self.kept, self.kernels.launches
        finally:
            self.kept = self.kernels.launches = None

        def replay():
            assert kept
            for name, args in launches:
                self.kernels.call(name, *args)

        return replay, result, pool
