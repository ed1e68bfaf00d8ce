"""Ctrl-C, SIGTERM and SIGHUP as a Stop: the first signal stops the work, the second ends the process at once.

Signal handlers raise nothing: an exception raised there may be lost in imports, destructors and compiled modules.
"""

import contextlib
import os
import signal
import threading
import time
from typing import Any

from ivlite.stop import using, within

# signal -> (Python's default handler, reason of the Stop, exit code)
SIGNALS = {
    signal.SIGINT: (signal.default_int_handler, "interrupted", 130),
    signal.SIGTERM: (signal.SIG_DFL, "terminated", 143),
    signal.SIGHUP: (signal.SIG_DFL, "hung up", 129),
}
TOGETHER = 0.1  # seconds within which signals count as one: `timeout` signals both the process and its group
PATIENCE = 2.0  # seconds that a turn has to stop: a Ctrl-C after that ends the process
CODES = {reason: code for _, reason, code in SIGNALS.values()}


_installed: list[Any] = []  # the Interrupts of this process, the newest last


@contextlib.contextmanager
def turn():
    """Context manager of a part of the work that Ctrl-C stops alone: an answer, a prompt. Yields its Stop.

    The other signals stop the whole work, and this part with it. Ctrl-C does too where signals are not ours.
    """
    signals = _installed[-1] if _installed else None
    stop = within(signals and signals.stop)
    with signals.aiming(stop) if signals else contextlib.nullcontext(), using(stop):
        yield stop


def turns():
    """Context manager of work that consists of turns: Ctrl-C between two of them stops nothing."""
    return _installed[-1].aiming(BETWEEN) if _installed else contextlib.nullcontext()


def awaited(reason: str) -> None:
    """Says that the command has done all that it should when that signal came: its exit code is its own."""
    if _installed:
        _installed[-1].awaited = reason


class Between:
    """What Ctrl-C sets between two turns."""

    def set(self, reason):
        pass


BETWEEN = Between()


class Aim:
    """What a signal stops: the whole work, or for Ctrl-C in a turn, only that."""

    def __init__(self, stop):
        self.stop, self.turn, self.heard = stop, None, threading.Event()

    def hit(self, number, count):
        """Sets the Stop; returns whether the process shall end, because an earlier signal has not stopped it."""
        turn = self.turn
        if number != signal.SIGINT or turn is None:
            self.stop.set(SIGNALS[number][1])
            return count.again(number, TOGETHER)
        turn.set(SIGNALS[number][1])
        return turn is not BETWEEN and count.again(turn, PATIENCE)


class Interrupts:
    """Makes signals set `stop`, from the constructor to restore().

    Signals that are ignored (in a background job) or that the program handles itself are left alone. In a thread other
    than the main one, all are.
    """

    def __init__(self):
        self.stop = within()
        self.aim = Aim(self.stop)
        self.before, self.ends, self.count = {}, None, Count()
        self.awaited = None  # the reason of a stop with which the command ends as it should
        if threading.current_thread() is not threading.main_thread():
            return
        for number, (default, _, _) in SIGNALS.items():
            if signal.getsignal(number) is default:
                self.before[number] = default
                signal.signal(number, self._handle)
        if self.before:
            self._listen()
            _installed.append(self)

    def _handle(self, number, frame):
        if self.aim.hit(number, self.count):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    @contextlib.contextmanager
    def aiming(self, stop):
        """Context manager in which Ctrl-C sets `stop` alone."""
        if self.ends is not None:  # the event loop of a prompt may have taken it
            signal.set_wakeup_fd(self.ends, warn_on_full_buffer=False)
        self._settle()
        self.aim.turn, before = stop, self.aim.turn
        try:
            yield
        finally:
            self._settle()
            self.aim.turn = before

    def _settle(self):
        """Waits until the listening thread has heard the signals so far: it must not take them for those of the next turn."""
        if self.ends is not None:
            self.aim.heard.clear()
            with contextlib.suppress(BlockingIOError):
                os.write(self.ends, b"\0")
                self.aim.heard.wait(1)

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
        arguments = read, self.aim, {*self.before}
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
        if self in _installed:
            _installed.remove(self)
        if self.ends is not None:
            signal.set_wakeup_fd(-1)
            os.close(self.ends)
            self.ends = None
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self):
        """The exit code after a signal set the Stop, else None."""
        return None if self.stop.reason == self.awaited else CODES.get(self.stop.reason)


class Count:
    """Distinguishes a second signal from the first."""

    def __init__(self):
        self.first = {}  # signal number or Stop of a turn -> when

    def again(self, key, limit):
        """Whether the first call with that key was more than `limit` seconds ago."""
        now = time.monotonic()
        return now - self.first.setdefault(key, now) > limit


def _listener(read, aim, ours):
    """Reads signal numbers from a pipe and does what the handler does for ours, until the other end is closed."""
    count = Count()
    try:
        while numbers := os.read(read, 64):
            for number in numbers:
                if number == 0:  # all before it was heard
                    aim.heard.set()
                elif number in ours and aim.hit(number, count):
                    time.sleep(0.5)  # lets the handler end the process, unless the main thread is stuck in a kernel
                    os._exit(128 + number)
    finally:
        os.close(read)
