"""Renders decoded frames as a player shows them: upright, with square pixels, on white, deinterlaced, in SDR."""

import errno
import math
import threading
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache

import numpy as np
from PIL import Image

from ivlite.errors import IvliteError, MediaError
from ivlite.media.color import HDR, on_white, tone_mapped
from ivlite.media.faults import reason, system_fault
from ivlite.media.resize import check_pixels, resized

MAX_PIXEL_ASPECT = 10  # width to height of a pixel, or the reverse; more is an error of the file
BICUBIC = 4  # swscale's
BT2020, UNSPECIFIED = 9, 2  # matrices in H.273
CONVERTED = (0, 1, 2, 4, 5, 6, 7, 9)  # matrices that swscale converts from; newer versions refuse frames with any other
MATRICES = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE ST 2085", 12: "derived from the primaries",
            13: "derived from the primaries, constant luminance", 14: "ICtCp"}  # fmt: skip
DERIVED = {1: 1, 4: 4, 5: 1, 6: 7, 7: 7, 9: BT2020}  # primaries to the matrix that follows from them, or nearly so
RANGES = (0, 1, 2)  # unspecified, limited, full
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's native decoders ignore alpha


class Interlaced:
    """An interlaced frame, with the frames before and after it (or None) for deinterlacing."""

    def __init__(self, before, frame, after):
        self.before, self.frame, self.after = before, frame, after

    def __getattr__(self, name):
        return getattr(self.frame, name)


def with_neighbours(frames):
    """Yields decoded frames; an interlaced one as Interlaced, after the next frame is decoded."""
    before = waiting = None
    for frame in frames:
        if waiting is not None:
            yield Interlaced(before, waiting, frame)
            before, waiting = waiting, None
        if frame.interlaced_frame:
            waiting = frame
        else:
            yield frame
            before = frame
    if waiting is not None:
        yield Interlaced(before, waiting, None)


def decoder(stream):
    """The decoder of a stream's packets: the stream itself, or a decoder that supports its alpha channel."""
    import av

    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return stream
    special = av.CodecContext.create(name, "r")
    special.extradata = stream.codec_context.extradata
    special.options = stream.codec_context.options
    special.thread_type = "AUTO"
    return special


class Display:
    """Renders the frames of one stream. Keeps no reference to the stream."""

    def __init__(self, stream):
        aspect = float(stream.sample_aspect_ratio or 1)
        self.aspect = aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0
        # Caches the display matrix of each rotation: reading one puts the frame in a reference cycle, which keeps it in
        # memory until the garbage collector runs.
        self.matrices = {}
        self.stored = 0, 0  # height and width of a decoded frame, once its shape was asked for
        self.replaced = set()  # names of matrices of colours for which others stand in

    def notes(self, name):
        """Sentences about what frames of the video could not be shown as they say."""
        if self.replaced:
            which = " and ".join(sorted(self.replaced))
            yield f"the colours of video {name} may be off: FFmpeg does not convert their matrix ({which}), and another stands in"

    def shape(self, frame):
        """(height, width) of a frame on the screen."""
        check_pixels(frame.height, frame.width, "a frame")
        self._mend(frame)
        self.stored = frame.height, frame.width
        height, width = frame.height, max(1, round(frame.width * self.aspect))
        return (width, height) if self._turn(frame)[0] else (height, width)

    def rgb(self, frame, size):
        """uint8 (H, W, 3) of `size` (H, W)."""
        return resized(self.pixels(frame, size), size)

    def pixels(self, frame, size=None):
        """uint8 (h, w, 3), upright, in the frame's size, a view of any strides; HDR in `size` (H, W) if given."""
        check_pixels(frame.height, frame.width, "a frame")
        self._mend(frame)
        quarter, down, right = self._turn(frame)
        with converting(frame):
            if isinstance(frame, Interlaced):
                frame = deinterlaced(frame)
            if frame.color_trc in HDR:
                size = size or (frame.height, frame.width)
                pixels = sdr(frame, size[::-1] if quarter else size)
            elif has_alpha(frame):
                pixels = np.asarray(on_white(Image.fromarray(frame.to_ndarray(format="rgba"))))
            else:
                pixels = in_rgb(frame)
        if quarter:  # x of the picture becomes y on the screen
            pixels = pixels.transpose(1, 0, 2)
        return pixels[::down, ::right]

    def _mend(self, frame):
        """Gives a frame the nearest tags from which swscale converts."""
        found = mended(frame.frame if isinstance(frame, Interlaced) else frame)
        if found:
            self.replaced.add(found)

    def _turn(self, frame):
        """(whether width and height swap, then the steps of rows and of columns: -1 for mirrored)."""
        if frame.rotation not in self.matrices:
            self.matrices[frame.rotation] = display_matrix(small(frame))
        matrix = self.matrices[frame.rotation]
        if matrix is None:
            return False, 1, 1
        a, b, _, c, d = matrix
        quarter = abs(b) + abs(c) > abs(a) + abs(d)
        across, along = (c, b) if quarter else (a, d)
        return quarter, -1 if along < 0 else 1, -1 if across < 0 else 1


