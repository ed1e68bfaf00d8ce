"""Lines of a pipe, a file, or a terminal that only shows text (TERM=dumb)."""

import os
import select
import sys

from ivlite.cli.chat.entry import unfinished
from ivlite.cli.run import INPUT_LIMIT, unreadable
from ivlite.errors import Stopped, UsageError
from ivlite.interrupt import turn
from ivlite.stop import checkpoint

FIRST, MORE = ">>> ", "... "
HINT = "ask something, or /help"


def hint(text):
    """After Ctrl-C at the prompt: nothing was entered. Says how to leave, unless a text was given up."""
    checkpoint()  # of the program: the signal was another one
    if not text.strip():
        print("/bye or Ctrl-D ends the conversation", file=sys.stderr, flush=True)
    return ""


class Lines:
    """read() gives one entry after the other, None at the end. Raises Stopped, UsageError for a line without end."""

    def __init__(self):
        try:
            self.fd = sys.stdin.fileno()
            self.interactive = os.isatty(self.fd)
        except (AttributeError, OSError, ValueError) as error:
            raise UsageError(f"questions come from standard input, and it {unreadable(error)}") from None
        self.out = sys.stdout if sys.stdout.isatty() else sys.stderr  # where a terminal's prompts go
        self.buffer, self.ended, self.began = bytearray(), False, False
        self.hint = HINT  # before the first prompt

    def read(self):
        if not self.interactive:
            return self._entry()
        try:
            with turn():
                return self._entry()
        except Stopped:
            print(file=self.out, flush=True)
            return hint("")

    def _entry(self):
        text = self._line(FIRST)
        while text is not None and unfinished(text) and (more := self._line(MORE)) is not None:
            text += "\n" + more
        return text

    def _line(self, prompt):
        if self.interactive:
            print(f"{self.hint}\n{prompt}" if self.hint else prompt, end="", file=self.out, flush=True)
            self.hint = None
        data = self._bytes()
        if data is None:
            if self.interactive:
                print(file=self.out, flush=True)
            return None
        text = data.decode("utf-8" if self.began else "utf-8-sig", "surrogateescape")  # names of files may be no UTF-8
        self.began = True
        return text.removesuffix("\r")

    def _bytes(self):
        """The bytes of the next line, None at the end."""
        over, seen = False, 0
        while (end := self.buffer.find(b"\n", seen)) < 0 and not self.ended:
            seen = len(self.buffer)
            if seen > INPUT_LIMIT:
                over, seen, self.buffer = True, 0, bytearray()
            while not select.select([self.fd], [], [], 0.1)[0]:
                checkpoint()  # the system goes on waiting after Ctrl-C
            self.buffer += self._part()
        line = self.buffer[:end] if end >= 0 else self.buffer[:]
        del self.buffer[: end + 1 if end >= 0 else None]  # the front of a bytearray goes without a copy
        if over:
            raise UsageError(f"a line of standard input has more than {INPUT_LIMIT >> 20} MB")
        return line if end >= 0 or line else None

    def _part(self):
        try:
            part = os.read(self.fd, 1 << 20)
        except OSError as error:
            self.ended = True
            if self.interactive:  # the terminal is gone
                return b""
            raise UsageError(f"standard input {unreadable(error)}") from None
        self.ended = not part
        return part
