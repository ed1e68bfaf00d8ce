"""Python threads for reading, decoding and encoding, where the system allows them."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor, thread

from ivlite.stop import checkpoint

DEEP = 512 << 20  # bytes of a stack; only what is used of it takes memory


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

    before = threading.stack_size(DEEP)
    try:
        threading.Thread(target=run, daemon=False).start()  # one that comes back from Rust at exit would end in a fault
    except (RuntimeError, MemoryError):  # the system allows no thread, or none with such a stack
        return work()
    finally:
        threading.stack_size(before)
    while True:
        try:
            return done.result(0.05)
        except TimeoutError:
            if done.done():
                raise
            checkpoint()
