"""Paths and file:// URIs of images and videos, and checks of the files they name."""

import os
import re
import stat
from urllib.parse import unquote

from ivlite.errors import MediaError, UsageError
from ivlite.files import expanded
from ivlite.numbers import number, whole

ADDRESSES = ("http", "https", "ftp", "rtsp", "rtmp", "s3", "gs")
DATA = re.compile(r"\s*data:([^,]{0,1000}),", re.IGNORECASE)
# First bytes of common file types, in base64.
BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0", "SUkqA", "TU0AK", "AAAA", "GkXfo", "T2dnUw", "R0AR")
SLOWEST = 1e-6  # frames a second: one in eleven days
MAX_PIXELS = 64 << 20  # of one picture; 8K video has half as many


class Remote:
    """A source that is decoded elsewhere (`media.apart`)."""

    def still(self, kind):
        """An image.Still of it."""
        raise NotImplementedError

    def probe(self, fps, start, end, stream):
        """A Probe of it."""
        raise NotImplementedError


def limits(given, file):
    """The limits in force: those `given` (checked), else the model file's. Both are dicts, {name: value}.

    A given minimum above the file's maximum raises it, and the reverse; two given ones must not cross. Raises UsageError.
    """
    out = dict(file)
    for name in file:
        if name in given:
            out[name] = number(name, given[name], SLOWEST) if name == "fps" else whole(name, given[name])
    for what in ("frames", "pixels"):
        low, high = f"min_{what}", f"max_{what}"
        if not {low, high} <= out.keys() or out[low] <= out[high]:
            continue
        if low in given and high in given:
            raise UsageError(f"{low} ({out[low]}) is above {high} ({out[high]})")
        out[low] = out[high] = out[low] if low in given else out[high]
    return out


def local_path(source, kind):
    """The absolute path of a regular, non-empty file, and its name for messages. Raises MediaError, UsageError.

    source: a path of any type, with ~ for the home folder, or a file: URI.
    """
    try:
        name = os.fsdecode(source)
    except TypeError:
        raise UsageError(f"the {kind} is a {type(source).__name__}; it must be a path or pixels") from None
    path = named_path(name, kind)
    name = getattr(source, "name", name) if hasattr(source, "close") else name  # of bytes in a temporary file
    if not path:
        raise MediaError(f"the path of the {kind} is empty: give the path of a file")
    try:
        if "\0" in path:
            raise FileNotFoundError
        info = os.stat(path)
    except (FileNotFoundError, UnicodeEncodeError):  # a name with surrogates that stand for no bytes
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


def is_base64(text):
    """Whether a text holds data itself: a data: URI, or base64 of a file of a common type."""
    if is_file(text):
        return False
    return DATA.match(text[:1200]) is not None or (text.startswith(BASE64) and len(text) >= 64)


def is_file(source):
    """Whether a text or bytes name an existing file."""
    try:
        return len(source) < 4096 and os.path.isfile(source)
    except (ValueError, UnicodeError):  # NUL, surrogates
        return False


def named_path(name, kind):
    """The path of a path or URI. Raises MediaError for a network address."""
    if is_file(name):
        return name
    if name.startswith("~"):
        return expanded(name)
    if not (scheme := uri(name)):
        return name
    if scheme[1].lower() == "file":
        return uri_path(name[scheme.end() :] if scheme[2] else "/" + name[5:].lstrip("/"), bool(scheme[2]), name, kind)
    raise MediaError(f"{kind} {name} is an address, and ivlite does not download: save it and give its path")


def uri(name):
    """The match of a URI's scheme (1) and its slashes (2), of a file or a network address; None for a path."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):(//)?", name)
    if scheme and scheme[1].lower() == "file":
        return scheme if name[5:6] == "/" else None
    return scheme if scheme and (scheme[2] or scheme[1].lower() in ADDRESSES) else None


def uri_path(rest, has_host, name, kind):
    """The path of a file: URI without its scheme; accepts URIs that are not percent-encoded."""
    host, slash, path = rest.partition("/") if has_host else ("", "/", rest[1:])
    if host.lower() not in ("", "localhost", "127.0.0.1"):
        raise MediaError(f"{kind} {name} is on another machine: copy it here and give its path")
    path = slash + path
    for found in (unquote(path, errors="surrogateescape"), path):
        if is_file(found):
            return found
    return unquote(re.split(r"[?#]", path)[0], errors="surrogateescape")
