"""Videos whose frames say their own numbers, and what is read of them."""

from fractions import Fraction

import av
import numpy as np

from ivlite import media

VIDEO = {"fps": 1, "min_frames": 4, "max_frames": 768, "min_pixels": 1024, "max_pixels": 1 << 20}
KINDS = {
    "a.mp4": dict(count=200), "long gop.mp4": dict(count=250, gop=250), "a.ts": dict(count=150),
    "a.mov": dict(count=120, codec="mpeg4"), "a.avi": dict(count=120, codec="mpeg4", options={"bf": "2"}),
    "a.mkv": dict(count=90, codec="ffv1", pix_fmt="bgr0"), "a.webm": dict(count=90, codec="libvpx-vp9"),
    "hidden.webm": dict(count=90, codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200k"}),
    "ntsc.mp4": dict(count=240, rate=Fraction(30000, 1001)),
    "open gop.mp4": dict(count=250, options={"x264-params": "open-gop=1:keyint=30:bframes=3"}),
    "a.gif": dict(count=30, codec="gif", pix_fmt="rgb8", rate=10),
}  # fmt: skip


def bits(number, height=48, width=64):
    """A picture that says `number` (0 to 255) in eight black or white columns."""
    picture = np.zeros((height, width, 3), np.uint8)
    for b in range(8):
        picture[:, b * width // 8 : (b + 1) * width // 8] = 255 * (number >> b & 1)
    return picture


def said(picture):
    """The number that a picture of bits says, after whatever was done to it."""
    width = picture.shape[1]
    return sum(int(picture[:, b * width // 8 + 2 : (b + 1) * width // 8 - 2].mean() > 128) << b for b in range(8))


def numbered(path, count, *, rate=25, codec="libx264", pix_fmt="yuv420p", size=(48, 64), times=None, options=None,
             container=None, rotation=None, gop=12):  # fmt: skip
    """A video whose frame i says i; times: milliseconds of each frame, for a varying rate."""
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = gop
        stream.options = options or {}
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(bits(i, *size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def lossless(path, count, **more):
    return numbered(path, count, codec="ffv1", pix_fmt="bgr0", **more)


def opened(path, **more):
    return media.open_video(path, **VIDEO | more)


def shown(medium):
    """The numbers that the frames of a video of bits say."""
    return [said(frame) for pair in medium.pairs() for frame in pair]


def paired(frames):
    return [*frames, *frames[-1:] * (len(frames) % 2)]


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
