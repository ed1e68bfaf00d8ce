"""Tells faults of the system from faults of a file, for exceptions of reading and decoding."""

import errno
import os
from contextlib import contextmanager

from ivlite.errors import IvliteError, MediaError, OutOfMemoryError

ADVICE = {
    errno.ENOENT: "check that it is still there", errno.ESTALE: "check that it is still there",
    errno.ENOTDIR: "check the path", errno.ELOOP: "check the path", errno.ENAMETOOLONG: "use a shorter path",
    errno.EISDIR: "give the path of a file in it", errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions", errno.EMFILE: "close some files, or raise the limit with ulimit -n",
    errno.ENFILE: "close some programs", errno.EIO: "check the disk, or copy the file elsewhere",
    errno.ETIMEDOUT: "check the connection to its disk", errno.ENODEV: "check that its disk is connected",
    errno.ENXIO: "check that its disk is connected", errno.EBUSY: "try again later",
}  # fmt: skip


def system_fault(error, what):
    """The IvliteError for a fault of the system (memory, permissions, descriptors, disk); None for any other.

    error: the exception. what: the name of the input, such as "image a.png". FFmpeg's own errors have other numbers.
    """
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return OutOfMemoryError(
            f"there is not enough memory to decode {what}: close other programs, or make it smaller"
        )
    ours = not type(error).__module__.startswith(
        "av."
    )  # FFmpeg gives damage the numbers of the system, EINVAL above all
    if isinstance(error, OSError) and (number in ADVICE or (number and ours)):
        return MediaError(f"{what} cannot be read ({os.strerror(number)}): {ADVICE.get(number, ADVICE[errno.EIO])}")
    return None


@contextmanager
def system_faults(what):
    """Context manager: an OSError of the block becomes the IvliteError of system_fault."""
    try:
        yield
    except OSError as error:
        if isinstance(error, IvliteError) or not (fault := system_fault(error, what)):
            raise
        raise fault from error


def reason(error):
    """The message of a decoder's exception, in one line of at most 120 characters."""
    return " ".join(str(error).split())[:120] or type(error).__name__
