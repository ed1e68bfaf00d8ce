"""A program on a terminal of its own, as a person uses it: for the tests of `ivlite chat`."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

CONTROL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Console:
    """Runs `python ARGS` in a terminal of 24 lines; with Console(...) as console: ... ends it."""

    def __init__(self, *args, cwd, term="xterm", columns=100, **environment):
        self.fd, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        names = {**os.environ, "TERM": term, "PYTHONUNBUFFERED": "1", **environment}
        names = {name: value for name, value in names.items() if value is not None}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROL, sys.executable, *map(str, args)], cwd=cwd, env=names, stdin=inner, stdout=inner,
            stderr=inner, start_new_session=True,
        )  # fmt: skip
        os.close(inner)
        self.output, self.at = b"", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)

    def _read(self):
        if not select.select([self.fd], [], [], 0.1)[0]:
            return True
        try:
            part = os.read(self.fd, 1 << 16)
        except OSError:  # the program has ended
            return False
        self.output += part
        return bool(part)

    def until(self, *words, seconds=120):
        """Waits for one word after the other; returns the text that was shown meanwhile."""
        begin, limit = self.at, time.monotonic() + seconds
        for word in words:
            word = word.encode()
            while (found := self.output.find(word, self.at)) < 0:
                going = self._read()
                late = time.monotonic() > limit
                assert (going or word in self.output[self.at :]) and not late, (word, self.output[begin:])
            self.at = found + len(word)
        return self.output[begin : self.at].decode(errors="replace")

    def send(self, text):
        os.write(self.fd, text.encode())

    def end(self, seconds=120):
        """Waits for the end; returns the exit code and the rest of the text."""
        limit = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < limit, self.output[self.at :]
        return self.process.wait(seconds), self.output[self.at :].decode(errors="replace")
