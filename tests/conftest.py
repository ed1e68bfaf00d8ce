"""What tests share: every instruction set in turn, and outputs between guard values."""

import importlib.util
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ivlite import _C

GUARD = np.float32(-12345.5)


def pytest_configure():
    """Signals do what they do on a terminal, here and in what tests start: a job in the background has SIGINT ignored, `nohup` SIGHUP."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_generate_tests(metafunc):
    """A test that takes `isa` runs once per instruction set of the build; those the machine lacks are skipped."""
    if "isa" in metafunc.fixturenames:
        usable = set(_C.isas())
        lacking = pytest.mark.skip(reason="this processor lacks it")
        sets = [pytest.param(i, marks=() if i in usable else lacking) for i in _C.testing.known_isas()]
        metafunc.parametrize("isa", sets, indirect=True)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Commands keep what they computed and found out in folders of the tests, not in those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def isa(request):
    """The name of an instruction set whose kernels are in use during the test."""
    before = _C.isa()
    _C.testing.use_isa(request.param)
    yield request.param
    _C.testing.use_isa(before)


@pytest.fixture
def plainly():
    """plainly(f, ...) calls f with the plain kernels in use."""

    def call(function, *args, **kwargs):
        before = _C.isa()
        _C.testing.use_isa("ref")
        try:
            return function(*args, **kwargs)
        finally:
            _C.testing.use_isa(before)

    return call


@pytest.fixture
def guarded():
    """guarded(shape, margin=0) makes an output array with guard values around and, after each row, between.

    At the end of the test the guards must be intact and every element written.
    """
    made = []

    def make(shape, margin=0, fill=np.nan):
        pad = 64
        rows = int(np.prod(shape[:-1]))
        buffer = np.full(2 * pad + rows * (shape[-1] + margin), GUARD, np.float32)
        body = buffer[pad : len(buffer) - pad].reshape(*shape[:-1], shape[-1] + margin)
        out = body[..., : shape[-1]]
        out[...] = fill
        made.append((buffer, out))
        return out

    yield make
    for buffer, out in made:
        assert not np.isnan(out).any(), "a kernel left elements unwritten"
        out[...] = GUARD
        assert (buffer == GUARD).all(), "a kernel wrote outside its output"


@pytest.fixture
def rng():
    return np.random.default_rng(20261124)


@pytest.fixture
def threads():
    """threads(n) changes the number of threads for one test."""
    before = _C.num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


def tiny_checkpoint():
    """A module of its own of examples/tiny_checkpoint.py: its sizes may be changed."""
    example = Path(__file__).parents[1] / "examples" / "tiny_checkpoint.py"
    spec = importlib.util.spec_from_file_location("tiny_checkpoint", example)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def toy_module():
    """What writes toy checkpoints and clips."""
    return tiny_checkpoint()


@pytest.fixture(scope="session")
def wide(tmp_path_factory):
    """The folder of a small checkpoint whose decoder has rows of whole 256s; tests do not change it."""
    module = tiny_checkpoint()
    module.TEXT |= {"hidden_size": 256, "intermediate_size": 512, "v_head_dim": 64}
    module.VISION |= {"out_hidden_size": 256}
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    module.write_checkpoint(folder)
    return folder


@pytest.fixture
def instant(monkeypatch):
    """Files are opened in no time by what plans say, however busy the machine is."""
    from ivlite.prompt import layout

    monkeypatch.setattr(layout, "time", SimpleNamespace(perf_counter=lambda: 0.0))
