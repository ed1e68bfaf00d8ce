"""Decodes images to upright RGB: files, PIL images and arrays."""

from PIL import Image

from ivlite.errors import IvliteError, MediaError, UsageError
from ivlite.media import memory, stills
from ivlite.media.color import to_rgb
from ivlite.media.faults import reason, system_fault
from ivlite.media.medium import Bytes, Content, Medium
from ivlite.media.resize import fitted, shown
from ivlite.media.source import Remote, local_path

SMALLEST = 1 / 64  # of each side: the reduction of a decoding that only checks shape and damage
KEPT = 2  # a large image is decoded at no less than this times the target size; resizing does the rest


class StillImage(Medium):
    """An image: one frame pair with the same picture twice."""

    def __init__(self, still, *args, **more):
        super().__init__(*args, **more)
        self._still = still

    def content(self):
        content = self._still.content()
        return None if content is None else [content]

    def pictures(self, first=0):
        yield self._still.rgb(self.size)


def open_image(source, *, min_pixels, max_pixels, factor=32, patch_size=16, temporal=2):
    """Opens an image; returns a Medium of kind "image".

    source: a path, a file:// or data: URI, base64; bytes or an open binary file; a PIL image; an array or tensor (H, W),
    (H, W, C) or (C, H, W) with C 1, 3 or 4, of integers (0..255; uint16 0..65535) or floats (0..1).

    min_pixels, max_pixels: of the resized image, whose sides are multiples of `factor`. Decodes the file once to find
    damage before the model runs. Raises MediaError (the file), UsageError (the argument), OutOfMemoryError.
    """
    still = open_still(source, "image")
    notes = [*still.remarks(), *still.look()]
    size = fitted(*still.shape, factor, min_pixels, max_pixels, f"image {still.name}")
    return StillImage(
        still, "image", still.name, size, [0], [], None, patch_size=patch_size, temporal=temporal, warnings=notes
    )


def open_still(source, kind):
    """The Still of an image of any kind. Raises UsageError, MediaError."""
    if isinstance(source, Image.Image):
        return Given(source, kind)
    if isinstance(source, Remote):
        return source.still(kind)
    if pixels := memory.pixels(source, kind):
        return Array(pixels, kind)
    source = memory.named(source)
    if data := memory.file_data(source, kind):
        return File(data.open, data.name, kind, content_of(data, kind))
    path, name = local_path(source, kind)
    return File(lambda: open(path, "rb"), name, kind, content_of(path, kind))


def content_of(source, kind):
    """The Content of a file: memory.Data or a path."""
    return Bytes(source.content) if isinstance(source, memory.Data) else Content(local_path(source, kind)[0])


class Still:
    """One picture that can be decoded. name: for messages. shape: (height, width) upright, set by look()."""

    def __init__(self, name, kind):
        self.name, self.what = name, f"{kind} {name}"
        self.shape = None

    def content(self):
        """The media.medium.Content of a file; None for pixels in memory."""
        return None

    def remarks(self):
        """Sentences about other content of the file, which is not used."""
        return []

    def look(self):
        """Decodes the picture to find its shape and damage; returns sentences. Raises MediaError."""
        picture = self._read(SMALLEST)
        self.shape = picture.shape
        return picture.notes

    def rgb(self, size):
        """uint8 (H, W, 3) of `size` (H, W), bicubic with antialiasing. Raises MediaError."""
        if self.shape is None:
            self.look()
        picture = self._read(min(1.0, KEPT * max(size[0] / self.shape[0], size[1] / self.shape[1])))
        try:
            return shown(picture.image, size, picture.turn, to_rgb(picture.image))
        except MemoryError as error:
            raise system_fault(error, self.what) from error
        except Image.DecompressionBombError as error:  # above the limit that the program sets in Pillow
            raise MediaError(stills.beyond(self.what)) from error

    def _read(self, least):
        """The stills.Picture; if reduced, with at least the fraction `least` of each side."""
        raise NotImplementedError


class File(Still):
    """A picture in a file: `open_file` returns a seekable binary file."""

    def __init__(self, open_file, name, kind, content):
        super().__init__(name, kind)
        self._open, self._content = open_file, content

    def content(self):
        return self._content

    def _file(self):
        try:
            return self._open()
        except OSError as error:
            raise system_fault(error, self.what) or MediaError(
                f"{self.what} cannot be read: {reason(error)}"
            ) from error

    def remarks(self):
        with self._file() as file:
            return list(stills.remarks(file, self.name))

    def _read(self, least):
        with self._file() as file:
            return stills.read(file, self.what, least)


class Given(Still):
    """A PIL image given by the caller."""

    def __init__(self, image, kind):
        super().__init__(f"<{image.width}x{image.height}>", kind)
        self._image = image

    def _read(self, least):
        size = self._image.size
        try:
            self._image.load()
            return stills.picture(self._image, size, self.what)
        except IvliteError:
            raise
        except Exception as error:  # of Pillow, which reads the file only now
            fault = system_fault(error, self.what)
            if fault:
                raise fault from error
            if isinstance(error, Image.DecompressionBombError):
                raise MediaError(stills.beyond(self.what)) from error
            if getattr(self._image, "fp", None) is None and "closed" in str(error):
                raise UsageError(f"{self.what} is an image of Pillow that has been closed: give it open") from error
            raise MediaError(f"{self.what} is damaged or cut off ({reason(error)}): open it again") from error


class Array(Still):
    """An array given by the caller, converted to an image when needed: a list of frames may have hundreds."""

    def __init__(self, pixels, kind):
        super().__init__(f"<{pixels.shape[1]}x{pixels.shape[0]}>", kind)
        self._pixels = pixels

    def _read(self, least):
        return stills.Picture(self._pixels.image(), self._pixels.shape)
