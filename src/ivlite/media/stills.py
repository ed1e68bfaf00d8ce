"""Reads image files with Pillow, damaged ones up to the damage, and with FFmpeg if Pillow does not know the format.

Does not change global state (Pillow's limits, its tolerance of damage, Python's warning filters), which other threads
use at the same time.
"""

import io
import math
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module

from PIL import Image, ImageChops

from ivlite.errors import IvliteError, MediaError, OutOfMemoryError
from ivlite.machine import available_memory, gigabytes
from ivlite.media.color import MODES
from ivlite.media.display import Display, has_alpha
from ivlite.media.faults import reason, system_fault
from ivlite.media.libraries import silence_libtiff
from ivlite.media.resize import QUARTERS, WHOLE
from ivlite.media.source import MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")  # of Pillow, MPO with JPEG
MODULES = ("Jpeg", "Png", "WebP", "Gif", "Bmp", "Tiff", "Avif", "Jpeg2K", "Ppm")
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO/IEC 23008-12
# FFmpeg's formats for files that Pillow does not know: single pictures, without references to other files.
PIPES = "bmp dds dpx exr gif hdr j2k jpeg jpegls jpegxl jpegxs pam pbm pcx pfm pgm phm png ppm psd qoi sgi sunrast tiff"
FFMPEG = ",".join([f"{name}_pipe" for name in PIPES.split()] + ["webp_pipe", "xbm_pipe", "xpm_pipe", "xwd_pipe", "ico"])
MAX_BYTES = 10**9  # of one decoded image: 250 megapixels in colour
BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # of a pixel in memory; others take 4
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # by the value of ORIENTATION
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

silence_libtiff()


@dataclass
class Picture:
    """A decoded image in its stored orientation.

    image: of any mode. shape: (height, width) upright, before any reduction while decoding. turn: the Transpose that
    makes it upright, or None. notes: sentences about the file.
    """

    image: Image.Image
    shape: tuple
    turn: Image.Transpose | None = None
    notes: list = field(default_factory=list)


def read(file, what, least=1.0):
    """The Picture of an image file, open in binary and seekable. `what` names it in messages.

    Images above MAX_PIXELS are decoded at reduced size if the format supports it (JPEG, JPEG 2000), with at least the
    fraction `least` of each side. Raises MediaError, and OutOfMemoryError before decoding what would not fit.
    """
    first = None
    for attempt in (whole, patched, begun, foreign):
        file.seek(0)
        try:
            return attempt(file, what, least)
        except IvliteError:
            raise
        except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError, ...
            fault = system_fault(error, what)
            if fault:
                raise fault from error
            first = first or error
    if isinstance(first, Image.UnidentifiedImageError):
        raise MediaError(f"{what} is not an image ivlite reads ({', '.join(FORMATS)}, HEIC): convert it") from first
    if isinstance(first, Image.DecompressionBombError):
        raise MediaError(beyond(what)) from first
    raise MediaError(f"{what} is damaged or cut off ({reason(first)}): copy or export it again") from first


def beyond(what):
    """What is said of an image that Pillow refuses for its size."""
    limit = f"Pillow's limit that this program has set ({Image.MAX_IMAGE_PIXELS} pixels)"
    return f"{what} is beyond {limit}: raise it, or make the image smaller"


# ------------------------------------------------------------------------------------------------ with Pillow


def whole(file, what, least):
    image, shape = prepared(file, what, least)
    if image.format == "WEBP" and image.width * image.height > WHOLE and not image.is_animated:
        del image  # else there are four copies in memory
        file.seek(0)
        return by_ffmpeg(file, what, least)
    decode(image)
    return picture(image, shape, what)


def decode(image):
    """Like image.load(), but without the limits and warnings of size with which Pillow makes room for a TIFF."""
    if image.format == "TIFF" and image.tile:
        image.im = Image.core.new(image.mode, image._tile_size)
    image.load()


def begun(file, what, least):
    """The rows of an image before the damage or the end of the file."""
    image, shape = prepared(trimmed(file) or file, what, least)
    try:
        decode(image)
    except MemoryError:
        raise
    except Exception:
        image.tile = []  # keeps the decoded rows; load() would start again
        return damaged(picture(image, shape, what), what)
    return picture(image, shape, what)


