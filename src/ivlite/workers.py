"""Python threads for reading, decoding and encoding, where the system allows them."""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, thread

from ivlite.stop import checkpoint

DEEP = 512 << 20  # bytes of a stack; only what is used of it takes memory
_stack = threading.Lock()  # held while threading.stack_size, which is the whole process's, is not its own


class Workers(ThreadPoolExecutor):
    """A ThreadPoolExecutor that does with fewer threads where the system refuses more (ulimit -u, pids.max).

    Without any, and while the interpreter exits (daemon threads, atexit), the calling thread runs each function in
    submit(), after all that was submitted before.
    """

    def submit(self, fn, /, *args, **kwargs):
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:  # "can't start new thread", or "cannot schedule new futures after shutdown"
            if not thread._shutdown and (self._threads or self._shutdown):
                raise
        if thread._shutdown:
            self._finish()
        else:
            self._work_queue.get_nowait()  # the item that no thread will take
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    def _finish(self):
        """Waits for what the threads still do; the interpreter that exits lets them."""
        self._work_queue.put(None)  # ends a thread, which puts it back for the next
        for worker in self._threads - {threading.current_thread()}:
            worker.join()

    def _adjust_thread_count(self):
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


def deeply(work):
    """The result of work() with a stack of DEEP bytes: for libraries that recurse over inputs of strangers.

    It goes on in a thread of its own where the Stop ends the wait for it. Raises what work() raises, Stopped.
    """
    done = Future()

    def run():
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    if not _started(run):
        return work()
    while True:
        try:
            return done.result(0.05)
        except TimeoutError:
            if done.done():
                raise
            checkpoint()


def _started(run):
    """Whether run() goes on in a thread with a stack of DEEP bytes. False: the system allows none."""
    with _stack:
        before = threading.stack_size(DEEP)
        try:
            # not a daemon: one that comes back from Rust at exit would end in a fault
            threading.Thread(target=run, daemon=False).start()
        except (RuntimeError, MemoryError):
            return False
        finally:
            threading.stack_size(before)
    return True


def _forked():
    """A child has no thread that would release the lock, or give the size back."""
    global _stack
    if _stack.locked():
        threading.stack_size(0)
    _stack = threading.Lock()


os.register_at_fork(after_in_child=_forked)
