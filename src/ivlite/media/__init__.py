"""Images and videos: a look finds their times and shape, opening chooses frames; frames are decoded while vision runs."""

from ivlite.errors import UsageError, shown
from ivlite.media import animation, frames, memory, video
from ivlite.media.image import open_image
from ivlite.media.medium import Medium
from ivlite.media.memory import as_frames
from ivlite.media.source import Remote, limits, local_path
from ivlite.numbers import number

__all__ = ["Medium", "as_frames", "limits", "open_image", "open_video", "probe"]


def open_video(source, *, fps, min_frames, max_frames, min_pixels, max_pixels, nframes=None, start=None, end=None,
               stream=None, factor=32, patch_size=16, temporal=2):  # fmt: skip
    """Opens a video; returns a Medium of kind "video".

    source, start, end, stream: as for `probe`. fps: frames sampled per second, at least min_frames and at most
    max_frames; nframes: exactly that many instead. For frames without times, all are used (up to max_frames), and fps is
    their rate. min_pixels, max_pixels: of each resized frame, whose sides are multiples of `factor`. Timestamps are those
    of the whole video.

    Decodes one frame, or all of an animated image. Raises MediaError (the file), UsageError (an argument),
    OutOfMemoryError.
    """
    found = probe(source, fps=fps, start=start, end=end, stream=stream)
    found.settle()
    limits = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames, "nframes": nframes}
    chosen = found.chosen(temporal, **limits)
    size = found.size(factor, min_pixels, max_pixels)
    return found.open(chosen, size, patch_size=patch_size, temporal=temporal)


def probe(source, *, fps, start=None, end=None, stream=None):
    """What can be known of a video without decoding more than a frame: a Probe.

    source: a path, a file:// or data: URI, base64, bytes or an open binary file, of a video, an animated image or a still
    image (one frame). Or frames: a list or iterator of images (as for open_image), or of {"t": seconds, "image": ...} in
    order of time; an array or tensor (T, H, W), (T, H, W, C) or (T, C, H, W).

    fps: the rate of frames without times. start, end: seconds of the range that is used. stream: the stream index in the
    file, as FFmpeg numbers them. Of a video file whose index does not tell the times of its frames, those that it declares
    stand in until `settle()`. Raises MediaError (the file), UsageError (an argument), OutOfMemoryError.
    """
    start, end = (None if t is None else number(name, t, 0) for name, t in (("start", start), ("end", end)))
    if isinstance(source, Remote):
        return source.probe(fps, start, end, stream)
    if found := as_frames(source):
        no_streams(stream, "frames")
        return frames.FrameListProbe(found, fps, start, end)
    source = memory.named(source)
    data = memory.file_data(source, "video")
    path, name = ("", data.name) if data else local_path(source, "video")
    open_file = data.open if data else lambda: open(path, "rb")
    if animation.is_image(open_file, path):
        no_streams(stream, "an image")
        return animation.probe_images(open_file, data or source, name, fps, start, end)
    if data is None:
        return video.VideoProbe(source, start, end, stream)
    spooled = memory.Spooled(data.content)
    try:
        return video.VideoProbe(spooled, start, end, stream)
    except BaseException:
        spooled.close()
        raise


def no_streams(stream, what):
    if stream is not None:
        raise UsageError(f"stream is {shown(stream)}, and the video is {what}: only video files have streams")
