"""Images and videos: opened as a plan (which frames, when, at what size), decoded pair by pair when vision runs."""

from ivlite.errors import UsageError, shown
from ivlite.media import animation, frames, memory, video
from ivlite.media.image import open_image
from ivlite.media.memory import as_frames
from ivlite.media.source import limits, local_path
from ivlite.numbers import number

__all__ = ["as_frames", "limits", "open_image", "open_video"]


def open_video(source, *, fps, min_frames, max_frames, min_pixels, max_pixels, nframes=None, start=None, end=None,
               stream=None, factor=32, patch_size=16, temporal=2):  # fmt: skip
    """Opens a video; returns a Medium of kind "video".

    source: a path, a file:// or data: URI, base64; bytes or an open binary file; of a video, an animated image or a still
    one, which is one frame. Or frames: a list or iterator of what an image may be, or of {"t": seconds, "image": ...},
    rising; an array or tensor (T, H, W), (T, H, W, C) or (T, C, H, W).

    fps: frames taken per second, between min_frames and max_frames of them; nframes: that many instead. Of frames without
    times all are taken (up to max_frames), and fps says when they were. start, end: seconds; time marks stay those of
    the whole video. stream: which one of a file that has several, as FFmpeg counts them. min_pixels, max_pixels: of each
    resized frame, whose sides are multiples of `factor`.

    Decodes one frame, of an animated image all. Raises MediaError (the file), UsageError (an argument), OutOfMemoryError.
    """
    start, end = (None if t is None else number(name, t, 0) for name, t in (("start", start), ("end", end)))
    limits = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    limits |= {"nframes": nframes, "start": start, "end": end}
    shape = {"patch_size": patch_size, "temporal": temporal}
    pixels = (factor, min_pixels, max_pixels)
    if found := as_frames(source):
        no_streams(stream, "frames")
        return frames.open_list(found, limits, pixels, shape)
    source = memory.named(source)
    data = memory.file_data(source, "video")
    path, name = ("", data.name) if data else local_path(source, "video")
    open_file = data.open if data else lambda: open(path, "rb")
    if animation.is_image(open_file, path):
        no_streams(stream, "an image")
        return animation.open_images(open_file, data or source, name, limits, pixels, shape)
    more = {"factor": factor, "min_pixels": min_pixels, "max_pixels": max_pixels, "stream": stream}
    if data is None:
        return video.open_video(source, **limits, **more, **shape)
    spooled = memory.Spooled(data.content)
    try:
        medium = video.open_video(spooled, **limits, **more, **shape)
    except BaseException:
        spooled.close()
        raise
    medium.held = spooled
    return medium


def no_streams(stream, what):
    if stream is not None:
        raise UsageError(f"stream is {shown(stream)}, and the video is {what}: only video files have streams")