own = threading.local()  # of each thread: a converter keeps its tables from frame to frame


def in_rgb(frame):
    """uint8 (h, w, 3) of a frame without transparency."""
    if not hasattr(own, "converter"):
        from av.video.reformatter import VideoReformatter

        own.converter = VideoReformatter()
    return own.converter.reformat(frame, format="rgb24", threads=1).to_ndarray()


def mended(frame):
    """The name of a frame's matrix of colours if another now stands in for it, "" if not.

    Sets the tags from which swscale does not convert to the nearest that it knows. Pixels in RGB have no matrix.
    """
    if frame.color_range not in RANGES:
        frame.color_range = 0
    matrix = int(frame.colorspace)
    if matrix in CONVERTED or frame.format.is_rgb or frame.format.has_palette:
        return ""
    nearest = {10: BT2020, 12: DERIVED.get(frame.color_primaries), 13: DERIVED.get(frame.color_primaries)}.get(matrix)
    frame.colorspace = nearest or UNSPECIFIED
    return "" if matrix == 12 and nearest else MATRICES.get(matrix, f"number {matrix} of H.273")


@contextmanager
def converting(frame):
    """Context manager: what FFmpeg raises in the block, which converts a frame, becomes a MediaError that says why."""
    import av

    try:
        yield
    except (IvliteError, MemoryError):
        raise
    except (av.FFmpegError, OSError, EOFError, ValueError, ArithmeticError, LookupError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise system_fault(error, "a frame") from error
        kind = f"pixels of the format {frame.format.name}, which FFmpeg cannot convert ({reason(error)})"
        raise MediaError(f"a frame has {kind}: convert the video to H.264 in yuv420p") from error


def small(frame):
    """A copy of a frame with hardly any pixels: it is this one that enters the reference cycle.

    Grey, since FFmpeg does not write every format that it reads (of palettes). Raises MediaError.
    """
    with converting(frame):
        return frame.reformat(width=16, height=16, format="gray")


def display_matrix(frame):
    """The first five of the nine values of a frame's display matrix (16.16 fixed point), or None."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV cannot list side data of which it does not know one type, such as EXIF
        turn = math.radians(frame.rotation)
        sine, cosine = round(math.sin(turn) * 65536), round(math.cos(turn) * 65536)
        return [cosine, -sine, 0, sine, cosine]
    return None if data is None else np.frombuffer(bytes(data), np.int32, 5).tolist()


def has_alpha(frame):
    return transparent(frame.format.name)


@lru_cache
def transparent(name):
    """Whether pixels of an FFmpeg format may be transparent."""
    import av

    form = av.VideoFormat(name)
    return form.has_palette or any(part.is_alpha for part in form.components)


def sdr(frame, size):
    """uint8 (H, W, 3) in `size` of an HDR frame: resized in 16 bits, then tone-mapped."""
    height, width = size
    if frame.colorspace == UNSPECIFIED:
        frame.colorspace = BT2020
    format = "rgba64le" if has_alpha(frame) else "rgb48le"
    codes = frame.to_ndarray(width=width, height=height, format=format, interpolation=BICUBIC)
    mapped = tone_mapped(codes[..., :3], frame.color_trc, frame.color_primaries)
    if codes.shape[2] == 3:
        return mapped
    opacity = (codes[..., 3:] >> 8).astype(np.uint8)
    return np.asarray(on_white(Image.fromarray(np.concatenate([mapped, opacity], 2))))


def deinterlaced(fields):
    """Deinterlaces a frame with FFmpeg's bwdif, from its fields and those of its neighbours."""
    from av.filter import Graph

    frame = fields.frame
    kind = (frame.width, frame.height, frame.format.name)
    near = [f if f and (f.width, f.height, f.format.name) == kind else None for f in (fields.before, fields.after)]
    graph = Graph()
    ticks = frame.time_base or Fraction(1, 1000)  # any value works for a single frame
    source = graph.add_buffer(None, frame.width, frame.height, frame.format, time_base=ticks)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    for given in (near[0], frame, near[1]):
        if given is not None:
            graph.vpush(given)
    graph.vpush(None)
    out = graph.vpull() if near[0] is None else (graph.vpull(), graph.vpull())[1]
    for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(out, name, getattr(frame, name))
    return out
