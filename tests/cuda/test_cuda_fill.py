"""Memory of one repeated word."""

import numpy as np
import pytest


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 1023, 1024, 1025, 100_003])
def test_fill(device, count):
    out = device.empty(count, np.uint32)
    device.cuda.fill(out.pointer, 0x12345678, count, 0)
    assert (out.numpy() == 0x12345678).all()
