"""The devices that tests of CUDA launchers run on.

    device    the kernels compiled for the host, fast; and a card, where one is and the build has kernels for it
    checked   the kernels compiled for the host, every access checked: faults are raised as AssertionError, `traffic()` says what
              accesses cost

A test asks for one by its name and gets a Device (device.py). `pytest -m card` runs what runs on a card. Without a compiler these tests are skipped, which says why.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from device import ON_A_CARD, CheckedDevice, Device
from emulation import emulated

from ivlite import _C


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["emulated", *ON_A_CARD], indirect=True)


@pytest.fixture
def device(request):
    made = Device(_C if request.param == "card" else emulated("_emulated_fast"))
    yield made
    made.close()


@pytest.fixture
def checked():
    made = CheckedDevice(emulated("_emulated_checked"))
    yield made
    made.close()


@pytest.fixture
def emulated_module():
    """The kernels compiled for the host, fast: for `EmulatedMemory`."""
    return emulated("_emulated_fast")
