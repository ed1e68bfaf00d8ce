"""The errors a person can cause. Each carries the exit code that the command line returns for it.

Every message is one sentence (or two) that says what is wrong, with which file, and what to do next.
"""

EXIT_INTERRUPTED = 130


LONGEST = 500  # characters of a sentence, whatever was handed over


class IvliteError(Exception):
    """Base of every error that ivlite raises on purpose."""

    exit_code = 1

    def __init__(self, sentence=""):
        super().__init__(_short(str(sentence).replace("\n", "\\n")))


class UsageError(IvliteError, ValueError):
    """An argument or a message is malformed, out of range, or contradicts another one."""

    exit_code = 2


class ModelFileError(IvliteError):
    """A model file or checkpoint is missing, damaged, incomplete, or of a kind ivlite does not run."""

    exit_code = 3


class MediaError(IvliteError):
    """An image or video cannot be opened, decoded, or used."""

    exit_code = 4


class OutOfMemoryError(IvliteError, MemoryError):
    """The model, its cache and its buffers do not fit in the memory there is."""

    exit_code = 5


class DiskError(IvliteError, OSError):
    """A file cannot be written: no space, no permission, no such folder."""

    exit_code = 6


class ContextError(IvliteError):
    """The prompt does not fit in the context; the message gives both counts."""

    exit_code = 7


class Stopped(IvliteError):
    """Work was ended by its Stop. `reason` says why: "interrupted", "deadline", "closed", or what Stop.set was given."""

    exit_code = EXIT_INTERRUPTED
    reason = "interrupted"

    @classmethod
    def because(cls, reason):
        error = cls(f"the work was stopped ({reason})")
        error.reason = reason
        return error


def _short(text):
    """The beginning and the end of a text that is too long: what it is about, and what to do."""
    half = (LONGEST - 5) // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"
