"""Paths as people write them, and what the system's errors mean for whoever reads or writes a file."""

import errno
import os

# What to do about an error of the system, the first row that has its number; a table for reading and one for writing.
MANY = ((errno.EMFILE, errno.ENFILE), "close other files or models, or raise the limit (`ulimit -n`)")
DISK = ((errno.EIO, errno.ESTALE, errno.ENXIO), "check the disk or the connection to it")
READING = (
    MANY,
    DISK,
    ((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP), "check the path"),
    ((errno.EACCES, errno.EPERM), "check its permissions"),
    ((errno.ENOMEM,), "close other programs"),
)
WRITING = (
    MANY,
    DISK,
    ((errno.ENOSPC, errno.EDQUOT), "free some space or write elsewhere"),
    ((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions or write elsewhere"),
)


def reason(error, table=READING, otherwise="check the path"):
    """The system's words for an OSError or ValueError, and what to do: "Too many open files; close other ..."."""
    number = getattr(error, "errno", None)
    advice = next((advice for numbers, advice in table if number in numbers), otherwise)
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{words:.200}; {advice}"


def expanded(path):
    """A path whose leading ~ is the home folder, as a shell has it; anything else as it is."""
    text = os.fspath(path)
    if not isinstance(text, str) or not text.startswith("~"):
        return path
    own = text.split("/", 1)[0] == "~"
    if own and not os.environ.get("HOME"):  # unset, or set to nothing, which is the same
        import pwd

        try:
            return pwd.getpwuid(os.getuid()).pw_dir + text[1:]
        except KeyError:
            return path
    return os.path.expanduser(text)


def identity(path):
    """(device, inode) of what a path leads to, None where there is nothing or nobody may look."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return info.st_dev, info.st_ino
