"""What a person names as an image or a video: a path, a file:// URI, and whether a regular file is there."""

import os
import re
import stat
from urllib.parse import unquote, urlsplit

from ivlite.errors import MediaError, UsageError
from ivlite.numbers import number, whole

MAX_PIXELS = 64 << 20  # of one picture; 8K video has half as many


def limits(given, file):
    """The settings in force: those `given` (checked) over the model file's. Both are dicts with some of the names.

    A bound that is given pushes the file's other bound along; two given bounds must not cross. Raises UsageError.
    """
    out = dict(file)
    for name in file:
        if name in given:
            out[name] = number(name, given[name], 0, above=True) if name == "fps" else whole(name, given[name])
    for what in ("frames", "pixels"):
        low, high = f"min_{what}", f"max_{what}"
        if low not in out or out[low] <= out[high]:
            continue
        if low in given and high in given:
            raise UsageError(f"{low} ({out[low]}) is above {high} ({out[high]})")
        out[low] = out[high] = out[low] if low in given else out[high]
    return out


def local_path(source, kind):
    """The absolute path of a regular, non-empty file, and its name for messages. Raises MediaError."""
    try:
        name = os.fsdecode(source)
    except TypeError:
        raise UsageError(f"the {kind} is a {type(source).__name__}; it must be a path or pixels") from None
    path = _without_scheme(name, kind)
    if not path:
        raise MediaError(f"the path of the {kind} is empty: give the path of a file")
    try:
        if "\0" in path:
            raise FileNotFoundError
        info = os.stat(path)
    except FileNotFoundError:
        raise MediaError(f"{kind} {name} does not exist: check the path") from None
    except OSError as error:
        raise MediaError(f"{kind} {name} cannot be reached ({error.strerror}): check the path") from error
    if stat.S_ISDIR(info.st_mode):
        raise MediaError(f"{kind} {name} is a folder: give the path of a file in it")
    if not stat.S_ISREG(info.st_mode):
        raise MediaError(f"{kind} {name} is not a regular file: copy what it holds to a file and give that")
    if not info.st_size:
        raise MediaError(f"{kind} {name} is empty: copy or download it again")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{kind} {name} may not be read: change its permissions")
    return os.path.abspath(path), name


def _without_scheme(name, kind):
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", name)
    if scheme and scheme[1].lower() == "file":
        uri = urlsplit(name)
        if uri.netloc not in ("", "localhost"):
            raise MediaError(f"{kind} {name} is on another machine: copy it here and give its path")
        return unquote(uri.path, errors="surrogateescape")
    if scheme:
        raise MediaError(f"{kind} {name} is an address, and ivlite does not download: save it and give its path")
    if name.startswith("data:") and not os.path.exists(name):
        raise MediaError(f"the {kind} is a data: URI: save what it holds to a file and give its path")
    return name
