"""Ctrl-C and SIGTERM as a Stop: the first one ends the work in order, the second ends the process at once.

Nothing is raised out of a signal handler: what is raised there gets lost in imports, destructors and compiled modules.
"""

import signal

from ivlite.stop import within

# signal -> what it finds where nobody has said anything about it, and the reason and exit code that it stands for
SIGNALS = {
    signal.SIGINT: (signal.default_int_handler, "interrupted", 130),
    signal.SIGTERM: (signal.SIG_DFL, "terminated", 143),
}
CODES = {reason: code for _, reason, code in SIGNALS.values()}


class Interrupts:
    """Makes signals set `stop`, from the constructor to restore().

    A signal that is ignored (a job in the background) or that the program handles itself is left alone, and so are all
    of them in a thread that is not the main one.
    """

    def __init__(self):
        self.stop = within()
        self.before = {}
        for number, (default, _, _) in SIGNALS.items():
            if signal.getsignal(number) is default:
                try:
                    signal.signal(number, self._handle)
                except ValueError:  # not the main thread
                    return
                self.before[number] = default

    def _handle(self, number, frame):
        signal.signal(number, signal.SIG_DFL)  # the second one
        self.stop.set(SIGNALS[number][1])

    def ignore(self):
        """Leaves a process that ends to its end: Python's last steps have no answer to a first signal."""
        if not self.stop:
            for number in self.before:
                signal.signal(number, signal.SIG_IGN)

    def restore(self):
        """Puts the handlers back that were found."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self):
        """The exit code of a process that a signal has stopped, else None."""
        return CODES.get(self.stop.reason)
