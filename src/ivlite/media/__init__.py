"""Images and videos: opened as a plan (which frames, when, at what size), decoded pair by pair when vision runs."""

from ivlite.media import animation, memory, video
from ivlite.media import frames as frame_lists
from ivlite.media.image import open_image
from ivlite.media.memory import frames
from ivlite.media.source import limits, local_path

__all__ = ["frames", "limits", "open_image", "open_video"]


def open_video(source, *, fps, min_frames, max_frames, min_pixels, max_pixels, nframes=None, start=None, end=None,
               factor=32, patch_size=16, temporal=2, **more):  # fmt: skip
    """Opens a video; returns a Medium of kind "video".

    source: a path, a file:// or data: URI, base64; bytes or an open binary file; of a video, an animated image or a still
    one, which is one frame. Or frames: a list or iterator of what an image may be, or of {"t": seconds, "image": ...},
    rising; an array or tensor (T, H, W), (T, H, W, C) or (T, C, H, W).

    fps: frames taken per second, between min_frames and max_frames of them; nframes: that many instead. Of frames without
    times all are taken (up to max_frames), and fps says when they were. start, end: seconds; time marks stay those of
    the whole video. min_pixels, max_pixels: of each resized frame, whose sides are multiples of `factor`. more: as of
    `video.open_video`.

    Decodes one frame. Raises MediaError (the file), UsageError (an argument), OutOfMemoryError.
    """
    limits = {"fps": fps, "min_frames": min_frames, "max_frames": max_frames}
    limits |= {"nframes": nframes, "start": start, "end": end}
    shape = {"patch_size": patch_size, "temporal": temporal}
    pixels = (factor, min_pixels, max_pixels)
    if found := frames(source):
        return frame_lists.open_list(found, limits, pixels, shape)
    source = memory.named(source)
    data = memory.file_data(source, "video")
    if data is None:
        path, name = local_path(source, "video")
        if animation.is_image(lambda: open(path, "rb"), path):
            return animation.open_images(lambda: open(path, "rb"), source, name, limits, pixels, shape)
    elif animation.is_image(data.open, ""):
        return animation.open_images(data.open, data, data.name, limits, pixels, shape)
    else:
        source = memory.Spooled(data.content)
    medium = video.open_video(
        source, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels, **limits, **shape, **more
    )
    medium.held = source  # the temporary file goes with the last that decodes it
    return medium
