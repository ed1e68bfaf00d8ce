"""Stopping kernels: within their regions, from any thread, and without leaving anything behind."""

import math
import threading
import time
import weakref

import numpy as np
import pytest

from ivlite import _C
from ivlite.errors import Stopped


@pytest.fixture
def flag():
    """A flag that this thread's kernels look at."""
    flag = _C.StopFlag()
    before = _C.use_stop(flag)
    yield flag
    _C.use_stop(before)


def attend(rows, pool=None):
    q = np.ones((rows, 4, 64), np.float32)
    _C.attention(np.empty_like(q), q, q, q, 0.1, rows, True, pool=pool)


def rows_for(seconds):
    """For how many rows attention takes about that long of all processors together, whatever else they do."""
    rows = 512
    while True:
        start = time.process_time()
        attend(rows)
        if (took := time.process_time() - start) > 0.25:
            return int(rows * (seconds / took) ** 0.5)
        rows *= 2


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_set_from_another_thread(threads):
    rows, pool, flag = rows_for(12), _C.ThreadPool(threads), _C.StopFlag()
    before = _C.use_stop(flag)
    try:
        start = time.process_time()
        threading.Timer(0.3, flag.set).start()
        with pytest.raises(Stopped):
            attend(rows, pool)
        assert time.process_time() - start < 4  # of twelve seconds
        with pytest.raises(Stopped):
            attend(1, pool)
    finally:
        _C.use_stop(before)
    attend(64, pool)


def test_a_deadline(flag):
    flag.after(1e9)
    flag.after(0.2)
    flag.after(1e9)
    assert not flag.is_set()
    start = time.monotonic()
    with pytest.raises(Stopped):
        while True:
            attend(256)
    assert 0.2 <= time.monotonic() - start < 60
    assert flag.is_set()


def test_deadlines_at_their_limits():
    for seconds in (0, -1, -math.inf):
        flag = _C.StopFlag()
        flag.after(seconds)
        assert flag.is_set()
    flag = _C.StopFlag()
    flag.after(math.inf)
    assert not flag.is_set()
    with pytest.raises(ValueError):
        flag.after(math.nan)


def test_a_flag_is_the_threads_own(flag):
    seen = []

    def other():
        seen.append(_C.use_stop(None))
        attend(64)
        seen.append("done")

    flag.set()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [None, "done"]
    inner = _C.StopFlag()
    assert _C.use_stop(inner) is flag and _C.use_stop(flag) is inner


def test_a_flag_outlives_its_last_name():
    before = _C.use_stop(_C.StopFlag())
    attend(256)
    kept = _C.use_stop(before)
    assert isinstance(kept, _C.StopFlag) and not kept.is_set()


def test_waiting_for_a_turn_ends(flag):
    """A caller whose pool runs another's region for long leaves when it is stopped."""
    rows, pool = rows_for(12), _C.ThreadPool(2)
    others = _C.StopFlag()

    def long():
        _C.use_stop(others)
        with pytest.raises(Stopped):
            attend(rows, pool)

    thread = threading.Thread(target=long)
    thread.start()
    time.sleep(0.2)
    flag.after(0.2)
    start = time.process_time()
    with pytest.raises(Stopped):
        while True:  # the other has its turn in time, or after some of these
            attend(512, pool)
    assert time.process_time() - start < 4
    others.set()
    thread.join()


def test_nothing_is_kept(flag):
    class Held:
        pass

    def stopped():
        held = Held()
        stopped.held = weakref.ref(held)
        attend(4096, pool)

    pool = _C.ThreadPool(2)
    flag.set()
    with pytest.raises(Stopped):
        stopped()
    assert stopped.held() is None


@pytest.mark.parametrize(
    "operation", ["linear", "mlp", "encode", "decode", "transposed", "expanded", "absorbed", "fill", "patchify"]
)
def test_every_long_operation_looks(flag, operation):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 256), dtype=np.float32)
    data = _C.encode("q4_k", x.reshape(-1))
    weight = _C.Weight("q4_k", data, 1, 64, 256)
    wide = _C.Weight("q4_k", _C.encode("q4_k", rng.standard_normal(256 * 512, np.float32)), 1, 512, 256)
    down = _C.Weight("q4_k", _C.encode("q4_k", rng.standard_normal(512 * 256, np.float32)), 1, 256, 512)
    kv_b = _C.Weight("q4_k", _C.encode("q4_k", rng.standard_normal(2 * 64 * 256, np.float32)), 2, 64, 256)
    cache = _C.LatentCache([256], 32, 64, "q8")
    cache.append(0, x, np.ascontiguousarray(x[:, :32]))
    heads = np.ones((64, 2, 32), np.float32)
    latent = np.ones((64, 2, 256), np.float32)
    flag.set()
    with pytest.raises(Stopped):
        {
            "linear": lambda: _C.linear(np.empty((64, 64), np.float32), x, weight, None, False),
            "mlp": lambda: _C.mlp(np.empty((64, 256), np.float32), x, wide, None, "gelu_tanh", down, None, False),
            "encode": lambda: _C.encode("q4_k", x.reshape(-1)),
            "decode": lambda: _C.decode("q4_k", data, 64 * 256),
            "transposed": lambda: _C.transposed("q4_k", data, 1, 64, 256, 64, "q8_0"),
            "expanded": lambda: _C.expanded_attention(np.empty_like(heads), heads, heads, cache, 0, kv_b, 0.1),
            "absorbed": lambda: _C.absorbed_attention(np.empty_like(latent), latent, heads, cache, 0, 0.1),
            "fill": lambda: weight.fill(0, data.reshape(64, -1)),
            "patchify": lambda: _C.patchify(
                np.empty((16, 1536), np.float32), np.zeros((2, 64, 64, 3), np.uint8), 16, 2, [0.5] * 3, [0.5] * 3
            ),
        }[operation]()
