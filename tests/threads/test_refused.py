"""Threads that the system refuses: the work is done by those that there are."""

import threading
import time

import numpy as np
import pytest

import ivlite
from ivlite.engine import vision
from ivlite.interrupt import Interrupts
from ivlite.quantize import quantize, verify
from ivlite.workers import Workers


@pytest.fixture(params=[0, 1, 2])
def allowed(request, monkeypatch):
    """Only so many more threads can be started."""
    start, left = threading.Thread.start, [request.param]

    def refuse(self):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return request.param


def test_work_is_done(allowed):
    with Workers(4) as workers:
        assert list(workers.map(abs, range(-20, 0))) == list(range(20, 0, -1))
        with pytest.raises(ZeroDivisionError):
            workers.submit(divmod, 1, 0).result()


def test_items_come_in_order_where_the_interpreter_begins_to_exit(monkeypatch):
    """What was asked of the other thread before is waited for; a generator cannot run in two threads at once."""
    from concurrent.futures import thread

    def slow():
        for n in range(12):
            time.sleep(0.01)
            yield n

    got = []
    for item in vision.ahead(slow()):
        got.append(item)
        monkeypatch.setattr(thread, "_shutdown", item >= 2)  # as at exit: submit refuses, and the caller works itself
    assert got == list(range(12))


def test_a_pool_that_is_shut_down_takes_no_work(allowed):
    workers = Workers(2)
    workers.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        workers.submit(abs, 1)


def test_videos_and_conversions(allowed, tmp_path):
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in range(0, 240, 40)]
    with ivlite.load("demo") as model:
        prompt = model.prepare([{"role": "user", "content": [{"type": "video", "video": frames}]}])
        assert len(model.encode_vision(prompt)[0]) == sum(count for _, _, count in prompt.spans)
    quantize(ivlite.gguf.SHIPPED["demo"], tmp_path / "m.gguf", type="q8_0")
    assert verify(tmp_path / "m.gguf")


def test_signals_are_heeded_without_the_listener(allowed):
    interrupts = Interrupts()
    interrupts.restore()
    assert interrupts.ends is None
