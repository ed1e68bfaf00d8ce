"""Media given as objects in memory: arrays and tensors, bytes and open files, data: URIs, lists of frames."""

import base64
import binascii
import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from ivlite.errors import DiskError, MediaError, OutOfMemoryError, UsageError, shown
from ivlite.machine import available_memory, gigabytes
from ivlite.media.source import DATA, is_base64, is_file
from ivlite.numbers import number
from ivlite.stop import checkpoint

MOST_BYTES = 4 << 30  # of one medium in memory
MOST_FRAMES = 1 << 20  # of one list
LONGEST_PATH = 1024  # bytes of a path to a file that is missing
MARGIN = 1 / 512  # by which resized floats may exceed 0..1
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
# White, by kind and size of a type: numpy's types in another order of bytes are not equal to those of this machine.
TOPS = {("u", 1): 255, ("u", 2): 65535, ("b", 1): 1}
TIMES = ("t", "time", "timestamp")  # keys of a frame's own time


@dataclass
class Data:
    """The bytes of an image or video file in memory."""

    content: bytes

    @property
    def name(self):
        return f"<{len(self.content)} bytes>"

    def open(self):
        return io.BytesIO(self.content)


@dataclass
class Frames:
    """The frames of a video, each an image source; times: ascending seconds of each, or None."""

    items: list
    times: list[float] | None = field(default=None)


class Spooled(os.PathLike):
    """The bytes of a video in a temporary file, so that FFmpeg can seek; deleted with this object."""

    def __init__(self, content):
        self.name = f"<{len(content)} bytes>"
        try:
            self._file = tempfile.NamedTemporaryFile(prefix="ivlite-", suffix=".video")
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            folder = f"the folder for temporary files, {tempfile.gettempdir()} ({error.strerror})"
            raise DiskError(f"video {self.name} cannot be written to {folder}: give the path of a file") from error

    def __fspath__(self):
        return self._file.name

    def close(self):
        if file := self.__dict__.get("_file"):
            file.close()

    __del__ = close  # when the last Medium that uses it is deleted


# ------------------------------------------------------------------------------------------------ files in memory


def attribute(source, name):
    """An attribute of any object; None if it has none or the access fails."""
    try:
        return getattr(source, name, None)
    except Exception:
        return None


def named(source):
    """The path of an open file that still has its name; anything else unchanged. Writes out what its buffer holds."""
    name = attribute(source, "name")
    if isinstance(name, str | bytes) and callable(attribute(source, "fileno")):
        try:
            if callable(attribute(source, "flush")):  # else what was just written to it is not in the file
                source.flush()
            if os.path.samestat(os.fstat(source.fileno()), os.stat(name)) and os.path.isfile(name):
                return name
        except (OSError, ValueError):  # closed, in memory, renamed
            pass
    return source


