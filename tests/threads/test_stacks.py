"""The size of a new thread's stack is the whole process's: whoever changes it gives it back, whatever others do meanwhile."""

import os
import threading

import pytest

from ivlite.workers import deeply


@pytest.fixture
def slow_start(monkeypatch):
    """Events (started, go): the first thread that deeply() starts from now on waits for `go`, and the next one sets it."""
    started, go, first, start = threading.Event(), threading.Event(), threading.Lock(), threading.Thread.start

    def slowly(self):
        if threading.current_thread() is threading.main_thread():
            pass
        elif first.acquire(blocking=False):
            started.set()
            assert go.wait(60)
        else:
            go.set()
            self.before.wait(1)  # until the first one has given it back
        start(self)

    monkeypatch.setattr(threading.Thread, "start", slowly)
    monkeypatch.setattr(threading.Thread, "before", threading.Event(), raising=False)
    return started, go


def test_two_threads_that_change_it_in_turn_leave_it_as_it_was(slow_start):
    started, go = slow_start
    results = []

    def first():
        results.append(deeply(lambda: 1))
        threading.Thread.before.set()

    one, other = threading.Thread(target=first), threading.Thread(target=lambda: results.append(deeply(lambda: 2)))
    one.start()
    assert started.wait(60)
    other.start()
    go.wait(0.2)  # the other one is there now, or waits for the first
    go.set()
    one.join(60)
    other.join(60)
    assert sorted(results) == [1, 2] and threading.stack_size() == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_forked_meanwhile_has_its_own(slow_start):
    started, go = slow_start
    one = threading.Thread(target=deeply, args=(int,))
    one.start()
    assert started.wait(60)
    child = os.fork()
    if not child:
        try:
            os._exit(0 if threading.stack_size() == 0 and deeply(lambda: 7) == 7 else 1)
        finally:
            os._exit(2)
    go.set()
    one.join(60)
    assert os.waitpid(child, 0)[1] == 0
    assert threading.stack_size() == 0


def test_work_that_no_thread_takes_starts_others_with_their_own_size(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert deeply(threading.stack_size) == 0
