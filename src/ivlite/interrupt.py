"""Ctrl-C and SIGTERM as a Stop: the first one ends the work in order, the second ends the process at once.

Nothing is raised out of a signal handler: what is raised there gets lost in imports, destructors and compiled modules.
"""

import os
import signal
import threading
import time

from ivlite.stop import within

# signal -> what it finds where nobody has said anything about it, and the reason and exit code that it stands for
SIGNALS = {
    signal.SIGINT: (signal.default_int_handler, "interrupted", 130),
    signal.SIGTERM: (signal.SIG_DFL, "terminated", 143),
}
TOGETHER = 0.1  # seconds within which signals are one: `timeout` sends each to the process and to its group
CODES = {reason: code for _, reason, code in SIGNALS.values()}


class Interrupts:
    """Makes signals set `stop`, from the constructor to restore().

    A signal that is ignored (a job in the background) or that the program handles itself is left alone, and so are all
    of them in a thread that is not the main one.
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
        """Sets the Stop while the main thread is in a kernel: Python runs handlers in that thread only, once it is back."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        found = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if found != -1:  # an event loop's
            signal.set_wakeup_fd(found)
            os.close(read)
            os.close(write)
            return
        self.ends = write
        threading.Thread(
            target=_listener, args=(read, self.stop, {*self.before}), name="ivlite-signals", daemon=True
        ).start()

    def ignore(self):
        """Leaves a process that ends to its end: Python's last steps have no answer to a first signal."""
        if not self.stop:
            for number in self.before:
                signal.signal(number, signal.SIG_IGN)

    def restore(self):
        """Puts everything back as it was found."""
        if self.ends is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.ends)
            self.ends = None
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self):
        """The exit code of a process that a signal has stopped, else None."""
        return CODES.get(self.stop.reason)


class Count:
    """Tells a second signal of a kind from the first."""

    def __init__(self):
        self.first = {}

    def again(self, number):
        now = time.monotonic()
        return now - self.first.setdefault(number, now) > TOGETHER


def _listener(read, stop, ours):
    """Does what the handler does for each of our signals that comes through a pipe, until the pipe's other end is closed."""
    count = Count()
    try:
        while numbers := os.read(read, 64):
            for number in filter(ours.__contains__, numbers):
                if count.again(number):
                    time.sleep(0.5)  # the handler does it better, unless the main thread does not come back
                    os._exit(128 + number)
                stop.set(SIGNALS[number][1])
    finally:
        os.close(read)