def file_data(source, kind):
    """The Data of bytes, of an open binary file, a data: URI or a base64 text; None for anything else.

    Raises UsageError, MediaError. Bytes and texts that name a file are paths, and bytes that only a path can be.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, bytearray | memoryview) or (isinstance(source, bytes) and not is_path(source)):
        return Data(checked_size(bytes(source), kind))
    if isinstance(source, str):
        return text_data(source, kind)
    if not isinstance(source, os.PathLike) and callable(attribute(source, "read")):
        return Data(checked_size(read_all(source, kind), kind))
    return None


def is_path(content):
    """Whether bytes are a path: of a file, or a short text with a suffix or a folder, as no image or video is."""
    if is_file(content) or len(content) >= LONGEST_PATH:
        return is_file(content)
    text = os.fsdecode(content)
    return text.isprintable() and (os.sep in text or os.path.splitext(text)[1] != "")


def text_data(text, kind):
    if not is_base64(text):
        return None
    uri = DATA.match(text[:1200])
    if uri and not uri[1].lower().rstrip().endswith(";base64"):
        return Data(checked_size(unquote_to_bytes(text[uri.end() :]), kind))
    body, what = (text[uri.end() :], "data: URI") if uri else (text, "base64 text")
    return Data(checked_size(decoded(body, kind, what), kind))


def decoded(text, kind, what):
    """Decodes base64 in any variant: percent-encoded, URL-safe, with white space, without padding."""
    try:
        plain = (unquote_to_bytes(text) if "%" in text else text.encode("ascii")).translate(None, b" \t\r\n\f\v")
        plain = plain.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError, ValueError):
        raise MediaError(f"the {kind} is a {what} whose base64 is damaged: encode it again") from None


def read_all(file, kind):
    """The content of an open binary file, from its beginning if it can seek; restores its position."""
    try:
        at = file.tell()
        file.seek(0)
    except (OSError, ValueError, AttributeError):  # a pipe, or closed
        at = None
    try:
        content = file.read(MOST_BYTES + 1)
        if at is not None:
            file.seek(at)
    except (OSError, ValueError, TypeError) as error:  # closed, not readable, not a file
        raise UsageError(f"the {kind} is an open file that cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, bytes | bytearray | memoryview):
        raise UsageError(f"the {kind} is a file opened as text: open it in binary")
    return bytes(content)


def checked_size(content, kind):
    if not content:
        raise MediaError(f"the {kind} is empty: it has no bytes")
    if len(content) > MOST_BYTES:
        raise MediaError(f"the {kind} has more than {gigabytes(MOST_BYTES)} in memory: give the path of a file")
    return content


# ------------------------------------------------------------------------------------------------ arrays and tensors


def is_tensor(source):
    """Whether it is a torch tensor, found without importing torch; files have a detach() as well."""
    return callable(attribute(source, "detach")) and callable(attribute(source, "cpu"))


def array(source, kind):
    """An array of any library as a numpy array; None for anything else. Raises UsageError."""
    if isinstance(source, np.ndarray):
        return np.asarray(source)
    if isinstance(source, Image.Image | str | bytes | os.PathLike):  # numpy strings also have __array__
        return None
    if not callable(attribute(source, "__array__")) and not is_tensor(source):
        return None
    try:
        if is_tensor(source):  # torch: without the autograd graph, from any device
            source = source.detach().cpu()
            source = source.float() if "bfloat16" in str(source.dtype) else source
        return np.asarray(source)
    except Exception as error:  # of another library: sparse, quantized or meta tensors, a lost device
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"the {kind} is a {type(source).__name__} that gives no array ({reason})") from error


def channels_last(values, kind, torch=False):
    """A grey, RGB or RGBA array with channels first or last as (..., height, width, channels)."""
    last, first = values.shape[-1] in CHANNELS, values.shape[-3] in CHANNELS
    if first and (torch or not last):
        return np.moveaxis(values, -3, -1)
    if not last:
        shape = tuple(values.shape)
        raise UsageError(f"the {kind} is an array {shape}; it must be (height, width), with 1, 3 or 4 channels if any")
    return values


class Pixels:
    """An array as a picture: (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4.

    Integers are 0..255 (uint16: 0..65535), floats 0..1, bool black and white. Raises UsageError for values outside.
    """

    def __init__(self, values, kind, torch=False):
        if values.ndim not in (2, 3) or not values.size:
            shape = tuple(values.shape)
            raise UsageError(f"the {kind} is an array {shape}; it must be (height, width) or (height, width, channels)")
        values = values if values.ndim == 2 else channels_last(values, kind, torch)
        self.values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
        self.top = self._range(kind)
        self.shape = self.values.shape[:2]

    def _range(self, kind):
        """The value of white; checks that all values are from 0 to it."""
        dtype = self.values.dtype
        if top := TOPS.get((dtype.kind, dtype.itemsize)):
            return top
        if dtype.kind not in "iuf":
            raise UsageError(f"the {kind} is an array of {dtype}; it must be uint8 0..255, uint16 or float 0..1")
        low, high = self.values.min(), self.values.max()
        top, margin = (1, MARGIN) if dtype.kind == "f" else (255, 0)
        if not (low >= -margin and high <= top + margin):  # NaN, too
            name = "floats are 0..1" if top == 1 else f"{dtype} is 0..255"
            found = f"from {float(low):g} to {float(high):g}"
            raise UsageError(f"the {kind} is an array {found}, and {name} here: scale it, or give uint8")
        return top

    def image(self):
        """A PIL image, grey, RGB or RGBA."""
        values = self.values
        if self.top == 65535:
            values = (values // 257).astype(np.uint8)
        elif self.top == 1:
            values = (np.clip(values.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
        return Image.fromarray(np.ascontiguousarray(values, np.uint8))


def pixels(source, kind):
    """The Pixels of an array or tensor; None for anything else. Raises UsageError."""
    values = array(source, kind)
    if values is None:
        return None
    if values.ndim == 0:
        raise UsageError(f"the {kind} is {shown(source)}, a number; it must be a path or pixels")
    return Pixels(values, kind, torch=is_tensor(source))


# ------------------------------------------------------------------------------------------------ lists of frames


def as_frames(source):
    """The Frames of a list or iterator of frames, an array of frames, or one picture; None for a file.

    A frame is an image source, or {"t": seconds, "image": ...}. Reads an iterator to its end. Raises UsageError.
    """
    if isinstance(source, Frames):
        return source
    if isinstance(source, Image.Image):
        return Frames([source])
    if isinstance(source, str) and (uri := DATA.match(source[:1200])) and uri[1].lower() == "video/jpeg;base64":
        return Frames([f"data:image/jpeg;base64,{frame}" for frame in source[uri.end() :].split(",")])  # as of vLLM
    values = array(source, "video")
    if values is not None:
        return Frames(array_frames(values, is_tensor(source)))
    if isinstance(source, str | bytes | bytearray | memoryview | os.PathLike | Mapping):
        return None
    if callable(attribute(source, "read")):
        return None
    if not isinstance(source, Iterable) or isinstance(source, set | frozenset):
        return None
    items = gathered(source)
    if not items:
        raise UsageError("the video is an empty list of frames")
    timed = [isinstance(item, Mapping) for item in items]
    if not any(timed):
        return Frames(items)
    if not all(timed):
        raise UsageError("a video has frames with and without times: give every frame its time, or none")
    pairs = [timed_frame(n, item) for n, item in enumerate(items)]
    times = [time for time, _ in pairs]
    for n, (before, after) in enumerate(zip(times, times[1:], strict=False), 1):
        if after <= before:
            raise UsageError(
                f"frame {n} is at {after:g} s, not after the one before it ({before:g} s): sort the frames"
            )
    return Frames([image for _, image in pairs], times)


def timed_frame(n, item):
    """(seconds, image) of a frame with its time; null values are as if they were missing."""
    item = {key: value for key, value in item.items() if value is not None}
    times = [key for key in TIMES if key in item]
    images = [key for key in item if key not in TIMES and key != "type"]
    if len(times) != 1 or images != ["image"]:
        raise UsageError(f'frame {n} is {shown(item)}; it must be {{"t": seconds, "image": ...}}')
    return number(f"t of frame {n}", item[times[0]], 0), item["image"]


def array_frames(values, torch):
    """The frames of (T, H, W), (T, H, W, C) or (T, C, H, W); a single picture, with or without channels, is one frame."""
    if values.ndim == 2 or (values.ndim == 3 and (values.shape[2] in CHANNELS or values.shape[0] in CHANNELS)):
        return [values]
    if values.ndim not in (3, 4) or not values.size:
        shape = tuple(values.shape)
        raise UsageError(
            f"the video is an array {shape}; it must be (frames, height, width) or with channels, not empty"
        )
    return list(values if values.ndim == 3 else channels_last(values, "video", torch))


def gathered(source):
    """The frames of an iterable as a list. Raises UsageError, OutOfMemoryError for too many."""
    if isinstance(source, list | tuple):
        return list(source)
    items, held, free = [], 0, available_memory()
    for item in source:
        checkpoint()
        items.append(item)
        held += size_of(item)
        if len(items) > MOST_FRAMES:
            raise UsageError(f"the video has more than {MOST_FRAMES} frames: give fewer, or a file")
        if free is not None and held > free / 2:
            raise OutOfMemoryError(f"the frames of the video take more than {gigabytes(held)}: give fewer, or a file")
    return items


def size_of(frame):
    if isinstance(frame, Mapping):
        frame = frame.get("image")
    if isinstance(frame, Image.Image):
        return frame.width * frame.height * 4
    if isinstance(frame, str | bytes):
        return len(frame)
    held = attribute(frame, "nbytes")
    return held if isinstance(held, int) else 0