def patched(file, what, least):
    """A damaged image decoded after a repair: a PNG without spare chunks, a JPEG or WebP extended to its end."""
    clean = trimmed(file)
    if clean:
        return whole(clean, what, least)
    data = file.read(MAX_BYTES)
    length = 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"\xff\xd8"):
        ends = b"\xff\xd9" * 40000  # enough for a decoder anywhere in a segment
        found = whole(io.BytesIO(data + ends), what, least)
        if found.image.width * found.image.height <= WHOLE:  # a second copy of a large one would take too much memory
            noise = bytes(range(250)) * 99  # from 0 on: after 0xFF at the end of `data`, 1 would be a marker
            other = whole(io.BytesIO(data + noise + ends), what, least)
            if ImageChops.difference(found.image, other.image).getbbox() is None:
                return found  # only the end marker is missing: no pixel depends on the rest
        return damaged(found, what)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < length <= 4 * len(data):
        return damaged(whole(io.BytesIO(data + bytes(length - len(data))), what, least), what)
    raise ValueError("no format that can be mended")


def prepared(file, what, least):
    """(PIL image, (width, height)) after reading the header: set to reduced decoding if it is large, and checked."""
    image = identified(file, what)
    width, height = image.size
    once = 1
    if width * height > MAX_PIXELS and image.format in ("JPEG", "MPO"):
        image.draft(None, (math.ceil(width * least), math.ceil(height * least)))
    elif width * height > MAX_PIXELS and image.format == "JPEG2000":
        image.reduce = halvings(file, image.size, int(-math.log2(least)))
        once = 4**image.reduce
    if image.format == "WEBP" and image.is_animated and image.mode == "RGB":
        # Frames that cover a part of the canvas leave the rest transparent, whatever the header says about alpha.
        image.rawmode = image._mode = "RGBA"
    check_memory(image.width * image.height // once, image, what)
    return image, (width, height)


def halvings(file, size, most):
    """How often decoding can halve a JPEG 2000 image of that size, at most `most` times.

    Limited by the levels in its COD marker, and to sizes that Pillow and OpenJPEG round alike.
    """
    file.seek(0)
    head = file.read(1 << 16)
    at = head.find(b"\xff\x52", head.find(b"\xff\x4f\xff\x51") + 4)
    levels = min(head[at + 9], most) if 0 < at < len(head) - 9 else 0
    return next(n for n in range(levels, -1, -1) if all(side + (1 << n >> 1) >> n == -(-side >> n) for side in size))


def identified(file, what):
    """Like Image.open, which reads the header only, but without its limits and warnings of size."""
    for name in MODULES:
        with suppress(ImportError):  # Pillow before 11.3 has no AVIF
            import_module(f"PIL.{name}ImagePlugin")
    head = file.read(16)
    failed = None
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if accepts and accepts(head) is True:
            file.seek(0)
            try:
                return factory(file, "")  # with a name Pillow may map the file: the process dies if the file shrinks
            except (SyntaxError, IndexError, TypeError, struct.error) as error:
                failed = error
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        file.seek(0)
        return heif_class(what)(file, "")
    raise failed or Image.UnidentifiedImageError(what)


def heif_class(what):
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        advice = "install pillow-heif (pip install 'ivlite[heif]'), or export it as JPEG"
        raise MediaError(f"{what} is HEIC, which ivlite reads with another package: {advice}") from None
    return HeifImageFile


def check_memory(pixels, image, what):
    """Raises MediaError or OutOfMemoryError for an image whose decoding would take too much memory."""
    need = pixels * BYTES.get(image.mode, 4)
    if image.info.get("progression"):
        need += image.width * image.height * 3  # the coefficients of all blocks
    if need > MAX_BYTES:
        limit = f"decoded it takes {gigabytes(need)}, beyond the limit of {gigabytes(MAX_BYTES)}"
        raise MediaError(f"{what} is {image.width}x{image.height}, and {limit}: make it smaller first")
    free = available_memory() if need > 1 << 26 else None
    if free is not None and need > free:
        size = f"{what} takes {gigabytes(need)} of memory when it is decoded, and {gigabytes(free)} are free"
        raise OutOfMemoryError(f"{size}: close other programs, or make it smaller")


def picture(image, size, what):
    """The Picture of a decoded PIL image with the full size (width, height). Raises MediaError."""
    if image.mode not in MODES:
        raise MediaError(f"{what} has colours of the kind {image.mode}, which ivlite does not read: convert it to RGB")
    notes = []
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    except MemoryError:
        raise
    except Exception:  # the EXIF parser may raise anything for a damaged block
        turn = None
        notes.append(f"{what} has EXIF data that cannot be read: it is shown as it is stored")
    return Picture(image, size if turn in QUARTERS else size[::-1], turn, notes)


def damaged(found, what):
    """The Picture with a note that a part is missing. Raises ValueError if nothing was decoded."""
    extrema = found.image.getextrema()
    if all(low == high for low, high in (extrema if isinstance(extrema[0], tuple) else (extrema,))):
        raise ValueError("nothing could be decoded")
    found.notes.append(f"{what} is damaged or cut off: what is missing of it is shown blank")
    return found


def trimmed(file):
    """A PNG file in memory with the chunks that its pixels need and valid EXIF data; None if it is no PNG.

    Text chunks and colour profiles may be huge or wrong: Pillow refuses such files, viewers show them.
    """
    file.seek(0)
    signature = file.read(8)
    if signature != b"\x89PNG\r\n\x1a\n":
        file.seek(0)
        return None
    out = io.BytesIO()
    out.write(signature)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        data = file.read(min(length, MAX_BYTES) + 4) if kind in PNG_CHUNKS else None
        if data is None:
            file.seek(length + 4, io.SEEK_CUR)
        elif kind != b"eXIf" or data[-4:] == struct.pack(">I", zlib.crc32(kind + data[:-4])):
            out.write(head + data)
    out.seek(0)
    return out


# ------------------------------------------------------------------------------------------------ with FFmpeg


def foreign(file, what, least):
    """An image that Pillow cannot identify, such as some kinds of BMP, decoded with FFmpeg."""
    try:
        prepared(file, what, least)
    except (IvliteError, MemoryError):
        raise
    except Exception as error:
        file.seek(0)
        found = by_ffmpeg(file, what, least)
        if isinstance(error, SyntaxError) and is_avif(file):  # Pillow knows the format, and finds it damaged
            found.notes.append(f"{what} is damaged or cut off: what is missing of it is left out")
        return found
    raise ValueError("damaged")


def by_ffmpeg(file, what, least):
    """The first picture of a file that FFmpeg identifies as an image."""
    import av

    webp = file.read(12)[8:] == b"WEBP"
    limits = {"max_pixels": str(MAX_BYTES // 4 if webp else MAX_PIXELS)}
    options = limits | {"protocol_whitelist": "", "format_whitelist": "mov" if is_avif(file) else FFMPEG}
    file.seek(0)
    with av.open(file, options=options, metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.options = limits
        frame = next(container.decode(stream))
        display = Display(stream)
        shape = display.shape(frame)
        image = Image.fromarray(display.pixels(reduced(frame, least)))
    return Picture(image, shape)


def is_avif(file):
    file.seek(0)
    return file.read(12)[4:] in (b"ftypavif", b"ftypavis")


def reduced(frame, least):
    """A large FFmpeg frame scaled down, with at least the fraction `least` of each side, to save memory."""
    if frame.width * frame.height <= WHOLE or least >= 1:
        return frame
    size = {"width": math.ceil(frame.width * least), "height": math.ceil(frame.height * least)}
    return frame.reformat(**size, format="rgba" if has_alpha(frame) else "rgb24", interpolation="AREA")


def remarks(file, name):
    """Sentences about other content of an image file, which is not used."""
    try:
        image = identified(file, name)
        if image.format in ANIMATED and getattr(image, "is_animated", False):
            yield f"image {name} is animated: only its first frame is used; give it as a video to use the others"
        elif image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            yield f"image {name} has {image.n_frames} pages: only the first is used"
    except (IvliteError, MemoryError):
        raise
    except Exception:  # further pages are damaged, or Pillow does not know the file
        return
