"""The errors that ivlite raises, each with its exit code on the command line.

Every message is one or two sentences: what is wrong, with which file, and what to do next.
"""

import re
import reprlib
from collections.abc import Collection, Sequence
from typing import Any, Self

EXIT_INTERRUPTED = 130
LONGEST = 500  # characters of a message
FLAG = re.compile(r"--([a-z][a-z-]*)")  # an option of the command line


def sentence(text: object, most: int = LONGEST) -> str:
    """`text` with unprintable characters escaped, at most `most` characters long: a longer one loses its middle."""
    text = str(text)
    if len(text) > 4 * most:  # more is not needed: escaping megabytes would take long
        text = text[: 2 * most] + text[-2 * most :]
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 5]} ... {text[-tail:]}"


def either(ways: Sequence[str]) -> str:
    """ "A", "A or B", "A, B or C"."""
    return " or ".join(filter(None, (", ".join(ways[:-1]), ways[-1])))


class _Short(reprlib.Repr):
    """repr() limited to a few levels and entries."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_instance(self, x: object, level: int) -> str:
        return super().repr_instance(x, level) if type(x).__repr__ is not object.__repr__ else type(x).__name__


def shown(value: Any, most: int = 80) -> str:
    """Formats a value for an error message: one printable line of at most `most` characters."""
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            return sentence(f"{type(value).__name__} of length {len(value)}", most)
        if getattr(value, "shape", ()) and hasattr(value, "dtype"):
            return sentence(f"{type(value).__name__} {value.dtype} {tuple(value.shape)}", most)
        if isinstance(value, str):  # cut before repr(), which may write ten characters for one
            return sentence(repr(value[:most] + ("..." if len(value) > most else "")), most)
        return sentence(_Short().repr(value), most)
    except Exception:  # repr() of a foreign class may raise, and that of an int with too many digits does
        return type(value).__name__


class IvliteError(Exception):
    """Base of all errors that ivlite raises. A message is one line of at most 500 characters.

    ways: what can be done, each in its own right, as "--load mmap" or "fewer frames": the message ends with them.
    """

    exit_code = 1

    def __init__(self, message: object = "", ways: Sequence[str] = ()) -> None:
        self.problem, self.ways = message, tuple(ways)
        super().__init__(sentence(f"{message}: use {either(self.ways)}" if ways else message))

    def fitted(self, options: Collection[str]) -> Self:
        """The error with only those ways whose options a command has, by their names in its arguments ("max_frames")."""
        ways = [way for way in self.ways if all(name.replace("-", "_") in options for name in FLAG.findall(way))]
        return self if len(ways) == len(self.ways) else type(self)(self.problem, ways)


class UsageError(IvliteError, ValueError):
    """An argument or a message is malformed, out of range, or contradicts another one."""

    exit_code = 2


class ModelFileError(IvliteError):
    """A model file or checkpoint is missing, damaged, incomplete, or of a kind ivlite does not run."""

    exit_code = 3


class SessionFileError(IvliteError):
    """A session file is missing or damaged, or belongs to another model, cache kind or version of the format."""

    exit_code = 3


class OvertakenError(SessionFileError):
    """Another process has saved to a session's file since this one read or saved it."""


class MediaError(IvliteError):
    """An image or video cannot be opened, decoded, or used."""

    exit_code = 4


class OutOfMemoryError(IvliteError, MemoryError):
    """The model, its cache and its buffers do not fit in the available memory."""

    exit_code = 5


class DiskError(IvliteError, OSError):
    """A file cannot be written: no space, no permission, no such folder."""

    exit_code = 6


class ContextError(IvliteError):
    """The prompt does not fit in the context; the message gives both counts."""

    exit_code = 7


class DeviceError(IvliteError):
    """A GPU failed: it is lost, busy, or a kernel ended in an error."""

    exit_code = 8


class AddressError(IvliteError):
    """A server cannot listen at an address: its port is in use, or the address is not of this machine."""

    exit_code = 8


class Stopped(IvliteError):
    """A Stop ended the work. `reason`: "interrupted", "deadline", "closed", or the argument of Stop.set."""

    exit_code = EXIT_INTERRUPTED
    reason = "interrupted"

    @property
    def word(self) -> str:
        """How the work ended: "interrupted", "terminated", "hung up" (by a signal), "stopped (deadline)" and the like."""
        return self.reason if self.reason in ("interrupted", "terminated", "hung up") else f"stopped ({self.reason})"

    @classmethod
    def because(cls, reason: str) -> "Stopped":
        error = cls(f"the work was stopped ({reason})")
        error.reason = reason
        return error
