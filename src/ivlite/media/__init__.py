"""Images and videos: opening one plans its frames, their times and size; frames are decoded while vision runs."""

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

    source: a path, a file:// or data: URI, base64, bytes or an open binary file, of a video, an animated image or a still
    image (one frame). Or frames: a list or iterator of images (as for open_image), or of {"t": seconds, "image": ...} in
    order of time; an array or tensor (T, H, W), (T, H, W, C) or (T, C, H, W).

    fps: frames sampled per second, at least min_frames and at most max_frames; nframes: exactly that many instead. For
    frames without times, all are used (up to max_frames), and fps is their rate. start, end: seconds; timestamps stay
    those of the whole video. stream: the stream index in the file, as FFmpeg numbers them. min_pixels, max_pixels: of
    each resized frame, whose sides are multiples of `factor`.

    Decodes one frame, or all of an animated image. Raises MediaError (the file), UsageError (an argument),
    OutOfMemoryError.
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
