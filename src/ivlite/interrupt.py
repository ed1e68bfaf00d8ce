"""Ctrl-C and SIGTERM as a Stop: the first signal stops the work, the second ends the process at once.

Signal handlers raise nothing: an exception raised there may be lost in imports, destructors and compiled modules.
"""

import os
import signal
import threading
import time

from ivlite.stop import within

# signal -> (Python's default handler, reason of the Stop, exit code)
SIGNALS = {
    signal.SIGINT: (signal.default_int_handler, "interrupted", 130),
    signal.SIGTERM: (signal.SIG_DFL, "terminated", 143),
}
TOGETHER = 0.1  # seconds within which signals count as one: `timeout` signals both the process and its group
CODES = {reason: code for _, reason, code in SIGNALS.values()}


class Interrupts:
    """Makes signals set `stop`, from the constructor to restore().

    Signals that are ignored (in a background job) or that the program handles itself are left alone. In a thread other
    than the main one, all are.
    """

    def __init__(self):
        self.stop = within()
        self.before, self.ends, self.count = {}, None, Count()
        if threading.current_thread() is not threading.main_thread():
            return
        for number, (default, _, _) in SIGNALS.items():
            if signal.getsignal(number) is default:
                self.before[number] = default
                signal.signal(number, self._handle)
        if self.before:
            self._listen()

    def _handle(self, number, frame):
        if self.count.again(number):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stop.set(SIGNALS[number][1])

    def _listen(self):
        """Sets the Stop even while the main thread is in a kernel, where Python cannot run its signal handlers."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        found = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if found != -1:  # an event loop has it
            signal.set_wakeup_fd(found)
            os.close(read)
            os.close(write)
            return
        self.ends = write
        arguments = read, self.stop, {*self.before}
        try:
            threading.Thread(target=_listener, args=arguments, name="ivlite-signals", daemon=True).start()
        except (
            RuntimeError
        ):  # the system refuses another thread: the handlers alone set the Stop, once a kernel returns
            signal.set_wakeup_fd(-1)
            os.close(read)
            os.close(write)
            self.ends = None

    def ignore(self):
        """Ignores signals while the process exits: Python's shutdown does not handle them well."""
        if not self.stop:
            for number in self.before:
                signal.signal(number, signal.SIG_IGN)

    def restore(self):
        """Restores the earlier signal handlers."""
        if self.ends is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.ends)
            self.ends = None
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self):
        """The exit code after a signal set the Stop, else None."""
        return CODES.get(self.stop.reason)


class Count:
    """Distinguishes a second signal of one number from the first."""

    def __init__(self):
        self.first = {}

    def again(self, number):
        now = time.monotonic()
        return now - self.first.setdefault(number, now) > TOGETHER


def _listener(read, stop, ours):
    """Reads signal numbers from a pipe and does what the handler does for ours, until the other end is closed."""
    count = Count()
    try:
        while numbers := os.read(read, 64):
            for number in filter(ours.__contains__, numbers):
                if count.again(number):
                    time.sleep(0.5)  # lets the handler end the process, unless the main thread is stuck in a kernel
                    os._exit(128 + number)
                stop.set(SIGNALS[number][1])
    finally:
        os.close(read)
