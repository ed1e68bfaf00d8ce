"""Python threads for reading, decoding and encoding, where the system allows them."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor, thread


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
