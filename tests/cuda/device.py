"""Arrays on a card or on the emulated one, for tests of launchers. No array library is needed but numpy."""

import contextlib

import numpy as np
import pytest

from ivlite import _C

GUARD_BYTES, GUARD = 256, 0xA5


def card_here():
    """Whether the installed module has kernels for the first card."""
    try:
        return _C.cuda.built and _C.cuda.cards() > 0 and _C.cuda.card(0).has_kernels
    except _C.cuda.Error:
        return False


# The parameter of a test that runs on the first card, where there is one.
ON_A_CARD = [pytest.param("card", marks=pytest.mark.card)] if card_here() else []


class Buffer:
    """An array on the device between guard bytes: `pointer` is its address, `numpy()` its copy."""

    def __init__(self, device, shape, dtype):
        self._device = device
        self.shape, self.dtype = tuple(np.atleast_1d(shape)) if shape != () else (), np.dtype(dtype)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        guard = device.guard_bytes
        self._base = device.cuda.allocate(max(self.nbytes, 1) + 2 * guard)
        self.pointer = self._base + guard
        self._write(self._base, np.full(self.nbytes + 2 * guard, GUARD, np.uint8))

    def _write(self, address, data):
        if data.nbytes:
            self._device.cuda.copy_to_card(address, data.ctypes.data, data.nbytes)

    def _read(self, address, data):
        if data.nbytes:
            self._device.cuda.copy_from_card(data.ctypes.data, address, data.nbytes)
        return data

    def set(self, array):
        array = np.ascontiguousarray(array, self.dtype)
        assert array.shape == self.shape
        self._write(self.pointer, array)

    def numpy(self):
        return self._read(self.pointer, np.empty(self.shape, self.dtype))

    def check(self):
        guard = self._device.guard_bytes
        for address in (self._base, self.pointer + self.nbytes):
            found = self._read(address, np.empty(guard, np.uint8))
            assert (found == GUARD).all(), "a kernel wrote outside its output"

    def free(self):
        self._device.cuda.release(self._base)


class Device:
    """`cuda` has the launchers; pointers and streams are integers, and 0 is the default stream."""

    def __init__(self, module, guard_bytes=GUARD_BYTES):
        self.module, self.cuda, self.guard_bytes = module, module.cuda, guard_bytes
        self._buffers = []

    def empty(self, shape, dtype=np.float32):
        """A Buffer of bytes 0xA5."""
        self._buffers.append(Buffer(self, shape, dtype))
        return self._buffers[-1]

    def array(self, array):
        """A Buffer that holds a copy of a numpy array."""
        array = np.asarray(array)
        buffer = self.empty(array.shape, array.dtype)
        buffer.set(array)
        return buffer

    def close(self, check=True):
        """Frees all buffers; their guards must be intact."""
        self.cuda.synchronize()
        buffers, self._buffers = self._buffers, []
        for buffer in buffers if check else ():
            buffer.check()
        for buffer in buffers:
            buffer.free()


class CheckedDevice(Device):
    """Finds faults of kernels. Buffers have no guards: every access beside them is a fault."""

    def __init__(self, module):
        super().__init__(module, guard_bytes=0)
        self.emulator = module.emulator
        self.emulator.take_unwritten()

    @contextlib.contextmanager
    def traffic(self):
        """A list; at the end of the block a dict for each place in a kernel that accesses memory (check.h: Traffic)."""
        found = []
        self.emulator.take_traffic()
        self.emulator.count(True)
        try:
            yield found
        finally:
            self.emulator.count(False)
            found += self.emulator.take_traffic()

    def unwritten(self):
        """Reads of shared memory that nothing had written, since the last call: how many, and where the first was."""
        return self.emulator.take_unwritten()
